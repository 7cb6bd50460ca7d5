"""Measure how well nano segments and tracks on held-out synthetic clips.

    python benchmarks/nano_quality.py                                            # the packaged weights, 100 clips
    python benchmarks/nano_quality.py --weights packaged new.safetensors --jobs 2 --json nano.json    # before and after
    python benchmarks/nano_quality.py --memory-policy published distractor_aware                      # the same weights

The clips run through the real ImageSegmenter and StreamTracker. Each has 60 frames of 256 x 256 pixels and up to three
objects, prompted with their exact box in the first frame. In frame 30 a copy of the tracker corrects each visible
object by a click, and starts it again from a box under another id.

Of several weights or memory policies, the last is compared with the first: the change of each figure with its 95 %
interval (paired bootstrap over the clips), and whether weights meet the rule for those that replace packaged ones. Two
runs give equal figures, whatever the number of jobs. ``--from`` and ``--clips`` cut the set into parts; ``--merge``
joins their results. docs/nano.md explains each figure and the rule.
"""
from __future__ import annotations

import argparse
import functools
import json
import multiprocessing
import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from benchmarks.lib.nano import PACKAGED, Figures, clip_figures, held_out_clip, nano, short
from sam2_core.memory_policy import MEMORY_POLICIES, PUBLISHED

LOWER_IS_BETTER = {'drift', 'on_another_object', 'on_twin', 'twin_swapped'}
NO_FIGURES = {'J_copy_first', 'objects', 'object_frames', 'hidden_frames', 'returns', 'twin_objects'}  # of the clips
HAS_TO_IMPROVE = ('J&F', 'box')  # the rule for later weights
DRAWS = 2000  # of the bootstrap


class Change(NamedTuple):
    """Difference of one figure between two weights."""

    change: float
    low: float  # 95 % interval of the change, over the draws in which the figure has a value
    high: float
    verdict: str  # better, worse, or same

    @property
    def sure(self) -> bool:
        """Tell whether the interval excludes 0, so that chance does not explain the change."""
        return self.low > 0 or self.high < 0


class Side(NamedTuple):
    """Weights and the memory policy that they track with."""

    weights: str
    policy: str

    @property
    def name(self) -> str:
        """Name in tables and files: that of the weights alone with the published policy."""
        return self.weights if self.policy == PUBLISHED.name else f'{self.weights}, {self.policy}'


def measure(number: int, sides: tuple[Side, ...], device: str, corrections: bool) -> list[Figures]:
    """Return the figures of one clip, for each side."""
    clip = held_out_clip(number)
    return [clip_figures(nano(side.weights, device), clip, corrections, memory_policy=side.policy) for side in sides]


def _start(threads: int) -> None:
    torch.set_num_threads(threads)
    cv2.setNumThreads(1)


def run(sides: tuple[Side, ...], clips: range, corrections: bool, device: str, jobs: int,
        threads: int) -> dict[str, list[Figures]]:
    """Return the figures of every clip for each side, in the order of the clips."""
    one = functools.partial(measure, sides=sides, device=device, corrections=corrections)
    columns = (TextColumn('clips'), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
               TextColumn('{task.description}'))
    found: dict[str, list[Figures]] = {side.name: [] for side in sides}
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task('', total=len(clips))

        def add(results: Iterable[list[Figures]]) -> None:
            for result in results:
                for by_clip, figures in zip(found.values(), result, strict=True):
                    by_clip.append({name: [float(value) for value in values] for name, values in figures.items()})
                so_far = [f'{summary(by_clip)["J&F"]:.3f}' for by_clip in found.values() if any(by_clip)]
                progress.update(task, advance=1, description=f'J&F {" ".join(so_far)}')

        if jobs == 1:
            _start(threads)
            add(map(one, clips))
        else:
            os.environ['OMP_NUM_THREADS'] = '1'  # before a process imports torch
            with multiprocessing.get_context('spawn').Pool(jobs, _start, (1,)) as pool:
                add(pool.imap(one, clips))
    return found


