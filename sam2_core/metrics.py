"""How good a mask is."""
from __future__ import annotations

import math

import cv2
import numpy as np

BOUNDARY_TOLERANCE = 0.008  # of the image's diagonal, as in the DAVIS benchmark


def iou(a: np.ndarray, b: np.ndarray) -> float:
    """Intersection over union of two bool masks of one shape; 1 when both are empty (DAVIS, Perazzi et al. 2016)."""
    if a.shape != b.shape:
        raise ValueError(f'masks of shapes {a.shape} and {b.shape}: must be of one shape')
    union = np.count_nonzero(a | b)
    return np.count_nonzero(a & b) / union if union else 1.0


def boundary_f(predicted: np.ndarray, true: np.ndarray, tolerance: float = BOUNDARY_TOLERANCE) -> float:
    """F of the boundaries of two bool masks of one shape; 1 when neither has any, 0 when only one has.

    Precision is the part of the predicted boundary within ``tolerance`` times the image's diagonal of the true one,
    recall the part of the true boundary that near the predicted one (DAVIS, Perazzi et al. 2016, section 5.1).
    """
    if predicted.shape != true.shape:
        raise ValueError(f'masks of shapes {predicted.shape} and {true.shape}: must be of one shape')
    boundaries = [_boundary(mask) for mask in (predicted, true)]
    lengths = [np.count_nonzero(boundary) for boundary in boundaries]
    if not any(lengths):
        return 1.0
    if not all(lengths):
        return 0.0
    radius = math.ceil(tolerance * math.hypot(*true.shape))
    y, x = np.ogrid[-radius:radius + 1, -radius:radius + 1]
    disk = (x * x + y * y <= radius * radius).astype(np.uint8)
    near = [cv2.dilate(boundary, disk) for boundary in boundaries]
    precision = np.count_nonzero(boundaries[0] & near[1]) / lengths[0]
    recall = np.count_nonzero(boundaries[1] & near[0]) / lengths[1]
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def _boundary(mask: np.ndarray) -> np.ndarray:
    """Pixels that differ from their neighbour to the right, below, or both ways: uint8 (H, W)."""
    edge = np.zeros(mask.shape, np.uint8)
    edge[:, :-1] |= mask[:, :-1] != mask[:, 1:]
    edge[:-1] |= mask[:-1] != mask[1:]
    edge[:-1, :-1] |= mask[:-1, :-1] != mask[1:, 1:]
    return edge
