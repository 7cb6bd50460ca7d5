"""Results of frames on disk, as run lengths: memory does not grow with the length of a video."""
from __future__ import annotations

import json
import os
import struct
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np
import torch

from sam2_core.datasets import run_length
from sam2_core.tracker import FrameResult, ObjectResult

_PLACE = struct.Struct('<Q')  # of a frame in the file, plus 1; 0: the frame is not there


class ObjectRecord(NamedTuple):
    """One object in one frame."""

    counts: str  # run lengths, COCO's compressed text
    box: tuple[int, int, int, int] | None
    iou: float  # predicted, 0..1
    object_score: float  # logit
    area: int  # pixels

    def mask(self, height: int, width: int) -> np.ndarray:
        """Return the mask, bool (height, width)."""
        return run_length.decode(self.counts, height, width)


class FrameRecord(NamedTuple):
    """All objects of one frame; of a frame that cannot be read, the reason."""

    height: int
    width: int
    objects: dict[int, ObjectRecord]
    unreadable: str = ''

    def result(self) -> FrameResult:
        """Return the frame as a tracker returns it, but without logits: their tensor has the shape (0, 0)."""
        objects = {object_id: ObjectResult(item.mask(self.height, self.width), torch.zeros(0, 0), item.box, item.iou,
                                           item.object_score) for object_id, item in self.objects.items()}
        return FrameResult(objects, self.height, self.width)


def frame_record(result: FrameResult) -> FrameRecord:
    """Return the result of a tracker with its masks as run lengths."""
    objects = {object_id: ObjectRecord(run_length.encode(item.mask), item.box, item.iou, item.object_score,
                                            int(np.count_nonzero(item.mask)))
               for object_id, item in result.objects.items()}
    return FrameRecord(result.height, result.width, objects)


class FrameStore:
    """File with one line of JSON per frame, in any order, and a second file with the place of each frame."""

    def __init__(self, path: Path, size: int = 0) -> None:
        """Open a store and cut it off after ``size`` bytes, the value of ``size`` when it was last valid."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = _open(path)
        self._places = _open(path.with_suffix('.places'))
        present = os.fstat(self._file).st_size
        if present < size:
            raise ValueError(f'{path}: has {present} bytes, {size} were written; the disk has lost data: start again '
                             f'with --overwrite')
        os.ftruncate(self._file, size)
        self.size = size

    def append(self, frame: int, item: FrameRecord) -> None:
        """Write a frame."""
        content: list[Any] = [frame, item.height, item.width, item.unreadable,
                              {str(object_id): list(stored) for object_id, stored in item.objects.items()}]
        line = json.dumps(content, separators=(',', ':')).encode() + b'\n'
        _write(self._file, line, self.size)
        _write(self._places, _PLACE.pack(self.size + 1), frame * _PLACE.size)
        self.size += len(line)

    def read(self, frame: int) -> FrameRecord | None:
        """Return a frame, or None if it was not written."""
        packed = os.pread(self._places, _PLACE.size, frame * _PLACE.size)
        place = _PLACE.unpack(packed)[0] - 1 if len(packed) == _PLACE.size else -1
        if not 0 <= place < self.size:
            return None
        line = _read_line(self._file, place)
        number, height, width, unreadable, objects = json.loads(line)
        if number != frame:  # a place that was written before the file was cut off
            return None
        return FrameRecord(height, width, _objects(objects), unreadable)

    def flush(self) -> None:
        """Have the disk store what was written."""
        for file in (self._file, self._places):
            os.fsync(file)

    def close(self) -> None:
        """Close the files."""
        os.close(self._file)
        os.close(self._places)

    def __enter__(self) -> FrameStore:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()


def _objects(content: Mapping[str, list[Any]]) -> dict[int, ObjectRecord]:
    return {int(object_id): ObjectRecord(counts, None if box is None else (box[0], box[1], box[2], box[3]), *rest)
            for object_id, (counts, box, *rest) in content.items()}


def _open(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT, 0o644)


def _write(file: int, data: bytes, place: int) -> None:
    while data:
        written = os.pwrite(file, data, place)
        data, place = data[written:], place + written


def _read_line(file: int, place: int) -> bytes:
    parts: list[bytes] = []
    while not parts or b'\n' not in parts[-1]:
        part = os.pread(file, 1 << 16, place)
        if not part:
            break
        parts.append(part)
        place += len(part)
    return b''.join(parts).partition(b'\n')[0]
