"""Bookkeeping of ``sam2_track`` in its output folder: what was asked for, and how far it has come.

DIR/.sam2_track/settings.json        the request, and whether it is complete
DIR/.sam2_track/state.safetensors    progress and objects; replaced as a whole
DIR/.sam2_track/backward, forward    results as run lengths, one line per frame; removed when all is complete
"""
from __future__ import annotations

import fcntl
import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from sam2_core.files import replacing
from sam2_core.offline.frames import FrameSource
from sam2_core.offline.outputs import OUTPUTS
from sam2_core.offline.pictures import PictureFrames
from sam2_core.offline.prompts import VideoPrompt
from sam2_core.offline.video import VideoFrames, VideoIndex
from sam2_core.state_files import load_state, save_state
from sam2_core.tracker import StreamTracker
from sam2_core.tracker_state import TrackerStateError

BACKWARD, FORWARD, FILES = PHASES = 'backward', 'forward', 'files'
_FORMAT = 1  # of the files in the folder


@dataclass
class TrackProgress:
    """How far a run has come."""

    phase: str = BACKWARD  # one of PHASES
    done: int = 0  # frames of the phase
    sizes: dict[str, int] = field(default_factory=dict)  # of the stores, bytes
    unreadable: dict[str, str] = field(default_factory=dict)  # reasons by frame, numbers as text


class TrackFolder:
    """Output folder of ``sam2_track``."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.own = path / '.sam2_track'
        self._settings, self._state = self.own / 'settings.json', self.own / 'state.safetensors'
        self._index = self.own / 'frames.npz'

    def check_free(self) -> None:
        """Raise ValueError if the folder holds files of other programs."""
        if self.path.exists() and not self.path.is_dir():
            raise ValueError(f'output {self.path}: is a file; name a folder')
        if self.path.exists() and not self.own.exists():
            others = sorted(item.name for item in self.path.iterdir())
            if others:
                raise ValueError(f'output {self.path}: holds other files, such as {others[0]}; name a new folder')

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes from writing to the folder; raise ValueError if one does. A kill ends the lock."""
        self.own.mkdir(parents=True, exist_ok=True)
        with (self.own / 'lock').open('w') as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ValueError(f'output {self.path}: another sam2_track is writing to it; wait for it, or name '
                                 f'another folder') from None
            except OSError:  # some network drives have no locks
                pass
            yield

    def clear(self) -> None:
        """Remove the results of an earlier run."""
        if not self.own.exists():
            return
        (self.own / 'settings.json').unlink(missing_ok=True)  # killed meanwhile, the rest does not count as a run
        self._state.unlink(missing_ok=True)
        for name in OUTPUTS:
            place = self.path / name
            if place.is_dir():
                shutil.rmtree(place)
            else:
                place.unlink(missing_ok=True)
        for path in self.own.iterdir():
            if path.name != 'lock':
                path.unlink()

    def check(self, settings: Mapping[str, str]) -> bool:
        """Return whether a run with these settings is complete. Raises ValueError for a run with other settings."""
        if not self._settings.exists():
            return False
        try:
            content = json.loads(self._settings.read_text())
            before, complete = content['settings'], bool(content['complete'])
        except (ValueError, KeyError, TypeError):
            raise ValueError(f'{self._settings}: damaged; start again with --overwrite') from None
        changed = [f'{name} was {before.get(name, "unknown")}, is {value}' for name, value in settings.items()
                   if before.get(name) != value]
        if changed:
            raise ValueError(f'output {self.path} holds a run with other settings: {"; ".join(changed)}. Give the same '
                             f'to continue it, name another folder, or start again with --overwrite')
        return complete

    def write_settings(self, settings: Mapping[str, str], complete: bool = False) -> None:
        """Store the settings of the run."""
        self.own.mkdir(parents=True, exist_ok=True)
        with replacing(self._settings) as part:
            part.write_text(json.dumps({'settings': dict(settings), 'complete': complete}, indent=1))

    def store_path(self, phase: str) -> Path:
        """Return the file for the results of a phase."""
        return self.own / phase

    def load(self, tracker: StreamTracker) -> TrackProgress:
        """Return the progress that was saved last, and bring the objects back; a new one if nothing was saved.

        Raises ValueError if the state is damaged.
        """
        if not self._state.exists():
            return TrackProgress()
        try:
            state, notes = load_state(self._state)
            tracker.load_state_dict(state)
            return TrackProgress(**json.loads(notes['progress']))
        except (TrackerStateError, KeyError, TypeError) as error:
            raise ValueError(f'{error}; start again with --overwrite') from error

    def save(self, progress: TrackProgress, tracker: StreamTracker) -> None:
        """Store the progress and the objects, all at once."""
        save_state(self._state, tracker.state_dict(), {'progress': json.dumps(asdict(progress))})

    def finish(self, settings: Mapping[str, str]) -> None:
        """Mark the run as complete and remove what only a run in progress needs."""
        self.write_settings(settings, complete=True)
        for path in self.own.iterdir():
            if path != self._settings:
                path.unlink()

    def known_index(self, video: Path) -> VideoIndex | None:
        """Return the count of the frames of a video that was stored here, if the file is unchanged."""
        try:
            with np.load(self._index) as content:
                if content['stamp'].tolist() == _stamp(video):
                    return VideoIndex(content['times'], content['sums'])
        except (OSError, ValueError, KeyError, BadZipFile):
            pass
        return None

    def keep_index(self, video: VideoFrames) -> None:
        """Store the count of the frames of a video."""
        with replacing(self._index) as part, part.open('wb') as file:
            np.savez(file, times=video.index.times, sums=video.index.sums, stamp=np.array(_stamp(video.path)))


def fingerprint_frames(source: FrameSource) -> str:
    """Return a text that changes with the frames: for a video their pixels, for pictures their files."""
    digest = hashlib.sha256()
    if isinstance(source, VideoFrames):
        digest.update(source.index.sums.tobytes())
    elif isinstance(source, PictureFrames):
        for path in source.files():
            digest.update(f'{path.name} {_stamp(path)}\n'.encode())
    return f'{source.name}, {len(source)} frames, {digest.hexdigest()[:16]}'


def fingerprint_prompts(prompts: list[VideoPrompt]) -> str:
    """Return a text that changes with the prompts."""
    digest = hashlib.sha256()
    for item in prompts:
        prompt = item.prompt
        content: list[Any] = [item.frame, item.action, item.label, prompt.object_id]
        content += [None if part is None else np.asarray(part).tolist()
                    for part in (prompt.points, prompt.labels, prompt.box)]
        digest.update(json.dumps(content).encode())
        if prompt.mask is not None:
            digest.update(f'{prompt.mask.shape}'.encode() + np.packbits(prompt.mask).tobytes())
    return f'{len(prompts)} {"prompt" if len(prompts) == 1 else "prompts"}, {digest.hexdigest()[:16]}'


def _stamp(path: Path) -> list[int]:
    status = path.stat()
    return [status.st_size, status.st_mtime_ns]
