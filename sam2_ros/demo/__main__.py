"""Run the demo: camera, node, prompter and recorder as processes that communicate over DDS.

    python -m sam2_ros.demo [--clip video.mp4 --box x0,y0,x1,y1] [--seconds N] [--output demo]

At the end it prints a table of figures and writes overlay.mp4 and overlay.png.
"""
from __future__ import annotations

import argparse
import contextlib
import json
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from domain_coordinator import domain_id
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from sam2_ros.demo.camera import SettingError, VideoSource
from sam2_ros.runtime.child_process import ChildProcess

if TYPE_CHECKING:
    from sam2_core.model_choice import ModelChoice

RATE = 15.0  # images per second of the synthetic camera
SECONDS = 20.0  # duration of the synthetic stream
START_PATIENCE = 90  # seconds until the first image; a busy machine takes long to load the model
SILENCE_PATIENCE = 30  # seconds without a report from the recorder
STOP_PATIENCE = 5  # seconds between SIGINT and SIGKILL
LOG_LINES = 15


class DemoError(RuntimeError):
    """Failure after which the demo cannot continue; the text has the reason."""


class DemoProcess(ChildProcess):
    """Process of the demo with its ROS parameters; ``reports`` has the lines of JSON that it prints, if requested."""

    def __init__(self, module: str, parameters: dict[str, Any], environment: dict[str, str], log: Path,
                 reporting: bool = False) -> None:
        """Start ``python -m module``; ``reporting``: whether its standard output is JSON to read."""
        self.name = module.rpartition('.')[2]
        command = [sys.executable, '-m', module, '--ros-args']
        for name, value in parameters.items():
            command += ['-p', f'{name}:={json.dumps(value)}']
        # Ctrl-C must not reach the processes: the demo stops them in order.
        super().__init__(command, environment, log, piped=reporting, detached=True)
        self.reports: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        if reporting:
            threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        for line in self.output:
            self.reports.put(json.loads(line))

    def check(self) -> None:
        """Check that the process is running.

        Raises:
            DemoError: The process has ended.
        """
        if not self.running:
            raise DemoError(f'{self.name} ended with code {self.exit_code}; its log ends:\n{self.log_tail(LOG_LINES)}')


class Graph:
    """Camera, node, prompter and recorder in a ROS domain that nothing else uses."""

    def __init__(self, options: argparse.Namespace, rate: float, domain: int) -> None:
        """Start the processes.

        Args:
            options: Options of the command line.
            rate: Images per second of the camera.
            domain: ROS_DOMAIN_ID of the processes.
        """
        logs = options.output / 'log'
        logs.mkdir(parents=True, exist_ok=True)
        environment = {**os.environ, 'ROS_DOMAIN_ID': str(domain), 'ROS_AUTOMATIC_DISCOVERY_RANGE': 'LOCALHOST',
                       'ROS_LOG_DIR': str(logs), 'RCUTILS_LOGGING_USE_STDOUT': '0', 'PYTHONUNBUFFERED': '1'}
        camera: dict[str, Any] = {'subscribers': 3, 'hold': True, 'seed': options.seed,
                                  'seconds': float(options.seconds or 0), 'rate': rate}
        if options.clip:
            camera['clip'] = str(options.clip)
        prompter = {'box': list(options.box)} if options.clip else {}
        recorder = {'output': str(options.output), 'rate': rate, 'truth': not options.clip}

        self._children: list[DemoProcess] = []

        def start(name: str, parameters: dict[str, Any], reporting: bool = False) -> DemoProcess:
            module = 'sam2_ros.node' if name == 'node' else f'sam2_ros.demo.{name}'
            self._children.append(DemoProcess(module, parameters, environment, logs / f'{name}.log', reporting))
            return self._children[-1]

        try:  # in any order: the camera publishes its first image once the three others are connected
            self.node = start('node', {'model': options.model})
            self.prompter = start('prompter', prompter)
            self.recorder = start('recorder', recorder, reporting=True)
            self.camera = start('camera', camera, reporting=True)
        except BaseException:
            self.abort()
            raise

    def abort(self) -> None:
        """Stop all processes that are still running; the recorder writes no pictures."""
        for child in reversed(self._children):
            child.stop(signal.SIGTERM if child.name == 'recorder' else signal.SIGINT, STOP_PATIENCE)

    def report(self) -> dict[str, Any] | None:
        """Return the next report of the recorder, None if there is none within 0.1 s.

        Raises:
            DemoError: A process has ended.
        """
        with contextlib.suppress(queue.Empty):
            return self.recorder.reports.get(timeout=0.1)
        for child in (self.node, self.prompter, self.recorder):
            child.check()
        return None

    def recording(self, seconds: float) -> Iterator[dict[str, Any]]:
        """Yield the current figures repeatedly until the camera, which streams for ``seconds``, has ended.

        Raises:
            DemoError: A process has ended or is stuck.
        """
        deadline, streaming = time.monotonic() + START_PATIENCE, False
        while True:
            report = self.report()
            if report:
                yield report['figures']
                if report['figures']['images'] and not streaming:
                    deadline, streaming = time.monotonic() + 2 * seconds + START_PATIENCE, True
            if not self.camera.running:
                if self.camera.exit_code:
                    self.camera.check()
                return
            if not streaming and '[ERROR]' in self.node.log:
                raise DemoError(f'the node does not start; its log ends:\n{self.node.log_tail(LOG_LINES)}')
            if time.monotonic() > deadline:
                what = 'the camera does not stop' if streaming else f'no image within {START_PATIENCE} s'
                raise DemoError(f'{what}; the log of the node ends:\n{self.node.log_tail(LOG_LINES)}')

    def writing(self) -> Iterator[dict[str, Any]]:
        """Stop node and prompter, then yield the reports of the recorder while it writes; the last is the result.

        Raises:
            DemoError: The recorder has ended early or is stuck.
        """
        self.node.stop(patience=STOP_PATIENCE)
        self.prompter.stop(patience=STOP_PATIENCE)
        self.recorder.send_signal(signal.SIGINT)
        reported = time.monotonic()
        while True:
            with contextlib.suppress(queue.Empty):
                report = self.recorder.reports.get(timeout=0.1)
                reported = time.monotonic()
                yield report
                if report['phase'] == 'done':
                    return
            if not self.recorder.running and self.recorder.reports.empty():
                self.recorder.check()
            if time.monotonic() - reported > SILENCE_PATIENCE:
                raise DemoError(f'no report from the recorder within {SILENCE_PATIENCE} s; its log ends:\n'
                                f'{self.recorder.log_tail(LOG_LINES)}')


