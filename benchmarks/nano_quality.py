"""How well nano segments and tracks: held-out synthetic clips through the real ImageSegmenter and StreamTracker.

    python benchmarks/nano_quality.py                                            # the packaged weights, 100 clips
    python benchmarks/nano_quality.py --weights packaged new.safetensors --jobs 2 --json nano.json    # before and after

Clip ``i`` has the seed (SEED, i) and textures of their own; no training seed reaches SEED. Every clip has 60 frames of
256 x 256 pixels and up to three objects, each prompted with its exact box in the first frame. In frame 30 a copy of the
tracker goes its own way: there each visible object is corrected by a click, and begun anew from a box under another id.
Two runs give equal figures, whatever the number of jobs. ``--from`` and ``--clips`` cut the set into parts; ``--merge``
joins their results. docs/nano.md says what each figure means.
"""
from __future__ import annotations

import argparse
import functools
import json
import multiprocessing
import os
import time
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from sam2_core import ImageSegmenter, Prompt, StreamTracker
from sam2_core.checkpoint import find_weights
from sam2_core.config import VARIANTS
from sam2_core.images import encode_images
from sam2_core.masks import mask_box
from sam2_core.metrics import boundary_f, iou
from sam2_core.model import Sam2Model
from sam2_core.training.clips import Clip
from sam2_core.training.run_state import load_weights
from sam2_core.training.synthetic.scenes import make_clip
from sam2_core.training.synthetic.sprites import ClutterBank
from sam2_core.training.synthetic.textures import TextureBank

SEED = 9000
TEXTURES = 120
FRAMES = 60
OBJECTS = 3
HIDDEN_LEAST = 2  # frames; shorter absences are no test of recovery
RECOVERY_FRAMES = 7
CORRECTION_FRAME = 30
SWAP_FRAMES = 5  # in a row on an identical twin: its identity is lost
LATE = 100  # added to the id of an object that is begun anew
PACKAGED = 'packaged'
LOWER_IS_BETTER = {'drift', 'on_another_object', 'on_twin', 'twin_swapped'}
NO_FIGURES = {'J_copy_first', 'objects', 'object_frames', 'hidden_frames', 'returns', 'twin_objects'}  # of the clips

Figures = dict[str, list[float]]


def inner_point(region: np.ndarray) -> tuple[int, int]:
    """The pixel (x, y) farthest from the edge of a bool region."""
    depth = cv2.distanceTransform(np.pad(region, 1).astype(np.uint8), cv2.DIST_L2, 5)[1:-1, 1:-1]
    y, x = np.unravel_index(int(depth.argmax()), depth.shape)
    return int(x), int(y)


def error_point(predicted: np.ndarray, true: np.ndarray) -> tuple[tuple[int, int], int]:
    """Where a user would click: well inside the largest error; and the label, 1 where the object was missed."""
    wrong = predicted ^ true
    if not wrong.any():
        return inner_point(true), 1
    count, labels, stats, _ = cv2.connectedComponentsWithStats(wrong.astype(np.uint8))
    largest = 1 + int(stats[1:, cv2.CC_STAT_AREA].argmax())
    x, y = inner_point(labels == largest)
    return (x, y), int(true[y, x])


def first_frame(segmenter: ImageSegmenter, clip: Clip, figures: Figures) -> None:
    """IoU in one image from a box, one click, and clicks that correct."""
    image = segmenter.encode(clip.frames[0])
    for true in clip.masks[0, :OBJECTS]:
        figures['box'].append(iou(segmenter.segment(image, Prompt(box=mask_box(true))).masks[0], true))
        points, labels = [inner_point(true)], [1]
        found = segmenter.segment(image, Prompt(points=points, labels=labels), multimask=True)
        best = int(found.scores.argmax())
        figures['one_click'].append(iou(found.masks[best], true))
        figures['one_click_oracle'].append(max(iou(mask, true) for mask in found.masks))
        mask, logits = found.masks[best], found.logits[best]
        for _ in range(2):
            point, label = error_point(mask, true)
            points, labels = [*points, point], [*labels, label]
            found = segmenter.segment(image, Prompt(points=points, labels=labels), previous_logits=logits)
            mask, logits = found.masks[0], found.logits[0]
        figures['three_clicks'].append(iou(mask, true))


