"""A point in metres, as RViz's tool "Publish Point" gives it, as a prompt: a click on the pixel where it is seen."""
from __future__ import annotations

import numpy as np
from geometry_msgs.msg import PointStamped, Transform
from rclpy.node import Node
from rclpy.time import Time
from sensor_msgs.msg import CameraInfo
from std_msgs.msg import Header

from sam2_core.prompts import PromptError
from sam2_ros.depth import DepthError, to_camera
from sam2_ros.msg import ImagePoint, Prompt

OUTSIDE = 2  # pixels beyond the edge from which a point is outside the image
MAX_TRANSFORM_AGE = 0.1  # seconds between an image and the newest transform, where /tf does not cover the image


def point_prompt(point: np.ndarray, info: CameraInfo, image: Header, rectified: bool = False) -> Prompt:
    """SET with one click, on the image with this header. ``point``: (x, y, z) in the camera's optical frame, metres.

    Raises PromptError when the camera does not see the point.
    """
    x, y = project(point, info, rectified)
    return Prompt(header=image, action=Prompt.SET, points=[ImagePoint(x=x, y=y, label=ImagePoint.FOREGROUND)])


def project(point: np.ndarray, info: CameraInfo, rectified: bool = False) -> tuple[float, float]:
    """The pixel (x, y) that sees a point (3,) in the optical frame, metres. PromptError when none does."""
    where = f'point ({", ".join(f"{value:.3f}" for value in point)}) m in the frame of the camera'
    if not np.isfinite(point).all():
        raise PromptError(f'{where}: must be finite')
    if point[2] <= 0:
        raise PromptError(f'{where}: behind the camera')
    try:
        camera = to_camera(info, rectified)
    except DepthError as error:
        raise PromptError(str(error)) from None
    # the pixel whose ray is nearest, for any lens; a lens model turned the other way may fold back what is far outside
    apart = np.hypot(camera.x - point[0] / point[2], camera.y - point[1] / point[2])
    y, x = divmod(int(apart.argmin()), apart.shape[1])
    if not apart[y, x] <= OUTSIDE / camera.focal:
        raise PromptError(f'{where}: outside the image of {apart.shape[1]} x {apart.shape[0]} pixels')
    return float(x), float(y)


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

    def prompt(self, message: PointStamped, info: CameraInfo | None, image: Header | None,
               rectified: bool = False) -> Prompt:
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
        return point_prompt(point, info, image, rectified)


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
