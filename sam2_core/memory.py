"""What one object remembers, in tensors allocated once."""
from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from sam2_core.config import Sam2Config
from sam2_core.model import MEMORY_DTYPE, Memory, Sam2Model
from sam2_core.transfer import to_device


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

    def enter(self, frame: int, conditioning: bool) -> Tensor:
        """The row to write ``frame``, the newest, into; what the frame after it cannot look at is dropped."""
        slot = next(i for i in range(len(self.storage)) if i not in self._frames)
        self._frames[slot] = (frame, conditioning)
        needed = {k.slot for k in self.kept(frame + 1)}
        self._frames = {s: f for s, f in self._frames.items() if s in needed}
        return self.storage[slot]

    def copy(self, now: int, then: int) -> _Slots:
        """A copy as frame number ``then`` found it, before ``now``; conditioning frames since lie just before it."""
        chosen = {k.slot for k in self.kept(now) if k.conditioning}
        copied = _Slots(self.storage.clone(), self._max_conditioning, self._reach)
        copied._frames = {slot: (min(frame, then - 1), conditioning)
                          for slot, (frame, conditioning) in self._frames.items() if frame < then or slot in chosen}
        return copied


class MemoryShapes:
    """How many frames and pointers an object looks at, of an object prompted once and of any."""

    def __init__(self, config: Sam2Config, max_conditioning_frames: int) -> None:
        self.recent, self.pointers = config.memory_frames - 1, config.object_pointers - 1
        self.limit = max_conditioning_frames

    def complete(self, recent_frames: int | None = None) -> tuple[int, int]:
        """Frames and pointers of an object that was prompted once, long ago: nearly always."""
        return 1 + self._looked_at(recent_frames), 1 + self.pointers

    def longest(self, recent_frames: int | None = None) -> tuple[int, int]:
        """Frames and pointers of an object with as many conditioning frames as are kept."""
        return self.limit + self._looked_at(recent_frames), self.limit + self.pointers

    def _looked_at(self, recent_frames: int | None) -> int:
        return self.recent if recent_frames is None else min(recent_frames, self.recent)


class MemoryBank:
    """One object's memory: at most ``max_conditioning_frames`` + 6 frames, and as many + 15 pointers.

    Section 4 of the SAM 2 paper, "Memory bank". Size does not depend on how long the object has been tracked.
    """

    def __init__(self, model: Sam2Model, max_conditioning_frames: int) -> None:
        config, limit = model.config, max_conditioning_frames
        recent, pointers = MemoryShapes(config, limit).recent, MemoryShapes(config, limit).pointers
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
        write_memories([self], memory[None], pointer[None], [conditioning])

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


def write_memories(banks: Sequence[MemoryBank], memories: Tensor, pointers: Tensor,
                   conditioning: Sequence[bool]) -> None:
    """Remember the present frame in each bank: memories (B, tokens, memory_dim), pointers (B, d_model)."""
    frame_rows, pointer_rows = [], []
    for bank, flag in zip(banks, conditioning, strict=True):
        frame_rows.append(bank._frames.enter(bank._now, flag))
        pointer_rows.append(bank._pointers.enter(bank._now, flag))
        bank._now += 1
    torch._foreach_copy_(frame_rows, list(memories))
    torch._foreach_copy_(pointer_rows, list(pointers))


def stack_memories(banks: Sequence[MemoryBank], recent_frames: int | None = None,
                   length: tuple[int, int] | None = None) -> Memory:
    """The memories of several objects as one batch; at most so many recent frames of each.

    Pointers are never left out: one is 3 or 4 tokens, a frame is (S / 16)^2.
    length: frames and pointers each is filled up to, marked as not existing; None: all objects are equally long.
    """
    frames = [bank._attended(recent_frames) for bank in banks]
    pointers = [bank._pointers.kept(bank._now) for bank in banks]
    device = banks[0]._frames.storage.device
    slots = [[bank._conditioning_slot if k.conditioning else k.age - 1 for k in kept]
             for bank, kept in zip(banks, frames, strict=True)]
    ages = [[min(k.age, bank._max_pointer_distance) for k in kept]
            for bank, kept in zip(banks, pointers, strict=True)]
    exist: list[Tensor | None] = [None, None]
    if length is not None:
        exist = [to_device([[i < len(row) for i in range(full)] for row in rows], device)
                 for rows, full in zip((slots, ages), length, strict=True)]
        for rows, full in zip((slots, ages), length, strict=True):
            for row in rows:
                row.extend([0] * (full - len(row)))
    all_frames = _gathered([bank._frames.storage for bank in banks], frames, length and length[0])
    all_pointers = _gathered([bank._pointers.storage for bank in banks], pointers, length and length[1])
    return Memory(all_frames, to_device(slots, device), all_pointers, to_device(ages, device), *exist)


def _gathered(storages: list[Tensor], kept: list[list[_Kept]], length: int | None) -> Tensor:
    """The kept rows of each storage, (B, rows, ...), in one copy; filled up with what happens to be there."""
    views = [storage[k.slot] for storage, rows in zip(storages, kept, strict=True)
             for k in rows + rows[:1] * ((length or 0) - len(rows))]
    with torch.autocast(storages[0].device.type, enabled=False):  # which would refuse to copy another type than its own
        return torch.stack(views).unflatten(0, (len(storages), -1))
