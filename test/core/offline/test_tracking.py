"""Tracking in a recorded video: equal to streams over its frames, in order, in bounded memory."""
import gc
import weakref
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch

from sam2_core import FrameResult, ObjectResult, Prompt, PromptError, StreamTracker, VideoPrompt, track_video
from sam2_core.offline import tracking, video
from sam2_core.offline.frames import ArrayFrames, UnreadableFrame, numbered
from testing.dataset_files import scene
from testing.video_files import write_video

COUNT = 24
IMAGES = [scene(frame)[0] for frame in range(COUNT)]
MIDDLE = 11


def box(object_id, frame):
    rows, columns = np.nonzero(scene(frame)[1] == object_id)
    return columns.min(), rows.min(), columns.max() + 1, rows.max() + 1


def streamed(model, frames, prompts, removals=None, memory_policy='published'):
    """Return what a stream gives for frames in this order: results by frame."""
    tracker, found = StreamTracker(model, memory_policy=memory_policy), {}
    for frame in frames:
        for object_id in (removals or {}).get(frame, ()):
            tracker.remove(object_id)
        found[frame] = tracker.step(IMAGES[frame], prompts.get(frame, ()))
    return found


def check_equal(item, expected, logits=True):
    np.testing.assert_array_equal(item.mask, expected.mask)
    assert (item.box, item.iou, item.object_score) == (expected.box, expected.iou, expected.object_score)
    if logits:
        assert torch.equal(item.logits, expected.logits)
    else:
        assert item.logits.shape == (0, 0)


def test_a_prompt_in_the_middle_gives_two_streams_bit_for_bit(small):
    prompts = [Prompt(1, box=box(1, MIDDLE)), Prompt(3, box=box(3, MIDDLE))]
    forwards = streamed(small, range(MIDDLE, COUNT), {MIDDLE: prompts})
    backwards = streamed(small, range(MIDDLE, -1, -1), {MIDDLE: prompts})
    results = list(track_video(small, IMAGES, [VideoPrompt(MIDDLE, prompt) for prompt in prompts]))
    assert [frame for frame, _ in results] == list(range(COUNT))
    for frame, result in results:
        expected = backwards[frame] if frame < MIDDLE else forwards[frame]
        assert list(result.objects) == [1, 3]
        assert (result.height, result.width) == IMAGES[0].shape[:2]
        for object_id, item in result.objects.items():
            check_equal(item, expected.objects[object_id], logits=frame >= MIDDLE)
    assert any(item.box is not None for frame, result in results if frame < MIDDLE for item in result.objects.values())


def test_prompts_of_any_order_and_frame_act_as_in_two_streams(small):
    click = Prompt(1, points=[(70, 30)], labels=[0])
    first, second, other = Prompt(1, box=box(1, 12)), Prompt(3, box=box(3, 5)), Prompt(3, box=box(3, 20))
    given = [VideoPrompt(12, first), VideoPrompt(16, click, 'refine'), VideoPrompt(7, click, 'refine'),
             VideoPrompt(5, second), VideoPrompt(14, Prompt(3), 'remove'), VideoPrompt(20, other)]
    forwards = streamed(small, range(5, COUNT), {5: [second], 12: [first], 16: [click], 20: [other]}, {14: [3]})
    backwards = streamed(small, range(20, -1, -1), {20: [other], 12: [first], 7: [click], 5: [second]}, {14: [3]})
    for frame, result in track_video(small, IMAGES, given):
        expected = {1: backwards if frame < 12 else forwards,
                    3: backwards if frame < 5 or 14 < frame < 20 else forwards}
        assert result.objects.keys() == ({1} if frame == 14 else {1, 3})
        for object_id, item in result.objects.items():
            source = expected[object_id]
            check_equal(item, source[frame].objects[object_id], logits=source is forwards)


def test_both_passes_have_the_memory_policy(small):
    prompt = Prompt(1, box=box(1, MIDDLE))
    passes = range(MIDDLE, COUNT), range(MIDDLE, -1, -1)
    forwards, backwards = (streamed(small, frames, {MIDDLE: [prompt]}, memory_policy='distractor_aware')
                           for frames in passes)
    published = {**streamed(small, passes[1], {MIDDLE: [prompt]}), **streamed(small, passes[0], {MIDDLE: [prompt]})}
    for frame, result in track_video(small, IMAGES, [VideoPrompt(MIDDLE, prompt)], memory_policy='distractor_aware'):
        expected = backwards[frame] if frame < MIDDLE else forwards[frame]
        check_equal(result.objects[1], expected.objects[1], logits=frame >= MIDDLE)
        assert abs(frame - MIDDLE) < 4 or result.objects[1].iou != published[frame].objects[1].iou
    with pytest.raises(ValueError, match="memory_policy 'samurai': must be one of published"):
        track_video(small, IMAGES, [VideoPrompt(MIDDLE, prompt)], memory_policy='samurai')


@pytest.mark.parametrize('direction, known', [('forward', range(MIDDLE, COUNT)), ('backward', range(MIDDLE + 1))])
def test_one_direction_is_one_stream(small, direction, known):
    prompt = Prompt(1, box=box(1, MIDDLE))
    expected = streamed(small, known if direction == 'forward' else known[::-1], {MIDDLE: [prompt]})
    results = dict(track_video(small, IMAGES, [VideoPrompt(MIDDLE, prompt)], direction=direction))
    assert list(results) == list(range(COUNT))
    for frame, result in results.items():
        assert list(result.objects) == ([1] if frame in known else [])
        for item in result.objects.values():
            check_equal(item, expected[frame].objects[1], logits=direction == 'forward')


