"""Views of a frame for planners: label, class and confidence images, vision_msgs detections, topics of each object."""
from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from rclpy.event_handler import PublisherEventCallbacks
from rclpy.node import Node
from rclpy.publisher import Publisher
from rclpy.qos import QoSProfile
from sensor_msgs.msg import Image, PointCloud2
from std_msgs.msg import Header, String

from sam2_ros.drawing.label_images import ClassTable, class_image, confidence_image, label_image
from sam2_ros.messages.conversions import from_pixels
from sam2_ros.messages.qos import LATCHED, RELIABLE
from sam2_ros.messages.vision import vision_msgs
from sam2_ros.perception.frame import Frame, TrackedObject
from sam2_ros.perception.instance_messages import box_pose, size_vector, target_header
from sam2_ros.runtime.failures import Failures
from sam2_ros.runtime.parameters import Parameters
from sam2_ros.topics.clouds import object_points_message


@dataclass(frozen=True)
class FrameTopic:
    """Topic whose messages are built from a frame, and only while it has subscribers."""

    topic: str  # relative to the camera: instances is ~/instances or ~/NAME/instances
    type: type
    qos: QoSProfile
    build: Callable[[Frame, Parameters], object | None]  # None: no message for this frame


def planner_views(classes: ClassTable) -> list[FrameTopic]:
    """Return the views of one camera; those of vision_msgs only where it is installed."""
    views = [
        FrameTopic('label_image', Image, RELIABLE,
                   lambda frame, parameters: from_pixels(label_image(frame), 'mono16', frame.header)),
        FrameTopic('class_image', Image, RELIABLE,
                   lambda frame, parameters: from_pixels(class_image(frame, classes), 'mono8', frame.header)),
        FrameTopic('confidence', Image, RELIABLE,
                   lambda frame, parameters: from_pixels(confidence_image(frame), 'mono8', frame.header))]
    if vision_msgs is not None:
        views += [
            FrameTopic('detections', vision_msgs.Detection2DArray, RELIABLE,
                       lambda frame, parameters: detections_2d(frame)),
            FrameTopic('detections_3d', vision_msgs.Detection3DArray, RELIABLE,
                       lambda frame, parameters: detections_3d(frame))]
    return views


class LabelLists:
    """Latched topics with the label of each value in the class image, published when they change."""

    def __init__(self, node: Node, prefix: str) -> None:
        self._node = node
        self._published: dict[int, str] = {}
        self._json = node.create_publisher(String, f'{prefix}/labels', LATCHED)
        self._label_info = None
        if vision_msgs is not None:
            self._label_info = node.create_publisher(vision_msgs.LabelInfo, f'{prefix}/label_info', LATCHED)

    def publish(self, names: dict[int, str], header: Header) -> None:
        """Publish the labels by value, if they have changed."""
        if names == self._published:
            return
        self._json.publish(String(data=json.dumps(names, ensure_ascii=False)))
        if self._label_info is not None:
            self._label_info.publish(label_info(names, header))
        self._published = names

    def destroy(self) -> None:
        """Destroy the publishers."""
        for publisher in filter(None, (self._json, self._label_info)):
            self._node.destroy_publisher(publisher)


# --- vision_msgs

def label_info(names: dict[int, str], header: Header) -> vision_msgs.LabelInfo:
    """Return the labels by value as a message."""
    return vision_msgs.LabelInfo(header=header, class_map=[
        vision_msgs.VisionClass(class_id=value, class_name=name) for value, name in names.items()])


def detections_2d(frame: Frame) -> vision_msgs.Detection2DArray:
    """Return the visible objects with the boxes of their masks."""
    found = []
    for item in frame.objects:
        if item.box is not None:
            x0, y0, x1, y1 = item.box
            detection = vision_msgs.Detection2D(header=frame.header, id=str(item.id), results=[_hypothesis(item)])
            detection.bbox.center.position.x, detection.bbox.center.position.y = (x0 + x1) / 2, (y0 + y1) / 2
            detection.bbox.size_x, detection.bbox.size_y = float(x1 - x0), float(y1 - y0)
            found.append(detection)
    return vision_msgs.Detection2DArray(header=frame.header, detections=found)


