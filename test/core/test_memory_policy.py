"""Memory policies: which frames are in the bank after which step, with which code, from masks made by hand."""
from __future__ import annotations

import copy
import random
from dataclasses import dataclass, replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from sam2_core import VARIANTS, Prompt, Sam2Model, StreamTracker, load_model, load_state, save_state
from sam2_core.memory import MemoryBank, MemoryShapes, stack_memories, write_memories
from sam2_core.memory_policy import (
    MEMORY_POLICIES,
    Attended,
    DistractorAware,
    Kept,
    Kind,
    Past,
    Published,
    Write,
    distractor_overlap,
    memory_policy_of,
)
from sam2_core.metrics import iou
from sam2_core.tracking import SeenObjects
from testing.plain_memory_policy import PlainDistractorAware, pieces, plain_overlap
from testing.plain_tracker import OneByOne, tiny_model

CONFIG = replace(VARIANTS['nano'], memory_dim=2, d_model=2, image_size=32, max_pointer_distance=300)
NAMES = list(MEMORY_POLICIES)


def drawn(*boxes):
    """Return a mask (12, 20) of boxes (x0, y0, x1, y1)."""
    mask = np.zeros((12, 20), bool)
    for x0, y0, x1, y1 in boxes:
        mask[y0:y1, x0:x1] = True
    return mask


CHOSEN = drawn((2, 2, 6, 7))  # 4 x 5 pixels
TWIN = drawn((2, 2, 6, 7), (10, 2, 14, 7))  # the box with the twin is 12 x 5: an IoU of 1/3


@dataclass
class Look:
    """Tracked object as a policy sees it. By default an ordinary frame: no other mask differs from the chosen one."""

    area: int = 20
    iou: float = 0.9
    object_score: float = 8.0
    other: np.ndarray | None = None
    asked: int = 0  # times that masks were asked for

    def masks(self):
        self.asked += 1
        return CHOSEN, np.stack([CHOSEN, drawn(), CHOSEN if self.other is None else self.other])


def twin(**changes):
    return Look(other=TWIN, **changes)


HIDDEN = {'area': 0, 'iou': 0.1, 'object_score': -5.0}


class Stream:
    """Memory of one object; the memory and the pointer of frame n are filled with n."""

    def __init__(self, policy, limit=4, config=CONFIG):
        self.policy = memory_policy_of(policy)
        self.bank = MemoryBank(config, limit, torch.device('cpu'), torch.float32, self.policy)

    def prompt(self):
        return self._write(Write(Kind.PROMPT))

    def track(self, *looks):
        for look in looks:
            self._write(self.policy.write(self.bank.past, look))
        return self

    def plain(self, count):
        return self.track(*(Look() for _ in range(count)))

    def hidden(self, count=1):
        return self.track(*(Look(**HIDDEN) for _ in range(count)))

    def _write(self, write):
        content = torch.full((4, 2), float(self.bank.past.now))
        self.bank, = write_memories([self.bank], [write], [content], [content[0]], 0)
        return self

    def frames(self, recent_frames=None):
        """Return the time slot of each frame that the next frame attends to."""
        memory = stack_memories([self.bank], recent_frames)
        numbers = memory.frames[0, :, 0, 0].int().tolist()
        assert len(numbers) == len(set(numbers)) == self.bank.length(recent_frames)[0]
        return dict(zip(numbers, memory.time_slots[0].tolist(), strict=True))

    def pointers(self):
        """Return the age of each pointer."""
        memory = stack_memories([self.bank])
        return dict(zip(memory.pointers[0, :, 0].int().tolist(), memory.pointer_ages[0].tolist(), strict=True))


@pytest.fixture
def aware():
    """Return the memory of an object after its prompt, in frame 0."""
    return Stream('distractor_aware').prompt()


# --- distractor-aware: recent frames

def test_the_last_and_every_fifth_frame_are_remembered_and_coded_by_rank(aware):
    """6 is the code of conditioning frames, 0 that of the newest frame."""
    assert aware.frames() == {0: 6}
    assert aware.plain(1).frames() == {0: 6, 1: 0}
    assert aware.plain(1).frames() == {0: 6, 2: 0}
    assert aware.plain(2).frames() == {0: 6, 4: 0}
    assert aware.plain(1).frames() == {0: 6, 5: 0}
    assert aware.plain(1).frames() == {0: 6, 5: 1, 6: 0}
    assert aware.plain(4).frames() == {0: 6, 5: 1, 10: 0}
    assert aware.plain(3).frames() == {0: 6, 5: 2, 10: 1, 13: 0}


