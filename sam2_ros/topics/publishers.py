"""Publishers of one camera."""
from __future__ import annotations

from collections.abc import Callable

from builtin_interfaces.msg import Time
from rclpy.lifecycle import LifecycleNode, LifecyclePublisher
from rclpy.publisher import Publisher
from rclpy.qos import QoSProfile
from sensor_msgs.msg import Image, PointCloud2
from std_msgs.msg import Header
from visualization_msgs.msg import MarkerArray

from sam2_ros.drawing.label_images import ClassTable
from sam2_ros.drawing.overlay import draw_overlay
from sam2_ros.messages.conversions import from_pixels, to_nanoseconds
from sam2_ros.messages.qos import RELIABLE
from sam2_ros.msg import Instance, InstanceArray, InstanceEvent, PromptStatus
from sam2_ros.perception.frame import Event, Frame
from sam2_ros.perception.instance_messages import instance_array, instance_message
from sam2_ros.perception.prompt_plan import PromptAnswer
from sam2_ros.runtime.failures import Failures
from sam2_ros.runtime.parameters import Parameters
from sam2_ros.srv import SetPrompt
from sam2_ros.topics.clouds import Markers, background_depth_message, background_points_message, points_message
from sam2_ros.topics.object_frames import ObjectFrames
from sam2_ros.topics.planner_views import FrameTopic, LabelLists, ObjectTopics, planner_views


class CameraPublishers:
    """Publishers of frames, events and answers. Views are built only while they have subscribers."""

    def __init__(self, node: LifecycleNode, prefix: str, failures: Failures | None = None,
                 frames: ObjectFrames | None = None) -> None:
        """Create the publishers.

        Args:
            node: The node.
            prefix: ``~`` or ``~/NAME``.
            failures: Record of publications that fail.
            frames: Broadcaster of the TF frames of objects, which is destroyed with the publishers; None: none.
        """
        self._node = node
        self._failures = failures or Failures(node.get_logger(), usable=node.context.ok)
        self._classes = ClassTable()
        self._markers = Markers()
        self._frames = frames

        def publisher(kind: type, name: str, qos: QoSProfile) -> LifecyclePublisher:
            return node.create_lifecycle_publisher(kind, f'{prefix}/{name}', qos)
        self._instances = publisher(InstanceArray, 'instances', QoSProfile(depth=10))
        self._events = publisher(InstanceEvent, 'events', QoSProfile(depth=100))
        self._prompt_status = publisher(PromptStatus, 'prompt_status', QoSProfile(depth=100))
        self._views = [(view, publisher(view.type, view.topic, view.qos)) for view in planner_views(self._classes)]
        self._pictures = [(view, publisher(view.type, view.topic, view.qos)) for view in self._picture_views()]
        self._labels = LabelLists(node, prefix)
        self._object_topics = ObjectTopics(node, prefix, self._failures)

    def publish(self, frame: Frame | None, answers: list[PromptAnswer], parameters: Parameters,
                pictures: bool = True) -> float:
        """Publish a frame and answers: first instances, events and answers, which planners need, then the views.

        A publication that fails does not prevent the others.

        Args:
            frame: The frame, or None.
            answers: Answers to prompts.
            parameters: Those of the node.
            pictures: False skips the overlay, clouds, markers and background.

        Returns:
            Seconds from the stamp of the image to the publication of its instances; 0 without a stamp or a frame.
        """
        run, latency = self._failures.run, 0
        if frame is not None:
            latency = run('latency', self._age, frame.header.stamp, default=0)
            run('instances', self._publish_instances, frame, latency)
            for event in frame.events:
                run('events', self._publish_event, frame.header, event)
            if self._frames is not None:
                run('TF', self._frames.publish, frame, parameters)
        for answer in answers:
            self.answer(answer)
        if frame is not None:
            run('labels', self._publish_labels, frame, parameters)
            for view, publisher in self._views + (self._pictures if pictures else []):
                run(view.topic, _publish_view, view, publisher, frame, parameters)
            run('object topics', self._object_topics.publish, frame, parameters)
        return latency / 1e9

    def _publish_instances(self, frame: Frame, latency: int) -> None:
        self._instances.publish(instance_array(frame, latency, self._failures))

    def _publish_event(self, header: Header, event: Event) -> None:
        self._events.publish(InstanceEvent(header=header, id=event.id, label=event.label, event=event.kind,
                                           last_seen=event.last_seen))

    def _publish_labels(self, frame: Frame, parameters: Parameters) -> None:
        self._classes.update(parameters.class_names, [item.label for item in frame.objects])
        self._labels.publish(self._classes.names, frame.header)

    def answer(self, answer: PromptAnswer) -> None:
        """Publish an answer, and return it to the caller of the service."""
        run = self._failures.run
        run('prompt_status', self._publish_status, answer)
        if answer.request.reply is not None:
            run('answer', self._reply, answer, answer.request.reply)

    def _publish_status(self, answer: PromptAnswer) -> None:
        self._prompt_status.publish(PromptStatus(header=answer.header, id=answer.id, accepted=answer.accepted,
                                                 reason=answer.reason))

    def _reply(self, answer: PromptAnswer, reply: Callable[[SetPrompt.Response], None]) -> None:
        response = SetPrompt.Response(accepted=answer.accepted, reason=answer.reason, id=answer.id,
                                      header=answer.header)
        if answer.accepted and answer.item is not None:
            response.instance = self._failures.run('instances', instance_message, answer.item, answer.header,
                                                   default=Instance(id=answer.id), about=f'object {answer.id}')
        reply(response)

    def destroy(self) -> None:
        """Destroy all publishers."""
        for publisher in (self._instances, self._events, self._prompt_status,
                          *(publisher for _, publisher in self._views + self._pictures)):
            self._node.destroy_lifecycle_publisher(publisher)
        self._labels.destroy()
        self._object_topics.destroy()
        if self._frames is not None:
            self._frames.destroy()

    def _picture_views(self) -> list[FrameTopic]:
        return [
            FrameTopic('overlay', Image, RELIABLE, lambda frame, parameters: from_pixels(
                draw_overlay(frame.image, frame.objects, parameters.overlay_opacity), 'rgb8', frame.header)),
            FrameTopic('points', PointCloud2, RELIABLE, points_message),
            FrameTopic('markers', MarkerArray, RELIABLE, self._markers.message),
            FrameTopic('background_depth', Image, RELIABLE, background_depth_message),
            FrameTopic('background_points', PointCloud2, RELIABLE, background_points_message)]

    def _age(self, stamp: Time) -> int:
        """Return the age of a stamp in nanoseconds, 0 if the camera does not stamp its images."""
        return 0 if stamp == Time() else self._node.get_clock().now().nanoseconds - to_nanoseconds(stamp)


def _publish_view(view: FrameTopic, publisher: Publisher, frame: Frame, parameters: Parameters) -> None:
    if publisher.get_subscription_count():
        message = view.build(frame, parameters)
        if message is not None:
            publisher.publish(message)
