"""Data sets for training: DAVIS folders, SA-1B pictures, SA-V videos and COCO images. sam2_ros adds bags."""
from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from sam2_core.datasets import coco, davis, sa1b, sav
from sam2_core.datasets.recordings import BrokenSample, Labelled, LabelledRecording, SkippedFiles

__all__ = ['FORMATS', 'BrokenSample', 'Format', 'Labelled', 'LabelledRecording', 'SkippedFiles', 'open_recordings']


class Format(NamedTuple):
    """Layout of a data set."""

    matches: Callable[[Path], bool]
    find: Callable[[Path, SkippedFiles], Sequence[LabelledRecording]]
    layout: str  # described in a few words


FORMATS: Mapping[str, Format] = {
    'davis': Format(davis.matches, davis.find, 'JPEGImages/<clip>/*.jpg and Annotations/<clip>/*.png'),
    'sa1b': Format(sa1b.matches, sa1b.find, 'pictures with one *.json each, as SA-1B and Roboflow for SAM 2'),
    'sav': Format(sav.matches, sav.find, '*.mp4 with *_manual.json or *_auto.json beside it'),
    'coco': Format(coco.matches, coco.find, 'instances_*.json and images'),
}


def open_recordings(folder: Path, skipped: SkippedFiles, name: str = 'auto',
                    formats: Mapping[str, Format] = FORMATS) -> list[LabelledRecording]:
    """Return the recordings of a folder. Its layout is ``name`` of ``formats``; ``auto`` recognises it.

    ``folder`` may also be one JSON file of the layout coco. Raises FileNotFoundError if there is no such folder,
    ValueError if its layout is unknown or it holds no recording.
    """
    if folder.is_file() and folder.suffix.lower() == '.json' and name in ('auto', 'coco'):
        name = 'coco'
    elif not folder.is_dir():
        raise FileNotFoundError(f'data {folder}: no such folder')
    if name == 'auto':
        name = next((known for known, layout in formats.items() if layout.matches(folder)), '')
        if not name:
            layouts = '; '.join(f'{known}: {layout.layout}' for known, layout in formats.items())
            raise ValueError(f'data {folder}: unknown layout. Known layouts are {layouts}')
    recordings = list(formats[name].find(folder, skipped))
    if not recordings:
        raise ValueError(f'data {folder}: nothing to train on in the layout {name} ({formats[name].layout}); '
                         f'{len(skipped.all())} files were skipped, see {skipped.path}')
    return recordings
