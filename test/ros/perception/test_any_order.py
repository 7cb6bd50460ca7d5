"""Any arrivals in any order: every prompt is answered once, and tracker, states and messages have the same objects."""
import contextlib
import time
from collections import Counter

import hypothesis.strategies as st
import numpy as np
import pytest
from builtin_interfaces.msg import Time
from hypothesis import HealthCheck, given, settings
from sensor_msgs.msg import Image, RegionOfInterest
from std_msgs.msg import Header

from sam2_core import Sam2Model
from sam2_ros.messages.conversions import from_pixels
from sam2_ros.msg import ImagePoint, InstanceEvent, Prompt
from sam2_ros.perception.instance_messages import instance_array, instance_message
from sam2_ros.perception.late_prompts import MAX_UNDER_WAY
from sam2_ros.perception.load_shedding import Level
from sam2_ros.perception.prompt_plan import PromptRequest
from sam2_ros.perception.single_image import SegmentAllQuery, SegmentImageQuery
from sam2_ros.runtime.parameters import Parameters
from sam2_ros.srv import SegmentAll, SegmentImage

SIZES = ((48, 64), (64, 48), (1, 1))  # rows and columns
END = (InstanceEvent.REMOVED, InstanceEvent.FORGOTTEN)

steps_of_time = st.sampled_from([1, 1, 1, 1, 1, 2, 0, -1, 30, -30])
images = st.tuples(st.sampled_from(['show', 'show', 'image']), steps_of_time,
                   st.sampled_from([SIZES[0], *SIZES]), st.sampled_from([True, True, True, False]))
prompts = st.tuples(st.just('prompt'), st.sampled_from([0, 0, 0, 0, 1, 1, 1, 2, 3, 9]), st.integers(0, 3),
                    st.sampled_from([-12, -4, -3, -2, -1, 0, 1, 4]),
                    st.sampled_from(['box', 'box', 'point', 'point', 'far', 'none']), st.sampled_from(['', 'cup']))
queries = st.tuples(st.just('query'), st.booleans(), st.integers(-12, 4))
changes = st.tuples(st.just('change'), st.sampled_from([
    {'history_bytes': 0}, {'history_seconds': 0.0}, {}, {'max_objects': 1}, {'catch_up_images': 0},
    {'catch_up_images': 1000}, {'forget_after': 0.2, 'lost_after': 0.1}, {'on_time_jump': 'reset'},
    {'prompt_timeout': 0.0}]))
failures = st.tuples(st.just('failure'), st.sampled_from(['encode_image', 'attend_memory', 'decode_masks',
                                                         'encode_memory', None, None, None, None]))
work = st.sampled_from([('work',), ('aside',), ('aside',)])
stops = st.sampled_from([('shed',), ('drain',), ('reset',)])
steps = st.lists(st.sampled_from([images] * 6 + [prompts] * 4 + [work] * 4 + [queries, changes, failures, stops])
                 .flatmap(lambda kind: kind), min_size=30, max_size=80)


