"""Recordings with labels, which are read a few frames at a time, and the files that are skipped on the way."""
from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

VISIBLE_PIXELS = 16  # an object of fewer pixels counts as not visible


class BrokenSample(ValueError):
    """Error for a file that cannot be trained on. A run continues without the file."""

    def __init__(self, file: Path | str, reason: str) -> None:
        super().__init__(f'{file}: {reason}')
        self.file, self.reason = str(file), reason


class Labelled(NamedTuple):
    """Frames of one recording as they are stored, all of one size, with masks of the same K objects."""

    images: list[np.ndarray]  # T times uint8 RGB (H, W, 3)
    masks: list[np.ndarray]  # T times bool (K, H, W), all False for an object that is not visible


class LabelledRecording(Protocol):
    """A labelled video, or a labelled image (``len`` 1)."""

    name: str  # its file or folder, as the user knows it

    def __len__(self) -> int: ...

    def read(self, frames: Sequence[int]) -> Labelled:
        """Return the frames of these increasing numbers. Raises BrokenSample if one cannot be read."""


class SkippedFiles:
    """Record of the files that are skipped or doubtful, with reasons. All processes of a run append to one file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._mine: set[tuple[str, bool]] = set()

    def clear(self) -> None:
        """Forget the files of an earlier start, which may have been repaired."""
        self.path.unlink(missing_ok=True)
        self._mine.clear()

    def add(self, error: BrokenSample) -> None:
        """Record a broken file, once."""
        self._write(error.file, error.reason, used=False)

    def skip(self, file: Path | str, reason: str) -> None:
        """Record a file that is skipped."""
        self._write(str(file), reason, used=False)

    def doubt(self, file: Path | str, reason: str) -> None:
        """Record a file that is used, but that a person should check."""
        self._write(str(file), reason, used=True)

    def _write(self, file: str, reason: str, used: bool) -> None:
        if (file, used) in self._mine:
            return
        self._mine.add((file, used))
        self.path.parent.mkdir(parents=True, exist_ok=True)
        line = json.dumps({'file': file, 'reason': reason} | ({'used': True} if used else {})) + '\n'
        handle = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(handle, line.encode())  # one write, so that lines of several processes do not mix
        finally:
            os.close(handle)

    def all(self) -> dict[str, str]:
        """Return the reasons by skipped file, of all processes, in the order in which they were found."""
        return self._read(used=False)

    def doubts(self) -> dict[str, str]:
        """Return the reasons by file that is used and should be checked."""
        return self._read(used=True)

    def _read(self, used: bool) -> dict[str, str]:
        if not self.path.exists():
            return {}
        found: dict[str, str] = {}
        for line in self.path.read_text().splitlines():
            entry = json.loads(line)
            if entry.get('used', False) == used:
                found.setdefault(entry['file'], entry['reason'])
        return found


def same_sizes(file: Path | str, labelled: Labelled) -> Labelled:
    """Return ``labelled``. Raises BrokenSample for ``file`` unless images and masks have one size."""
    sizes = {image.shape[:2] for image in labelled.images} | {mask.shape[1:] for mask in labelled.masks}
    if len(sizes) != 1:
        text = ', '.join(f'{width}x{height}' for height, width in sorted(sizes))
        raise BrokenSample(file, f'images and masks differ in size: {text}')
    return labelled