def test_recent_frames_take_free_places_and_the_oldest_leaves_only_when_all_seven_are_taken(aware):
    assert aware.plain(29).frames() == {0: 6, 5: 5, 10: 4, 15: 3, 20: 2, 25: 1, 29: 0}
    assert aware.plain(1).frames() == {0: 6, 5: 5, 10: 4, 15: 3, 20: 2, 25: 1, 30: 0}
    assert aware.plain(1).frames() == {0: 6, 10: 5, 15: 4, 20: 3, 25: 2, 30: 1, 31: 0}
    assert aware.plain(69).frames() == {0: 6, 75: 5, 80: 4, 85: 3, 90: 2, 95: 1, 100: 0}


def test_a_frame_with_an_empty_mask_leaves_neither_memory_nor_pointer(aware):
    aware.plain(7).hidden(4)
    assert aware.frames() == {0: 6, 5: 1, 7: 0}
    assert 8 not in aware.pointers() and len(aware.pointers()) == 8
    assert aware.hidden(400).frames() == {0: 6, 5: 1, 7: 0}, 'the time that passes does not matter'
    aware.plain(1)  # frame 412 takes the place of frame 7
    assert aware.frames() == {0: 6, 5: 1, 412: 0}


# --- distractor-aware: anchors

def test_an_anchor_is_the_last_recent_frame_first_and_then_leaves_its_place_to_the_next(aware):
    aware.plain(7).track(twin())
    assert aware.frames() == {0: 6, 5: 1, 8: 0}
    aware.plain(1)
    assert aware.frames() == {0: 6, 8: 6, 5: 2, 9: 0}, 'ranks are counted over all frames, anchors included'
    aware.plain(3)
    assert aware.frames() == {0: 6, 8: 6, 5: 3, 10: 1, 12: 0}


def test_an_anchor_becomes_one_though_the_next_frame_is_not_written(aware):
    aware.plain(7).track(twin()).hidden()
    assert aware.frames() == {0: 6, 8: 6, 5: 1}
    assert aware.plain(1).frames() == {0: 6, 8: 6, 5: 2, 10: 0}


def test_a_fourth_anchor_pushes_out_the_oldest_one_frame_later(aware):
    for _ in range(3):
        aware.plain(6).track(twin())  # frames 7, 14 and 21
    assert aware.plain(6).frames() == {0: 6, 7: 6, 14: 6, 21: 6, 20: 3, 25: 1, 27: 0}
    assert aware.track(twin()).frames() == {0: 6, 7: 6, 14: 6, 21: 6, 20: 3, 25: 1, 28: 0}
    assert aware.plain(1).frames() == {0: 6, 14: 6, 21: 6, 28: 6, 20: 4, 25: 2, 29: 0}


@pytest.mark.parametrize(('change', 'anchor'), [
    ({}, True), ({'iou': 0.8}, False), ({'iou': 0.81}, True),
    ({'area': 16}, True), ({'area': 15}, False), ({'area': 24}, True), ({'area': 25}, False),
    ({'other': CHOSEN}, False), ({'other': drawn((2, 2, 6, 7), (6, 2, 7, 7))}, False)])
def test_an_anchor_needs_a_sure_mask_of_the_usual_size_and_a_look_alike(aware, change, anchor):
    """The usual area is 20, of which 16 is 0.8 times and 24 is 1.2 times as much."""
    aware.plain(11).track(replace(twin(), **change))
    assert aware.plain(1).frames().get(12) == (6 if anchor else None)


def test_the_usual_area_is_the_median_of_ten_visible_frames_of_which_the_present_is_one(aware):
    aware.track(*(Look(area=60) for _ in range(20)), *(Look(area=20) for _ in range(4))).hidden(50)
    assert aware.track(twin(area=20)).bank.past.frames[-1].kind is Kind.RECENT, 'half of ten are 60: the median is 40'
    assert aware.track(twin(area=20)).bank.past.frames[-1].kind is Kind.ANCHOR, 'the median is 20'


def test_the_first_tracked_frame_is_no_anchor_and_the_next_may_be(aware):
    assert aware.track(twin()).bank.past.frames[-1].kind is Kind.RECENT
    assert aware.track(twin()).bank.past.frames[-1].kind is Kind.ANCHOR


def test_more_than_five_frames_lie_between_two_anchors(aware):
    aware.plain(7).track(*(twin() for _ in range(13)))  # frames 8 to 20
    assert [row.frame for row in aware.bank.past.frames if row.kind is Kind.ANCHOR] == [8, 14, 20]


