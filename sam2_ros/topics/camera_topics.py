"""Subscriptions and publishers of one camera while the node is configured."""
from __future__ import annotations

import threading
import time
from collections.abc import Callable

from geometry_msgs.msg import PointStamped
from rclpy.qos import QoSProfile, qos_profile_sensor_data
from rclpy.subscription import Subscription
from sensor_msgs.msg import CompressedImage, Image

from sam2_core import PromptError, Sam2Model, StreamTracker
from sam2_ros.depth.matching import DepthMailbox
from sam2_ros.depth.transforms import TargetFrame, Transforms
from sam2_ros.messages.vision import vision_msgs
from sam2_ros.msg import Prompt as PromptMessage
from sam2_ros.perception.camera_pipeline import CameraPipeline
from sam2_ros.perception.detection_prompts import DetectionGate
from sam2_ros.perception.frame import Frame
from sam2_ros.perception.inbox import Inbox
from sam2_ros.perception.kept_objects import KeptObjects
from sam2_ros.perception.load_shedding import Level
from sam2_ros.perception.prompt_plan import Ids, PromptAnswer, PromptRequest, refuse
from sam2_ros.runtime.failures import Failures
from sam2_ros.runtime.guarded_node import GuardedNode
from sam2_ros.runtime.image_transports import (
    ImageSubscription,
    depth_transport_of,
    image_transport_of,
    transport_topic,
)
from sam2_ros.runtime.kept_path import kept_path
from sam2_ros.runtime.parameters import Parameters
from sam2_ros.topics.depth_topics import DepthTopics
from sam2_ros.topics.diagnostics import WatchedCamera
from sam2_ros.topics.object_frames import ObjectFrames, frame_prefix
from sam2_ros.topics.point_prompts import PointPrompts
from sam2_ros.topics.publishers import CameraPublishers

WARN_EVERY = 5.0  # seconds


