"""One camera in the node: its topics and services around its stream."""
from __future__ import annotations

import threading
import time
from collections.abc import Callable

from geometry_msgs.msg import PointStamped
from rclpy.callback_groups import ReentrantCallbackGroup
from rclpy.lifecycle import LifecycleNode
from rclpy.qos import QoSProfile, qos_profile_sensor_data
from rclpy.qos_overriding_options import QoSOverridingOptions
from rclpy.task import Future
from sensor_msgs.msg import CompressedImage, Image
from std_srvs.srv import Trigger

from sam2_core import EncodedImage, PromptError, Sam2Model, StreamTracker
from sam2_ros.depth.matching import DepthMailbox
from sam2_ros.messages.vision import vision_msgs
from sam2_ros.msg import Prompt as PromptMessage
from sam2_ros.perception.camera_pipeline import CameraPipeline
from sam2_ros.perception.detection_prompts import DetectionGate
from sam2_ros.perception.frame import Frame
from sam2_ros.perception.inbox import Inbox
from sam2_ros.perception.instance_messages import instance_array
from sam2_ros.perception.load_shedding import Level, LoadShedder
from sam2_ros.perception.prompt_plan import Ids, PromptAnswer, PromptRequest, refuse
from sam2_ros.perception.single_image import TOO_MANY, Query, QueryResult, SegmentAllQuery, SegmentImageQuery
from sam2_ros.runtime.failures import Failures
from sam2_ros.runtime.node_arguments import image_topic
from sam2_ros.runtime.parameters import Parameters
from sam2_ros.srv import SegmentAll, SegmentImage, SetPrompt
from sam2_ros.topics.depth_topics import DepthTopics
from sam2_ros.topics.diagnostics import WatchedCamera
from sam2_ros.topics.point_prompts import PointPrompts
from sam2_ros.topics.publishers import CameraPublishers


