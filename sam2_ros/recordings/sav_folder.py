"""Folders of SA-V as recordings: its validation and test sets come as images, its training set as videos.

    DIR/JPEGImages_24fps/<video>/00000.jpg     DIR/Annotations_6fps/<video>/<object>/00000.png     DIR/sav_val.txt
    DIR/.../sav_000001.mp4                     sav_000001_manual.json or sav_000001_auto.json beside it

The text file lists videos by name.
"""
from __future__ import annotations

import re
from pathlib import Path

import cv2
import numpy as np
from sensor_msgs.msg import Image
from std_msgs.msg import Header

from sam2_core.datasets import BrokenSample
from sam2_core.datasets.sav import load_masklets, masklet_mask, open_video, video_of
from sam2_core.files import files_below, in_order, natural_key
from sam2_ros.messages.conversions import from_pixels
from sam2_ros.recordings.dataset_clips import RATE, DatasetClip
from sam2_ros.recordings.folder_clips import folder_clip, label_files, names_in_split
from sam2_ros.recordings.recording import RecordingError


class SavFolder:
    """Videos of SA-V, as folders of images or as mp4 with JSON. Of manual and automatic masklets the manual are read.

    names: names of the videos; problems: files that are not evaluated, with reasons.
    """

    def __init__(self, folder: Path | str, split: str = '') -> None:
        """List the videos. Raises RecordingError for a folder of another layout.

        split: read only the videos that the file SPLIT.txt lists, for example ``sav_val``.
        """
        folder = Path(folder)
        self._images, self._labels = folder / 'JPEGImages_24fps', folder / 'Annotations_6fps'
        self.problems: list[str] = []
        self._files: dict[str, Path] = {}  # JSON by name; empty if the videos are folders
        found: list[str] = []
        if self._images.is_dir() and self._labels.is_dir():
            found = [path.name for path in in_order(self._labels.iterdir())
                     if path.is_dir() and not path.name.startswith('.')]
        else:
            for path in files_below(folder, ('_manual.json', '_auto.json'),
                                    lambda path, reason: self.problems.append(f'{path}: {reason}')):
                self._add(path)
            found = sorted(self._files, key=natural_key)
        if not found:
            raise RecordingError(f'data {folder}: neither JPEGImages_24fps with Annotations_6fps nor *_manual.json or '
                                 f'*_auto.json: give the folder that SA-V was unpacked to')
        self.names = names_in_split(in_order(folder.glob('*.txt')), folder, split) or found

    def _add(self, path: Path) -> None:
        name, _, kind = path.stem.rpartition('_')
        other = self._files.get(name)
        if other is not None and other.stem.lower() == path.stem.lower():
            raise RecordingError(f'data {path}: {other} is of the same video: remove one')
        if other is None or kind.lower() == 'manual':
            self._files[name] = path

    def clip(self, name: str, rate: float = RATE) -> DatasetClip:
        """Return one of ``names``. Raises RecordingError if its files cannot be used."""
        if not self._files:
            return _image_clip(self._images / name, self._labels / name, rate)
        if name not in self._files:
            raise RecordingError(f'data {name}: no {name}_manual.json or {name}_auto.json')
        return _video_clip(self._files[name], rate)


def _image_clip(images: Path, labels: Path, rate: float) -> DatasetClip:
    """Return a video that is a folder of images, with a folder of label images for each object."""
    files: dict[str, dict[int, Path]] = {}
    folders: dict[int, Path] = {}
    for folder in in_order(path for path in labels.iterdir() if path.is_dir() and not path.name.startswith('.')) \
            if labels.is_dir() else ():
        if not re.fullmatch('[0-9]+', folder.name):
            raise RecordingError(f'data {folder}: must be the number of an object, such as 000')
        number = int(folder.name) + 1
        if number in folders:
            raise RecordingError(f'data {folder}: {folders[number].name} is the same object: remove one')
        folders[number] = folder
        for path in label_files(folder):
            files.setdefault(path.stem, {})[number] = path
    return folder_clip(images.name, images, labels, files, rate)


class Video:
    """Frames of a video file. Fast in order; a step back starts from the beginning, as seeking is not always exact."""

    def __init__(self, path: Path, frames: int, size: tuple[int, int]) -> None:
        """frames: number of frames that are used; size: height and width of the annotation."""
        self.path, self.frames, self.size = path, frames, size
        self._video: cv2.VideoCapture | None = None
        self._next = 0
        self._last: tuple[int, np.ndarray] | None = None

    def __len__(self) -> int:
        return self.frames

    def message(self, index: int, header: Header) -> Image:
        """Return a frame with this header. Raises RecordingError if it cannot be decoded."""
        if self._last is None or self._last[0] != index:
            self._last = index, self._read(index)
        return from_pixels(self._last[1], 'bgr8', header)

    def _read(self, index: int) -> np.ndarray:
        if self._video is None or index < self._next:
            try:
                self._video, self._next = open_video(self.path, self.size), 0
            except BrokenSample as error:
                raise RecordingError(f'video {error}') from None
        while self._next <= index:
            if not self._video.grab():
                raise RecordingError(f'video {self.path}: ends after {self._next} frames, its annotation covers '
                                     f'{self.frames}')
            self._next += 1
        found, image = self._video.retrieve()
        if not found:
            raise RecordingError(f'video {self.path}: frame {index} cannot be decoded')
        return image


class MaskletFile:
    """Run-length masks of a JSON file, one per object for every fourth frame of the video."""

    def __init__(self, path: Path, video: Path) -> None:
        """Read the file. Raises BrokenSample if it cannot be used, or has no masks."""
        self.path = path
        masklets = load_masklets(path, video)
        self._masklets, self.step, self.doubt = masklets
        size = masklets.size()
        if size is None:
            raise BrokenSample(path, 'no masks in it')
        self._size = size

    @property
    def frames(self) -> int:
        """Return the number of frames of the video up to the last that is annotated."""
        return self.step * (len(self._masklets) - 1) + 1

    def size(self) -> tuple[int, int]:
        """Return the height and width of the masks."""
        return self._size

    def masks(self, index: int) -> dict[int, np.ndarray] | None:
        """Return bool masks (H, W) by object, or None for a frame without annotation. Raises BrokenSample."""
        step, rest = divmod(index, self.step)
        if rest or step >= len(self._masklets):
            return None
        return {number: masklet_mask(runs, self.path, step, self._size)
                for number, runs in enumerate(self._masklets[step], 1) if runs and runs.get('counts')}


def _video_clip(path: Path, rate: float) -> DatasetClip:
    """Return a video with the masklets of a JSON file."""
    try:
        video = video_of(path)
        masklets = MaskletFile(path, video)
    except BrokenSample as error:
        raise RecordingError(f'data {error}') from None
    clip = DatasetClip(video.stem, Video(video, masklets.frames, masklets.size()), masklets, rate)
    if masklets.doubt:
        clip.problems.append(masklets.doubt)
    return clip
