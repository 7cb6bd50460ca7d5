"""What one object remembers, in tensors allocated once."""
from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from sam2_core.model import MEMORY_DTYPE, Memory, Sam2Model


class _Kept(NamedTuple):
    slot: int
    age: int  # frames
    conditioning: bool


class _Slots:
    """Rows of one tensor, each of one past frame: the newest conditioning frames, and all frames within ``reach``.

    The published rule (`max_cond_frames_in_attn`): a conditioning frame that is no longer among the chosen ones counts
    as an ordinary frame while it is within reach.
    """

    def __init__(self, storage: Tensor, max_conditioning: int, reach: int) -> None:
        self.storage = storage
        self._max_conditioning = max_conditioning
        self._reach = reach
        self._frames: dict[int, tuple[int, bool]] = {}  # slot -> (frame number, conditioning)

    def kept(self, now: int) -> list[_Kept]:
        """What frame number ``now`` may look at: conditioning frames, then the others from old to new."""
        by_age = sorted((now - frame, slot, conditioning) for slot, (frame, conditioning) in self._frames.items())
        chosen = [slot for _, slot, conditioning in by_age if conditioning][:self._max_conditioning]
        kept = [_Kept(slot, age, slot in chosen) for age, slot, _ in reversed(by_age)
                if slot in chosen or age <= self._reach]
        return sorted(kept, key=lambda k: not k.conditioning)

    def write(self, frame: int, conditioning: bool, value: Tensor) -> None:
        """Keep ``value`` of ``frame``, the newest, and drop what the frame after it cannot look at."""
        slot = next(i for i in range(len(self.storage)) if i not in self._frames)
        self.storage[slot] = value
        self._frames[slot] = (frame, conditioning)
        needed = {k.slot for k in self.kept(frame + 1)}
        self._frames = {s: f for s, f in self._frames.items() if s in needed}


class MemoryBank:
    """One object's memory: at most ``max_conditioning_frames`` + 6 frames, and as many + 15 pointers.

    Section 4 of the SAM 2 paper, "Memory bank". Size does not depend on how long the object has been tracked.
    """

    def __init__(self, model: Sam2Model, max_conditioning_frames: int) -> None:
        config, limit = model.config, max_conditioning_frames
        recent, pointers = config.memory_frames - 1, config.object_pointers - 1
        # one row more than can be looked at: it takes the new frame before the oldest is dropped
        frames = torch.zeros(limit + recent + 1, model.grid ** 2, config.memory_dim,
                             dtype=MEMORY_DTYPE, device=model.device)
        self._frames = _Slots(frames, limit, recent)
        self._pointers = _Slots(torch.zeros(limit + pointers + 1, config.d_model, dtype=model.dtype,
                                            device=model.device), limit, pointers)
        self._max_pointer_distance = config.max_pointer_distance
        self._conditioning_slot = config.memory_frames - 1
        self._now = 0

    @property
    def nbytes(self) -> int:
        """Bytes of the tensors held."""
        return self._frames.storage.nbytes + self._pointers.storage.nbytes

    @property
    def length(self) -> tuple[int, int]:
        """Frames and pointers there are to look at: objects of equal length can run as one batch."""
        return len(self._frames.kept(self._now)), len(self._pointers.kept(self._now))

    def write(self, memory: Tensor, pointer: Tensor, conditioning: bool) -> None:
        """Remember the present frame: memory (tokens, memory_dim) and pointer (d_model,); the next frame begins."""
        self._frames.write(self._now, conditioning, memory)
        self._pointers.write(self._now, conditioning, pointer)
        self._now += 1


def stack_memories(banks: Sequence[MemoryBank]) -> Memory:
    """The memories of several objects, equally long, as one batch."""
    frames = [bank._frames.kept(bank._now) for bank in banks]
    pointers = [bank._pointers.kept(bank._now) for bank in banks]
    device = banks[0]._frames.storage.device
    slots = [[bank._conditioning_slot if k.conditioning else k.age - 1 for k in kept]
             for bank, kept in zip(banks, frames, strict=True)]
    ages = [[min(k.age, bank._max_pointer_distance) for k in kept]
            for bank, kept in zip(banks, pointers, strict=True)]
    return Memory(
        torch.stack([b._frames.storage[[k.slot for k in kept]] for b, kept in zip(banks, frames, strict=True)]),
        torch.tensor(slots, device=device),
        torch.stack([b._pointers.storage[[k.slot for k in kept]] for b, kept in zip(banks, pointers, strict=True)]),
        torch.tensor(ages, device=device))
