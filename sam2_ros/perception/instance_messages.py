"""Tracked objects as ``Instance`` messages, and ``Instance`` messages as masks and tracked objects. Needs no torch."""
from __future__ import annotations

import cv2
import numpy as np
from builtin_interfaces.msg import Duration
from geometry_msgs.msg import Point, Pose, PoseStamped, Quaternion, Vector3
from std_msgs.msg import Header

from sam2_ros.depth.frame_transform import CAMERA_FRAME, FrameTransform
from sam2_ros.depth.oriented_box import OrientedBox
from sam2_ros.messages.conversions import from_pixels, to_duration, to_roi
from sam2_ros.msg import Instance, InstanceArray
from sam2_ros.perception.frame import Frame, TrackedObject
from sam2_ros.runtime.failures import Failures

# --- to messages


def instance_array(frame: Frame, latency: int = 0, failures: Failures | None = None) -> InstanceArray:
    """Return all objects of a frame as one message.

    Args:
        frame: The processed image.
        latency: Nanoseconds from the stamp of the image to publication; 0 if unknown.
        failures: Where to record an object whose message cannot be built; the array then has that object without a
            mask. None raises the exception instead.
    """
    height, width = frame.image.shape[:2]
    instances = []
    for item in frame.objects:
        if failures is None:
            instances.append(instance_message(item, frame.header))
        else:
            bare = Instance(id=item.id, label=item.label, state=Instance.OCCLUDED)
            instances.append(failures.run('instances', instance_message, item, frame.header, default=bare,
                                          about=f'object {item.id}'))
    return InstanceArray(header=frame.header, height=height, width=width, dropped=frame.dropped, instances=instances,
                         latency=to_duration(latency) if latency else Duration())


def instance_message(item: TrackedObject, header: Header) -> Instance:
    """Return one object of the image with this header as a message, its mask cropped to its box."""
    fields: dict[str, object] = {}  # given to the constructor, which is slow to fill in defaults
    if item.region is not None:
        (x0, y0, x1, y1), mask = item.region
        crop = mask[y0:y1, x0:x1].astype(np.uint8)
        moments = cv2.moments(crop, binaryImage=True)
        fields |= {'area': int(moments['m00']), 'centroid_x': x0 + moments['m10'] / moments['m00'],
                   'centroid_y': y0 + moments['m01'] / moments['m00'],
                   'mask': from_pixels(crop * 255, 'mono8', header)}
    if item.shape is not None:
        fields |= {'has_depth': True, 'box_center': box_pose(item.shape), 'box_size': size_vector(item.shape)}
        if item.target not in (None, CAMERA_FRAME):
            fields['target_pose'] = [PoseStamped(header=target_header(header, item.target),
                                                 pose=box_pose(item.target.box(item.shape)))]
    return Instance(id=item.id, label=item.label, state=item.state, score=item.score, visibility=item.visibility,
                    roi=to_roi(item.box), last_seen=item.last_seen, **fields)


def target_header(header: Header, target: FrameTransform) -> Header:
    """Return the header of positions in target_frame: that of the image, in another frame."""
    return header if target is CAMERA_FRAME else Header(stamp=header.stamp, frame_id=target.frame_id)


def box_pose(shape: OrientedBox) -> Pose:
    """Return the centre and the orientation of a box."""
    x, y, z = shape.centre.tolist()
    return Pose(position=Point(x=x, y=y, z=z), orientation=Quaternion(**dict(zip('xyzw', shape.quaternion,
                                                                                 strict=True))))


def size_vector(shape: OrientedBox) -> Vector3:
    """Return the size of a box along its axes."""
    return Vector3(**dict(zip('xyz', shape.size.tolist(), strict=True)))


# --- from messages

def instance_mask(instance: Instance, height: int, width: int) -> np.ndarray:
    """Return the mask of an instance in its image, bool (height, width); all False if it is not visible."""
    mask = np.zeros((height, width), bool)
    x, y, crop = instance.roi.x_offset, instance.roi.y_offset, instance.mask
    if instance.roi.width:
        mask[y:y + crop.height, x:x + crop.width] = np.frombuffer(crop.data, np.uint8).reshape(crop.height, -1) > 0
    return mask


def tracked_object(instance: Instance, height: int, width: int) -> TrackedObject:
    """Return the object that an instance of an image of this size was built from."""
    box = mask = None
    if instance.roi.width:
        roi = instance.roi
        box = roi.x_offset, roi.y_offset, roi.x_offset + roi.width, roi.y_offset + roi.height
        mask = instance_mask(instance, height, width)
    return TrackedObject(instance.id, instance.label, instance.state, instance.score, instance.visibility,
                         instance.last_seen, box, mask, instance_box(instance) if instance.has_depth else None)


def instance_box(instance: Instance) -> OrientedBox:
    """Return the oriented box of an instance that has depth."""
    place, turn, size = instance.box_center.position, instance.box_center.orientation, instance.box_size
    x, y, z, w = turn.x, turn.y, turn.z, turn.w
    axes = np.array([[1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
                     [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
                     [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)]])
    return OrientedBox(np.array([place.x, place.y, place.z]), axes, np.array([size.x, size.y, size.z]))
