"""Prompter of the demo: prompts the objects, adds one that appears later, and corrects one with a click.

It does what an operator or a detector would do: it publishes Prompt messages with the stamp of the image they were
drawn on. For the synthetic tabletop it takes boxes from the ground truth; for a clip it has one box as a parameter.
"""
from __future__ import annotations

import sys

import cv2
import numpy as np
import rclpy
from rclpy.executors import ExternalShutdownException
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.qos import QoSProfile, qos_profile_sensor_data
from sensor_msgs.msg import Image
from std_msgs.msg import Header
from std_srvs.srv import Trigger

from sam2_core.masks import mask_box
from sam2_core.metrics import iou
from sam2_ros.demo.recording import to_labels
from sam2_ros.messages.conversions import to_nanoseconds, to_roi
from sam2_ros.msg import ImagePoint, Instance, InstanceArray, Prompt, PromptStatus
from sam2_ros.perception.instance_messages import instance_mask
from sam2_ros.runtime.dds import use_image_profile
from sam2_ros.tabletop.scene import LABELS

PENDING = 60  # label images that are kept until the instances of their stamp arrive


class Prompter(Node):
    """Node that prompts.

    Its parameters are ``box`` (x0, y0, x1, y1 in pixels; without it boxes come from the ground truth), ``late_id``
    (object that appears later and is prompted once it is completely in view), ``late_after`` (seconds before which it
    is not prompted) and ``click_after`` (seconds until the object with the worst mask is corrected).

    The camera holds its first image until the objects in it are tracked; seconds count from then. The node refuses
    prompts for images that it has not received, so the prompter waits for the first ``instances``.
    """

    def __init__(self) -> None:
        super().__init__('prompter')
        self._box = self.declare_parameter('box', Parameter.Type.INTEGER_ARRAY).value
        self._late_id = self.declare_parameter('late_id', 4).value
        self._late_after = self.declare_parameter('late_after', 5.0).value
        self._click_after = self.declare_parameter('click_after', 12.0).value
        self._waiting_for: set[int] | None = None  # ids prompted in the first image and not tracked yet
        self._started: int | None = None  # stamp, ns
        self._node_sees = False
        self._late_is_due = self._click_is_due = self._box is None
        self._truths: dict[int, np.ndarray] = {}  # by stamp
        self._start = self.create_client(Trigger, '/camera/start')
        self._prompts = self.create_publisher(Prompt, '/sam2/prompt', QoSProfile(depth=100))
        needed = [self.create_subscription(InstanceArray, '/sam2/instances', self._on_instances, QoSProfile(depth=100)),
                  self.create_subscription(PromptStatus, '/sam2/prompt_status', self._on_status, QoSProfile(depth=100))]
        if self._box is None:
            needed.append(self.create_subscription(Image, '/camera/truth', self._on_truth, QoSProfile(depth=10)))
        self._needed = needed
        self._timer = self.create_timer(0.05, self._connect)

    def _connect(self) -> None:
        """Subscribe to the image last: the camera counts a subscriber as ready."""
        if (self._prompts.get_subscription_count() and self._start.service_is_ready()
                and all(subscription.get_publisher_count() for subscription in self._needed)):
            self.destroy_timer(self._timer)
            self.create_subscription(Image, 'image', self._on_image, qos_profile_sensor_data)

    def _on_image(self, message: Image) -> None:
        if self._box is not None and self._waiting_for is None and self._node_sees:
            self._waiting_for = {1}
            self._set(message.header, 1, self._box, 'object')

    def _on_truth(self, message: Image) -> None:
        stamp, labels = to_nanoseconds(message.header.stamp), to_labels(message)
        self._truths[stamp] = labels
        if len(self._truths) > PENDING:
            del self._truths[min(self._truths)]
        if self._waiting_for is None and self._node_sees:
            self._waiting_for = set(np.unique(labels[labels > 0]).tolist()) - {self._late_id}
            for object_id in self._waiting_for:
                if (box := mask_box(labels == object_id)) is not None:
                    self._set(message.header, object_id, box, LABELS[object_id])
        elif self._late_is_due and self._elapsed(stamp) >= self._late_after:
            box = mask_box(labels == self._late_id)
            if box and min(box[:2]) > 0 and box[2] < message.width and box[3] < message.height:  # completely in view
                self._late_is_due = False
                self._set(message.header, self._late_id, box, LABELS[self._late_id])

    def _on_instances(self, message: InstanceArray) -> None:
        self._node_sees = True
        if self._started is None:
            if self._waiting_for and self._waiting_for <= {item.id for item in message.instances}:
                self._start_camera(to_nanoseconds(message.header.stamp))
            return
        stamp = to_nanoseconds(message.header.stamp)
        labels = self._truths.get(stamp)
        if labels is None or not self._click_is_due or self._elapsed(stamp) < self._click_after:
            return
        visible = [item for item in message.instances
                   if item.state == Instance.TRACKED and (labels == item.id).any()]
        if not visible:
            return
        self._click_is_due = False
        masks = {item.id: instance_mask(item, message.height, message.width) for item in visible}
        worst = min(masks, key=lambda key: iou(masks[key], labels == key))
        x, y, label = correction(masks[worst], labels == worst)
        self._prompts.publish(Prompt(header=message.header, action=Prompt.REFINE, id=worst,
                                     points=[ImagePoint(x=x, y=y, label=label)]))
        self.get_logger().info(f'click at ({x:.0f}, {y:.0f}), label {label}, for {LABELS[worst]}')

    def _on_status(self, message: PromptStatus) -> None:
        """Stop waiting for an object whose prompt was refused."""
        if not message.accepted and self._started is None and self._waiting_for is not None:
            self.get_logger().error(f'prompt for id {message.id} refused: {message.reason}')
            self._waiting_for.discard(message.id)
            if not self._waiting_for:
                self._start_camera(to_nanoseconds(message.header.stamp))

    def _start_camera(self, stamp: int) -> None:
        self._started = stamp
        self._start.call_async(Trigger.Request())

    def _elapsed(self, stamp: int) -> float:
        """Return the seconds since the camera was started, -1 before."""
        return -1.0 if self._started is None else (stamp - self._started) / 1e9

    def _set(self, header: Header, object_id: int, box: tuple[int, int, int, int], label: str) -> None:
        self._prompts.publish(Prompt(header=header, action=Prompt.SET, id=object_id, label=label, box=to_roi(box)))
        self.get_logger().info(f'box {tuple(box)} for {label}')