def summary(by_clip: list[Figures]) -> dict[str, float | int]:
    """Return the mean of each figure over all its values, and how many values the rare ones have."""
    figures = {name: [value for clip in by_clip for value in clip.get(name, ())]
               for name in dict.fromkeys(name for clip in by_clip for name in clip)}
    result = {name: round(float(np.mean(values)), 4) for name, values in figures.items() if len(values)}
    result['J&F'] = round((result['J'] + result['F']) / 2, 4)
    result['drift'] = round(result['J_first_10'] - result['J_last_10'], 4)
    return result | {'objects': len(figures['box']), 'object_frames': len(figures['J']),
                     'hidden_frames': len(figures.get('hidden_called_absent', ())),
                     'returns': len(figures.get('recovered', ())), 'twin_objects': len(figures.get('twin_swapped', ()))}


def resampled(by_clip: list[Figures], chosen: np.ndarray) -> dict[str, np.ndarray]:
    """Return the mean of each figure over resampled clips.

    chosen: int (draws, clips), the clips of each draw. A draw without a value of a figure gives NaN.
    """
    means = {}
    for name in {name for clip in by_clip for name in clip}:
        sums = np.array([sum(clip.get(name, ())) for clip in by_clip], float)
        counts = np.array([len(clip.get(name, ())) for clip in by_clip], float)
        with np.errstate(invalid='ignore'):
            means[name] = sums[chosen].sum(axis=1) / counts[chosen].sum(axis=1)
    means['J&F'] = (means['J'] + means['F']) / 2
    means['drift'] = means['J_first_10'] - means['J_last_10']
    return means


def comparison(weights: dict[str, list[Figures]]) -> dict[str, Change]:
    """Return for each figure that both the first and the last weights have how the last ones change it."""
    first, last = next(iter(weights.values())), list(weights.values())[-1]
    before, after = summary(first), summary(last)
    chosen = np.random.default_rng(0).integers(0, len(first), (DRAWS, len(first)))
    draws_before, draws_after = resampled(first, chosen), resampled(last, chosen)
    found = {}
    for name in before:
        if name in NO_FIGURES or name not in after:
            continue
        change = round(after[name] - before[name], 4)
        gain = -change if name in LOWER_IS_BETTER else change
        verdict = 'better' if gain > 0 else 'worse' if gain < 0 else 'same'
        changes = draws_after[name] - draws_before[name]
        low, high = np.percentile(changes[np.isfinite(changes)], (2.5, 97.5)).tolist()
        found[name] = Change(change, low, high, verdict)
    return found


def violations(compared: dict[str, Change]) -> list[str]:
    """Return why the last weights must not replace the first ones; empty if they may."""
    found = [f'{name} is not better' for name in HAS_TO_IMPROVE if compared[name].verdict != 'better']
    return found + [f'{name} is worse by more than chance explains' for name, change in compared.items()
                    if change.verdict == 'worse' and change.sure]


def show(summaries: dict[str, dict[str, float]], compared: dict[str, Change]) -> None:
    """Print the table, and whether the last weights meet the rule."""
    table = Table()
    table.add_column('')
    for name in summaries:
        table.add_column(short(name), justify='right')
    if compared:
        for title in ('change', '95 % interval', ''):
            table.add_column(title, justify='right')
    for name in next(iter(summaries.values())):
        row = [f'{values[name]:.4f}' if isinstance(values.get(name), float) else str(values.get(name, ''))
               for values in summaries.values()]
        if name in compared:
            change = compared[name]
            row += [f'{change.change:+.4f}', f'{change.low:+.3f} to {change.high:+.3f}',
                    change.verdict if change.sure or not change.change else f'{change.verdict}, may be chance']
        table.add_row(name, *row)
    Console(width=None if Console().is_terminal else 120).print(table)
    if compared and len({_weights(name) for name in summaries}) > 1:
        broken = violations(compared)
        print(f'rule for later weights: {"not met: " + "; ".join(broken) if broken else "met"}')


