"""What one object remembers, in tensors allocated once."""
from __future__ import annotations

import copy
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
        self._frames: dict[int, tuple[int, bool]] = {}  # slot -> (frame number, conditioning), from old to new

    def kept(self, now: int) -> list[_Kept]:
        """What frame number ``now`` may look at: conditioning frames, then the others, each from old to new."""
        prompted = [slot for slot, (_, conditioning) in self._frames.items() if conditioning]
        chosen = prompted[-self._max_conditioning:]
        kept = [_Kept(slot, now - frame, slot in chosen) for slot, (frame, _) in self._frames.items()
                if slot in chosen or now - frame <= self._reach]
        return sorted(kept, key=lambda k: not k.conditioning)

    def write(self, frame: int, conditioning: bool, value: Tensor) -> None:
        """Keep ``value`` of ``frame``, the newest, and drop what the frame after it cannot look at."""
        slot = next(i for i in range(len(self.storage)) if i not in self._frames)
        self.storage[slot] = value
        self._frames[slot] = (frame, conditioning)
        needed = {k.slot for k in self.kept(frame + 1)}
        self._frames = {s: f for s, f in self._frames.items() if s in needed}

    def copy(self, now: int, then: int) -> _Slots:
        """A copy as frame number ``then`` found it, before ``now``; conditioning frames since lie just before it."""
        chosen = {k.slot for k in self.kept(now) if k.conditioning}
        copied = _Slots(self.storage.clone(), self._max_conditioning, self._reach)
        copied._frames = {slot: (min(frame, then - 1), conditioning)
                          for slot, (frame, conditioning) in self._frames.items() if frame < then or slot in chosen}
        return copied


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

    def length(self, recent_frames: int | None = None) -> tuple[int, int]:
        """Frames and pointers there are to look at: objects of equal length can run as one batch."""
        return len(self._attended(recent_frames)), len(self._pointers.kept(self._now))

    def write(self, memory: Tensor, pointer: Tensor, conditioning: bool) -> None:
        """Remember the present frame: memory (tokens, memory_dim) and pointer (d_model,); the next frame begins."""
        self._frames.write(self._now, conditioning, memory)
        self._pointers.write(self._now, conditioning, pointer)
        self._now += 1

    def copy(self, frames_back: int = 0) -> MemoryBank:
        """A copy as it was ``frames_back`` frames ago, as far as that is still kept.

        Recent frames since then are dropped. Conditioning frames since then stay, as the newest before the present.
        """
        copied, then = copy.copy(self), self._now - frames_back
        copied._frames = self._frames.copy(self._now, then)
        copied._pointers = self._pointers.copy(self._now, then)
        copied._now = then
        return copied

    def _attended(self, recent_frames: int | None) -> list[_Kept]:
        """The conditioning frames, and the newest ``recent_frames`` of the others (None: all)."""
        kept = self._frames.kept(self._now)
        if recent_frames is None:
            return kept
        recent = sum(not k.conditioning for k in kept)
        first = len(kept) - recent
        return kept[:first] + kept[first + max(0, recent - recent_frames):]


def stack_memories(banks: Sequence[MemoryBank], recent_frames: int | None = None) -> Memory:
    """The memories of several objects, equally long, as one batch; at most so many recent frames of each.

    Pointers are never left out: one is 3 or 4 tokens, a frame is (S / 16)^2.
    """
    frames = [bank._attended(recent_frames) for bank in banks]
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
