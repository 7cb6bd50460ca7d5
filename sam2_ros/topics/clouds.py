"""Messages of a frame with depth: point clouds, markers for RViz, and the background without the objects.

Clouds and markers are in target_frame. Without a transform at the stamp of the image there is no message.
"""
from __future__ import annotations

from array import array

import cv2
import numpy as np
from geometry_msgs.msg import Point, Pose, Vector3
from rclpy.duration import Duration
from sensor_msgs.msg import Image, PointCloud2, PointField
from std_msgs.msg import ColorRGBA, Header
from visualization_msgs.msg import Marker, MarkerArray

from sam2_core.drawing.overlay import colour
from sam2_ros.depth.frame_transform import CAMERA_FRAME, FrameTransform
from sam2_ros.depth.surface import DepthFrame, OrientedBox, object_pixels
from sam2_ros.messages.conversions import from_pixels
from sam2_ros.perception.frame import Frame, TrackedObject
from sam2_ros.perception.instance_messages import box_pose, size_vector, target_header
from sam2_ros.runtime.parameters import Parameters

MARKER_LIFETIME = Duration(seconds=5).to_msg()  # for a node that has ended or hangs
OPACITY = 0.4
TEXT_HEIGHT = 0.03  # metres
XYZ_RGB = np.dtype([('x', '<f4'), ('y', '<f4'), ('z', '<f4'), ('rgb', '<u4')])
XYZ_RGB_INSTANCE = np.dtype([('x', '<f4'), ('y', '<f4'), ('z', '<f4'), ('rgb', '<u4'), ('instance', '<u4')])
# PCL and RViz expect the bits of a colour to be declared as a float
_DATATYPES = {'x': PointField.FLOAT32, 'y': PointField.FLOAT32, 'z': PointField.FLOAT32, 'rgb': PointField.FLOAT32,
              'instance': PointField.UINT32}


def points_message(frame: Frame, parameters: Parameters) -> PointCloud2 | None:
    """Return the points of all visible objects with their ids; None without depth.

    ``cloud_stride`` is the step between rows and between columns.
    """
    if frame.depth is None or frame.target is None:
        return None
    clouds = [_object_points(frame.image, frame.depth, item, parameters.edge_erosion, parameters.cloud_stride)
              for item in frame.objects]
    return _cloud(np.concatenate([np.empty(0, XYZ_RGB_INSTANCE), *clouds]), frame.header, frame.target)


def object_points_message(frame: Frame, item: TrackedObject, parameters: Parameters) -> PointCloud2 | None:
    """Return all points of one visible object; None without depth."""
    if frame.depth is None or frame.target is None or item.box is None:
        return None
    return _cloud(_object_points(frame.image, frame.depth, item, parameters.edge_erosion, 1), frame.header,
                  frame.target)


def background_depth_message(frame: Frame, parameters: Parameters) -> Image | None:
    """Return the depth image without the objects, whose pixels are 0 in 16UC1 and NaN in 32FC1; None without depth."""
    if frame.depth is None:
        return None
    depth = _as_received(frame.depth).copy()
    depth[_object_mask(frame, parameters.edge_erosion)] = 0 if depth.dtype == np.uint16 else np.nan
    return from_pixels(depth, '16UC1' if depth.dtype == np.uint16 else '32FC1', frame.header)


def background_points_message(frame: Frame, parameters: Parameters) -> PointCloud2 | None:
    """Return the points that belong to no object, one in ``cloud_stride`` rows and columns; None without depth."""
    if frame.depth is None or frame.target is None:
        return None
    grid = np.s_[::parameters.cloud_stride, ::parameters.cloud_stride]
    metres, rays = frame.depth.metres[grid].ravel(), frame.depth.rays
    valid = np.flatnonzero(np.isfinite(metres) & ~_object_mask(frame, parameters.edge_erosion)[grid].ravel())
    points = np.empty(len(valid), XYZ_RGB)
    points['z'] = z = metres[valid]
    points['x'] = rays.x[grid].ravel()[valid] * z
    points['y'] = rays.y[grid].ravel()[valid] * z
    points['rgb'] = _packed(frame.image[grid].reshape(-1, 3)[valid])
    return _cloud(points, frame.header, frame.target)


class Markers:
    """Boxes and labels of the objects for RViz. Markers of objects without a box are deleted."""

    def __init__(self) -> None:
        self._shown: set[int] = set()

    def message(self, frame: Frame, _: Parameters) -> MarkerArray | None:
        """Return the markers of a frame; None without a transform into target_frame."""
        if frame.target is None:
            return None
        header, target = target_header(frame.header, frame.target), frame.target
        located = [(item, item.shape) for item in frame.objects if item.shape is not None]
        gone = self._shown - {item.id for item, _ in located}
        self._shown = {item.id for item, _ in located}
        return MarkerArray(markers=[
            *(marker for item, shape in located for marker in _markers(item, shape, header, target)),
            *(Marker(header=header, ns=space, id=object_id, action=Marker.DELETE)
              for object_id in sorted(gone) for space in ('box', 'label'))])


