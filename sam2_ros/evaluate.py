"""Evaluate the node on recordings: accuracy against ground truth, and speed.

    sam2_evaluate BAG --output DIR
    sam2_evaluate BAG --image-topic /camera/image --ground-truth-topic /truth --model nano --device cpu --output DIR
    sam2_evaluate BAG... --mode real-time --parameters robot.yaml --output DIR
    sam2_evaluate --davis DAVIS --split 2017/val --model sam2.1_hiera_small --output DIR

Writes metrics.json, report.html, overlay.mp4 and the bag results to DIR, or to DIR/NAME for each of several recordings.
Topics that are not given are detected. In lock-step all figures but times are reproducible.
docs/reference/evaluation.md describes the figures.

Exit code: 0 if all recordings were evaluated, 1 if some failed, 2 if all failed or an option is wrong.
"""
from __future__ import annotations

if __name__ == '__main__':  # before the imports below, which take seconds
    from sam2_ros.runtime.executables import main_of

    main_of('sam2_evaluate')

import sam2_ros.runtime.threads  # noqa: F401  must come before torch

# isort: split
import argparse
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

from sam2_core import Sam2Model, __version__
from sam2_core.config import VARIANTS
from sam2_core.memory_policy import MEMORY_POLICIES
from sam2_ros.evaluation import job as jobs
from sam2_ros.evaluation.batch import PAGE, Outcome, Summary, evaluate_many, evaluate_with_ray, summarise
from sam2_ros.evaluation.job import Job, do
from sam2_ros.evaluation.metrics import Accuracy, Metrics, Presence
from sam2_ros.evaluation.report.training_export import MIN_SCORE, WRITERS
from sam2_ros.evaluation.results import TOTAL, Mode
from sam2_ros.perception.model_loading import LOAD_ERRORS, load
from sam2_ros.recordings.recording import RecordingError
from sam2_ros.runtime.parameter_file import NODE, read_parameter_file
from sam2_ros.runtime.parameter_rules import ParameterError, shown, with_values
from sam2_ros.runtime.parameters import Parameters