def _weights(name: str) -> str:
    """Return the weights of a side, given its name."""
    return next((name.removesuffix(f', {policy}') for policy in MEMORY_POLICIES if name.endswith(f', {policy}')), name)


def merged(parts: list[Path]) -> dict[str, list[Figures]]:
    """Join the results of parts of the set.

    Raises ValueError if the parts are of different weights, or if a clip is in two of them.
    """
    joined: dict[str, list[Figures]] = {}
    seen: set[int] = set()
    for part in parts:
        content = json.loads(part.read_text())
        if joined and list(content['weights']) != list(joined):
            raise ValueError(f'{part}: is of {", ".join(content["weights"])}, the others of {", ".join(joined)}')
        if seen & set(content['clips']):
            raise ValueError(f'{part}: clips {sorted(seen & set(content["clips"]))} are in another part too')
        seen |= set(content['clips'])
        for name, found in content['weights'].items():
            joined.setdefault(name, []).extend(found['values'])
    return joined


def main() -> None:
    """Measure, or join the results of parts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--weights', nargs='+', default=[PACKAGED], metavar='FILE',
                        help=f'safetensors files, or "{PACKAGED}" (default); the last is compared with the first')
    parser.add_argument('--memory-policy', nargs='+', default=[PUBLISHED.name], choices=list(MEMORY_POLICIES),
                        metavar='POLICY', help=f'policies to track with: {", ".join(MEMORY_POLICIES)}; '
                                               f'default: {PUBLISHED.name}')
    parser.add_argument('--clips', type=int, default=100, help='number of clips (default 100)')
    parser.add_argument('--from', dest='first', type=int, default=0, help='number of the first clip (default 0)')
    parser.add_argument('--device', default='cpu', help='device of the model (default cpu)')
    parser.add_argument('--jobs', type=int, default=1, help='processes of one thread each (default 1)')
    parser.add_argument('--threads', type=int, default=torch.get_num_threads(), help='threads of a single process')
    parser.add_argument('--corrections', action=argparse.BooleanOptionalAction, default=True,
                        help='also measure a click and a box in frame 30 (takes half as long again)')
    parser.add_argument('--json', type=Path, help='write the result to this file')
    parser.add_argument('--merge', type=Path, nargs='+', help='join these results of parts')
    options = parser.parse_args()
    started, clips = time.monotonic(), range(options.first, options.first + options.clips)
    for file in options.weights:
        if file != PACKAGED and not Path(file).exists():
            parser.error(f'weights {file}: no such file')
    for name, given in ('weights', options.weights), ('memory-policy', options.memory_policy):
        if len(set(given)) < len(given):
            parser.error(f'{name} {" ".join(given)}: one of them is there twice')
    if options.merge:
        try:
            found = merged(options.merge)
        except ValueError as error:
            parser.error(str(error))
        clips = [number for part in options.merge for number in json.loads(part.read_text())['clips']]
    else:
        sides = tuple(Side(weights, policy) for weights in options.weights for policy in options.memory_policy)
        found = run(sides, clips, options.corrections, options.device, options.jobs, options.threads)
    summaries = {name: summary(by_clip) for name, by_clip in found.items()}
    compared = comparison(found) if len(found) > 1 else {}
    show(summaries, compared)
    print(f'{len(clips)} clips, {time.monotonic() - started:.0f} s')
    if options.json:
        options.json.write_text(json.dumps({
            'clips': list(clips), 'comparison': {name: change._asdict() for name, change in compared.items()},
            'rule_violations': violations(compared) if len({_weights(name) for name in found}) > 1 else [],
            'weights': {name: {'summary': summaries[name], 'values': by_clip} for name, by_clip in found.items()}}))


if __name__ == '__main__':
    main()