def test_masks_are_asked_for_only_if_the_cheap_conditions_hold(aware):
    looks = [twin(), twin(), twin(), twin(iou=0.5), twin(area=70), twin(**HIDDEN)]
    aware.track(*looks)
    assert [look.asked for look in looks] == [0, 1, 0, 0, 0, 0]


@pytest.mark.parametrize(('other', 'expected'), [
    (CHOSEN, 1.0), (drawn(), 1.0), (drawn((3, 3, 5, 5)), 1.0), (TWIN, 20 / 60),
    (drawn((10, 2, 14, 7)), 20 / 60),  # the other mask need not hold the chosen one
    (drawn((6, 2, 8, 7)), 20 / 30), (drawn((10, 2, 11, 7), (2, 7, 6, 8), (2, 8, 6, 9)), 20 / 28),
    (drawn((18, 0, 20, 1), (10, 2, 14, 7)), 20 / 60),  # of two pieces the larger one
    (drawn((2, 7, 3, 8), (3, 8, 4, 9), (4, 9, 5, 10), (15, 2, 16, 4)), 20 / 32)])  # pixels that touch at corners
def test_of_another_mask_the_largest_piece_outside_widens_the_box(other, expected):
    assert distractor_overlap(CHOSEN, np.stack([CHOSEN, other])) == expected
    assert plain_overlap(CHOSEN, [CHOSEN, other]) == expected


def test_of_several_masks_the_one_that_widens_the_box_most_decides():
    others = [drawn((6, 2, 8, 7)), TWIN, CHOSEN]
    assert distractor_overlap(CHOSEN, np.stack(others)) == 20 / 60


# --- distractor-aware: pointers

def test_pointers_have_ages_by_rank_that_end_at_fifteen(aware):
    """The model divides ages by 15, so rank / (n - 1) of n pointers is age rank * 15 / (n - 1)."""
    assert aware.pointers() == {0: 15}
    assert aware.plain(1).pointers() == {0: 30, 1: 15}
    assert aware.plain(2).pointers() == {0: 20, 1: 15, 2: 10, 3: 5}
    assert aware.hidden(2).pointers() == {0: 30, 1: 15, 2: 10, 3: 5}, 'the prompt is as old as it is'


def test_sixteen_pointers_stay_and_the_oldest_that_is_not_prompted_leaves(aware):
    assert aware.plain(15).pointers() == {0: 16, **{frame: 16 - frame for frame in range(1, 16)}}
    assert aware.plain(1).pointers() == {0: 17, **{frame: 17 - frame for frame in range(2, 17)}}
    assert aware.plain(400).pointers() == {0: 300, **{frame: 417 - frame for frame in range(402, 417)}}


# --- distractor-aware: several prompts

def test_prompts_outrank_anchors_and_the_newest_prompts_stay(aware):
    aware.plain(7).track(twin()).plain(6).track(twin()).plain(4).prompt()  # anchors 8 and 15, a correction in 20
    assert aware.frames() == {0: 6, 8: 6, 15: 6, 20: 6, 5: 5, 10: 3, 19: 1}
    aware.plain(2).prompt()  # 23: the older anchor leaves
    assert aware.frames() == {0: 6, 15: 6, 20: 6, 23: 6, 5: 5, 10: 4, 22: 1}
    aware.plain(2).prompt().plain(2).prompt()  # 26 and 29: the other anchor leaves, and then the first prompt
    assert aware.frames() == {20: 6, 23: 6, 26: 6, 29: 6, 10: 5, 25: 3, 28: 1}, '5 is the highest rank'
    assert {*aware.pointers()} == {*range(14, 30)}
    seen = twin()
    aware.plain(8).track(seen)
    assert seen.asked == 0, 'no place is left for an anchor'
    assert aware.frames() == {20: 6, 23: 6, 26: 6, 29: 6, 30: 2, 35: 1, 38: 0}


def test_with_room_for_one_prompt_a_correction_replaces_the_first_and_anchors_stay():
    stream = Stream('distractor_aware', limit=1).prompt().plain(7).track(twin()).plain(3).prompt().plain(1)
    assert stream.frames() == {8: 6, 12: 6, 5: 4, 10: 2, 13: 0}
    assert 0 not in stream.pointers()


def test_limits_of_recent_frames_leave_out_the_oldest_but_no_anchor(aware):
    aware.plain(7).track(twin()).plain(9)
    assert aware.frames() == {0: 6, 8: 6, 5: 4, 10: 2, 15: 1, 17: 0}
    assert aware.frames(2) == {0: 6, 8: 6, 15: 1, 17: 0}
    assert aware.frames(0) == {0: 6, 8: 6}


