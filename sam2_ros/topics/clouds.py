"""A processed image with depth as messages: clouds, boxes for RViz, and what is left when the objects are taken out."""
from __future__ import annotations

from array import array

import cv2
import numpy as np
from geometry_msgs.msg import Point, Pose, Vector3
from rclpy.duration import Duration
from sensor_msgs.msg import Image, PointCloud2, PointField
from std_msgs.msg import ColorRGBA, Header
from visualization_msgs.msg import Marker, MarkerArray

from sam2_ros.depth.surface import DepthFrame, object_pixels
from sam2_ros.drawing.overlay import colour
from sam2_ros.messages.conversions import from_pixels
from sam2_ros.perception.frame import Frame, TrackedObject
from sam2_ros.perception.instance_messages import box_pose, size_vector
from sam2_ros.runtime.parameters import Parameters

MARKER_LIFETIME = Duration(seconds=5).to_msg()  # then the node is gone, or stands still
OPACITY = 0.4
TEXT_HEIGHT = 0.03  # metres
XYZ_RGB = np.dtype({'names': ['x', 'y', 'z', 'rgb'], 'formats': ['<f4'] * 3 + ['<u4']})
XYZ_RGB_INSTANCE = np.dtype({'names': [*XYZ_RGB.names, 'instance'], 'formats': ['<f4'] * 3 + ['<u4'] * 2})
# the bits of a colour are declared a float, as PCL and RViz have it
_DATATYPES = {'x': PointField.FLOAT32, 'y': PointField.FLOAT32, 'z': PointField.FLOAT32, 'rgb': PointField.FLOAT32,
              'instance': PointField.UINT32}


def points_message(frame: Frame, parameters: Parameters) -> PointCloud2 | None:
    """The points of all visible objects, each with its id; None without depth. Every ``cloud_stride``-th row and
    column."""
    if frame.depth is None:
        return None
    clouds = [_object_points(frame, item, parameters.edge_erosion, parameters.cloud_stride)
              for item in frame.objects if item.box is not None]
    return _cloud(np.concatenate([np.empty(0, XYZ_RGB_INSTANCE), *clouds]), frame.header)


def object_points_message(frame: Frame, item: TrackedObject, parameters: Parameters) -> PointCloud2 | None:
    """All points of one visible object; None without depth."""
    if frame.depth is None or item.box is None:
        return None
    return _cloud(_object_points(frame, item, parameters.edge_erosion, 1), frame.header)


def background_depth_message(frame: Frame, parameters: Parameters) -> Image | None:
    """The depth image as it came, but for the objects, which are not known there: 0 in 16UC1, NaN in 32FC1."""
    if frame.depth is None:
        return None
    depth = _as_it_came(frame.depth).copy()
    depth[_taken_out(frame, parameters.edge_erosion)] = 0 if depth.dtype == np.uint16 else np.nan
    return from_pixels(depth, '16UC1' if depth.dtype == np.uint16 else '32FC1', frame.header)


def background_points_message(frame: Frame, parameters: Parameters) -> PointCloud2 | None:
    """The points of what is no object; every ``cloud_stride``-th row and column. None without depth."""
    if frame.depth is None:
        return None
    grid = np.s_[::parameters.cloud_stride, ::parameters.cloud_stride]
    metres, rays = frame.depth.metres[grid].ravel(), frame.depth.rays
    believed = np.flatnonzero(np.isfinite(metres) & ~_taken_out(frame, parameters.edge_erosion)[grid].ravel())
    points = np.empty(len(believed), XYZ_RGB)
    points['z'] = z = metres[believed]
    points['x'] = rays.x[grid].ravel()[believed] * z
    points['y'] = rays.y[grid].ravel()[believed] * z
    points['rgb'] = _packed(frame.image[grid].reshape(-1, 3)[believed])
    return _cloud(points, frame.header)


