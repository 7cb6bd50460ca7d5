"""One camera through the life of the node: services and action, and its topics while the node is configured."""
from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

from rclpy.callback_groups import ReentrantCallbackGroup
from rclpy.task import Future
from std_srvs.srv import Trigger

from sam2_core import Sam2Model
from sam2_ros.depth.transforms import Transforms
from sam2_ros.msg import Prompt as PromptMessage
from sam2_ros.perception.camera_pipeline import CameraPipeline
from sam2_ros.perception.frame import Frame
from sam2_ros.perception.instance_messages import instance_array
from sam2_ros.perception.kept_objects import discard
from sam2_ros.perception.prompt_plan import Ids, PromptRequest
from sam2_ros.perception.single_image import TOO_MANY, Query, QueryResult, SegmentAllQuery, SegmentImageQuery
from sam2_ros.runtime.guarded_node import GuardedNode
from sam2_ros.runtime.kept_path import kept_path
from sam2_ros.runtime.node_parameters import read_parameters
from sam2_ros.runtime.parameters import Parameters
from sam2_ros.srv import SegmentAll, SegmentImage, SetPrompt
from sam2_ros.topics.camera_topics import CameraTopics
from sam2_ros.topics.point_prompts import PointPrompts
from sam2_ros.topics.track_action import TrackAction

Response = TypeVar('Response', SegmentImage.Response, SegmentAll.Response)


class NodeCamera:
    """A camera of the node. Its services and action exist as long as the node, and refuse while it is not active."""

    def __init__(self, node: GuardedNode, name: str, transforms: Transforms) -> None:
        """Create the services.

        Args:
            node: The node.
            name: Empty for the only camera; otherwise it is part of all of its topics and services.
            transforms: Those of the node.
        """
        self._node = node
        self._name = name
        self._ids = Ids()  # of its objects, as long as the process lives
        self._transforms = transforms
        self._points = PointPrompts(transforms)
        self._topics: CameraTopics | None = None
        self._active = False
        private = f'~/{name}' if name else '~'
        # the worker answers: a call that waits for its answer must not block other callbacks
        waiting = ReentrantCallbackGroup()
        for kind, service, callback in ((SetPrompt, 'set_prompt', self._on_set_prompt),
                                        (SegmentImage, 'segment_image', self._on_segment_image),
                                        (SegmentAll, 'segment_all', self._on_segment_all),
                                        (Trigger, 'reset', self._on_reset)):
            node.create_service(kind, f'{private}/{service}', callback, callback_group=waiting)
        self._track = TrackAction(node, f'{private}/track', self._why_inactive, waiting)

    @property
    def topics(self) -> CameraTopics:
        """Return the camera's topics. Raises RuntimeError while the node is not configured."""
        if self._topics is None:
            raise RuntimeError('the node is not configured')
        return self._topics

    @property
    def pipeline(self) -> CameraPipeline:
        """Return the camera's pipeline. Raises RuntimeError while the node is not configured."""
        return self.topics.pipeline

    # --- lifecycle

    def configure(self, model: Sam2Model, parameters: Parameters, changed: threading.Condition) -> None:
        """Create pipeline and publishers. ``changed`` is notified of everything that arrives."""
        self._topics = CameraTopics(self._node, self._name, model, parameters, changed, self._ids, self._points,
                                    self._transforms)

    def activate(self) -> None:
        """Subscribe. The worker has to run."""
        self._active = True
        self._track.start(self.topics)
        self.topics.subscribe()

    def unsubscribe(self) -> None:
        """Unsubscribe."""
        if self._topics is not None:
            self._topics.unsubscribe()

    def deactivate(self, reason: str, ended: bool = True) -> None:
        """End all goals and refuse everything that waits; if the worker has not ``ended``, only what it has not taken.

        reason: What happened to the node, as a sentence.
        """
        self._active = False
        self._track.stop(reason)
        self.topics.refuse_waiting(f'{reason} before the prompt was applied', ended)

    def end(self) -> None:
        """Unlock the file of ``keep_objects``, for another node of this process."""
        if self._topics is not None:
            self._topics.stop_keeping()

    def cleanup(self) -> None:
        """Drop pipeline and publishers."""
        self._track.stop('the node was cleaned up')
        topics, self._topics = self._topics, None
        if topics is not None:
            topics.close()

    # --- services, in the executor's thread

    async def _on_set_prompt(self, request: SetPrompt.Request, response: SetPrompt.Response) -> SetPrompt.Response:
        if not self._active:
            response.reason = self._why_inactive()
            return response
        return await self._submit(request.prompt)

    async def _on_reset(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        if self._active:
            answer = await self._submit(PromptMessage(action=PromptMessage.CLEAR))
            response.success, response.message = answer.accepted, answer.reason
        else:  # there is no worker that the objects belong to
            if self._topics is not None:
                self._topics.pipeline.objects.reset()
                self._topics.save_objects()
            elif kept := read_parameters(self._node).keep_objects:
                response.message = discard(kept_path(kept, self._name))
            response.success = not response.message
        return response

    async def _on_segment_image(self, request: SegmentImage.Request,
                                response: SegmentImage.Response) -> SegmentImage.Response:
        future, reply = self._future()
        return _fill(response, await self._query(SegmentImageQuery(request, reply), future))

    async def _on_segment_all(self, request: SegmentAll.Request, response: SegmentAll.Response) -> SegmentAll.Response:
        future, reply = self._future()
        seconds = self.pipeline.parameters.segment_all_seconds if self._active else 0.0
        result = await self._query(SegmentAllQuery(request, reply, seconds), future)
        response.complete = isinstance(result, QueryResult) and result.complete
        return _fill(response, result)

    def _future(self) -> tuple[Future, Callable[[Any], None]]:
        """Return a future to await in the executor, and the function that the worker calls with its result."""
        executor = self._node.executor
        assert executor is not None, 'services are called by an executor'
        future = Future(executor=executor)

        def reply(result: object) -> None:
            executor.create_task(future.set_result, result)
        return future, reply

    def _submit(self, message: PromptMessage) -> Future:
        """Submit a prompt; return the future of its SetPrompt.Response."""
        future, reply = self._future()
        self.topics.submit(PromptRequest(message, time.monotonic(), reply))
        return future

    async def _query(self, query: Query, future: Future) -> QueryResult | str:
        """Return the result of a query, or the reason why there is none."""
        if not self._active:
            return self._why_inactive()
        if not self.pipeline.inbox.put_query(query):
            return TOO_MANY + self.pipeline.skipped.hint()
        return await future

    def _why_inactive(self) -> str:
        if self._active:
            return ''
        state = self._node._state_machine.current_state[1]
        return f'the node is {state}: {"configure and " if state == "unconfigured" else ""}activate it first'


def _fill(response: Response, result: QueryResult | str) -> Response:
    """Fill in a response: the result, or the reason why there is none."""
    if isinstance(result, str):
        response.reason = result
    else:
        image = result.image
        response.success = True
        response.result = instance_array(Frame(image.header, image.image, result.objects, 0))
    return response
