"""Stamps of images: a single outlier is skipped and reported, two in a row are a time jump."""
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sam2_ros.evaluation.replay import run
from sam2_ros.messages.conversions import from_pixels
from sam2_ros.messages.stamps import MOST_SKIPPED, StampWatch
from sam2_ros.msg import Instance, InstanceEvent, Prompt
from sam2_ros.runtime.parameters import Parameters
from testing.discs import Discs
from testing.in_process import HEIGHT, WIDTH, header, in_process, set_box

SECOND = 10**9
START = 1_700_000_000.0


def used(stamps, arrivals=None) -> list[bool]:
    """Return which images are used. They arrive at their stamps unless ``arrivals`` is given."""
    watch = StampWatch()
    return [not watch.judge(round(stamp * SECOND), arrived)
            for stamp, arrived in zip(stamps, stamps if arrivals is None else arrivals, strict=True)]


def steady(count: int = 20, period: float = 0.1) -> list[float]:
    return [START + number * period for number in range(count)]


@pytest.mark.parametrize('period', [1 / 30, 0.1, 1.0, 5.0])
@pytest.mark.parametrize('wrong', [4.0, -4.0, 3600.0, -3600.0, -START])
def test_a_single_odd_stamp_is_skipped_and_nothing_else(period, wrong):
    arrivals = steady(period=period)
    stamps = list(arrivals)
    stamps[10] += wrong if wrong != -START else -stamps[10]  # a stamp of 0
    if stamps[10] > stamps[9] - 1 and wrong < 0:
        pytest.skip('a slow camera: the stamp is not earlier than the previous one')
    assert [number for number, good in enumerate(used(stamps, arrivals)) if not good] == [10]


def test_the_first_image_may_be_the_odd_one():
    stamps = steady()
    arrivals = list(stamps)
    stamps[0] += 3600
    assert used(stamps, arrivals) == [True, False] + [True] * 18, 'one image until it is known which'


@pytest.mark.parametrize('change', [3600.0, -3600.0, -1.5, 1.5])
def test_a_clock_that_was_set_costs_one_image(change):
    arrivals = steady()
    stamps = [stamp + change * (number >= 10) for number, stamp in enumerate(arrivals)]
    assert [number for number, good in enumerate(used(stamps, arrivals)) if not good] == [10]


def test_a_bag_that_starts_again_costs_one_image():
    stamps = steady(100) + steady(20)
    assert used(stamps, steady(120)).count(False) == 1


@pytest.mark.parametrize('pause', [1.5, 10.0, 86400.0])
def test_a_pause_of_the_camera_costs_none(pause):
    stamps = [stamp + pause * (number >= 10) for number, stamp in enumerate(steady())]
    assert all(used(stamps))


def test_images_held_up_on_the_way_cost_none():
    stamps = steady(60)
    arrivals = [stamp + (3 - (number - 20) / 10 if 20 <= number < 50 else 0) for number, stamp in enumerate(stamps)]
    assert all(used(stamps, arrivals))
    lost = [*range(20), 20, *range(50, 60)]  # one arrived late, those after it never
    assert all(used([stamps[i] for i in lost], [arrivals[i] for i in lost]))


@pytest.mark.parametrize('rate', [0.1, 1.0, 10.0, 1000.0])
@pytest.mark.parametrize('period', [0.1, 0.5])
def test_a_recording_may_be_played_at_any_rate(period, rate):
    stamps = steady(60, period)
    assert all(used(stamps, [START + (stamp - START) / rate for stamp in stamps]))


def test_of_a_fast_recording_of_a_slow_camera_one_image_is_lost_at_the_start():
    stamps = steady(60, 5.0)
    assert used(stamps, [START + number * 0.01 for number in range(60)]) == [True, False] + [True] * 58


def test_of_two_clocks_by_turns_the_first_is_believed():
    stamps = [stamp + 4 * (number % 2) for number, stamp in enumerate(steady(40))]
    assert used(stamps, steady(40)) == [True, False] * 20


def test_images_without_a_stamp_are_used_and_those_with_one_after_them():
    assert all(used([0.0] * 20, steady()))
    assert all(used([0.0] * 10 + steady(10), steady()))
    assert used(steady(10) + [0.0] * 10, steady()).count(False) == 1


@given(st.lists(st.tuples(st.integers(-2**31, 2**31 - 1), st.floats(0, 1e9)), max_size=60))
def test_no_clock_however_mad_ends_the_stream(images):
    watch, skipped = StampWatch(), 0
    for sec, arrived in images:
        reason = watch.judge(sec * SECOND, arrived)
        skipped = skipped + 1 if reason else 0
        assert skipped <= MOST_SKIPPED


def test_the_reason_names_the_stamp_and_how_far_it_is_off():
    watch = StampWatch()
    watch.judge(100 * SECOND, 0.0)
    assert watch.judge(104 * SECOND, 0.1).startswith('stamp 104.000 is 3.900 s ahead of those before it: skipped')
    assert watch.judge(97 * SECOND, 0.1).startswith('stamp 97.000 is 3.000 s behind those before it: skipped')


