"""Measure how well each memory policy tells an object from its identical twins, and what it costs.

    python benchmarks/twins.py                                                   # nano, 60 clips, all policies
    python benchmarks/twins.py --model sam2.1_hiera_tiny --device cuda --output twins.json --pictures runs/twins

The clips are synthetic, 80 frames of 256 x 256 pixels with two or three identical things: a third of the clips shows
them crossing, in a third another thing covers the target, in a third the target leaves the picture and returns. The
target is prompted with its exact box in the first frame. Each image is encoded once, and the trackers of all policies
process it in turns, in an order that rotates.

Every policy is compared with the first: the mean difference of each figure over the clips, with its 95 % interval
(paired bootstrap over the clips). ``--conditions`` tracks each clip once more and counts how often each condition of an
anchor of distractor_aware holds. docs/reference/benchmarks.md explains each figure.
"""
from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from benchmarks.lib.anchor_conditions import Conditions, conditions, conditions_table
from benchmarks.lib.nano import Figures
from benchmarks.lib.parts import facts
from benchmarks.lib.twins import FRAMES, KINDS, SEED, judge, twin_clip
from sam2_core import Prompt, Sam2Model, StreamTracker, load_model
from sam2_core.drawing.overlay import draw_objects
from sam2_core.drawing.video import captioned
from sam2_core.images import encode_images
from sam2_core.masks import mask_box
from sam2_core.memory_policy import MEMORY_POLICIES
from sam2_core.training.clips import Clip

FIGURES = ('J&F', 'J', 'F', 'J_visible', 'on_twin', 'twin_swapped', 'ends_on_twin', 'found_again',
           'hidden_called_present')
FULL = 16  # frames after which memories are full; earlier ones are not timed
DRAWS = 10_000  # of the bootstrap
COLUMNS = 8  # of a strip
TILE = 224  # pixels


class Track(NamedTuple):
    """One clip tracked with one policy."""

    masks: np.ndarray  # bool (T, H, W)
    present: np.ndarray  # bool (T,)
    step_ms: float  # mean time of a step with full memories, without encoding the image
    encode_ms: float  # the same of encoding


class Drawn(NamedTuple):
    """Mask to draw."""

    id: int
    label: str
    score: float
    box: tuple[int, int, int, int] | None
    mask: np.ndarray


def track(model: Sam2Model, clip: Clip, policies: Sequence[str]) -> dict[str, Track]:
    """Track object 0 of a clip with each policy."""
    trackers = {policy: StreamTracker(model, memory_policy=policy) for policy in policies}
    masks: dict[str, list[np.ndarray]] = {policy: [] for policy in policies}
    present: dict[str, list[bool]] = {policy: [] for policy in policies}
    spent = dict.fromkeys(policies, 0.0)
    encoding = 0.0
    for t, image in enumerate(clip.frames):
        start = _now(model)
        encoded = encode_images(model, [image])[0]
        encoding += (_now(model) - start) * (t >= FULL)
        prompts = [] if t else [Prompt(1, box=mask_box(clip.masks[0, 0]))]
        turn = t % len(policies)
        for policy in (*policies[turn:], *policies[:turn]):
            start = _now(model)
            found = trackers[policy].step(encoded, prompts).objects[1]
            spent[policy] += (_now(model) - start) * (t >= FULL)
            masks[policy].append(found.mask & (found.object_score > 0))
            present[policy].append(found.object_score > 0)
    timed = max(1, len(clip.frames) - FULL) / 1e3
    return {policy: Track(np.stack(masks[policy]), np.array(present[policy]), spent[policy] / timed, encoding / timed)
            for policy in policies}


def _now(model: Sam2Model) -> float:
    """Return seconds of processor time on a CPU, which other programs do not lengthen; of the clock on a GPU."""
    if model.device.type == 'cpu':
        return time.process_time()
    torch.cuda.synchronize(model.device)
    return time.perf_counter()


def means(by_clip: Sequence[Figures], name: str) -> np.ndarray:
    """Return the mean of a figure in each clip, float (clips,); NaN where a clip has no value of it."""
    return np.array([np.mean(clip[name]) if clip.get(name) else np.nan for clip in by_clip])