class Markers:
    """Boxes and names of the objects for RViz; what was shown before and is not any more is deleted."""

    def __init__(self) -> None:
        self._shown: set[int] = set()

    def message(self, frame: Frame, _: Parameters) -> MarkerArray:
        located = [item for item in frame.objects if item.shape is not None]
        gone = self._shown - {item.id for item in located}
        self._shown = {item.id for item in located}
        return MarkerArray(markers=[marker for item in located for marker in _markers(item, frame.header)] +
                           [Marker(header=frame.header, ns=space, id=object_id, action=Marker.DELETE)
                            for object_id in sorted(gone) for space in ('box', 'label')])


def _markers(item: TrackedObject, header: Header) -> list[Marker]:
    red, green, blue = (value / 255 for value in colour(item.id))
    pose = box_pose(item.shape)
    box = Marker(header=header, ns='box', id=item.id, type=Marker.CUBE, pose=pose, scale=size_vector(item.shape),
                 color=ColorRGBA(r=red, g=green, b=blue, a=OPACITY), lifetime=MARKER_LIFETIME)
    half_height = float(np.abs(item.shape.axes[1]) @ item.shape.size) / 2
    above = Point(x=pose.position.x, y=pose.position.y - half_height - TEXT_HEIGHT, z=pose.position.z)
    label = Marker(header=header, ns='label', id=item.id, type=Marker.TEXT_VIEW_FACING, pose=Pose(position=above),
                   text=f'{item.id} {item.label}'.strip(), scale=Vector3(z=TEXT_HEIGHT),
                   color=ColorRGBA(r=1.0, g=1.0, b=1.0, a=1.0), lifetime=MARKER_LIFETIME)
    return [box, label]


def _object_points(frame: Frame, item: TrackedObject, erosion: int, stride: int) -> np.ndarray:
    rows, columns = object_pixels(frame.depth, item.mask, item.box, erosion, stride)
    points = np.empty(len(rows), XYZ_RGB_INSTANCE)
    points['x'], points['y'], points['z'] = frame.depth.points(rows, columns).T
    points['rgb'] = _packed(frame.image[rows, columns])
    points['instance'] = item.id
    return points


def _packed(rgb: np.ndarray) -> np.ndarray:
    """uint8 (N, 3) as 0x00RRGGBB, uint32 (N,)."""
    red, green, blue = rgb.T.astype(np.uint32)
    return red << 16 | green << 8 | blue


def _cloud(points: np.ndarray, header: Header) -> PointCloud2:
    data = array('B')  # the one type that the setter takes as it is
    data.frombytes(points.view(np.uint8))
    fields = [PointField(name=name, offset=points.dtype.fields[name][1], datatype=_DATATYPES[name], count=1)
              for name in points.dtype.names]
    return PointCloud2(header=header, height=1, width=len(points), fields=fields, is_bigendian=False,
                       point_step=points.dtype.itemsize, row_step=points.dtype.itemsize * len(points), data=data,
                       is_dense=True)


def _as_it_came(depth: DepthFrame) -> np.ndarray:
    return depth.metres if depth.raw is None else depth.raw


def _taken_out(frame: Frame, erosion: int) -> np.ndarray:
    """Bool (H, W): the visible objects, and around them as much as is eroded inside, where depth is of neither side."""
    height, width = frame.image.shape[:2]
    taken = np.zeros((height, width), np.uint8)
    margin = erosion + 1
    for item in frame.objects:
        if item.box is not None:
            x0, y0, x1, y1 = item.box
            x0, y0, x1, y1 = max(0, x0 - margin), max(0, y0 - margin), min(width, x1 + margin), min(height, y1 + margin)
            window = np.ascontiguousarray(item.mask[y0:y1, x0:x1]).view(np.uint8)
            taken[y0:y1, x0:x1] |= cv2.dilate(window, np.ones((3, 3), np.uint8), iterations=margin)
    return taken.view(bool)