class Tracked(NamedTuple):
    """One clip from boxes in the first frame, and what came of frame CORRECTION_FRAME where it was measured."""

    masks: np.ndarray  # bool (T, K, H, W)
    present: np.ndarray  # bool (T, K)
    corrected: np.ndarray | None = None  # bool (T - CORRECTION_FRAME, K, H, W); what was not visible was not corrected
    late: np.ndarray | None = None  # the same, from a box in that frame; empty where the object was not visible


def track(model: Sam2Model, clip: Clip, middle: bool, recent_frames: int | None = None) -> Tracked:
    """Track a clip. ``middle``: also correct and prompt in frame ``CORRECTION_FRAME``, in a copy of the tracker.

    The click is where the object was most wrong in the frame before: a live user sees no later one.
    """
    tracker, branch = StreamTracker(model), None
    tracker.recent_frames = recent_frames
    count = min(OBJECTS, clip.masks.shape[1])
    prompts = [Prompt(k + 1, box=mask_box(clip.masks[0, k])) for k in range(count)]
    masks, present, corrected, late = [], [], [], []
    for t, image in enumerate(clip.frames):
        encoded = encode_images(model, [image])[0]
        changes = []
        if middle and t == CORRECTION_FRAME:
            branch = tracker.fork(tracker.object_ids)
            for k in np.flatnonzero(clip.visible[t, :count]):
                point, label = error_point(masks[-1][k], clip.masks[t, k])
                changes.append(Prompt(int(k) + 1, points=[point], labels=[label]))
                changes.append(Prompt(int(k) + 1 + LATE, box=mask_box(clip.masks[t, k])))
        found = tracker.step(encoded, prompts).objects
        prompts = []
        masks.append(np.stack([found[k + 1].mask for k in range(count)]))
        present.append([found[k + 1].object_score > 0 for k in range(count)])
        if branch is not None:
            found = branch.step(encoded, changes).objects
            nothing = np.zeros(clip.masks.shape[2:], bool)
            corrected.append(np.stack([found[k + 1].mask for k in range(count)]))
            late.append(np.stack([found[k + 1 + LATE].mask if k + 1 + LATE in found else nothing
                                  for k in range(count)]))
    return Tracked(np.stack(masks), np.array(present), *((np.stack(corrected), np.stack(late)) if middle else ()))


def judge_middle(clip: Clip, tracked: Tracked, figures: Figures) -> None:
    """Add what a click and a box in mid-clip did, over the frames after it in which the object is visible."""
    after, visible = slice(CORRECTION_FRAME + 1, None), clip.visible
    for k in range(tracked.masks.shape[1]):
        begun = visible[CORRECTION_FRAME, k]
        if begun:
            figures['late_first_frame'].append(iou(tracked.late[0, k], clip.masks[CORRECTION_FRAME, k]))
        for name, masks, counts in (('J_after_uncorrected', tracked.masks[after], True),
                                    ('J_after_correction', tracked.corrected[1:], True),
                                    ('J_late', tracked.late[1:], begun)):
            if counts:
                figures[name].extend(iou(a, b) for a, b, seen in zip(
                    masks[:, k], clip.masks[after, k], visible[after, k], strict=True) if seen)


def judge(clip: Clip, masks: np.ndarray, present: np.ndarray, figures: Figures) -> None:
    """Add what one tracked clip says."""
    for k in range(masks.shape[1]):
        true, visible = clip.masks[:, k], clip.visible[:, k]
        j = np.array([iou(a, b) for a, b in zip(masks[:, k], true, strict=True)])
        figures['J'].extend(j[1:])
        figures['F'].extend(boundary_f(a, b) for a, b in zip(masks[1:, k], true[1:], strict=True))
        figures['J_copy_first'].extend(iou(true[0], b) for b in true[1:])
        figures['J_visible'].extend(j[1:][visible[1:]])
        figures['visible_called_present'].extend(present[1:, k][visible[1:]])
        figures['hidden_called_absent'].extend(~present[1:, k][~visible[1:]])
        figures['J_first_10'].extend(j[1:11][visible[1:11]])
        figures['J_last_10'].extend(j[-10:][visible[-10:]])
        figures['recovered'].extend(_recoveries(j, visible))
        for t in np.flatnonzero(visible[1:]) + 1:
            rivals = [iou(masks[t, k], clip.masks[t, other]) for other in range(clip.masks.shape[1])
                      if other != k and clip.visible[t, other]]
            figures['on_another_object'].append(max(rivals, default=0.0) > max(0.3, j[t]))
        _judge_twins(clip, k, masks[:, k], j, figures)


