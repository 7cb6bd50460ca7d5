"""Decoder of one camera's images, with the range of values in which 16-bit images are shown to the model."""
from __future__ import annotations

from bisect import bisect_right

import numpy as np
from sensor_msgs.msg import CompressedImage, Image

from sam2_ros.messages.conversions import to_nanoseconds, to_rgb
from sam2_ros.messages.intensity import FollowedRange, IntensityRange, given_range
from sam2_ros.perception.image_history import MAX_IMAGES
from sam2_ros.runtime.logger import Logger
from sam2_ros.runtime.parameters import Parameters


class ImageDecoder:
    """Decoder of the images of one camera. Only the worker uses it, except for ``description``.

    Grey images of 16 bits are shown in the range that the parameters give, or in one that follows the images. Images of
    the history are decoded with the range in use at their stamp, so that they are what the model saw.
    """

    def __init__(self, topic: str, logger: Logger) -> None:
        """``topic`` is that of the images, named in the log."""
        self.description = ''  # the range in use; empty unless it is chosen from the images
        self._topic = topic
        self._logger = logger
        self._given: IntensityRange | None = None
        self._followed = FollowedRange()
        self._stamps: list[int] = []  # ns, of the images from which on each range was in use
        self._ranges: list[IntensityRange | None] = []  # None: before the first grey image of 16 bits
        self._used: IntensityRange | None = None
        self._logged = False

    def next(self, message: Image | CompressedImage, parameters: Parameters) -> np.ndarray:
        """Return the next image for the model, uint8 RGB (H, W, 3).

        Raises:
            ImageError: The image cannot be used.
        """
        stamp = to_nanoseconds(message.header.stamp)
        self._given = given_range(parameters.intensity_min, parameters.intensity_max)
        self._used, before = self._given, self._used
        image = to_rgb(message, self._given, lambda pixels: self._follow(pixels, stamp))
        if self._used is None:
            self.description = ''
        if before != self._used or self._stamps and self._stamps[-1] >= stamp:
            self._record(stamp)
        return image

    def past(self, message: Image | CompressedImage) -> np.ndarray:
        """Return an image of the history as the model saw it, or would have seen it.

        Raises:
            ImageError: The image cannot be used.
        """
        return to_rgb(message, self.used(to_nanoseconds(message.header.stamp)))

    def used(self, stamp: int) -> IntensityRange | None:
        """Return the range in use at the stamp of an image, ns, or None if no range was needed then."""
        place = bisect_right(self._stamps, stamp)
        return self._ranges[max(place - 1, 0)] if self._ranges else self._given

    def other(self, message: Image | CompressedImage) -> np.ndarray:
        """Return an image that is not one of the camera's stream, in the range of the parameters or in its own.

        Raises:
            ImageError: The image cannot be used.
        """
        return to_rgb(message, self._given)

    def _follow(self, pixels: np.ndarray, stamp: int) -> IntensityRange:
        self._used = low, high = self._followed.follow(pixels, stamp)
        self.description = f'{low} to {high}, chosen from the images'
        if not self._logged:
            self._logged = True
            self._logger.info(f'{self._topic}: 16-bit images are shown in the range {self.description}; set '
                              f'intensity_min and intensity_max for a fixed one')
        return self._used

    def _record(self, stamp: int) -> None:
        while self._stamps and self._stamps[-1] >= stamp:
            del self._stamps[-1], self._ranges[-1]
        if not self._ranges or self._ranges[-1] != self._used:
            self._stamps.append(stamp)
            self._ranges.append(self._used)
        if len(self._stamps) > MAX_IMAGES:
            del self._stamps[0], self._ranges[0]
