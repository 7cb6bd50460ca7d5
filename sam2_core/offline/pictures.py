"""Frames that are pictures: a folder of JPEG, PNG or TIFF files, or the pages of TIFF stacks.

Files are frames in the natural order of their names. Each page of a TIFF is a frame. Photos are rotated as viewers show
them. Pictures of more than 8 bits are scaled by one range of values for all frames, so that brightness does not
flicker.
"""
from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from sam2_core.datasets.exif import orientation, upright
from sam2_core.datasets.image_files import decode_image
from sam2_core.datasets.recordings import BrokenSample
from sam2_core.files import OrderError, files_in, frames_in_order
from sam2_core.image_headers import DamagedImage, read_image_header
from sam2_core.offline.frames import BLOCK_BYTES, FrameError, Notice, UnreadableFrame, blocks, numbered

TIFF = {'.tif', '.tiff'}
PICTURES = {'.jpg', '.jpeg', '.png', *TIFF}
SAMPLES = 32  # frames from which the range of values is taken
TAILS = 0.1, 99.9  # percentiles of their values that become 0 and 255
_MAX_PAGES = 64  # that are decoded at once
_STRIDE_PIXELS = 100_000  # pixels of a frame that are looked at
RATE = 10.0  # frames per second of an overlay


class _Page(NamedTuple):
    path: Path
    number: int  # within the file
    name: str


def is_tiff(path: Path) -> bool:
    """Return whether a file is a TIFF by its name."""
    return path.suffix.lower() in TIFF


class PictureFrames:
    """Pictures as frames."""

    rate = RATE

    def __init__(self, path: Path, value_range: tuple[float, float] | None = None,
                 notice: Notice = lambda text: None) -> None:
        """Open a folder or a TIFF file.

        Args:
            path: Folder, or file.
            value_range: Values of pictures of more than 8 bits that become 0 and 255; None means the TAILS of up to
                SAMPLES frames.
            notice: Function for a line about the chosen range.

        Raises:
            FrameError: There are no pictures, their order is ambiguous, or the range does not fit them.
        """
        self.path, self.name = path, path.resolve().name if path.is_dir() else path.stem
        self._pages = self._list()
        self.value_range = self._choose_range(value_range, notice)

    def __len__(self) -> int:
        return len(self._pages)

    def frame_name(self, frame: int) -> str:
        """Return the name of a picture's file; of a page, with its number."""
        return self._pages[frame].name

    def file_name(self, frame: int) -> str:
        """Return the name of a picture's file with its suffix."""
        return self._pages[frame].path.name

    def files(self) -> list[Path]:
        """Return the files, in order."""
        return list(dict.fromkeys(page.path for page in self._pages))

    def read(self, frames: range) -> Iterator[tuple[int, np.ndarray | UnreadableFrame]]:
        """Yield these frames in this order; of a stack, a block of at most BLOCK_BYTES is decoded at a time."""
        for frame, values in self._read(frames):
            try:
                yield frame, values if isinstance(values, UnreadableFrame) else self._to_rgb(values)
            except ValueError as error:
                yield frame, UnreadableFrame(frame, f'{self._pages[frame].path.name}: {error}')

    def _list(self) -> list[_Page]:
        if not self.path.is_dir():
            count = _pages_in(self.path) if is_tiff(self.path) else 1
            if not count:
                raise FrameError(f'{self.path}: not a TIFF that can be decoded; save it again, uncompressed or LZW')
            return [_Page(self.path, page, numbered(page, count)) for page in range(count)]
        try:
            files = frames_in_order(files_in(self.path, PICTURES))
        except OSError as error:
            raise FrameError(f'{self.path}: {error.strerror or error}') from None
        except OrderError as error:
            raise FrameError(f'{self.path}: {error}') from None
        if not files:
            raise FrameError(f'{self.path}: no JPEG, PNG or TIFF in it; give the folder that has the frames, or a '
                             f'video')
        pages = []
        for path in files:
            count = max(1, _pages_in(path)) if is_tiff(path) else 1
            pages += [_Page(path, page, path.stem if count == 1 else f'{path.stem}_{numbered(page, count)}')
                      for page in range(count)]
        for page, count in Counter(page.name for page in pages).items():
            if count > 1:
                raise FrameError(f'{self.path}: {count} frames would be called {page} in the results; rename a file')
        return pages

    def _choose_range(self, given: tuple[float, float] | None, notice: Notice) -> tuple[float, float] | None:
        """Return the range of values, or None if the first picture that can be read has 8 bits."""
        first = next((values for _, values in self._read(range(len(self))) if isinstance(values, np.ndarray)), None)
        if first is None:
            raise FrameError(f'{self.path}: not one of {len(self)} pictures can be read; the first: '
                             f'{next(self._read(range(1)))[1]}')
        if first.dtype == np.uint8:
            if given is not None:
                raise FrameError(f'range {given[0]:g},{given[1]:g}: the pictures have 8 bits; leave the range out')
            return None
        if given is not None:
            return given
        chosen = sorted({round(at) for at in np.linspace(0, len(self) - 1, min(SAMPLES, len(self)))})
        values = [_sample(picture) for frame in chosen for _, picture in self._read(range(frame, frame + 1))
                  if isinstance(picture, np.ndarray)]
        pooled = np.concatenate(values) if values else np.zeros(0)
        pooled = pooled[np.isfinite(pooled)]
        if not len(pooled):
            raise FrameError(f'{self.path}: no pixel with a finite value')
        low, high = (float(value) for value in np.percentile(pooled, TAILS))
        if high <= low:
            low, high = float(pooled.min()), float(pooled.max())
        high = high if high > low else low + 1
        notice(f'{self.name}: pictures of type {first.dtype}: values from {low:g} to {high:g} become 0 to 255 '
               f'({TAILS[0]:g} and {TAILS[1]:g} percentile of {len(values)} frames); --range LOW,HIGH sets others')
        return low, high

    def _read(self, frames: range) -> Iterator[tuple[int, np.ndarray | UnreadableFrame]]:
        """Yield pictures as stored: grey or RGB, of any number type."""
        for path, group in groupby(frames, lambda frame: self._pages[frame].path):
            run = list(group)
            if not is_tiff(path):
                yield from ((frame, _picture(frame, path)) for frame in run)
                continue
            first = _page(run[0], path, self._pages[run[0]].number)
            yield run[0], first
            length = BLOCK_BYTES // max(1, first.nbytes if isinstance(first, np.ndarray) else 1)
            offset = run[0] - self._pages[run[0]].number
            for block in blocks(range(run[0], run[-1] + frames.step, frames.step)[1:], min(length, _MAX_PAGES)):
                pages = _read_block(block, path, offset)
                yield from pages if frames.step > 0 else reversed(pages)

    def _to_rgb(self, values: np.ndarray) -> np.ndarray:
        if values.dtype != np.uint8:
            if self.value_range is None:
                raise ValueError(f'pixels of type {values.dtype}, but the first picture has 8 bits; save all alike')
            values = scale_values(values, *self.value_range)
        elif self.value_range is not None:
            raise ValueError('8 bits, but the first picture has more; save all alike')
        return np.repeat(values[..., None], 3, axis=2) if values.ndim == 2 else values


