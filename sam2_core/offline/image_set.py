"""Single images from files, folders and TIFF stacks, each with a name of its own for its results."""
from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from sam2_core.offline.frames import FrameError, Notice, UnreadableFrame, read_one
from sam2_core.offline.pictures import PictureFrames


class _Image(NamedTuple):
    name: str  # without a suffix
    path: Path
    source: PictureFrames | str  # a text: why the file cannot be read
    number: int = 0  # in the source


class ImageSet:
    """Images, numbered from 0 in the order in which they are given."""

    def __init__(self, paths: Sequence[Path], value_range: tuple[float, float] | None = None,
                 notice: Notice = lambda text: None) -> None:
        """Find the images of files and folders.

        Args:
            paths: Image files, folders of images, and TIFF stacks, of which each page is an image.
            value_range: Values of images of more than 8 bits that become 0 and 255; None means percentiles, one range
                for each path.
            notice: Function for lines about chosen ranges.

        Raises:
            FrameError: There is no image, the range does not fit, or two images have one name.
        """
        self._images: list[_Image] = []
        places: dict[str, Path] = {}
        for path in paths:
            for image in _images_of(path, value_range, notice):
                if image.name in places:
                    raise FrameError(f'{places[image.name]} and {image.path}: two images are called {image.name}, and '
                                     f'so would be their results; rename one, or segment them into two folders')
                places[image.name] = image.path
                self._images.append(image)

    def __len__(self) -> int:
        return len(self._images)

    def name(self, index: int) -> str:
        """Return the name of an image, without a suffix."""
        return self._images[index].name

    def path(self, index: int) -> Path:
        """Return the file of an image."""
        return self._images[index].path

    def read(self, index: int) -> np.ndarray:
        """Return an image as viewers show it, uint8 RGB (H, W, 3). Raises FrameError, which names no file."""
        image = self._images[index]
        if isinstance(image.source, str):
            raise FrameError(image.source)
        try:
            return read_one(image.source, image.number)
        except UnreadableFrame as error:
            raise FrameError(error.reason.removeprefix(f'{image.path.name}: ')) from None


def _images_of(path: Path, value_range: tuple[float, float] | None, notice: Notice) -> list[_Image]:
    """Return the images of a path; of a file that cannot be read, one image with the reason."""
    if not path.exists():
        raise FrameError(f'{path}: no such file or folder')
    try:
        pictures = PictureFrames(path, value_range, notice)
    except FrameError as error:
        if path.is_dir() or value_range is not None and _is_readable(path):
            raise
        return [_Image(path.stem, path, str(error).removeprefix(f'{path}: '))]
    if path.is_dir():
        return [_Image(pictures.frame_name(number), path / pictures.file_name(number), pictures, number)
                for number in range(len(pictures))]
    alone = len(pictures) == 1
    return [_Image(path.stem if alone else f'{path.stem}_{pictures.frame_name(number)}', path, pictures, number)
            for number in range(len(pictures))]


def _is_readable(path: Path) -> bool:
    try:
        PictureFrames(path)
    except FrameError:
        return False
    return True
