"""Data sets that trackers are compared on, as recordings: DAVIS folders and SA-V.

    DIR/JPEGImages/[480p/]<clip>/00000.jpg     DIR/Annotations/[480p/]<clip>/00000.png     DIR/ImageSets/[2017/]val.txt
    DIR/JPEGImages_24fps/<video>/00000.jpg     DIR/Annotations_6fps/<video>/<object>/00000.png     DIR/sav_val.txt
    DIR/.../sav_000001.mp4                     sav_000001_manual.json or sav_000001_auto.json beside it

The first is also the layout of YouTube-VOS and MOSE; the second is how SA-V's validation and test sets come, the third
how its training set does.
"""
from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from std_msgs.msg import Header

from sam2_core.datasets import BrokenSample
from sam2_core.datasets.davis import RESOLUTIONS
from sam2_core.datasets.image_files import check_orientation, read_labels
from sam2_core.datasets.sav import load_masklets, masklet_mask, open_video, video_of
from sam2_core.files import (
    Notice,
    OrderError,
    by_spelling,
    files_below,
    files_in,
    folders_below,
    frames_in_order,
    in_order,
    natural_key,
    not_one_sequence,
    other_spelling,
)
from sam2_ros.messages.conversions import from_pixels
from sam2_ros.recordings.recording import RecordedPrompt, RecordingError

RATE = 24.0  # images per second of DAVIS and of SA-V
START = 1_000_000_000  # ns, stamp of the first image: 0 would be none
_FORMATS = {'.jpg': 'jpeg', '.jpeg': 'jpeg', '.png': 'png'}


class Images(Protocol):
    """The images of a clip."""

    def __len__(self) -> int: ...

    def message(self, index: int, header: Header) -> Image | CompressedImage: ...


class Annotation(Protocol):
    """What is known of the images of a clip."""

    def size(self) -> tuple[int, int]:
        """Height and width of the masks."""

    def masks(self, index: int) -> dict[int, np.ndarray] | None:
        """Bool (H, W) by object; None: the image is not annotated. BrokenSample when a file cannot be read."""


class DatasetClip:
    """One clip of a data set, a ``Recording`` (``sam2_ros.recordings.recording``) at an even rate, without depth."""

    def __init__(self, name: str, images: Images, annotation: Annotation, rate: float = RATE) -> None:
        """rate: images per second."""
        if not rate > 0:
            raise RecordingError(f'rate {rate:g}: must be positive, images per second')
        self.name = name
        self.stamps = [START + round(i * 1e9 / rate) for i in range(len(images))]
        self.arrivals = self.stamps
        self.prompts: Sequence[RecordedPrompt] = []
        self.labels: dict[int, str] = {}
        self.problems: list[str] = []
        self._images, self._annotation = images, annotation

    def image(self, index: int) -> Image | CompressedImage:
        """The message, with a header. RecordingError when its file cannot be read."""
        header = Header(frame_id='camera')
        header.stamp.sec, header.stamp.nanosec = divmod(self.stamps[index], 1_000_000_000)
        return self._images.message(index, header)

    def depth(self, index: int) -> tuple[Image, CameraInfo] | None:
        """None: these data sets have none."""

    def masks(self, index: int) -> dict[int, np.ndarray] | None:
        """Bool (H, W) of the annotated objects, whole where they overlap; None: not annotated. RecordingError."""
        try:
            return self._annotation.masks(index)
        except BrokenSample as error:
            raise RecordingError(str(error)) from None

    def truth(self, index: int) -> np.ndarray | None:
        """uint16 (H, W): the id of the object a pixel belongs to, 0: none; None: the image is not annotated.

        Where objects overlap, as a shirt and who wears it, a pixel belongs to the smallest. RecordingError.
        """
        masks = self.masks(index)
        if masks is None:
            return None
        truth = np.zeros(self._annotation.size(), np.uint16)
        for object_id in sorted(masks, key=lambda key: np.count_nonzero(masks[key]), reverse=True):
            truth[masks[object_id]] = object_id
        return truth


