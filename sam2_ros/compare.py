"""Compare two metrics.json of sam2_evaluate, A and B, for the same recording.

    sam2_compare before/metrics.json after/metrics.json
    sam2_compare baseline.json new/metrics.json --fail-below -0.01    # a gate for CI

Exit code: 0 if no gate fails, 1 if a gate fails, 2 if a file cannot be used or the files cannot be compared.
docs/reference/evaluation.md explains the confidence interval.
"""
from __future__ import annotations

if __name__ == '__main__':  # before the imports below, which take seconds
    from sam2_ros.runtime.executables import main_of

    main_of('sam2_compare')

import argparse
import json
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from sam2_core import __version__
from sam2_ros.evaluation.metrics import RANKS, MetricsError
from sam2_ros.evaluation.results import TOTAL
from sam2_ros.evaluation.scoring.comparison import (
    CONFIDENCE,
    DRAWS,
    Comparison,
    Difference,
    ScoredRun,
    compare,
    load,
    mismatches,
)

FINE, WORSE, UNUSABLE = 0, 1, 2


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the options of the command line; a wrong one ends the process with code 2."""
    parser = argparse.ArgumentParser('sam2_compare', description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--version', action='version', version=f'%(prog)s {__version__}')
    parser.add_argument('before', type=Path, metavar='A/metrics.json')
    parser.add_argument('after', type=Path, metavar='B/metrics.json')
    gate = parser.add_argument_group('gates', 'The exit code is 1 if any gate fails. Changes are B minus A.')
    gate.add_argument('--fail-below', type=float, metavar='CHANGE',
                      help='fail if the mean J&F changes by less than this, e.g. -0.01')
    gate.add_argument('--fail-object-below', type=float, metavar='CHANGE',
                      help='fail if the J&F of any object changes by less than this, e.g. -0.05')
    gate.add_argument('--when-sure', action='store_true',
                      help='let both gates fail only if the whole confidence interval is below the limit')
    gate.add_argument('--fail-slower', type=float, metavar='RATIO',
                      help='fail if the p95 of the time per image grows by more than this factor, e.g. 1.2')
    how = parser.add_argument_group('comparison')
    how.add_argument('--force', action='store_true',
                     help='compare even if recording, mode or protocol differ')
    how.add_argument('--block', type=int, default=0, metavar='IMAGES',
                     help="length of the bootstrap's blocks of neighbouring images (default: 0, the square root of "
                          'the number of images)')
    how.add_argument('--draws', type=int, default=DRAWS, help=f'number of bootstrap draws (default: {DRAWS})')
    how.add_argument('--seed', type=int, default=0, help='seed of the bootstrap (default: 0)')
    how.add_argument('--json', action='store_true', help='print JSON instead of a table')
    options = parser.parse_args(arguments)
    for name, least in (('block', 0), ('draws', 1), ('seed', 0)):
        if getattr(options, name) < least:
            parser.error(f'--{name} {getattr(options, name)}: must be at least {least}')
    for name in ('fail_below', 'fail_object_below', 'fail_slower'):
        if (value := getattr(options, name)) is not None and not math.isfinite(value):
            parser.error(f'--{name.replace("_", "-")} {value}: must be a number')
    return options


def failures(options: argparse.Namespace, found: Comparison, a: ScoredRun, b: ScoredRun) -> Iterator[str]:
    """Yield a sentence for each gate that fails.

    Raises:
        MetricsError: A gate needs figures that a file does not have.
    """
    def value(difference: Difference) -> float:
        """Return the value that fails if it is below the limit."""
        if not options.when_sure:
            return difference.change
        return difference.interval[1] if difference.interval else math.inf

    if options.fail_below is not None:
        if value(found.mean['J&F']) < options.fail_below:
            yield f'mean J&F changes by {found.mean["J&F"].change:+.4f}, less than {options.fail_below:+g}'
        seen = as_seen(a, b)
        if seen and not options.when_sure and seen.change < options.fail_below:
            yield f'mean J&F as seen changes by {seen.change:+.4f}, less than {options.fail_below:+g}'
    if options.fail_object_below is not None:
        for number, figures in found.objects.items():
            if value(figures['J&F']) < options.fail_object_below:
                yield (f'J&F of object {_title(found, number)} changes by {figures["J&F"].change:+.4f}, less than '
                       f'{options.fail_object_below:+g}')
    if options.fail_slower is not None:
        before, after = (_p95(run) for run in (a, b))
        if after > before * options.fail_slower:
            yield (f'p95 of the time per image grows from {before * 1e3:.1f} to {after * 1e3:.1f} ms, by more than a '
                   f'factor of {options.fail_slower:g}')


def _p95(run: ScoredRun) -> float:
    seconds = _total(run, 'p95')
    if not seconds:
        raise MetricsError(f'{run.path}: no p95 of the time per image; evaluate again, or omit --fail-slower')
    return seconds


def as_seen(a: ScoredRun, b: ScoredRun) -> Difference | None:
    """Return the change of the mean J&F as seen, which includes dropped images; None if a run does not have it."""
    before, after = (run.metrics.as_seen.mean if run.metrics.as_seen else None for run in (a, b))
    return Difference(before.j_and_f, after.j_and_f) if before and after else None


def changed_settings(a: ScoredRun, b: ScoredRun) -> list[str]:
    """Return the parameters and versions that differ, in words."""
    found = []
    for ours, theirs in ((a.metrics.parameters, b.metrics.parameters), (a.metrics.versions, b.metrics.versions)):
        found += [f'{name}: {ours.get(name)} -> {theirs.get(name)}' for name in sorted({*ours, *theirs})
                  if ours.get(name) != theirs.get(name)]
    return found


def table(found: Comparison, a: ScoredRun, b: ScoredRun) -> Table:
    """Return the table of the mean, the objects, the time per image and the dropped images."""
    result = Table('', 'figure', 'A', 'B', 'B - A', f'{CONFIDENCE:.0%} interval',
                   caption=f'{found.counted} pairs of object and image that count in both files')
    for column in result.columns[2:]:
        column.justify = 'right'
    for title, figures in (('mean', found.mean), *((_title(found, number), figures)
                                                   for number, figures in found.objects.items())):
        for name in ('J&F', 'J', 'F') if title == 'mean' else ('J&F',):
            result.add_row(*_row(escape(title) if name == 'J&F' else '', name, figures[name]),
                           end_section=title == 'mean' and name == 'F')
    if seen := as_seen(a, b):
        result.add_section()
        result.add_row(*_row('as seen', 'J&F', seen))
    result.add_section()
    for rank in RANKS:
        before, after = (_total(run, rank) for run in (a, b))
        if before and after:
            result.add_row('time per image' if rank == 'p50' else '', rank, f'{before * 1e3:.1f} ms',
                           f'{after * 1e3:.1f} ms', f'x {after / before:.2f}', '')
    dropped = a.metrics.dropped, b.metrics.dropped
    result.add_row('dropped images', '', *map(str, dropped), f'{dropped[1] - dropped[0]:+d}', '')
    return result


def _title(found: Comparison, number: int) -> str:
    return f'{number} {found.labels[number]}'.strip()


def _row(title: str, name: str, difference: Difference) -> tuple[str, ...]:
    interval = difference.interval
    sure = interval is not None and (interval[0] > 0 or interval[1] < 0)
    colour = ('green' if difference.change > 0 else 'red') if sure else 'default'
    return (title, name, f'{difference.before:.4f}', f'{difference.after:.4f}',
            f'[{colour}]{difference.change:+.4f}[/]', f'{interval[0]:+.4f} .. {interval[1]:+.4f}' if interval else '')


def _total(run: ScoredRun, rank: str) -> float | None:
    """Return a percentile of the time per image in seconds, None if the file does not have it."""
    return run.metrics.latency.get(TOTAL, {}).get(rank)


def _json(found: Comparison, settings: list[str], failed: list[str], warnings: list[str]) -> dict[str, Any]:
    def figures(of: dict[str, Difference]) -> dict[str, Any]:
        return {name: {**asdict(item), 'change': item.change} for name, item in of.items()}
    return {'mean': figures(found.mean), 'objects': {str(name): {'label': found.labels[name], **figures(item)}
                                                     for name, item in found.objects.items()},
            'confidence': CONFIDENCE, 'counted': found.counted, 'left_out': found.left_out, 'settings': settings,
            'warnings': warnings, 'failed': failed}


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare two files and print the result; return the exit code."""
    options = parse(arguments)
    try:
        a, b = load(options.before), load(options.after)
        different = mismatches(a, b)
        if different and not options.force:
            raise MetricsError(f'{a.path} and {b.path}: must not be compared; --force compares them anyway\n  '
                               + '\n  '.join(different))
        found = compare(a, b, block=options.block, draws=options.draws, seed=options.seed)
        failed = list(failures(options, found, a, b))
    except MetricsError as error:
        print(f'sam2_compare: {error}', file=sys.stderr)
        return UNUSABLE
    settings = changed_settings(a, b)
    if options.json:
        print(json.dumps(_json(found, settings, failed, different), indent=1))
    else:
        _print(found, a, b, settings, different)
    for text in failed:
        print(f'sam2_compare: worse: {text}', file=sys.stderr)
    return WORSE if failed else FINE


def _print(found: Comparison, a: ScoredRun, b: ScoredRun, settings: list[str], warnings: list[str]) -> None:
    console = Console(highlight=False, soft_wrap=True)
    console.print(f'A  {escape(str(a.path))}\nB  {escape(str(b.path))}')
    console.print(table(found, a, b))
    for title, lines in (('compared in spite of', warnings), ('not compared', found.left_out),
                         ('other differences', settings)):
        if lines:
            console.print(f'[bold]{title}[/]')
            for line in lines:
                console.print(f'  {escape(line)}')
    change, interval = found.mean['J&F'].change, found.mean['J&F'].interval
    if interval is None:
        verdict = 'there are too few images for a confidence interval'
    elif interval[0] > 0 or interval[1] < 0:
        verdict = f'B is {"better" if change > 0 else "worse"}'
    else:
        verdict = 'this may be chance: the interval contains 0'
    console.print(f'J&F changes by {change:+.4f}: {verdict}')
