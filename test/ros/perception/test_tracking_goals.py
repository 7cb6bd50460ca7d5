"""Goals of ~/track over a real pipeline: any prompts, cancellations and images in any order, and seen with any delay.

Every SET prompt has a label of its own, which tells its object from all others under the same id.
"""
import re
import time
from collections import deque

import hypothesis.strategies as st
import numpy as np
import pytest
from builtin_interfaces.msg import Time
from hypothesis import HealthCheck, given, settings
from sensor_msgs.msg import RegionOfInterest
from std_msgs.msg import Header

from sam2_core import Sam2Model, StreamTracker, load_model
from sam2_ros.action import Track
from sam2_ros.messages.conversions import from_pixels
from sam2_ros.msg import Prompt
from sam2_ros.perception.prompt_plan import PromptRequest
from sam2_ros.perception.tracking_goals import Phase, TrackingGoals, WorkerStep, new_goal
from sam2_ros.runtime.parameters import Parameters

Result = Track.Result
SEEN = (Phase.JOINING, Phase.FOLLOWING)
GONE = (Result.REMOVED, Result.LOST, Result.REPLACED, Result.TIME_JUMP)  # the object of a goal that started it

ids = st.sampled_from([0, 1, 1, 2, 2, 3])
lags = st.sampled_from([-6, -4, -2, 0, 0, 0, 1, 100])  # tenths of a second; 100: no stamp
images = st.tuples(st.just('show'), st.sampled_from([1, 1, 1, 1, 1, 1, 2, 30, -30]))
prompts = st.tuples(st.just('prompt'), st.sampled_from([0, 0, 0, 1, 2, 3]), ids, lags)
goals = st.tuples(st.just('goal'), st.sampled_from(['start', 'start', 'start', 'correct', 'follow']), ids, lags,
                  st.sampled_from([0.0, 0.0, 0.15]))
cancels = st.tuples(st.just('cancel'), st.integers(0, 20))
changes = st.tuples(st.just('change'), st.sampled_from([
    {}, {'max_objects': 2}, {'forget_after': 0.3, 'lost_after': 0.1}, {'on_time_jump': 'reset'},
    {'prompt_timeout': 0.0}]))
failures = st.tuples(st.just('failure'), st.sampled_from(['attend_memory', 'decode_masks', None, None, None]))
jumps = st.just(('jump',))
work = st.sampled_from([('work',), ('aside',), ('aside',), ('see',), ('see',), ('see',)])
steps = st.lists(st.sampled_from([images] * 6 + [prompts] * 3 + [goals] * 4 + [cancels] * 3 + [work] * 7
                                 + [changes, failures, jumps]).flatmap(lambda kind: kind), min_size=20, max_size=80)


