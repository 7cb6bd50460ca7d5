"""What a user says about an object in one image: points, a box, a mask. Checks, merging, scaling to the model."""
from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from sam2_core.mask_prompts import fit_mask
from sam2_core.nn.prompt_encoder import BACKGROUND, BOX_BOTTOM_RIGHT, BOX_TOP_LEFT
from sam2_core.prompt_arrays import PromptError, checked_box, checked_mask, checked_points

__all__ = ['Prompt', 'PromptError', 'errors_of', 'merge_prompts']


@dataclass(frozen=True, eq=False)
class Prompt:
    """Points, a box, or both; or a mask. Coordinates are pixels of the image it was drawn on, x right, y down.

    object_id: which object (a positive integer; not needed for single images).
    points: (x, y) pairs, shape (N, 2); labels: one for each point, 1 on the object, 0 not on it.
    box: (x0, y0, x1, y1); what lies outside the image is cut off.
    mask: (H, W) of the image's size: bool, 0 and 1, or 0 and 255.
    All may be lists, numpy arrays or torch tensors.
    """

    object_id: int | None = None
    points: Sequence[Sequence[float]] | np.ndarray | None = None
    labels: Sequence[int] | np.ndarray | None = None
    box: Sequence[float] | np.ndarray | None = None
    mask: np.ndarray | None = None

    def check(self, height: int, width: int, image_size: int | None = None) -> Prompt:
        """Return the prompt as clean arrays if it fits an image of this size; raise PromptError otherwise.

        image_size: also refuse a mask that is too thin for a model of this ``image_size``.
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
        """Raise PromptError if a checked prompt has background clicks only, which no new object can start from."""
        if self.mask is None and self.box is None and (np.asarray(self.labels) == BACKGROUND).all():
            x, y = self.points[0]
            raise PromptError(f'point ({x:g}, {y:g}): a new object cannot start from points off the object alone; '
                              f'give at least one point on it (label 1), a box or a mask')

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
    """Check prompts for tracked objects and merge those of one object; raise PromptError if any is wrong."""
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
def errors_of(object_id: int) -> Iterator[None]:
    """Name the object in every PromptError."""
    try:
        yield
    except PromptError as error:
        raise PromptError(f'object {object_id}: {error}') from None


def _merge(first: Prompt, second: Prompt) -> Prompt:
    if first.mask is not None or second.mask is not None:
        raise PromptError('a mask and another prompt in the same image: give the mask alone')
    if first.box is not None and second.box is not None:
        boxes = ' and '.join(f'({", ".join(f"{value:g}" for value in one.box)})' for one in (first, second))
        raise PromptError(f'two boxes in the same image, {boxes}: give one')
    return Prompt(first.object_id, np.concatenate((first.points, second.points)),
                  np.concatenate((first.labels, second.labels)), second.box if first.box is None else first.box)
