"""Track states of objects from image to image, and the events of their changes."""
import math

import numpy as np
import pytest
import torch
from builtin_interfaces.msg import Time
from hypothesis import given
from hypothesis import strategies as st

from sam2_core import ObjectResult
from sam2_core.scores import SCORE_CORRECTIONS, Platt, probability, score_correction, unit
from sam2_ros.msg import Instance, InstanceEvent
from sam2_ros.perception.frame import Event
from sam2_ros.perception.object_states import ObjectStates
from sam2_ros.runtime.parameters import Parameters

TRACKED, OCCLUDED, LOST = Instance.TRACKED, Instance.OCCLUDED, Instance.LOST
ADDED, REAPPEARED, FORGOTTEN, REMOVED = (InstanceEvent.ADDED, InstanceEvent.REAPPEARED, InstanceEvent.FORGOTTEN,
                                         InstanceEvent.REMOVED)
GONE, GIVEN_UP = InstanceEvent.OCCLUDED, InstanceEvent.LOST
SURE, DOUBTFUL, HIDDEN = 5.0, 0.2, -3.0  # logits
PARAMETERS = Parameters(lost_after=1.0, reappear_visibility=0.7, reappear_images=3)


def time(seconds: float) -> Time:
    return Time(sec=int(seconds), nanosec=round(seconds % 1 * 1e9))


def result(object_score: float, pixels: bool = True, iou: float = 0.9) -> ObjectResult:
    mask = np.zeros((4, 6), bool)
    mask[1:3, 2:5] = pixels
    return ObjectResult(mask, torch.zeros(1, 1), (2, 1, 5, 3) if pixels else None, iou, object_score)


class Seen:
    """One object, id 7, shown image by image."""

    def __init__(self, **parameters) -> None:
        self.parameters = Parameters(**{'lost_after': 1.0, 'reappear_visibility': 0.7, 'reappear_images': 3,
                                        **parameters})
        self.states = ObjectStates()
        self.states.name(7, 'cup', time(10))

    def show(self, seconds: float, object_score: float, pixels: bool = True, prompted: bool = False, iou: float = 0.9):
        return self.states.observe(7, result(object_score, pixels, iou), time(seconds), self.parameters, prompted)

    def events(self):
        return [(event.kind, event.last_seen) for event in self.states.take_events()]


# --- visible and hidden

def test_object_in_sight_is_told_with_its_mask():
    seen = Seen()
    item = seen.show(10, SURE, prompted=True)
    assert (item.id, item.label, item.state, item.last_seen, item.box) == (7, 'cup', TRACKED, time(10), (2, 1, 5, 3))
    assert item.mask.sum() == 6 and item.score == 0.9
    assert seen.events() == [(ADDED, time(10))]


@pytest.mark.parametrize(('score', 'pixels'), [(HIDDEN, True), (HIDDEN, False), (0.0, True), (SURE, False),
                                               (math.nan, True)])
def test_without_sight_or_pixels_there_is_no_mask_in_the_very_image(score, pixels):
    seen = Seen()
    seen.show(10, SURE)
    seen.events()
    item = seen.show(10.1, score, pixels)
    assert (item.state, item.box, item.mask, item.score, item.last_seen) == (OCCLUDED, None, None, 0.0, time(10))
    assert 0 <= item.visibility <= 1
    assert seen.events() == [(GONE, time(10))]


def test_object_long_out_of_sight_is_lost_by_stamps_whatever_the_rate():
    seen = Seen(lost_after=1.5)
    seen.show(10, SURE)
    states = {seconds: seen.show(seconds, HIDDEN).state for seconds in (10.5, 11.5, 11.6, 60)}
    assert states == {10.5: OCCLUDED, 11.5: OCCLUDED, 11.6: LOST, 60: LOST}
    assert [kind for kind, _ in seen.events()] == [ADDED, GONE, GIVEN_UP]


def test_object_lost_between_two_images_was_occluded_too():
    seen = Seen()
    seen.show(10, SURE)
    seen.events()
    assert seen.show(20, HIDDEN).state == LOST
    assert seen.events() == [(GONE, time(10)), (GIVEN_UP, time(10))]


def test_object_that_was_never_seen_is_lost_from_its_prompt_on():
    seen = Seen()
    assert seen.show(10, HIDDEN, prompted=True).state == OCCLUDED
    item = seen.show(11.1, HIDDEN)
    assert item.state == LOST and item.last_seen == Time()
    assert seen.events() == [(ADDED, Time()), (GONE, Time()), (GIVEN_UP, Time())]


# --- visible again

def gone(**parameters) -> Seen:
    """Return an object that was seen at 10 s and has been hidden since."""
    seen = Seen(**parameters)
    seen.show(10, SURE)
    seen.show(10.1, HIDDEN)
    seen.events()
    return seen


def test_object_surely_seen_is_back_at_once():
    seen = gone()
    item = seen.show(10.2, SURE)
    assert item.state == TRACKED and item.last_seen == time(10.2) and item.mask is not None
    assert seen.events() == [(REAPPEARED, time(10.2))]


