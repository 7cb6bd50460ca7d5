"""Memory of one tracked object, in tensors of constant size."""
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
    foreseen: bool = False  # in a copy of the past: prompted after the moment of the copy


class _Kept(NamedTuple):
    slot: int
    age: int  # frames
    conditioning: bool


class StoredFrame(NamedTuple):
    """One row of a saved memory."""

    frame: int  # number of the frame, counted by the object
    conditioning: bool
    foreseen: bool


class BankState(NamedTuple):
    """Content of a memory bank: the rows that it uses, from old to new. The tensors are views of the bank."""

    now: int  # number of the present frame, counted by the object
    steps: tuple[int, ...]
    frames: list[StoredFrame]
    pointers: list[StoredFrame]
    frame_rows: Sequence[Tensor]  # (tokens, memory_dim) each
    pointer_rows: Sequence[Tensor]  # (d_model,) each


class _Slots:
    """Rows of one tensor, one per past frame: the newest conditioning frames, and all frames within ``reach``.

    Frames are dropped by the published rule (``max_cond_frames_in_attn``): a conditioning frame that is no longer among
    the newest counts as an ordinary frame while it is within reach. A foreseen frame is not one of the past frames of
    its copy, so it is dropped at once. Ordinary frames therefore differ in age, and there are at most ``reach``.

    Instances are immutable, but all versions share one tensor. Each version reads only the rows that it lists.
    """

    def __init__(self, storage: Tensor, max_conditioning: int, reach: int, rows: tuple[_Row, ...] = ()) -> None:
        self.storage = storage
        self.max_conditioning = max_conditioning
        self._reach = reach
        self._rows = rows  # from old to new

    def kept(self, now: int) -> list[_Kept]:
        """Return the frames that frame number ``now`` attends to: conditioning frames, then the others, old to new."""
        chosen = self._chosen(self._rows)
        conditioning: list[_Kept] = []
        others: list[_Kept] = []
        for slot, frame, _, foreseen in self._rows:
            if slot in chosen:
                conditioning.append(_Kept(slot, now - frame, True))
            elif now - frame <= self._reach and not foreseen:
                others.append(_Kept(slot, now - frame, False))
        return conditioning + others

    def enter(self, frame: int, conditioning: bool) -> tuple[Tensor, _Slots]:
        """Assign a free row to ``frame``, the newest, and drop the frames that the next frame cannot attend to.

        A row is always free, because the tensor has one row more than the frames that are kept.
        """
        taken = {row.slot for row in self._rows}
        slot = next(slot for slot in range(len(self.storage)) if slot not in taken)
        rows = (*self._rows, _Row(slot, frame, conditioning))
        return self.storage[slot], self._with(self.storage, rows, frame + 1)

    def copy(self, then: int) -> _Slots:
        """Return a copy as of frame number ``then``; later conditioning frames are placed just before that frame."""
        chosen = self._chosen(self._rows)
        rows = tuple(row if row.frame < then else row._replace(frame=then - 1, foreseen=True)
                     for row in self._rows if row.frame < then or row.slot in chosen)
        return self._with(self.storage.clone(), rows, then)

    def content(self) -> tuple[list[StoredFrame], list[Tensor]]:
        """Return the rows from old to new, without their slots, and views of their content."""
        return [StoredFrame(*row[1:]) for row in self._rows], [self.storage[row.slot] for row in self._rows]

    def filled(self, stored: Sequence[StoredFrame], values: Sequence[Tensor], now: int) -> _Slots:
        """Return slots, on the same tensor, with these rows; ``now``: number of the present frame.

        Raise ValueError for rows that no sequence of frames leaves.
        """
        rows = tuple(_Row(slot, *row) for slot, row in enumerate(stored))
        numbers = [row.frame for row in rows]
        others = [row.frame for row in rows if row.slot not in self._chosen(rows)]
        if (not any(row.conditioning for row in rows) or numbers != sorted(numbers) or numbers[-1] >= now
                or len(others) != len({*others}) or self._with(self.storage, rows, now)._rows != rows):
            raise ValueError(f'frames {numbers} before frame {now}: not those of a memory')
        for row, value in zip(rows, values, strict=True):
            self.storage[row.slot].copy_(value)
        return _Slots(self.storage, self.max_conditioning, self._reach, rows)

    def _chosen(self, rows: Sequence[_Row]) -> list[int]:
        return [row.slot for row in rows if row.conditioning][-self.max_conditioning:]

    def _with(self, storage: Tensor, rows: tuple[_Row, ...], now: int) -> _Slots:
        chosen, oldest = self._chosen(rows), now - self._reach
        return _Slots(storage, self.max_conditioning, self._reach, tuple(
            row for row in rows if row.slot in chosen or (row.frame >= oldest and not row.foreseen)))


