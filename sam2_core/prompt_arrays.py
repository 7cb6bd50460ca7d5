"""Checks of the numbers in a prompt: points, labels, box and mask. Values are rejected rather than coerced."""
from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from sam2_core.masks import binary_mask
from sam2_core.nn.prompt_encoder import BACKGROUND, FOREGROUND

_SHOWN = 100  # characters of a value in an error


class PromptError(ValueError):
    """Error for a prompt that cannot be used; the message states the value and the cure."""


def checked_points(points: Any, labels: Any, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Return points as float32 (N, 2) and labels as int64 (N,); raise PromptError if they cannot be used."""
    wanted = 'must be N (x, y) pairs, shape (N, 2), in pixels'
    xy = _numbers([] if points is None else points, 'points', wanted)
    if xy.shape == (0,):
        xy = xy.reshape(0, 2)
    if xy.ndim == 1 and xy.size == 2:
        raise PromptError(f'points {_shown(points)} of shape (2,): {wanted}; write one point as [(x, y)]')
    if xy.ndim != 2 or xy.shape[1] != 2:
        raise PromptError(f'points of shape {xy.shape}: {wanted}')
    kinds = _checked_labels(labels, len(xy))
    for x, y in xy:
        if not (np.isfinite(x) and np.isfinite(y)):
            raise PromptError(f'point ({x:g}, {y:g}): must be finite')
        if not (-0.5 <= x <= width and -0.5 <= y <= height):
            raise PromptError(f'point ({x:g}, {y:g}): outside the image of {width} x {height} pixels')
    if len(xy) and _are_fractions(xy):
        raise PromptError(f'points {_shown(xy.tolist())}: must be pixels, not fractions of the image; multiply x by '
                          f'{width} and y by {height} (the top-left pixel is (0, 0))')
    return xy.astype(np.float32), kinds


def _checked_labels(labels: Any, count: int) -> np.ndarray:
    wanted = f'give one label (1 on it, 0 not) per point, shape ({count},)'
    kinds = _numbers([] if labels is None else labels, 'labels', wanted, bools=True)
    if kinds.ndim != 1:
        raise PromptError(f'{count} points and labels of shape {kinds.shape}: {wanted}')
    if len(kinds) != count:
        raise PromptError(f'{count} points and {len(kinds)} labels: {wanted}')
    for kind in kinds:
        if kind not in (BACKGROUND, FOREGROUND):
            raise PromptError(f'label {kind}: must be 1 (on the object) or 0 (not on it)')
    return kinds.astype(np.int64)


def checked_box(box: Any, height: int, width: int) -> np.ndarray:
    """Return a box as float32 (4,), clipped to the image; raise PromptError if it cannot be used."""
    wanted = 'must be (x0, y0, x1, y1), shape (4,), in pixels'
    corners = _numbers(box, 'box', wanted)
    if corners.shape != (4,):
        raise PromptError(f'box {_shown(box)}: {wanted}, not {corners.shape}')
    x0, y0, x1, y1 = corners.tolist()
    text = f'box ({x0:g}, {y0:g}, {x1:g}, {y1:g})'
    if not np.isfinite(corners).all():
        raise PromptError(f'{text}: must be finite')
    if x1 <= x0:
        raise PromptError(f'{text}: x1 must exceed x0')
    if y1 <= y0:
        raise PromptError(f'{text}: y1 must exceed y0')
    if x0 >= width or y0 >= height or x1 <= 0 or y1 <= 0:
        raise PromptError(f'{text}: outside the image of {width} x {height} pixels')
    if x0 >= 0 and y0 >= 0 and x1 <= 1 and y1 <= 1:
        raise PromptError(f'{text}: must be pixels, not fractions of the image; multiply x by {width} and y by '
                          f'{height}')
    inside = np.array([max(x0, 0), max(y0, 0), min(x1, width), min(y1, height)], np.float32)
    across, down = (inside[2:] - inside[:2]).tolist()
    if across < 1 or down < 1:
        raise PromptError(f'{text}: has {across:.3g} x {down:.3g} pixels in the image; must have at least 1 x 1')
    return inside


def checked_mask(mask: Any, height: int, width: int) -> np.ndarray:
    """Return a mask as bool (height, width); raise PromptError if it cannot be used."""
    shape = f'must be ({height}, {width}), as the image'
    pixels = _array(mask, 'mask', shape)
    if pixels.shape != (height, width):
        raise PromptError(f'mask of shape {pixels.shape}: {shape}')
    try:
        pixels = binary_mask(pixels)
    except ValueError as error:
        raise PromptError(str(error)) from None
    if not pixels.any():
        raise PromptError('mask without a single pixel: give at least one, or remove the object')
    return pixels


def _numbers(values: Any, name: str, wanted: str, bools: bool = False) -> np.ndarray:
    """Return real numbers as a float64 array of their original shape."""
    array = _array(values, name, wanted)
    if array.size and array.dtype.kind not in ('biuf' if bools else 'iuf'):
        raise PromptError(f'{name} {_shown(values)} of type {array.dtype}: {wanted}')
    return array.astype(np.float64)


def _array(values: Any, name: str, wanted: str) -> np.ndarray:
    if isinstance(values, Tensor):
        values = values.detach().cpu()
        values = (values.float() if values.is_floating_point() else values).numpy()
    elif isinstance(values, (list, tuple)):
        values = [item.tolist() if isinstance(item, Tensor) else item for item in values]
    try:
        array = np.asarray(values)
    except Exception:  # ragged lists, or any exception of a foreign type
        raise PromptError(f'{name} {_shown(values)}: rows of different lengths, or no numbers; {wanted}') from None
    if array.dtype == object:
        raise PromptError(f'{name} {_shown(values)}: no array of numbers; {wanted}')
    return array


def _are_fractions(xy: np.ndarray) -> bool:
    return bool((xy >= 0).all() and (xy <= 1).all() and (xy != np.round(xy)).any())


def _shown(values: Any) -> str:
    text = ' '.join(repr(values).split())
    return text if len(text) <= _SHOWN else f'{text[:_SHOWN]}...'
