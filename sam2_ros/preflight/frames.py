"""Check of the transforms from the frames of cameras into target_frame, at the stamps of their images."""
from __future__ import annotations

import time
from collections import defaultdict, deque
from dataclasses import dataclass

import numpy as np
from rclpy.node import Node
from std_msgs.msg import Header

from sam2_ros.depth.frame_transform import TransformError
from sam2_ros.depth.transforms import Transforms
from sam2_ros.messages.conversions import to_nanoseconds
from sam2_ros.preflight.camera import Topic
from sam2_ros.preflight.findings import Finding, bad, doubtful, good

STORED = 5_000_000_000  # ns before the newest transform in which images are checked; tf2 stores 10 s
WAITING = 50  # maximum number of images whose transform is waited for
COVERED = 0.95  # minimum share of the images with a transform


@dataclass(frozen=True)
class _Waiting:
    """Image whose transform has not arrived yet."""

    topic: str
    source: str  # its frame
    stamp: int  # ns
    arrived: float  # seconds, time.monotonic()


class FrameWatch:
    """Observer of /tf while images arrive."""

    def __init__(self, node: Node, target_frame: str) -> None:
        """Subscribe to /tf. Raises Tf2Missing if tf2_ros is not installed."""
        self._target = target_frame
        self._transforms = Transforms(node)
        self._transforms.subscribe(f"target_frame '{target_frame}'")
        self._waiting: deque[_Waiting] = deque(maxlen=WAITING)
        self._delays: dict[str, list[float]] = defaultdict(list)  # by topic: seconds from an image to its transform

    def note(self, topic: str, image: Header) -> None:
        """Note an image that has just arrived."""
        self._waiting.append(_Waiting(topic, image.frame_id.lstrip('/'), to_nanoseconds(image.stamp), time.monotonic()))

    def poll(self) -> None:
        """Note which images have their transform by now. Call it after each message."""
        now = time.monotonic()
        for image in [image for image in self._waiting if self._has(image.source, image.stamp)]:
            self._waiting.remove(image)
            self._delays[image.topic].append(now - image.arrived)

    def check(self, image: Topic, wait: float) -> Finding | None:
        """Check the transforms of a camera; None without images that name a frame, which other checks report.

        Args:
            image: Topic of the images.
            wait: Value of transform_wait.
        """
        source = '' if image.last is None else image.last.header.frame_id.lstrip('/')
        if not source or not image.stamps:
            return None
        frames = f"'{source}' to '{self._target}'"
        if source == self._target:
            return good('target_frame', f"'{source}' is the frame of the camera")
        try:
            _, newest = self._transforms.newest(self._target, source)
        except TransformError as error:
            return bad('target_frame', f'{error}: start what publishes it on /tf, or correct target_frame')
        if not newest:
            return good('target_frame', f'{frames}: static')
        stamps = [stamp for stamp in image.stamps if max(1, newest - STORED) <= stamp <= newest]
        if not stamps:
            return bad('target_frame', f'{frames}: the newest transform is {(max(image.stamps) - newest) / 1e9:.3f} s '
                                       f'older than the newest image, and none is of the time of an image: check the '
                                       f'clocks, and what publishes it')
        share = float(np.mean([self._has(source, stamp) for stamp in stamps]))
        if share < COVERED:
            return bad('target_frame', f'{frames}: {share:.0%} of the images have a transform at their stamp: does '
                                       f'what publishes it pause?')
        delay = float(np.median(self._delays[image.name])) if self._delays[image.name] else 0.0
        text = f'{frames}: {share:.0%} of the images have a transform at their stamp'
        if delay > wait:
            return doubtful('target_frame', f'{text}, which arrives {delay:.3f} s after the image (median): raise '
                                            f'transform_wait ({wait:g} s) unless the model takes longer')
        return good('target_frame', text)

    def _has(self, source: str, stamp: int) -> bool:
        if not source or stamp <= 0:
            return False
        try:
            self._transforms.at(self._target, source, stamp)
        except TransformError:
            return False
        return True
