"""Memory of one object, in tensors allocated once."""
from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from sam2_core.config import Sam2Config
from sam2_core.tensors import MEMORY_DTYPE, Memory
from sam2_core.timeline import KNOWN_IMAGES
from sam2_core.transfer import to_device


class _Row(NamedTuple):
    slot: int
    frame: int  # number of the frame, counted by the object
    conditioning: bool
    foreseen: bool = False  # prompted after the moment that a copy goes back to


class _Kept(NamedTuple):
    slot: int
    age: int  # frames
    conditioning: bool


class _Slots:
    """Rows of one tensor, one per past frame: the newest conditioning frames, and all frames within ``reach``.

    The published rule (`max_cond_frames_in_attn`): a conditioning frame that is no longer among the chosen ones counts
    as an ordinary frame while it is within reach. A foreseen one has no place among the frames of its copy and is
    dropped instead. So ordinary frames differ in age, and there are at most ``reach`` of them.

    Immutable, except that all versions of it share the tensor; a version reads only rows that it knows.
    """

    def __init__(self, storage: Tensor, max_conditioning: int, reach: int, rows: tuple[_Row, ...] = ()) -> None:
        self.storage = storage
        self._max_conditioning = max_conditioning
        self._reach = reach
        self._rows = rows  # from old to new

    def kept(self, now: int) -> list[_Kept]:
        """Return the frames that frame number ``now`` attends to: conditioning frames, then the others, old to new."""
        chosen, kept = self._chosen(self._rows), ([], [])
        for slot, frame, _, foreseen in self._rows:
            if slot in chosen:
                kept[0].append(_Kept(slot, now - frame, True))
            elif now - frame <= self._reach and not foreseen:
                kept[1].append(_Kept(slot, now - frame, False))
        return kept[0] + kept[1]

    def enter(self, frame: int, conditioning: bool) -> tuple[Tensor, _Slots]:
        """Give a free row to ``frame``, the newest, and drop the frames that its successor cannot attend to.

        There is a free row, because the tensor has one more than frames are kept.
        """
        taken = {row.slot for row in self._rows}
        slot = next(slot for slot in range(len(self.storage)) if slot not in taken)
        rows = (*self._rows, _Row(slot, frame, conditioning))
        return self.storage[slot], self._with(self.storage, rows, frame + 1)

    def copy(self, now: int, then: int) -> _Slots:
        """Return a copy at frame number ``then``, before ``now``; conditioning frames since then come just before it.
        """
        chosen = self._chosen(self._rows)
        rows = tuple(row if row.frame < then else row._replace(frame=then - 1, foreseen=True)
                     for row in self._rows if row.frame < then or row.slot in chosen)
        return self._with(self.storage.clone(), rows, then)

    def _chosen(self, rows: Sequence[_Row]) -> list[int]:
        return [row.slot for row in rows if row.conditioning][-self._max_conditioning:]

    def _with(self, storage: Tensor, rows: tuple[_Row, ...], now: int) -> _Slots:
        chosen, oldest = self._chosen(rows), now - self._reach
        return _Slots(storage, self._max_conditioning, self._reach, tuple(
            row for row in rows if row.slot in chosen or (row.frame >= oldest and not row.foreseen)))


