"""Memory of one tracked object, in tensors of constant size."""
from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from sam2_core.config import Sam2Config
from sam2_core.memory_policy import (
    NOTES,
    PUBLISHED,
    Attended,
    Kept,
    Kind,
    MemoryPolicy,
    MemorySizes,
    Past,
    Row,
    Write,
)
from sam2_core.tensors import MEMORY_DTYPE, Memory
from sam2_core.timeline import KNOWN_IMAGES
from sam2_core.transfer import to_device


class StoredFrame(NamedTuple):
    """One row of a saved memory."""

    frame: int  # number of the frame, counted by the object
    kind: Kind
    foreseen: bool


class BankState(NamedTuple):
    """Content of a memory bank: the rows that it uses, from old to new. The tensors are views of the bank."""

    now: int  # number of the present frame, counted by the object
    steps: tuple[int, ...]
    notes: tuple[tuple[int, int], ...]  # see memory_policy.Past
    frames: list[StoredFrame]
    pointers: list[StoredFrame]
    frame_rows: Sequence[Tensor]  # (tokens, memory_dim) each
    pointer_rows: Sequence[Tensor]  # (d_model,) each


class _Slots:
    """Rows of one tensor, one per past frame, from old to new.

    Instances are immutable, but all versions share one tensor. Each version reads only the rows that it lists.
    """

    def __init__(self, storage: Tensor, rows: tuple[Row, ...] = ()) -> None:
        self.storage = storage
        self.rows = rows

    def enter(self, frame: int, kind: Kind) -> tuple[Tensor, _Slots]:
        """Assign a free row to ``frame``, the newest.

        A row is always free, because the tensor has one row more than the frames that may stay. Raise ValueError if a
        policy has kept more.
        """
        taken = {row.slot for row in self.rows}
        slot = next((slot for slot in range(len(self.storage)) if slot not in taken), None)
        if slot is None:
            raise ValueError(f'a memory policy that keeps {len(taken)} frames or pointers: must keep at most '
                             f'{len(self.storage) - 1}; drop some in MemoryPolicy.keep')
        return self.storage[slot], _Slots(self.storage, (*self.rows, Row(slot, frame, kind)))

    def only(self, kept: Sequence[Kept]) -> _Slots:
        """Return the slots without the rows that are not kept."""
        slots = {one.slot for one in kept}
        return _Slots(self.storage, tuple(row for row in self.rows if row.slot in slots))

    def copy(self, then: int, prompted: Collection[int]) -> _Slots:
        """Return a copy as of frame number ``then``; later rows in ``prompted`` are placed just before that frame."""
        return _Slots(self.storage.clone(), tuple(
            row if row.frame < then else row._replace(frame=then - 1, foreseen=True)
            for row in self.rows if row.frame < then or row.slot in prompted))

    def content(self) -> tuple[list[StoredFrame], list[Tensor]]:
        """Return the rows from old to new, without their slots, and views of their content."""
        return [StoredFrame(*row[1:]) for row in self.rows], [self.storage[row.slot] for row in self.rows]


class MemoryShapes:
    """Numbers of memory frames and object pointers that an object attends to."""

    def __init__(self, config: Sam2Config, max_conditioning_frames: int, policy: MemoryPolicy = PUBLISHED) -> None:
        self.sizes = MemorySizes(max_conditioning_frames, config.memory_frames, config.object_pointers)
        self.policy = policy

    def complete(self, recent_frames: int | None = None) -> tuple[int, int]:
        """Return frames and pointers of an object that was prompted once, long ago: the usual case.

        With a policy that makes anchors, it has none: they take the places of recent frames only if these are limited.
        """
        return self._with(1, recent_frames)

    def longest(self, recent_frames: int | None = None) -> tuple[int, int]:
        """Return frames and pointers of an object with the maximum number of conditioning frames."""
        shared = self.policy.conditioning_frames
        return self._with(self.sizes.prompts if shared is None else self.sizes.conditioning(shared), recent_frames)

    def _with(self, conditioning: int, recent_frames: int | None) -> tuple[int, int]:
        recent = self.sizes.frames - 1
        if recent_frames is not None:
            recent = min(recent_frames, recent)
        if self.policy.conditioning_frames is None:
            return conditioning + recent, conditioning + self.sizes.pointers - 1
        return min(self.sizes.frames, conditioning + recent), self.sizes.pointers