class DavisFolder:
    """A folder in the layout of DAVIS; at 480p where it has several resolutions."""

    def __init__(self, folder: Path | str, split: str = '') -> None:
        """split: only the clips that ImageSets/.../SPLIT.txt names: ``val``, or ``2017/val`` where there are several.
        RecordingError."""
        folder = Path(folder)
        images, labels = folder / 'JPEGImages', folder / 'Annotations'
        for needed in (images, labels):
            if not needed.is_dir():
                raise RecordingError(f'data {folder}: no folder {needed.name}: give the one that has JPEGImages and '
                                     f'Annotations')
        resolution = next((name for name in RESOLUTIONS if (images / name).is_dir()), '')
        self._images, self._labels = images / resolution, labels / resolution
        self.problems: list[str] = []  # what is not evaluated, and why
        found = _folders_with(self._labels, {'.png'}, self.problems)
        if '.' in found:
            raise RecordingError(f'data {self._labels}: PNG files that lie in no folder of a clip: put the frames of '
                                 f'each video into a folder of its own, here and in {self._images}')
        listed = _split(files_below(folder / 'ImageSets', ('.txt',), _nothing), folder, split)
        self.names = listed or sorted(found, key=natural_key)
        bare = sorted(_folders_with(self._images, set(_FORMATS), self.problems) - found, key=natural_key)
        if bare and not listed:
            self.problems.append(f'{len(bare)} clips of {self._images} have no annotation: {", ".join(bare[:5])}')
        if not self.names:
            raise RecordingError(f'data {self._labels}: no PNG files in it: there is nothing to compare with')

    def clip(self, name: str, rate: float = RATE) -> DatasetClip:
        """One of ``names``. RecordingError when its files cannot be used."""
        labels = self._labels / name
        files = {path.stem: {0: path} for path in _label_files(labels)}
        return _folder_clip(name, self._images / name, labels, files, rate)


class SavFolder:
    """Videos of SA-V, as its validation set comes (folders of images) or its training set (mp4 and JSON).

    Of a video with manual and automatic masklets the manual ones are taken.
    """

    def __init__(self, folder: Path | str, split: str = '') -> None:
        """split: ``sav_val``, only the videos that the file of this name lists. RecordingError."""
        folder = Path(folder)
        self._images, self._labels = folder / 'JPEGImages_24fps', folder / 'Annotations_6fps'
        self.problems: list[str] = []  # what is not evaluated, and why
        self._files: dict[str, Path] = {}  # JSON by name; none where the videos are folders
        found: list[str] = []
        if self._images.is_dir() and self._labels.is_dir():
            found = [path.name for path in in_order(self._labels.iterdir())
                     if path.is_dir() and not path.name.startswith('.')]
        else:
            for path in files_below(folder, ('_manual.json', '_auto.json'), _noting(self.problems)):
                self._add(path)
            found = sorted(self._files, key=natural_key)
        if not found:
            raise RecordingError(f'data {folder}: neither JPEGImages_24fps with Annotations_6fps nor *_manual.json or '
                                 f'*_auto.json: give the folder that SA-V was unpacked to')
        self.names = _split(in_order(folder.glob('*.txt')), folder, split) or found

    def _add(self, path: Path) -> None:
        name, _, kind = path.stem.rpartition('_')
        other = self._files.get(name)
        if other is not None and other.stem.lower() == path.stem.lower():
            raise RecordingError(f'data {path}: {other} is of the same video: remove one')
        if other is None or kind.lower() == 'manual':
            self._files[name] = path

    def clip(self, name: str, rate: float = RATE) -> DatasetClip:
        """One of ``names``. RecordingError when its files cannot be used."""
        if not self._files:
            return _sav_folder(self._images / name, self._labels / name, rate)
        if name not in self._files:
            raise RecordingError(f'data {name}: no {name}_manual.json or {name}_auto.json')
        return _sav_video(self._files[name], rate)