class MemoryShapes:
    """Numbers of frames and pointers that an object attends to."""

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
    """Memory of one object: at most ``max_conditioning_frames`` + 6 frames, and as many + 15 pointers.

    Section 4 of the SAM 2 paper, "Memory bank". Its size does not depend on how long the object has been tracked.
    """

    def __init__(self, config: Sam2Config, max_conditioning_frames: int, device: torch.device,
                 dtype: torch.dtype) -> None:
        """Allocate the memory of a new object; ``dtype`` is that of its pointers."""
        limit = max_conditioning_frames
        recent, pointers = MemoryShapes(config, limit).recent, MemoryShapes(config, limit).pointers
        # one row more than is attended to: the new frame is written before the oldest is dropped
        frames = torch.zeros(limit + recent + 1, config.grid ** 2, config.memory_dim, dtype=MEMORY_DTYPE,
                             device=device)
        self._frames = _Slots(frames, limit, recent)
        self._pointers = _Slots(torch.zeros(limit + pointers + 1, config.d_model, dtype=dtype, device=device), limit,
                                pointers)
        self._max_pointer_distance = config.max_pointer_distance
        self._conditioning_slot = config.memory_frames - 1
        self._now = 0
        self._steps: tuple[int, ...] = ()  # numbers of the tracker's images that the newest frames belong to

    @property
    def nbytes(self) -> int:
        """Bytes of the tensors held."""
        return self._frames.storage.nbytes + self._pointers.storage.nbytes

    @property
    def steps(self) -> tuple[int, ...]:
        """Numbers of the tracker's images that the object's newest frames belong to, from old to new."""
        return self._steps

    def length(self, recent_frames: int | None = None) -> tuple[int, int]:
        """Return the numbers of frames and pointers to attend to: objects of equal length can run as one batch."""
        return len(self._attended(recent_frames)), len(self._pointers.kept(self._now))

    def write(self, memory: Tensor, pointer: Tensor, conditioning: bool) -> None:
        """Remember the present frame: memory (tokens, memory_dim) and pointer (d_model,); the next frame begins."""
        step = self._steps[-1] + 1 if self._steps else 0
        after, = write_memories([self], memory[None], pointer[None], [conditioning], step)
        vars(self).update(vars(after))

    def copy(self, frames_back: int = 0) -> MemoryBank:
        """Return a copy as it was ``frames_back`` of the object's own frames ago, as far as that is still kept.

        Recent frames since then are dropped. Conditioning frames since then stay, as the newest before the present.
        """
        copied, then = self._version(), self._now - frames_back
        copied._frames = self._frames.copy(self._now, then)
        copied._pointers = self._pointers.copy(self._now, then)
        copied._now = then
        missing = frames_back - len(self._steps)
        if self._steps and missing >= 0:
            copied._steps = (self._steps[0] - missing - 1,)
        else:
            copied._steps = self._steps[:-missing]
        return copied

    def frames_since(self, step: int) -> int:
        """Return how many of the object's frames belong to the tracker's image number ``step`` or a later one.

        Before the oldest image that is known, each image counts as one frame.
        """
        since = sum(known >= step for known in self._steps)
        return since + max(0, self._steps[0] - step) if self._steps else since

    def placed(self, steps: Sequence[int]) -> MemoryBank:
        """Return the same memory, whose newest frames belong to other images of the tracker."""
        placed = self._version()
        placed._steps = tuple(steps)
        return placed

    def _attended(self, recent_frames: int | None) -> list[_Kept]:
        """The conditioning frames, and the newest ``recent_frames`` of the others (None: all)."""
        kept = self._frames.kept(self._now)
        if recent_frames is None:
            return kept
        recent = sum(not k.conditioning for k in kept)
        first = len(kept) - recent
        return kept[:first] + kept[first + max(0, recent - recent_frames):]

    def _version(self) -> MemoryBank:
        version = MemoryBank.__new__(MemoryBank)
        vars(version).update(vars(self))
        return version

    def _enter(self, conditioning: bool, step: int) -> tuple[Tensor, Tensor, MemoryBank]:
        """Free rows for the memory and the pointer of the present frame, and the bank in which they are its own."""
        after = self._version()
        frame_row, after._frames = self._frames.enter(self._now, conditioning)
        pointer_row, after._pointers = self._pointers.enter(self._now, conditioning)
        after._now = self._now + 1
        after._steps = (*self._steps, step)[-KNOWN_IMAGES:]
        return frame_row, pointer_row, after


def write_memories(banks: Sequence[MemoryBank], memories: Tensor, pointers: Tensor, conditioning: Sequence[bool],
                   step: int) -> list[MemoryBank]:
    """Return the banks as they are after the present frame: memories (B, tokens, memory_dim), pointers (B, d_model).

    ``step``: number of the tracker's image. The given banks attend to what they attended to before: only rows that are
    free in them are written. They share their tensors with those that follow them, so use one or the other.
    """
    entered = [bank._enter(flag, step) for bank, flag in zip(banks, conditioning, strict=True)]
    frame_rows, pointer_rows, after = zip(*entered, strict=True)
    torch._foreach_copy_(frame_rows, list(memories))
    torch._foreach_copy_(pointer_rows, list(pointers))
    return list(after)


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
