"""Rigid transform of positions from the camera's frame into another frame. Needs no ROS."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sam2_ros.depth.oriented_box import OrientedBox


class TransformError(ValueError):
    """There is no transform of the time of an image; the text names the frames and the cure."""


@dataclass(frozen=True, eq=False)
class FrameTransform:
    """Rigid transform from the camera's optical frame into the frame ``frame_id``."""

    frame_id: str  # empty: the frame of the image, see CAMERA_FRAME
    rotation: np.ndarray  # float64 (3, 3)
    offset: np.ndarray  # float64 (3,): the camera's origin in ``frame_id``, metres

    def points(self, points: np.ndarray) -> np.ndarray:
        """Return points (N, 3) or a point (3,) in ``frame_id``, metres, float64."""
        return points @ self.rotation.T + self.offset

    def box(self, box: OrientedBox) -> OrientedBox:
        """Return an oriented box in ``frame_id``. Its size stays."""
        if self is CAMERA_FRAME:
            return box
        return OrientedBox(self.points(box.centre), self.rotation @ box.axes, box.size)


CAMERA_FRAME = FrameTransform('', np.eye(3), np.zeros(3))  # positions stay in the frame of the image


def frame_transform(frame_id: str, quaternion: Sequence[float], offset: Sequence[float]) -> FrameTransform:
    """Return the transform of a rotation, given as the quaternion (x, y, z, w), and an offset in metres.

    Raises:
        TransformError: A number is not finite, or the quaternion has no length.
    """
    numbers = np.array([*quaternion, *offset], np.float64)
    length = np.linalg.norm(numbers[:4])
    if not np.isfinite(numbers).all() or not length > 0:
        raise TransformError(f"transform into '{frame_id}' with rotation {[*quaternion]} and translation {[*offset]}: "
                             f'must be finite, with a rotation of length 1; correct what publishes it')
    x, y, z, w = (numbers[:4] / length).tolist()
    rotation = np.array([[1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
                         [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
                         [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)]])
    return FrameTransform(frame_id, rotation, numbers[4:])
