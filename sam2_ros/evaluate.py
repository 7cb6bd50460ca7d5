"""How good is the node on your own data, and is it fast enough? Recordings in, figures and pictures out.

    sam2_evaluate BAG --output DIR
    sam2_evaluate BAG --image-topic /camera/image --ground-truth-topic /truth --model nano --device cpu --output DIR
    sam2_evaluate BAG... --mode real-time --parameters robot.yaml --output DIR
    sam2_evaluate --davis DAVIS --split 2017/val --model sam2.1_hiera_small --output DIR

Writes DIR/metrics.json, report.html, overlay.mp4 and the bag results, of several recordings to DIR/NAME each. Topics
that are not given are found. The same recording gives the same figures each time, but for times.
docs/reference/evaluation.md tells what they mean.

Exit code: 0 fine, 1 a recording could not be evaluated (the others were), 2 nothing could be.
"""
from __future__ import annotations

if __name__ == '__main__':  # before the imports below, which take seconds
    from sam2_ros.runtime.executables import main_of

    main_of('sam2_evaluate')

import sam2_ros.runtime.threads  # noqa: F401  before torch

# isort: split
import argparse
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from sam2_core import __version__
from sam2_core.config import VARIANTS
from sam2_ros.evaluation import job as jobs
from sam2_ros.evaluation.batch import PAGE, Outcome, evaluate_many, evaluate_with_ray, summarise
from sam2_ros.evaluation.job import Job, do
from sam2_ros.evaluation.report.training_export import MIN_SCORE, WRITERS
from sam2_ros.evaluation.results import MODES, TOTAL
from sam2_ros.perception.model_loading import LOAD_ERRORS, load
from sam2_ros.recordings.recording import RecordingError
from sam2_ros.runtime.parameter_file import NODE, read_parameters
from sam2_ros.runtime.parameters import ParameterError, Parameters, with_values

