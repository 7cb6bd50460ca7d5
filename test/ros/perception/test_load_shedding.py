"""Load shedding on a model of the node: the latency depends on the level and on the load of the machine."""
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sam2_ros.perception.load_shedding import (
    FEWEST,
    HELD_FOR,
    LONGEST_WAIT,
    MISSED_FOR,
    Level,
    LoadShedder,
    why_unusable,
)

TARGET = 0.1
# pictures are a quarter of the work and memory a tenth; skipping every second image leaves half of the rest
COST = {Level.NOTHING: 1.0, Level.PICTURES: 0.75, Level.MEMORY: 0.65, Level.IMAGES: 0.33}


class Node:
    """Node whose latency is a function of time and level."""

    def __init__(self, latency: Callable[[float, Level], float], rate: float = 15.0, allowed: bool = True) -> None:
        self.shedder = LoadShedder()
        self.latency, self.rate, self.allowed, self.target = latency, rate, allowed, TARGET
        self.now = 0.0
        self.changes: list[tuple[float, Level]] = []

    def run(self, seconds: float) -> Level:
        end = self.now + seconds
        while self.now < end:
            self.now += 1 / self.rate
            before = self.shedder.level
            level = self.shedder.update(self.latency(self.now, before), self.now, self.target, self.allowed)
            if level != before:
                self.changes.append((self.now, level))
        return self.shedder.level


def steady(seconds: float) -> Callable[[float, Level], float]:
    """Return the latency of a machine that needs this many seconds at level 0."""
    return lambda now, level: seconds * COST[level]


def test_nothing_is_left_out_while_the_target_is_held():
    node = Node(steady(0.09))
    assert node.run(60) == Level.NOTHING
    assert not node.changes and not node.shedder.missed


@pytest.mark.parametrize(('seconds', 'level'), [
    (0.12, Level.PICTURES), (0.15, Level.MEMORY), (0.28, Level.IMAGES)])
def test_so_much_is_left_out_that_the_target_is_held(seconds, level):
    node = Node(steady(seconds))
    assert node.run(15) == level
    assert not node.shedder.missed
    assert [chosen for _, chosen in node.changes] == list(Level)[1:level + 1]  # in the documented order


def test_a_target_out_of_reach_ends_at_the_last_level_and_says_so():
    node = Node(steady(1.0))
    assert node.run(30) == Level.IMAGES
    assert node.shedder.missed
    assert len(node.changes) == 3


def test_one_slow_image_changes_nothing():
    node = Node(lambda now, level: 2.0 if now % 10 < 1 / 15 else 0.05)
    assert node.run(100) == Level.NOTHING
    assert not node.changes


def test_a_second_of_slow_images_changes_nothing():
    node = Node(lambda now, level: 0.5 if 10 < now < 10.9 else 0.05)
    assert node.run(30) == Level.NOTHING
    assert not node.changes


def test_the_first_step_comes_after_some_seconds_of_late_results():
    node = Node(steady(0.12))
    node.run(10)
    assert MISSED_FOR <= node.changes[0][0] <= MISSED_FOR + 0.5


def test_it_comes_back_step_by_step_when_the_load_ends():
    node = Node(lambda now, level: (0.5 if now < 30 else 0.05) * COST[level])
    assert node.run(30) == Level.IMAGES
    assert node.run(3.5 * HELD_FOR) == Level.NOTHING
    assert [level for _, level in node.changes] == [1, 2, 3, 2, 1, 0]


def test_tries_of_a_step_that_is_too_slow_become_rare():
    node = Node(steady(0.102))  # just too slow with pictures, far below the target without
    node.run(3600)
    tries = [when for when, level in node.changes if level == Level.NOTHING]
    waits = [later - earlier for earlier, later in zip(tries, tries[1:], strict=False)]
    assert waits[0] < waits[1] < waits[2] < waits[3]
    assert all(wait >= LONGEST_WAIT for wait in waits[5:])
    assert len(tries) < 3600 / LONGEST_WAIT + 6
    missed = sum(until - since for (since, level), (until, _) in zip(node.changes, node.changes[1:], strict=False)
                 if level == Level.NOTHING)
    assert missed / 3600 < 0.05


def test_after_many_tries_in_vain_it_still_comes_back_when_the_load_ends():
    node = Node(lambda now, level: (0.102 if now < 3600 else 0.05) * COST[level])
    node.run(3600)
    assert node.run(LONGEST_WAIT + 10) == Level.NOTHING
    assert node.run(300) == Level.NOTHING


