"""The action ``~/track`` of one camera: a prompt as a goal, the object as feedback, and why it ended as the result."""
from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

from rclpy.action import CancelResponse
from rclpy.action.server import ServerGoalHandle
from rclpy.callback_groups import CallbackGroup
from rclpy.clock import Clock, ClockType
from rclpy.task import Future
from sensor_msgs.msg import Image

from sam2_ros.action import Track
from sam2_ros.msg import Instance
from sam2_ros.msg import Prompt as PromptMessage
from sam2_ros.perception.frame import Frame
from sam2_ros.perception.instance_messages import instance_message
from sam2_ros.perception.prompt_plan import PromptAnswer, PromptRequest
from sam2_ros.perception.tracking_goals import (
    MAX_GOALS,
    GoalChanges,
    Phase,
    TrackingGoal,
    TrackingGoals,
    WorkerStep,
    new_goal,
)
from sam2_ros.runtime.guarded_node import GuardedNode
from sam2_ros.topics.camera_topics import CameraTopics

# a client's queue for results holds 10 by default, and what it cannot take at once would be lost
RESULTS_AT_ONCE = 4
RESULT_EVERY = 0.025  # seconds, between further results


class TrackAction:
    """Action server of one camera. It exists as long as the node, and refuses goals while the node is not active.

    Goals are changed in the executor's thread only. The worker leaves its steps in a queue and never waits for a goal.
    """

    def __init__(self, node: GuardedNode, name: str, why_inactive: Callable[[], str], group: CallbackGroup) -> None:
        """Create the server.

        Args:
            node: The node.
            name: Name of the action.
            why_inactive: Returns the reason why goals are refused, or ''.
            group: Callback group.
        """
        self._node = node
        self._why_inactive = why_inactive
        self._topics: CameraTopics | None = None  # while active
        self._goals = TrackingGoals()
        self._handles: dict[TrackingGoal, ServerGoalHandle] = {}  # goals whose result has not been returned
        self._futures: dict[TrackingGoal, Future] = {}  # done when their goals have ended
        self._steps: deque[WorkerStep] = deque()  # of the worker, not yet seen
        self._ended: deque[Future] = deque()  # of goals that have ended, not yet done
        self._room = RESULTS_AT_ONCE  # for results that need not wait
        self._pace = node.create_timer(RESULT_EVERY, self._on_pace, group, Clock(clock_type=ClockType.STEADY_TIME))
        self._pace.cancel()
        node.create_action_server(Track, name, self._on_goal, self._on_cancel, group)

    # --- lifecycle

    def start(self, topics: CameraTopics) -> None:
        """Accept goals. The worker has not been started, or has nothing to do."""
        self._steps.clear()
        self._topics = topics
        topics.watch = self._watch

    def stop(self, text: str) -> None:
        """End all goals. The worker must have ended or been abandoned; ``text`` says why."""
        self._see_steps()
        if self._topics is not None:
            self._topics.watch = None
            self._topics = None
        self._apply(self._goals.stop(text))

    # --- in the worker's thread

    def _watch(self, frame: Frame | None, answers: list[PromptAnswer]) -> None:
        topics, executor = self._topics, self._node.executor
        if not len(self._goals) or topics is None or executor is None:
            return
        pipeline = topics.pipeline
        self._steps.append(WorkerStep(answers, frame, pipeline.objects.ids, pipeline.late.starting,
                                      pipeline.objects.resets))
        executor.create_task(self._see_steps)

    # --- in the executor's thread

    async def _on_goal(self, handle: ServerGoalHandle) -> Track.Result:
        """Follow a goal until it ends; return its result."""
        goal, reason = None, self._why_inactive()
        if not reason and len(self._goals) >= MAX_GOALS:
            reason = f'{MAX_GOALS} goals are open already: cancel one first'
        if not reason:
            try:
                goal = new_goal(handle.request)
            except ValueError as error:
                reason = str(error)
        future = Future(executor=self._node.executor)
        if goal is None:
            self._ended.append(future)
            self._return_results()
            await future
            handle.abort()
            return Track.Result(reason=Track.Result.REFUSED, text=reason)
        self._handles[goal], self._futures[goal] = handle, future
        try:
            self._see_steps()  # those from before the goal do not concern it
            self._goals.add(goal)
            self._submit(goal, handle)
            await future
            return self._result(goal, handle)
        finally:
            self._goals.discard(goal)
            del self._handles[goal], self._futures[goal]

    def _submit(self, goal: TrackingGoal, handle: ServerGoalHandle) -> None:
        if goal.phase is Phase.PROMPTING:
            goal.request = PromptRequest(handle.request.prompt, time.monotonic(), withdrawn=lambda: goal.cancelled)
            self._send(goal.request)
        elif self._topics is not None:
            self._topics.pipeline.inbox.notify()  # the worker's next step says whether the object is known
        if handle.is_cancel_requested:  # before it was executed
            self._cancel(goal)

    def _send(self, request: PromptRequest) -> None:
        """Submit a prompt, whose answer comes with a step of the worker unless it is refused at once."""
        if self._topics is not None:
            refusal = self._topics.submit(request)
            if refusal is not None:
                self._apply(self._goals.refuse(refusal))

    def _result(self, goal: TrackingGoal, handle: ServerGoalHandle) -> Track.Result:
        """Set the final state of a goal that has ended; return its result."""
        result = Track.Result(reason=goal.reason, text=goal.text, id=goal.id, header=goal.header)
        if goal.item is not None:
            result.instance = _without_mask(instance_message(goal.item, goal.header))
        if goal.reason == Track.Result.REMOVED:
            handle.succeed()
        elif goal.reason == Track.Result.CANCELLED and handle.is_cancel_requested:
            handle.canceled()
        else:
            handle.abort()
        return result

    def _on_cancel(self, handle: ServerGoalHandle) -> CancelResponse:
        goal = next((goal for goal, other in self._handles.items() if other == handle), None)
        if goal is not None:  # otherwise _on_goal is about to begin
            self._cancel(goal)
        return CancelResponse.ACCEPT

    def _cancel(self, goal: TrackingGoal) -> None:
        self._apply(self._goals.cancel(goal))
        if goal.phase is Phase.PROMPTING and self._topics is not None:
            self._topics.pipeline.inbox.notify()  # its prompt has been withdrawn

    def _see_steps(self) -> None:
        """Apply the steps of the worker that have not been seen."""
        while self._steps:
            try:
                self._apply(self._goals.see_step(self._steps.popleft()))
            except Exception as error:  # an answer may have been lost, for which a goal would wait forever
                reason = self._node.failures.report('track action', error)
                self._apply(self._goals.stop(f'the node failed, see the log: {reason}', Track.Result.FAILED))

    def _apply(self, changes: GoalChanges) -> None:
        """Publish feedback, remove objects and end goals. What fails for one goal does not affect the others."""
        run, instances = self._node.failures.run, dict[int, Instance]()
        for goal in changes.reports:
            run('feedback of track', self._report, goal, instances, about=f'object {goal.id}')
        self._ended += [self._futures[goal] for goal in changes.ended]
        self._return_results()
        for goal in changes.removals:
            goal.removal = PromptRequest(PromptMessage(action=PromptMessage.REMOVE, id=goal.id), time.monotonic(),
                                         started_by=goal.request)
            self._send(goal.removal)

    def _return_results(self) -> None:
        """Let the next goals that have ended return their results, a few at once and the others one by one."""
        while self._ended and self._room:
            self._room -= 1
            self._ended.popleft().set_result(None)
        if self._room < RESULTS_AT_ONCE and self._pace.is_canceled():
            self._pace.reset()

    def _on_pace(self) -> None:
        self._room += 1
        self._return_results()
        if self._room == RESULTS_AT_ONCE:
            self._pace.cancel()

    def _report(self, goal: TrackingGoal, instances: dict[int, Instance]) -> None:
        """Publish feedback; ``instances`` holds the messages of the frame, by object."""
        if goal.item is None:
            return
        if goal.id not in instances:
            instances[goal.id] = _without_mask(instance_message(goal.item, goal.header))
        self._handles[goal].publish_feedback(Track.Feedback(header=goal.header, instance=instances[goal.id]))


def _without_mask(instance: Instance) -> Instance:
    instance.mask = Image()
    return instance