class CameraTopics:
    """Topics around the pipeline of one camera, from configure to cleanup.

    Callbacks run in the executor's thread and leave what arrives in the pipeline's inbox. The worker's thread calls
    ``before_step``, ``publish`` and ``now`` (``ServedCamera``).
    """

    def __init__(self, node: GuardedNode, name: str, model: Sam2Model, parameters: Parameters,
                 changed: threading.Condition, ids: Ids, points: PointPrompts, transforms: Transforms) -> None:
        """Create the publishers; ``subscribe`` creates the subscriptions.

        Args:
            node: The node.
            name: Name of the camera, which is part of its topics; empty for the only camera.
            model: Model that all cameras share.
            parameters: Those of the node.
            changed: Notified of everything that arrives.
            ids: Source of ids for new objects.
            points: Converts clicked points into prompts.
            transforms: Those of the node.
        """
        self.name = name
        self.closed = False
        self.watch: Callable[[Frame | None, list[PromptAnswer]], None] | None = None  # sees what is published, guarded
        self._node = node
        self._private = f'~/{name}' if name else '~'
        self._public = f'{name}/' if name else ''
        self._points = points
        self._subscriptions: list[Subscription] = []
        self._images: ImageSubscription | None = None
        self._depth_topics: DepthTopics | None = None
        topic, depth_topic = (node.resolve_topic_name(transport_topic(node, f'{self._public}{topic}', transport))
                              for topic, transport in (('image', image_transport_of(parameters, name)),
                                                       ('depth', depth_transport_of(parameters, name))))
        depth = DepthMailbox(changed, depth_topic, topic) if parameters.use_depth else None
        failures = Failures(node.get_logger(), topic, node.context.ok)
        target = TargetFrame(transforms, parameters.target_frame) if parameters.target_frame else None
        self.pipeline = CameraPipeline(StreamTracker(model, memory_policy=parameters.memory_policy), parameters,
                                       changed, topic, node.get_logger(), depth, failures, ids, target)
        self.kept: KeptObjects | None = None
        if parameters.keep_objects:
            self.kept = KeptObjects(kept_path(parameters.keep_objects, name),
                                    node.resolve_topic_name(f'{self._public}image'), self.pipeline, ids,
                                    node.get_logger())
            failures.run('kept objects', self.kept.restore)
        frames = ObjectFrames(node, frame_prefix(node, name)) if parameters.publish_tf else None
        self._publishers = CameraPublishers(node, self._private, failures, frames)
        self._gate = DetectionGate()

    def watched(self) -> WatchedCamera:
        """Return the parts of the camera that diagnostics read."""
        pipeline = self.pipeline
        return WatchedCamera(self.name, pipeline.topic, pipeline.meter, pipeline.shedder, pipeline.history.extent,
                             pipeline.failures, lambda: pipeline.decoder.description, self.kept)

    # --- lifecycle

    def subscribe(self) -> None:
        """Subscribe. The worker has to run."""
        chosen = self.pipeline.parameters
        prompts = f'{self._private}/prompt'
        self.pipeline.meter.start(time.monotonic())
        self._images = ImageSubscription(self._node, f'{self._public}image', image_transport_of(chosen, self.name),
                                         self._on_image)
        self._subscriptions = [
            self._node.create_subscription(PromptMessage, prompts, self._on_prompt, QoSProfile(depth=100),
                                           failed=self._on_failed_callback),
            self._node.create_subscription(PointStamped, f'{self._private}/prompt_point', self._on_prompt_point,
                                           QoSProfile(depth=10), failed=self._on_failed_callback)]
        if self.pipeline.depth is not None:
            self._depth_topics = DepthTopics(self._node, self.pipeline.depth, self._public,
                                             transport=depth_transport_of(chosen, self.name))
        if chosen.detections_topic:
            self._subscriptions.append(self._node.create_subscription(
                vision_msgs.Detection2DArray, f'{self._public}{chosen.detections_topic}', self._on_detections,
                qos_profile_sensor_data))  # a reliable subscription would not match detectors that are best effort
        self._node.get_logger().info(f'active: images from {self.pipeline.topic}, prompts from '
                                     f'{self._node.resolve_topic_name(prompts)}')

    def unsubscribe(self) -> None:
        """Destroy the subscriptions."""
        for subscription in self._subscriptions:
            self._node.destroy_subscription(subscription)
        self._subscriptions = []
        if self._images is not None:
            self._images.destroy()
            self._images = None
        if self._depth_topics is not None:
            self._depth_topics.destroy()
            self._depth_topics = None

    def refuse_waiting(self, reason: str, ended: bool) -> None:
        """Refuse everything that waits; if the worker has not ``ended``, only what it has not taken."""
        answers = self.pipeline.drain(reason) if ended else self.pipeline.abandon(reason)
        self.pipeline.failures.run('detections', self._gate.see, None, answers, self.pipeline.parameters)
        for answer in answers:
            if self._node.context.ok():
                self._publishers.answer(answer)
        if ended:
            self.save_objects()

    def save_objects(self) -> None:
        """Save the objects where ``keep_objects`` says so. The worker must have ended."""
        if self.kept is not None:
            self.pipeline.failures.run('kept objects', self.kept.save)

    def stop_keeping(self) -> None:
        """Unlock the file of ``keep_objects``; nothing is saved from now on."""
        kept, self.kept = self.kept, None
        if kept is not None:
            kept.close()

    def close(self) -> None:
        """Destroy the publishers; results of a step that is still in work are dropped."""
        self.closed = True
        self._publishers.destroy()
        self.stop_keeping()
        del self.pipeline  # the executor may hold the callbacks, and with them this object, for longer

    # --- callbacks

    def _on_image(self, message: Image | CompressedImage) -> None:
        self.pipeline.put_image(message)

    def _on_failed_callback(self, message: PromptMessage | PointStamped, reason: str) -> None:
        prompt = message if isinstance(message, PromptMessage) else PromptMessage(header=message.header)
        self._publishers.answer(refuse(PromptRequest(prompt, time.monotonic()),
                                       f'the node failed to read it, see the log: {reason}'))

    def _on_prompt(self, message: PromptMessage) -> None:
        self.submit(PromptRequest(message, time.monotonic()))

    def _on_prompt_point(self, message: PointStamped) -> None:
        pipeline = self.pipeline
        try:
            image, size = pipeline.newest_view
            if image is None:
                raise PromptError(pipeline.skipped.why_none_yet())
            infos = [] if pipeline.depth is None else pipeline.depth.infos
            prompt = self._points.prompt(message, infos, image, size, pipeline.parameters.rectified)
        except PromptError as error:
            request = PromptRequest(PromptMessage(header=message.header), time.monotonic())
            self._publishers.answer(refuse(request, str(error)))
        else:
            self.submit(PromptRequest(prompt, time.monotonic()))

    def _on_detections(self, message: vision_msgs.Detection2DArray) -> None:
        self._gate.put(message)
        self.pipeline.inbox.notify()

    def submit(self, request: PromptRequest) -> PromptAnswer | None:
        """Put a prompt into the inbox; if too many are waiting, publish and return its refusal."""
        if self.pipeline.inbox.put_prompt(request):
            return None
        refusal = refuse(request, f'{Inbox.PROMPT_LIMIT} prompts are waiting already: send them more slowly, or '
                                  f'check that images arrive{self.pipeline.skipped.hint()}')
        self._publishers.answer(refusal)
        return refusal

    # --- in the worker's thread

    def before_step(self) -> None:
        """Drop restored objects of another view, and put prompts for new detections into the inbox."""
        if self.kept is not None:
            self.pipeline.failures.run('kept objects', self.kept.before_step)
        chosen = self.pipeline.parameters
        header, (height, width) = self.pipeline.newest_view
        if chosen.detections_topic and header is not None:
            self.pipeline.failures.run('detections', self._propose, chosen, height, width, header.frame_id)

    def _propose(self, chosen: Parameters, height: int, width: int, frame_id: str) -> None:
        room = Inbox.PROMPT_LIMIT - len(self.pipeline.inbox.prompts)
        proposal = self._gate.take(chosen, height, width, room, frame_id)
        for reason in proposal.refused:
            topic = self._node.resolve_topic_name(f'{self._public}{chosen.detections_topic}')
            self._node.get_logger().warning(f'{topic}: {reason}', throttle_duration_sec=WARN_EVERY)
        answers = [self.submit(PromptRequest(prompt, time.monotonic())) for prompt in proposal.prompts]
        self._gate.see(None, [answer for answer in answers if answer is not None], chosen)

    def publish(self, frame: Frame | None, answers: list[PromptAnswer]) -> float:
        """Publish a frame and answers; return the seconds from the stamp of its image to now."""
        chosen, run, kept = self.pipeline.parameters, self.pipeline.failures.run, self.kept
        if kept is not None:
            run('kept objects', kept.before_publish)
        latency = self._publishers.publish(frame, answers, chosen,
                                           pictures=self.pipeline.shedder.level < Level.PICTURES)
        if chosen.detections_topic:
            run('detections', self._gate.see, frame, answers, chosen)
        if self.watch is not None:
            run('track action', self.watch, frame, answers)
        if kept is not None:
            run('kept objects', kept.after_publish)
        return latency

    def now(self) -> float:
        """Return time.monotonic()."""
        return time.monotonic()
