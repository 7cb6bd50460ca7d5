"""What a user says about an object in one image: points, a box, a mask. Checks, merging, scaling to the model."""
from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from sam2_core.nn.prompt_encoder import BACKGROUND, BOX_BOTTOM_RIGHT, BOX_TOP_LEFT, FOREGROUND


class PromptError(ValueError):
    """A prompt that cannot be used; the text names the value and the cure."""


@dataclass(frozen=True, eq=False)
class Prompt:
    """Points, a box, or both; or a mask. Coordinates are pixels of the image it was drawn on, x right, y down.

    object_id: which object (a positive integer; not needed for single images).
    points: (x, y) pairs; labels: one for each point, 1 on the object, 0 not on it.
    box: (x0, y0, x1, y1); what lies outside the image is cut off.
    mask: (H, W) of the image's size, non-zero on the object.
    """

    object_id: int | None = None
    points: Sequence[Sequence[float]] | np.ndarray | None = None
    labels: Sequence[int] | np.ndarray | None = None
    box: Sequence[float] | np.ndarray | None = None
    mask: np.ndarray | None = None

    def check(self, height: int, width: int) -> Prompt:
        """The same prompt as clean arrays, if it fits an image of this size; PromptError otherwise."""
        points, labels = _checked_points(self.points, self.labels, height, width)
        box = None if self.box is None else _checked_box(self.box, height, width)
        mask = None if self.mask is None else _checked_mask(self.mask, height, width)
        if mask is None and box is None and not len(points):
            raise PromptError('prompt without content: give points, a box or a mask')
        if mask is not None and (box is not None or len(points)):
            raise PromptError('prompt with a mask and points or a box: give the mask alone, or leave it out')
        return Prompt(self.object_id, points, labels, box, mask)

    def as_points(self, height: int, width: int, image_size: int) -> tuple[np.ndarray, np.ndarray]:
        """Points float32 (P, 2) in pixels of the model's square image, labels int64 (P,). A box is two points, first.

        Call it on a checked prompt.
        """
        points, labels = np.asarray(self.points, np.float32), np.asarray(self.labels, np.int64)
        if self.box is not None:
            points = np.concatenate((np.asarray(self.box, np.float32).reshape(2, 2), points))
            labels = np.concatenate(([BOX_TOP_LEFT, BOX_BOTTOM_RIGHT], labels))
        scale = np.array([image_size / width, image_size / height], np.float32)
        return points * scale, labels


def merge_prompts(prompts: Iterable[Prompt], height: int, width: int) -> dict[int, Prompt]:
    """Check prompts for tracked objects and make one of all that speak of one object; PromptError if any is wrong."""
    merged: dict[int, Prompt] = {}
    for prompt in prompts:
        object_id = prompt.object_id
        if not isinstance(object_id, (int, np.integer)) or isinstance(object_id, bool) or object_id < 1:
            raise PromptError(f'object_id {object_id!r}: must be a positive integer')
        object_id = int(object_id)
        try:
            new = prompt.check(height, width)
            merged[object_id] = _merge(merged[object_id], new) if object_id in merged else new
        except PromptError as error:
            raise PromptError(f'object {object_id}: {error}') from None
    return merged


def _merge(first: Prompt, second: Prompt) -> Prompt:
    if first.mask is not None or second.mask is not None:
        raise PromptError('a mask and another prompt in the same image: give the mask alone')
    if first.box is not None and second.box is not None:
        raise PromptError(f'two boxes in the same image, {tuple(first.box)} and {tuple(second.box)}: give one')
    return Prompt(first.object_id, np.concatenate((first.points, second.points)),
                  np.concatenate((first.labels, second.labels)), second.box if first.box is None else first.box)


def _checked_points(points, labels, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    try:
        xy = np.asarray([] if points is None else points, np.float32).reshape(-1, 2)
    except (TypeError, ValueError):
        raise PromptError(f'points {points!r}: must be (x, y) pairs') from None
    kinds = np.asarray([] if labels is None else labels).reshape(-1)
    if len(xy) != len(kinds):
        raise PromptError(f'{len(xy)} points and {len(kinds)} labels: give one label (1 on it, 0 not) per point')
    for kind in kinds:
        if kind not in (BACKGROUND, FOREGROUND):
            raise PromptError(f'label {kind}: must be 1 (on the object) or 0 (not on it)')
    for x, y in xy:
        if not (np.isfinite(x) and np.isfinite(y)):
            raise PromptError(f'point ({x:g}, {y:g}): must be finite')
        if not (-0.5 <= x <= width and -0.5 <= y <= height):
            raise PromptError(f'point ({x:g}, {y:g}): outside the image of {width} x {height} pixels')
    return xy, kinds.astype(np.int64)


def _checked_box(box, height: int, width: int) -> np.ndarray:
    try:
        corners = np.asarray(box, np.float32).reshape(4)
    except (TypeError, ValueError):
        raise PromptError(f'box {box!r}: must be (x0, y0, x1, y1)') from None
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
    return np.array([max(x0, 0), max(y0, 0), min(x1, width), min(y1, height)], np.float32)


def _checked_mask(mask, height: int, width: int) -> np.ndarray:
    pixels = np.asarray(mask)
    if pixels.shape != (height, width):
        raise PromptError(f'mask of shape {pixels.shape}: must be ({height}, {width}), as the image')
    if not (pixels.dtype == bool or np.issubdtype(pixels.dtype, np.number)):
        raise PromptError(f'mask of type {pixels.dtype}: must be bool or a number, non-zero on the object')
    if np.issubdtype(pixels.dtype, np.floating) and not np.isfinite(pixels).all():
        raise PromptError('mask with NaN or infinite values: must be finite, non-zero on the object')
    pixels = pixels != 0
    if not pixels.any():
        raise PromptError('mask without a single pixel: give at least one, or remove the object')
    return pixels
