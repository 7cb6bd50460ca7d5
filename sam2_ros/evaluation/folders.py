"""Data sets that trackers are compared on, as recordings: DAVIS folders and SA-V.

    DIR/JPEGImages/[480p/]<clip>/00000.jpg     DIR/Annotations/[480p/]<clip>/00000.png     DIR/ImageSets/[2017/]val.txt
    DIR/JPEGImages_24fps/<video>/00000.jpg     DIR/Annotations_6fps/<video>/<object>/00000.png     DIR/sav_val.txt
    DIR/.../sav_000001.mp4                     sav_000001_manual.json or sav_000001_auto.json beside it

The first is also the layout of YouTube-VOS and MOSE; the second is how SA-V's validation and test sets come, the third
how its training set does.
"""
from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from std_msgs.msg import Header

from sam2_core.training.datasets import BrokenSample
from sam2_core.training.datasets.pictures import read_labels
from sam2_core.training.datasets.sav import load_masklets, masklet_mask
from sam2_ros.conversions import from_pixels
from sam2_ros.evaluation.recording import RecordedPrompt, RecordingError

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
    """One clip of a data set, a ``Recording`` (``sam2_ros.evaluation.recording``) at an even rate, without depth."""

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
        resolution = next((name for name in ('480p', 'Full-Resolution', '1080p') if (images / name).is_dir()), '')
        self._images, self._labels = images / resolution, labels / resolution
        self.names = _split(sorted((folder / 'ImageSets').rglob('*.txt')), folder, split) or sorted(
            {str(path.parent.relative_to(self._labels)) for path in self._labels.rglob('*.png')})
        if not self.names:
            raise RecordingError(f'data {self._labels}: no PNG files in it: there is nothing to compare with')

    def clip(self, name: str, rate: float = RATE) -> DatasetClip:
        """One of ``names``. RecordingError when its files cannot be used."""
        labels = self._labels / name
        files = {path.stem: {0: path} for path in sorted(labels.glob('*.png'))}
        return _folder_clip(name, self._images / name, labels, files, rate)


class SavFolder:
    """Videos of SA-V, as its validation set comes (folders of images) or its training set (mp4 and JSON).

    Of a video with manual and automatic masklets the manual ones are taken.
    """

    def __init__(self, folder: Path | str, split: str = '') -> None:
        """split: ``sav_val``, only the videos that the file of this name lists. RecordingError."""
        folder = Path(folder)
        self._images, self._labels = folder / 'JPEGImages_24fps', folder / 'Annotations_6fps'
        self._files: dict[str, Path] = {}  # JSON by name; none where the videos are folders
        if self._images.is_dir() and self._labels.is_dir():
            found = sorted(path.name for path in self._labels.iterdir() if path.is_dir())
        else:
            for path in [*sorted(folder.rglob('*_manual.json')), *sorted(folder.rglob('*_auto.json'))]:
                self._files.setdefault(path.stem.rsplit('_', 1)[0], path)
            found = sorted(self._files)
        if not found:
            raise RecordingError(f'data {folder}: neither JPEGImages_24fps with Annotations_6fps nor *_manual.json or '
                                 f'*_auto.json: give the folder that SA-V was unpacked to')
        self.names = _split(sorted(folder.glob('*.txt')), folder, split) or found

    def clip(self, name: str, rate: float = RATE) -> DatasetClip:
        """One of ``names``. RecordingError when its files cannot be used."""
        if not self._files:
            return _sav_folder(self._images / name, self._labels / name, rate)
        if name not in self._files:
            raise RecordingError(f'data {name}: no {name}_manual.json or {name}_auto.json')
        return _sav_video(self._files[name], rate)


# --- DAVIS, and SA-V as folders

