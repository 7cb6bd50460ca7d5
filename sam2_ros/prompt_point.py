"""A point in metres, as RViz's tool "Publish Point" gives it, as a prompt: a click on the pixel where it is seen."""
from __future__ import annotations

import cv2
import numpy as np
from geometry_msgs.msg import PointStamped, Transform
from rclpy.node import Node
from rclpy.time import Time
from sensor_msgs.msg import CameraInfo
from std_msgs.msg import Header

from sam2_core.prompts import PromptError
from sam2_ros.msg import ImagePoint, Prompt

MAX_TRANSFORM_AGE = 0.1  # seconds between an image and the newest transform, where /tf does not cover the image


def point_prompt(point: np.ndarray, info: CameraInfo, image: Header) -> Prompt:
    """SET with one click, on the image with this header. ``point``: (x, y, z) in the camera's optical frame, metres.

    Raises PromptError when the camera does not see the point.
    """
    x, y = project(point, info)
    return Prompt(header=image, action=Prompt.SET, points=[ImagePoint(x=x, y=y, label=ImagePoint.FOREGROUND)])


def project(point: np.ndarray, info: CameraInfo) -> tuple[float, float]:
    """The pixel (x, y) of a point (3,) in the optical frame, metres. PromptError when it is not in the image."""
    where = f'point ({", ".join(f"{value:.3f}" for value in point)}) m in the frame of the camera'
    if not np.isfinite(point).all():
        raise PromptError(f'{where}: must be finite')
    if point[2] <= 0:
        raise PromptError(f'{where}: behind the camera')
    matrix, distortion = np.reshape(info.k, (3, 3)), np.array(info.d)
    if not (matrix[0, 0] > 0 and matrix[1, 1] > 0):
        raise PromptError(f'camera_info with focal lengths {matrix[0, 0]:g} and {matrix[1, 1]:g}: the camera is not '
                          f'calibrated; give its driver a calibration')
    size = np.array([info.width, info.height])
    straight = (matrix @ point)[:2] / point[2]
    # far outside the image the distortion's polynomial folds back into it
    pixel = straight if not distortion.any() or (np.abs(straight - size / 2) > 1.5 * size).any() else _distorted(
        point, matrix, distortion, info.distortion_model)
    if (pixel < -0.5).any() or (pixel > size - 0.5).any():
        raise PromptError(f'{where} is at pixel ({pixel[0]:.1f}, {pixel[1]:.1f}): outside the image of '
                          f'{info.width} x {info.height} pixels')
    x, y = pixel.clip(0, size - 1).tolist()
    return x, y


def _distorted(point: np.ndarray, matrix: np.ndarray, distortion: np.ndarray, model: str) -> np.ndarray:
    points, nothing = np.reshape(point, (1, 1, 3)).astype(float), np.zeros(3)
    if model == 'equidistant':
        return cv2.fisheye.projectPoints(points, nothing, nothing, matrix, distortion)[0].ravel()
    if model in ('plumb_bob', 'rational_polynomial'):
        return cv2.projectPoints(points, nothing, nothing, matrix, distortion)[0].ravel()
    raise PromptError(f'camera_info with distortion_model {model!r}: must be plumb_bob, rational_polynomial or '
                      f'equidistant; or give the rectified image, without distortion')


def transformed(point: np.ndarray, transform: Transform) -> np.ndarray:
    """A point (3,) in the frame that the transform leads to."""
    rotation, offset = transform.rotation, transform.translation
    axis, w = np.array([rotation.x, rotation.y, rotation.z]), rotation.w
    turned = point + 2 * np.cross(axis, np.cross(axis, point) + w * point)
    return turned + (offset.x, offset.y, offset.z)


class PointPrompts:
    """Clicked points of one camera. Listens to /tf from the first point on that is not in the camera's own frame."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._transforms: _Transforms | None = None

    def prompt(self, message: PointStamped, info: CameraInfo | None, image: Header | None) -> Prompt:
        """``info`` and ``image``: the camera's newest; None: none has come yet. PromptError says why it cannot be.

        The point is taken as it is at the time of the newest image: RViz stamps the click, not what it was showing.
        """
        if image is None:
            raise PromptError('no image yet: is the camera running?')
        if info is None:
            raise PromptError('no camera_info yet: a point in metres needs it to find its pixel; publish it beside '
                              'the image, and check use_depth')
        point = np.array([message.point.x, message.point.y, message.point.z])
        if message.header.frame_id != image.frame_id:
            if self._transforms is None:
                self._transforms = _Transforms(self._node, message.header.frame_id, image.frame_id)
            point = transformed(point, self._transforms.look_up(message.header.frame_id, image))
        return point_prompt(point, info, image)


class _Transforms:
    """What tf2_ros, which may not be installed, knows about frames."""

    def __init__(self, node: Node, source: str, target: str) -> None:
        try:
            import tf2_ros
        except ImportError:
            raise PromptError(f"point in frame '{source}', image in '{target}': only points in '{target}' can be used "
                              f'without the package tf2_ros; sudo apt install ros-$ROS_DISTRO-tf2-ros-py') from None
        self._errors = tf2_ros.TransformException
        self._buffer = tf2_ros.Buffer()
        self._listener = tf2_ros.TransformListener(self._buffer, node)

    def look_up(self, source: str, image: Header) -> Transform:
        """Of ``source`` to the frame of an image at its time, or the newest when that is near."""
        frames = f"point in frame '{source}', image in '{image.frame_id}'"
        at = Time.from_msg(image.stamp)
        try:
            if self._buffer.can_transform(image.frame_id, source, at):
                return self._buffer.lookup_transform(image.frame_id, source, at).transform
            newest = self._buffer.lookup_transform(image.frame_id, source, Time())
        except self._errors as error:
            raise PromptError(f'{frames}: no transform ({error}); is /tf published? The first such point only begins '
                              f'to listen to it: click again') from None
        age = (at.nanoseconds - Time.from_msg(newest.header.stamp).nanoseconds) / 1e9
        if abs(age) > MAX_TRANSFORM_AGE:
            raise PromptError(f'{frames}: the nearest transform is {abs(age):.2f} s {"before" if age > 0 else "after"} '
                              f'the image; check the clocks, and what publishes it')
        return newest.transform