def difference(before: np.ndarray, after: np.ndarray) -> dict[str, float]:
    """Return the mean of after - before (clips,), and its 95 % interval by a paired bootstrap over the clips.

    NaN in a clip means that it has no value; at least one clip has one.
    """
    change = (after - before)[~np.isnan(after - before)]
    draws = np.random.default_rng(0).integers(0, len(change), (DRAWS, len(change)))
    low, high = np.percentile(change[draws].mean(axis=1), (2.5, 97.5))
    return {'change': float(change.mean()), 'low': float(low), 'high': float(high)}


def summary(found: dict[str, list[Figures]], clips: Sequence[int]) -> dict[str, dict]:
    """Return for all clips and for each kind, by policy, the mean of each figure and its difference from the first."""
    rows = {'all': list(range(len(clips)))}
    rows |= {kind: [row for row, number in enumerate(clips) if KINDS[number % len(KINDS)] == kind] for kind in KINDS}
    result: dict[str, dict] = {}
    for kind, chosen in rows.items():
        if not chosen:
            continue
        parts = {policy: [by_clip[row] for row in chosen] for policy, by_clip in found.items()}
        first = next(iter(parts.values()))
        result[kind] = {'clips': len(chosen), 'policies': {policy: {
            name: {'mean': float(np.nanmean(values)), 'clips': int((~np.isnan(values)).sum()),
                   'difference': difference(means(first, name), values)}
            for name in FIGURES if not np.isnan(values := means(part, name)).all()} for policy, part in parts.items()}}
    return result


def times(found: dict[str, list[Track]]) -> dict[str, dict[str, float]]:
    """Return by policy the medians over clips: a step, a frame with encoding, and their ratios to the first policy."""
    steps = {policy: np.array([each.step_ms for each in tracks]) for policy, tracks in found.items()}
    encoding = np.array([each.encode_ms for each in next(iter(found.values()))])
    first = next(iter(steps.values()))
    return {policy: {'step_ms': float(np.median(step)), 'frame_ms': float(np.median(step + encoding)),
                     'step_ratio': float(np.median(step / first)),
                     'frame_ratio': float(np.median((step + encoding) / (first + encoding)))}
            for policy, step in steps.items()}


def strip(clip: Clip, tracks: dict[str, Track]) -> np.ndarray:
    """Return a picture, uint8 RGB: a row of truth, then one of each policy, in COLUMNS frames of a clip.

    The target has id 1, its twins have others.
    """
    rows = []
    for name, masks in {'truth': clip.masks.swapaxes(0, 1),
                        **{policy: one.masks[None] for policy, one in tracks.items()}}.items():
        tiles = []
        for t in np.linspace(0, len(clip.frames) - 1, COLUMNS).round().astype(int):
            items = [Drawn(k + 1, '', 1.0, mask_box(mask), mask) for k, mask in enumerate(masks[:, t])]
            picture = draw_objects(clip.frames[t], items, 0.5, lambda item: 'absent')
            picture = cv2.resize(picture, (TILE, TILE), interpolation=cv2.INTER_AREA)
            tiles.append(captioned(picture, name, f'frame {t}'))
        rows.append(np.concatenate(tiles, axis=1))
    return np.concatenate(rows)


def draw(model: Sam2Model, found: dict[str, list[Figures]], clips: Sequence[int], seed: int,
         folder: Path) -> list[Path]:
    """Draw of each kind the clip whose J&F differs most between policies; return the pictures."""
    folder.mkdir(parents=True, exist_ok=True)
    spread = np.ptp([means(by_clip, 'J&F') for by_clip in found.values()], axis=0)
    paths = []
    for kind in range(min(len(KINDS), len(clips))):
        rows = [row for row, number in enumerate(clips) if number % len(KINDS) == kind]
        if rows:
            number = clips[max(rows, key=lambda row: spread[row])]
            clip = twin_clip(number, seed)
            paths.append(folder / f'{KINDS[kind]}_{number}.jpg')
            picture = strip(clip, track(model, clip, tuple(found)))
            cv2.imwrite(str(paths[-1]), cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 85])
    return paths


