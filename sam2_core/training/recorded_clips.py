"""Clips cut from recordings, for a fine-tuning run and its validation."""
from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from sam2_core.datasets.recordings import BrokenSample, Labelled, LabelledRecording, SkippedFiles
from sam2_core.training.augmentation import plain_view, random_view
from sam2_core.training.clips import Clip, NoUsableData

_WINDOWS = 6  # attempts to find a part of a recording that shows an object
_COPY = re.compile(r'\.rf\.[0-9A-Za-z]+$')  # end of the name of a copy
_PACES = (1, 1, 2, 3)  # 2: every second frame


class RecordedClips:
    """Numbered chunks of clips (see ``data.ClipSource``). Each epoch takes all recordings in a new order.

    Broken recordings are listed in ``skipped``, and the next one takes their place.
    """

    def __init__(self, recordings: Sequence[LabelledRecording], frames: int, size: int, skipped: SkippedFiles,
                 seed: int = 0, chunk: int = 1, augment: bool = True) -> None:
        """Raise ValueError if there are no recordings. frames: per clip; size: side of the clips in pixels."""
        if not recordings:
            raise ValueError('no recordings to cut clips from')
        self.recordings, self.frames, self.size, self.skipped = recordings, frames, size, skipped
        self.seed, self.chunk, self.augment = seed, chunk, augment
        self._epoch: tuple[int, np.ndarray] | None = None

    def __getitem__(self, number: int) -> list[Clip]:
        return [self.clip(number * self.chunk + i) for i in range(self.chunk)]

    def clip(self, number: int) -> Clip:
        """Return clip ``number`` of the run, always the same one. Raises NoUsableData if no recording can be read."""
        epoch, place = divmod(number, len(self.recordings))
        order = self._order(epoch)
        for attempt in range(len(order)):
            which = int(order[(place + attempt) % len(order)])
            try:
                return self._cut(self.recordings[which], np.random.default_rng((self.seed, number, attempt)))
            except BrokenSample as error:
                # The recording is tried again in the next epoch: other frames of it may be whole, and a choice that
                # depended on what this process has met would differ in another process.
                self.skipped.add(error)
        raise NoUsableData(f'none of the {len(order)} recordings can be used; see {self.skipped.path}')

    def _order(self, epoch: int) -> np.ndarray:
        if self._epoch is None or self._epoch[0] != epoch:
            self._epoch = epoch, np.random.default_rng((self.seed, epoch)).permutation(len(self.recordings))
        return self._epoch[1]

    def _cut(self, recording: LabelledRecording, rng: np.random.Generator) -> Clip:
        """Return a clip whose first frame shows an object. Raises BrokenSample if none is found."""
        for _ in range(_WINDOWS):
            frames = self._frames(len(recording), rng)
            stored = sorted(set(frames))
            read = recording.read(stored)
            place = {frame: i for i, frame in enumerate(stored)}
            for order in (frames, frames[::-1]):  # perhaps only the last frame shows an object
                labelled = Labelled([read.images[place[i]] for i in order], [read.masks[place[i]] for i in order])
                if not labelled.masks[0].any():
                    continue
                still = len(recording) == 1
                view = random_view(labelled, self.size, rng, still) if self.augment else plain_view(labelled, self.size)
                clip = view.clip(labelled, self.size)
                if clip.visible.any() and clip.visible[0].any():
                    return clip
        raise BrokenSample(recording.name, f'no object visible in the first frame of {_WINDOWS} clips '
                                           f'of {self.frames} frames')

    def _frames(self, length: int, rng: np.random.Generator) -> list[int]:
        """Draw the numbers of the frames: place, pace and direction. A short recording is played to and fro."""
        span = self.frames - 1
        pace = int(rng.choice([pace for pace in _PACES if span * pace < length] or [1])) if self.augment else 1
        if span * pace < length:
            start = int(rng.integers(length - span * pace))
            frames = list(range(start, start + span * pace + 1, pace))
        else:
            there_and_back = [*range(length), *range(length - 2, 0, -1)]
            frames = [there_and_back[i % len(there_and_back)] for i in range(self.frames)]
        return frames[::-1] if self.augment and rng.random() < 0.5 else frames


def split_recordings(recordings: Sequence[LabelledRecording],
                     share: float) -> tuple[list[LabelledRecording], list[LabelledRecording]]:
    """Return recordings for training and for validation, chosen by their names: data added later moves none over.

    share: share of the recordings for validation, at least 0 and below 1. Above 0, both lists have at least one of two
    or more recordings. Raises ValueError for another share.
    """
    if not 0 <= share < 1:
        raise ValueError(f'validation share {share}: must be at least 0 and below 1')
    drawn = [int.from_bytes(hashlib.sha256(_short(r.name).encode()).digest()[:8], 'big') / 2 ** 64 for r in recordings]
    held_out = {i for i, number in enumerate(drawn) if number < share}
    if share and not held_out and len(recordings) > 1:
        held_out = {min(range(len(drawn)), key=drawn.__getitem__)}
    if len(held_out) == len(recordings):
        held_out.discard(max(range(len(drawn)), key=drawn.__getitem__))
    return ([r for i, r in enumerate(recordings) if i not in held_out],
            [r for i, r in enumerate(recordings) if i in held_out])


def _short(name: str) -> str:
    """Return the end of a path, which is the same in any folder, and for all versions of one video or picture.

    Versions are both JSON files of a video of SA-V, and the augmented copies that Roboflow makes of a picture.
    """
    return _COPY.sub('', Path(name).stem.removesuffix('_manual').removesuffix('_auto'))
