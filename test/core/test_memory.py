"""Memory banks: which frames they keep, for how long, and with which time codes."""
import random
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sam2_core import VARIANTS
from sam2_core.memory import MemoryBank, MemoryShapes, stack_memories
from testing.plain_tracker import Frame, PlainFrames


def remember(nano, conditioning, limit=4):
    """Return a bank after frames 0, 1, ..., whose memories and pointers are filled with the frame's number."""
    bank = MemoryBank(nano.config, limit, nano.device, nano.dtype)
    for frame, flag in enumerate(conditioning):
        bank.write(torch.full((nano.grid ** 2, nano.config.memory_dim), float(frame)),
                   torch.full((nano.config.d_model,), float(frame)), flag)
    return bank


def contents(bank):
    """Return time slots and pointer ages by frame."""
    memory = stack_memories([bank])
    frames = dict(zip(memory.frames[0, :, 0, 0].int().tolist(), memory.time_slots[0].tolist(), strict=True))
    pointers = dict(zip(memory.pointers[0, :, 0].int().tolist(), memory.pointer_ages[0].tolist(), strict=True))
    return frames, pointers


def test_first_frames_fill_up(nano):
    frames, pointers = contents(remember(nano, [True, False, False]))
    assert frames == {0: 6, 1: 1, 2: 0}  # conditioning frames have the last slot; the frame before has slot 0
    assert pointers == {0: 3, 1: 2, 2: 1}


def test_six_recent_frames_and_fifteen_recent_pointers_stay(nano):
    frames, pointers = contents(remember(nano, [True] + [False] * 29))
    assert frames == {0: 6, **{30 - age: age - 1 for age in range(1, 7)}}
    assert pointers == {0: 30, **{30 - age: age for age in range(1, 16)}}


def test_conditioning_distance_is_clamped(nano):
    _, pointers = contents(remember(nano, [True] + [False] * 40))
    assert pointers[0] == nano.config.max_pointer_distance == 32


def test_newest_conditioning_frames_win(nano):
    frames, pointers = contents(remember(nano, [i in (0, 5, 10, 15, 20) for i in range(30)]))
    assert {f for f, slot in frames.items() if slot == 6} == {5, 10, 15, 20}
    assert 0 not in pointers and {5, 10, 15, 20} <= set(pointers)


def test_frame_that_lost_its_conditioning_place_counts_as_recent_while_in_reach(nano):
    frames, _ = contents(remember(nano, [True] * 6))
    assert frames == {2: 6, 3: 6, 4: 6, 5: 6, 0: 5, 1: 4}


def test_conditioning_frame_is_not_also_a_recent_one(nano):
    frames, _ = contents(remember(nano, [True, False, True, False]))
    assert frames == {0: 6, 2: 6, 1: 2, 3: 0}


@pytest.mark.parametrize('pattern', [[True] * 60, [True] + [False] * 60, [True, False] * 30, [True, True, False] * 20])
def test_bytes_are_constant_and_slots_suffice_for_any_order_of_prompts(nano, pattern):
    bank = remember(nano, pattern)
    assert bank.nbytes == remember(nano, []).nbytes
    frames, pointers = contents(bank)
    assert len(frames) <= 4 + 6 and len(pointers) <= 4 + 15
    assert bank.length() == (len(frames), len(pointers))


def test_memories_of_equal_length_stack(nano):
    one, two = remember(nano, [True, False, False]), remember(nano, [True, True, False])
    memory = stack_memories([one, two])
    assert memory.frames.shape == (2, 3, 256, 32) and memory.frames.dtype == torch.bfloat16
    assert memory.time_slots.tolist() == [[6, 1, 0], [6, 6, 0]]


# --- copies of the present and the past

def test_copy_is_equal_and_independent(nano):
    bank = remember(nano, [True, False, False])
    copied = bank.copy()
    assert contents(copied) == contents(bank)
    before = contents(bank)
    copied.write(torch.full((nano.grid ** 2, nano.config.memory_dim), 9.0), torch.full((nano.config.d_model,), 9.0),
                 False)
    assert contents(bank) == before and 9 in contents(copied)[0]


def test_copy_of_an_earlier_moment_equals_the_memory_of_then(nano):
    then = remember(nano, [True, False, True, False])
    assert contents(remember(nano, [True, False, True] + [False] * 3).copy(2)) == contents(then)


def test_copy_of_an_earlier_moment_lacks_frames_dropped_since(nano):
    frames, pointers = contents(remember(nano, [True] + [False] * 19).copy(4))  # as of then, frame 16 is next
    assert frames == {0: 6, 14: 1, 15: 0}  # frames 10 to 13 were among the six recent ones then
    assert pointers == {0: 16, **{frame: 16 - frame for frame in range(5, 16)}}


def test_conditioning_frames_since_count_as_the_newest(nano):
    frames, pointers = contents(remember(nano, [True] + [False] * 5 + [True, False, True]).copy(5))  # frame 4 is next
    assert frames == {0: 6, 6: 6, 8: 6, 3: 0}
    assert pointers == {0: 4, 6: 1, 8: 1, 1: 3, 2: 2, 3: 1}


