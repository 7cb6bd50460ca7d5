"""Memories of the rows of a training step, all of one length."""
from __future__ import annotations

import torch
from torch import Tensor

from sam2_core.model import Sam2Model
from sam2_core.tensors import ImageFeatures, Memory, ObjectMasks

CorrectionPlan = dict[int, list[tuple[str, slice]]]  # frame -> kinds of corrections, with the rows they are made in


class RowMemory:
    """Memories of all rows, read as from a ``MemoryBank``.

    Rows have equally many frames: a row with more prompted frames than others has fewer recent ones.
    """

    def __init__(self, model: Sam2Model, rows: int, plan: CorrectionPlan) -> None:
        self.model, self.rows = model, rows
        self.device = model.device
        self.conditioning = {0: torch.ones(rows, dtype=torch.bool, device=self.device)}
        for frame, runs in plan.items():
            flags = torch.zeros(rows, dtype=torch.bool, device=self.device)
            for _, run in runs:
                flags[run] = True
            self.conditioning[frame] = flags
        self.frames: list[Tensor] = []
        self.pointers: list[Tensor] = []
        # For half of the rows the first prompt counts as given long ago.
        long_ago = torch.rand(rows, device=self.device) < 0.5
        self.first_age = long_ago * torch.rand(rows, device=self.device) * model.config.max_pointer_distance * 1.2

    def write(self, t: int, image: ImageFeatures, masks: ObjectMasks) -> None:
        """Write the memory of frame ``t``; frames are written in order."""
        self.frames.append(self.model.encode_memory(image, masks, self._flags(t)))
        self.pointers.append(masks.pointers)

    def _flags(self, t: int) -> Tensor:
        none = torch.zeros(self.rows, dtype=torch.bool, device=self.device)
        return self.conditioning.get(t, none)

    def read(self, t: int) -> Memory:
        """Return the memory for frame ``t``."""
        config = self.model.config
        flags = torch.stack([self._flags(i) for i in range(t)], dim=1)  # (rows, t)
        age = (t - torch.arange(t, device=self.device)).expand(self.rows, t)
        frames, kept = self._newest(torch.stack(self.frames, dim=1), flags, age, config.memory_frames)
        slots = torch.where(flags.gather(1, kept), config.memory_frames - 1,
                            (age.gather(1, kept) - 1).clamp(max=config.memory_frames - 2))
        pointers, kept = self._newest(torch.stack(self.pointers, dim=1), flags, age, config.object_pointers)
        ages = age.gather(1, kept) + (kept == 0) * self.first_age[:, None]
        return Memory(frames, slots, pointers, ages.clamp(max=config.max_pointer_distance))

    def _newest(self, values: Tensor, flags: Tensor, age: Tensor, limit: int) -> tuple[Tensor, Tensor]:
        """Return the prompted and the newest other frames of each row, ``limit`` in all, and their numbers."""
        count = values.shape[1]
        if count <= limit:
            return values, torch.arange(count, device=self.device).expand(self.rows, count)
        kept = (flags * 1000 - age).topk(limit, dim=1).indices
        index = kept.view(*kept.shape, *[1] * (values.ndim - 2)).expand(-1, -1, *values.shape[2:])
        return values.gather(1, index), kept
