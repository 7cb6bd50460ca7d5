"""What a source of frames is, and frames that are in memory."""
from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import numpy as np
from torch import Tensor

from sam2_core.images import check_image

BLOCK_BYTES = 512 << 20  # decoded frames that are held when a video or stack is read backwards
Notice = Callable[[str], object]  # called with a line for a person
Progress = Callable[[int, int], object]  # called with the number of frames so far, and the estimated total


class FrameError(ValueError):
    """Error for frames that cannot be read; the message names the file and the cure."""


class UnreadableFrame(FrameError):
    """Error for one frame that cannot be read. The frames around it keep their numbers."""

    def __init__(self, frame: int, reason: str) -> None:
        super().__init__(f'frame {frame}: {reason}')
        self.frame, self.reason = frame, reason


class FrameSource(Protocol):
    """Frames of one recording, numbered from 0."""

    @property
    def name(self) -> str:
        """Short name, for files of results."""

    @property
    def rate(self) -> float:
        """Frames per second; the mean if the rate varies."""

    def __len__(self) -> int: ...

    def frame_name(self, frame: int) -> str:
        """Return the name of a frame in files of results, without a suffix."""

    def read(self, frames: range) -> Iterator[tuple[int, np.ndarray | UnreadableFrame]]:
        """Yield these frames in this order, uint8 RGB (H, W, 3), in bounded memory; the step is 1 or -1."""


class ArrayFrames:
    """Frames that are in memory, or in a sequence that reads them on access."""

    name, rate = 'frames', 30.0

    def __init__(self, images: Sequence[np.ndarray | Tensor]) -> None:
        """Take uint8 RGB images (H, W, 3); raise FrameError if there is none."""
        self._images = images
        if not len(images):
            raise FrameError('frames: there is none')

    def __len__(self) -> int:
        return len(self._images)

    def frame_name(self, frame: int) -> str:
        """Return the number of a frame."""
        return numbered(frame, len(self))

    def read(self, frames: range) -> Iterator[tuple[int, np.ndarray | UnreadableFrame]]:
        """Yield these frames in this order."""
        for frame in frames:
            image = self._images[frame]
            check_image(image)
            yield frame, image.cpu().numpy() if isinstance(image, Tensor) else image


def numbered(frame: int, count: int) -> str:
    """Return the number of a frame with as many digits as the last frame has, at least five as in DAVIS."""
    return f'{frame:0{max(5, len(str(count - 1)))}}'


def read_one(source: FrameSource, frame: int) -> np.ndarray:
    """Return one frame, uint8 RGB (H, W, 3). Raises UnreadableFrame."""
    for _, image in source.read(range(frame, frame + 1)):
        if isinstance(image, UnreadableFrame):
            raise image
        return image
    raise UnreadableFrame(frame, 'the video ends before it')


def blocks(frames: range, length: int) -> Iterator[range]:
    """Yield parts of at most ``length`` frames in the order of ``frames``; the numbers in each part increase."""
    for at in range(0, len(frames), max(1, length)):
        part = frames[at:at + max(1, length)]
        yield part if part.step > 0 else part[::-1]