class Run:
    def __init__(self, pipeline, monkeypatch) -> None:
        self.pipeline, self.patch = pipeline, monkeypatch
        self.left_out = Level.NOTHING
        self.now, self.asked, self.answered, self.queries, self.replies = 100, [], [], 0, []
        self.alive = set()  # according to the events

    def do(self, kind: str, *what) -> None:
        getattr(self, kind)(*what)
        assert len(self.pipeline.late._under_way) <= MAX_UNDER_WAY
        assert set(self.pipeline.objects.states._records) == set(self.pipeline.objects.tracker.object_ids)

    def header(self, tenths: int) -> Header:
        tenths = max(0, tenths)
        return Header(stamp=Time(sec=tenths // 10, nanosec=tenths % 10 * 10**8))

    def image(self, step: int, size: tuple[int, int], whole: bool) -> None:
        self.now = max(0, self.now + step)
        message = from_pixels(np.full((*size, 3), self.now % 256, np.uint8), 'rgb8', self.header(self.now))
        if not whole:
            message = Image(header=message.header, encoding='rgb8', height=2, width=2, step=6, data=bytes(3))
        self.pipeline.put_image(message)

    def show(self, *what) -> None:
        self.image(*what)
        self.work()

    def prompt(self, action: int, object_id: int, lag: int, content: str, label: str) -> None:
        message = Prompt(action=action, id=object_id, label=label)
        if lag < 4:
            message.header = self.header(self.now + lag)
        if content == 'box':
            message.box = RegionOfInterest(x_offset=0, y_offset=0, width=30, height=30)
        elif content != 'none':
            message.points = [ImagePoint(x=0.0 if content == 'point' else 60.0, y=0.0, label=1)]
        request = PromptRequest(message, time.monotonic())
        if self.pipeline.inbox.put_prompt(request):
            self.asked.append(request)

    def query(self, everything: bool, lag: int) -> None:
        if everything:
            call = SegmentAllQuery(SegmentAll.Request(points_per_side=2), self.replies.append, 60.0)
        else:
            point = Prompt(header=self.header(self.now + lag), points=[ImagePoint(label=1)])
            call = SegmentImageQuery(SegmentImage.Request(prompts=[point]), self.replies.append)
        self.queries += self.pipeline.inbox.put_query(call)

    def change(self, values: dict) -> None:
        self.pipeline.change(Parameters(**values))

    def failure(self, part: str | None) -> None:
        self.patch.undo()
        if part is not None:
            self.patch.setattr(Sam2Model, part, failing)

    def work(self) -> None:
        self.pipeline.take()
        self.take(*self.pipeline.work())

    def aside(self) -> None:
        if self.pipeline.has_work_aside():
            with contextlib.suppress(MemoryError):  # of a query: it is logged
                self.take(None, self.pipeline.work_aside())

    def shed(self) -> None:
        self.left_out = Level.NOTHING if self.left_out else Level.IMAGES
        self.pipeline.apply_level(self.left_out)

    def drain(self) -> None:
        self.take(None, self.pipeline.drain('stopped'))

    def reset(self) -> None:
        self.drain()  # as the node does: only while there is no worker
        self.pipeline.objects.reset()

    def take(self, frame, answers) -> None:
        for answer in answers:
            assert answer.accepted or answer.reason
            if answer.item is not None:
                assert answer.item.id == answer.id
                instance_message(answer.item, answer.header)
        self.answered += [answer.request for answer in answers]
        if frame is None:
            return
        shown = [item.id for item in frame.objects]
        assert len(shown) == len(set(shown))
        instance_array(frame, 5)
        for event in frame.events:
            if event.kind == InstanceEvent.ADDED:
                assert event.id not in self.alive
                self.alive.add(event.id)
            else:
                assert event.id in self.alive
                if event.kind in END:
                    self.alive.remove(event.id)
        assert self.alive == set(shown)


def failing(*_, **__):
    raise MemoryError('out of memory')


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture,
                                                                 HealthCheck.too_slow, HealthCheck.data_too_large])
@given(steps)
def test_everybody_is_answered_once_and_objects_are_the_same_everywhere(make, steps):
    with pytest.MonkeyPatch.context() as patch:
        run = Run(make(), patch)
        show = ('show', 1, SIZES[0], True)
        for step in (show, ('prompt', 0, 1, 0, 'box', 'cup'), show, *steps):
            run.do(*step)
        for _ in range(1000):
            if not run.pipeline.has_work_aside():
                break
            run.do('aside')
        assert not run.pipeline.has_work_aside(), 'what has begun comes to an end'
        run.do('drain')
    assert Counter(map(id, run.answered)) == Counter(map(id, run.asked))
    assert len(run.replies) == run.queries
    assert run.pipeline.inbox.waiting_since() is None and run.pipeline.seconds_to_deadline() is None