# --- distractor-aware: copies of the past

def past_of(stream, frames_back):
    copied = Stream(stream.policy)
    copied.bank = stream.bank.copy(frames_back)
    return copied


def test_a_copy_of_the_past_knows_the_anchors_of_then(aware):
    aware.plain(7).track(twin()).plain(6).track(twin()).plain(2)  # anchors 8 and 15, frame 18 is next
    then = past_of(aware, 6)  # frame 12 is next
    assert then.frames() == {0: 6, 8: 6, 5: 2, 10: 0}, 'frame 11 has made place for the next one'
    assert [frame for frame, _ in then.bank.past.notes] == [8, 9, 10, 11], 'ten areas are known, of frames 8 to 17'
    assert past_of(aware, 9).frames() == {0: 6, 5: 1, 8: 0}, 'frame 9 is next, and 8 is its last recent frame'
    then.plain(2).track(twin())
    assert [row.frame for row in then.bank.past.frames if row.kind is Kind.ANCHOR] == [8, 14]


def test_a_copy_of_the_past_foresees_later_prompts_without_a_rank(aware):
    aware.plain(9).prompt().plain(3)
    then = past_of(aware, 6)  # frame 8 is next
    assert then.frames() == {0: 6, 10: 6, 5: 0}
    assert then.plain(2).frames() == {0: 6, 10: 6, 5: 1, 9: 0}


# --- IoU-gated

def unsure():
    return Look(iou=0.009)


def test_frames_that_the_model_is_sure_of_stay_and_others_last_until_the_next():
    stream = Stream('iou_gated').prompt().plain(3)
    assert stream.frames() == {0: 6, 1: 2, 2: 1, 3: 0}
    assert stream.track(unsure()).frames() == {0: 6, 1: 3, 2: 2, 3: 1, 4: 0}
    assert stream.track(unsure()).frames() == {0: 6, 1: 3, 2: 2, 3: 1, 5: 0}
    assert stream.plain(1).frames() == {0: 6, 1: 3, 2: 2, 3: 1, 6: 0}
    assert stream.pointers() == {0: 7, 1: 4, 2: 3, 3: 2, 6: 1}
    assert stream.hidden(200).plain(3).frames() == {0: 6, 2: 5, 3: 4, 6: 3, 207: 2, 208: 1, 209: 0}


def test_the_newest_six_sure_frames_and_fifteen_pointers_are_attended_to():
    stream = Stream('iou_gated').prompt().plain(20)
    assert stream.frames() == {0: 6, **{20 - rank: rank for rank in range(6)}}
    assert stream.pointers() == {0: 21, **{21 - age: age for age in range(1, 16)}}
    assert stream.hidden().frames() == {0: 6, 21: 0, **{21 - rank: rank for rank in range(1, 6)}}


def test_a_gate_that_never_closes_is_the_published_rule_bit_for_bit(scripted):
    trackers = [StreamTracker(scripted, memory_policy=name) for name in ('published', 'iou_gated')]
    for frame, image in enumerate(IMAGES[:24]):
        prompts = {0: [BOX], 6: [Prompt(1, points=[(9, 9)], labels=[0])]}.get(frame, [])
        results = [tracker.step(image, prompts).objects[1] for tracker in trackers]
        assert torch.equal(*(result.logits for result in results))
    memories = [stack_memories([tracker._banks[1]]) for tracker in trackers]
    assert all(torch.equal(*parts) for parts in zip(*(memory[:4] for memory in memories), strict=True))


@pytest.mark.parametrize(('iou', 'score', 'stays'), [
    (1.0, 0.0, False), (1.0, 0.02, False), (1.0, 0.021, True), (0.0, 9.0, False), (0.02, 1.0, False), (0.03, 1.0, True),
    (1.0, -9.0, False)])
def test_a_frame_counts_by_predicted_iou_times_certainty(iou, score, stays):
    """2 sigmoid(x) - 1 is 0.01 at x = 0.02, and 0.46 at x = 1."""
    stream = Stream('iou_gated').prompt().track(Look(iou=iou, object_score=score)).plain(1)
    assert (1 in stream.frames()) == stays


def test_a_prompted_last_frame_has_the_rank_of_the_last():
    assert Stream('iou_gated').prompt().plain(3).prompt().frames() == {0: 6, 4: 6, 1: 3, 2: 2, 3: 1}
    assert Stream('published').prompt().plain(3).prompt().frames() == {0: 6, 4: 6, 1: 3, 2: 2, 3: 1}