# --- DAVIS, and SA-V as folders

def _nothing(path: Path, reason: str) -> None:
    """Take no notice of what cannot be read: a list that is not found is missed by its name."""


def _noting(problems: list[str]) -> Notice:
    return lambda path, reason: problems.append(f'{path}: {reason}')


def _folders_with(folder: Path, suffixes: set[str], problems: list[str]) -> set[str]:
    """Return the folders below one, as text, that have files with these suffixes."""
    return {str(place.relative_to(folder)) for place in folders_below(folder, _noting(problems))
            if files_in(place, suffixes)} if folder.is_dir() else set()


def _ordered(folder: Path, suffixes: set[str]) -> list[Path]:
    """Return the files of a folder in natural order; none if there is no such folder. RecordingError."""
    try:
        return frames_in_order(files_in(folder, suffixes)) if folder.is_dir() else []
    except (OrderError, OSError) as error:
        raise RecordingError(f'data {folder}: {error}') from None


def _label_files(folder: Path) -> list[Path]:
    return _ordered(folder, {'.png'})


class ImageFiles:
    """Images of a folder in the order of the numbers in their names, sent as they are stored."""

    def __init__(self, folder: Path) -> None:
        self.paths = _ordered(folder, set(_FORMATS))
        if not self.paths:
            raise RecordingError(f'data {folder}: no images in it: the clip needs {", ".join(_FORMATS)} files there')

    def __len__(self) -> int:
        return len(self.paths)

    def message(self, index: int, header: Header) -> CompressedImage:
        path = self.paths[index]
        try:
            return CompressedImage(header=header, format=_FORMATS[path.suffix.lower()], data=path.read_bytes())
        except OSError as error:
            raise RecordingError(f'image {path}: {error.strerror}') from None


class LabelFiles:
    """Label images: of all objects (DAVIS), or of one each (SA-V), by the stem of the image's file."""

    def __init__(self, images: ImageFiles, files: dict[str, dict[int, Path]]) -> None:
        """files: of each annotated image, by object; under 0 one with all of them."""
        self._images, self._files = images.paths, files
        self._size: tuple[int, int] | None = None

    def size(self) -> tuple[int, int]:
        return self._size

    def masks(self, index: int) -> dict[int, np.ndarray] | None:
        files = self._files.get(self._images[index].stem)
        if files is None:
            return None
        masks = {}
        for object_id, path in files.items():
            labels = read_labels(path)
            if labels.shape != (self._size or labels.shape):
                raise BrokenSample(path, f'labels of {labels.shape[1]} x {labels.shape[0]} pixels: must be '
                                         f'{self._size[1]} x {self._size[0]}, as those before')
            check_orientation(self._images[index], labels.shape)
            self._size = labels.shape
            if object_id:
                if len(ids := np.unique(labels[labels > 0])) > 1:
                    raise BrokenSample(path, f'ids {", ".join(map(str, ids[:5]))}: must be the mask of one object')
                masks[object_id] = labels != 0
            else:
                masks |= {int(number): labels == number for number in np.unique(labels) if number}
        return masks


def _sav_folder(images: Path, labels: Path, rate: float) -> DatasetClip:
    files: dict[str, dict[int, Path]] = {}
    folders: dict[int, Path] = {}
    for folder in in_order(path for path in labels.iterdir() if path.is_dir() and not path.name.startswith('.')) \
            if labels.is_dir() else ():
        if not re.fullmatch('[0-9]+', folder.name):
            raise RecordingError(f'data {folder}: must be the number of an object, as 000')
        number = int(folder.name) + 1
        if number in folders:
            raise RecordingError(f'data {folder}: {folders[number].name} is the same object: remove one')
        folders[number] = folder
        for path in _label_files(folder):
            files.setdefault(path.stem, {})[number] = path
    return _folder_clip(images.name, images, labels, files, rate)