class MemoryShapes:
    """Numbers of memory frames and object pointers that an object attends to."""

    def __init__(self, config: Sam2Config, max_conditioning_frames: int) -> None:
        self.recent, self.pointers = config.memory_frames - 1, config.object_pointers - 1
        self.limit = max_conditioning_frames

    def complete(self, recent_frames: int | None = None) -> tuple[int, int]:
        """Return frames and pointers of an object that was prompted once, long ago: the usual case."""
        return 1 + self._attended(recent_frames), 1 + self.pointers

    def longest(self, recent_frames: int | None = None) -> tuple[int, int]:
        """Return frames and pointers of an object with the maximum number of conditioning frames."""
        return self.limit + self._attended(recent_frames), self.limit + self.pointers

    def _attended(self, recent_frames: int | None) -> int:
        return self.recent if recent_frames is None else min(recent_frames, self.recent)


class MemoryBank:
    """Memory of one object: ``max_conditioning_frames`` + 6 frames and ``max_conditioning_frames`` + 15 pointers.

    Section 4 of the SAM 2 paper, "Memory bank". The size does not depend on how long the object has been tracked.
    """

    def __init__(self, config: Sam2Config, max_conditioning_frames: int, device: torch.device,
                 dtype: torch.dtype) -> None:
        """Allocate the memory of a new object.

        Args:
            config: Configuration of the model.
            max_conditioning_frames: Number of conditioning frames to keep; the newest are kept.
            device: Device of the model.
            dtype: Type of the object pointers; memory frames are stored in ``MEMORY_DTYPE``.
        """
        limit = max_conditioning_frames
        recent, pointers = MemoryShapes(config, limit).recent, MemoryShapes(config, limit).pointers
        # One more row than frames to attend to: the new frame is written before the oldest is dropped.
        frames = torch.zeros(limit + recent + 1, config.memory_tokens, config.memory_dim, dtype=MEMORY_DTYPE,
                             device=device)
        self._frames = _Slots(frames, limit, recent)
        self._pointers = _Slots(torch.zeros(limit + pointers + 1, config.d_model, dtype=dtype, device=device), limit,
                                pointers)
        self._max_pointer_distance = config.max_pointer_distance
        self._conditioning_slot = config.memory_frames - 1
        self._now = 0
        self._steps: tuple[int, ...] = ()  # image numbers of the newest frames

    @property
    def nbytes(self) -> int:
        """Size of the tensors in bytes."""
        return self._frames.storage.nbytes + self._pointers.storage.nbytes

    @property
    def steps(self) -> tuple[int, ...]:
        """Image numbers, as counted by the tracker, of the object's newest frames, from old to new."""
        return self._steps

    def length(self, recent_frames: int | None = None) -> tuple[int, int]:
        """Return the numbers of frames and pointers to attend to. Objects of equal length can share a batch."""
        return len(self._attended(recent_frames)), len(self._pointers.kept(self._now))

    def write(self, memory: Tensor, pointer: Tensor, conditioning: bool) -> None:
        """Store memory (tokens, memory_dim) and pointer (d_model,) of the present frame, and begin the next frame."""
        step = self._steps[-1] + 1 if self._steps else 0
        after, = write_memories([self], memory[None], pointer[None], [conditioning], step)
        vars(self).update(vars(after))

    def copy(self, frames_back: int = 0) -> MemoryBank:
        """Return a copy of the memory as of ``frames_back`` of the object's frames ago.

        Later recent frames are dropped. Later conditioning frames are kept, as the newest before the present. Frames
        that have already been dropped do not come back.
        """
        copied, then = self._version(), self._now - frames_back
        copied._frames = self._frames.copy(then)
        copied._pointers = self._pointers.copy(then)
        copied._now = then
        missing = frames_back - len(self._steps)
        if self._steps and missing >= 0:
            copied._steps = (self._steps[0] - missing - 1,)
        else:
            copied._steps = self._steps[:-missing]
        return copied

    def frames_since(self, step: int) -> int:
        """Return the number of the object's frames in image number ``step`` and later images.

        Images before the oldest known one count as one frame each.
        """
        since = sum(known >= step for known in self._steps)
        return since + max(0, self._steps[0] - step) if self._steps else since

    def placed(self, steps: Sequence[int]) -> MemoryBank:
        """Return the same memory with other image numbers for its newest frames."""
        placed = self._version()
        placed._steps = tuple(steps)
        return placed

    def state(self) -> BankState:
        """Return the content. Its tensors are views: copy them before the next frame is written."""
        (frames, frame_rows), (pointers, pointer_rows) = self._frames.content(), self._pointers.content()
        return BankState(self._now, self._steps, frames, pointers, frame_rows, pointer_rows)

    def filled(self, state: BankState) -> MemoryBank:
        """Return this bank, which must be new, with a saved content.

        Raise ValueError for a content that no sequence of frames leaves.
        """
        chosen = [[row for row in rows if row.conditioning][-self._frames.max_conditioning:]
                  for rows in (state.frames, state.pointers)]
        if chosen[0] != chosen[1]:
            raise ValueError('conditioning frames and their pointers differ')
        filled = self._version()
        filled._frames = self._frames.filled(state.frames, state.frame_rows, state.now)
        filled._pointers = self._pointers.filled(state.pointers, state.pointer_rows, state.now)
        filled._now, filled._steps = state.now, state.steps
        return filled

    def _attended(self, recent_frames: int | None) -> list[_Kept]:
        """Return the conditioning frames and the newest ``recent_frames`` of the others; None means all of them."""
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
        """Return free rows for the present frame's memory and pointer, and the bank that includes these rows."""
        after = self._version()
        frame_row, after._frames = self._frames.enter(self._now, conditioning)
        pointer_row, after._pointers = self._pointers.enter(self._now, conditioning)
        after._now = self._now + 1
        after._steps = (*self._steps, step)[-KNOWN_IMAGES:]
        return frame_row, pointer_row, after


