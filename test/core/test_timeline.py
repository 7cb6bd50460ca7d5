"""Image numbers of an object's memory after a fork, and the reach of ``frames_back``."""
import numpy as np
import pytest
import torch

from sam2_core import Prompt, StreamTracker
from sam2_core.memory import stack_memories
from testing.plain_tracker import tiny_model

BOX = Prompt(1, box=(5, 5, 20, 18))
CLICK = Prompt(1, points=[(9, 9)], labels=[1])
OTHER = Prompt(2, box=(12, 3, 30, 18))


@pytest.fixture(scope='module')
def model():
    return tiny_model()


@pytest.fixture(scope='module')
def images():
    rng = np.random.default_rng(4)
    return [np.kron(rng.integers(0, 255, (3, 4, 3), np.uint8), np.ones((8, 8, 1), np.uint8)) for _ in range(40)]


@pytest.fixture
def live(model, images):
    """Return a tracker that has processed images 0 to 19 with two objects."""
    tracker = StreamTracker(model)
    for number in range(20):
        tracker.step(images[number], [BOX, OTHER] if number == 0 else [])
    return tracker


def caught_up(live, images, first, *others):
    """Return a fork that starts at image ``first`` of 20, corrects object 1 there, and processes other images."""
    late = live.fork([1], 20 - first)
    for number in (first, *others):
        late.step(images[number], [CLICK] if number == first else [])
    return late


def frames(tracker, object_id=1):
    return [tuple(frame.flatten().tolist()) for frame in stack_memories([tracker._banks[object_id]]).frames[0]]


def test_fork_goes_back_by_the_images_of_the_tracker_where_the_object_has_seen_fewer(live, images):
    late = caught_up(live, images, 10, 13, 16, 19)
    of_its_images = frames(late)[1:2] + frames(late)[-3:]  # the corrected frame is a conditioning frame
    assert len(set(of_its_images)) == 4
    live.adopt(late, 1, frames_back=[10, 7, 4, 1])
    assert live._banks[1].steps[-6:] == (8, 9, 10, 13, 16, 19)
    for back, lost in ((4, 2), (5, 2), (6, 2), (7, 3), (1, 1), (3, 1)):
        there = [row in frames(live.fork([1], back)) for row in of_its_images]
        assert there == [True, *(number not in (3, 2, 1)[:lost] for number in (1, 2, 3))], back
    live.step(images[20])
    assert live._banks[1].steps[-2:] == (19, 20)


def test_images_without_positions_are_spread_evenly_from_the_fork_to_now(live, images):
    live.adopt(caught_up(live, images, 10, 12, 13, 18), 1)
    assert live._banks[1].steps[-5:] == (9, 10, 13, 16, 19)


def test_fork_that_saw_every_image_saw_the_same_ones(live, images):
    late = live.fork([1], 4)
    for number in range(16, 23):
        late.step(images[number], [CLICK] if number == 16 else [])
        if number > 19:
            live.step(images[number])
    expected = live._banks[1].steps
    live.adopt(late, 1)
    assert live._banks[1].steps == expected == tuple(range(23))


def test_image_that_the_tracker_skipped_counts_as_the_one_before_it(live, images):
    live.adopt(caught_up(live, images, 17, 30, 18, 31, 19), 1, frames_back=[3, 3, 2, 2, 1])
    assert live._banks[1].steps[-6:] == (16, 17, 17, 18, 18, 19)
    assert live.fork([1], 2)._banks[1].steps[-3:] == (16, 17, 17)


@pytest.mark.parametrize('frames_back', [None, []])
def test_object_is_never_ahead_of_the_tracker(live, images, frames_back):
    fork = live.fork([1])
    fork.step(images[20])
    live.adopt(fork, 1, frames_back)
    assert live._banks[1].steps[-1] == 20 and live.fork([])._state.timeline.images == 21


def test_images_of_a_fork_become_those_of_a_tracker_that_waited(live, images):
    """If an image fails for all objects together, each object continues alone."""
    forks = [live.fork([1]), live.fork([2])]
    for fork in forks:
        fork.step(images[20])
        live.adopt(fork, *fork.object_ids)
    for object_id in (1, 2):
        again = live.fork([object_id])  # adopting one by one gives the same result
        again.step(images[21])
        live.adopt(again, object_id)
    assert live.object_ids == (1, 2)
    assert live._banks[1].steps == live._banks[2].steps == tuple(range(22))
    live.step(images[22])
    assert live._banks[1].steps[-1] == 22


def test_images_of_a_tracker_that_is_no_fork_are_the_newest(live, model, images):
    stranger = StreamTracker(model)
    for number in range(3):
        stranger.step(images[30 + number], [BOX] if number == 0 else [])
    live.adopt(stranger, 1)
    assert live._banks[1].steps == (17, 18, 19)
    young = StreamTracker(model)
    young.adopt(live, 1)
    assert young._banks[1].steps == (-3, -2, -1)
    assert len(frames(young.fork([1], 2))) == 1
    young.step(images[0])
    assert young.fork([1], 1)._banks[1].steps == (-3, -2, -1)


