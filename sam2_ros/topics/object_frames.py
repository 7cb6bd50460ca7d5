"""TF frames of the objects of one camera."""
from __future__ import annotations

import re

from geometry_msgs.msg import Quaternion, Transform, TransformStamped, Vector3
from rclpy.node import Node

from sam2_ros.messages.tf2 import tf2_for
from sam2_ros.msg import Instance
from sam2_ros.perception.frame import Frame, TrackedObject
from sam2_ros.perception.instance_messages import target_header
from sam2_ros.runtime.parameters import Parameters

WARN_EVERY = 5.0  # seconds
UNNAMED = 'object'  # in place of a label without a letter or digit


class ObjectFrames:
    """Broadcaster of a TF frame for each object while it is TRACKED with depth.

    The parent is target_frame, or the frame of the image. The stamp is that of the image.
    """

    def __init__(self, node: Node, prefix: str) -> None:
        """``prefix`` begins the name of every frame. Raises Tf2Missing if tf2_ros is not installed."""
        self._node = node
        self._prefix = prefix
        self._broadcaster = tf2_for('publish_tf').TransformBroadcaster(node)

    def publish(self, frame: Frame, parameters: Parameters) -> None:
        """Send the frames of the objects of an image."""
        transforms = []
        for item in frame.objects:
            if item.state != Instance.TRACKED or item.shape is None or item.target is None:
                continue
            header = target_header(frame.header, item.target)
            if not header.frame_id:
                self._node.get_logger().warning('publish_tf: the image names no frame: its objects have no TF frames; '
                                                'have the camera driver set frame_id', throttle_duration_sec=WARN_EVERY)
                return
            box = item.target.box(item.shape)
            x, y, z = box.centre.tolist()
            turn = Quaternion(**dict(zip('xyzw', box.quaternion, strict=True)))
            transforms.append(TransformStamped(
                header=header, child_frame_id=frame_name(self._prefix, item, parameters.tf_names),
                transform=Transform(translation=Vector3(x=x, y=y, z=z), rotation=turn)))
        if transforms:
            self._broadcaster.sendTransform(transforms)

    def destroy(self) -> None:
        """Destroy the publisher."""
        self._node.destroy_publisher(self._broadcaster.pub_tf)


def frame_prefix(node: Node, camera: str) -> str:
    """Return the beginning of the names of frames: the full name of the node, and the camera if there are several."""
    name = node.get_fully_qualified_name().lstrip('/')
    return f'{name}/{camera}' if camera else name


def frame_name(prefix: str, item: TrackedObject, names: str) -> str:
    """Return the name of an object's frame: PREFIX/ID, or PREFIX/LABEL_ID if ``names`` is 'label'.

    Characters of the label other than letters and digits become ``_``, so that every tool takes the name.
    """
    if names != 'label':
        return f'{prefix}/{item.id}'
    return f'{prefix}/{re.sub(r"[^A-Za-z0-9]+", "_", item.label).strip("_") or UNNAMED}_{item.id}'


def why_unusable_target(target_frame: str, node: Node) -> str:
    """Return why positions cannot be in ``target_frame`` while TF frames of the objects are published, or ''."""
    own = f'{frame_prefix(node, "")}/'
    if not target_frame.startswith(own):
        return ''
    return (f"target_frame '{target_frame}' with publish_tf: must not be the frame of an object, which begins with "
            f"'{own}'; choose a frame of the robot")