def _markers(item: TrackedObject, shape: OrientedBox, header: Header, target: FrameTransform) -> list[Marker]:
    """Return the box of an object and its label, which is above the box in the image."""
    red, green, blue = (value / 255 for value in colour(item.id))
    pose = box_pose(target.box(shape))
    box = Marker(header=header, ns='box', id=item.id, type=Marker.CUBE, pose=pose, scale=size_vector(shape),
                 color=ColorRGBA(r=red, g=green, b=blue, a=OPACITY), lifetime=MARKER_LIFETIME)
    half_height = float(np.abs(shape.axes[1]) @ shape.size) / 2
    x, y, z = target.points(shape.centre - [0.0, half_height + TEXT_HEIGHT, 0.0]).tolist()
    above = Point(x=x, y=y, z=z)
    label = Marker(header=header, ns='label', id=item.id, type=Marker.TEXT_VIEW_FACING, pose=Pose(position=above),
                   text=f'{item.id} {item.label}'.strip(), scale=Vector3(z=TEXT_HEIGHT),
                   color=ColorRGBA(r=1.0, g=1.0, b=1.0, a=1.0), lifetime=MARKER_LIFETIME)
    return [box, label]


def _object_points(image: np.ndarray, depth: DepthFrame, item: TrackedObject, erosion: int, stride: int) -> np.ndarray:
    """Return the points of an object, of type XYZ_RGB_INSTANCE; none if it is not visible."""
    if item.region is None:
        return np.empty(0, XYZ_RGB_INSTANCE)
    box, mask = item.region
    rows, columns = object_pixels(depth, mask, box, erosion, stride)
    points = np.empty(len(rows), XYZ_RGB_INSTANCE)
    points['x'], points['y'], points['z'] = depth.points(rows, columns).T
    points['rgb'] = _packed(image[rows, columns])
    points['instance'] = item.id
    return points


def _packed(rgb: np.ndarray) -> np.ndarray:
    """Pack uint8 RGB (N, 3) as 0x00RRGGBB, uint32 (N,)."""
    red, green, blue = rgb.T.astype(np.uint32)
    return red << 16 | green << 8 | blue


def _cloud(points: np.ndarray, header: Header, target: FrameTransform) -> PointCloud2:
    """Return points in the camera's frame, of type XYZ_RGB or XYZ_RGB_INSTANCE, as a cloud in target_frame."""
    if target is not CAMERA_FRAME:
        _move(points, target)
    data = array('B')  # the only type that the setter does not copy element by element
    data.frombytes(points.view(np.uint8).data)
    fields = [PointField(name=name, offset=4 * place, datatype=_DATATYPES[name], count=1)
              for place, name in enumerate(points.dtype.names or ())]
    return PointCloud2(header=target_header(header, target), height=1, width=len(points), fields=fields,
                       is_bigendian=False, point_step=points.dtype.itemsize,
                       row_step=points.dtype.itemsize * len(points), data=data, is_dense=True)


def _move(points: np.ndarray, target: FrameTransform) -> None:
    """Transform points in place, axis by axis: on interleaved columns that is faster than a matrix product."""
    x, y, z = points['x'], points['y'], points['z']
    moved = [a * x + b * y + c * z + offset for (a, b, c), offset in zip(
        target.rotation.astype(np.float32), target.offset.astype(np.float32), strict=True)]
    points['x'], points['y'], points['z'] = moved


def _as_received(depth: DepthFrame) -> np.ndarray:
    return depth.metres if depth.raw is None else depth.raw


def _object_mask(frame: Frame, erosion: int) -> np.ndarray:
    """Return the visible objects as bool (H, W), dilated by as much as is eroded: depth at the edge is unreliable."""
    height, width = frame.image.shape[:2]
    taken = np.zeros((height, width), bool)
    margin = erosion + 1
    for item in frame.objects:
        if item.region is not None:
            (x0, y0, x1, y1), mask = item.region
            x0, y0, x1, y1 = max(0, x0 - margin), max(0, y0 - margin), min(width, x1 + margin), min(height, y1 + margin)
            window = np.ascontiguousarray(mask[y0:y1, x0:x1]).view(np.uint8)
            taken[y0:y1, x0:x1] |= cv2.dilate(window, np.ones((3, 3), np.uint8), iterations=margin).view(bool)
    return taken