def _folder_clip(name: str, images: Path, labels: Path, files: dict[str, dict[int, Path]], rate: float) -> DatasetClip:
    if not files:
        raise RecordingError(f'data {labels}: no annotation in it: the clip needs PNG files there')
    found = ImageFiles(images)
    stems = [path.stem for path in found.paths]
    if not set(stems) & set(files):
        raise RecordingError(f'data {labels}: no file has the name of an image in {images}, as {stems[0]}')
    clip = DatasetClip(name, found, LabelFiles(found, files), rate)
    if lost := [stem for stem in files if stem not in set(stems)]:
        clip.problems.append(f'{len(lost)} annotations have the name of no image, as {lost[0]}'
                             f'{other_spelling(lost[0], by_spelling(stems))}')
    if reason := not_one_sequence(stems):
        clip.problems.append(f'images of {images} may be no frames of one video: {reason}')
    return clip


def _split(lists: Sequence[Path], folder: Path, split: str) -> list[str] | None:
    """The names in the list that was asked for; None when none was."""
    if not split:
        return None
    found = [path for path in lists if f'/{path.with_suffix("").as_posix()}'.endswith(f'/{split.removesuffix(".txt")}')]
    if len(found) != 1:
        names = ', '.join(str(path.relative_to(folder)) for path in found or lists) or 'none'
        raise RecordingError(f'split {split}: must be one of the lists in {folder}; there are {names}')
    names = [line.split()[0] for line in found[0].read_text().splitlines() if line.strip()]
    if len(set(names)) < len(names):
        twice = next(name for i, name in enumerate(names) if name in names[:i])
        raise RecordingError(f'split {found[0]}: {twice} is there twice: remove one')
    return names


# --- SA-V as videos

class Video:
    """Frames of a video file. Fast in order; going back begins anew: seeking is not exact in every codec."""

    def __init__(self, path: Path, frames: int, size: tuple[int, int]) -> None:
        """size: height and width of the annotation."""
        self.path, self.frames, self.size = path, frames, size
        self._video: cv2.VideoCapture | None = None
        self._next = 0
        self._last: tuple[int, np.ndarray] | None = None

    def __len__(self) -> int:
        return self.frames

    def message(self, index: int, header: Header) -> Image:
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
                raise RecordingError(f'video {self.path}: ends after {self._next} frames, its annotation is of '
                                     f'{self.frames}')
            self._next += 1
        found, image = self._video.retrieve()
        if not found:
            raise RecordingError(f'video {self.path}: frame {index} cannot be decoded')
        return image


class MaskletFile:
    """Run lengths of a JSON file: of every fourth frame of the video."""

    def __init__(self, path: Path, video: Path) -> None:
        self.path = path
        masklets = load_masklets(path, video)
        self._masklets, self.step, self.doubt = masklets
        if masklets.size() is None:
            raise BrokenSample(path, 'no masks in it')
        self._size = masklets.size()

    @property
    def frames(self) -> int:
        """Of the video, as far as they are annotated."""
        return self.step * (len(self._masklets) - 1) + 1

    def size(self) -> tuple[int, int]:
        return self._size

    def masks(self, index: int) -> dict[int, np.ndarray] | None:
        step, rest = divmod(index, self.step)
        if rest or step >= len(self._masklets):
            return None
        return {number: masklet_mask(runs, self.path, step, self._size)
                for number, runs in enumerate(self._masklets[step], 1) if runs and runs.get('counts')}


def _sav_video(path: Path, rate: float) -> DatasetClip:
    try:
        video = video_of(path)
        masklets = MaskletFile(path, video)
    except BrokenSample as error:
        raise RecordingError(f'data {error}') from None
    clip = DatasetClip(video.stem, Video(video, masklets.frames, masklets.size()), masklets, rate)
    if masklets.doubt:
        clip.problems.append(masklets.doubt)
    return clip