# --- all policies

@pytest.mark.parametrize('name', NAMES)
def test_memory_is_bounded_whatever_happens(name):
    """Frames of all kinds, prompts and copies of the past in random order."""
    rng = random.Random(5)
    for limit in (1, 2, 4, 6):
        config = replace(CONFIG, memory_frames=rng.choice((1, 2, 3, 7, 7)), object_pointers=rng.choice((2, 16, 16)))
        stream = Stream(name, limit, config).prompt()
        size, shapes = stream.bank.nbytes, MemoryShapes(config, limit, stream.policy)
        rows = stream.bank._frames.storage.shape[0], stream.bank._pointers.storage.shape[0]
        assert [n - 1 for n in rows] == [*shapes.longest()]
        for _ in range(500):
            if rng.random() < 0.1:
                stream.bank = stream.bank.copy(rng.choice((0, 1, 2, 5, 9, 30)))
            if rng.random() < 0.05:
                stream.prompt()
            else:
                stream.track(rng.choice((Look(), twin(), twin(), unsure(), Look(**HIDDEN))))
            past = stream.bank.past
            assert any(row.kind is Kind.PROMPT for row in past.frames) and stream.bank.nbytes == size
            newest = max(row.frame for row in past.frames if row.kind is Kind.PROMPT)
            assert newest == max(row.frame for row in past.pointers if row.kind is Kind.PROMPT)
            for recent in (None, 0, 1, 3):
                length, longest = stream.bank.length(recent), shapes.longest(recent)
                assert length[0] <= longest[0] and length[1] <= longest[1]
            memory = stack_memories([stream.bank])
            assert memory.time_slots.min() >= 0 and memory.time_slots.max() == config.memory_frames - 1
            assert memory.pointer_ages.min() >= 1 and memory.pointer_ages.max() <= config.max_pointer_distance
            assert len(past.notes) <= 10


@pytest.mark.parametrize('name', NAMES)
def test_an_old_object_has_the_complete_shape_or_less(name):
    stream = Stream(name).prompt().plain(100)
    shapes = MemoryShapes(CONFIG, 4, stream.policy)
    assert stream.bank.length() == shapes.complete() == (7, 16)
    assert stream.bank.length(3) == shapes.complete(3) == (4, 16)
    assert all(n <= most for n, most in zip(shapes.complete(3), shapes.longest(3), strict=True))


@pytest.mark.fuzz
def test_random_frames_give_what_the_plain_rule_gives(rounds):
    rng, steps = random.Random(1), 0
    while steps < rounds(1500, 100_000):
        limit, hidden, twins = rng.choice((1, 2, 4, 6)), rng.choice((0.05, 0.5)), rng.choice((0.1, 0.8))
        stream, plain = Stream('distractor_aware', limit).prompt(), PlainDistractorAware(limit)
        plain.prompt()
        for _ in range(100):
            if rng.random() < 0.05:
                stream.prompt(), plain.prompt()
            else:
                look = Look(0 if rng.random() < hidden else rng.randint(14, 26), rng.choice((0.7, 0.8, 0.9)),
                            other=TWIN if rng.random() < twins else drawn((6, 2, 8, 7)))
                stream.track(look)
                plain.track(look.area, look.iou, plain_overlap(*look.masks()))
            assert stream.frames() == plain.frames()
            assert stream.pointers() == pytest.approx({n: min(age, 300) for n, age in plain.ages().items()})
            steps += 1


@pytest.mark.fuzz
def test_random_masks_have_the_overlap_of_the_plain_rule(rounds):
    rng = np.random.default_rng(0)
    found = set()
    for _ in range(rounds(300, 10_000)):
        masks = rng.random((4, 12, 20)) < rng.choice((0.02, 0.1, 0.3, 0.6))
        masks[0] = rng.random((12, 20)) < 0.02
        masks[0, 4:7, 5:9] = True
        sizes = [sorted(map(len, pieces(mask & ~masks[0]))) for mask in masks[1:]]
        if any(len(ends) > 1 and ends[-1] == ends[-2] for ends in sizes):
            continue  # either piece may be the largest
        expected = plain_overlap(masks[0], masks[1:])
        assert distractor_overlap(masks[0], masks[1:]) == expected
        found.add(expected)
    assert len(found) > 20


# --- in a tracker

