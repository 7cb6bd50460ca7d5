"""Real data for training: DAVIS folders, SA-V, COCO images; bags join from sam2_ros."""
from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from sam2_core.training.datasets import coco, davis, sav
from sam2_core.training.datasets.clips import RecordedClips
from sam2_core.training.datasets.recordings import BrokenSample, Labelled, Recording, SkippedFiles

__all__ = ['FORMATS', 'BrokenSample', 'Format', 'Labelled', 'RecordedClips', 'Recording', 'SkippedFiles',
           'open_recordings', 'split_recordings']


class Format(NamedTuple):
    """A data layout."""

    matches: Callable[[Path], bool]
    find: Callable[[Path, SkippedFiles], Sequence[Recording]]
    layout: str  # in a few words


FORMATS: Mapping[str, Format] = {
    'davis': Format(davis.matches, davis.find, 'JPEGImages/<clip>/*.jpg and Annotations/<clip>/*.png'),
    'sav': Format(sav.matches, sav.find, '*.mp4 with *_manual.json or *_auto.json beside it'),
    'coco': Format(coco.matches, coco.find, 'instances_*.json and images'),
}


def open_recordings(folder: Path, skipped: SkippedFiles, name: str = 'auto',
                    formats: Mapping[str, Format] = FORMATS) -> list[Recording]:
    """Return what there is to train on in ``folder``, whose layout is ``name`` of ``formats``, or found out.

    ``folder`` may also be one JSON file of the layout coco. FileNotFoundError when there is no such folder; ValueError
    when its layout is not known or nothing is in it.
    """
    if folder.is_file() and folder.suffix.lower() == '.json' and name in ('auto', 'coco'):
        name = 'coco'
    elif not folder.is_dir():
        raise FileNotFoundError(f'data {folder}: no such folder')
    if name == 'auto':
        name = next((known for known, layout in formats.items() if layout.matches(folder)), None)
        if name is None:
            layouts = '; '.join(f'{known}: {layout.layout}' for known, layout in formats.items())
            raise ValueError(f'data {folder}: no layout that is known. {layouts}')
    recordings = list(formats[name].find(folder, skipped))
    if not recordings:
        raise ValueError(f'data {folder}: nothing to train on in the layout {name} ({formats[name].layout}); '
                         f'{len(skipped.all())} files were left out, see {skipped.path}')
    return recordings


def split_recordings(recordings: Sequence[Recording], share: float) -> tuple[list[Recording], list[Recording]]:
    """Training and validation. Who goes where depends on its name alone, so that added data moves nothing over.

    ``share``: of the recordings for validation, 0 to below 1; with more than one recording at least one, if not 0.
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
    """The end of a path: the same wherever the data lies, the same for both JSON files of a video."""
    return Path(name).stem.removesuffix('_manual').removesuffix('_auto')