def write_memories(banks: Sequence[MemoryBank], memories: Tensor, pointers: Tensor, conditioning: Sequence[bool],
                   step: int) -> list[MemoryBank]:
    """Write the present frame of several objects, and return the banks that include it.

    The given banks stay valid, since only rows that are free in them are written. A bank and its successor share
    their tensors, so write to one of them only.

    Args:
        banks: One bank per object.
        memories: (B, tokens, memory_dim).
        pointers: (B, d_model).
        conditioning: Per object, whether it was prompted in this frame.
        step: Number of the image, as counted by the tracker.
    """
    entered = [bank._enter(flag, step) for bank, flag in zip(banks, conditioning, strict=True)]
    frame_rows, pointer_rows, after = zip(*entered, strict=True)
    torch._foreach_copy_(frame_rows, list(memories))
    torch._foreach_copy_(pointer_rows, list(pointers))
    return list(after)


def stack_memories(banks: Sequence[MemoryBank], recent_frames: int | None = None,
                   length: tuple[int, int] | None = None) -> Memory:
    """Stack the memories of several objects into one batch.

    Args:
        banks: One bank per object, of equal length unless ``length`` is given.
        recent_frames: Maximum number of recent frames of each object; None means all of them. Pointers are always
            included: a pointer has 3 or 4 tokens, a frame hundreds.
        length: Numbers of frames and pointers to pad each object to; filler rows are marked as not existing.
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
    """Copy the kept rows of each storage into one tensor (B, rows, ...); repeat a row as filler up to ``length``."""
    views = [storage[k.slot] for storage, rows in zip(storages, kept, strict=True)
             for k in rows + rows[:1] * ((length or 0) - len(rows))]
    with torch.autocast(storages[0].device.type, enabled=False):  # it would refuse to stack other types than its own
        return torch.stack(views).unflatten(0, (len(storages), -1))
