"""Ring buffer of one camera's recent images, so that a prompt can be applied to the image it was drawn on."""
from __future__ import annotations

import bisect
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from sensor_msgs.msg import CompressedImage, Image

from sam2_ros.messages.conversions import to_nanoseconds, to_rgb
from sam2_ros.messages.stamps import jumped_back

MAX_IMAGES = 4096  # a bound for small images whose stamps hardly advance
NEAREST = 100_000_000  # ns; an image this near to the stamp of a prompt replaces one that was lost


class NotStored(ValueError):
    """The image of a stamp is not stored. The text says which images are, and the cure."""


@dataclass(frozen=True, eq=False)
class StoredImage:
    """An image as it arrived."""

    stamp: int  # ns
    message: Image | CompressedImage
    decode: Callable[[Image | CompressedImage], np.ndarray] = to_rgb

    def rgb(self) -> np.ndarray:
        """Return the decoded image, uint8 RGB (H, W, 3). Raises ImageError if it cannot be used."""
        return self.decode(self.message)


@dataclass(frozen=True, eq=False)
class StoredDepth:
    """A depth image that the depth mailbox has dropped, stored for queries about past images."""

    stamp: int  # ns
    size: int  # bytes
    depth: object  # as the mailbox keeps it


class ImageHistory:
    """Recent images and their depth, bounded in time, bytes and number. Any thread may use it.

    Depth takes the bytes that images do not need; where they do not suffice, the oldest depth is dropped first.
    """

    def __init__(self, decode: Callable[[Image | CompressedImage], np.ndarray] = to_rgb) -> None:
        """``decode`` decodes its images."""
        self._decode = decode
        self._lock = threading.Lock()
        self._images: deque[StoredImage] = deque()  # oldest first
        self._depths: deque[StoredDepth] = deque()  # in order of arrival
        self._max_bytes = 0
        self._bytes = 0
        self._why_empty = 'history_seconds, history_bytes'

    def put(self, message: Image | CompressedImage, seconds: float, max_bytes: int) -> None:
        """Store an image and drop those that exceed the limits.

        An image without a stamp is not stored, because no prompt can name it. A stamp that jumps back empties the
        buffer.

        Args:
            message: The image.
            seconds: Greatest age of an image against the newest; 0 stores none.
            max_bytes: Limit for images and depth together.
        """
        stamp = to_nanoseconds(message.header.stamp)
        with self._lock:
            self._max_bytes = max_bytes
            if self._images and jumped_back(stamp, self._images[-1].stamp):
                self._clear()
            self._why_empty = 'history_seconds, history_bytes'
            if not stamp:
                self._why_empty = 'images carry no stamp'
            elif len(message.data) > max_bytes:
                self._why_empty = f'history_bytes is {max_bytes} and an image has {len(message.data)} bytes'
            elif not seconds:
                self._why_empty = 'history_seconds is 0'
            if stamp:
                newest = not self._images or stamp > self._images[-1].stamp
                place = len(self._images) if newest else bisect.bisect([past.stamp for past in self._images], stamp)
                if place and self._images[place - 1].stamp == stamp:  # replace it by the newer one
                    place -= 1
                    self._bytes -= len(self._images[place].message.data)
                    del self._images[place]
                self._images.insert(place, StoredImage(stamp, message, self._decode))
                self._bytes += len(message.data)
            self._drop_depths()
            while self._images and (self._bytes > max_bytes or len(self._images) > MAX_IMAGES
                                    or self._images[-1].stamp - self._images[0].stamp >= seconds * 1e9):
                self._bytes -= len(self._images.popleft().message.data)

    def put_depth(self, stamp: int, size: int, depth: object) -> None:
        """Store depth while there are images of its time and bytes to spare; ``stamp`` in ns, ``size`` in bytes."""
        with self._lock:
            self._depths.append(StoredDepth(stamp, size, depth))
            self._bytes += size
            self._drop_depths()

    def depth_at(self, stamp: int) -> object | None:
        """Return the depth nearest to a stamp (ns), or None."""
        with self._lock:
            nearest = min(self._depths, key=lambda past: abs(past.stamp - stamp), default=None)
            return None if nearest is None else nearest.depth

    def clear(self) -> None:
        """Drop all images and depth."""
        with self._lock:
            self._clear()

    def _clear(self) -> None:
        self._images.clear()
        self._depths.clear()
        self._bytes = 0

    def _drop_depths(self) -> None:
        oldest = self._images[0].stamp - NEAREST if self._images else None
        while self._depths and (oldest is None or self._depths[0].stamp < oldest or self._bytes > self._max_bytes
                                or len(self._depths) > MAX_IMAGES):
            self._bytes -= self._depths.popleft().size

    def at(self, stamp: int) -> StoredImage:
        """Return the image of a stamp (ns), or the nearest if that image was lost.

        Raises NotStored if no image is near.
        """
        with self._lock:
            images = list(self._images)
        if not images:
            raise NotStored(f'no image is stored ({self._why_empty}): send the prompt with stamp 0, for the newest '
                            f'image')
        nearest = min(images, key=lambda past: abs(past.stamp - stamp))
        if abs(nearest.stamp - stamp) <= NEAREST:
            return nearest
        oldest, newest = images[0].stamp, images[-1].stamp
        if stamp < oldest:
            raise NotStored(f'its image is {(newest - stamp) / 1e9:.2f} s older than the newest; the history has '
                          f'{len(images)} images and covers {(newest - oldest) / 1e9:.2f} s: send the prompt sooner, '
                          f'or raise history_seconds (history_bytes)')
        raise NotStored(f'no image has its stamp; the nearest is {abs(nearest.stamp - stamp) / 1e9:.2f} s away: copy '
                      f'the header of the image the prompt was drawn on')

    def between(self, after: int, until: int) -> list[StoredImage]:
        """Return the images with ``after`` < stamp <= ``until`` (ns), oldest first."""
        with self._lock:
            return [past for past in self._images if after < past.stamp <= until]

    def extent(self) -> tuple[int, int, float]:
        """Return how many images, bytes and seconds are stored."""
        with self._lock:
            seconds = (self._images[-1].stamp - self._images[0].stamp) / 1e9 if self._images else 0.0
            return len(self._images), self._bytes, seconds
