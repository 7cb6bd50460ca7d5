"""The recent images of one camera, so that a prompt can be applied to the image it was drawn on."""
from __future__ import annotations

import bisect
import threading
from collections import deque
from dataclasses import dataclass

from sensor_msgs.msg import CompressedImage, Image

from sam2_ros.messages.conversions import to_nanoseconds
from sam2_ros.messages.stamps import jumped_back

MAX_IMAGES = 4096  # stamps may hardly advance, and images may be small: neither time nor bytes bound their number then
NEAREST = 100_000_000  # ns between the stamp of a prompt and that of the image that stands in for one that was lost


class NotStored(ValueError):
    """The image of a stamp is not there; the text says what is, and the cure."""


@dataclass(frozen=True, eq=False)
class StoredImage:
    """An image that arrived, as it arrived."""

    stamp: int  # ns
    message: Image | CompressedImage


@dataclass(frozen=True, eq=False)
class StoredDepth:
    """A depth image that the depth mailbox has given up, for questions about past images."""

    stamp: int  # ns
    size: int  # bytes
    depth: object  # as the mailbox keeps it


class ImageHistory:
    """A ring of images, and of their depth, bounded in time, in bytes and in number. Any thread may use it.

    Bytes that images do not need are there for depth: where they do not suffice, the oldest depth goes first.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._images: deque[StoredImage] = deque()  # from old to new
        self._depths: deque[StoredDepth] = deque()  # as they came
        self._max_bytes = 0
        self._bytes = 0
        self._why_empty = 'history_seconds, history_bytes'

    def put(self, message: Image | CompressedImage, seconds: float, max_bytes: int) -> None:
        """Keep an image and drop what is more than ``seconds`` older than the newest, or too much.

        Images without a stamp are not kept: no prompt can name them. A stamp that jumps back empties the ring.
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
                if place and self._images[place - 1].stamp == stamp:  # the newer of the two is meant
                    place -= 1
                    self._bytes -= len(self._images[place].message.data)
                    del self._images[place]
                self._images.insert(place, StoredImage(stamp, message))
                self._bytes += len(message.data)
            self._drop_depths()
            while self._images and (self._bytes > max_bytes or len(self._images) > MAX_IMAGES
                                    or self._images[-1].stamp - self._images[0].stamp >= seconds * 1e9):
                self._bytes -= len(self._images.popleft().message.data)

    def put_depth(self, stamp: int, size: int, depth: object) -> None:
        """Keep depth of a stamp (ns) and a size in bytes while there are images of its time and bytes to spare."""
        with self._lock:
            self._depths.append(StoredDepth(stamp, size, depth))
            self._bytes += size
            self._drop_depths()

    def depth_at(self, stamp: int) -> object | None:
        """Return the depth nearest to a stamp, ns; None when there is none."""
        with self._lock:
            nearest = min(self._depths, key=lambda past: abs(past.stamp - stamp), default=None)
            return None if nearest is None else nearest.depth

    def clear(self) -> None:
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
        """The image of a stamp (ns), or the nearest when that one was lost on the way. NotStored when there is none."""
        with self._lock:
            images = list(self._images)
        if not images:
            raise NotStored(f'no image is kept ({self._why_empty}): send the prompt with stamp 0, for the newest image')
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
        """The images with ``after`` < stamp <= ``until``, ns, from old to new."""
        with self._lock:
            return [past for past in self._images if after < past.stamp <= until]

    def extent(self) -> tuple[int, int, float]:
        """Images, bytes and seconds that are kept."""
        with self._lock:
            seconds = (self._images[-1].stamp - self._images[0].stamp) / 1e9 if self._images else 0.0
            return len(self._images), self._bytes, seconds