def test_prompt_in_the_copy_is_newer_than_those_conditioning_frames(nano):
    copied = remember(nano, [True, False, False, True, True, True, True]).copy(5)  # frame 2 is next
    copied.write(torch.full((nano.grid ** 2, nano.config.memory_dim), 9.0), torch.full((nano.config.d_model,), 9.0),
                 True)
    frames, _ = contents(copied)
    assert {frame for frame, slot in frames.items() if slot == 6} == {4, 5, 6, 9}


@settings(deadline=None, max_examples=60)
@given(st.lists(st.booleans(), max_size=30), st.integers(0, 35), st.lists(st.booleans(), max_size=25))
def test_copy_can_be_continued_whatever_came_before(nano, before, frames_back, after):
    copied = remember(nano, [True, *before]).copy(frames_back)
    for conditioning in after:
        copied.write(torch.zeros(1), torch.zeros(1), conditioning)
    frames, pointers = copied.length()
    assert 1 <= frames <= 4 + 6 and 1 <= pointers <= 4 + 15
    memory = stack_memories([copied])
    assert memory.time_slots.min() >= 0 and memory.time_slots.max() <= 6
    assert memory.pointer_ages.min() >= 1


def test_prompted_frame_that_a_copy_foresaw_is_dropped_with_its_conditioning_place(nano):
    """A later conditioning frame has no age in the copy, since the copy itself processes that image again."""
    copied = remember(nano, [True] + [False] * 9 + [True, True, True]).copy(9)  # frame 4 is next
    assert contents(copied)[0] == {0: 6, 10: 6, 11: 6, 12: 6}
    for number in (20, 21, 22):
        copied.write(torch.full((nano.grid ** 2, nano.config.memory_dim), float(number)),
                     torch.full((nano.config.d_model,), float(number)), True)
    assert contents(copied) == ({12: 6, 20: 6, 21: 6, 22: 6}, {12: 4, 20: 3, 21: 2, 22: 1, 0: 7, 1: 6, 2: 5, 3: 4})


@pytest.mark.fuzz
def test_frames_prompts_and_copies_in_any_order_keep_the_bounds_and_the_plain_rule(rounds):
    """Compare banks with random limits, and copies of copies, with lists of all frames so far."""
    rng, steps = random.Random(0), 0
    while steps < rounds(900, 100_000):
        limit, prompts = rng.randint(1, 5), rng.choice((0.05, 0.3, 0.9))
        config = replace(VARIANTS['nano'], memory_frames=rng.choice((1, 2, 7)), object_pointers=rng.choice((2, 4, 16)),
                         memory_dim=2, d_model=2, image_size=32)
        shapes, recent = MemoryShapes(config, limit), config.memory_frames - 1
        pairs = [(MemoryBank(config, limit, torch.device('cpu'), torch.float32),
                  [PlainFrames(limit, recent), PlainFrames(limit, config.object_pointers - 1)], [0])]
        for _ in range(60):
            place = rng.randrange(len(pairs))
            bank, plain, now = pairs[place]
            if now != [0] and rng.random() < 0.25:
                back = rng.choice((0, 1, 3, 8, 20, 40))
                then = now[0] - back
                pairs.append((bank.copy(back), [frames.as_of(now[0], then) for frames in plain], [then]))
                if len(pairs) > 4:
                    del pairs[rng.randrange(4)]
            steps += 1
            prompted = not plain[0].past or rng.random() < prompts
            content = torch.tensor([steps // 200 % 200, steps % 200], dtype=torch.float32)
            bank.write(content.expand(config.grid ** 2, 2), content, prompted)
            for frames in plain:
                frames.past.append(Frame(content, now[0], prompted))
            now[0] += 1
            memory = stack_memories([bank])
            expected = [chosen + others for chosen, others in (frames.attended(now[0]) for frames in plain)]
            for rows, frames in ((memory.frames[0, :, 0], expected[0]), (memory.pointers[0], expected[1])):
                assert torch.equal(rows.float(), torch.stack([frame.content for frame in frames]))
            conditioning = memory.time_slots[0] == config.memory_frames - 1
            assert any(frame.prompted for frame in expected[0]) and conditioning.sum() <= limit
            others = memory.time_slots[0, ~conditioning].tolist()
            assert len(others) == len(set(others)) <= recent
            assert all(n <= most for n, most in zip(bank.length(), shapes.longest(), strict=True))
            ages = [min(now[0] - frame.number, config.max_pointer_distance) for frame in expected[1]]
            assert memory.pointer_ages[0].tolist() == ages


# --- limits of recent frames

@pytest.mark.parametrize(('limit', 'recent'), [
    (None, {5: 4, 6: 3, 7: 2, 8: 1, 9: 0}), (6, {5: 4, 6: 3, 7: 2, 8: 1, 9: 0}), (2, {8: 1, 9: 0}), (0, {})])
def test_limit_leaves_out_the_oldest_recent_frames(nano, limit, recent):
    bank = remember(nano, [True] + [False] * 3 + [True] + [False] * 5)
    memory = stack_memories([bank], limit)
    slots = dict(zip(memory.frames[0, :, 0, 0].int().tolist(), memory.time_slots[0].tolist(), strict=True))
    assert slots == {0: 6, 4: 6, **recent}
    assert torch.equal(memory.pointers, stack_memories([bank]).pointers)
    assert bank.length(limit) == (len(slots), memory.pointers.shape[1])
