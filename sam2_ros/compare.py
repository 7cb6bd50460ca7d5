"""Is B better than A? Two files metrics.json of sam2_evaluate side by side, on the same recording.

    sam2_compare before/metrics.json after/metrics.json
    sam2_compare baseline.json new/metrics.json --fail-below -0.01    # a gate for CI

Exit code: 0 fine, 1 worse than a --fail option allows, 2 files that cannot be used or compared.
docs/reference/evaluation.md tells what the interval means.
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
from sam2_ros.evaluation.scoring.comparison import (
    CONFIDENCE,
    DRAWS,
    Comparison,
    Difference,
    Metrics,
    MetricsError,
    compare,
    load,
    mismatches,
)

FINE, WORSE, UNUSABLE = 0, 1, 2


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser('sam2_compare', description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--version', action='version', version=f'%(prog)s {__version__}')
    parser.add_argument('before', type=Path, metavar='A/metrics.json')
    parser.add_argument('after', type=Path, metavar='B/metrics.json')
    gate = parser.add_argument_group('gates', 'B minus A of J&F; any that is missed makes the exit code 1')
    gate.add_argument('--fail-below', type=float, metavar='CHANGE',
                      help='the mean may not change by less than this, for example -0.01')
    gate.add_argument('--fail-object-below', type=float, metavar='CHANGE', help='nor that of any one object')
    gate.add_argument('--when-sure', action='store_true',
                      help='fail only where the whole interval lies below, not just the change itself')
    gate.add_argument('--fail-slower', type=float, metavar='RATIO',
                      help='p95 of the time per image may not grow by more than this factor, for example 1.2')
    how = parser.add_argument_group('how')
    how.add_argument('--force', action='store_true', help='compare runs of other recordings, modes or protocols, too')
    how.add_argument('--block', type=int, default=0, metavar='IMAGES',
                     help='neighbouring images that are drawn together (default: root of their number)')
    how.add_argument('--draws', type=int, default=DRAWS, help=f'of the bootstrap (default: {DRAWS})')
    how.add_argument('--seed', type=int, default=0, help='of the bootstrap (default: 0)')
    how.add_argument('--json', action='store_true', help='for machines')
    options = parser.parse_args(arguments)
    for name, least in (('block', 0), ('draws', 1), ('seed', 0)):
        if getattr(options, name) < least:
            parser.error(f'--{name} {getattr(options, name)}: must be at least {least}')
    for name in ('fail_below', 'fail_object_below', 'fail_slower'):
        if (value := getattr(options, name)) is not None and not math.isfinite(value):
            parser.error(f'--{name.replace("_", "-")} {value}: must be a number')
    return options


def failures(options: argparse.Namespace, found: Comparison, a: Metrics, b: Metrics) -> Iterator[str]:
    """What a gate does not let pass, in words. MetricsError when a gate has nothing to go by."""
    def low(difference: Difference) -> float:
        """What has to be below a limit to fail; nothing is, when it must be sure and there is no interval."""
        if not options.when_sure:
            return difference.change
        return difference.interval[1] if difference.interval else math.inf

    if options.fail_below is not None:
        if low(found.mean['J&F']) < options.fail_below:
            yield f'mean J&F changes by {found.mean["J&F"].change:+.4f}, less than {options.fail_below:+g}'
        seen = as_seen(a, b)
        if seen and not options.when_sure and seen.change < options.fail_below:
            yield f'mean J&F as seen changes by {seen.change:+.4f}, less than {options.fail_below:+g}'
    if options.fail_object_below is not None:
        for name, figures in found.objects.items():
            if low(figures['J&F']) < options.fail_object_below:
                yield (f'J&F of object {f"{name} {found.labels[name]}".strip()} changes by '
                       f'{figures["J&F"].change:+.4f}, less than {options.fail_object_below:+g}')
    if options.fail_slower is not None:
        before, after = (_total(metrics, 'p95') for metrics in (a, b))
        for metrics, value in ((a, before), (b, after)):
            if not value:
                raise MetricsError(f'{metrics.path}: no p95 of the time per image; evaluate again, or leave out '
                                   '--fail-slower')
        if after > before * options.fail_slower:
            yield (f'p95 of the time per image grows from {before * 1e3:.1f} to {after * 1e3:.1f} ms, to more than '
                   f'{options.fail_slower:g} times as much')


def as_seen(a: Metrics, b: Metrics) -> Difference | None:
    """Mean J&F in real time, where images that were dropped count; None when one of the runs was not real-time."""
    means = [(metrics.content.get('as_seen') or {}).get('mean') for metrics in (a, b)]
    return Difference(*(mean['J&F'] for mean in means)) if all(means) else None


def changed_settings(a: Metrics, b: Metrics) -> list[str]:
    """What else differs: parameters and versions, in words."""
    found = []
    for group in ('parameters', 'versions'):
        ours, theirs = (item.content.get(group) or {} for item in (a, b))
        found += [f'{name}: {ours.get(name)} -> {theirs.get(name)}' for name in sorted({*ours, *theirs})
                  if ours.get(name) != theirs.get(name)]
    return found


def table(found: Comparison, a: Metrics, b: Metrics) -> Table:
    """Mean, objects, then speed."""
    result = Table('', 'figure', 'A', 'B', 'B - A', f'{CONFIDENCE:.0%} interval',
                   caption=f'{found.counted} pairs of object and image that both count')
    for column in result.columns[2:]:
        column.justify = 'right'
    for title, figures in (('mean', found.mean), *((f'{name} {found.labels[name]}'.strip(), figures)
                                                   for name, figures in found.objects.items())):
        for name in ('J&F', 'J', 'F') if title == 'mean' else ('J&F',):
            result.add_row(*_row(escape(title) if name == 'J&F' else '', name, figures[name]),
                           end_section=title == 'mean' and name == 'F')
    if seen := as_seen(a, b):
        result.add_section()
        result.add_row(*_row('as seen', 'J&F', seen))
    result.add_section()
    for rank in ('p50', 'p95', 'p99'):
        before, after = (_total(metrics, rank) for metrics in (a, b))
        if before and after:
            result.add_row('time per image' if rank == 'p50' else '', rank, f'{before * 1e3:.1f} ms',
                           f'{after * 1e3:.1f} ms', f'x {after / before:.2f}', '')
    dropped = [metrics.content.get('dropped') for metrics in (a, b)]
    if all(isinstance(value, int) for value in dropped):
        result.add_row('images dropped', '', *map(str, dropped), f'{dropped[1] - dropped[0]:+d}', '')
    return result


def _row(title: str, name: str, difference: Difference) -> tuple[str, ...]:
    interval = difference.interval
    sure = interval and (interval[0] > 0 or interval[1] < 0)
    colour = ('green' if difference.change > 0 else 'red') if sure else 'default'
    return (title, name, f'{difference.before:.4f}', f'{difference.after:.4f}',
            f'[{colour}]{difference.change:+.4f}[/]', f'{interval[0]:+.4f} .. {interval[1]:+.4f}' if interval else '')


def _total(metrics: Metrics, rank: str) -> float | None:
    """Seconds."""
    try:
        return float(metrics.content['latency']['total'][rank])
    except (KeyError, TypeError, ValueError):
        return None


def _json(found: Comparison, settings: list[str], failed: list[str], warnings: list[str]) -> dict[str, Any]:
    def figures(of: dict[str, Difference]) -> dict[str, Any]:
        return {name: {**asdict(item), 'change': item.change} for name, item in of.items()}
    return {'mean': figures(found.mean), 'objects': {str(name): {'label': found.labels[name], **figures(item)}
                                                     for name, item in found.objects.items()},
            'confidence': CONFIDENCE, 'counted': found.counted, 'left_out': found.left_out, 'settings': settings,
            'warnings': warnings, 'failed': failed}


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare and print. Returns the exit code."""
    options = parse(arguments)
    try:
        a, b = load(options.before), load(options.after)
        different = mismatches(a, b)
        if different and not options.force:
            raise MetricsError(f'{a.path} and {b.path} are not of one kind; --force compares them nevertheless\n  '
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


def _print(found: Comparison, a: Metrics, b: Metrics, settings: list[str], warnings: list[str]) -> None:
    console = Console(highlight=False, soft_wrap=True)
    console.print(f'A  {escape(str(a.path))}\nB  {escape(str(b.path))}')
    console.print(table(found, a, b))
    for title, lines in (('compared although different', warnings), ('not compared', found.left_out),
                         ('what else differs', settings)):
        if lines:
            console.print(f'[bold]{title}[/]')
            for line in lines:
                console.print(f'  {escape(line)}')
    change, interval = found.mean['J&F'].change, found.mean['J&F'].interval
    if interval is None:
        verdict = 'too few images to tell whether that is chance'
    elif interval[0] > 0 or interval[1] < 0:
        verdict = f'B is {"better" if change > 0 else "worse"}'
    else:
        verdict = 'that may be chance: the interval holds 0'
    console.print(f'J&F changes by {change:+.4f}: {verdict}')