def test_fork_of_a_fork_can_be_adopted(live, images):
    fork = live.fork([1, 2], 8)  # from image 12 on
    for number in (12, 14, 16):
        fork.step(images[number])
    second = fork.fork([1], 1)  # from image 16 on, the fork's third
    second.step(images[16], [CLICK])
    second.step(images[18])
    live.adopt(second, 1, frames_back=[8, 6, 4, 2])
    assert live._banks[1].steps[-5:] == (11, 12, 14, 16, 18)
    fork.step(images[18])
    sibling = live.fork([2], 8)
    for number in range(12, 16):
        sibling.step(images[number])
    fork.adopt(sibling, 2)
    assert fork._banks[2].steps == tuple(range(16)), 'siblings part where the earlier of them began'


def test_object_that_was_added_since_has_its_prompted_frames_only(live, images):
    live.step(images[20], [Prompt(3, box=(2, 2, 20, 20))])
    live.step(images[21])
    prompted = frames(live, 3)[:1]
    fork = live.fork([3], 9)
    assert frames(fork, 3) == prompted
    fork.step(images[13])
    assert len(frames(fork, 3)) == 2


def test_image_without_an_object_counts(live, model, images):
    tracker = StreamTracker(model)
    for number in range(4):
        tracker.step(images[number], [BOX] if number == 3 else [])
    assert tracker._banks[1].steps == (3,)
    tracker.reset()
    tracker.step(images[4])
    tracker.step(images[5], [BOX])
    assert tracker._banks[1].steps == (5,)


def test_the_count_is_bounded(model, images):
    tracker = StreamTracker(model)
    for number in range(140):
        tracker.step(images[number % 40], [BOX] if number == 0 else [])
    assert tracker._banks[1].steps == tuple(range(12, 140)) and len(tracker._state.timeline.moments) == 129
    fork = tracker.fork([1], 135)
    assert fork._banks[1].steps == (4,) and stack_memories([fork._banks[1]]).pointer_ages.tolist() == [[5]]


def test_repeated_late_corrections_stay_within_the_memory(model, images):
    """The prompt is ten images old, on every fifth image, and the fork processes four of the images since."""
    tracker = StreamTracker(model)
    tracker.step(images[0], [BOX, OTHER])
    for number in range(1, 120):
        tracker.step(images[number % 40])
        if number > 10 and number % 5 == 0:
            late = tracker.fork([1], frames_back=10)
            for past in (number - 9, *np.linspace(number - 8, number, 4).round().astype(int)):
                late.step(images[past % 40], [CLICK] if past == number - 9 else [])
            tracker.adopt(late, 1)
        assert all(n <= most for n, most in zip(tracker._banks[1].length(), (4 + 6, 4 + 15), strict=True))
    ages = stack_memories([tracker._banks[1]]).time_slots[0].tolist()
    assert sorted(ages)[:6] == [0, 1, 2, 3, 4, 5] and ages.count(6) == 4


# --- refused calls that change nothing

@pytest.mark.parametrize(('frames_back', 'error', 'text'), [
    ([2, 0], ValueError, r'frames_back \[2, 0\]: must be at least 1'), ([1, 2], ValueError, 'must not increase'),
    ([2.5], TypeError, 'frames_back 2.5: must be an integer'), ([True], TypeError, 'True: must be an integer')])
def test_wrong_places_are_refused(live, images, frames_back, error, text):
    late = caught_up(live, images, 18, 19)
    before = live._state, late._state
    with pytest.raises(error, match=text):
        live.adopt(late, 1, frames_back)
    assert (live._state, late._state) == before


def test_object_of_a_tracker_with_more_conditioning_frames_is_refused(live, model, images):
    """The memory would be longer than the length to which batches are padded."""
    other = StreamTracker(model, max_conditioning_frames=5)
    other.step(images[0], [BOX])
    with pytest.raises(ValueError, match='object 1 .* max_conditioning_frames 5 cannot join one with 4: give both'):
        live.adopt(other, 1)
    with pytest.raises(AttributeError):
        live.max_conditioning_frames = 5
    assert other.object_ids == (1,)


def test_adopting_from_oneself_changes_nothing(live):
    before = live._state
    live.adopt(live, 1)
    assert live._state is before
    with pytest.raises(KeyError, match='object 7 is not known'):
        live.adopt(live, 7)


@pytest.mark.parametrize(('call', 'text'), [
    (lambda tracker: tracker.fork([1], 1.5), 'frames_back 1.5: must be an integer'),
    (lambda tracker: setattr(tracker, 'recent_frames', 2.5), 'recent_frames 2.5: must be an integer'),
    (lambda tracker: StreamTracker(tracker.model, max_conditioning_frames=2.5), 'max_conditioning_frames 2.5: must')])
def test_non_integers_are_refused(live, call, text):
    with pytest.raises(TypeError, match=text):
        call(live)


def test_ids_are_those_of_the_tracker_whatever_integer_names_them(live):
    fork = live.fork(np.array([2, 1]))
    live.adopt(fork, np.int64(2))
    assert live.object_ids == (1, 2) and all(type(n) is int for n in (*live.object_ids, *fork.object_ids))
    assert torch.equal(stack_memories([live._banks[2]]).frames, stack_memories([live.fork([2])._banks[2]]).frames)
