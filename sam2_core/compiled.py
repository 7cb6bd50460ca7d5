"""Compiled stages for trackers; on a GPU, tracking replays a few CUDA graphs.

A CUDA graph has fixed shapes. Objects therefore run in batches of a few sizes, padded with copies of the last object,
and memories in two lengths (``memory.MemoryShapes``): complete, or padded to the maximum and masked. After ``warm_up``
has run all these shapes, objects can be added, corrected and removed without compiling or capturing again.
"""
from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from sam2_core.memory import MemoryShapes
from sam2_core.memory_policy import MemoryPolicy, memory_policy_of
from sam2_core.model import Sam2Model
from sam2_core.tensors import ABSENT_LOGIT, MEMORY_DTYPE, ImageFeatures, Memory, ObjectMasks

BATCHES = (1, 2, 4, 8, 16)  # batch sizes, followed by the multiples of the last


def batch_size(objects: int) -> int:
    """Return the size of the batch for a number of objects."""
    return next((size for size in BATCHES if objects <= size), -(-objects // BATCHES[-1]) * BATCHES[-1])


class CompiledStages:
    """Compiled stages of a model, with the same results.

    Results are copies, because a CUDA graph overwrites its outputs at the next replay.
    """

    def __init__(self, model: Sam2Model, backend: str = 'inductor') -> None:
        """Wrap a model for a backend of ``torch.compile``; raise ValueError for an unknown backend."""
        known = torch.compiler.list_backends(None)
        if backend not in known:
            raise ValueError(f'compile {backend!r}: must be True, False or a backend: {", ".join(known)}')
        # The mode 'reduce-overhead' captures CUDA graphs.
        mode = 'reduce-overhead' if backend == 'inductor' and model.device.type == 'cuda' else None
        self.model = model
        self._copies = mode is not None

        def compiled(function: Callable[..., Any], dynamic: bool) -> Callable[..., Any]:
            return torch.compile(function, backend=backend, dynamic=dynamic, mode=mode)

        self._encode_image = compiled(model.encode_image, False)
        # Dynamic shapes: the code is compiled once, and each shape gets a CUDA graph of its own.
        self._track_objects = compiled(model.track_objects, True)
        self._track_candidates = compiled(model.track_candidates, True)
        self._encode_memory = compiled(model.encode_memory, True)

    def _own(self, tensors: Iterable[Tensor]) -> list[Tensor]:
        return [tensor.clone() if self._copies else tensor for tensor in tensors]

    def encode_image(self, images_bchw: Tensor) -> ImageFeatures:
        """Encode images as ``Sam2Model.encode_image`` does, one by one, because their number varies."""
        encoded = [self._own(self._encode_image(image)) for image in images_bchw.split(1)]
        return ImageFeatures(*(torch.cat(levels) for levels in zip(*encoded, strict=True)))

    def track_objects(self, image: ImageFeatures, memory: Memory) -> tuple[Tensor, ObjectMasks]:
        """Track objects as ``Sam2Model.track_objects`` does."""
        features, masks = self._track_objects(image, _padded_memory(memory))
        features, *own_masks = self._own(part[:len(memory.frames)] for part in (features, *masks))
        return features, ObjectMasks(*own_masks)

    def track_candidates(self, image: ImageFeatures, memory: Memory) -> tuple[Tensor, ObjectMasks, Tensor]:
        """Track objects as ``Sam2Model.track_candidates`` does."""
        features, masks, candidates = self._track_candidates(image, _padded_memory(memory))
        features, candidates, *own_masks = self._own(part[:len(memory.frames)]
                                                     for part in (features, candidates, *masks))
        return features, ObjectMasks(*own_masks), candidates

    def encode_memory(self, image: ImageFeatures, masks: ObjectMasks, prompted: Tensor) -> Tensor:
        """Encode memory frames as ``Sam2Model.encode_memory`` does."""
        memory = self._encode_memory(image, ObjectMasks(*(_padded(part) for part in masks)), _padded(prompted))
        return self._own([memory[:len(prompted)]])[0]

    @torch.inference_mode()
    def warm_up(self, objects: int, max_conditioning_frames: int = 4, recent_frames: Iterable[int | None] = (None,),
                show: Callable[[str], None] = lambda text: None,
                memory_policy: str | MemoryPolicy = 'published') -> None:
        """Compile and capture all shapes that up to ``objects`` objects need. The first time, this takes minutes.

        Args:
            objects: Maximum number of tracked objects.
            max_conditioning_frames: As given to ``StreamTracker``.
            recent_frames: All values that ``StreamTracker.recent_frames`` will have.
            show: Called with a description of each step before it starts.
            memory_policy: As given to ``StreamTracker``.
        """
        policy = memory_policy_of(memory_policy)
        model, shapes = self.model, MemoryShapes(self.model.config, max_conditioning_frames, policy)
        track = self.track_candidates if policy.candidates else self.track_objects
        size = model.image_size
        show('image encoder')
        for _ in range(3):  # a CUDA graph is captured in the second or third run
            image = self.encode_image(torch.zeros(1, 3, size, size, device=model.device, dtype=model.dtype))
        for batch in sorted({batch_size(n) for n in range(1, objects + 1)}):
            show(f'batches of {batch}')
            logits = torch.full((batch, size // 4, size // 4), ABSENT_LOGIT, dtype=torch.float32, device=model.device)
            iou, score = (torch.ones(batch, dtype=torch.float32, device=model.device) for _ in range(2))
            pointers = torch.zeros(batch, model.config.d_model, device=model.device, dtype=model.dtype)
            masks = ObjectMasks(logits, iou, score, pointers)
            lengths = dict.fromkeys(length for recent in recent_frames
                                    for length in ((shapes.complete(recent), False), (shapes.longest(recent), True)))
            memories = [self._memory(batch, *length, masked, policy) for length, masked in lengths]
            for _ in range(3):
                self.encode_memory(image, masks, torch.zeros(batch, dtype=torch.bool, device=model.device))
                for memory in memories:
                    track(image, memory)

    def _memory(self, batch: int, frames: int, pointers: int, masked: bool, policy: MemoryPolicy) -> Memory:
        model, config = self.model, self.model.config
        exist = [torch.ones(batch, n, dtype=torch.bool, device=model.device) if masked else None
                 for n in (frames, pointers)]
        return Memory(
            torch.zeros(batch, frames, config.memory_tokens, config.memory_dim, dtype=MEMORY_DTYPE,
                        device=model.device),
            torch.zeros(batch, frames, dtype=torch.int64, device=model.device),
            torch.zeros(batch, pointers, config.d_model, dtype=model.dtype, device=model.device),
            torch.ones(batch, pointers, dtype=torch.float32 if policy.fractional_ages else torch.int64,
                       device=model.device), *exist)


def _padded_memory(memory: Memory) -> Memory:
    return Memory._make(None if part is None else _padded(part) for part in memory)


def _padded(rows: Tensor) -> Tensor:
    """Return rows padded to the size of their batch with copies of the last row."""
    missing = batch_size(len(rows)) - len(rows)
    return torch.cat((rows, rows[-1:].expand(missing, *rows.shape[1:]))) if missing else rows
