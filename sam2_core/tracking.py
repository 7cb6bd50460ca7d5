"""Parts of a tracker's step that need no state: batches of memories, prompts, and memories of new frames."""
from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from sam2_core.images import mask_to_model
from sam2_core.memory import MemoryBank, MemoryShapes, stack_memories, write_memories
from sam2_core.memory_policy import Kind, MemoryPolicy, Write
from sam2_core.model import Sam2Model
from sam2_core.prompts import Prompt, errors_of
from sam2_core.segmenter import MAX_PROMPT_LOGIT
from sam2_core.tensors import ImageFeatures, Memory, ObjectMasks
from sam2_core.transfer import to_device, to_host


def batches(model: Sam2Model, banks: Mapping[int, MemoryBank], shapes: MemoryShapes,
            recent_frames: int | None) -> Iterator[tuple[list[int], Memory]]:
    """Yield objects with memories of equal length as one batch.

    For compiled stages, pad all memories that are not complete to the maximum length.
    """
    complete = shapes.complete(recent_frames)
    groups: dict[tuple[int, int] | None, list[int]] = {}
    for object_id, bank in banks.items():
        length = bank.length(recent_frames)
        to_pad = model.compiled is not None and length != complete
        groups.setdefault(None if to_pad else length, []).append(object_id)
    for group, ids in groups.items():
        yield ids, stack_memories([banks[i] for i in ids], recent_frames,
                                  shapes.longest(recent_frames) if group is None else None)


def track_by_memory(model: Sam2Model, image: ImageFeatures, banks: Mapping[int, MemoryBank], shapes: MemoryShapes,
                    recent_frames: int | None) -> tuple[dict[int, Tensor], dict[int, ObjectMasks], dict[int, Tensor]]:
    """Track all objects by their memories alone.

    Return conditioned features (d_model, h, w) and masks by id and, if the policy asks for them, the logits
    (M, S / 4, S / 4) that each mask was chosen of.
    """
    conditioned: dict[int, Tensor] = {}
    masks: dict[int, ObjectMasks] = {}
    candidates: dict[int, Tensor] = {}
    for ids, memory in batches(model, banks, shapes, recent_frames):
        if shapes.policy.candidates:
            features, chosen, logits = model.stages.track_candidates(image, memory)
            candidates.update(zip(ids, logits, strict=True))
        else:
            features, chosen = model.stages.track_objects(image, memory)
        for row, object_id in enumerate(ids):
            conditioned[object_id] = features[row]
            masks[object_id] = ObjectMasks(*(part[row] for part in chosen))
    return conditioned, {object_id: masks[object_id] for object_id in banks}, candidates


def apply_prompt(model: Sam2Model, image: ImageFeatures, prompt: Prompt, size: tuple[int, int],
                 tracked: tuple[Tensor, ObjectMasks] | None) -> ObjectMasks:
    """Return the mask of one object that is prompted in an image.

    Args:
        model: The model.
        image: Features of the image.
        prompt: The prompt, checked.
        size: Height and width of the image in pixels.
        tracked: Conditioned features (d_model, h, w) and mask of the object in this image; None for a new object.

    Raises:
        PromptError: The prompt cannot start an object, or its mask is too thin for the model.
    """
    with errors_of(prompt.object_id):
        if tracked is None:
            prompt.check_starts()
        mask = None if prompt.mask is None else mask_to_model(model, prompt.mask)
    if mask is not None:
        masks = model.adopt_masks(image, mask)
    else:
        points, labels = prompt.as_points(*size, model.image_size)
        if tracked is None:
            features, previous = model.without_memory(image), None
        else:
            conditioned, before = tracked
            features = conditioned[None]
            previous = before.logits.clamp(-MAX_PROMPT_LOGIT, MAX_PROMPT_LOGIT)[None, None]
        decoded = model.decode_masks(features, image, to_device(points, model.device)[None],
                                     to_device(labels, model.device)[None], previous, multimask=len(points) <= 1)
        masks = model.choose_masks(decoded)
    return ObjectMasks(*(part[0] for part in masks))


