"""Clips whose images and label images are files in folders, as in DAVIS and in the validation set of SA-V."""
from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from sensor_msgs.msg import CompressedImage
from std_msgs.msg import Header

from sam2_core.datasets import BrokenSample
from sam2_core.datasets.image_files import check_orientation, read_labels
from sam2_core.files import OrderError, by_spelling, files_in, frames_in_order, not_one_sequence, other_spelling
from sam2_ros.recordings.dataset_clips import DatasetClip
from sam2_ros.recordings.recording import RecordingError

IMAGE_FORMATS = {'.jpg': 'jpeg', '.jpeg': 'jpeg', '.png': 'png'}  # suffix -> format of a CompressedImage
LABEL_SUFFIXES = {'.png'}


class ImageFiles:
    """Images of a folder in the order of the numbers in their names, sent as they are stored."""

    def __init__(self, folder: Path) -> None:
        """Raise RecordingError if the folder has no images, or if their order cannot be known."""
        self.paths = _ordered(folder, set(IMAGE_FORMATS))
        if not self.paths:
            raise RecordingError(f'data {folder}: no images in it: the clip needs {", ".join(IMAGE_FORMATS)} files '
                                 f'there')

    def __len__(self) -> int:
        return len(self.paths)

    def message(self, index: int, header: Header) -> CompressedImage:
        """Return an image with this header. Raises RecordingError if its file cannot be read."""
        path = self.paths[index]
        try:
            return CompressedImage(header=header, format=IMAGE_FORMATS[path.suffix.lower()], data=path.read_bytes())
        except OSError as error:
            raise RecordingError(f'image {path}: {error.strerror}') from None


class LabelFiles:
    """Label images of a clip: one of all objects (DAVIS), or one per object (SA-V), named after their image."""

    def __init__(self, images: ImageFiles, files: dict[str, dict[int, Path]]) -> None:
        """files: by the stem of the image's file, then by object; 0 stands for all objects."""
        self._images, self._files = images.paths, files
        self._size: tuple[int, int] | None = None  # known once a file was read

    def size(self) -> tuple[int, int]:
        """Return the height and width of the masks that were read."""
        if self._size is None:
            raise ValueError('size of label files: not known before masks are read; call masks() first')
        return self._size

    def masks(self, index: int) -> dict[int, np.ndarray] | None:
        """Return bool masks (H, W) by object, or None for an image without label file. Raises BrokenSample."""
        files = self._files.get(self._images[index].stem)
        if files is None:
            return None
        masks = {}
        for object_id, path in files.items():
            labels = read_labels(path)
            height, width = labels.shape
            if self._size not in (None, (height, width)):
                raise BrokenSample(path, f'labels of {width} x {height} pixels: must be {self.size()[1]} x '
                                         f'{self.size()[0]}, as those before')
            check_orientation(self._images[index], (height, width))
            self._size = height, width
            if object_id:
                if len(ids := np.unique(labels[labels > 0])) > 1:
                    raise BrokenSample(path, f'ids {", ".join(map(str, ids[:5]))}: must be the mask of one object')
                masks[object_id] = labels != 0
            else:
                masks |= {int(number): labels == number for number in np.unique(labels) if number}
        return masks


def label_files(folder: Path) -> list[Path]:
    """Return the label images of a folder in the order of their numbers; none if there is no such folder.

    Raises RecordingError if their order cannot be known.
    """
    return _ordered(folder, LABEL_SUFFIXES)


def _ordered(folder: Path, suffixes: set[str]) -> list[Path]:
    try:
        return frames_in_order(files_in(folder, suffixes)) if folder.is_dir() else []
    except (OrderError, OSError) as error:
        raise RecordingError(f'data {folder}: {error}') from None


def folder_clip(name: str, images: Path, labels: Path, files: dict[str, dict[int, Path]], rate: float) -> DatasetClip:
    """Return the clip of a folder of images with these label files (see ``LabelFiles``) from the folder ``labels``.

    Raises RecordingError if there is nothing to compare with.
    """
    if not files:
        raise RecordingError(f'data {labels}: no annotation in it: the clip needs PNG files there')
    found = ImageFiles(images)
    stems = [path.stem for path in found.paths]
    if not set(stems) & set(files):
        raise RecordingError(f'data {labels}: no file has the name of an image in {images}, such as {stems[0]}')
    clip = DatasetClip(name, found, LabelFiles(found, files), rate)
    if lost := [stem for stem in files if stem not in set(stems)]:
        clip.problems.append(f'{len(lost)} annotations have the name of no image, such as {lost[0]}'
                             f'{other_spelling(lost[0], by_spelling(stems))}')
    if reason := not_one_sequence(stems):
        clip.problems.append(f'the images of {images} may not be frames of one video: {reason}')
    return clip


def names_in_split(lists: Sequence[Path], folder: Path, split: str) -> list[str] | None:
    """Return the names that the list called ``split`` holds, or None if ``split`` is empty.

    Raises RecordingError unless exactly one of the lists has this name and each of its names is there once.
    """
    if not split:
        return None
    found = [path for path in lists if f'/{path.with_suffix("").as_posix()}'.endswith(f'/{split.removesuffix(".txt")}')]
    if len(found) != 1:
        known = ', '.join(str(path.relative_to(folder)) for path in found or lists) or 'none'
        raise RecordingError(f'split {split}: must be one of the lists in {folder}; there are {known}')
    names = [line.split()[0] for line in found[0].read_text().splitlines() if line.strip()]
    if len(set(names)) < len(names):
        twice = next(name for i, name in enumerate(names) if name in names[:i])
        raise RecordingError(f'split {found[0]}: {twice} is there twice: remove one')
    return names
