"""Goals of the action ``~/track`` of one camera: which object each follows, and when and why each ends."""
from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from enum import Enum

from std_msgs.msg import Header

from sam2_ros.action import Track
from sam2_ros.msg import Instance, InstanceEvent
from sam2_ros.msg import Prompt as PromptMessage
from sam2_ros.perception.frame import Frame, TrackedObject
from sam2_ros.perception.prompt_plan import NEEDS_IMAGE, PromptAnswer, PromptRequest, has_image

MAX_GOALS = 100  # open goals of one camera: each costs a message for every image
Result = Track.Result


class Phase(Enum):
    """What an open goal is doing."""

    PROMPTING = 'its prompt has not been answered'
    JOINING = 'its object has not been in a frame since'
    FOLLOWING = 'its object is in every frame'
    LEAVING = 'its object is being removed'


@dataclass(eq=False)
class TrackingGoal:
    """One goal."""

    makes: bool  # its prompt starts the object, which is removed if the goal is cancelled or its object lost
    lost_timeout: float  # seconds by image stamps; 0: never
    id: int  # of its object; 0: not known yet
    phase: Phase
    request: PromptRequest | None = None  # its prompt; None: it follows a known object
    removal: PromptRequest | None = None  # of its object
    cancelled: bool = False
    late: bool = False  # its object is on its way from a past image, and not yet live
    resets: int | None = None  # of all objects by the node, when its object became known; None: not known yet
    header: Header = field(default_factory=Header)  # of the last frame with its object
    item: TrackedObject | None = None  # its object in that frame
    reason: int | None = None  # why it leaves its object or has ended, a constant of Track.Result
    text: str = ''  # the reason in words


@dataclass(frozen=True, eq=False)
class WorkerStep:
    """Outcome of one step of the worker for a camera."""

    answers: Sequence[PromptAnswer]
    frame: Frame | None
    live: Collection[int]  # objects of the live tracker after the step
    starting: Collection[int]  # objects of late prompts that have not joined the live ones
    resets: int  # how often the node has forgotten all objects


@dataclass(eq=False)
class GoalChanges:
    """Consequences for the goals."""

    reports: list[TrackingGoal] = field(default_factory=list)  # have their object in the frame
    removals: list[TrackingGoal] = field(default_factory=list)  # want their object removed
    ended: list[TrackingGoal] = field(default_factory=list)


