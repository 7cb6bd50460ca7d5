"""Lock of a file of kept objects, and the note in it of objects that have ended since the file was written."""
from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Mapping
from pathlib import Path

ROOM = 4096  # bytes that the note has on the disk from the start, so that it can be written when the disk is full
LARGEST = 4_194_304  # bytes of a note that is read


class KeptLock:
    """File beside a file of kept objects, locked as long as a node uses that.

    Its first line notes which objects have ended after which snapshot. It is written in place, before the end of an
    object is published, and takes microseconds, whereas the file of the objects may take seconds.
    """

    def __init__(self, path: Path) -> None:
        """Lock the file, and create it if there is none.

        Raises:
            BlockingIOError: Another node has locked it.
            OSError: It cannot be opened.
        """
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._descriptor: int | None = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self.close()
            raise
        self.series, self.ended = self._read()

    def write(self, series: str, ended: Mapping[int, int]) -> None:
        """Note for each object that has ended the number of the last snapshot that may have it. Raises OSError."""
        assert self._descriptor is not None, 'open'
        self.series, self.ended = series, dict(ended)
        text = json.dumps({'series': series, 'ended': [*map(list, ended.items())]}) + '\n'
        os.pwrite(self._descriptor, text.encode().ljust(ROOM), 0)

    def ended_since(self, series: str, number: int) -> set[int]:
        """Return the objects that have ended since a snapshot was taken."""
        return {object_id for object_id, last in self.ended.items() if series == self.series and last >= number}

    def close(self) -> None:
        """Unlock the file."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)

    def _read(self) -> tuple[str, dict[int, int]]:
        """Return what the first line says; a line that cannot be read says nothing."""
        assert self._descriptor is not None, 'open'
        try:
            note = json.loads(os.pread(self._descriptor, LARGEST, 0).split(b'\n')[0])
            return str(note['series']), {int(object_id): int(number) for object_id, number in note['ended']}
        except (OSError, ValueError, TypeError, KeyError, RecursionError):
            return '', {}
