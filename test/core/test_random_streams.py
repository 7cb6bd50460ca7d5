"""Random streams: objects are added, corrected, removed, forked and adopted, and any line may fail."""
from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from sam2_core import Prompt, PromptError, StreamTracker, encode_images
from sam2_core.memory import MemoryShapes, stack_memories
from testing.plain_tracker import OneByOne, PlainTracker, tiny_edgetam, tiny_model

HEIGHT, WIDTH = 24, 32
SOURCES = tuple(sys.modules[f'sam2_core.{name}'].__file__
                for name in ('tracker', 'tracking', 'tracker_state', 'memory', 'memory_policy', 'timeline'))
Line = tuple[str, int]


class Injected(BaseException):
    """Exception that no code of the project catches, like KeyboardInterrupt."""


@contextmanager
def failing_at(number: int | None, passed: list[Line]) -> Iterator[None]:
    """Raise an exception before the line ``number`` that runs in SOURCES; record the lines."""
    def trace(frame, event, argument):
        if frame.f_code.co_filename not in SOURCES:
            return None
        if event == 'line':
            passed.append((frame.f_code.co_filename, frame.f_lineno))
            if len(passed) - 1 == number:
                raise Injected(f'line {frame.f_lineno} of {frame.f_code.co_name}')
        return trace
    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield
    finally:
        sys.settrace(before)


def state(tracker: StreamTracker) -> list:
    """Return the complete state of a tracker, with copies of its tensors."""
    banks = []
    for object_id, bank in tracker._banks.items():
        rows = [(slots.rows, [slots.storage[row.slot].clone() for row in slots.rows], slots.storage.data_ptr())
                for slots in (bank._frames, bank._pointers)]
        banks.append((object_id, bank.past, bank.steps, rows))
    return [tracker.recent_frames, tracker.max_objects, tracker.object_ids, tracker._state.timeline, banks]


def equal(a, b) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, (list, tuple)):
        return type(a) is type(b) and len(a) == len(b) and all(map(equal, a, b))
    return a == b


def images(number: int = 12) -> list[np.ndarray]:
    rng = np.random.default_rng(1)
    return [np.kron(rng.integers(0, 255, (3, 4, 3), np.uint8), np.ones((8, 8, 1), np.uint8)) for _ in range(number)]


IMAGES = images()


# --- a fault at every line

def started(model: OneByOne, memory_policy: str) -> StreamTracker:
    """Run four objects, of which one is corrected, and the last is forked and adopted with images skipped."""
    tracker = StreamTracker(model, memory_policy=memory_policy)
    for number in range(9):
        prompts = {0: [Prompt(k, box=(3 * k, 2 * k, 3 * k + 12, 2 * k + 9)) for k in (1, 2, 3, 5)],
                   5: [Prompt(2, points=[(9, 9)], labels=[0])]}.get(number, [])
        tracker.step(IMAGES[number], prompts)
    late = tracker.fork([5], 6)
    late.step(IMAGES[3], [Prompt(5, points=[(20, 15)], labels=[1])])
    late.step(IMAGES[7])
    tracker.adopt(late, 5)
    return tracker


def step(tracker: StreamTracker, other: StreamTracker) -> object:
    return tracker.step(IMAGES[9], [Prompt(1, points=[(12, 9)], labels=[1]), Prompt(2, mask=IMAGES[9][..., 0] > 128),
                                    Prompt(7, box=(2, 3, 20, 20)), Prompt(7, points=[(5, 5)], labels=[0])])


OPERATIONS: dict[str, Callable[[StreamTracker, StreamTracker], object]] = {
    'step': step,
    'step without objects': lambda tracker, other: StreamTracker(tracker.model).step(IMAGES[0]),
    'fork': lambda tracker, other: tracker.fork([2, 5], 3),
    'state_dict': lambda tracker, other: tracker.state_dict(),
    'load_state_dict': lambda tracker, other: tracker.load_state_dict(other.state_dict()),
    'fork of the present': lambda tracker, other: tracker.fork([2, 5]),
    'adopt': lambda tracker, other: tracker.adopt(other, 2),
    'adopt with its images': lambda tracker, other: tracker.adopt(other, 2, frames_back=[4, 2, 1]),
    'remove': lambda tracker, other: tracker.remove(3), 'reset': lambda tracker, other: tracker.reset()}


