"""Held-out synthetic clips, and the figures that nano is judged by.

Clip ``i`` has the seed (SEED, i) and textures of its own set; no training seed reaches SEED. docs/nano.md explains
each figure.
"""
from __future__ import annotations

import functools
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch

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
LIES_ON = 0.3  # least IoU with an object that a mask lies on
SWAP_FRAMES = 5  # consecutive frames on an identical twin after which the identity counts as lost
LATE = 100  # added to the id of an object that is prompted again in CORRECTION_FRAME
PACKAGED = 'packaged'

Figures = dict[str, list[float]]  # of one clip: every value of each figure


@functools.cache
def nano(weights: str, device: str = 'cpu') -> Sam2Model:
    """Return the model with the weights of a file, or with the packaged ones."""
    return load_weights(find_weights('nano') if weights == PACKAGED else Path(weights), VARIANTS['nano']).to(device)


def short(weights: str) -> str:
    """Return the name of weights in a table: the file and its folder."""
    return str(Path(*Path(weights).parts[-2:]))


@functools.cache
def clutter(seed: int = SEED) -> ClutterBank:
    """Return the backgrounds and occluders of the clips of a seed."""
    return ClutterBank(TextureBank(seed, TEXTURES), 60)


def held_out_clip(number: int, frames: int = FRAMES, seed: int = SEED) -> Clip:
    """Return one of the held-out clips; another number of frames gives another clip."""
    return make_clip((seed, number), clutter(seed), frames)


def inner_point(region: np.ndarray) -> tuple[int, int]:
    """Return the pixel (x, y) farthest from the edge of a bool region."""
    depth = cv2.distanceTransform(np.pad(region, 1).astype(np.uint8), cv2.DIST_L2, 5)[1:-1, 1:-1]
    y, x = np.unravel_index(int(depth.argmax()), depth.shape)
    return int(x), int(y)


def error_point(predicted: np.ndarray, true: np.ndarray) -> tuple[tuple[int, int], int]:
    """Return the click that corrects the largest error, well inside it, and its label (1: the object was missed)."""
    wrong = predicted ^ true
    if not wrong.any():
        return inner_point(true), 1
    _, labels, stats, _ = cv2.connectedComponentsWithStats(wrong.astype(np.uint8))
    largest = 1 + int(stats[1:, cv2.CC_STAT_AREA].argmax())
    x, y = inner_point(labels == largest)
    return (x, y), int(true[y, x])


def first_frame(segmenter: ImageSegmenter, clip: Clip, figures: Figures) -> None:
    """Add the IoU in the first image from a box, from one click, and from three clicks."""
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
    """One clip tracked from boxes in the first frame, and from ``CORRECTION_FRAME`` on also a corrected copy."""

    masks: np.ndarray  # bool (T, K, H, W)
    present: np.ndarray  # bool (T, K)
    corrected: np.ndarray | None = None  # bool (T - CORRECTION_FRAME, K, H, W); only visible objects were corrected
    late: np.ndarray | None = None  # the same shape, from a box in that frame; empty if the object was not visible


def track(model: Sam2Model, clip: Clip, middle: bool, recent_frames: int | None = None,
          memory_policy: str = 'published') -> Tracked:
    """Track a clip.

    middle: in ``CORRECTION_FRAME``, in a copy of the tracker, also correct each object and start it again. The click
    is where the object was most wrong in the frame before, since a live user sees no later one.
    """
    tracker, branch = StreamTracker(model, memory_policy=memory_policy), None
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
    """Add the effect of a click and of a box in mid-clip, over the later frames in which the object is visible."""
    after, visible = slice(CORRECTION_FRAME + 1, None), clip.visible
    for k in range(tracked.masks.shape[1]):
        started = visible[CORRECTION_FRAME, k]
        if started:
            figures['late_first_frame'].append(iou(tracked.late[0, k], clip.masks[CORRECTION_FRAME, k]))
        for name, masks, counts in (('J_after_uncorrected', tracked.masks[after], True),
                                    ('J_after_correction', tracked.corrected[1:], True),
                                    ('J_late', tracked.late[1:], started)):
            if counts:
                figures[name].extend(iou(a, b) for a, b, seen in zip(
                    masks[:, k], clip.masks[after, k], visible[after, k], strict=True) if seen)


def on_another(mask: np.ndarray, j: float, others: np.ndarray) -> bool:
    """Return whether a mask, bool (H, W), of IoU ``j`` with its own object lies on one of others, bool (N, H, W)."""
    return bool(max((iou(mask, other) for other in others if other.any()), default=0.0) > max(LIES_ON, j))


def judge(clip: Clip, masks: np.ndarray, present: np.ndarray, figures: Figures) -> None:
    """Add the figures of one tracked clip."""
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
            others = np.delete(clip.masks[t], k, axis=0)
            figures['on_another_object'].append(on_another(masks[t, k], j[t], others))
        _judge_twins(clip, k, masks[:, k], j, figures)


def _judge_twins(clip: Clip, k: int, masks: np.ndarray, j: np.ndarray, figures: Figures) -> None:
    """Add whether the mask lies on an identical twin of the object, and whether it stays there."""
    twins = [other for other in range(clip.masks.shape[1]) if other != k and clip.kinds[other] == clip.kinds[k]]
    if not twins:
        return
    longest = row = 0
    for t in np.flatnonzero(clip.visible[1:, k]) + 1:
        swapped = on_another(masks[t], j[t], clip.masks[t, twins])
        if clip.visible[t, twins].any():
            figures['on_twin'].append(swapped)
        row = row + 1 if swapped else 0
        longest = max(longest, row)
    figures['twin_swapped'].append(longest >= SWAP_FRAMES)


def _recoveries(j: np.ndarray, visible: np.ndarray) -> list[bool]:
    """Return for each return after a full absence whether the object is found within the next visible frames."""
    found, hidden = [], 0
    for t in range(1, len(visible)):
        if visible[t] and hidden >= HIDDEN_LEAST:
            after = np.flatnonzero(visible[t:t + RECOVERY_FRAMES]) + t
            if len(after) >= 3:
                found.append(bool(j[after].mean() > 0.5))
        hidden = 0 if visible[t] else hidden + 1
    return found


def clip_figures(model: Sam2Model, clip: Clip, corrections: bool, recent_frames: int | None = None,
                 memory_policy: str = 'published') -> Figures:
    """Return the figures of one clip; empty if it shows no object."""
    figures: Figures = defaultdict(list)
    if clip.masks.shape[1]:
        with torch.inference_mode():
            first_frame(ImageSegmenter(model), clip, figures)
            tracked = track(model, clip, corrections, recent_frames, memory_policy)
        judge(clip, tracked.masks, tracked.present, figures)
        if corrections:
            judge_middle(clip, tracked, figures)
    return dict(figures)