def scale_values(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Return values as uint8: ``low`` and below become 0, ``high`` and above 255; NaN becomes 0."""
    scaled = (np.nan_to_num(values.astype(np.float64), nan=low, posinf=high, neginf=low) - low) * (255 / (high - low))
    return np.rint(np.clip(scaled, 0, 255)).astype(np.uint8)


def _sample(values: np.ndarray) -> np.ndarray:
    return values.reshape(-1)[::max(1, values.size // _STRIDE_PIXELS)].astype(np.float64)


def _pages_in(path: Path) -> int:
    try:
        return int(cv2.imcount(str(path), cv2.IMREAD_UNCHANGED))
    except cv2.error:
        return 0


def _picture(frame: int, path: Path) -> np.ndarray | UnreadableFrame:
    try:
        data = path.read_bytes()
        header = read_image_header(data)
        if header is None or header.bits <= 8:
            return upright(decode_image(data, path.name), orientation(data))
        stored = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED | cv2.IMREAD_IGNORE_ORIENTATION)
        return upright(_channels(stored), orientation(data))
    except OSError as error:
        return UnreadableFrame(frame, f'{path.name}: {error.strerror or type(error).__name__}')
    except DamagedImage as error:
        return UnreadableFrame(frame, f'{path.name}: {error}')
    except BrokenSample as error:
        return UnreadableFrame(frame, str(error))
    except (ValueError, cv2.error) as error:
        return UnreadableFrame(frame, f'{path.name}: {error}')


def _page(frame: int, path: Path, page: int) -> np.ndarray | UnreadableFrame:
    return _read_block(range(frame, frame + 1), path, frame - page)[0][1]


def _read_block(block: range, path: Path, offset: int) -> list[tuple[int, np.ndarray | UnreadableFrame]]:
    """Return consecutive pages of a TIFF; ``offset``: frame of its page 0. One at a time if not all can be read."""
    try:
        ok, pages = cv2.imreadmulti(str(path), start=block[0] - offset, count=len(block),
                                    flags=cv2.IMREAD_UNCHANGED)
    except cv2.error:
        ok, pages = False, ()
    if ok and len(pages) == len(block):
        return [(frame, _checked_page(frame, path, page)) for frame, page in zip(block, pages, strict=True)]
    if len(block) == 1:
        return [(block[0], UnreadableFrame(block[0], f'{path.name}: page {block[0] - offset} cannot be decoded; save '
                                                     f'it again, uncompressed or LZW'))]
    return [item for frame in block for item in _read_block(range(frame, frame + 1), path, offset)]


def _checked_page(frame: int, path: Path, page: np.ndarray) -> np.ndarray | UnreadableFrame:
    try:
        return _channels(page)
    except ValueError as error:
        return UnreadableFrame(frame, f'{path.name}: {error}')


def _channels(stored: np.ndarray | None) -> np.ndarray:
    """Return a decoded picture as grey (H, W) or RGB (H, W, 3). Raises ValueError for other channels."""
    if stored is None:
        raise ValueError('not a picture that can be decoded; save it as PNG or TIFF')
    if stored.ndim == 2:
        return stored
    if stored.shape[2] == 4:
        full = np.iinfo(stored.dtype).max if stored.dtype.kind in 'iu' else 1
        if (stored[..., 3] != full).any():
            raise ValueError('transparent pixels: save it without transparency, on a background')
    elif stored.shape[2] != 3:
        raise ValueError(f'{stored.shape[2]} channels: must be grey or RGB; save the channel with the objects alone')
    return np.ascontiguousarray(stored[..., 2::-1])
