"""The stages a tracker runs, compiled: on a GPU the steady state is a few CUDA graphs.

A graph holds for one shape. So objects run in batches of a few sizes, filled up with copies of the last one, and
memories in two lengths (memory.MemoryShapes): complete, or filled up to the longest there is and masked. Objects come,
go and are corrected without anything being compiled or captured again once ``warm_up`` has been through all of them.
"""
from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from sam2_core.memory import MemoryShapes
from sam2_core.model import Sam2Model
from sam2_core.tensors import ABSENT_LOGIT, MEMORY_DTYPE, ImageFeatures, Memory, ObjectMasks

BATCHES = (1, 2, 4, 8, 16)  # sizes; beyond the last its multiples


def batch_size(objects: int) -> int:
    """The size of the batch in which so many objects run."""
    return next((size for size in BATCHES if objects <= size), -(-objects // BATCHES[-1]) * BATCHES[-1])


class CompiledStages:
    """``encode_image``, ``track_objects`` and ``encode_memory`` of a model, as there, but compiled.

    Results are copies: what a CUDA graph writes is overwritten by its next run.
    """

    def __init__(self, model: Sam2Model, backend: str = 'inductor') -> None:
        """``backend``: of torch.compile. ValueError for one that is not known."""
        known = torch.compiler.list_backends(None)
        if backend not in known:
            raise ValueError(f'compile {backend!r}: must be True, False or a backend: {", ".join(known)}')
        # 'reduce-overhead' is the mode with CUDA graphs
        options = {'mode': 'reduce-overhead'} if backend == 'inductor' and model.device.type == 'cuda' else {}
        self.model = model
        self._copies = bool(options)

        def compiled(function: Callable[..., Any], dynamic: bool) -> Callable[..., Any]:
            return torch.compile(function, backend=backend, dynamic=dynamic, **options)

        self._encode_image = compiled(model.encode_image, False)
        # batch and length are variables in the code, so that it is made once; each shape has a graph of its own
        self._track_objects = compiled(model.track_objects, True)
        self._encode_memory = compiled(model.encode_memory, True)

    def _own(self, tensors: Iterable[Tensor]) -> list[Tensor]:
        return [tensor.clone() if self._copies else tensor for tensor in tensors]

    def encode_image(self, images_bchw: Tensor) -> ImageFeatures:
        """As ``Sam2Model.encode_image``, image by image: how many come at once changes from time to time."""
        encoded = [self._own(self._encode_image(image)) for image in images_bchw.split(1)]
        return ImageFeatures(*(torch.cat(levels) for levels in zip(*encoded, strict=True)))

    def track_objects(self, image: ImageFeatures, memory: Memory) -> tuple[Tensor, ObjectMasks]:
        """As ``Sam2Model.track_objects``."""
        objects = len(memory.frames)
        filled_up = Memory(*(None if part is None else _filled_up(part) for part in memory))
        features, masks = self._track_objects(image, filled_up)
        features, *masks = self._own(part[:objects] for part in (features, *masks))
        return features, ObjectMasks(*masks)

    def encode_memory(self, image: ImageFeatures, masks: ObjectMasks, prompted: Tensor) -> Tensor:
        """As ``Sam2Model.encode_memory``."""
        memory = self._encode_memory(image, ObjectMasks(*(_filled_up(part) for part in masks)), _filled_up(prompted))
        return self._own([memory[:len(prompted)]])[0]

    @torch.inference_mode()
    def warm_up(self, objects: int, max_conditioning_frames: int = 4, recent_frames: Iterable[int | None] = (None,),
                show: Callable[[str], None] = lambda text: None) -> None:
        """Compile, and capture, everything that up to so many objects need. Takes minutes the first time.

        recent_frames: the values that ``StreamTracker.recent_frames`` will have. show: is told what comes next.
        """
        model, shapes = self.model, MemoryShapes(self.model.config, max_conditioning_frames)
        size = model.image_size
        show('image encoder')
        for _ in range(3):  # a graph is captured in the second or third run
            image = self.encode_image(torch.zeros(1, 3, size, size, device=model.device, dtype=model.dtype))
        for batch in sorted({batch_size(n) for n in range(1, objects + 1)}):
            show(f'batches of {batch}')
            masks = ObjectMasks(torch.full((batch, size // 4, size // 4), ABSENT_LOGIT, dtype=torch.float32,
                                           device=model.device),
                                *(torch.ones(batch, dtype=torch.float32, device=model.device) for _ in range(2)),
                                torch.zeros(batch, model.config.d_model, device=model.device, dtype=model.dtype))
            memories = [self._memory(batch, *length, masked) for recent in recent_frames
                        for length, masked in ((shapes.complete(recent), False), (shapes.longest(recent), True))]
            for _ in range(3):
                self.encode_memory(image, masks, torch.zeros(batch, dtype=torch.bool, device=model.device))
                for memory in memories:
                    self.track_objects(image, memory)

    def _memory(self, batch: int, frames: int, pointers: int, masked: bool) -> Memory:
        model, config = self.model, self.model.config
        exist = [torch.ones(batch, n, dtype=torch.bool, device=model.device) if masked else None
                 for n in (frames, pointers)]
        return Memory(
            torch.zeros(batch, frames, model.grid ** 2, config.memory_dim, dtype=MEMORY_DTYPE, device=model.device),
            torch.zeros(batch, frames, dtype=torch.int64, device=model.device),
            torch.zeros(batch, pointers, config.d_model, dtype=model.dtype, device=model.device),
            torch.ones(batch, pointers, dtype=torch.int64, device=model.device), *exist)


def _filled_up(rows: Tensor) -> Tensor:
    """As many rows as the batch has, the last one repeated."""
    missing = batch_size(len(rows)) - len(rows)
    return torch.cat((rows, rows[-1:].expand(missing, *rows.shape[1:]))) if missing else rows
