"""One camera in the node: its topics and services around its stream."""
from __future__ import annotations

import threading
import time
from collections.abc import Callable

from rclpy.callback_groups import ReentrantCallbackGroup
from rclpy.lifecycle import LifecycleNode
from rclpy.qos import QoSProfile, qos_profile_sensor_data
from rclpy.qos_overriding_options import QoSOverridingOptions
from rclpy.task import Future
from sensor_msgs.msg import CompressedImage, Image
from std_srvs.srv import Trigger

from sam2_core import EncodedImage, Sam2Model, StreamTracker
from sam2_ros.frame import Frame
from sam2_ros.mailbox import Mailbox
from sam2_ros.msg import Prompt as PromptMessage
from sam2_ros.one_shot import Found, OneShot, SegmentAllCall, SegmentImageCall
from sam2_ros.outputs import Outputs, instance_array
from sam2_ros.parameters import Parameters
from sam2_ros.prompting import PromptRequest, refuse
from sam2_ros.srv import SegmentAll, SegmentImage, SetPrompt
from sam2_ros.stream import Stream


class Camera:
    """Receives images, prompts and questions in the executor's thread and leaves them to the worker, whose thread calls
    ``work`` and ``work_aside``."""

    def __init__(self, node: LifecycleNode, name: str = '') -> None:
        """name: empty for the only camera; it is in all of its topics otherwise."""
        self.name = name
        self.stream: Stream | None = None  # while configured
        self._outputs: Outputs | None = None
        self._active = False
        self._node = node
        self._private = f'~/{name}' if name else '~'
        self._public = f'{name}/' if name else ''
        self._subscriptions: list = []
        # answers come from the worker: a call that waits for its own must not hold up any other callback
        waiting = ReentrantCallbackGroup()
        for kind, service, callback in ((SetPrompt, 'set_prompt', self._on_set_prompt),
                                        (SegmentImage, 'segment_image', self._on_segment_image),
                                        (SegmentAll, 'segment_all', self._on_segment_all),
                                        (Trigger, 'reset', self._on_reset)):
            node.create_service(kind, f'{self._private}/{service}', callback, callback_group=waiting)

    # --- lifecycle

    def configure(self, model: Sam2Model, parameters: Parameters, changed: threading.Condition) -> None:
        self.stream = Stream(StreamTracker(model), parameters, changed, self._image_topic(parameters),
                             self._node.get_logger())
        self._outputs = Outputs(self._node, self._private)

    def activate(self) -> None:
        """Start to listen; the worker has to run."""
        chosen = self.stream.parameters
        kind = CompressedImage if chosen.image_transport == 'compressed' else Image
        topic = self._image_topic(chosen)
        prompts = f'{self._private}/prompt'
        self._active = True
        self._subscriptions = [
            self._node.create_subscription(kind, topic, self._on_image, qos_profile_sensor_data,
                                           qos_overriding_options=QoSOverridingOptions.with_default_policies()),
            self._node.create_subscription(PromptMessage, prompts, self._on_prompt, QoSProfile(depth=100))]
        self._node.get_logger().info(f'active: images from {topic}, prompts from '
                                     f'{self._node.resolve_topic_name(prompts)}')

    def stop_listening(self) -> None:
        for subscription in self._subscriptions:
            self._node.destroy_subscription(subscription)
        self._subscriptions = []

    def deactivate(self, reason: str) -> None:
        """Refuse what still waits, when the worker has ended."""
        self._active = False
        for answer in self.stream.drain(reason):
            if self._node.context.ok():
                self._outputs.answer(answer)

    def cleanup(self) -> None:
        if self._outputs is not None:
            self._outputs.destroy()
        self.stream = self._outputs = None

    def _image_topic(self, chosen: Parameters) -> str:
        """The name in full. As image_transport has it, the compressed topic follows a remapping of the raw one."""
        topic = self._node.resolve_topic_name(f'{self._public}image')
        return f'{topic}/compressed' if chosen.image_transport == 'compressed' else topic

    # --- what arrives, in the executor's thread

    def _on_image(self, message: Image | CompressedImage) -> None:
        self.stream.put_image(message)

    def _on_prompt(self, message: PromptMessage) -> None:
        self._submit(PromptRequest(message, time.monotonic()))

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
            if self.stream is not None:
                self.stream.reset()
            response.success = True
        return response

    async def _on_segment_image(self, request: SegmentImage.Request,
                                response: SegmentImage.Response) -> SegmentImage.Response:
        future, reply = self._future()
        return _tell(await self._put(SegmentImageCall(request, reply), future), response)

    async def _on_segment_all(self, request: SegmentAll.Request, response: SegmentAll.Response) -> SegmentAll.Response:
        future, reply = self._future()
        seconds = self.stream.parameters.segment_all_seconds if self._active else 0.0
        found = await self._put(SegmentAllCall(request, reply, seconds), future)
        response.complete = isinstance(found, Found) and found.complete
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

    def _submit(self, request: PromptRequest) -> None:
        if not self.stream.mailbox.put_prompt(request):
            self._outputs.answer(refuse(request, f'{Mailbox.PROMPT_LIMIT} prompts are waiting already: '
                                                 f'send them more slowly, or check that images arrive'))

    async def _put(self, call: OneShot, future: Future) -> Found | str:
        """What the worker finds, or why it finds nothing."""
        if not self._active:
            return self._why_not()
        if not self.stream.mailbox.put_one_shot(call):
            return f'{Mailbox.ONE_SHOT_LIMIT} questions are waiting already: ask more slowly'
        return await future

    def _why_not(self) -> str:
        return f'the node is {self._node._state_machine.current_state[1]}: activate it first'

    # --- in the worker's thread

    def work(self, encoded: EncodedImage | None) -> None:
        frame, answers = self.stream.work(encoded)
        self._outputs.publish(frame, answers, self.stream.parameters)

    def work_aside(self) -> None:
        self._outputs.publish(None, self.stream.work_aside(), self.stream.parameters)


def _tell(found: Found | str, response: SegmentImage.Response | SegmentAll.Response):
    """Fill in a response: what was found, or why nothing was."""
    if isinstance(found, str):
        response.reason = found
    else:
        response.success = True
        response.result = instance_array(Frame(found.picture.header, found.picture.image, found.objects, 0))
    return response