def detections_3d(frame: Frame) -> vision_msgs.Detection3DArray | None:
    """Return the objects that have an oriented box, in target_frame.

    None if the frame has no depth, or no transform into target_frame.
    """
    if frame.depth is None or frame.target is None:
        return None
    header, found = target_header(frame.header, frame.target), []
    for item in frame.objects:
        if item.shape is not None:
            hypothesis = _hypothesis(item)
            hypothesis.pose.pose = box_pose(frame.target.box(item.shape))
            box = vision_msgs.BoundingBox3D(center=hypothesis.pose.pose, size=size_vector(item.shape))
            found.append(vision_msgs.Detection3D(header=header, id=str(item.id), results=[hypothesis], bbox=box))
    return vision_msgs.Detection3DArray(header=header, detections=found)


def _hypothesis(item: TrackedObject) -> vision_msgs.ObjectHypothesisWithPose:
    return vision_msgs.ObjectHypothesisWithPose(
        hypothesis=vision_msgs.ObjectHypothesis(class_id=item.label, score=item.score))


# --- one object each

class ObjectTopics:
    """Topics ``objects/id_N/points`` and ``objects/id_N/mask`` of each known object.

    The mask is mono8, 0 or 255, with the size and the header of the image. Both are published only for images in which
    the object is visible, so that they are never empty.
    """

    def __init__(self, node: Node, prefix: str, failures: Failures | None = None) -> None:
        """``prefix`` is ``~`` or ``~/NAME``; ``failures`` records objects whose publication fails."""
        self._node = node
        self._prefix = prefix
        self._failures = failures or Failures(node.get_logger(), usable=node.context.ok)
        self._publishers: dict[int, tuple[Publisher, Publisher]] = {}

    def publish(self, frame: Frame, parameters: Parameters) -> None:
        """Publish the objects of a frame; create topics for new objects and destroy those of forgotten ones."""
        run = self._failures.run
        for object_id in self._publishers.keys() - {item.id for item in frame.objects}:
            run('object topics', self._destroy, object_id, about=f'object {object_id}')
        for item in frame.objects:
            about = f'object {item.id}'
            if item.id not in self._publishers:
                run('object topics', self._create_both, item.id, about=about)
            if item.mask is not None and item.id in self._publishers:
                points, mask = self._publishers[item.id]
                run('object mask', self._publish_mask, mask, frame, item.mask, about=about)
                run('object points', self._publish_points, points, frame, item, parameters, about=about)

    def destroy(self) -> None:
        """Destroy all publishers."""
        for object_id in tuple(self._publishers):
            self._destroy(object_id)

    @staticmethod
    def _publish_mask(publisher: Publisher, frame: Frame, mask: np.ndarray) -> None:
        if publisher.get_subscription_count():
            publisher.publish(from_pixels(mask.astype(np.uint8) * 255, 'mono8', frame.header))

    @staticmethod
    def _publish_points(publisher: Publisher, frame: Frame, item: TrackedObject, parameters: Parameters) -> None:
        if publisher.get_subscription_count():
            cloud = object_points_message(frame, item, parameters)
            if cloud is not None and cloud.width:
                publisher.publish(cloud)

    def _create_both(self, object_id: int) -> None:
        points = self._create(object_id, 'points', PointCloud2)
        try:
            self._publishers[object_id] = points, self._create(object_id, 'mask', Image)
        except Exception:  # the next frame tries again and must find nothing
            self._node.destroy_publisher(points)
            raise

    def _create(self, object_id: int, name: str, kind: type) -> Publisher:
        # event handlers would have to be added to the executor, which runs in another thread
        return self._node.create_publisher(kind, f'{self._prefix}/objects/id_{object_id}/{name}', RELIABLE,
                                           event_callbacks=PublisherEventCallbacks(use_default_callbacks=False))

    def _destroy(self, object_id: int) -> None:
        for publisher in self._publishers.pop(object_id):
            self._node.destroy_publisher(publisher)
