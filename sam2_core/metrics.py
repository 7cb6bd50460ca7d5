"""Mask metrics of the DAVIS and SA-V benchmarks: region similarity J and boundary accuracy F.

Perazzi et al. 2016; Pont-Tuset et al. 2017, arXiv 1704.00675. The values equal those of the published tools
(test/core/test_metrics.py).
"""
from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import cv2
import numpy as np

from sam2_core.masks import mask_box

BOUNDARY_TOLERANCE = 0.008  # as a share of the image's diagonal


def iou(a: np.ndarray, b: np.ndarray) -> float:
    """Return J, the intersection over union of two bool masks of equal shape, 0..1; 1 if both are empty.

    Raise ValueError for masks of different shapes.
    """
    _check_shapes(a, b)
    union = np.count_nonzero(a | b)
    return np.count_nonzero(a & b) / union if union else 1.0


def boundary_f(predicted: np.ndarray, true: np.ndarray, tolerance: float = BOUNDARY_TOLERANCE) -> float:
    """Return F, the boundary accuracy of two bool masks of equal shape, 0..1.

    Precision is the share of the predicted boundary within ``tolerance`` of the true boundary, recall the reverse.
    F is 1 if neither mask has a boundary and 0 if only one has. A mask that fills the image has no boundary.

    Args:
        predicted: Predicted mask, bool (H, W).
        true: True mask, bool (H, W).
        tolerance: Distance as a share of the image's diagonal, rounded up to whole pixels.

    Raises:
        ValueError: The masks differ in shape.
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
    """Return the indices of an object's annotated frames over which the mean J and F are taken.

    Args:
        present: For each annotated frame in order, whether the true or the predicted mask is not empty.
        skip_first_and_last: Skip the first frame, which holds the prompt, and the last, as the published tools do when
            they evaluate prompted objects.
        sav: Skip frames before the object is first present, as the tool of SA-V does. The tool of DAVIS counts a
            frame in which the object is correctly absent as 1.
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
    """Crop both masks to their common bounding box and one pixel around it, which holds all boundaries."""
    x0, y0, x1, y1 = mask_box(a | b) or (0, 0, 0, 0)
    return [mask[max(0, y0 - 1):y1 + 1, max(0, x0 - 1):x1 + 1] for mask in (a, b)]


@functools.cache
def _disk(radius: int) -> np.ndarray:
    y, x = np.ogrid[-radius:radius + 1, -radius:radius + 1]
    return (x * x + y * y <= radius * radius).astype(np.uint8)


def _boundary(mask: np.ndarray) -> np.ndarray:
    """Return the pixels that differ from the neighbour to the right, below, or below right: uint8 (H, W)."""
    edge = np.zeros(mask.shape, np.uint8)
    edge[:, :-1] |= mask[:, :-1] != mask[:, 1:]
    edge[:-1] |= mask[:-1] != mask[1:]
    edge[:-1, :-1] |= mask[:-1, :-1] != mask[1:, 1:]
    return edge


def _check_shapes(a: np.ndarray, b: np.ndarray) -> None:
    if a.shape != b.shape:
        raise ValueError(f'masks of shapes {a.shape} and {b.shape}: must be of one shape')
