"""Depth of one camera's images, its transform into target_frame, and what /diagnostics reports about both."""
from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Protocol

from std_msgs.msg import Header

from sam2_ros.depth.frame_transform import CAMERA_FRAME, FrameTransform, TransformError
from sam2_ros.depth.matching import DepthMailbox
from sam2_ros.depth.surface import DepthFrame, is_beyond_lens
from sam2_ros.messages.conversions import to_nanoseconds
from sam2_ros.messages.stamps import jumped_back
from sam2_ros.perception.camera_image import CameraImage
from sam2_ros.perception.frame import TrackedObject
from sam2_ros.perception.image_history import ImageHistory
from sam2_ros.perception.meter import Meter
from sam2_ros.perception.tracked_objects import TrackedObjects
from sam2_ros.runtime.failures import Failures
from sam2_ros.runtime.logger import Logger
from sam2_ros.runtime.parameters import Parameters

WARN_EVERY = 5.0  # seconds


class TargetLookup(Protocol):
    """Transforms into target_frame, as ``depth.transforms.TargetFrame`` finds them."""

    def find(self, image: Header, wait: float) -> FrameTransform:
        """Return the transform at the stamp of an image, after up to ``wait`` seconds. Raises TransformError."""

    def clear(self) -> None:
        """Drop the stored transforms: the stamps of the images have jumped back."""


class ImageDepth:
    """Depth of the image in work and of images of the history, and its transform into target_frame."""

    def __init__(self, mailbox: DepthMailbox | None, history: ImageHistory, meter: Meter, failures: Failures,
                 target: TargetLookup | None = None, logger: Logger | None = None) -> None:
        """Create it.

        Args:
            mailbox: Depth of the camera; None: no image has depth.
            history: Past images with their depth.
            meter: Receives what /diagnostics reports.
            failures: Record of failed steps.
            target: Finds transforms into target_frame; None: positions stay in the camera's frame.
            logger: Receives warnings about missing transforms.
        """
        self._mailbox = mailbox
        self._history = history
        self._meter = meter
        self._failures = failures
        self._target = target
        self._logger = logger
        self._last_stamp = 0  # of the last image in work, ns
        if mailbox is not None:
            mailbox.on_drop = history.put_depth

    def expect(self, header: Header) -> None:
        """Keep the depth of this image until the next one is expected."""
        if self._mailbox is not None:
            self._failures.run('depth', self._mailbox.expect, header)

    def locate(self, image: CameraImage, items: list[TrackedObject], objects: TrackedObjects,
               parameters: Parameters) -> list[TrackedObject]:
        """Find the depth of an image, and return its objects with their positions."""
        self.find(image, parameters)
        items = self._failures.run('position', objects.locate, image, items, parameters.edge_erosion, default=items)
        self._failures.run('position', self.note_beyond_lens, image, items)
        return items

    def find(self, image: CameraImage, parameters: Parameters) -> None:
        """Set the depth of an image, if it has arrived, and its transform; count whether there are any."""
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
        if self._target is not None:
            self._failures.run('transform', self._follow_clock, self._target, to_nanoseconds(image.header.stamp))
            if image.depth is not None:
                image.target = self._transform(image.header, parameters.transform_wait)

    def past(self, image: CameraImage, parameters: Parameters) -> DepthFrame | None:
        """Return the depth of an image of the history, or None if it is no longer stored; set its transform."""
        if self._mailbox is None:
            return None
        depth = self._mailbox.past(image.header, image.image.shape[:2], parameters,
                                   self._history.depth_at(to_nanoseconds(image.header.stamp)))
        if depth is not None:
            image.target = self._transform(image.header, 0.0)
        return depth

    def _transform(self, header: Header, wait: float) -> FrameTransform | None:
        """Return the transform into target_frame at the stamp of an image, or report why there is none."""
        if self._target is None:
            return CAMERA_FRAME
        try:
            found = self._target.find(header, wait)
        except TransformError as error:
            if self._logger is not None:
                self._logger.warning(f'positions are not published in target_frame: {error}',
                                     throttle_duration_sec=WARN_EVERY)
            self._meter.transform(time.monotonic(), str(error))
        except Exception as error:
            self._meter.transform(time.monotonic(), self._failures.report('transform', error))
        else:
            self._meter.transform(time.monotonic())
            return found
        return None

    def _follow_clock(self, target: TargetLookup, stamp: int) -> None:
        """Drop transforms from before a jump back of the camera's clock, which may begin to count again."""
        if jumped_back(stamp, self._last_stamp):
            target.clear()
        self._last_stamp = stamp

    def note_beyond_lens(self, image: CameraImage, items: Iterable[TrackedObject]) -> None:
        """Report to /diagnostics visible objects without depth because the lens model has no rays for them."""
        for item in items:
            if image.depth is None or item.region is None or item.shape is not None:
                continue
            box, mask = item.region
            if is_beyond_lens(image.depth, mask, box):
                self._meter.depth_doubt(time.monotonic(), f'object {item.id} has no depth: the lens model of '
                                                          f'camera_info has no ray for most of its pixels')
