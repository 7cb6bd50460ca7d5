"""What the node says: the publishers, and the messages built from a processed frame."""
from __future__ import annotations

import cv2
import numpy as np
from builtin_interfaces.msg import Duration, Time
from rclpy.lifecycle import LifecycleNode
from rclpy.qos import QoSProfile
from sensor_msgs.msg import Image
from std_msgs.msg import Header

from sam2_ros.conversions import from_pixels, to_duration, to_nanoseconds, to_roi
from sam2_ros.frame import Frame, TrackedObject
from sam2_ros.msg import Instance, InstanceArray, PromptStatus
from sam2_ros.overlay import draw_overlay
from sam2_ros.prompting import PromptAnswer
from sam2_ros.srv import SetPrompt
from sam2_ros.stream import Stream


class Outputs:
    """The publishers of one stream. Pictures are made only while somebody subscribes to them."""

    def __init__(self, node: LifecycleNode, stream: Stream) -> None:
        self._node = node
        self._stream = stream
        self._instances = node.create_lifecycle_publisher(InstanceArray, '~/instances', QoSProfile(depth=10))
        self._label_image = node.create_lifecycle_publisher(Image, '~/label_image', QoSProfile(depth=5))
        self._overlay = node.create_lifecycle_publisher(Image, '~/overlay', QoSProfile(depth=5))
        self._prompt_status = node.create_lifecycle_publisher(PromptStatus, '~/prompt_status', QoSProfile(depth=100))

    def usable(self) -> bool:
        """False once ROS has been shut down under the node."""
        return self._node.context.ok()

    def publish(self, frame: Frame | None, answers: list[PromptAnswer]) -> None:
        """What planners need first: the instances, then the answers to prompts, then the pictures."""
        instances = {}
        if frame is not None:
            message = self._instance_array(frame)
            instances = {instance.id: instance for instance in message.instances}
            self._instances.publish(message)
        for answer in answers:
            self.answer(answer, instances.get(answer.id))
        if frame is not None:
            if self._label_image.get_subscription_count():
                self._label_image.publish(from_pixels(label_image(frame), 'mono16', frame.header))
            if self._overlay.get_subscription_count():
                picture = draw_overlay(frame.image, frame.objects, self._stream.parameters.overlay_opacity)
                self._overlay.publish(from_pixels(picture, 'rgb8', frame.header))

    def answer(self, answer: PromptAnswer, instance: Instance | None = None) -> None:
        """Tell everybody what became of a prompt, and whoever waits for it."""
        self._prompt_status.publish(PromptStatus(header=answer.header, id=answer.id, accepted=answer.accepted,
                                                 reason=answer.reason))
        if answer.request.reply is not None:
            response = SetPrompt.Response(accepted=answer.accepted, reason=answer.reason, id=answer.id,
                                          header=answer.header)
            if answer.accepted and instance is not None:
                response.instance = instance
            answer.request.reply(response)

    def destroy(self) -> None:
        for publisher in (self._instances, self._label_image, self._overlay, self._prompt_status):
            self._node.destroy_lifecycle_publisher(publisher)

    def _instance_array(self, frame: Frame) -> InstanceArray:
        height, width = frame.image.shape[:2]
        instances = [instance_message(item, frame.header) for item in frame.objects]
        return InstanceArray(header=frame.header, height=height, width=width, instances=instances,
                             latency=self._latency(frame.header.stamp), dropped=frame.dropped)

    def _latency(self, stamp: Time) -> Duration:
        if stamp == Time():  # a camera that does not stamp its images: nothing can be said
            return Duration()
        return to_duration(self._node.get_clock().now().nanoseconds - to_nanoseconds(stamp))


def instance_message(item: TrackedObject, header: Header) -> Instance:
    message = Instance(id=item.id, label=item.label, state=item.state, score=item.score, visibility=item.visibility,
                       roi=to_roi(item.box), last_seen=item.last_seen)
    if item.box is not None:
        x0, y0, x1, y1 = item.box
        crop = item.mask[y0:y1, x0:x1].astype(np.uint8)
        moments = cv2.moments(crop, binaryImage=True)
        message.area = int(moments['m00'])
        message.centroid_x = x0 + moments['m10'] / moments['m00']
        message.centroid_y = y0 + moments['m01'] / moments['m00']
        message.mask = from_pixels(crop * 255, 'mono8', header)
    return message


def label_image(frame: Frame) -> np.ndarray:
    """uint16 (H, W): the id of the object a pixel belongs to, 0: none. Where masks overlap, the higher score wins."""
    labels = np.zeros(frame.image.shape[:2], np.uint16)
    for item in sorted(frame.objects, key=lambda item: item.score):
        if item.box is not None:
            x0, y0, x1, y1 = item.box
            labels[y0:y1, x0:x1][item.mask[y0:y1, x0:x1]] = item.id
    return labels