FINE, SOME_FAILED, NOTHING = 0, 1, 2
TOPICS = {'image_topic': 'camera images; default: the only one there is',
          'ground_truth_topic': 'label images, mono8 or mono16; default: the one that ends in truth',
          'prompt_topic': 'sam2_ros/Prompt; default: the only one', 'depth_topic': 'default: the only one',
          'camera_info_topic': 'default: the one beside the depth'}


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser('sam2_evaluate', description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--version', action='version', version=f'%(prog)s {__version__}')
    what = parser.add_argument_group('what is evaluated')
    what.add_argument('bags', nargs='*', type=Path, metavar='BAG', help='ROS 2 bag, folder or file, sqlite3 or mcap')
    what.add_argument('--davis', type=Path, metavar='DIR', help='folder with JPEGImages and Annotations')
    what.add_argument('--sav', type=Path, metavar='DIR', help='folder that SA-V was unpacked to')
    what.add_argument('--split', default='', help='of the data set: only the clips that this list names, as 2017/val')
    for topic, text in TOPICS.items():
        what.add_argument(f'--{topic.replace("_", "-")}', default='', metavar='TOPIC', help=text)
    what.add_argument('--prompts', default='', metavar='topic|first-truth|FILE', help='recorded prompts, the first '
                      'mask of each object in the truth, or a YAML file; default: those recorded, or else the truth')
    node = parser.add_argument_group('the node')
    node.add_argument('--model', choices=VARIANTS, metavar='NAME', help=f'{", ".join(VARIANTS)} (default: nano)')
    node.add_argument('--checkpoint', metavar='FILE', help='weights instead of those of the model')
    node.add_argument('--device', metavar='DEVICE', help='cpu, cuda or cuda:N (default: cuda when there is a GPU)')
    node.add_argument('--dtype', metavar='TYPE', help='float32, bfloat16 or float16')
    node.add_argument('--image-size', type=int, metavar='PIXELS', help='side of the square the model sees')
    node.add_argument('--parameters', type=Path, metavar='FILE', help='parameters of the node, as config/sam2.yaml; '
                      'the options above come before it')
    node.add_argument('--node', default=NODE, metavar='NAME', help='full name of the node whose sections of the file '
                      f'count (default: {NODE})')
    how = parser.add_argument_group('how')
    how.add_argument('--mode', default=MODES[0], choices=MODES, help='lock-step (default): every image in '
                     'order; real-time: as recorded, on a simulated clock that the work on this machine advances; '
                     'live: as recorded, over DDS, to a node process')
    how.add_argument('--rate', type=float, default=1.0, help='times as fast as recorded (default: 1)')
    how.add_argument('--ray', nargs='?', const='', metavar='ADDRESS', help='spread recordings over the cores or GPUs '
                     'of this machine, or over the Ray cluster at this address (lock-step only)')
    how.add_argument('--redo', action='store_true', help='of several recordings, also those that were finished by an '
                     'earlier call with the same options')
    out = parser.add_argument_group('what is written')
    out.add_argument('--output', type=Path, required=True, metavar='DIR', help='folder to write to; it is made')
    out.add_argument('--bag', default='results', choices=('none', 'results', 'images'), help='DIR/results, a bag for '
                     'RViz and Foxglove with instances, label images and overlay (default), with the images too, or '
                     'none')
    out.add_argument('--no-video', action='store_true', help='no DIR/overlay.mp4')
    out.add_argument('--export', nargs='+', default=[], choices=WRITERS, metavar='KIND', help='the masks as training '
                     f'data in DIR/KIND: {", ".join(WRITERS)}')
    out.add_argument('--min-score', type=float, default=MIN_SCORE, metavar='SCORE', help='of the masks that are '
                     f'exported (default: {MIN_SCORE:g})')
    options = parser.parse_args(arguments)
    if sum(map(bool, (options.bags, options.davis, options.sav))) != 1:
        parser.error('give bags, or --davis DIR, or --sav DIR')
    if not 0 < options.rate < float('inf'):
        parser.error(f'--rate {options.rate:g}: must be positive')
    if options.rate != 1 and options.mode == MODES[0]:
        parser.error(f'--rate {options.rate:g}: lock-step knows no rate; add --mode real-time')
    if options.ray is not None and options.mode != MODES[0]:
        parser.error(f'--ray with --mode {options.mode}: times that are measured beside other work are not those of a '
                     'robot; leave --ray out')
    if not 0 <= options.min_score <= 1:
        parser.error(f'--min-score {options.min_score:g}: must lie between 0 and 1')
    if options.prompts not in ('', jobs.TOPIC, jobs.FIRST_TRUTH) and not Path(options.prompts).is_file():
        parser.error(f'--prompts {options.prompts}: must be topic, first-truth, or a YAML file; there is no such file')
    return options


def parameters_of(options: argparse.Namespace) -> Parameters:
    """Print what is given without effect. ParameterError."""
    chosen, problems = read_parameters(options.parameters, options.node) if options.parameters else (Parameters(), [])
    given = {name: getattr(options, name) for name in ('model', 'checkpoint', 'device', 'dtype', 'image_size')
             if getattr(options, name) is not None}
    if 'checkpoint' in given and 'model' not in given:
        given['model'] = ''  # recognised
    for problem in problems:
        print(f'sam2_evaluate: parameters {options.parameters}: {problem}', file=sys.stderr)
    return with_values(chosen, given)


def jobs_of(options: argparse.Namespace, parameters: Parameters) -> list[Job]:
    """RecordingError for a data set that cannot be read."""
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
    """With a number where a name comes again."""
    seen, result = Counter(), []
    for name in names:
        seen[name] += 1
        result.append(name if seen[name] == 1 else f'{name}_{seen[name]}')
    return result


@contextmanager
def progress_bar(console: Console, name: str) -> Iterator[jobs.Progress]:
    """A bar that is started anew for each thing that is done."""
    columns = (TextColumn('{task.fields[name]}: {task.description}', markup=False), BarColumn(), MofNCompleteColumn(),
               TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        tasks = {}

        def show(what: str, done: int, total: int) -> None:
            if what not in tasks:
                for task in tasks.values():
                    bar.update(task, visible=False)
                tasks[what] = bar.add_task(what, name=name)
            bar.update(tasks[what], completed=done, total=total)
        yield show


def summary(metrics: dict) -> Table:
    """The figures of one recording for people."""
    table = Table(box=None, pad_edge=False)
    for column in ('object', 'J', 'F', 'J&F', 'precision', 'recall', 'swaps'):
        table.add_column(column, justify='left' if column == 'object' else 'right')
    for number, item in metrics['objects'].items():
        title = f'{number} {item["label"]}'.rstrip() + ('' if item['prompted'] else ' (not prompted)')
        table.add_row(escape(title), *_numbers(item[name] for name in ('J', 'F', 'J&F')),
                      *_numbers(item['presence'].values()), str(item['identity_swaps']))
    if metrics['mean']:
        table.add_row('mean', *_numbers(metrics['mean'].values()), *_numbers(metrics['presence'].values()),
                      str(metrics['identity_swaps']), style='bold')
    return table


def _numbers(values) -> list[str]:
    return ['-' if value is None else f'{value:.3f}' for value in values]


def report(console: Console, metrics: dict) -> None:
    """What there is to say about one recording."""
    console.print(f'[bold]{escape(metrics["recording"])}[/]: {metrics["processed"]} of {metrics["images"]} images '
                  f'processed, {metrics["dropped"]} dropped, {metrics["annotated"]} with truth')
    if metrics['objects']:
        console.print(summary(metrics))
    elif not metrics['annotated']:
        console.print('no ground truth: nothing to compare with')
    if 'as_seen' in metrics and metrics['as_seen']['mean']:
        console.print(f'J&F of what a robot had when each image came: {metrics["as_seen"]["mean"]["J&F"]:.3f}')
    if 'against_lock_step' in metrics:
        against = metrics['against_lock_step']
        agreed, = _numbers([against['J']])
        console.print(f'masks against those of lock-step: J {agreed} in {against["images"]} images')
    if TOTAL in metrics['latency']:
        total = metrics['latency'][TOTAL]
        console.print(f'time per image: p50 {1e3 * total["p50"]:.0f} ms, p95 {1e3 * total["p95"]:.0f} ms')
    for kind, made in metrics.get('exported', {}).items():
        console.print(f'exported to {kind}: {made["images"]} images with {made["masks"]} masks; left out: '
                      f'{made["unsure"]} with unsure masks, {made["empty"]} with nothing in sight'
                      + ''.join(f', object {object_id} for low scores' for object_id in made['objects_left_out']))
    problems = [f'image {index} left out: {reason}' for index, reason in metrics['unusable'].items()]
    problems += metrics['problems'] + [f'prompt {item["action"]} of object {item["id"]} refused: {item["reason"]}'
                                       for item in metrics['prompts']['refused']]
    for problem in problems[:10]:
        console.print(f'[yellow]{escape(problem)}[/]')
    if len(problems) > 10:
        console.print(f'[yellow]and {len(problems) - 10} more problems, all in metrics.json[/]')


def main(arguments: Sequence[str] | None = None) -> int:
    """Evaluate and print. Returns the exit code."""
    options = parse(arguments)
    console = Console(highlight=False, soft_wrap=True)
    try:
        parameters = parameters_of(options)
        todo = jobs_of(options, parameters)
        model = load(parameters) if options.ray is None else None  # otherwise each worker loads it
    except (ParameterError, RecordingError, *LOAD_ERRORS) as error:
        print(f'sam2_evaluate: {error}', file=sys.stderr)
        return NOTHING

    def work(job: Job) -> dict:
        with progress_bar(console, job.name) as progress:
            return do(job, model, progress)
    several = len(todo) > 1
    outcomes = []
    try:
        for outcome in (evaluate_many(todo, work, options.redo or not several) if options.ray is None else
                        evaluate_with_ray(todo, options.ray or None, options.redo)):
            outcomes.append(outcome)
            _show(console, outcome, f'{len(outcomes)} of {len(todo)}: ' if several else '')
    except (ImportError, ConnectionError) as error:
        print(f'sam2_evaluate: --ray: {error}; pip install ray, or leave --ray out; an address must be that of a '
              'cluster that is running', file=sys.stderr)
        return NOTHING
    if several:
        _show_summary(console, summarise(outcomes, options.output), options.output)
    failed = sum(outcome.metrics is None for outcome in outcomes)
    return NOTHING if failed == len(todo) else SOME_FAILED if failed else FINE


def _show(console: Console, outcome: Outcome, place: str) -> None:
    if outcome.metrics is None:
        print(f'sam2_evaluate: {outcome.job.name}: {outcome.problem}', file=sys.stderr)
        return
    if outcome.done_before:
        console.print(f'{place}{escape(outcome.job.name)} was evaluated before; --redo evaluates it again')
        return
    console.print(place, end='')
    report(console, outcome.metrics)
    console.print(f'{escape(str(outcome.job.output / jobs.METRICS))}\n')


def _show_summary(console: Console, found: dict, folder: Path) -> None:
    """All recordings in one table."""
    table = Table(box=None, pad_edge=False)
    for column in ('recording', 'J', 'F', 'J&F', 'images', 'dropped', 'swaps'):
        table.add_column(column, justify='left' if column == 'recording' else 'right')
    for name, item in found['recordings'].items():
        table.add_row(escape(name), *_numbers((item['mean'] or dict.fromkeys(('J', 'F', 'J&F'))).values()),
                      str(item['images']), str(item['dropped']), str(item['identity_swaps']))
    if found['mean']:
        table.add_row('mean over objects', *_numbers(found['mean'].values()), style='bold')
    console.print(table)
    for name in found['failed']:
        console.print(f'[red]{escape(name)} failed[/]')
    console.print(escape(str(folder / PAGE)))