IMAGES = [np.kron(np.random.default_rng(n).integers(0, 255, (3, 4, 3), np.uint8), np.ones((8, 8, 1), np.uint8))
          for n in range(40)]
BOX = Prompt(1, box=(5, 5, 20, 18))
LOOKS = {'plain': (drawn((2, 2, 4, 4)), drawn((2, 2, 4, 4))), 'twin': (drawn((2, 2, 4, 4)), drawn((6, 2, 8, 4))),
         'hidden': (drawn(), drawn((6, 2, 8, 4)))}


class Scripted(OneByOne):
    """Model of few layers that sees what a script says, and else computes as any."""

    def play(self, name, iou=0.9):
        masks = torch.from_numpy(np.stack([mask[:8, :8] for mask in LOOKS[name]]))
        self.candidates, self.iou = masks.float() * 20 - 10, iou

    def track_candidates(self, image, memory):
        features, masks, _ = Sam2Model.track_candidates(self, image, memory)
        count = len(features)
        return features, masks._replace(
            logits=self.candidates[:1].expand(count, -1, -1), iou=torch.full((count,), self.iou),
            object_score=torch.full((count,), 5.0 if self.candidates[0].max() > 0 else -5.0)), (
                self.candidates.expand(count, -1, -1, -1))


@pytest.fixture
def scripted():
    model = tiny_model(model=Scripted)
    model.play('plain')
    return model


def codes(tracker, object_id=1):
    """Return the time slot of each frame that an object will attend to, by its number."""
    bank = tracker._banks[object_id]
    numbers = {row.slot: row.frame for row in bank.past.frames}
    return {numbers[kept.slot]: kept.code for kept in bank._attends.frames}


def test_a_tracker_remembers_what_its_masks_say(scripted):
    tracker = StreamTracker(scripted, memory_policy='distractor_aware')
    script = ['plain'] * 7 + ['twin', 'plain', 'hidden', 'plain', 'plain']  # frames 1 to 12
    tracker.step(IMAGES[0], [BOX])
    for frame, name in enumerate(script, 1):
        scripted.play(name)
        tracker.step(IMAGES[frame], [replace(BOX, object_id=2)] if frame == 6 else [])
    assert codes(tracker, 1) == {0: 6, 8: 6, 5: 2, 12: 0}, 'frame 10 was hidden, and 11 has made place for 12'
    assert codes(tracker, 2) == {0: 6, 2: 6, 5: 1, 6: 0}, 'it counts from its own first frame, the sixth image'
    assert tracker.memory_bytes == 2 * ((7 + 1) * 4 * 8 * 2 + (16 + 1) * 16 * 4)


def test_nothing_is_encoded_for_frames_that_are_not_written(scripted, monkeypatch):
    tracker = StreamTracker(scripted, memory_policy='distractor_aware')
    encoded = []
    encode = scripted.encode_memory
    monkeypatch.setattr(scripted, 'encode_memory', lambda *inputs: encoded.append(len(inputs[2])) or encode(*inputs))
    tracker.step(IMAGES[0], [BOX])
    scripted.play('hidden')
    tracker.step(IMAGES[1])
    tracker.step(IMAGES[2], [replace(BOX, object_id=2)])
    assert encoded == [1, 1], 'of the prompts'


def test_published_reads_nothing_from_the_device_and_asks_for_no_candidates(nano, scene, monkeypatch):
    monkeypatch.setattr(SeenObjects, 'numbers', property(lambda seen: 1 / 0))
    stages = SimpleNamespace(encode_image=nano.encode_image, track_objects=nano.track_objects,
                             encode_memory=nano.encode_memory)
    monkeypatch.setattr(nano, 'compiled', stages)
    tracker = StreamTracker(nano)
    assert tracker.memory_policy == 'published'
    tracker.step(scene.image(0), [Prompt(1, box=scene.box(1))])
    assert tracker.step(scene.image(1)).objects[1].mask.any()
    aware = StreamTracker(nano, memory_policy='distractor_aware')
    aware.step(scene.image(0), [Prompt(1, box=scene.box(1))])
    with pytest.raises(AttributeError, match='track_candidates'):
        aware.step(scene.image(1))