class MemoryBank:
    """Memory of one object, in tensors whose size does not depend on how long the object has been tracked.

    Section 4 of the SAM 2 paper, "Memory bank". With the published policy, ``max_conditioning_frames`` + 6 frames and
    ``max_conditioning_frames`` + 15 pointers.
    """

    def __init__(self, config: Sam2Config, max_conditioning_frames: int, device: torch.device,
                 dtype: torch.dtype, policy: MemoryPolicy = PUBLISHED) -> None:
        """Allocate the memory of a new object.

        Args:
            config: Configuration of the model.
            max_conditioning_frames: Number of conditioning frames to keep; the newest are kept.
            device: Device of the model.
            dtype: Type of the object pointers; memory frames are stored in ``MEMORY_DTYPE``.
            policy: Rule of which frames are remembered.
        """
        shapes = MemoryShapes(config, max_conditioning_frames, policy)
        frames, pointers = shapes.longest()
        # One more row than frames to attend to: the new frame is written before the oldest is dropped.
        self._frames = _Slots(torch.zeros(frames + 1, config.memory_tokens, config.memory_dim, dtype=MEMORY_DTYPE,
                                          device=device))
        self._pointers = _Slots(torch.zeros(pointers + 1, config.d_model, dtype=dtype, device=device))
        self._max_pointer_distance = config.max_pointer_distance
        self._policy, self._sizes = policy, shapes.sizes
        self._attends = Attended([], [])  # all rows, in the order and with the codes of the policy
        self._now = 0
        self._notes: tuple[tuple[int, int], ...] = ()
        self._steps: tuple[int, ...] = ()  # image numbers of the newest frames

    @property
    def nbytes(self) -> int:
        """Size of the tensors in bytes."""
        return self._frames.storage.nbytes + self._pointers.storage.nbytes

    @property
    def steps(self) -> tuple[int, ...]:
        """Image numbers, as counted by the tracker, of the object's newest frames, from old to new."""
        return self._steps

    @property
    def past(self) -> Past:
        """Rows and notes, for the policy to decide about the present frame."""
        return Past(self._now, self._frames.rows, self._pointers.rows, self._notes, self._sizes)

    def length(self, recent_frames: int | None = None) -> tuple[int, int]:
        """Return the numbers of frames and pointers to attend to. Objects of equal length can share a batch."""
        return len(self._attended(recent_frames)), len(self._attends.pointers)

    def write(self, memory: Tensor, pointer: Tensor, conditioning: bool) -> None:
        """Store memory (tokens, memory_dim) and pointer (d_model,) of the present frame, and begin the next frame."""
        step = self._steps[-1] + 1 if self._steps else 0
        kind = Kind.PROMPT if conditioning else Kind.RECENT
        after, = write_memories([self], [Write(kind)], memory[None], pointer[None], step)
        vars(self).update(vars(after))

    def copy(self, frames_back: int = 0) -> MemoryBank:
        """Return a copy of the memory as of ``frames_back`` of the object's frames ago.

        Later tracked frames are dropped. Later conditioning frames are kept, as the newest before the present. Frames
        that have already been dropped do not come back.
        """
        then = self._now - frames_back
        missing = frames_back - len(self._steps)
        if self._steps and missing >= 0:
            steps: tuple[int, ...] = (self._steps[0] - missing - 1,)
        else:
            steps = self._steps[:-missing]
        frames, pointers = (slots.copy(then, _prompted(slots, attended)) for slots, attended in zip(
            (self._frames, self._pointers), self._attends, strict=True))
        return self._version(frames, pointers, then, tuple(note for note in self._notes if note[0] < then), steps)

    def frames_since(self, step: int) -> int:
        """Return the number of the object's frames in image number ``step`` and later images.

        Images before the oldest known one count as one frame each.
        """
        since = sum(known >= step for known in self._steps)
        return since + max(0, self._steps[0] - step) if self._steps else since

    def placed(self, steps: Sequence[int]) -> MemoryBank:
        """Return the same memory with other image numbers for its newest frames."""
        return self._version(self._frames, self._pointers, self._now, self._notes, tuple(steps))

    def state(self) -> BankState:
        """Return the content. Its tensors are views: copy them before the next frame is written."""
        (frames, frame_rows), (pointers, pointer_rows) = self._frames.content(), self._pointers.content()
        return BankState(self._now, self._steps, self._notes, frames, pointers, frame_rows, pointer_rows)

    def filled(self, state: BankState) -> MemoryBank:
        """Return this bank, which must be new, with a saved content.

        Raise ValueError for a content that no sequence of frames leaves.
        """
        frames, pointers = (_Slots(slots.storage, tuple(Row(slot, *row) for slot, row in enumerate(stored)))
                            for slots, stored in ((self._frames, state.frames), (self._pointers, state.pointers)))
        filled = self._version(frames, pointers, state.now, state.notes, state.steps)
        chosen = [_prompted(slots, attended)
                  for slots, attended in zip((frames, pointers), filled._attends, strict=True)]
        prompts = [[row[1:] for row in slots.rows if row.slot in prompted]
                   for slots, prompted in zip((frames, pointers), chosen, strict=True)]
        if prompts[0] != prompts[1]:
            raise ValueError('conditioning frames and their pointers differ')
        for slots, kept, prompted in zip((frames, pointers), (filled._frames, filled._pointers), chosen, strict=True):
            numbers = [row.frame for row in slots.rows]
            others = [row.frame for row in slots.rows if row.slot not in prompted]
            if (not prompted or numbers != sorted(numbers) or numbers[-1] >= state.now
                    or len(others) != len({*others}) or kept.rows != slots.rows):
                raise ValueError(f'frames {numbers} before frame {state.now}: not those of a memory')
        for slots, values in ((frames, state.frame_rows), (pointers, state.pointer_rows)):
            for row, value in zip(slots.rows, values, strict=True):
                slots.storage[row.slot].copy_(value)
        return filled

    def _attended(self, recent_frames: int | None) -> list[Kept]:
        """Return the conditioning frames and the newest ``recent_frames`` of the others; None means all of them."""
        kept = self._attends.frames
        if recent_frames is None:
            return kept
        recent = sum(not k.conditioning for k in kept)
        first = len(kept) - recent
        return kept[:first] + kept[first + max(0, recent - recent_frames):]

    def _version(self, frames: _Slots, pointers: _Slots, now: int, notes: tuple[tuple[int, int], ...],
                 steps: tuple[int, ...]) -> MemoryBank:
        """Return a bank with this content before frame number ``now``, less what the policy drops by then."""
        version = MemoryBank.__new__(MemoryBank)
        vars(version).update(vars(self))
        version._attends = self._policy.keep(Past(now, frames.rows, pointers.rows, notes, self._sizes))
        version._frames = frames.only(version._attends.frames)
        version._pointers = pointers.only(version._attends.pointers)
        version._now, version._notes, version._steps = now, notes, steps
        return version

    def _enter(self, write: Write, step: int) -> tuple[list[Tensor], MemoryBank]:
        """Return free rows for the present frame's memory and pointer, if they are written, and the next bank."""
        frames, pointers, notes, rows = self._frames, self._pointers, self._notes, []
        if write.kind is not None:
            frame_row, frames = frames.enter(self._now, write.kind)
            pointer_row, pointers = pointers.enter(self._now, write.kind)
            rows = [frame_row, pointer_row]
        if write.note is not None:
            notes = (*notes, (self._now, write.note))[-NOTES:]
        return rows, self._version(frames, pointers, self._now + 1, notes, (*self._steps, step)[-KNOWN_IMAGES:])