def run(options: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Run the processes and return the recorder's last report, with the number of images ``sent``.

    Raises:
        DemoError: A process failed, or nothing was tracked.
        SettingError: The clip cannot be read, or its box is missing or outside of the image.
    """
    source = VideoSource(str(options.clip)) if options.clip else None
    if source:
        check_box(options.box, source.width, source.height)
        rate, total = source.rate, source.frames
        if options.seconds:
            total = min(total, round(options.seconds * rate))
    else:
        options.seconds = options.seconds or SECONDS
        rate, total = RATE, round(options.seconds * RATE)
    with domain_id() as domain, Progress(
            SpinnerColumn(), TextColumn('{task.description}'), BarColumn(), TextColumn('{task.fields[info]}'),
            TimeElapsedColumn(), console=console) as progress:
        task = progress.add_task('starting', total=None, info='camera, node, prompter, recorder')
        graph = Graph(options, rate, domain)
        try:
            for figures in graph.recording(total / rate):
                if figures['images']:
                    progress.update(task, description='tracking', total=total, completed=figures['images'],
                                    info=describe(figures))
            progress.update(task, completed=total)
            task = progress.add_task('writing', total=None, info='overlay.mp4')
            result: dict[str, Any] = {}
            for report in graph.writing():
                if report['phase'] == 'writing':
                    progress.update(task, total=report['total'], completed=report['done'])
                elif report['phase'] == 'done':
                    result = report
            result['sent'] = graph.camera.reports.get(timeout=STOP_PATIENCE)['images']
            if not result['tracked']:
                raise DemoError('\n'.join(['nothing was tracked', *result['refused'],
                                           'the log of the node ends:', graph.node.log_tail(LOG_LINES)]))
            return result
        finally:
            graph.abort()


def describe(figures: dict[str, Any]) -> str:
    """Return images, objects, latency and rate so far in one line."""
    latency, rate = figures['latency_node'], figures['frames_per_second']
    return (f'{figures["images"]} images, {len(figures["objects"])} objects'
            + (f', {latency["p50"] * 1e3:.0f} ms' if latency else '') + (f', {rate:.1f} frames/s' if rate else ''))


def check_box(box: tuple[int, ...] | None, width: int, height: int) -> None:
    """Check that a box lies within an image of this size.

    Raises:
        SettingError: It does not, or there is none.
    """
    if box is None:
        raise SettingError('a clip needs a box around the object in its first image: --box x0,y0,x1,y1 '
                           f'(make demo: BOX="x0,y0,x1,y1"), within {width} x {height} pixels')
    x0, y0, x1, y1 = box
    if not (0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height):
        raise SettingError(f'box {x0},{y0},{x1},{y1}: must satisfy 0 <= x0 < x1 <= {width} and '
                           f'0 <= y0 < y1 <= {height}, the size of the clip')


def parse_box(text: str) -> tuple[int, ...]:
    """Return the four numbers of the option --box."""
    try:
        x0, y0, x1, y1 = (int(part) for part in text.split(','))
    except ValueError:
        raise argparse.ArgumentTypeError(f'{text!r}: must be four whole numbers x0,y0,x1,y1') from None
    return x0, y0, x1, y1


def parse_seconds(text: str) -> float:
    """Return the number of the option --seconds."""
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0
    if not 1 <= seconds <= 600:
        raise argparse.ArgumentTypeError(f'{text!r}: must be a number of seconds from 1 to 600')
    return seconds


def make_table(figures: dict[str, Any], sent: int, source: str, output: Path) -> Table:
    """Return the table of the figures.

    Args:
        figures: Result of ``DemoRecording.figures``.
        sent: Number of images that the camera published.
        source: Name of the clip or scene.
        output: Folder of the results.
    """
    def milliseconds(latency: dict[str, float] | None) -> str:
        return f'{latency["p50"] * 1e3:.0f} / {latency["p95"] * 1e3:.0f} ms' if latency else '-'

    def share(value: float | None, form: str) -> str:
        return '-' if value is None else format(value, form)

    table = Table(title=f'SAM 2 in ROS 2: {source}', title_justify='left', show_header=False)
    table.add_row('frames in', f'{sent}' if sent == figures['images'] else f'{sent}, {figures["images"]} received')
    table.add_row('processed', str(figures['processed']))
    table.add_row('dropped', str(figures['dropped']))
    table.add_row('frames per second', share(figures['frames_per_second'], '.1f'))
    table.add_row('latency p50 / p95', f'{milliseconds(figures["latency_node"])} to publication, '
                                       f'{milliseconds(figures["latency_received"])} to reception')
    table.add_row('objects', ', '.join(figures['objects'].values()))
    if figures['iou'] is not None:
        names = figures['objects']
        each = ', '.join(f'{names[key]} {value:.2f}' for key, value in figures['iou_by_object'].items()
                         if value is not None)
        table.add_row('mean IoU', f'{figures["iou"]:.3f} with the ground truth')
        table.add_row('', each)
        table.add_row('visible objects', f'{share(figures["visible_called_visible"], ".1%")} reported as visible')
        table.add_row('hidden objects', f'{share(figures["hidden_called_not_visible"], ".1%")} reported as not visible '
                                        f'({figures["hidden"]} hidden objects in all processed frames)')
    table.add_row('written', f'{output / "overlay.mp4"}, {output / "overlay.png"}')
    return table


def choose(options: argparse.Namespace, console: Console) -> ModelChoice | None:
    """Choose the model for a clip and print which one it is; the synthetic scene runs nano unless told otherwise.

    Raises:
        ValueError: There is no model of the name that the user gives.
    """
    if not options.clip:
        options.model = options.model or 'nano'
        return None
    from sam2_core.model_choice import choose_model, model_lines  # PyTorch, which the synthetic scene needs not
    choice = choose_model(options.model)
    options.model = choice.name
    for line in model_lines(choice):
        say(console, line)
    return choice


def warn_of_low_scores(result: dict[str, Any], choice: ModelChoice, console: Console) -> None:
    """Print a warning for each object whose score stayed low."""
    from sam2_core.model_choice import low_score_warning
    from sam2_core.scores import LowScore
    for found in result['low_scores']:
        low = LowScore(**found)
        say(console, low_score_warning(low, choice, result['figures']['objects'].get(str(low.object_id), '')), 'yellow')


def say(console: Console, text: str, style: str | None = None) -> None:
    """Print a line as it is, without markup and line breaks."""
    console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)


def main(arguments: list[str] | None = None) -> int:
    """Run the demo and print its figures.

    Returns:
        The exit code: 0 if an object was tracked, 1 if not or after a failure, 2 for wrong arguments, 130 after Ctrl-C.
    """
    parser = argparse.ArgumentParser(prog='python -m sam2_ros.demo', description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--clip', type=Path, metavar='FILE',
                        help='stream a video file instead of the synthetic scene')
    parser.add_argument('--box', type=parse_box, metavar='x0,y0,x1,y1',
                        help='box around the object in the first image of the clip, pixels')
    parser.add_argument('--seconds', type=parse_seconds,
                        help='duration of the stream in seconds, 1 to 600 (default: the whole clip, or '
                             f'{SECONDS:.0f} for the synthetic scene)')
    parser.add_argument('--seed', type=int, default=0, help='seed of the synthetic scene (default: 0)')
    parser.add_argument('--model', help='model that the node loads (default: nano for the synthetic scene; for a clip, '
                                        'a cached published model, or else nano)')
    parser.add_argument('--output', type=Path, default=Path('demo'), help='folder for the results (default: demo)')
    options = parser.parse_args(arguments)
    if options.box and not options.clip:
        parser.error('--box is for a clip: add --clip')
    console = Console()
    try:
        choice = choose(options, console)
    except ValueError as error:
        say(console, f'demo: {error}', 'red')
        return 2
    for stop in (signal.SIGTERM, signal.SIGHUP):  # like Ctrl-C, so that the child processes are stopped
        signal.signal(stop, signal.default_int_handler)
    try:
        result = run(options, console)
    except SettingError as error:
        say(console, f'demo: {error}', 'red')
        return 2
    except DemoError as error:
        say(console, f'demo failed: {error}', 'red')
        return 1
    except KeyboardInterrupt:
        console.print('stopped')
        return 130
    for refusal in result['refused']:
        say(console, refusal, 'yellow')
    source = options.clip.name if options.clip else 'synthetic tabletop'
    console.print(make_table(result['figures'], result['sent'], source, options.output))
    if choice:
        warn_of_low_scores(result, choice, console)
    return 0


if __name__ == '__main__':
    sys.exit(main())
