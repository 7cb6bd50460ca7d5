"""The demo: camera, node, prompter and recorder as real processes over DDS, one table and two pictures at the end.

    python -m sam2_ros.demo [--clip video.mp4 --box x0,y0,x1,y1] [--seconds N] [--output demo]
"""
from __future__ import annotations

import argparse
import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from domain_coordinator import domain_id
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from sam2_ros.demo.camera import ClipSource, SettingError

RATE = 15.0           # images per second of the synthetic camera
SECONDS = 20.0        # of the synthetic camera
START_PATIENCE = 90   # seconds: loading the model on a busy machine
SILENCE_PATIENCE = 30  # seconds without a sign of life from the recorder
STOP_PATIENCE = 5     # seconds between SIGINT and SIGKILL
LOG_LINES = 15


class DemoError(RuntimeError):
    """The demo cannot go on; the text says why."""


class Child:
    """A process of the graph, its output in a log file; with ``lines`` its standard output as JSON in ``reports``."""

    def __init__(self, module: str, parameters: dict, environment: dict[str, str], log: Path, lines: bool = False):
        self.name, self.log = module.rpartition('.')[2], log
        command = [sys.executable, '-m', module, '--ros-args']
        for name, value in parameters.items():
            command += ['-p', f'{name}:={json.dumps(value)}']
        with log.open('w') as output:
            self.process = subprocess.Popen(
                command, env=environment, stdin=subprocess.DEVNULL, stderr=output, text=True,
                stdout=subprocess.PIPE if lines else output,
                start_new_session=True,  # Ctrl-C is ours to pass on, in the right order
                # a shell's background job would hand down that SIGINT is ignored
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler))
        self.reports: queue.SimpleQueue[dict] = queue.SimpleQueue()
        if lines:
            threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        for line in self.process.stdout:
            self.reports.put(json.loads(line))

    @property
    def running(self) -> bool:
        return self.process.poll() is None

    def check(self) -> None:
        """DemoError when the process has ended with an error, or by itself while it should run."""
        if not self.running:
            raise DemoError(f'{self.name} ended with code {self.process.returncode}; its last lines:\n{self.tail()}')

    def tail(self) -> str:
        return '\n'.join(self.log.read_text(errors='replace').splitlines()[-LOG_LINES:])

    def stop(self, how: int = signal.SIGINT) -> None:
        """Signal it, wait, and kill it when it does not end."""
        if self.running:
            self.process.send_signal(how)
            try:
                self.process.wait(STOP_PATIENCE)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()