@pytest.fixture(scope='module')
def model():
    return tiny_model()


@pytest.mark.fuzz
@pytest.mark.parametrize(('operation', 'policy'), [
    *((name, 'published') for name in OPERATIONS), ('step', 'distractor_aware'), ('fork', 'distractor_aware')])
def test_a_fault_at_any_line_leaves_all_trackers_as_they_were(model, operation, policy, rounds):
    """Interrupt the first and the last pass of each line in short runs, and every pass in full runs."""
    run = OPERATIONS[operation]
    tracker = started(model, policy)
    other, undisturbed, bystander = (tracker.fork(tracker.object_ids) for _ in range(3))
    lines: list[Line] = []
    with failing_at(None, lines):
        run(undisturbed, bystander)
    assert lines
    passes = range(len(lines))
    if rounds(0, 1) == 0:
        passes = [n for n in passes if lines[n] not in lines[:n] or lines[n] not in lines[n + 1:]]
    before = state(tracker), state(other)
    for number in passes:
        passed: list[Line] = []
        with pytest.raises(Injected), failing_at(number, passed):
            run(tracker, other)
        assert passed == lines[:number + 1]
        assert equal((state(tracker), state(other)), before), lines[number]
    run(tracker, other)
    for disturbed, expected in ((tracker, undisturbed), (other, bystander)):
        assert disturbed.object_ids == expected.object_ids
        for image in IMAGES[9:12]:
            results = [one.step(image).objects for one in (disturbed, expected)]
            assert all(torch.equal(results[0][k].logits, item.logits) for k, item in results[1].items())


# --- random streams compared with the plain rules

