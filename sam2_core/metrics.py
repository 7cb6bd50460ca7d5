"""How good a mask is."""
from __future__ import annotations

import numpy as np


def iou(a: np.ndarray, b: np.ndarray) -> float:
    """Intersection over union of two bool masks of one shape; 1 when both are empty (DAVIS, Perazzi et al. 2016)."""
    if a.shape != b.shape:
        raise ValueError(f'masks of shapes {a.shape} and {b.shape}: must be of one shape')
    union = np.count_nonzero(a | b)
    return np.count_nonzero(a & b) / union if union else 1.0