def _judge_twins(clip: Clip, k: int, masks: np.ndarray, j: np.ndarray, figures: Figures) -> None:
    """Does the mask lie on an identical twin of the object, and does it stay there?"""
    twins = [other for other in range(clip.masks.shape[1]) if other != k and clip.kinds[other] == clip.kinds[k]]
    if not twins:
        return
    longest = row = 0
    for t in np.flatnonzero(clip.visible[1:, k]) + 1:
        seen = [iou(masks[t], clip.masks[t, other]) for other in twins if clip.visible[t, other]]
        swapped = max(seen, default=0.0) > max(0.3, j[t])
        if seen:
            figures['on_twin'].append(swapped)
        row = row + 1 if swapped else 0
        longest = max(longest, row)
    figures['twin_swapped'].append(longest >= SWAP_FRAMES)


def _recoveries(j: np.ndarray, visible: np.ndarray) -> list[bool]:
    """For each return after a full absence: is the object held again within the next visible frames?"""
    found, hidden = [], 0
    for t in range(1, len(visible)):
        if visible[t] and hidden >= HIDDEN_LEAST:
            after = np.flatnonzero(visible[t:t + RECOVERY_FRAMES]) + t
            if len(after) >= 3:
                found.append(bool(j[after].mean() > 0.5))
        hidden = 0 if visible[t] else hidden + 1
    return found


def clip_figures(model: Sam2Model, clip: Clip, corrections: bool, recent_frames: int | None = None) -> Figures:
    """What one clip says, as lists to be joined with those of others and averaged."""
    figures: Figures = defaultdict(list)
    if clip.masks.shape[1]:
        with torch.inference_mode():
            first_frame(ImageSegmenter(model), clip, figures)
            tracked = track(model, clip, corrections, recent_frames)
        judge(clip, tracked.masks, tracked.present, figures)
        if corrections:
            judge_middle(clip, tracked, figures)
    return dict(figures)


@functools.cache
def nano(weights: str, device: str = 'cpu') -> Sam2Model:
    """The model of a weights file, or of the package."""
    return load_weights(find_weights('nano') if weights == PACKAGED else Path(weights), VARIANTS['nano']).to(device)


@functools.cache
def clutter() -> ClutterBank:
    """What lies around in the scenes of the clips."""
    return ClutterBank(TextureBank(SEED, TEXTURES), 60)


def measure(number: int, weights: tuple[str, ...], device: str, corrections: bool) -> list[Figures]:
    """The figures of one clip, for each of the weights."""
    clip = make_clip((SEED, number), clutter(), FRAMES)
    return [clip_figures(nano(one, device), clip, corrections) for one in weights]


def _start(threads: int) -> None:
    torch.set_num_threads(threads)
    cv2.setNumThreads(1)


def run(weights: tuple[str, ...], clips: range, corrections: bool, device: str, jobs: int,
        threads: int) -> dict[str, Figures]:
    """All figures of each of the weights, in the order of the clips."""
    one = functools.partial(measure, weights=weights, device=device, corrections=corrections)
    console = Console(stderr=True)
    columns = (TextColumn('clips'), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
               TextColumn('{task.description}'))
    joined: dict[str, Figures] = {name: defaultdict(list) for name in weights}
    with Progress(*columns, console=console) as progress:
        task = progress.add_task('', total=len(clips))

        def add(results) -> None:
            for found in results:
                for figures, more in zip(joined.values(), found, strict=True):
                    for name, values in more.items():
                        figures[name].extend(float(value) for value in values)
                so_far = [f'{(np.mean(f["J"]) + np.mean(f["F"])) / 2:.3f}' for f in joined.values() if f['J']]
                progress.update(task, advance=1, description=f'J&F {" ".join(so_far)}')

        if jobs == 1:
            _start(threads)
            add(map(one, clips))
        else:
            os.environ['OMP_NUM_THREADS'] = '1'  # before a process imports torch
            with multiprocessing.get_context('spawn').Pool(jobs, _start, (1,)) as pool:
                add(pool.imap(one, clips))
    return joined


def summary(figures: Figures) -> dict[str, float | int]:
    """Means, and how many there were of what is rare."""
    result = {name: round(float(np.mean(values)), 4) for name, values in figures.items() if len(values)}
    result['J&F'] = round((result['J'] + result['F']) / 2, 4)
    result['drift'] = round(result['J_first_10'] - result['J_last_10'], 4)
    return result | {'objects': len(figures['box']), 'object_frames': len(figures['J']),
                     'hidden_frames': len(figures.get('hidden_called_absent', ())),
                     'returns': len(figures.get('recovered', ())), 'twin_objects': len(figures.get('twin_swapped', ()))}


