"""Mapping of 16-bit values to 8 bits: a given range, or one that follows the images of a camera without flicker.

Needs no ROS.
"""
from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

import cv2
import numpy as np

SHARE = 0.005  # share of the pixels that may lie below the range of an image, and share that may lie above
MARGIN = 0.1  # widening of the range on either side, as a share of it
NARROWEST = 64  # values in a range, at least: the noise of an even image is not spread over all grey levels
SAMPLE = 65536  # pixels that are examined, about
TOLERANCE = 0.15  # change of either end, as a share of the range, that a range does not follow
PATIENCE, FEWEST, MOST = 1_000_000_000, 5, 64  # ns and number of images whose median is followed
BLIND = 3  # images in a row outside the range after which it is given up
SETTLING = 1.0  # seconds in which a range covers 63 % of its way
USUAL, LONGEST = 1 / 30, 0.5  # seconds from image to image without usable stamps, and at most


class IntensityRange(NamedTuple):
    """Values of a 16-bit image that become 0 and 255. Lower and higher values become 0 and 255, too."""

    low: int
    high: int


FULL_RANGE = IntensityRange(0, 65535)
ChooseRange = Callable[[np.ndarray], IntensityRange]  # from a grey image, uint16 (H, W)


def given_range(low: int, high: int) -> IntensityRange | None:
    """Return the range of the parameters ``intensity_min`` and ``intensity_max``, or None if both are 0."""
    return IntensityRange(low, high) if low or high else None


def to_8_bits(pixels: np.ndarray, values: IntensityRange) -> np.ndarray:
    """Return uint16 pixels of any shape as uint8, scaled linearly and rounded."""
    rows = pixels.reshape(pixels.shape[0], -1)  # OpenCV would take the lower limit for that of the first channel
    if values.low:
        low: Any = float(values.low)  # a scalar, which the stubs of OpenCV do not know
        rows = cv2.subtract(rows, low)  # 0 at least
    return cv2.convertScaleAbs(rows, alpha=255 / (values.high - values.low)).reshape(pixels.shape)


def range_of(pixels: np.ndarray) -> IntensityRange:
    """Return the range of one grey image, uint16 (H, W): all but the darkest and brightest pixels, with a margin.

    Pixels of 0 and 65535 do not count: they are dead, saturated, or outside of a rectified image.
    """
    stride = max(1, math.isqrt(pixels.size // SAMPLE))
    some = pixels[::stride, ::stride].ravel()
    values = some[(some > FULL_RANGE.low) & (some < FULL_RANGE.high)]
    some = values if len(values) else some
    cut = int(SHARE * (some.size - 1))
    ends = np.partition(some, (cut, some.size - 1 - cut))
    return _widened(int(ends[cut]), int(ends[some.size - 1 - cut]))


def _widened(low: float, high: float) -> IntensityRange:
    margin = max(MARGIN * (high - low), (NARROWEST - (high - low)) / 2)
    start = min(max(0, round(low - margin)), 65535 - NARROWEST)
    return IntensityRange(start, max(start + NARROWEST, min(65535, round(high + margin))))


class FollowedRange:
    """Range of one camera's grey images, which depends on nothing but the images and their stamps.

    The range of the first image holds while the images fit it. Where the median of the ranges of the last second, and
    of at least five images, differs by more than TOLERANCE, the range moves there slowly. So a single bright image
    changes nothing, and a scene that varies within the tolerance is shown without any flicker. If nothing is left of
    the scene in several images in a row, all of which would be black or white, the range is that of these images at
    once.
    """

    def __init__(self) -> None:
        self._range: IntensityRange | None = None  # None: no image yet
        self._ends = 0.0, 0.0  # the range before rounding
        self._even = True  # the range is that of an image without contrast
        self._moving = False
        self._outside = 0  # images in a row without a value in common with the range
        self._seen: deque[tuple[int, IntensityRange]] = deque(maxlen=MOST)

    def follow(self, pixels: np.ndarray, stamp: int) -> IntensityRange:
        """Return the range for the next image, uint16 (H, W), with its stamp in ns."""
        found = range_of(pixels)
        last = self._seen[-1][0] if self._seen else stamp
        seconds = min((stamp - last) / 1e9, LONGEST) if stamp > last else USUAL
        self._seen.append((stamp, found))
        while len(self._seen) > FEWEST and stamp - self._seen[0][0] > PATIENCE:
            self._seen.popleft()
        if self._range is None or self._even:
            self._ends = float(found.low), float(found.high)
            self._even = found.high - found.low <= NARROWEST
        else:
            outside = found.low >= self._range.high or found.high <= self._range.low
            self._outside = self._outside + 1 if outside else 0
            if self._outside >= BLIND:
                while len(self._seen) > BLIND:
                    self._seen.popleft()
                self._ends = self._median()
                self._outside, self._moving = 0, False
            elif len(self._seen) >= FEWEST:
                self._move(seconds)
        self._range = IntensityRange(round(self._ends[0]), round(self._ends[1]))
        return self._range

    def _move(self, seconds: float) -> None:
        """Move towards the median of what was seen, if it is too far away or the range is moving already."""
        wanted = self._median()
        apart = np.abs(np.subtract(wanted, self._ends)).max() / (self._ends[1] - self._ends[0])
        self._moving = apart > (TOLERANCE / 5 if self._moving else TOLERANCE)
        if self._moving:
            share = 1 - math.exp(-seconds / SETTLING)
            low, high = (end + share * (goal - end) for end, goal in zip(self._ends, wanted, strict=True))
            self._ends = low, high

    def _median(self) -> tuple[float, float]:
        """Return the median range of the images that are remembered."""
        low, high = np.median(np.array([found for _, found in self._seen]), axis=0)
        return float(low), float(high)