class TrackingGoals:
    """The open goals of one camera. Not thread-safe."""

    def __init__(self) -> None:
        self._open: dict[TrackingGoal, None] = {}

    def __len__(self) -> int:
        return len(self._open)

    def add(self, goal: TrackingGoal) -> None:
        """Add a goal, before its prompt is submitted."""
        self._open[goal] = None

    def discard(self, goal: TrackingGoal) -> None:
        """Drop a goal without ending it."""
        self._open.pop(goal, None)

    def refuse(self, answer: PromptAnswer) -> GoalChanges:
        """Follow the refusal of a prompt that has not reached the worker."""
        return self._see_answers(WorkerStep([answer], None, (), (), 0))

    def see_step(self, step: WorkerStep) -> GoalChanges:
        """Follow a step of the worker: its answers first, then its objects."""
        changes = self._see_answers(step)
        for goal in tuple(self._open):
            if goal.phase in (Phase.JOINING, Phase.FOLLOWING):
                self._see_object(goal, step, changes)
        return changes

    def _see_answers(self, step: WorkerStep) -> GoalChanges:
        """Follow the answers to prompts, of goals and of others, in their order."""
        changes = GoalChanges()
        for answer in step.answers:
            for goal in tuple(self._open):
                self._see_answer(goal, answer, step, changes)
        return changes

    def cancel(self, goal: TrackingGoal) -> GoalChanges:
        """Cancel a goal. While its prompt has no answer, it ends with the answer (``PromptRequest.withdrawn``)."""
        changes = GoalChanges()
        if goal in self._open:
            goal.cancelled = True
            if goal.phase in (Phase.JOINING, Phase.FOLLOWING):
                self._leave(goal, Result.CANCELLED, 'cancelled', changes)
        return changes

    def stop(self, text: str, reason: int = Result.NODE_STOPPED) -> GoalChanges:
        """End all goals, because the worker has stopped or failed; ``text`` says why."""
        changes = GoalChanges()
        for goal in tuple(self._open):
            if goal.phase is Phase.LEAVING:
                self._end(goal, goal.reason or reason, f'{goal.text}; {text} before object {goal.id} was removed',
                          changes)
            elif goal.cancelled:
                self._end(goal, Result.CANCELLED, f'cancelled; {text}', changes)
            else:
                self._end(goal, reason, text, changes)
        return changes

    # --- one goal

    def _see_answer(self, goal: TrackingGoal, answer: PromptAnswer, step: WorkerStep, changes: GoalChanges) -> None:
        if answer.request is goal.removal:
            self._end(goal, goal.reason or Result.FAILED, f'{goal.text}; object {goal.id} was removed, since this goal '
                      f'had started it' if answer.accepted else f'{goal.text}; {answer.reason}', changes)
        elif answer.request is goal.request:
            self._see_own_answer(goal, answer, step, changes)
        elif answer.accepted and goal.phase in (Phase.JOINING, Phase.FOLLOWING) and goal.resets is not None:
            self._see_other_answer(goal, answer, step, changes)

    def _see_own_answer(self, goal: TrackingGoal, answer: PromptAnswer, step: WorkerStep, changes: GoalChanges) -> None:
        if not answer.accepted:
            self._end(goal, Result.CANCELLED if goal.cancelled else Result.REFUSED, answer.reason, changes)
            return
        goal.id, goal.phase = answer.id, Phase.JOINING
        goal.late = step.frame is None and answer.id in step.starting  # a prompt for the image at hand has a frame
        goal.resets = step.resets
        if goal.cancelled:
            self._leave(goal, Result.CANCELLED, 'cancelled', changes)

    def _see_other_answer(self, goal: TrackingGoal, answer: PromptAnswer, step: WorkerStep,
                          changes: GoalChanges) -> None:
        action = answer.request.message.action
        if action == PromptMessage.CLEAR:
            self._end(goal, Result.REMOVED, f'object {goal.id} was removed with all others', changes)
        elif answer.id != goal.id:
            return
        elif action == PromptMessage.REMOVE:
            self._end(goal, Result.REMOVED, f'object {goal.id} was removed by a prompt', changes)
        elif action == PromptMessage.SET and goal.phase is Phase.JOINING and (goal.late or step.frame is not None):
            self._replaced(goal, changes)  # a live object stays until a late one joins, which an event tells

    def _see_object(self, goal: TrackingGoal, step: WorkerStep, changes: GoalChanges) -> None:
        frame, live, events = step.frame, goal.id in step.live, set[int]()
        if goal.resets is None:  # without a prompt, the first step after the goal says whether its object is known
            goal.resets, goal.late = step.resets, not live
            if not live and goal.id not in step.starting:
                self._unknown(goal, step, changes)
                return
        if frame is not None:
            events = {event.kind for event in frame.events if event.id == goal.id}
        if goal.resets != step.resets:
            self._end(goal, Result.TIME_JUMP, f'image stamps jumped back, and objects are forgotten then '
                      f'(on_time_jump): object {goal.id} as well', changes)
        elif not live and (goal.phase is Phase.FOLLOWING or goal.id not in step.starting):
            self._gone(goal, events, changes)
        elif frame is None:
            return
        elif goal.phase is Phase.FOLLOWING:
            if InstanceEvent.REMOVED in events:
                self._replaced(goal, changes)
            else:
                self._report(goal, frame, changes)
        elif not goal.late or InstanceEvent.ADDED in events:
            goal.phase = Phase.FOLLOWING  # the events of its first frame concern other objects as well
            self._report(goal, frame, changes)
        elif goal.id not in step.starting:  # it has not joined: the live object under its id is another one
            self._gone(goal, events, changes)

    def _report(self, goal: TrackingGoal, frame: Frame, changes: GoalChanges) -> None:
        item = next((item for item in frame.objects if item.id == goal.id), None)
        if item is None:
            return
        goal.header, goal.item = frame.header, item
        changes.reports.append(goal)
        if goal.lost_timeout and item.state != Instance.TRACKED and item.hidden_for > goal.lost_timeout:
            self._leave(goal, Result.LOST, f'object {goal.id} was not visible for {item.hidden_for:.3f} s '
                                           f'(lost_timeout {goal.lost_timeout:g} s)', changes)

    def _unknown(self, goal: TrackingGoal, step: WorkerStep, changes: GoalChanges) -> None:
        known = ', '.join(map(str, sorted({*step.live, *step.starting}))) or 'none'
        self._end(goal, Result.REFUSED, f'id {goal.id} is not known (known: {known}): start it with a SET prompt',
                  changes)

    def _gone(self, goal: TrackingGoal, events: set[int], changes: GoalChanges) -> None:
        if InstanceEvent.FORGOTTEN in events:
            self._end(goal, Result.LOST, f'object {goal.id} was forgotten: not visible for longer than forget_after',
                      changes)
        else:
            self._end(goal, Result.FAILED, f'object {goal.id} is no longer tracked, see the log', changes)

    def _replaced(self, goal: TrackingGoal, changes: GoalChanges) -> None:
        self._end(goal, Result.REPLACED, f'another prompt started a new object under id {goal.id}', changes)

    def _leave(self, goal: TrackingGoal, reason: int, text: str, changes: GoalChanges) -> None:
        """End a goal that lets go of its object, once that is removed if the goal has started it."""
        if goal.makes:
            goal.phase, goal.reason, goal.text = Phase.LEAVING, reason, text
            changes.removals.append(goal)
        else:
            self._end(goal, reason, text, changes)

    def _end(self, goal: TrackingGoal, reason: int, text: str, changes: GoalChanges) -> None:
        del self._open[goal]
        goal.reason, goal.text = reason, text
        changes.ended.append(goal)


def new_goal(request: Track.Goal) -> TrackingGoal:
    """Return the goal of a client, not yet added. Raises ValueError with the reason if it has to be refused."""
    prompt, seconds = request.prompt, request.lost_timeout
    if not (math.isfinite(seconds) and seconds >= 0):
        raise ValueError(f'lost_timeout {seconds:g}: must be finite and not negative; 0 means never')
    if prompt.action not in NEEDS_IMAGE:
        raise ValueError(f'action {prompt.action}: must be {PromptMessage.SET} (SET) or {PromptMessage.REFINE} '
                         f'(REFINE) in a goal; send other prompts to ~/prompt')
    follows = prompt.action == PromptMessage.REFINE and not (
        prompt.points or prompt.box.width or has_image(prompt.mask))
    if follows and prompt.label:
        raise ValueError(f"label '{prompt.label[:20]}' without points, a box or a mask: leave it empty to follow "
                         f'object {prompt.id} as it is')
    return TrackingGoal(prompt.action == PromptMessage.SET, seconds, prompt.id if follows else 0,
                        Phase.JOINING if follows else Phase.PROMPTING)