def comparison(summaries: dict[str, dict[str, float]]) -> dict[str, dict[str, float | str]]:
    """Of every figure that both the first and the last weights have: the difference, and whether that is better."""
    first, last = next(iter(summaries.values())), list(summaries.values())[-1]
    found = {}
    for name in first:
        if name in NO_FIGURES or name not in last:
            continue
        change = round(last[name] - first[name], 4)
        gain = -change if name in LOWER_IS_BETTER else change
        found[name] = {'change': change, 'verdict': 'better' if gain > 0 else 'worse' if gain < 0 else 'same'}
    return found


def short(weights: str) -> str:
    """What weights are called in a table: the file and its folder."""
    return str(Path(*Path(weights).parts[-2:]))


def show(summaries: dict[str, dict[str, float]], compared: dict[str, dict[str, float | str]]) -> None:
    """Print the table."""
    table = Table()
    table.add_column('')
    for name in summaries:
        table.add_column(short(name), justify='right')
    if compared:
        table.add_column('change', justify='right')
        table.add_column('')
    for name in next(iter(summaries.values())):
        row = [f'{values[name]:.4f}' if isinstance(values.get(name), float) else str(values.get(name, ''))
               for values in summaries.values()]
        if compared:
            change = compared.get(name)
            row += ['', ''] if change is None else [f'{change["change"]:+.4f}', change['verdict']]
        table.add_row(name, *row)
    Console(width=None if Console().is_terminal else 120).print(table)


def merged(parts: list[Path]) -> dict[str, Figures]:
    """The figures of parts of the set, joined. ValueError where they are of other weights, or a clip is there twice."""
    joined: dict[str, Figures] = {}
    seen: set[int] = set()
    for part in parts:
        content = json.loads(part.read_text())
        if joined and list(content['weights']) != list(joined):
            raise ValueError(f'{part}: is of {", ".join(content["weights"])}, the others of {", ".join(joined)}')
        if seen & set(content['clips']):
            raise ValueError(f'{part}: clips {sorted(seen & set(content["clips"]))} are in another part too')
        seen |= set(content['clips'])
        for name, found in content['weights'].items():
            figures = joined.setdefault(name, defaultdict(list))
            for figure, values in found['values'].items():
                figures[figure].extend(values)
    return joined


def main() -> None:
    """Measure, or join what was measured in parts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--weights', nargs='+', default=[PACKAGED], metavar='FILE',
                        help=f'safetensors, or "{PACKAGED}" (default); of several, the last is compared to the first')
    parser.add_argument('--clips', type=int, default=100)
    parser.add_argument('--from', dest='first', type=int, default=0, help='number of the first clip')
    parser.add_argument('--device', default='cpu')
    parser.add_argument('--jobs', type=int, default=1, help='processes of one thread each')
    parser.add_argument('--threads', type=int, default=torch.get_num_threads(), help='of a single process')
    parser.add_argument('--corrections', action=argparse.BooleanOptionalAction, default=True,
                        help='measure a click and a box in frame 30 as well (half as long again)')
    parser.add_argument('--json', type=Path, help='write the result here')
    parser.add_argument('--merge', type=Path, nargs='+', help='results of parts to join')
    options = parser.parse_args()
    started, clips = time.monotonic(), range(options.first, options.first + options.clips)
    for file in options.weights:
        if file != PACKAGED and not Path(file).exists():
            parser.error(f'weights {file}: no such file')
    if len(set(options.weights)) < len(options.weights):
        parser.error(f'weights {" ".join(options.weights)}: one of them is there twice')
    if options.merge:
        try:
            joined = merged(options.merge)
        except ValueError as error:
            parser.error(str(error))
        clips = [number for part in options.merge for number in json.loads(part.read_text())['clips']]
    else:
        joined = run(tuple(options.weights), clips, options.corrections, options.device, options.jobs, options.threads)
    summaries = {name: summary(figures) for name, figures in joined.items()}
    compared = comparison(summaries) if len(summaries) > 1 else {}
    show(summaries, compared)
    print(f'{len(clips)} clips, {time.monotonic() - started:.0f} s')
    if options.json:
        options.json.write_text(json.dumps({
            'clips': list(clips), 'comparison': compared,
            'weights': {name: {'summary': summaries[name],
                               'values': figures}  # not rounded: parts that are joined have to give the same means
                        for name, figures in joined.items()}}))


if __name__ == '__main__':
    main()