FINE, SOME_FAILED, NOTHING = 0, 1, 2
TOPICS = {'image_topic': 'camera images (default: the only such topic)',
          'ground_truth_topic': 'label images, mono8 or mono16 (default: the only one whose name ends in truth)',
          'prompt_topic': 'sam2_ros/Prompt (default: the only such topic)',
          'depth_topic': 'depth images (default: the only topic registered to the images)',
          'camera_info_topic': 'calibration (default: the topic beside depth or images)'}


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the options of the command line; a wrong one ends the process with code 2."""
    parser = argparse.ArgumentParser('sam2_evaluate', description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--version', action='version', version=f'%(prog)s {__version__}')
    what = parser.add_argument_group('recordings')
    what.add_argument('bags', nargs='*', type=Path, metavar='BAG', help='ROS 2 bag: a folder, or an .mcap or .db3 file')
    what.add_argument('--davis', type=Path, metavar='DIR', help='folder with JPEGImages and Annotations')
    what.add_argument('--sav', type=Path, metavar='DIR', help='folder of the unpacked SA-V data set')
    what.add_argument('--split', default='', metavar='NAME', help='evaluate only the clips of this list of the data '
                      'set, e.g. 2017/val')
    for topic, text in TOPICS.items():
        what.add_argument(f'--{topic.replace("_", "-")}', default='', metavar='TOPIC', help=text)
    what.add_argument('--prompts', default='', metavar='topic|first-truth|FILE', help='recorded prompts, the first '
                      'mask of each object in the ground truth, or a YAML file (default: topic if the recording has '
                      'prompts, otherwise first-truth)')
    node = parser.add_argument_group('node')
    node.add_argument('--model', choices=VARIANTS, metavar='NAME', help=f'{", ".join(VARIANTS)} (default: nano)')
    node.add_argument('--checkpoint', metavar='FILE', help="file of weights (default: the model's own)")
    node.add_argument('--device', metavar='DEVICE', help='cpu, cuda or cuda:N (default: cuda if there is a GPU)')
    node.add_argument('--dtype', metavar='TYPE', help='float32, bfloat16 or float16')
    node.add_argument('--image-size', type=int, metavar='PIXELS', help='side of the square image that the model '
                      'processes')
    node.add_argument('--memory-policy', choices=MEMORY_POLICIES, help="rule that selects the frames in an object's "
                      'memory (default: published)')
    node.add_argument('--parameters', type=Path, metavar='FILE', help='parameter file of the node, such as '
                      'config/sam2.yaml; the options above override it')
    node.add_argument('--node', default=NODE, metavar='NAME', help='fully qualified name of the node in the parameter '
                      f'file (default: {NODE})')
    how = parser.add_argument_group('playback')
    modes = [mode.value for mode in Mode]
    how.add_argument('--mode', default=Mode.LOCK_STEP.value, choices=modes, help='lock-step (default): every image '
                     'in order; real-time: at the recorded times, on a simulated clock that advances by the time the '
                     'work takes on this machine; live: at the recorded times, over DDS, to a node process')
    how.add_argument('--rate', type=float, default=1.0, help='speed relative to the recording (default: 1)')
    how.add_argument('--ray', nargs='?', const='', metavar='ADDRESS', help='distribute recordings over the cores or '
                     'GPUs of this machine, or of the Ray cluster at this address; lock-step only')
    how.add_argument('--redo', action='store_true', help='evaluate recordings again that an earlier call with the same '
                     'options has finished; a single recording is always evaluated')
    out = parser.add_argument_group('output')
    out.add_argument('--output', type=Path, required=True, metavar='DIR', help='folder for the results; created if '
                     'necessary')
    out.add_argument('--bag', default='results', choices=('none', 'results', 'images'), help='bag DIR/results for RViz '
                     'and Foxglove: instances, label images and overlay (results, default), the camera images too '
                     '(images), or no bag (none)')
    out.add_argument('--no-video', action='store_true', help='do not write DIR/overlay.mp4')
    out.add_argument('--export', nargs='+', default=[], choices=WRITERS, metavar='KIND', help='write the masks as '
                     f'training data to DIR/KIND: {", ".join(WRITERS)}')
    out.add_argument('--min-score', type=float, default=MIN_SCORE, metavar='SCORE', help='minimum score (predicted '
                     f'IoU) of exported masks (default: {MIN_SCORE:g})')
    options = parser.parse_args(arguments)
    if sum(map(bool, (options.bags, options.davis, options.sav))) != 1:
        parser.error('give either bags, --davis DIR or --sav DIR')
    if not 0 < options.rate < float('inf'):
        parser.error(f'--rate {options.rate:g}: must be positive')
    options.mode = Mode(options.mode)
    if options.rate != 1 and options.mode == Mode.LOCK_STEP:
        parser.error(f'--rate {options.rate:g}: lock-step has no rate; add --mode real-time')
    if options.ray is not None and options.mode != Mode.LOCK_STEP:
        parser.error(f'--ray with --mode {options.mode}: times measured beside other work are not those of a robot; '
                     'leave --ray out')
    if not 0 <= options.min_score <= 1:
        parser.error(f'--min-score {options.min_score:g}: must lie between 0 and 1')
    if options.prompts not in ('', jobs.TOPIC, jobs.FIRST_TRUTH) and not Path(options.prompts).is_file():
        parser.error(f'--prompts {options.prompts}: must be topic, first-truth or a YAML file; no such file exists')
    return options


def parameters_of(options: argparse.Namespace) -> Parameters:
    """Return the parameters of the node; print those of the file that have no effect.

    Raises:
        ParameterError: The file cannot be read, or a value is invalid.
    """
    chosen = Parameters()
    problems: list[str] = []
    if options.parameters:
        chosen, problems = read_parameter_file(options.parameters, options.node)
    named = ('model', 'checkpoint', 'device', 'dtype', 'image_size', 'memory_policy')
    given = {name: value for name in named if (value := getattr(options, name)) is not None}
    if 'checkpoint' in given and 'model' not in given:
        given['model'] = ''  # detected from the weights
    problems += [f'{name} {shown(value)} is ignored: a recording is evaluated in the frame of its camera'
                 for name in ('target_frame', 'publish_tf') if (value := getattr(chosen, name))]
    if chosen.keep_objects:
        problems.append(f'keep_objects {shown(chosen.keep_objects)} is ignored: a recording begins without objects')
    for problem in problems:
        print(f'sam2_evaluate: parameters {options.parameters}: {problem}', file=sys.stderr)
    return with_values(chosen, {**given, 'target_frame': '', 'publish_tf': False, 'keep_objects': ''})


def jobs_of(options: argparse.Namespace, parameters: Parameters) -> list[Job]:
    """Return one job for each recording.

    Raises:
        RecordingError: The data set cannot be read.
    """
    common = {'prompts': options.prompts, 'mode': options.mode, 'rate': options.rate, 'parameters': parameters,
              'bag': '' if options.bag == 'none' else options.bag, 'video': not options.no_video,
              'exports': tuple(options.export), 'export_folder': options.output, 'min_score': options.min_score}
    if options.bags:
        topics = {topic: given for topic in TOPICS if (given := getattr(options, topic))}
        names = _unique([bag.resolve().name for bag in options.bags])
        return [Job(bag, _folder(options, name, len(names)), topics=topics, **common)
                for bag, name in zip(options.bags, names, strict=True)]
    kind, folder = (jobs.DAVIS, options.davis) if options.davis else (jobs.SAV, options.sav)
    data = jobs.data_set(kind, folder, options.split)
    for problem in data.problems:
        print(f'sam2_evaluate: {problem}', file=sys.stderr)
    clips = data.names
    return [Job(folder, _folder(options, clip, len(clips)), kind, clip, **common) for clip in clips]


def _folder(options: argparse.Namespace, name: str, count: int) -> Path:
    return options.output / name if count > 1 else options.output


def _unique(names: list[str]) -> list[str]:
    """Append a number to repeated names."""
    seen: Counter[str] = Counter()
    result = []
    for name in names:
        seen[name] += 1
        result.append(name if seen[name] == 1 else f'{name}_{seen[name]}')
    return result


@contextmanager
def progress_bar(console: Console, name: str) -> Iterator[jobs.Progress]:
    """Show a progress bar that restarts with each step."""
    columns = (TextColumn('{task.fields[name]}: {task.description}', markup=False), BarColumn(), MofNCompleteColumn(),
               TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        tasks: dict[str, TaskID] = {}

        def show(what: str, done: int, total: int) -> None:
            if what not in tasks:
                for task in tasks.values():
                    bar.update(task, visible=False)
                tasks[what] = bar.add_task(what, name=name)
            bar.update(tasks[what], completed=done, total=total)
        yield show


def summary(metrics: Metrics) -> Table:
    """Return the table of the figures of one recording."""
    table = Table(box=None, pad_edge=False)
    for column in ('object', 'J', 'F', 'J&F', 'precision', 'recall', 'swaps'):
        table.add_column(column, justify='left' if column == 'object' else 'right')
    for number, item in metrics.objects.items():
        title = f'{number} {item.label}'.rstrip() + ('' if item.prompted else ' (not prompted)')
        table.add_row(escape(title), *_accuracy(item.accuracy), *_presence(item.presence), str(item.identity_swaps))
    if metrics.mean:
        table.add_row('mean', *_accuracy(metrics.mean), *_presence(metrics.presence), str(metrics.identity_swaps),
                      style='bold')
    return table


def _accuracy(accuracy: Accuracy | None) -> list[str]:
    return [_number(value) for value in (accuracy.named.values() if accuracy else [None] * 3)]


def _presence(presence: Presence) -> list[str]:
    return [_number(presence.precision), _number(presence.recall)]


def _number(value: float | None) -> str:
    return '-' if value is None else f'{value:.3f}'


def report(console: Console, metrics: Metrics) -> None:
    """Print the figures and problems of one recording."""
    console.print(f'[bold]{escape(metrics.recording)}[/]: {metrics.processed} of {metrics.images} images '
                  f'processed, {metrics.dropped} dropped, {metrics.annotated} with truth')
    if metrics.objects:
        console.print(summary(metrics))
    elif not metrics.annotated:
        console.print('no ground truth, so no scores')
    if metrics.as_seen and (seen := metrics.as_seen.mean):
        console.print(f'J&F as seen, with the newest result when each image arrived: {seen.j_and_f:.3f}')
    if against := metrics.against_lock_step:
        console.print(f'J between these masks and those of lock-step: {_number(against.j)} in {against.images} images')
    if total := metrics.latency.get(TOTAL):
        console.print(f'time per image: p50 {1e3 * total["p50"]:.0f} ms, p95 {1e3 * total["p95"]:.0f} ms')
    for kind, made in metrics.exported.items():
        console.print(f'exported to {kind}: {made.images} images with {made.masks} masks; skipped: {made.unsure} '
                      f'images with low scores, {made.empty} without visible objects'
                      + ''.join(f', object {number} for low scores' for number in made.objects_left_out))
    problems = [f'image {index} skipped: {reason}' for index, reason in metrics.unusable.items()]
    problems += metrics.problems + [f'prompt {item.action} of object {item.id} refused: {item.reason}'
                                    for item in metrics.prompts_refused]
    for problem in problems[:10]:
        console.print(f'[yellow]{escape(problem)}[/]')
    if len(problems) > 10:
        console.print(f'[yellow]and {len(problems) - 10} more problems, all in metrics.json[/]')


def main(arguments: Sequence[str] | None = None) -> int:
    """Evaluate recordings and print their figures; return the exit code."""
    options = parse(arguments)
    console = Console(highlight=False, soft_wrap=True)
    try:
        parameters = parameters_of(options)
        todo = jobs_of(options, parameters)
        model = load(parameters) if options.ray is None else None  # with Ray each worker loads the model
    except (ParameterError, RecordingError, *LOAD_ERRORS) as error:
        print(f'sam2_evaluate: {error}', file=sys.stderr)
        return NOTHING

    several = len(todo) > 1
    outcomes = []
    try:
        for outcome in (_evaluate_here(console, todo, model, options.redo or not several) if model is not None else
                        evaluate_with_ray(todo, options.ray or None, options.redo)):
            outcomes.append(outcome)
            _show(console, outcome, f'{len(outcomes)} of {len(todo)}: ' if several else '')
    except (ImportError, ConnectionError) as error:
        print(f'sam2_evaluate: --ray: {error}; pip install ray, or leave --ray out; an address must be that of a '
              'running cluster', file=sys.stderr)
        return NOTHING
    if several:
        _show_summary(console, summarise(outcomes, options.output), options.output)
    failed = sum(outcome.metrics is None for outcome in outcomes)
    return NOTHING if failed == len(todo) else SOME_FAILED if failed else FINE


def _evaluate_here(console: Console, jobs: Sequence[Job], model: Sam2Model, redo: bool) -> Iterator[Outcome]:
    """Evaluate in this process with a progress bar, and yield the outcomes."""
    def work(job: Job) -> Metrics:
        with progress_bar(console, job.name) as progress:
            return do(job, model, progress)
    yield from evaluate_many(jobs, work, redo)


def _show(console: Console, outcome: Outcome, place: str) -> None:
    if outcome.metrics is None:
        print(f'sam2_evaluate: {outcome.job.name}: {outcome.problem}', file=sys.stderr)
        return
    if outcome.done_before:
        console.print(f'{place}{escape(outcome.job.name)} was evaluated before; add --redo to evaluate it again')
        return
    console.print(place, end='')
    report(console, outcome.metrics)
    console.print(f'{escape(str(outcome.job.output / jobs.METRICS))}\n')


def _show_summary(console: Console, found: Summary, folder: Path) -> None:
    """Print a table of all recordings."""
    table = Table(box=None, pad_edge=False)
    for column in ('recording', 'J', 'F', 'J&F', 'images', 'dropped', 'swaps'):
        table.add_column(column, justify='left' if column == 'recording' else 'right')
    for name, item in found.recordings.items():
        table.add_row(escape(name), *_accuracy(item.mean), str(item.images), str(item.dropped),
                      str(item.identity_swaps))
    if found.mean:
        table.add_row('mean over objects', *_accuracy(found.mean), style='bold')
    console.print(table)
    for name in found.failed:
        console.print(f'[red]{escape(name)} failed[/]')
    console.print(escape(str(folder / PAGE)))
