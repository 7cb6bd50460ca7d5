"""Prompts for objects in an image: checking, merging, and scaling to the model."""
from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from sam2_core.mask_prompts import fit_mask
from sam2_core.nn.prompt_encoder import BACKGROUND, BOX_BOTTOM_RIGHT, BOX_TOP_LEFT
from sam2_core.prompt_arrays import PromptError, checked_box, checked_mask, checked_points

__all__ = ['MAX_ID', 'Prompt', 'PromptError', 'errors_of', 'merge_prompts']

MAX_ID = 65535  # largest id of an object in messages, prompt files and 16-bit label images; a tracker takes any


@dataclass(frozen=True, eq=False)
class Prompt:
    """A prompt for one object: points, a box, or both; or a mask.

    Coordinates are pixels of the image on which the prompt was drawn, x to the right, y down. All values may be lists,
    numpy arrays or torch tensors.

    Attributes:
        object_id: A positive integer; not needed for single images.
        points: (x, y) pairs, shape (N, 2).
        labels: One per point: 1 on the object, 0 not on it.
        box: (x0, y0, x1, y1); it is clipped to the image.
        mask: (H, W), the size of the image: bool, 0 and 1, or 0 and 255.
    """

    object_id: int | None = None
    points: Sequence[Sequence[float]] | np.ndarray | None = None
    labels: Sequence[int] | np.ndarray | None = None
    box: Sequence[float] | np.ndarray | None = None
    mask: np.ndarray | None = None

    def check(self, height: int, width: int, image_size: int | None = None) -> Prompt:
        """Return the prompt as checked arrays, or raise PromptError if it does not fit an image of this size.

        With the ``image_size`` of a model, also reject masks that are too thin for that model.
        """
        points, labels = checked_points(self.points, self.labels, height, width)
        box = None if self.box is None else checked_box(self.box, height, width)
        mask = None if self.mask is None else checked_mask(self.mask, height, width)
        if mask is None and box is None and not len(points):
            raise PromptError('prompt without content: give points, a box or a mask')
        if mask is not None and (box is not None or len(points)):
            raise PromptError('prompt with a mask and points or a box: give the mask alone, or leave it out')
        if mask is not None and image_size is not None:
            fit_mask(mask, image_size)
        return Prompt(self.object_id, points, labels, box, mask)

    def check_starts(self) -> None:
        """Raise PromptError if a checked prompt has background points only: they cannot start a new object."""
        if self.mask is None and self.box is None and (np.asarray(self.labels) == BACKGROUND).all():
            x, y = np.asarray(self.points)[0]
            raise PromptError(f'point ({x:g}, {y:g}): a new object cannot start from points off the object alone; '
                              f'give at least one point on it (label 1), a box or a mask')

    def as_points(self, height: int, width: int, image_size: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the points and box of a checked prompt as points of the model's square input.

        Returns:
            Points float32 (P, 2) in pixels and labels int64 (P,). The corners of a box come first.
        """
        points, labels = np.asarray(self.points, np.float32), np.asarray(self.labels, np.int64)
        if self.box is not None:
            points = np.concatenate((np.asarray(self.box, np.float32).reshape(2, 2), points))
            labels = np.concatenate(([BOX_TOP_LEFT, BOX_BOTTOM_RIGHT], labels))
        scale = np.array([image_size / width, image_size / height], np.float32)
        return points * scale, labels


def merge_prompts(prompts: Iterable[Prompt], height: int, width: int) -> dict[int, Prompt]:
    """Check prompts for tracked objects and merge them by object id; raise PromptError if one cannot be used."""
    if isinstance(prompts, Prompt):
        raise PromptError('prompts: must be a list of Prompt, not one; write [prompt]')
    merged: dict[int, Prompt] = {}
    for prompt in prompts:
        if not isinstance(prompt, Prompt):
            raise PromptError(f'prompt of type {type(prompt).__name__}: must be a Prompt')
        object_id = prompt.object_id
        if not isinstance(object_id, (int, np.integer)) or isinstance(object_id, bool) or object_id < 1:
            raise PromptError(f'object_id {object_id!r}: must be a positive integer')
        object_id = int(object_id)
        with errors_of(object_id):
            new = prompt.check(height, width)
            merged[object_id] = _merge(merged[object_id], new) if object_id in merged else new
    return merged


@contextmanager
def errors_of(object_id: int | None) -> Iterator[None]:
    """Prefix every PromptError of the block with the object's id."""
    try:
        yield
    except PromptError as error:
        raise PromptError(f'object {object_id}: {error}') from None


def _merge(first: Prompt, second: Prompt) -> Prompt:
    if first.mask is not None or second.mask is not None:
        raise PromptError('a mask and another prompt in the same image: give the mask alone')
    if first.box is not None and second.box is not None:
        boxes = ' and '.join(f'({", ".join(f"{value:g}" for value in box)})' for box in (first.box, second.box))
        raise PromptError(f'two boxes in the same image, {boxes}: give one')
    points, labels = (np.concatenate([np.asarray(one), np.asarray(other)])
                      for one, other in ((first.points, second.points), (first.labels, second.labels)))
    return Prompt(first.object_id, points, labels, second.box if first.box is None else first.box)
