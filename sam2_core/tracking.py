"""Parts of a tracker's step that need no state: batches of memories, prompts, and memories of new frames."""
from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from sam2_core.images import mask_to_model
from sam2_core.memory import MemoryBank, MemoryShapes, stack_memories
from sam2_core.model import Sam2Model
from sam2_core.prompts import Prompt, errors_of
from sam2_core.segmenter import MAX_PROMPT_LOGIT
from sam2_core.tensors import ImageFeatures, Memory, ObjectMasks
from sam2_core.transfer import to_device


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