class World:
    """Trackers with plain twins: a stream, forks of it and of forks, and unrelated trackers."""

    def __init__(self, rng: random.Random, model: OneByOne) -> None:
        self.rng, self.model = rng, model
        self.limit = rng.choice((1, 2, 4))
        filled_up = SimpleNamespace(encode_image=model.encode_image, track_objects=model.track_objects,
                                    encode_memory=model.encode_memory)
        model.compiled = rng.choice((None, filled_up))  # both ways to form batches
        self.max_objects = rng.choice((None, 3))
        self.pairs = [self._stranger()]
        self.images = encode_images(model, IMAGES)
        self.steps = 0

    def _stranger(self) -> tuple[StreamTracker, PlainTracker]:
        return (StreamTracker(self.model, max_objects=self.max_objects, max_conditioning_frames=self.limit),
                PlainTracker(self.model, self.limit))

    def play(self) -> None:
        """Run a random operation, sometimes after a failed attempt."""
        rng = self.rng
        operation = rng.choices((self.step, self.step_apart, self.fork, self.adopt, self.remove, self.change_limit,
                                 self.catch_up, self.restart), (60, 3, 6, 8, 2, 1, 8, 3))[0]
        operation()
        for tracker, plain in self.pairs if rng.random() < 0.2 else self.pairs[:1]:
            self.check(tracker, plain)

    def check(self, tracker: StreamTracker, plain: PlainTracker) -> None:
        assert tracker.object_ids == tuple(plain.objects)
        shapes = MemoryShapes(self.model.config, self.limit)
        for object_id, bank in tracker._banks.items():
            for recent in (None, tracker.recent_frames):
                assert all(n <= most for n, most in zip(bank.length(recent), shapes.longest(recent), strict=True))
            config = self.model.config
            for slots, attended, first, reach in ((bank._frames, bank._attends.frames, 0, config.memory_frames - 1),
                                                  (bank._pointers, bank._attends.pointers, 1,
                                                   config.object_pointers - 1)):
                assert len(slots.rows) == len(attended) == len({row.slot for row in slots.rows})
                codes = [kept.code for kept in attended if not kept.conditioning]
                assert len(codes) == len(set(codes)) and all(first <= code < first + reach for code in codes)
                assert sum(kept.conditioning for kept in attended) in range(1, self.limit + 1)
            expected = plain.objects[object_id].memory(self.model, None)
            assert all(torch.equal(a, b) for a, b in zip(stack_memories([bank])[:4], expected[:4], strict=True))

    def attempt(self, call: Callable[[], object]) -> object:
        """Run an operation, sometimes after an attempt that was interrupted at some line; return its result."""
        if self.rng.random() < 0.1:
            before = [state(tracker) for tracker, _ in self.pairs]
            if not self.interrupted(call):
                return self.result
            assert equal([state(tracker) for tracker, _ in self.pairs], before)
        return call()

    def interrupted(self, call: Callable[[], object]) -> bool:
        with failing_at(int(self.rng.expovariate(1 / 150)), []):
            try:
                self.result = call()
            except Injected:
                return True
        return False

    def prompts(self, tracker: StreamTracker) -> list[Prompt]:
        rng, found = self.rng, []
        ids = [1, 2, 3, 4] if not tracker.object_ids or rng.random() < 0.3 else tracker.object_ids
        for object_id in rng.sample(list(ids), min(len(ids), rng.choice((1, 1, 2)))):
            x, y = rng.randrange(WIDTH - 9), rng.randrange(HEIGHT - 9)
            box, point = (x, y, x + 9, y + 8), {'points': [(x, y)], 'labels': [1]}
            mask = np.zeros((HEIGHT, WIDTH), bool)
            mask[y:y + 8, x:x + 9] = True
            found += [Prompt(object_id, **content) for content in rng.choice((
                [point], [{'box': box}], [{'mask': mask}], [point, {'box': box}], [point, point]))]
        return found

    def pick(self) -> tuple[StreamTracker, PlainTracker]:
        return self.pairs[0] if self.rng.random() < 0.6 else self.rng.choice(self.pairs)

    def step(self, pair: tuple[StreamTracker, PlainTracker] | None = None, prompted: bool | None = None) -> None:
        tracker, plain = pair or self.pick()
        prompted = self.rng.random() < 0.25 or not tracker.object_ids if prompted is None else prompted
        image, prompts = self.rng.choice(self.images), self.prompts(tracker) if prompted else []
        self.steps += 1
        if self.rng.random() < 0.02:
            with pytest.raises(PromptError):
                tracker.step(image, [*prompts, Prompt(2, points=[(999, 9)], labels=[1])])
            return
        if self.rng.random() < 0.03 and tracker.object_ids:
            before = state(tracker)
            self.model.fails_after = self.rng.randrange(2)
            with pytest.raises(RuntimeError, match='out of memory'):
                tracker.step(image)
            assert equal(state(tracker), before)
        try:
            results = self.attempt(lambda: tracker.step(image, prompts)).objects
        except PromptError:
            assert len({*tracker.object_ids, *(p.object_id for p in prompts)}) > self.max_objects
            return
        self.compare(results, plain.step(image, prompts))

    def compare(self, results: dict, expected: dict) -> None:
        assert list(results) == list(expected)
        for object_id, masks in expected.items():
            item = results[object_id]
            assert torch.equal(item.logits, masks.logits[0])
            assert (item.iou, item.object_score) == (float(masks.iou), float(masks.object_score))

    def step_apart(self) -> None:
        """Step each object in a fork of its own; one may fail, and misses the image."""
        tracker, plain = self.pick()
        image, failed = self.rng.choice(self.images), []
        self.model.fails_after = self.rng.randrange(12)
        forks = {object_id: (tracker.fork([object_id]), plain.fork([object_id], 0)) for object_id in tracker.object_ids}
        for object_id, (fork, plain_fork) in forks.items():
            try:
                results = fork.step(image).objects
            except RuntimeError:
                failed.append(object_id)
                continue
            self.compare(results, plain_fork.step(image, []))
            tracker.adopt(fork, object_id)
            plain.adopt(plain_fork, object_id, None)
        self.model.fails_after = None
        assert len(failed) <= 1
        self.steps += len(forks)

    def fork(self) -> None:
        tracker, plain = self.pick()
        ids = self.rng.sample(tracker.object_ids, self.rng.randint(0, len(tracker.object_ids)))
        back = self.rng.choice((0, 0, 1, 2, 3, 5, 8, 12, 20, 50))
        self.pairs.append((self.attempt(lambda: tracker.fork(ids, back)), plain.fork(ids, back)))
        if self.rng.random() < 0.1:
            self.pairs.append(self._stranger())
        while len(self.pairs) > 5:
            del self.pairs[self.rng.randrange(1, len(self.pairs))]

    def adopt(self) -> None:
        (tracker, plain), (other, their_plain) = self.pick(), self.rng.choice(self.pairs)
        if not other.object_ids:
            return
        object_id = self.rng.choice(other.object_ids)
        back = None
        if self.rng.random() < 0.4:
            back = sorted((self.rng.randint(1, 30) for _ in range(self.rng.randint(0, 6))), reverse=True)
        try:
            self.attempt(lambda: tracker.adopt(other, object_id, back))
        except PromptError:
            assert object_id not in tracker.object_ids and len(tracker.object_ids) >= self.max_objects
            return
        plain.adopt(their_plain, object_id, back)

    def remove(self) -> None:
        tracker, plain = self.pick()
        if self.rng.random() < 0.1:
            self.attempt(tracker.reset)
            plain.objects.clear()
        elif tracker.object_ids:
            object_id = self.rng.choice(tracker.object_ids)
            self.attempt(lambda: tracker.remove(object_id))
            del plain.objects[object_id]

    def change_limit(self) -> None:
        tracker, plain = self.pick()
        tracker.recent_frames = plain.recent_frames = self.rng.choice((None, None, 0, 1, 3, 9))

    def catch_up(self) -> None:
        """Apply a late correction as the node does: process some of the images since, then adopt the object."""
        live, plain = self.pairs[0]
        if not live.object_ids:
            return
        object_id, back = self.rng.choice(live.object_ids), self.rng.randint(1, 12)
        pair = live.fork([object_id], back), plain.fork([object_id], back)
        places = sorted(self.rng.sample(range(1, back + 1), self.rng.randint(1, min(back, 5))), reverse=True)
        x, y = self.rng.randrange(WIDTH - 9), self.rng.randrange(HEIGHT - 9)
        for number, _ in enumerate(places):
            prompts = [Prompt(object_id, points=[(x, y)], labels=[1])] if number == 0 else []
            image = self.rng.choice(self.images)
            self.compare(pair[0].step(image, prompts).objects, pair[1].step(image, prompts))
            self.steps += 1
        exact = places if self.rng.random() < 0.7 else None
        self.attempt(lambda: live.adopt(pair[0], object_id, exact))
        plain.adopt(pair[1], object_id, exact)


    def restart(self) -> None:
        """Replace a tracker by a new one that continues from its state; forks made before are unrelated to it."""
        number = self.rng.randrange(len(self.pairs))
        tracker, plain = self.pairs[number]
        restarted, _ = self._stranger()
        saved = self.attempt(tracker.state_dict)
        self.attempt(lambda: restarted.load_state_dict(saved))
        plain.moments = {n: object() for n in plain.moments}
        self.pairs[number] = restarted, plain


def play(models: list[OneByOne], weights: tuple[int, ...], least: int) -> None:
    """Play random worlds, each with one of the models, until their trackers have run this many steps."""
    steps, seed = 0, 0
    while steps < least:
        rng = random.Random(seed)
        world = World(rng, rng.choices(models, weights)[0])
        try:
            for _ in range(120):
                world.play()
        except BaseException:
            print(f'world {seed}, after {world.steps} steps')
            raise
        steps += world.steps
        seed += 1


@pytest.mark.fuzz
def test_random_streams_with_failures_give_what_the_plain_rules_give(rounds):
    models = [tiny_model(), tiny_model(memory_frames=3, object_pointers=4),
              tiny_model(memory_frames=1, object_pointers=2)]
    play(models, (6, 3, 1), rounds(200, 100_000))


@pytest.mark.fuzz
def test_random_streams_of_edgetam_give_what_the_plain_rules_give(rounds):
    """Memory frames are compressed to a few tokens; all else is as above."""
    model = tiny_edgetam()
    assert model.config.memory_tokens == 3 + 4
    play([model], (1,), rounds(100, 20_000))