def correction(found: np.ndarray, truth: np.ndarray) -> tuple[float, float, int]:
    """Return the click that corrects a mask best.

    It lies deep inside the largest region in which ``found`` differs from ``truth``, both bool (H, W). If they are
    equal, it lies deep inside the object.

    Returns:
        x and y in pixels, and the label: ImagePoint.FOREGROUND or ImagePoint.BACKGROUND.
    """
    wrong = found != truth if (found != truth).any() else truth
    _, regions, sizes, _ = cv2.connectedComponentsWithStats(wrong.astype(np.uint8))
    largest = (regions == 1 + sizes[1:, cv2.CC_STAT_AREA].argmax()).astype(np.uint8)
    depth = cv2.distanceTransform(np.pad(largest, 1), cv2.DIST_L2, 5)[1:-1, 1:-1]
    y, x = np.unravel_index(depth.argmax(), depth.shape)
    return float(x), float(y), ImagePoint.FOREGROUND if truth[y, x] else ImagePoint.BACKGROUND


def main(args: list[str] | None = None) -> int:
    """Prompt until SIGINT; return the exit code."""
    cv2.setNumThreads(1)
    use_image_profile()
    rclpy.init(args=args)
    node = Prompter()
    try:
        rclpy.spin(node)
    except (KeyboardInterrupt, ExternalShutdownException):
        pass
    finally:
        node.destroy_node()
        rclpy.try_shutdown()
    return 0


if __name__ == '__main__':
    sys.exit(main())