# --- in a camera

@pytest.fixture(scope='module')
def robot():
    with in_process(threaded=False, history_seconds=10.0) as robot:
        yield robot


def show(robot, off: int = 0) -> None:
    """Send the next image on time, with a stamp that is off by a number of seconds."""
    robot.now += off * SECOND
    robot.show()
    robot.now -= off * SECOND
    robot.serve()


@pytest.mark.parametrize('policy', ['keep', 'reset'])
@pytest.mark.parametrize('off', [4, -4, 3600, -900])
def test_one_odd_stamp_costs_neither_objects_nor_history_nor_depth(robot, policy, off):
    robot.pipeline.change(replace(robot.pipeline.parameters, on_time_jump=policy, forget_after=3.0))
    robot.send('/prompt', Prompt(action=Prompt.CLEAR))
    robot.send('/prompt', set_box(id=1))
    for _ in range(5):
        show(robot)
    history, depth = robot.pipeline.history.extent(), len(robot.pipeline.depth._recent)
    robot.published.clear()
    show(robot, off)
    assert not robot.frames
    assert robot.pipeline.history.extent() == history and len(robot.pipeline.depth._recent) == depth
    skipped = robot.pipeline.meter.snapshot(robot.pipeline.meter._last_received).skipped
    assert 'skipped as a single outlier' in skipped, 'on /diagnostics, as what cannot be used'
    robot.send('/prompt', set_box(robot.now - 2 * 10**8, id=2))  # on an image before the outlier
    for _ in range(4):
        show(robot)
    assert robot.statuses[-1].accepted
    assert [(item.id, item.has_depth) for item in robot.frames[-1].instances] == [(1, True), (2, True)]
    assert sum(frame.dropped for frame in robot.frames) == 1
    events = [event.event for event in robot.messages(InstanceEvent)]
    assert InstanceEvent.FORGOTTEN not in events and InstanceEvent.REMOVED not in events


def test_two_in_a_row_are_a_jump(robot):
    robot.pipeline.change(replace(robot.pipeline.parameters, on_time_jump='reset', forget_after=0.0))
    robot.send('/prompt', set_box(id=5))
    for off in (0, 0, -50, -50, -50):
        show(robot, off)
    assert robot.frames[-1].instances == []


def test_a_clock_that_is_set_ahead_forgets_no_hidden_object(robot):
    robot.pipeline.change(replace(robot.pipeline.parameters, on_time_jump='keep', lost_after=1.0, forget_after=3.0))
    robot.send('/prompt', Prompt(action=Prompt.CLEAR))
    robot.send('/prompt', set_box(id=1))
    show(robot)

    def hidden(off: int = 0) -> int:
        robot.now += 10**8 + off * SECOND
        robot.send('/image', from_pixels(np.full((HEIGHT, WIDTH, 3), 80, np.uint8), 'rgb8', header(robot.now)))
        robot.serve()
        (item,) = robot.frames[-1].instances
        return item.state
    robot.pipeline.objects.tracker.step = hide(robot.pipeline.objects.tracker.step)
    try:
        assert hidden() == Instance.OCCLUDED
        assert [hidden(3600), hidden(), hidden()] == [Instance.OCCLUDED] * 3, 'it is hidden since 0.4 s, not an hour'
        for _ in range(10):
            state = hidden()
        assert state == Instance.LOST
    finally:
        del robot.pipeline.objects.tracker.step


def hide(step):
    """Return a step of a tracker that sees no object."""
    def stepped(*arguments):
        found = step(*arguments)
        for item in found.objects.values():
            object.__setattr__(item, 'object_score', -9.0)
        return found
    return stepped


# --- in a recording

class Odd(Discs):
    """The discs, with wrong stamps at some images and with a pause before one."""

    def __init__(self, off: dict[int, int], pause: int | None = None) -> None:
        super().__init__(8)
        self.prompts = [self.prompt(1)]
        shift = [10 * SECOND * (pause is not None and index >= pause) for index in range(8)]
        self.arrivals = [moment + later for moment, later in zip(self.arrivals, shift, strict=True)]
        self.stamps = [moment + later + off.get(index, 0)
                       for index, (moment, later) in enumerate(zip(self.stamps, shift, strict=True))]

    def image(self, index: int):
        message = super().image(index)
        message.header.stamp.sec, message.header.stamp.nanosec = divmod(self.stamps[index], SECOND)
        return message


@pytest.mark.parametrize('mode', ['lock-step', 'real-time'])
def test_a_recording_with_a_gap_loses_no_image_and_one_odd_stamp_is_named(model, mode):
    result = run(Odd({}, pause=4), model, Parameters(use_depth=False), mode, rate=1e-3)
    assert [frame.index for frame in result.frames] == list(range(8)) and not result.unusable
    result = run(Odd({3: 4 * SECOND}), model, Parameters(use_depth=False), mode, rate=1e-3)
    assert [frame.index for frame in result.frames] == [0, 1, 2, 4, 5, 6, 7]
    assert [*result.unusable] == [3] and 'single outlier' in result.unusable[3]
    assert result.frames[3].dropped == 1