def test_a_late_correction_acts_on_the_anchors_of_then(scripted):
    live = StreamTracker(scripted, memory_policy='distractor_aware')
    live.step(IMAGES[0], [BOX])
    for frame in range(1, 20):
        scripted.play('twin' if frame in (8, 15) else 'plain')
        live.step(IMAGES[frame])
    assert codes(live) == {0: 6, 8: 6, 15: 6, 5: 4, 10: 2, 19: 0}
    late = live.fork([1], 7)  # before frame 13
    assert late.memory_policy == 'distractor_aware'
    assert codes(late) == {0: 6, 8: 6, 5: 2, 10: 0}
    late.step(IMAGES[13], [Prompt(1, points=[(9, 9)], labels=[1])])
    scripted.play('plain')
    for frame in range(14, 20):
        late.step(IMAGES[frame])
    live.adopt(late, 1)
    assert codes(live) == {0: 6, 8: 6, 13: 6, 5: 5, 10: 3, 15: 1, 19: 0}
    live.step(IMAGES[20])
    assert codes(live) == {0: 6, 8: 6, 13: 6, 5: 5, 10: 3, 15: 1, 20: 0}
    other = StreamTracker(scripted)
    other.step(IMAGES[0], [BOX])
    with pytest.raises(ValueError, match="policy 'published' cannot join one with 'distractor_aware': give both"):
        live.adopt(other, 1)


@pytest.mark.parametrize('name', NAMES)
def test_a_restored_tracker_continues_bit_for_bit(scripted, name, tmp_path):
    trackers = [StreamTracker(scripted, memory_policy=name) for _ in range(2)]
    trackers[0].step(IMAGES[0], [BOX])
    for frame in range(1, 17):
        scripted.play('twin' if frame in (8, 16) else 'hidden' if frame == 11 else 'plain')
        trackers[0].step(IMAGES[frame])
    save_state(tmp_path / 'state', trackers[0].state_dict())
    trackers[1].load_state_dict(load_state(tmp_path / 'state')[0])
    for frame in range(17, 30):
        scripted.play('twin' if frame == 22 else 'plain', 0.9)
        results = [tracker.step(IMAGES[frame]).objects[1] for tracker in trackers]
        assert torch.equal(*(result.logits for result in results))
        assert trackers[0]._banks[1].past._replace(frames=(), pointers=()) == (
            trackers[1]._banks[1].past._replace(frames=(), pointers=()))
        assert codes(trackers[0]) == codes(trackers[1])
    assert (16 in codes(trackers[0])) == (name == 'distractor_aware'), 'the anchor that was new when it was saved'


@pytest.mark.parametrize('name', ['distractor_aware', 'iou_gated'])
def test_static_stages_run_in_two_shapes_and_give_the_same(scene, name):
    """Compiled stages get memories of two lengths at most, whatever is remembered."""
    plain, shapes = load_model('nano', device='cpu', image_size=64), set()
    static = copy.deepcopy(plain)

    def watched(stage):
        def run(image, memory):
            shapes.add((memory.frames.shape[1], memory.pointers.shape[1], memory.pointer_ages.dtype))
            return stage(image, memory)
        return run
    static.compiled = SimpleNamespace(
        encode_image=static.encode_image, encode_memory=static.encode_memory,
        track_objects=watched(static.track_objects), track_candidates=watched(static.track_candidates))
    trackers = [StreamTracker(model, memory_policy=name) for model in (plain, static)]
    for frame in range(24):
        prompts = {0: [Prompt(1, box=scene.box(1, 0))], 3: [Prompt(2, box=scene.box(2, 3))],
                   9: [Prompt(1, points=[(70 + 5 * 9, 70)], labels=[1])]}.get(frame, [])
        pictured = scene.image(frame, without=(1,) if frame in (5, 6, 14) else ())
        expected, result = (tracker.step(pictured, prompts) for tracker in trackers)
        for object_id, item in result.objects.items():
            torch.testing.assert_close(item.logits, expected.objects[object_id].logits, atol=0.05, rtol=0.01)
    assert shapes <= ({(7, 16, torch.float32)} if name == 'distractor_aware' else
                      {(7, 16, torch.int64), (10, 19, torch.int64)}) and shapes


def test_half_precision_and_a_smaller_memory_work(scene):
    model = load_model('nano', device='cpu', dtype=torch.bfloat16)
    tracker = StreamTracker(model, memory_policy='distractor_aware', max_conditioning_frames=2)
    tracker.recent_frames = 2
    tracker.step(scene.image(0), [Prompt(1, box=scene.box(1))])
    for frame in range(1, 9):
        item = tracker.step(scene.image(frame)).objects[1]
    assert iou(item.mask, scene.truth(1, 8)) > 0.7


# --- names and policies of one's own