def test_a_try_that_succeeded_is_not_held_against_the_next():
    """Load for one minute in five: the level returns to 0 equally fast each time."""
    node = Node(lambda now, level: (0.12 if now % 300 < 60 else 0.05) * COST[level])
    node.run(3000)
    back = [when % 300 for when, level in node.changes if level == Level.NOTHING and when % 300 > 60]
    assert len(back) == 10
    assert all(60 < when < 60 + 2 * HELD_FOR for when in back)


def test_a_latency_between_margin_and_target_is_left_alone():
    node = Node(lambda now, level: 0.2 if level == Level.NOTHING else 0.09)
    assert node.run(600) == Level.PICTURES
    assert len(node.changes) == 1


def test_slow_cameras_are_judged_too():
    node = Node(steady(0.15), rate=0.4)  # fewer than one image in the window
    assert node.run(60) == Level.MEMORY


def test_raising_the_target_brings_back_what_was_left_out():
    node = Node(steady(1.0))
    node.run(1000)
    node.target = 5.0
    assert node.run(3.5 * HELD_FOR) == Level.NOTHING


@pytest.mark.parametrize('change', [{'target': 0.0}, {'allowed': False}])
def test_without_target_or_leave_everything_is_back_at_once(change):
    node = Node(steady(1.0))
    assert node.run(30) == Level.IMAGES
    vars(node).update(change)
    assert node.run(1 / node.rate) == Level.NOTHING
    assert node.run(30) == Level.NOTHING
    assert node.shedder.missed == (node.target > 0)  # it still reports that the target is missed


@pytest.mark.parametrize(('latency', 'reason'), [
    (0.0, 'no stamp'), (float('nan'), 'no stamp'), (-0.25, '0.250 s ahead of the clock of this node: synchronise'),
    (86400.0, '86400 s behind the clock of this node: set use_sim_time')])
def test_what_is_no_latency_is_ignored_and_said(latency, reason):
    node = Node(lambda now, level: latency)
    assert node.run(30) == Level.NOTHING
    assert reason in why_unusable(latency)


def test_nothing_stays_left_out_for_reasons_long_gone():
    node = Node(steady(1.0))
    node.run(30)
    node.latency = lambda now, level: 0.0  # as of a camera driver that does not stamp
    assert node.run(8) == Level.IMAGES
    assert node.run(5) == Level.NOTHING


def test_silence_is_no_missed_target():
    node = Node(steady(0.5))
    node.run(FEWEST / node.rate)
    node.now += 60
    node.run(FEWEST / node.rate)
    assert not node.changes


@settings(max_examples=60, deadline=None)
@given(cost=st.floats(0.01, 0.4), rate=st.floats(2, 30), noise=st.lists(st.floats(0.97, 1.03), min_size=7, max_size=31))
def test_it_settles_on_the_first_level_that_holds_whatever_the_machine(cost, rate, noise):
    node = Node(lambda now, level: cost * COST[level] * noise[int(now * rate) % len(noise)], rate)
    node.run(1800)
    slowest, fastest = max(noise) * cost, min(noise) * cost
    if slowest * COST[Level.NOTHING] <= TARGET:
        assert node.changes == []
    elif fastest * COST[Level.IMAGES] > TARGET:
        assert node.shedder.level == Level.IMAGES and node.shedder.missed
    # at most three levels up, and pairs of changes for attempts that become rare
    assert len(node.changes) <= 3 + 2 * 3 * (6 + 1800 / LONGEST_WAIT)
    too_slow = [level for level in Level if fastest * COST[level] > TARGET]
    share = sum(until - since for (since, level), (until, _) in zip(node.changes, node.changes[1:], strict=False)
                if level in too_slow) / 1800
    assert share < 0.06


@settings(max_examples=60, deadline=None)
@given(loads=st.lists(st.tuples(st.floats(1, 120), st.floats(0.01, 2.0)), min_size=1, max_size=8))
def test_it_always_comes_back_when_the_load_ends(loads):
    node = Node(steady(0.0), rate=10.0)
    for seconds, cost in loads:
        node.latency = steady(cost)
        node.run(seconds)
    node.latency = steady(0.05)
    assert node.run(3 * (LONGEST_WAIT + HELD_FOR)) == Level.NOTHING


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.floats(allow_nan=True), st.floats(0, 100), st.floats(0, 60), st.booleans()), max_size=200))
def test_any_input_changes_by_one_level_at_a_time_or_to_nothing(updates):
    shedder, now = LoadShedder(), 0.0
    for latency, wait, target, allowed in updates:
        now += wait
        before = shedder.level
        after = shedder.update(latency, now, target, allowed)
        assert after in (before - 1, before, before + 1, Level.NOTHING)
