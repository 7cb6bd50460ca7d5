"""Prompts from 3D points, such as those of RViz's tool "Publish Point": a click on the pixel that sees the point."""
from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from geometry_msgs.msg import PointStamped
from sensor_msgs.msg import CameraInfo
from std_msgs.msg import Header

from sam2_core.prompts import PromptError
from sam2_ros.depth.calibration import DepthError, calibrate, info_of_image
from sam2_ros.depth.frame_transform import FrameTransform, TransformError
from sam2_ros.depth.transforms import Transforms
from sam2_ros.messages.conversions import to_nanoseconds
from sam2_ros.messages.tf2 import Tf2Missing
from sam2_ros.msg import ImagePoint, Prompt

OUTSIDE = 2  # pixels; a point farther beyond the edge is outside the image
MAX_TRANSFORM_AGE = 0.1  # seconds; a newest transform this near to an image is used if /tf does not cover the image


def point_prompt(point: np.ndarray, info: CameraInfo, image: Header, rectified: bool = False) -> Prompt:
    """Return a SET prompt with one click on an image.

    Args:
        point: (x, y, z) in the camera's optical frame, metres.
        info: Calibration of the camera.
        image: Header of the image.
        rectified: Whether the images are rectified.

    Raises:
        PromptError: The camera does not see the point.
    """
    x, y = project(point, info, rectified)
    return Prompt(header=image, action=Prompt.SET, points=[ImagePoint(x=x, y=y, label=ImagePoint.FOREGROUND)])


def project(point: np.ndarray, info: CameraInfo, rectified: bool = False) -> tuple[float, float]:
    """Return the pixel (x, y) that sees a point (3,) in the optical frame, metres. Raises PromptError if none does."""
    where = f'point ({", ".join(f"{value:.3f}" for value in point)}) m in the frame of the camera'
    if not np.isfinite(point).all():
        raise PromptError(f'{where}: must be finite')
    if point[2] <= 0:
        raise PromptError(f'{where}: behind the camera')
    try:
        camera = calibrate(info, rectified)
    except DepthError as error:
        raise PromptError(str(error)) from None
    with np.errstate(over='ignore'):
        across, down = (point[:2] / point[2]).tolist()
    image = f'the image of {camera.width} x {camera.height} pixels'
    seen = camera.pixel(across, down)
    if seen is None:
        raise PromptError(f'{where}: outside {image}, or where its lens model has no ray')
    x, y = seen
    if not (-OUTSIDE <= x <= camera.width - 1 + OUTSIDE and -OUTSIDE <= y <= camera.height - 1 + OUTSIDE):
        raise PromptError(f'{where}: outside {image}')
    return float(min(max(round(x), 0), camera.width - 1)), float(min(max(round(y), 0), camera.height - 1))


class PointPrompts:
    """Converter of clicked points into prompts. It subscribes to /tf with the first point in another frame."""

    def __init__(self, transforms: Transforms) -> None:
        self._transforms = transforms

    def prompt(self, message: PointStamped, infos: Sequence[CameraInfo], image: Header, size: tuple[int, int],
               rectified: bool = False) -> Prompt:
        """Return a click on the newest image.

        The point is transformed at the time of the newest image: RViz stamps the click, not the image it showed.

        Args:
            message: The point.
            infos: Known calibrations of the camera, newest first.
            image: Header of the newest image.
            size: Height and width of the newest image.
            rectified: Whether the images are rectified.

        Raises:
            PromptError: The point cannot be used. No other exception is raised.
        """
        if not infos:
            raise PromptError('no camera_info yet: a point in metres needs it to find its pixel; publish it beside '
                              'the image, and check use_depth')
        try:
            info = info_of_image(infos, image.frame_id, size)
        except DepthError as error:
            raise PromptError(str(error)) from None
        point = np.array([message.point.x, message.point.y, message.point.z])
        source, target = message.header.frame_id.lstrip('/'), image.frame_id.lstrip('/')
        if source != target:
            if not source or not target:
                raise PromptError(f"point in frame '{source}', image in '{target}': both must name one; set frame_id")
            point = self._transform(source, target, to_nanoseconds(image.stamp)).points(point)
        return point_prompt(point, info, image, rectified)

    def _transform(self, source: str, target: str, stamp: int) -> FrameTransform:
        """Return the transform at a time in ns, or the newest if it is near. Raise PromptError."""
        frames = f"point in frame '{source}', image in '{target}'"
        if stamp < 0:  # neither rclpy nor tf2 can express it
            raise PromptError(f'{frames}: the image has the stamp {stamp / 1e9:.3f} s, which must not be negative: '
                              f'check the clock of the camera driver')
        try:
            self._transforms.subscribe(frames)
        except Tf2Missing as error:
            raise PromptError(f"{error}; without it, points must be in '{target}'") from None
        try:
            newest, newest_stamp = self._transforms.newest(target, source)
        except TransformError as error:
            raise PromptError(f'{frames}: {error}; is /tf published? The first such point only subscribes to it: '
                              f'click again') from None
        try:
            return self._transforms.at(target, source, stamp) if stamp else newest
        except TransformError:
            age = (stamp - newest_stamp) / 1e9
        if abs(age) > MAX_TRANSFORM_AGE:
            raise PromptError(f'{frames}: the nearest transform is {abs(age):.2f} s {"before" if age > 0 else "after"} '
                              f'the image; check the clocks, and what publishes it')
        return newest
