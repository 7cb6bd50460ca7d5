"""Images of one camera from their arrival until they are decoded."""
from __future__ import annotations

import time

from sensor_msgs.msg import CompressedImage, Image

from sam2_ros.messages.conversions import ImageError, to_nanoseconds
from sam2_ros.messages.stamps import StampWatch
from sam2_ros.perception.camera_image import CameraImage
from sam2_ros.perception.image_decoder import ImageDecoder
from sam2_ros.perception.image_history import ImageHistory
from sam2_ros.perception.inbox import Inbox
from sam2_ros.perception.meter import Meter
from sam2_ros.perception.skipped_images import SkippedImages
from sam2_ros.runtime.failures import Failures
from sam2_ros.runtime.parameters import Parameters


class ImageIntake:
    """First steps of an image: receive it (any thread), then choose and decode the newest (worker)."""

    def __init__(self, inbox: Inbox, history: ImageHistory, meter: Meter, failures: Failures,
                 skipped: SkippedImages, decoder: ImageDecoder) -> None:
        self.every_second = False  # skip every second image, to shed load
        self._inbox = inbox
        self._history = history
        self._meter = meter
        self._failures = failures
        self._skipped = skipped
        self._decoder = decoder
        self._stamps = StampWatch()
        self._skipped_last = False

    @property
    def clock_jumps(self) -> int:
        """Number of jumps of the camera's clock, ahead or back."""
        return self._stamps.jumps

    def put(self, message: Image | CompressedImage, arrived: float | None, parameters: Parameters) -> bool:
        """Receive an image; return False if its stamp rules it out.

        arrived: Seconds of any clock that advances while images arrive; None reads the clock of this machine.
        """
        run = self._failures.run
        now = time.monotonic()
        run('meter', self._meter.received, now)
        odd = run('stamps', self._stamps.judge, to_nanoseconds(message.header.stamp),
                  now if arrived is None else arrived, default='')
        if odd:
            self._inbox.count_dropped()
            self._skipped.skip(odd)
            return False
        run('history', self._history.put, message, parameters.history_seconds, parameters.history_bytes)
        self._inbox.put_image(message)
        return True

    def take(self, parameters: Parameters) -> CameraImage | None:
        """Take the newest image out of the inbox and decode it; None if there is none to process."""
        message = self._inbox.take_image()
        if message is None:
            return None
        self._skipped_last = self.every_second and not self._skipped_last and not self._inbox.prompts
        if self._skipped_last:
            self._inbox.count_dropped()
            return None
        try:
            return CameraImage(message.header, self._decoder.next(message, parameters))
        except Exception as error:
            self._inbox.count_dropped()
            known = isinstance(error, ImageError)
            self._skipped.skip(str(error) if known else self._failures.report('decoding', error))
            return None