def test_object_doubtfully_seen_has_to_be_found_in_several_images_in_a_row():
    seen = gone()
    for seconds in (10.2, 10.3):
        item = seen.show(seconds, DOUBTFUL)
        assert (item.state, item.box, item.mask, item.score, item.last_seen) == (OCCLUDED, None, None, 0.0, time(10))
        assert item.visibility == pytest.approx(1 / (1 + math.exp(-DOUBTFUL)))
    assert seen.show(10.4, DOUBTFUL).state == TRACKED
    assert seen.events() == [(REAPPEARED, time(10.4))]


def test_one_image_without_it_starts_the_count_again():
    seen = gone()
    scores = [DOUBTFUL, DOUBTFUL, HIDDEN, DOUBTFUL, DOUBTFUL]
    assert {seen.show(10.2 + i / 10, score).state for i, score in enumerate(scores)} == {OCCLUDED}
    assert seen.show(10.8, DOUBTFUL).state == TRACKED


def test_found_without_a_pixel_is_not_found():
    seen = gone(reappear_images=2)
    assert [seen.show(10.2 + i / 10, DOUBTFUL, pixels).state for i, pixels in enumerate((True, False, True, True))] == [
        OCCLUDED, OCCLUDED, OCCLUDED, TRACKED]


def test_prompt_brings_it_back_at_once():
    assert gone().show(10.2, DOUBTFUL, prompted=True).state == TRACKED


def test_prompt_makes_nothing_of_what_the_model_does_not_see():
    assert gone().show(10.2, HIDDEN, prompted=True).state == OCCLUDED


def test_object_that_is_in_sight_needs_no_certainty_to_stay():
    seen = Seen()
    assert [seen.show(10 + i / 10, DOUBTFUL).state for i in range(5)] == [TRACKED] * 5


def test_object_may_get_lost_while_it_is_only_doubtfully_found():
    seen = gone(reappear_images=20)
    assert seen.show(11.1, DOUBTFUL).state == LOST
    assert seen.show(11.2, SURE).state == TRACKED


def test_every_return_is_told_with_the_same_id_and_label():
    seen = Seen()
    for start in (10, 20, 30):
        seen.show(start, SURE)
        seen.show(start + 5, HIDDEN)
    assert [(event.id, event.label, event.kind) for event in seen.states.take_events()] == [
        (7, 'cup', kind) for kind in (ADDED, GONE, GIVEN_UP, REAPPEARED, GONE, GIVEN_UP, REAPPEARED, GONE, GIVEN_UP)]


# --- labels, forgetting, time

def test_new_label_keeps_the_state():
    seen = gone()
    seen.states.name(7, 'mug', time(10.2))
    item = seen.show(10.2, HIDDEN)
    assert (item.label, item.state, item.last_seen) == ('mug', OCCLUDED, time(10))
    assert seen.events() == []


def test_object_is_forgotten_only_when_it_is_out_of_sight_for_longer_than_asked():
    seen = gone()
    assert seen.states.expire(time(1000), 0.0) == []
    assert seen.states.expire(time(15), 5.0) == []
    assert seen.states.expire(time(15.1), 5.0) == [7]
    assert seen.events() == [(FORGOTTEN, time(10))]
    assert seen.states.expire(time(100), 5.0) == []


def test_object_in_sight_is_never_forgotten():
    seen = Seen()
    seen.show(10, SURE)
    assert seen.states.expire(time(100), 5.0) == []


def test_removed_objects_are_told_in_their_order():
    states = ObjectStates()
    for object_id in (3, 1):
        states.name(object_id, f'label {object_id}', time(10))
        states.observe(object_id, result(SURE), time(10), PARAMETERS, True)
    states.take_events()
    states.clear()
    assert states.take_events() == [Event(3, 'label 3', REMOVED, time(10)), Event(1, 'label 1', REMOVED, time(10))]
    assert states.take_events() == []


def test_object_nobody_has_heard_of_goes_in_silence():
    seen = Seen()
    seen.states.remove(7)
    assert seen.events() == []


def test_removed_object_has_no_past_when_its_id_is_used_again():
    seen = gone()
    seen.states.remove(7)
    seen.states.name(7, 'bowl', time(11))
    item = seen.show(11, HIDDEN)
    assert (item.label, item.state, item.last_seen) == ('bowl', OCCLUDED, Time())


def test_time_that_jumps_back_starts_the_clock_anew():
    seen = Seen(lost_after=1.0, forget_after=5.0)
    seen.show(100, SURE)
    seen.show(100.5, HIDDEN)
    seen.states.time_jumped(time(50))
    assert seen.show(50, HIDDEN).state == OCCLUDED
    assert seen.states.expire(time(55), 5.0) == []
    assert seen.show(51.1, HIDDEN).state == LOST
    assert seen.states.expire(time(55.1), 5.0) == [7]