class ImageFiles:
    """Images of a folder in the order of their names, sent as they are stored."""

    def __init__(self, folder: Path) -> None:
        self.paths = sorted(path for path in folder.glob('*') if path.suffix.lower() in _FORMATS)
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
        self._stems, self._files = [path.stem for path in images.paths], files
        self._size: tuple[int, int] | None = None

    def size(self) -> tuple[int, int]:
        return self._size

    def masks(self, index: int) -> dict[int, np.ndarray] | None:
        files = self._files.get(self._stems[index])
        if files is None:
            return None
        masks = {}
        for object_id, path in files.items():
            labels = read_labels(path)
            if labels.shape != (self._size or labels.shape):
                raise BrokenSample(path, f'labels of {labels.shape[1]} x {labels.shape[0]} pixels: must be '
                                         f'{self._size[1]} x {self._size[0]}, as those before')
            self._size = labels.shape
            if object_id:
                masks[object_id] = labels != 0
            else:
                masks |= {int(number): labels == number for number in np.unique(labels) if number}
        return masks


def _sav_folder(images: Path, labels: Path, rate: float) -> DatasetClip:
    files: dict[str, dict[int, Path]] = {}
    for path in sorted(labels.glob('*/*.png')):
        if not path.parent.name.isdigit():
            raise RecordingError(f'data {path.parent}: must be the number of an object, as 000')
        files.setdefault(path.stem, {})[int(path.parent.name) + 1] = path
    return _folder_clip(images.name, images, labels, files, rate)


def _folder_clip(name: str, images: Path, labels: Path, files: dict[str, dict[int, Path]], rate: float) -> DatasetClip:
    if not files:
        raise RecordingError(f'data {labels}: no annotation in it: the clip needs PNG files there')
    found = ImageFiles(images)
    if not {path.stem for path in found.paths} & set(files):
        raise RecordingError(f'data {labels}: no file has the name of an image in {images}, as {found.paths[0].stem}')
    return DatasetClip(name, found, LabelFiles(found, files), rate)


def _split(lists: Sequence[Path], folder: Path, split: str) -> list[str] | None:
    """The names in the list that was asked for; None when none was."""
    if not split:
        return None
    found = [path for path in lists if f'/{path.with_suffix("").as_posix()}'.endswith(f'/{split.removesuffix(".txt")}')]
    if len(found) != 1:
        names = ', '.join(str(path.relative_to(folder)) for path in found or lists) or 'none'
        raise RecordingError(f'split {split}: must be one of the lists in {folder}; there are {names}')
    return [line.split()[0] for line in found[0].read_text().splitlines() if line.strip()]


# --- SA-V as videos

class Video:
    """Frames of a video file. Fast in order; going back begins anew: seeking is not exact in every codec."""

    def __init__(self, path: Path, frames: int) -> None:
        self.path, self.frames = path, frames
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
            self._video, self._next = cv2.VideoCapture(str(self.path)), 0
            if not self._video.isOpened():
                raise RecordingError(f'video {self.path}: cannot be decoded')
        while self._next <= index:
            if not self._video.grab():
                raise RecordingError(f'video {self.path}: ends after {self._next} frames, its annotation is of '
                                     f'{self.frames}')
            self._next += 1
        found, image = self._video.retrieve()
        if not found:
            raise RecordingError(f'video {self.path}: frame {index} cannot be decoded')
        return image


class Masklets:
    """Run lengths of a JSON file: of every fourth frame of the video."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._masklets, self.step = load_masklets(path)
        sizes = [runs['size'] for frame in self._masklets for runs in frame if runs and 'size' in runs]
        if not sizes:
            raise BrokenSample(path, 'no masks in it')
        self._size = int(sizes[0][0]), int(sizes[0][1])

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
    name = path.stem.rsplit('_', 1)[0]
    video = path.with_name(f'{name}.mp4')
    if not video.exists():
        raise RecordingError(f'data {path}: no video {video.name} beside it')
    try:
        masklets = Masklets(path)
    except BrokenSample as error:
        raise RecordingError(str(error)) from None
    return DatasetClip(name, Video(video, masklets.frames), masklets, rate)
