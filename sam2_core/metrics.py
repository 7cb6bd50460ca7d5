"""How good masks are: J and F of the DAVIS benchmark, which SA-V uses too (Perazzi et al. 2016, Pont-Tuset et al. 2017,
arXiv 1704.00675). Equal to the tools that were published with them (test/core/test_metrics.py)."""
from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import cv2
import numpy as np

from sam2_core.masks import mask_box

BOUNDARY_TOLERANCE = 0.008  # of the image's diagonal


def iou(a: np.ndarray, b: np.ndarray) -> float:
    """J, the region similarity: intersection over union of two bool masks of one shape; 1 when both are empty."""
    _check_shapes(a, b)
    union = np.count_nonzero(a | b)
    return np.count_nonzero(a & b) / union if union else 1.0


def boundary_f(predicted: np.ndarray, true: np.ndarray, tolerance: float = BOUNDARY_TOLERANCE) -> float:
    """F of the boundaries of two bool masks of one shape; 1 when neither has any, 0 when only one has.

    Precision is the part of the predicted boundary within ``tolerance`` times the image's diagonal (rounded up to whole
    pixels) of the true one, recall the part of the true boundary that near the predicted one. A mask that fills the
    image has no boundary.
    """
    _check_shapes(predicted, true)
    radius = math.ceil(tolerance * math.hypot(*true.shape))
    boundaries = [_boundary(mask) for mask in _crops(predicted, true)]
    lengths = [np.count_nonzero(boundary) for boundary in boundaries]
    if not any(lengths):
        return 1.0
    if not all(lengths):
        return 0.0
    near = [cv2.dilate(boundary, _disk(radius)) for boundary in boundaries]
    precision = np.count_nonzero(boundaries[0] & near[1]) / lengths[0]
    recall = np.count_nonzero(boundaries[1] & near[0]) / lengths[1]
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def counted_frames(present: Sequence[bool], skip_first_and_last: bool = True, sav: bool = False) -> range:
    """Which of an object's annotated frames its mean J and F are taken over, as indices.

    present: for each annotated frame in order, whether the object is there in the truth or in what was predicted. The
    first frame holds the prompt; it and the last are skipped by the published tools (not where they evaluate without
    prompts). sav: as SA-V's tool has it, which begins to count where the object is first present; DAVIS counts a frame
    where it is rightly absent as 1.
    """
    first, end = (1, len(present) - 1) if skip_first_and_last else (0, len(present))
    while sav and first < end and not present[first]:
        first += 1
    return range(first, max(first, end))


def box_iou(box: Sequence[float] | np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return the intersection over union of one box (4,) with each of others (N, 4): (N,), 0..1.

    Boxes are (x0, y0, x1, y1) with an area above 0.
    """
    box = np.asarray(box)
    corner0, corner1 = np.maximum(box[:2], others[:, :2]), np.minimum(box[2:], others[:, 2:])
    inner = np.clip(corner1 - corner0, 0, None).prod(axis=1)
    return inner / ((box[2:] - box[:2]).prod() + (others[:, 2:] - others[:, :2]).prod(axis=1) - inner)


def _crops(a: np.ndarray, b: np.ndarray) -> list[np.ndarray]:
    """Both masks in the box of what they cover together and a pixel around it: all of their boundaries."""
    x0, y0, x1, y1 = mask_box(a | b) or (0, 0, 0, 0)
    return [mask[max(0, y0 - 1):y1 + 1, max(0, x0 - 1):x1 + 1] for mask in (a, b)]


@functools.cache
def _disk(radius: int) -> np.ndarray:
    y, x = np.ogrid[-radius:radius + 1, -radius:radius + 1]
    return (x * x + y * y <= radius * radius).astype(np.uint8)


def _boundary(mask: np.ndarray) -> np.ndarray:
    """Pixels that differ from their neighbour to the right, below, or both ways: uint8 (H, W)."""
    edge = np.zeros(mask.shape, np.uint8)
    edge[:, :-1] |= mask[:, :-1] != mask[:, 1:]
    edge[:-1] |= mask[:-1] != mask[1:]
    edge[:-1, :-1] |= mask[:-1, :-1] != mask[1:, 1:]
    return edge


def _check_shapes(a: np.ndarray, b: np.ndarray) -> None:
    if a.shape != b.shape:
        raise ValueError(f'masks of shapes {a.shape} and {b.shape}: must be of one shape')