def test_a_part_of_a_video_is_tracked_as_if_it_were_all(small, tmp_path):
    prompt = VideoPrompt(9, Prompt(1, box=box(1, 9)))
    part = dict(track_video(small, IMAGES, [prompt], start=6, end=15))
    alone = dict(track_video(small, IMAGES[6:15], [VideoPrompt(3, prompt.prompt)]))
    assert list(part) == list(range(6, 15))
    for frame, result in part.items():
        np.testing.assert_array_equal(result.objects[1].mask, alone[frame - 6].objects[1].mask)


def test_files_and_folders_give_what_their_pictures_give(small, tmp_path):
    for frame, image in enumerate(IMAGES):
        cv2.imwrite(str(tmp_path / f'{frame}.png'), image[..., ::-1])
    prompts = [VideoPrompt(MIDDLE, Prompt(1, box=box(1, MIDDLE)))]
    for (_, one), (_, other) in zip(track_video(small, tmp_path, prompts), track_video(small, IMAGES, prompts),
                                    strict=True):
        np.testing.assert_array_equal(one.objects[1].mask, other.objects[1].mask)


def test_prompts_are_checked_before_anything_is_tracked(small):
    with pytest.raises(PromptError, match='frame 4, object 1: box .*outside the image of 128 x 96'):
        track_video(small, IMAGES, [VideoPrompt(2, Prompt(2, box=(1, 1, 9, 9))),
                                    VideoPrompt(4, Prompt(1, box=(500, 1, 509, 9)))])


def test_an_iterator_is_refused_since_it_does_not_go_back(small):
    with pytest.raises(TypeError, match='frames of type generator: must be a path or a sequence.*put them into a list'):
        track_video(small, (image for image in IMAGES), [VideoPrompt(0, Prompt(1, box=(1, 1, 9, 9)))])
    with pytest.raises(ValueError, match='frames: there is none'):
        track_video(small, [], [VideoPrompt(0, Prompt(1, box=(1, 1, 9, 9)))])


class WithHoles(ArrayFrames):
    """Frames of which some cannot be read."""

    def __init__(self, images, holes):
        super().__init__(images)
        self.holes = holes

    def read(self, frames):
        for frame, image in super().read(frames):
            yield frame, UnreadableFrame(frame, 'torn') if frame in self.holes else image


def test_a_frame_that_cannot_be_read_is_skipped_and_the_others_keep_their_numbers(small):
    prompts, torn = [VideoPrompt(MIDDLE, Prompt(1, box=box(1, MIDDLE)))], []
    holes = {3, 4, 17}
    results = dict(track_video(small, WithHoles(IMAGES, holes), prompts, on_unreadable=torn.append))
    assert list(results) == [frame for frame in range(COUNT) if frame not in holes]
    assert [str(error) for error in torn] == ['frame 3: torn', 'frame 4: torn', 'frame 17: torn']
    tracker, expected = StreamTracker(small), {}
    for frame in range(MIDDLE, COUNT):
        if frame not in holes:
            expected[frame] = tracker.step(IMAGES[frame], [prompts[0].prompt] if frame == MIDDLE else ()).objects[1]
    for frame, item in expected.items():
        np.testing.assert_array_equal(results[frame].objects[1].mask, item.mask)


def test_a_frame_that_cannot_be_read_is_an_error_unless_the_caller_takes_it(small):
    prompts = [VideoPrompt(MIDDLE, Prompt(1, box=box(1, MIDDLE)))]
    found = track_video(small, WithHoles(IMAGES, {3}), prompts)
    assert [next(found)[0] for _ in range(3)] == [0, 1, 2]
    with pytest.raises(UnreadableFrame, match='frame 3: torn'):
        next(found)
    with pytest.raises(UnreadableFrame, match=f'frame {MIDDLE}: torn'):  # it has a prompt
        track_video(small, WithHoles(IMAGES, {MIDDLE}), prompts)


def test_numbers_in_names_sort_like_the_frames():
    assert [numbered(7, 10), numbered(7, 100_000), numbered(7, 100_001)] == ['00007', '00007', '000007']


class Constant:
    """Tracker whose objects never move, to go through many frames."""

    def __init__(self, model, memory_policy):
        self._known = {}

    def step(self, image, prompts=()):
        self._known |= {prompt.object_id: None for prompt in prompts}
        mask = np.zeros(image.shape[:2], bool)
        mask[5:20, 5:30] = True
        item = ObjectResult(mask, torch.zeros(8, 8), (5, 5, 30, 20), 0.9, 3.0)
        return FrameResult(dict.fromkeys(self._known, item), *mask.shape)


def test_memory_does_not_grow_with_the_video(tmp_path, monkeypatch):
    """Count the decoded frames that are alive, over 2,000 frames of a file, backwards and forwards."""
    count, block = 2000, 8
    images = [scene(frame, 48, 64)[0] for frame in range(20)]
    path = write_video(tmp_path / 'long.mp4', [images[frame % 20] for frame in range(count)])
    monkeypatch.setattr(video, 'BLOCK_BYTES', block * images[0].nbytes)
    monkeypatch.setattr(tracking, 'StreamTracker', Constant)
    alive, most, convert = {}, 0, cv2.cvtColor

    def counted(image, code):
        nonlocal most
        found = convert(image, code)
        number = id(found)
        alive[number] = weakref.ref(found, lambda _: alive.pop(number))
        most = max(most, len(alive))
        return found

    monkeypatch.setattr(video.cv2, 'cvtColor', counted)
    prompt = VideoPrompt(count // 2, Prompt(1, box=(3, 3, 30, 30)))
    numbers = [frame for frame, result in track_video(SimpleNamespace(image_size=64), path, [prompt])
               if result.objects[1].box]
    assert numbers == list(range(count))
    assert 0 < most <= block + 4
    gc.collect()
    assert not alive
