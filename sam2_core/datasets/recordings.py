"""What every data layout gives: recordings, which are read a few frames at a time and may turn out to be broken."""
from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

VISIBLE_PIXELS = 16  # an object of fewer pixels counts as not visible


class BrokenSample(ValueError):
    """A file that cannot be trained on. The run goes on without it."""

    def __init__(self, file: Path | str, reason: str) -> None:
        super().__init__(f'{file}: {reason}')
        self.file, self.reason = str(file), reason


class Labelled(NamedTuple):
    """Frames of one recording as they are stored, all of one size, with the same K objects in each."""

    images: list[np.ndarray]  # T times uint8 RGB (H, W, 3)
    masks: list[np.ndarray]  # T times bool (K, H, W); all False where an object is not visible


class LabelledRecording(Protocol):
    """A labelled video, or a labelled image (``len`` 1)."""

    name: str  # its file or folder, as the user knows it

    def __len__(self) -> int: ...

    def read(self, frames: Sequence[int]) -> Labelled:
        """The frames of these increasing numbers; BrokenSample where one cannot be read."""


class SkippedFiles:
    """The files left out, those that are doubtful, and why, in one file that all processes of a run append to."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._mine: set[tuple[str, bool]] = set()

    def clear(self) -> None:
        """Forget the files of an earlier start: they may have been mended."""
        self.path.unlink(missing_ok=True)
        self._mine.clear()

    def add(self, error: BrokenSample) -> None:
        """Note a file that is left out; once is enough."""
        self._write(error.file, error.reason, used=False)

    def leave_out(self, file: Path | str, reason: str) -> None:
        """Note a file that is left out."""
        self._write(str(file), reason, used=False)

    def doubt(self, file: Path | str, reason: str) -> None:
        """Note what a person should look at, though it is used."""
        self._write(str(file), reason, used=True)

    def _write(self, file: str, reason: str, used: bool) -> None:
        if (file, used) in self._mine:
            return
        self._mine.add((file, used))
        self.path.parent.mkdir(parents=True, exist_ok=True)
        line = json.dumps({'file': file, 'reason': reason} | ({'used': True} if used else {})) + '\n'
        handle = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(handle, line.encode())  # one write: lines of several processes do not mix
        finally:
            os.close(handle)

    def all(self) -> dict[str, str]:
        """File -> reason of what was left out, of all processes, in the order in which it was found."""
        return self._read(used=False)

    def doubts(self) -> dict[str, str]:
        """File -> reason of what is used and should be looked at."""
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
    """``labelled``, if its images and masks agree; BrokenSample naming ``file`` otherwise."""
    sizes = {image.shape[:2] for image in labelled.images} | {mask.shape[1:] for mask in labelled.masks}
    if len(sizes) != 1:
        text = ', '.join(f'{width}x{height}' for height, width in sorted(sizes))
        raise BrokenSample(file, f'images and masks differ in size: {text}')
    return labelled