class Graph:
    """The four processes in a domain of their own."""

    def __init__(self, options: argparse.Namespace, rate: float, domain: int) -> None:
        logs = options.output / 'log'
        logs.mkdir(parents=True, exist_ok=True)
        environment = {**os.environ, 'ROS_DOMAIN_ID': str(domain), 'ROS_AUTOMATIC_DISCOVERY_RANGE': 'LOCALHOST',
                       'ROS_LOG_DIR': str(logs), 'RCUTILS_LOGGING_USE_STDOUT': '0', 'PYTHONUNBUFFERED': '1'}
        camera = {'subscribers': 3, 'hold': True, 'seed': options.seed, 'seconds': float(options.seconds or 0),
                  'rate': rate}
        if options.clip:
            camera['clip'] = str(options.clip)
        prompter = {'box': list(options.box)} if options.clip else {}
        recorder = {'output': str(options.output), 'rate': rate, 'truth': not options.clip}

        self._children: list[Child] = []

        def start(name: str, parameters: dict, **more) -> Child:
            module = 'sam2_ros.node' if name == 'node' else f'sam2_ros.demo.{name}'
            self._children.append(Child(module, parameters, environment, logs / f'{name}.log', **more))
            return self._children[-1]

        try:  # the camera sends its first image when the three others are connected, in whatever order they come up
            self.node = start('node', {'model': options.model})
            self.prompter = start('prompter', prompter)
            self.recorder = start('recorder', recorder, lines=True)
            self.camera = start('camera', camera, lines=True)
        except BaseException:
            self.abort()
            raise

    def abort(self) -> None:
        """End what still runs, the recorder without its pictures."""
        for child in reversed(self._children):
            child.stop(signal.SIGTERM if child.name == 'recorder' else signal.SIGINT)

    def report(self) -> dict | None:
        """The recorder's next word, None when there was none for a tenth of a second."""
        with contextlib.suppress(queue.Empty):
            return self.recorder.reports.get(timeout=0.1)
        for child in (self.node, self.prompter, self.recorder):
            child.check()
        return None

    def recording(self, seconds: float) -> Iterator[dict]:
        """The figures so far, again and again, until the camera has ended, which should take so many seconds."""
        deadline, streaming = time.monotonic() + START_PATIENCE, False
        while True:
            said = self.report()
            if said:
                yield said['figures']
                if said['figures']['images'] and not streaming:
                    deadline, streaming = time.monotonic() + 2 * seconds + START_PATIENCE, True
            if not self.camera.running:
                if self.camera.process.returncode:
                    self.camera.check()
                return
            if not streaming and '[ERROR]' in self.node.log.read_text(errors='replace'):
                raise DemoError(f'the node does not start:\n{self.node.tail()}')
            if time.monotonic() > deadline:
                what = 'the camera does not come to its end' if streaming else f'no image within {START_PATIENCE} s'
                raise DemoError(f'{what}; the last lines of the node:\n{self.node.tail()}')

    def writing(self) -> Iterator[dict]:
        """Stops all but the recorder, then what the recorder says while it writes; the last is the result."""
        self.node.stop()
        self.prompter.stop()
        self.recorder.process.send_signal(signal.SIGINT)
        heard = time.monotonic()
        while True:
            with contextlib.suppress(queue.Empty):
                said = self.recorder.reports.get(timeout=0.1)
                heard = time.monotonic()
                yield said
                if said['phase'] == 'done':
                    return
            if not self.recorder.running and self.recorder.reports.empty():
                self.recorder.check()
            if time.monotonic() - heard > SILENCE_PATIENCE:
                raise DemoError(f'the recorder is silent; its last lines:\n{self.recorder.tail()}')


def run(options: argparse.Namespace, console: Console) -> dict:
    """Run the graph; what the recorder says at the end. Raises DemoError, SettingError."""
    source = ClipSource(str(options.clip)) if options.clip else None
    if source:
        check_box(options.box, source.width, source.height)
    else:
        options.seconds = options.seconds or SECONDS
    rate = source.rate if source else RATE
    total = round(options.seconds * rate) if options.seconds else source.frames
    if source:
        total = min(total, source.frames)
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
            result = {}
            for said in graph.writing():
                if said['phase'] == 'writing':
                    progress.update(task, total=said['total'], completed=said['done'])
                elif said['phase'] == 'done':
                    result = said
            result['sent'] = graph.camera.reports.get(timeout=STOP_PATIENCE)['images']
            if not result['tracked']:
                raise DemoError('\n'.join(['nothing was tracked', *result['refused'],
                                           'the last lines of the node:', graph.node.tail()]))
            return result
        finally:
            graph.abort()


def describe(figures: dict) -> str:
    latency, rate = figures['latency_node'], figures['frames_per_second']
    return (f'{figures["images"]} images, {len(figures["objects"])} objects'
            + (f', {latency["p50"] * 1e3:.0f} ms' if latency else '') + (f', {rate:.1f} frames/s' if rate else ''))


def check_box(box: tuple[int, ...] | None, width: int, height: int) -> None:
    """SettingError unless the box lies in an image of this size."""
    if box is None:
        raise SettingError(f'a clip needs a box around the object in its first image: --box x0,y0,x1,y1 '
                           f'(make demo: BOX="x0,y0,x1,y1"), within {width} x {height} pixels')
    x0, y0, x1, y1 = box
    if not (0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height):
        raise SettingError(f'box {x0},{y0},{x1},{y1}: must satisfy 0 <= x0 < x1 <= {width} and '
                           f'0 <= y0 < y1 <= {height}, the size of the clip')


