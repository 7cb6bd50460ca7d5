"""Transforms from /tf and /tf_static at the time of an image, by tf2."""
from __future__ import annotations

import time
from typing import Any

from rclpy.clock import ClockChange, JumpThreshold, TimeJump
from rclpy.duration import Duration
from rclpy.node import Node
from rclpy.time import Time
from std_msgs.msg import Header

from sam2_ros.depth.frame_transform import FrameTransform, TransformError, frame_transform
from sam2_ros.messages.conversions import to_nanoseconds
from sam2_ros.messages.tf2 import tf2_for

ARRIVING = 1_000_000_000  # ns; a transform that is older than the image by more is not waited for
POLL = 0.002  # seconds


class TransformNotYet(TransformError):
    """Transforms arrive, and none is as new as the image yet."""


class Transforms:
    """Recent transforms of one node. All of its cameras share them.

    Any thread may ask. ``subscribe`` and ``close`` belong to the executor's thread.
    """

    def __init__(self, node: Node) -> None:
        """Create an empty store. ``node`` subscribes to /tf and /tf_static with the first ``subscribe``."""
        self._node = node
        self._errors: tuple[type[Exception], ...] = (ValueError, TypeError)
        self._extrapolation: type[Exception] = TransformError
        self._buffer: Any = None
        self._listener: Any = None
        self._jumps: Any = None

    def subscribe(self, what: str) -> None:
        """Subscribe to /tf and /tf_static, unless that is done already.

        Args:
            what: Name of the feature that needs them.

        Raises:
            Tf2Missing: tf2_ros is not installed.
        """
        if self._buffer is not None:
            return
        tf2_ros = tf2_for(what)
        self._errors = (tf2_ros.TransformException, ValueError, TypeError)
        self._extrapolation = getattr(tf2_ros, 'ExtrapolationException', tf2_ros.TransformException)
        self._buffer = tf2_ros.Buffer()
        self._listener = tf2_ros.TransformListener(self._buffer, self._node)
        # the buffer watches a clock of its own, which does not follow simulated time
        self._jumps = self._node.get_clock().create_jump_callback(
            JumpThreshold(min_forward=None, min_backward=Duration(nanoseconds=-1), on_clock_change=True),
            post_callback=self._on_jump)

    def close(self) -> None:
        """Unsubscribe and drop what is stored."""
        listener, jumps = self._listener, self._jumps
        self._buffer = self._listener = self._jumps = None
        if listener is not None:
            listener.unregister()
        if jumps is not None:
            jumps.unregister()

    def clear(self) -> None:
        """Drop the stored transforms, except static ones."""
        buffer = self._buffer
        if buffer is not None:
            buffer.clear()

    def _on_jump(self, jump: TimeJump) -> None:
        if jump.clock_change != ClockChange.ROS_TIME_NO_CHANGE or jump.delta.nanoseconds < 0:
            self.clear()

    def at(self, target: str, source: str, stamp: int) -> FrameTransform:
        """Return the transform from frame ``source`` into frame ``target`` at a time, interpolated by tf2.

        It is never one of another time, unless it is static.

        Args:
            target: Name of the frame.
            source: Name of the frame.
            stamp: Positive time in ns.

        Raises:
            TransformNotYet: The newest transform is a little older.
            TransformError: There is none for another reason.
        """
        try:
            found = self._look_up(target, source, stamp)
        except self._extrapolation as error:
            raise self._why_not(target, source, stamp, error) from None
        except self._errors as error:
            raise TransformError(f"no transform from '{source}' to '{target}' ({_line(error)}): start what publishes "
                                 f'it on /tf, or correct target_frame') from None
        return _to_frame_transform(target, found.transform)

    def newest(self, target: str, source: str) -> tuple[FrameTransform, int]:
        """Return the newest transform and its time in ns, which is 0 if it is static. Raise TransformError."""
        try:
            found = self._look_up(target, source, 0)
        except self._errors as error:
            raise TransformError(f"no transform from '{source}' to '{target}' ({_line(error)})") from None
        return _to_frame_transform(target, found.transform), to_nanoseconds(found.header.stamp)

    def _look_up(self, target: str, source: str, stamp: int) -> Any:
        buffer = self._buffer
        if buffer is None:
            raise ValueError('the node is not subscribed to /tf')
        return buffer.lookup_transform(target, source, Time(nanoseconds=stamp))

    def _why_not(self, target: str, source: str, stamp: int, error: Exception) -> TransformError:
        """Return why there is no transform at a time, although the frames are connected."""
        frames = f"no transform from '{source}' to '{target}' at the stamp of the image"
        try:
            behind = stamp - self.newest(target, source)[1]
        except TransformError:  # cleared meanwhile
            behind = 0
        if behind <= 0:
            return TransformError(f'{frames} ({_line(error)}): the image is older than what is stored of /tf, or /tf '
                                  f'has a gap; check the clocks')
        kind = TransformNotYet if behind <= ARRIVING else TransformError
        return kind(f'{frames}: the newest is {behind / 1e9:.3f} s older; raise transform_wait if it arrives late, '
                    f'else check the clocks and what publishes it')


class TargetFrame:
    """Frame of the user's choice, into which positions are transformed at the stamp of their image."""

    def __init__(self, transforms: Transforms, frame_id: str) -> None:
        self._transforms = transforms
        self.frame_id = frame_id

    def find(self, image: Header, wait: float) -> FrameTransform:
        """Return the transform from the frame of an image at its stamp.

        Wait up to ``wait`` seconds for a transform that may still arrive: while the newest one is at most a second
        older than the image.

        Raises:
            TransformError: There is none.
        """
        source, stamp = image.frame_id.lstrip('/'), to_nanoseconds(image.stamp)
        if not source:
            raise TransformError(f"image without a frame, target_frame '{self.frame_id}': the image must name its "
                                 f'frame; have the camera driver set frame_id')
        if source == self.frame_id:
            return frame_transform(self.frame_id, (0.0, 0.0, 0.0, 1.0), (0.0, 0.0, 0.0))
        if stamp <= 0:
            raise TransformError(f"image with the stamp {stamp / 1e9:.3f} s, target_frame '{self.frame_id}': the stamp "
                                 f'must be positive; have the camera driver stamp its images')
        deadline = time.monotonic() + wait
        while True:
            try:
                return self._transforms.at(self.frame_id, source, stamp)
            except TransformNotYet:
                if time.monotonic() >= deadline:
                    raise
            time.sleep(POLL)

    def clear(self) -> None:
        """Drop the stored transforms: the stamps of the images have jumped back."""
        self._transforms.clear()


def _to_frame_transform(target: str, transform: Any) -> FrameTransform:
    """Return a geometry_msgs/Transform into the frame ``target``."""
    turn, offset = transform.rotation, transform.translation
    return frame_transform(target, (turn.x, turn.y, turn.z, turn.w), (offset.x, offset.y, offset.z))


def _line(error: Exception) -> str:
    return ' '.join(str(error).split()).rstrip('.')