def encode_memories(model: Sam2Model, image: ImageFeatures, masks: ObjectMasks, prompted: list[bool]) -> Tensor:
    """Encode this frame's memory of each object; all absent objects without a prompt share the same memory.

    Only on a CPU are absent objects known without a device synchronisation, so elsewhere all are encoded.
    """
    device = masks.logits.device
    scores = masks.object_score.tolist() if device.type == 'cpu' and model.compiled is None else []
    absent = [row for row, score in enumerate(scores) if score <= 0 and not prompted[row]]
    if len(absent) < 2:
        return model.stages.encode_memory(image, masks, to_device(prompted, device))
    kept = [row for row in range(len(prompted)) if row not in absent[1:]]
    place = {row: i for i, row in enumerate(kept)}
    memories = model.stages.encode_memory(image, ObjectMasks(*(part[kept] for part in masks)),
                                          torch.tensor([prompted[row] for row in kept], device=device))
    return memories[[place.get(row, place[absent[0]]) for row in range(len(prompted))]]


def remember(model: Sam2Model, policy: MemoryPolicy, image: ImageFeatures, banks: Mapping[int, MemoryBank],
             masks: ObjectMasks, candidates: Mapping[int, Tensor], prompted: Collection[int],
             step: int) -> dict[int, MemoryBank]:
    """Return the banks including this image; the given ones stay valid.

    Args:
        model: The model.
        policy: Rule of which frames are remembered.
        image: Features of the image.
        banks: Memory of each object, by id.
        masks: Masks of all objects, in the same order.
        candidates: Logits that the masks of tracked objects were chosen of, if the policy asks for them.
        prompted: Ids of the objects that were prompted in the image.
        step: Number of the image, as counted by the tracker.
    """
    seen = SeenObjects(masks, [candidates.get(object_id) for object_id in banks])
    writes = [Write(Kind.PROMPT) if object_id in prompted else policy.write(bank.past, SeenObject(seen, row))
              for row, (object_id, bank) in enumerate(banks.items())]
    flags = [write.kind is Kind.PROMPT for write in writes if write.kind is not None]
    if 0 < len(flags) < len(banks):
        rows = to_device([row for row, write in enumerate(writes) if write.kind is not None], model.device)
        masks = ObjectMasks(*(part[rows] for part in masks))
    memories: Iterable[Tensor] = encode_memories(model, image, masks, flags) if flags else ()
    return dict(zip(banks, write_memories([*banks.values()], writes, memories, masks.pointers, step), strict=True))


class SeenObjects:
    """Objects in a new frame, as a memory policy sees them. Nothing is copied from the device before it is read."""

    def __init__(self, masks: ObjectMasks, candidates: Sequence[Tensor | None]) -> None:
        """Take the masks of B objects, and for each the logits (M, S / 4, S / 4) that its mask was chosen of."""
        self.masks, self.candidates = masks, candidates

    @cached_property
    def numbers(self) -> list[np.ndarray]:
        """Predicted IoU, object score and area of all objects, copied at once."""
        return to_host(self.masks.iou, self.masks.object_score, (self.masks.logits > 0).flatten(1).sum(dim=1))


class SeenObject:
    """Object in a new frame, as a memory policy sees it; see ``memory_policy.Seen``."""

    def __init__(self, objects: SeenObjects, row: int) -> None:
        self._objects, self._row = objects, row

    @property
    def iou(self) -> float:
        """Predicted IoU of the chosen mask, 0..1."""
        return float(self._objects.numbers[0][self._row])

    @property
    def object_score(self) -> float:
        """Logit; > 0: the object is visible."""
        return float(self._objects.numbers[1][self._row])

    @property
    def area(self) -> int:
        """Pixels of the chosen mask at S / 4."""
        return int(self._objects.numbers[2][self._row])

    def masks(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the chosen mask and all candidates, bool (S / 4, S / 4) and (M, S / 4, S / 4)."""
        candidates = self._objects.candidates[self._row]
        assert candidates is not None
        chosen, every = to_host(self._objects.masks.logits[self._row] > 0, candidates > 0)
        return chosen, every
