"""Depth of one camera's images, and what /diagnostics reports about it."""
from __future__ import annotations

import time
from collections.abc import Iterable

from std_msgs.msg import Header

from sam2_ros.depth.matching import DepthMailbox
from sam2_ros.depth.surface import DepthFrame, is_beyond_lens
from sam2_ros.messages.conversions import to_nanoseconds
from sam2_ros.perception.camera_image import CameraImage
from sam2_ros.perception.frame import TrackedObject
from sam2_ros.perception.image_history import ImageHistory
from sam2_ros.perception.meter import Meter
from sam2_ros.runtime.failures import Failures
from sam2_ros.runtime.parameters import Parameters


class ImageDepth:
    """Depth of the image in work and of images of the history."""

    def __init__(self, mailbox: DepthMailbox | None, history: ImageHistory, meter: Meter, failures: Failures) -> None:
        """``mailbox`` holds the depth of the camera; None: no image has depth."""
        self._mailbox = mailbox
        self._history = history
        self._meter = meter
        self._failures = failures
        if mailbox is not None:
            mailbox.on_drop = history.put_depth

    def expect(self, header: Header) -> None:
        """Keep the depth of this image until the next one is expected."""
        if self._mailbox is not None:
            self._failures.run('depth', self._mailbox.expect, header)

    def find(self, image: CameraImage, parameters: Parameters) -> None:
        """Set the depth of an image, if it has arrived, and count whether it has."""
        if self._mailbox is None:
            return
        before = self._mailbox.report
        try:
            image.depth = self._mailbox.depth_for(image.header, image.image.shape[:2], parameters)
        except Exception as error:
            self._meter.depth(time.monotonic(), self._failures.report('depth', error))
            return
        report = self._mailbox.report
        if report.absent == before.absent or report.used:  # depth arrives now, or did so before
            self._meter.depth(time.monotonic(), report.reason)
        self._meter.depth_doubt(time.monotonic(), report.doubt)

    def past(self, image: CameraImage, parameters: Parameters) -> DepthFrame | None:
        """Return the depth of an image of the history, or None if it is no longer stored."""
        if self._mailbox is None:
            return None
        return self._mailbox.past(image.header, image.image.shape[:2], parameters,
                                  self._history.depth_at(to_nanoseconds(image.header.stamp)))

    def note_beyond_lens(self, image: CameraImage, items: Iterable[TrackedObject]) -> None:
        """Report to /diagnostics visible objects without depth because the lens model has no rays for them."""
        for item in items:
            if image.depth is None or item.region is None or item.shape is not None:
                continue
            box, mask = item.region
            if is_beyond_lens(image.depth, mask, box):
                self._meter.depth_doubt(time.monotonic(), f'object {item.id} has no depth: the lens model of '
                                                          f'camera_info has no ray for most of its pixels')