def test_lost_stays_lost_when_time_jumps_back():
    seen = gone()
    assert seen.show(20, HIDDEN).state == LOST
    seen.states.time_jumped(time(5))
    seen.events()
    assert seen.show(5, HIDDEN).state == LOST
    assert seen.events() == []


# --- numbers

@pytest.mark.parametrize(('raw', 'told'), [(-0.2, 0.0), (0.0, 0.0), (0.4, 0.4), (1.0, 1.0), (1.3, 1.0),
                                           (math.inf, 1.0), (-math.inf, 0.0), (math.nan, 0.0)])
def test_score_lies_between_0_and_1(raw, told):
    assert unit(raw) == told
    seen = Seen()
    assert seen.show(10, SURE, iou=raw).score == told


@pytest.mark.parametrize('logit', [-1e30, -1000.0, -2.0, 0.0, 2.0, 1000.0, 1e30])
def test_visibility_is_the_sigmoid_without_overflow(logit):
    with np.errstate(over='ignore'):
        assert probability(logit) == pytest.approx(1 / (1 + float(np.exp(-np.float64(logit)))))


def test_correction_is_for_images_without_a_prompt():
    """In a prompted image the model can judge its mask; later it does not know that it has drifted."""
    seen = Seen()
    seen.states = ObjectStates(Platt(0.5, -1.0))
    seen.states.name(7, 'cup', time(10))
    assert seen.show(10, SURE, iou=0.8, prompted=True).score == 0.8
    expected = 1 / (1 + math.exp(-(0.5 * math.log(0.8 / 0.2) - 1.0)))
    assert seen.show(10.1, SURE, iou=0.8).score == pytest.approx(expected)
    assert seen.show(10.2, SURE, iou=0.8).visibility == probability(SURE)


@pytest.mark.parametrize(('parameters', 'corrected'), [
    (Parameters(model='nano'), True), (Parameters(model='nano', checkpoint='mine.pt'), False),
    (Parameters(model='sam2.1_hiera_tiny'), False), (Parameters(model='', checkpoint='mine.pt'), False)])
def test_only_what_was_measured_is_corrected(parameters, corrected):
    assert (score_correction(parameters.model, parameters.checkpoint) is not None) == corrected


@pytest.mark.parametrize('correction', SCORE_CORRECTIONS.values())
@given(one=st.floats(width=32), other=st.floats(width=32))
def test_correction_keeps_the_order_and_the_range(correction, one, other):
    assert 0 <= correction(one) <= 1
    if unit(one) <= unit(other):
        assert correction(one) <= correction(other)


IMAGES = st.tuples(st.floats(width=32), st.floats(width=32), st.booleans(), st.booleans(), st.floats(-0.9, 5.0))


@given(st.lists(IMAGES, min_size=1, max_size=40), st.floats(0, 3), st.floats(0.5, 1), st.integers(1, 4))
def test_whatever_the_model_says_the_told_states_are_sound(images, lost_after, visibility, in_a_row):
    """Any scores, NaN and infinity included, and stamps that may go back a little."""
    seen = Seen(lost_after=lost_after, reappear_visibility=visibility, reappear_images=in_a_row)
    now, told, returns, before = 100.0, [], 0, None
    for score, iou, pixels, prompted, step in images:
        now += step
        last_seen = told[-1].last_seen if told else Time()
        item = seen.show(now, score, pixels, prompted, iou)
        told.append(item)
        assert 0 <= item.visibility <= 1 and 0 <= item.score <= 1
        if item.state == TRACKED:
            assert score > 0 and item.box is not None and item.mask.any() and item.last_seen == time(now)
            returns += before in (OCCLUDED, LOST)
        else:
            assert (item.box, item.mask, item.score, item.last_seen) == (None, None, 0.0, last_seen)
        if before == LOST:
            assert item.state in (LOST, TRACKED)
        before = item.state
    kinds = [kind for kind, _ in seen.events()]
    assert kinds[0] == ADDED and kinds.count(ADDED) == 1
    assert kinds.count(REAPPEARED) == returns
    follows = {ADDED: {GONE}, GONE: {GIVEN_UP, REAPPEARED}, GIVEN_UP: {REAPPEARED}, REAPPEARED: {GONE}}
    assert all(after in follows[kind] for kind, after in zip(kinds, kinds[1:], strict=False))
    last = {TRACKED: {ADDED, REAPPEARED}, OCCLUDED: {GONE}, LOST: {GIVEN_UP}}
    assert kinds[-1] in last[before]


@given(st.lists(st.sampled_from([SURE, DOUBTFUL, HIDDEN]), min_size=1, max_size=30), st.integers(1, 5))
def test_return_takes_certainty_or_patience(scores, in_a_row):
    seen = gone(reappear_images=in_a_row)
    back = False
    for i, score in enumerate(scores):
        found_in_a_row = scores[max(0, i + 1 - in_a_row):i + 1]
        patient = len(found_in_a_row) == in_a_row and HIDDEN not in found_in_a_row
        back = score == SURE or (score == DOUBTFUL and (back or patient))
        assert (seen.show(10.2 + i / 30, score).state == TRACKED) == back