def parse_box(text: str) -> tuple[int, ...]:
    try:
        x0, y0, x1, y1 = (int(part) for part in text.split(','))
    except ValueError:
        raise argparse.ArgumentTypeError(f'{text!r}: must be four whole numbers x0,y0,x1,y1') from None
    return x0, y0, x1, y1


def parse_seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0
    if not 1 <= seconds <= 600:
        raise argparse.ArgumentTypeError(f'{text!r}: must be a number of seconds from 1 to 600')
    return seconds


def make_table(figures: dict, sent: int, source: str, output: Path) -> Table:
    """Everything that was measured."""
    def milliseconds(latency: dict | None) -> str:
        return f'{latency["p50"] * 1e3:.0f} / {latency["p95"] * 1e3:.0f} ms' if latency else '-'

    def share(value: float | None, form: str) -> str:
        return '-' if value is None else format(value, form)

    table = Table(title=f'SAM 2 in ROS 2: {source}', title_justify='left', show_header=False)
    table.add_row('frames in', f'{sent}' if sent == figures['images'] else f'{sent}, {figures["images"]} arrived')
    table.add_row('processed', str(figures['processed']))
    table.add_row('dropped', str(figures['dropped']))
    table.add_row('frames per second', share(figures['frames_per_second'], '.1f'))
    table.add_row('latency p50 / p95', f'{milliseconds(figures["latency_node"])} until published, '
                                       f'{milliseconds(figures["latency_received"])} until received')
    table.add_row('objects', ', '.join(figures['objects'].values()))
    if figures['iou'] is not None:
        names = figures['objects']
        each = ', '.join(f'{names[key]} {value:.2f}' for key, value in figures['iou_by_object'].items()
                         if value is not None)
        table.add_row('mean IoU', f'{figures["iou"]:.3f} with the ground truth')
        table.add_row('', each)
        table.add_row('visible', f'{share(figures["visible_called_visible"], ".1%")} called visible')
        table.add_row('hidden', f'{share(figures["hidden_called_not_visible"], ".1%")} called not visible '
                                f'(an object hidden in {figures["hidden"]} processed frames)')
    table.add_row('written', f'{output / "overlay.mp4"}, {output / "overlay.png"}')
    return table


def main(arguments: list[str] | None = None) -> int:
    """0 when something was tracked, 1 when not (the reason is printed), 2 for wrong arguments, 130 for Ctrl-C."""
    parser = argparse.ArgumentParser(prog='demo', description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument('--clip', type=Path, help='a video file instead of the synthetic camera')
    parser.add_argument('--box', type=parse_box, metavar='x0,y0,x1,y1', help='the object in the first image')
    parser.add_argument('--seconds', type=parse_seconds,
                        help=f'how much to stream (default: the whole clip, {SECONDS:.0f} s of the synthetic camera)')
    parser.add_argument('--seed', type=int, default=0, help='which synthetic scene (default: 0)')
    parser.add_argument('--model', default='nano', help='model of the node (default: nano)')
    parser.add_argument('--output', type=Path, default=Path('demo'), help='folder for the results (default: demo)')
    options = parser.parse_args(arguments)
    if options.box and not options.clip:
        parser.error('--box is for a clip: give --clip too')
    console = Console()
    for stop in (signal.SIGTERM, signal.SIGHUP):  # as Ctrl-C: the children must not be left behind
        signal.signal(stop, signal.default_int_handler)
    try:
        result = run(options, console)
    except SettingError as error:
        console.print(f'demo: {error}', style='red', markup=False, highlight=False, soft_wrap=True)
        return 2
    except DemoError as error:
        console.print(f'demo failed: {error}', style='red', markup=False, highlight=False, soft_wrap=True)
        return 1
    except KeyboardInterrupt:
        console.print('stopped')
        return 130
    for refusal in result['refused']:
        console.print(refusal, style='yellow', markup=False, highlight=False, soft_wrap=True)
    source = options.clip.name if options.clip else 'synthetic tabletop'
    console.print(make_table(result['figures'], result['sent'], source, options.output))
    return 0


if __name__ == '__main__':
    sys.exit(main())
