"""Tracking of any number of objects through a live stream, with memory bounded from the first frame."""
from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sam2_core.images import check_image, mask_to_model, to_image, to_model
from sam2_core.masks import mask_box
from sam2_core.memory import MemoryBank, stack_memories
from sam2_core.model import ImageFeatures, ObjectMasks, Sam2Model
from sam2_core.prompts import Prompt, PromptError, merge_prompts
from sam2_core.segmenter import MAX_PROMPT_LOGIT


@dataclass(frozen=True, eq=False)
class ObjectResult:
    """One object in one frame."""

    mask: np.ndarray  # bool (H, W)
    logits: Tensor  # float32 (image_size / 4, image_size / 4), on the model's device
    box: tuple[int, int, int, int] | None  # (x0, y0, x1, y1) of the mask, pixels, x1 and y1 exclusive; None: no pixel
    iou: float  # predicted IoU, 0..1
    object_score: float  # logit; > 0: the object is visible


@dataclass(frozen=True, eq=False)
class FrameResult:
    """All known objects in one frame."""

    objects: dict[int, ObjectResult]
    height: int
    width: int


class StreamTracker:
    """Tracks prompted objects from image to image.

    Objects can be added, corrected and removed at any frame. Trackers hold their own memory and share nothing but
    the model, so several may run on one. Not thread-safe.
    """

    def __init__(self, model: Sam2Model, *, max_objects: int | None = None, max_conditioning_frames: int = 4) -> None:
        """``max_conditioning_frames``: how many prompted frames an object remembers, the newest win."""
        if max_conditioning_frames < 1:
            raise ValueError(f'max_conditioning_frames {max_conditioning_frames}: must be at least 1')
        self.model = model
        self.max_objects = max_objects
        self.max_conditioning_frames = max_conditioning_frames
        self._banks: dict[int, MemoryBank] = {}

    @property
    def object_ids(self) -> tuple[int, ...]:
        """The objects known, in the order in which they were added."""
        return tuple(self._banks)

    @property
    def memory_bytes(self) -> int:
        """Bytes of memory held for all objects: a constant for each of them."""
        return sum(bank.nbytes for bank in self._banks.values())

    def remove(self, object_id: int) -> None:
        """Forget an object; KeyError when it is not known."""
        if object_id not in self._banks:
            raise KeyError(f'object {object_id} is not known; known: {list(self._banks)}')
        del self._banks[object_id]

    def reset(self) -> None:
        """Forget all objects."""
        self._banks.clear()

    @torch.inference_mode()
    def step(self, image: np.ndarray | Tensor, prompts: Iterable[Prompt] = ()) -> FrameResult:
        """Process the next image of the stream, uint8 RGB (H, W, 3).

        A prompt with an unknown ``object_id`` adds the object; one with a known id corrects it, and the correction is
        remembered like a first prompt. Several prompts for one object are merged. Images may change in size.
        PromptError (and TypeError, ValueError for the image) leave the tracker as it was: the image did not happen.
        """
        height, width = check_image(image)
        merged = merge_prompts(prompts, height, width)
        self._check_limit(merged)
        if not self._banks and not merged:
            return FrameResult({}, height, width)
        features = self.model.encode_image(to_model(self.model, image))

        conditioned, masks = self._track(features)
        for object_id, prompt in merged.items():
            masks[object_id] = self._prompt(features, prompt, (height, width), conditioned.get(object_id),
                                            masks.get(object_id))
        together = ObjectMasks(*(torch.stack(parts) for parts in zip(*masks.values(), strict=True)))
        self._remember(features, list(masks), together, merged)
        return FrameResult(_results(list(masks), together, height, width), height, width)

    def _check_limit(self, merged: dict[int, Prompt]) -> None:
        new = [object_id for object_id in merged if object_id not in self._banks]
        if self.max_objects is not None and len(self._banks) + len(new) > self.max_objects:
            raise PromptError(f'object {new[-1]}: {len(self._banks)} objects are tracked already and the limit is '
                              f'{self.max_objects}: remove one first')

    def _track(self, image: ImageFeatures) -> tuple[dict[int, Tensor], dict[int, ObjectMasks]]:
        """Each known object in this image, from its memory alone: conditioned features (d_model, h, w) and mask."""
        batches: dict[tuple[int, int], list[int]] = {}
        for object_id, bank in self._banks.items():
            batches.setdefault(bank.length, []).append(object_id)
        conditioned, masks = {}, {}
        for ids in batches.values():
            features = self.model.attend_memory(image, stack_memories([self._banks[i] for i in ids]))
            points, labels = self.model.no_points(len(ids))
            decoded = self.model.decode_masks(features, image, points, labels, multimask=True)
            chosen = self.model.choose_masks(decoded)
            for row, object_id in enumerate(ids):
                conditioned[object_id] = features[row]
                masks[object_id] = ObjectMasks(*(part[row] for part in chosen))
        return conditioned, {object_id: masks[object_id] for object_id in self._banks}

    def _prompt(self, image: ImageFeatures, prompt: Prompt, size: tuple[int, int], conditioned: Tensor | None,
                tracked: ObjectMasks | None) -> ObjectMasks:
        """One object as its prompt says: a new one without memory, a known one with its features and mask so far."""
        model = self.model
        if prompt.mask is not None:
            masks = model.adopt_masks(image, mask_to_model(model, prompt.mask))
        else:
            points, labels = prompt.as_points(*size, model.image_size)
            if tracked is None:
                features, previous = model.without_memory(image), None
            else:
                features = conditioned[None]
                previous = tracked.logits.clamp(-MAX_PROMPT_LOGIT, MAX_PROMPT_LOGIT)[None, None]
            decoded = model.decode_masks(
                features, image, torch.from_numpy(points)[None].to(model.device),
                torch.from_numpy(labels)[None].to(model.device), previous, multimask=len(points) <= 1)
            masks = model.choose_masks(decoded)
        return ObjectMasks(*(part[0] for part in masks))

    def _remember(self, image: ImageFeatures, ids: list[int], masks: ObjectMasks, prompted: dict[int, Prompt]) -> None:
        flags = torch.tensor([object_id in prompted for object_id in ids], device=self.model.device)
        memories = self.model.encode_memory(image, masks, flags)
        for object_id, memory, pointer in zip(ids, memories, masks.pointers, strict=True):
            if object_id not in self._banks:
                self._banks[object_id] = MemoryBank(self.model, self.max_conditioning_frames)
            self._banks[object_id].write(memory, pointer, object_id in prompted)


def _results(ids: list[int], masks: ObjectMasks, height: int, width: int) -> dict[int, ObjectResult]:
    pixels = to_image(masks.logits, height, width)
    iou, object_score = masks.iou.tolist(), masks.object_score.tolist()
    return {object_id: ObjectResult(pixels[row], masks.logits[row], mask_box(pixels[row]), iou[row], object_score[row])
            for row, object_id in enumerate(ids)}