class CameraTopics:
    """Receives images, prompts and questions in the executor's thread and leaves them to the worker, whose thread calls
    ``work`` and ``work_aside``."""

    def __init__(self, node: LifecycleNode, name: str = '') -> None:
        """name: empty for the only camera; it is in all of its topics otherwise."""
        self.name = name
        self.pipeline: CameraPipeline | None = None  # while configured
        self._ids = Ids()  # of its objects, as long as the process lives
        self._outputs: CameraPublishers | None = None
        self._active = False
        self._node = node
        self._private = f'~/{name}' if name else '~'
        self._public = f'{name}/' if name else ''
        self._subscriptions: list = []
        self._depth_topics: DepthTopics | None = None
        self._points = PointPrompts(node)
        # answers come from the worker: a call that waits for its own must not hold up any other callback
        waiting = ReentrantCallbackGroup()
        for kind, service, callback in ((SetPrompt, 'set_prompt', self._on_set_prompt),
                                        (SegmentImage, 'segment_image', self._on_segment_image),
                                        (SegmentAll, 'segment_all', self._on_segment_all),
                                        (Trigger, 'reset', self._on_reset)):
            node.create_service(kind, f'{self._private}/{service}', callback, callback_group=waiting)

    # --- lifecycle

    def configure(self, model: Sam2Model, parameters: Parameters, changed: threading.Condition) -> None:
        depth = None
        if parameters.use_depth:
            depth = DepthMailbox(changed, self._node.resolve_topic_name(f'{self._public}depth'),
                                 self._node.resolve_topic_name(self._image_topic(parameters)))
        topic, logger = self._node.resolve_topic_name(self._image_topic(parameters)), self._node.get_logger()
        failures = Failures(logger, topic, self._node.context.ok)
        self.pipeline = CameraPipeline(StreamTracker(model), parameters, changed, topic, logger, depth, failures,
                                       self._ids)
        self._outputs = CameraPublishers(self._node, self._private, failures)
        self._gate = DetectionGate()
        self.shedder = LoadShedder()

    def activate(self) -> None:
        """Start to listen; the worker has to run."""
        chosen = self.pipeline.parameters
        kind = CompressedImage if chosen.image_transport == 'compressed' else Image
        prompts = f'{self._private}/prompt'
        self._active = True
        self.pipeline.meter.start(time.monotonic())
        self._subscriptions = [
            self._node.create_subscription(kind, self._image_topic(chosen), self._on_image, qos_profile_sensor_data,
                                           qos_overriding_options=QoSOverridingOptions.with_default_policies()),
            self._node.create_subscription(PromptMessage, prompts, self._on_prompt, QoSProfile(depth=100),
                                           failed=self._refuse),
            self._node.create_subscription(PointStamped, f'{self._private}/prompt_point', self._on_prompt_point,
                                           QoSProfile(depth=10), failed=self._refuse)]
        if self.pipeline.depth is not None:
            self._depth_topics = DepthTopics(self._node, self.pipeline.depth, self._public)
        if chosen.detections_topic:
            self._subscriptions.append(self._node.create_subscription(
                vision_msgs.Detection2DArray, f'{self._public}{chosen.detections_topic}', self._on_detections,
                qos_profile_sensor_data))  # some detectors publish best effort, which a reliable one would not hear
        self._node.get_logger().info(f'active: images from {self.pipeline.topic}, prompts from '
                                     f'{self._node.resolve_topic_name(prompts)}')

    def stop_listening(self) -> None:
        for subscription in self._subscriptions:
            self._node.destroy_subscription(subscription)
        self._subscriptions = []
        if self._depth_topics is not None:
            self._depth_topics.destroy()
            self._depth_topics = None

    def deactivate(self, reason: str, ended: bool = True) -> None:
        """Refuse what still waits. ``ended``: the worker has; if not, only what it has not taken is refused."""
        self._active = False
        answers = self.pipeline.drain(reason) if ended else self.pipeline.abandon(reason)
        self.pipeline.failures.run('detections', self._gate.see, None, answers, self.pipeline.parameters)
        for answer in answers:
            if self._node.context.ok():
                self._outputs.answer(answer)

    def cleanup(self) -> None:
        if self._outputs is not None:
            self._outputs.destroy()
        self.pipeline = self._outputs = None

    def watched(self) -> WatchedCamera:
        """What the diagnostics look at."""
        return WatchedCamera(self.name, self.pipeline.topic, self.pipeline.meter, self.shedder,
                             self.pipeline.history.extent, self.pipeline.failures)

    def _image_topic(self, chosen: Parameters) -> str:
        return image_topic(self._node, f'{self._public}image', chosen.image_transport)

    # --- what arrives, in the executor's thread

    def _on_image(self, message: Image | CompressedImage) -> None:
        self.pipeline.put_image(message)

    def _refuse(self, message: PromptMessage | PointStamped, reason: str) -> None:
        """Answer a prompt whose callback failed."""
        prompt = message if isinstance(message, PromptMessage) else PromptMessage(header=message.header)
        self._outputs.answer(refuse(PromptRequest(prompt, time.monotonic()),
                                    f'the node failed to read it, see the log: {reason}'))

    def _on_prompt(self, message: PromptMessage) -> None:
        self._submit(PromptRequest(message, time.monotonic()))

    def _on_prompt_point(self, message: PointStamped) -> None:
        try:
            image, size = self.pipeline.newest_view
            if image is None:
                raise PromptError(self.pipeline.skipped.why_none_yet())
            infos = [] if self.pipeline.depth is None else self.pipeline.depth.infos
            prompt = self._points.prompt(message, infos, image, size, self.pipeline.parameters.rectified)
        except PromptError as error:
            request = PromptRequest(PromptMessage(header=message.header), time.monotonic())
            self._outputs.answer(refuse(request, str(error)))
        else:
            self._submit(PromptRequest(prompt, time.monotonic()))

    def _on_detections(self, message: vision_msgs.Detection2DArray) -> None:
        self._gate.put(message)
        self.pipeline.inbox.notify()

    async def _on_set_prompt(self, request: SetPrompt.Request, response: SetPrompt.Response) -> SetPrompt.Response:
        if not self._active:
            response.reason = self._why_not()
            return response
        return await self._ask(request.prompt)

    async def _on_reset(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        if self._active:
            answer = await self._ask(PromptMessage(action=PromptMessage.CLEAR))
            response.success, response.message = answer.accepted, answer.reason
        else:  # the objects are ours while there is no worker
            if self.pipeline is not None:
                self.pipeline.reset()
            response.success = True
        return response

    async def _on_segment_image(self, request: SegmentImage.Request,
                                response: SegmentImage.Response) -> SegmentImage.Response:
        future, reply = self._future()
        return _tell(await self._put(SegmentImageQuery(request, reply), future), response)

    async def _on_segment_all(self, request: SegmentAll.Request, response: SegmentAll.Response) -> SegmentAll.Response:
        future, reply = self._future()
        seconds = self.pipeline.parameters.segment_all_seconds if self._active else 0.0
        found = await self._put(SegmentAllQuery(request, reply, seconds), future)
        response.complete = isinstance(found, QueryResult) and found.complete
        return _tell(found, response)

    def _future(self) -> tuple[Future, Callable]:
        """A future to be awaited in the executor, and what the worker is to call with its result."""
        executor = self._node.executor
        future = Future(executor=executor)
        return future, lambda result: executor.create_task(future.set_result, result)

    def _ask(self, message: PromptMessage) -> Future:
        """The worker's answer to a prompt, a SetPrompt.Response."""
        future, reply = self._future()
        self._submit(PromptRequest(message, time.monotonic(), reply))
        return future

    def _submit(self, request: PromptRequest) -> PromptAnswer | None:
        """Leave a prompt to the worker; if too many are waiting, publish and return its refusal."""
        if self.pipeline.inbox.put_prompt(request):
            return None
        refusal = refuse(request, f'{Inbox.PROMPT_LIMIT} prompts are waiting already: send them more slowly, or '
                                  f'check that images arrive{self.pipeline.skipped.hint()}')
        self._outputs.answer(refusal)
        return refusal

    async def _put(self, call: Query, future: Future) -> QueryResult | str:
        """What the worker finds, or why it finds nothing."""
        if not self._active:
            return self._why_not()
        if not self.pipeline.inbox.put_query(call):
            return TOO_MANY + self.pipeline.skipped.hint()
        return await future

    def _why_not(self) -> str:
        state = self._node._state_machine.current_state[1]
        return f'the node is {state}: {"configure and " if state == "unconfigured" else ""}activate it first'

    # --- in the worker's thread

    def work(self, encoded: EncodedImage | None) -> None:
        """What has arrived; ``encoded`` as for ``CameraPipeline.work``."""
        pipeline, outputs = self.pipeline, self._outputs
        chosen, run = pipeline.parameters, pipeline.failures.run
        if chosen.detections_topic and pipeline.image_size is not None:
            run('detections', self._prompt_detections, chosen)
        frame, answers = pipeline.work(encoded)
        if self.pipeline is not pipeline:  # the node gave up waiting for this image and was cleaned up meanwhile
            return
        latency = outputs.publish(frame, answers, chosen, pictures=self.shedder.level < Level.PICTURES)
        if chosen.detections_topic:
            run('detections', self._gate.see, frame, answers, chosen)
        if frame is not None:
            run('meter', self._count, frame, latency)
            run('load shedding', self._shed, latency, chosen)

    def work_aside(self) -> None:
        """A slice of it."""
        pipeline, outputs = self.pipeline, self._outputs
        answers = pipeline.work_aside()
        if self.pipeline is not pipeline:
            return
        outputs.publish(None, answers, pipeline.parameters)
        if answers:
            pipeline.failures.run('detections', self._gate.see, None, answers, pipeline.parameters)

    def _prompt_detections(self, chosen: Parameters) -> None:
        room = Inbox.PROMPT_LIMIT - len(self.pipeline.inbox.prompts)
        header, size = self.pipeline.newest_view
        proposal = self._gate.take(chosen, *size, room, header.frame_id)
        for reason in proposal.refused:
            topic = self._node.resolve_topic_name(f'{self._public}{chosen.detections_topic}')
            self._node.get_logger().warning(f'{topic}: {reason}', throttle_duration_sec=5.0)
        refusals = [self._submit(PromptRequest(prompt, time.monotonic())) for prompt in proposal.prompts]
        self._gate.see(None, filter(None, refusals), chosen)

    def _count(self, frame: Frame, latency: float) -> None:
        self.pipeline.meter.processed(time.monotonic(), latency, frame.objects, dropped=frame.dropped,
                                    memory_bytes=self.pipeline.tracker.memory_bytes,
                                    catching_up=self.pipeline.catching_up)

    def _shed(self, latency: float, chosen: Parameters) -> None:
        """Do less when the results come too late."""
        before = self.shedder.level
        level = self.shedder.update(latency, time.monotonic(), chosen.latency_target, chosen.shed_load)
        if level != before:
            self._node.get_logger().warning(f'{self.pipeline.topic}: load shedding level {int(level)}: '
                                            f'{level.description} (latency_target {chosen.latency_target:g} s)')
        self.pipeline.leave_out(level)


def _tell(found: QueryResult | str, response: SegmentImage.Response | SegmentAll.Response):
    """Fill in a response: what was found, or why nothing was."""
    if isinstance(found, str):
        response.reason = found
    else:
        response.success = True
        response.result = instance_array(Frame(found.picture.header, found.picture.image, found.objects, 0))
    return response