def test_an_unknown_policy_is_refused_with_the_known_ones(nano):
    with pytest.raises(ValueError, match="memory_policy 'samurai': must be one of published, distractor_aware, iou_ga"):
        StreamTracker(nano, memory_policy='samurai')
    for wrong in (None, 3, Published):
        with pytest.raises(TypeError, match='must be one of published, distractor_aware, iou_gated, or an object with'):
            StreamTracker(nano, memory_policy=wrong)


class LastOnly:
    """Policy that remembers the newest prompt and the last frame."""

    name, candidates, conditioning_frames, fractional_ages = 'last_only', False, None, False

    def write(self, past, seen):
        return Write(Kind.PASSING)

    def keep(self, past: Past) -> Attended:
        kept = []
        for rows, prompted, last in ((past.frames, past.sizes.frames - 1, 0), (past.pointers, 1, 1)):
            prompt = [row for row in rows if row.kind is Kind.PROMPT][-1:]
            kept.append([*(Kept(row.slot, True, prompted) for row in prompt),
                         *(Kept(row.slot, False, last) for row in rows[-1:] if row not in prompt)])
        return Attended(*kept)


def test_a_third_policy_is_one_more_class(nano, scene):
    tracker = StreamTracker(nano, memory_policy=LastOnly())
    tracker.step(scene.image(0), [Prompt(1, box=scene.box(1))])
    for frame in range(1, 8):
        item = tracker.step(scene.image(frame)).objects[1]
    assert (item.mask & scene.truth(1, 7)).sum() > 0.8 * scene.truth(1, 7).sum()
    assert tracker.fork([1])._banks[1].length() == (2, 2)
    restored = StreamTracker(nano, memory_policy=LastOnly())
    restored.load_state_dict(tracker.state_dict())
    assert torch.equal(restored.step(scene.image(8)).objects[1].logits, tracker.step(scene.image(8)).objects[1].logits)


class EverythingOnly(LastOnly):
    """Policy that drops nothing."""

    name = 'everything'

    def keep(self, past):
        return Attended([Kept(row.slot, True, 6) for row in past.frames],
                        [Kept(row.slot, True, 1) for row in past.pointers])


def test_a_policy_that_keeps_too_much_is_refused_and_the_tracker_stays_as_it_was(nano, scene):
    tracker = StreamTracker(nano, memory_policy=EverythingOnly())
    tracker.step(scene.image(0), [Prompt(1, box=scene.box(1))])
    for _ in range(10):  # 4 conditioning frames and 6 others have room, and one more that has just been written
        tracker.step(scene.image(1))
    before = tracker.state_dict()
    with pytest.raises(ValueError, match='keeps 11 frames or pointers: must keep at most 10; drop some in'):
        tracker.step(scene.image(1))
    assert torch.equal(tracker.state_dict()['frames'], before['frames'])


def test_a_policy_may_be_given_by_name_or_as_an_object(nano, scene):
    tracker, other = (StreamTracker(nano, memory_policy=given) for given in ('distractor_aware', DistractorAware()))
    tracker.step(scene.image(0), [Prompt(1, box=scene.box(1))])
    other.adopt(tracker.fork([1]), 1)
    other.load_state_dict(tracker.state_dict())
    assert other.object_ids == (1,)


def test_a_policy_of_ones_own_needs_a_name_of_its_own(nano):
    class Mine(DistractorAware):
        ANCHORS = 2

    with pytest.raises(ValueError, match="with the name 'distractor_aware': saved states with that name are of"):
        StreamTracker(nano, memory_policy=Mine())


class WhileSeen(DistractorAware):
    """Distractor-aware policy to which all objects are hidden in the frames of ``hidden``."""

    name = 'while_seen'
    hidden = range(3, 5)

    def write(self, past, seen):
        return Write(None) if past.now in self.hidden else super().write(past, seen)


@pytest.mark.parametrize('objects', [1, 2])
def test_an_image_in_which_all_objects_are_hidden_changes_no_memory(nano, scene, objects):
    tracker = StreamTracker(nano, memory_policy=WhileSeen())
    tracker.step(scene.image(0), [Prompt(n, box=scene.box(n)) for n in range(1, objects + 1)])
    tracker.step(scene.image(1))
    tracker.step(scene.image(2))
    before = tracker.state_dict()
    assert len(tracker.step(scene.image(3)).objects) == len(tracker.step(scene.image(4)).objects) == objects
    after = tracker.state_dict()
    assert torch.equal(after['frames'], before['frames']) and torch.equal(after['pointers'], before['pointers'])
    tracker.step(scene.image(5))
    assert not torch.equal(tracker.state_dict()['frames'], before['frames'])