def _prompted(slots: _Slots, attended: Sequence[Kept]) -> set[int]:
    """Return the slots of the prompted rows that count as conditioning ones."""
    return {row.slot for row in slots.rows if row.kind is Kind.PROMPT} & {
        kept.slot for kept in attended if kept.conditioning}


def write_memories(banks: Sequence[MemoryBank], writes: Sequence[Write], memories: Iterable[Tensor],
                   pointers: Iterable[Tensor], step: int) -> list[MemoryBank]:
    """Write the present frame of several objects, and return the banks that include it.

    The given banks stay valid, since only rows that are free in them are written. A bank and its successor share
    their tensors, so write to one of them only.

    Args:
        banks: One bank per object.
        writes: Per object, whether and as what its frame is written.
        memories: (tokens, memory_dim) of each object that is written.
        pointers: (d_model,), likewise.
        step: Number of the image, as counted by the tracker.
    """
    entered = [bank._enter(write, step) for bank, write in zip(banks, writes, strict=True)]
    written = [rows for rows, _ in entered if rows]
    if written:
        frame_rows, pointer_rows = zip(*written, strict=True)
        torch._foreach_copy_(frame_rows, list(memories))
        torch._foreach_copy_(pointer_rows, list(pointers))
    return [after for _, after in entered]


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
    pointers = [bank._attends.pointers for bank in banks]
    device = banks[0]._frames.storage.device
    slots = [[k.code for k in kept] for kept in frames]
    ages = [[min(k.code, bank._max_pointer_distance) for k in kept]
            for bank, kept in zip(banks, pointers, strict=True)]
    age_type = torch.float32 if banks[0]._policy.fractional_ages else torch.int64
    exist: list[Tensor | None] = [None, None]
    if length is not None:
        exist = [to_device([[i < len(row) for i in range(full)] for row in rows], device)
                 for rows, full in zip((slots, ages), length, strict=True)]
        for rows, full in zip((slots, ages), length, strict=True):
            for row in rows:
                row.extend([0] * (full - len(row)))
    all_frames = _gathered([bank._frames.storage for bank in banks], frames, length and length[0])
    all_pointers = _gathered([bank._pointers.storage for bank in banks], pointers, length and length[1])
    return Memory(all_frames, to_device(slots, device, torch.int64), all_pointers, to_device(ages, device, age_type),
                  *exist)


def _gathered(storages: list[Tensor], kept: list[list[Kept]], length: int | None) -> Tensor:
    """Copy the kept rows of each storage into one tensor (B, rows, ...); repeat a row as filler up to ``length``."""
    views = [storage[k.slot] for storage, rows in zip(storages, kept, strict=True)
             for k in rows + rows[:1] * ((length or 0) - len(rows))]
    with torch.autocast(storages[0].device.type, enabled=False):  # it would refuse to stack other types than its own
        return torch.stack(views).unflatten(0, (len(storages), -1))