def show(summaries: dict[str, dict], timing: dict[str, dict[str, float]], console: Console) -> None:
    """Print a table of the figures and one of the times."""
    policies = list(timing)
    table = Table('clips', 'figure', *(cell for policy in policies for cell in (
        (policy,) if policy == policies[0] else (policy, 'difference', '95 % interval'))))
    for kind, content in summaries.items():
        for name in FIGURES if kind == 'all' else ('J&F', 'on_twin', 'twin_swapped', 'found_again'):
            cells = []
            for policy in policies:
                figure = content['policies'][policy].get(name)
                cells.append(f'{figure["mean"]:.3f}' if figure else '')
                if policy != policies[0]:
                    change, low, high = figure['difference'].values() if figure else (np.nan,) * 3
                    cells += ['', ''] if np.isnan(change) else [f'{change:+.3f}', f'{low:+.3f} to {high:+.3f}']
            table.add_row(f'{kind} ({content["clips"]})' if name == 'J&F' else '', name, *cells,
                          end_section=name in ('hidden_called_present', 'found_again') and kind != 'all')
    console.print(table)
    table = Table('time', 'step, ms', 'ratio', 'frame, ms', 'ratio')
    for policy, row in timing.items():
        table.add_row(policy, f'{row["step_ms"]:.1f}', f'{row["step_ratio"]:.3f}', f'{row["frame_ms"]:.1f}',
                      f'{row["frame_ratio"]:.3f}')
    console.print(table)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--clips', type=int, default=60, help='number of clips; default: 60')
    parser.add_argument('--seed', type=int, default=SEED, help=f'seed of the clips; default: {SEED}')
    parser.add_argument('--policies', nargs='+', default=list(MEMORY_POLICIES), choices=list(MEMORY_POLICIES),
                        metavar='POLICY', help='memory policies; the others are compared with the first; '
                                               f'default: {" ".join(MEMORY_POLICIES)}')
    parser.add_argument('--model', default='nano', help='variant; default: nano')
    parser.add_argument('--checkpoint', help='weights of the model from this file')
    parser.add_argument('--device', default='cpu', help='device of the model; default: cpu')
    parser.add_argument('--conditions', action='store_true',
                        help='track once more and count how often each condition of an anchor holds')
    parser.add_argument('--output', type=Path, metavar='FILE', help='write the figures of all clips to this JSON file')
    parser.add_argument('--pictures', type=Path, metavar='FOLDER',
                        help='draw of each kind the clip in which the policies differ most')
    options = parser.parse_args(arguments)
    if options.clips < 1:
        parser.error(f'--clips {options.clips}: must be at least 1')
    if len(set(options.policies)) < len(options.policies):
        parser.error(f'--policies {" ".join(options.policies)}: one of them is there twice')
    return options


@torch.inference_mode()
def main(arguments: Sequence[str] | None = None) -> None:
    """Track, judge, print, draw."""
    options = parse(arguments)
    cv2.setNumThreads(1)
    console = Console(width=None if Console().is_terminal else 160)
    model, policies = load_model(options.model, options.checkpoint, device=options.device), tuple(options.policies)
    clips = range(options.clips)
    found: dict[str, list[Figures]] = {policy: [] for policy in policies}
    tracks: dict[str, list[Track]] = {policy: [] for policy in policies}
    watched: list[list[Conditions]] = []
    track(model, Clip(*(part[:FULL + 1] for part in twin_clip(0, options.seed))), policies)  # warm-up
    columns = (TextColumn('clips'), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
               TextColumn('{task.description}'))
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task('', total=len(clips))
        for number in clips:
            clip = twin_clip(number, options.seed)
            for policy, one in track(model, clip, policies).items():
                found[policy].append(judge(clip, one.masks, one.present))
                tracks[policy].append(one._replace(masks=np.empty(0), present=np.empty(0)))
            if options.conditions:
                watched.append(conditions(model, clip))
            so_far = [f'{np.mean(means(by_clip, "J&F")):.3f}' for by_clip in found.values()]
            progress.update(task, advance=1, description=f'J&F {" ".join(so_far)}')
    summaries, timing = summary(found, clips), times(tracks)
    show(summaries, timing, console)
    if options.conditions:
        console.print(conditions_table(watched))
    if options.output:
        options.output.write_text(json.dumps({
            'model': options.model, 'checkpoint': options.checkpoint, 'seed': options.seed, 'clips': len(clips),
            'frames': FRAMES, 'facts': facts(model.device), 'summary': summaries, 'times': timing, 'values': found,
            'conditions': [[one._asdict() for one in every] for every in watched]}))
    if options.pictures:
        for path in draw(model, found, clips, options.seed, options.pictures):
            print(path)


if __name__ == '__main__':
    main()