class Run:
    """A camera with its worker, and goals that see the worker's steps later."""

    def __init__(self, pipeline, monkeypatch) -> None:
        self.pipeline, self.patch = pipeline, monkeypatch
        self.goals, self.steps = TrackingGoals(), deque()
        self.now, self.starts = 1000, 0
        self.sent, self.ended = [], []
        self.labels = {}  # by goal, of the object that it has started, or that it was first seen with
        self.refused_removals = set()
        self.last_frame = None
        self.failed = False  # the model, once

    # --- the world

    def header(self, tenths: int) -> Header:
        return Header(stamp=Time(sec=tenths // 10, nanosec=tenths % 10 * 10**8))

    def show(self, step: int) -> None:
        self.now = max(1, self.now + step)
        self.pipeline.put_image(from_pixels(np.full((48, 64, 3), self.now % 256, np.uint8), 'rgb8',
                                            self.header(self.now)))
        self.work()

    def message(self, action: int, object_id: int, lag: int) -> Prompt:
        message = Prompt(action=action, id=object_id, box=RegionOfInterest(width=30, height=30))
        if lag < 100:
            message.header = self.header(max(1, self.now + lag))
        if action == Prompt.SET:
            self.starts += 1
            message.label = f'start {self.starts}'
        return message

    def prompt(self, action: int, object_id: int, lag: int) -> None:
        self.pipeline.inbox.put_prompt(PromptRequest(self.message(action, object_id, lag), time.monotonic()))

    def change(self, values: dict) -> None:
        self.pipeline.change(Parameters(**values))

    def jump(self) -> None:
        self.change({'on_time_jump': 'reset'})
        self.show(-30)  # alone, it might be an outlier
        self.show(1)

    def failure(self, part: str | None) -> None:
        self.patch.undo()
        if part is not None:
            self.failed = True
            self.patch.setattr(Sam2Model, part, failing)

    # --- the worker

    def work(self) -> None:
        self.pipeline.take()
        self.publish(*self.pipeline.work())

    def aside(self) -> None:
        if self.pipeline.has_work_aside():
            self.publish(None, self.pipeline.work_aside())

    def publish(self, frame, answers) -> None:
        self.last_frame = frame or self.last_frame
        self.steps.append(WorkerStep(answers, frame, self.pipeline.objects.ids, self.pipeline.late.starting,
                                     self.pipeline.objects.resets))

    # --- the goals

    def goal(self, kind: str, object_id: int, lag: int, lost_timeout: float) -> None:
        message = (Prompt(action=Prompt.REFINE, id=object_id) if kind == 'follow'
                   else self.message(Prompt.SET if kind == 'start' else Prompt.REFINE, object_id, lag))
        goal = new_goal(Track.Goal(prompt=message, lost_timeout=lost_timeout))
        while self.steps:
            self.see()
        self.sent.append(goal)
        self.goals.add(goal)
        if kind == 'start':
            self.labels[goal] = message.label
        if kind != 'follow':
            goal.request = PromptRequest(message, time.monotonic(), withdrawn=lambda: goal.cancelled)
            self.pipeline.inbox.put_prompt(goal.request)

    def cancel(self, number: int) -> None:
        if self.sent:
            self.apply(self.goals.cancel(self.sent[number % len(self.sent)]))

    def see(self) -> None:
        if not self.steps:
            return
        step = self.steps.popleft()
        answered = {answer.request for answer in step.answers if answer.accepted}
        for answer in step.answers:
            if not answer.accepted:
                self.refused_removals |= {goal for goal in self.sent if goal.removal is answer.request}
        before = [goal for goal in self.sent if goal not in self.ended and (
            goal.phase in SEEN or goal.request in answered)]
        changes = self.goals.see_step(step)
        self.apply(changes)
        if step.frame is None:
            assert not changes.reports
            return
        shown = {item.label: item for item in step.frame.objects}
        for goal in changes.reports:
            assert goal.item in step.frame.objects and goal.header is step.frame.header
            assert goal.item.label == self.labels.setdefault(goal, goal.item.label), 'always the same object'
            too_long = goal.lost_timeout and goal.item.hidden_for > goal.lost_timeout
            assert bool(too_long) == (goal.reason == Result.LOST)
        for goal in before:
            if self.labels.get(goal) in shown and goal.phase in SEEN:
                assert goal in changes.reports, 'its object is in the frame'
        for goal in self.sent:
            if goal.phase is Phase.FOLLOWING and goal not in self.ended:
                assert self.labels[goal] in shown, 'an object that is gone ends its goal'

    def apply(self, changes) -> None:
        assert not set(changes.ended) & set(self.ended) and len(set(changes.ended)) == len(changes.ended)
        self.ended += changes.ended
        for goal in changes.ended:
            assert goal.text and goal.reason is not None
            assert goal.reason != Result.FAILED or self.failed, goal.text
            assert goal.cancelled or goal.reason != Result.CANCELLED
        for goal in changes.removals:
            goal.removal = PromptRequest(Prompt(action=Prompt.REMOVE, id=goal.id), time.monotonic(),
                                         started_by=goal.request)
            self.pipeline.inbox.put_prompt(goal.removal)

    def finish(self) -> None:
        """Let everything that has been asked for happen."""
        self.patch.undo()
        self.change({})
        for _ in range(4):
            self.show(1)
            while self.pipeline.has_work_aside():
                self.aside()
            while self.steps:
                self.see()


def failing(*_, **__):
    raise MemoryError('out of memory')


@pytest.fixture(scope='module')
def small():
    """Return nano for small images: what it sees does not matter here."""
    return load_model('nano', device='cpu', image_size=64)


@pytest.mark.fuzz
def test_a_goal_follows_the_object_it_started_and_no_other_and_ends_once(make, small, rounds):
    @settings(max_examples=rounds(10, 1500), deadline=None, suppress_health_check=[
        HealthCheck.too_slow, HealthCheck.data_too_large])
    @given(steps)
    def check(steps):
        with pytest.MonkeyPatch.context() as patch:
            run = Run(make(StreamTracker(small)), patch)
            for kind, *what in (('show', 1), ('goal', 'start', 1, 100, 0.0), ('show', 1), ('see',), *steps):
                getattr(run, kind)(*what)
            run.finish()
            labels = {item.label for item in run.last_frame.objects}
            for goal in run.sent:
                if goal in run.ended and goal.makes and goal.reason in (*GONE, Result.CANCELLED) and (
                        goal not in run.refused_removals):
                    assert run.labels[goal] not in labels, f'{goal.text}: its object is still there'
                if goal not in run.ended:
                    assert goal.phase is not Phase.FOLLOWING or run.labels[goal] in labels, 'still open'
                    assert not goal.cancelled
            run.pipeline.drain('stopped')
            run.apply(run.goals.stop('stopped'))
            assert len(run.goals) == 0 and set(run.ended) == set(run.sent)
    check()


def request(started_by: PromptRequest | None = None, **fields) -> PromptRequest:
    if fields.get('action', Prompt.SET) != Prompt.REMOVE:
        fields['box'] = RegionOfInterest(width=30, height=30)
    return PromptRequest(Prompt(**fields), time.monotonic(), started_by=started_by)


def answers(run: Run, *requests: PromptRequest) -> list[tuple[bool, str]]:
    """Return the answers to requests at the next image, as far as there are any."""
    for one in requests:
        run.pipeline.inbox.put_prompt(one)
    run.show(1)
    found = {answer.request: answer for answer in run.steps[-1].answers}
    return [(found[one].accepted, found[one].reason) for one in requests if one in found]


def test_a_goal_removes_only_the_object_that_it_has_started(make, small, monkeypatch):
    run = Run(make(StreamTracker(small)), monkeypatch)
    first, second = request(id=5), request(id=5)
    assert answers(run, first, second) == [(True, '')] * 2
    refused = (False, 'object 5 has been started again by another prompt')
    assert answers(run, request(first, action=Prompt.REMOVE, id=5)) == [refused]
    later = request(id=5, header=run.header(run.now + 50))
    assert answers(run, later, request(second, action=Prompt.REMOVE, id=5)) == [(True, '')], 'later still waits'
    assert run.pipeline.objects.ids == () and run.pipeline.inbox.prompts == [later]
    assert answers(run, request(action=Prompt.REMOVE, id=5)) == [(True, '')]
    assert run.pipeline.inbox.prompts == [], 'as without a goal: REMOVE takes waiting prompts back'


def test_a_withdrawn_prompt_is_refused_and_no_other(make, small, monkeypatch):
    run, wanted = Run(make(StreamTracker(small)), monkeypatch), [True]
    header = run.header(run.now + 50)
    first = PromptRequest(request(id=5, header=header).message, time.monotonic(), withdrawn=lambda: not wanted)
    second = request(id=6, header=header)
    assert answers(run, first, second) == []
    wanted.clear()
    run.work()  # without an image
    assert [(answer.request, answer.reason) for answer in run.steps[-1].answers] == [
        (first, 'taken back before it was applied')]
    assert run.pipeline.inbox.prompts == [second]


@pytest.mark.parametrize(('request_', 'reason'), [
    (Track.Goal(lost_timeout=float('inf')), 'lost_timeout inf: must be finite'),
    (Track.Goal(prompt=Prompt(action=Prompt.CLEAR)), 'action 3: must be 0 (SET) or 1 (REFINE) in a goal')])
def test_a_goal_without_sense_is_refused_with_its_value_rule_and_cure(request_, reason):
    with pytest.raises(ValueError, match=re.escape(reason)):
        new_goal(request_)
