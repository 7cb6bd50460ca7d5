"""Images in which each pixel belongs to one object."""
from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np


class Layer(NamedTuple):
    """What one visible object puts into an image."""

    score: float  # predicted IoU, 0..1
    box: tuple[int, int, int, int]  # (x0, y0, x1, y1) of the mask, pixels, x1 and y1 exclusive
    mask: np.ndarray  # bool (H, W)
    value: int


def paint(size: tuple[int, int], layers: Iterable[Layer], dtype: type) -> np.ndarray:
    """Return an image of this size (height, width) with the value of the object that each pixel belongs to; 0: none.

    Where masks overlap, the object with the higher score is shown. Of equal scores, the later layer is shown.
    """
    picture: np.ndarray = np.zeros(size, dtype)
    for layer in sorted(layers, key=lambda layer: layer.score):
        x0, y0, x1, y1 = layer.box
        picture[y0:y1, x0:x1][layer.mask[y0:y1, x0:x1]] = layer.value
    return picture
