"""Replay of a recording in lock-step and in real time, with the node's own pipeline and the packaged model."""
import dataclasses

import numpy as np
import pytest
from sensor_msgs.msg import CameraInfo

from sam2_core.metrics import iou
from sam2_ros.evaluation.prompts import first_truth_prompts
from sam2_ros.evaluation.replay import ENDED, run
from sam2_ros.evaluation.report.processed_frames import processed
from sam2_ros.evaluation.results import STAGES, TOTAL
from sam2_ros.messages.conversions import from_pixels, to_rgb
from sam2_ros.msg import ImagePoint, Prompt
from sam2_ros.recordings.recording import RecordedPrompt, RecordingError
from sam2_ros.runtime.parameters import Parameters
from testing.depth_codec import compressed_depth
from testing.discs import HEIGHT, TRANSPORT, WIDTH, Discs, header, stamp


class Clock:
    """Clock that advances only in the image encoder, by ``seconds`` per call."""

    def __init__(self, monkeypatch, model, seconds: float) -> None:
        self.now = 100.0
        encode = model.encode_image

        def slow(images):
            self.now += seconds
            return encode(images)
        monkeypatch.setattr(model, 'encode_image', slow)

    def __call__(self) -> float:
        return self.now


def remove(object_id: int, index: float) -> RecordedPrompt:
    """Return a REMOVE prompt without an image."""
    return RecordedPrompt(stamp(index) + TRANSPORT, Prompt(action=Prompt.REMOVE, id=object_id))


def known(result) -> dict[int, list[int]]:
    return {frame.index: sorted(frame.objects) for frame in result.frames}


# --- lock-step

def test_every_image_is_processed_in_order_and_the_masks_are_right(model):
    discs = Discs()
    discs.prompts = [discs.prompt(1), discs.prompt(2)]
    result = run(discs, model, Parameters())
    assert [frame.index for frame in result.frames] == list(range(8)) and result.dropped == []
    assert [frame.stamp for frame in result.frames] == discs.stamps
    assert (result.height, result.width) == discs.truth(0).shape
    for frame in result.frames:
        assert frame.dropped == 0
        for object_id in (1, 2):
            assert iou(frame.objects[object_id].mask(result.height, result.width),
                       discs.mask(object_id, frame.index)) > 0.8


def test_a_first_truth_too_small_for_the_model_is_a_refused_prompt_and_named(model):
    class Speck(Discs):
        def mask(self, object_id, index):
            mask = super().mask(object_id, index)
            return mask if object_id == 1 else mask & (np.cumsum(mask).reshape(mask.shape) == 1)

    discs = Speck(images=2)
    discs.prompts = first_truth_prompts(discs)
    result = run(discs, model, Parameters())
    assert known(result) == {0: [1], 1: [1]} and not result.unusable
    assert [answer.accepted for answer in result.answers] == [True, False]
    assert 'mask of 1 pixels, 1 x 1 at (109, 64): too small' in result.answers[1].reason


def test_two_runs_are_equal_to_the_last_bit(model):
    discs = Discs(hidden={2: (3, 4)})
    late = discs.prompt(2, 1, delay=3)
    discs.prompts = [discs.prompt(1), late, dataclasses.replace(late, message=Prompt(
        header=header(0), id=1, action=Prompt.REFINE, points=[ImagePoint(x=45.0, y=40.0)]))]
    first, second = (run(discs, model, Parameters()) for _ in range(2))
    assert first.answers == second.answers
    for a, b in zip(first.frames, second.frames, strict=True):
        assert a.objects.keys() == b.objects.keys() and (a.index, a.dropped) == (b.index, b.dropped)
        for object_id, item in a.objects.items():
            other = b.objects[object_id]
            assert (item.state, item.score, item.visibility, item.box) == (
                other.state, other.score, other.visibility, other.box)
            np.testing.assert_array_equal(item.bits, other.bits)


def test_the_memory_policy_of_the_parameters_decides_what_is_remembered(model):
    discs = Discs(7)
    discs.prompts = [discs.prompt(1)]
    results = [run(discs, model, Parameters(memory_policy=name)) for name in ('published', 'distractor_aware')]
    published, aware = ([frame.objects[1].score for frame in result.frames] for result in results)
    assert published[0] == aware[0] and all(a != b for a, b in zip(published[1:], aware[1:], strict=True))
    assert [result.parameters['memory_policy'] for result in results] == ['published', 'distractor_aware']


def test_a_prompt_meets_the_image_it_was_drawn_on_however_late_it_came(model):
    discs = Discs()
    discs.prompts = [discs.prompt(1, 2, delay=4)]
    result = run(discs, model, Parameters())
    assert known(result) == {0: [], 1: [], **{index: [1] for index in range(2, 8)}}
    (answer,) = result.answers
    assert answer.accepted and answer.applied == answer.stamp == stamp(2)
    assert answer.arrival == stamp(6) + TRANSPORT


def test_what_takes_objects_back_comes_when_it_was_sent_but_not_after_a_later_prompt(model):
    discs = Discs()
    discs.prompts = [discs.prompt(1), remove(1, 2.5), discs.prompt(2), remove(2, 5), discs.prompt(2, 4, delay=2)]
    result = run(discs, model, Parameters())
    assert known(result) == {0: [1, 2], 1: [1, 2], 2: [1, 2], 3: [2], 4: [2], 5: [2], 6: [2], 7: [2]}
    assert all(answer.accepted for answer in result.answers)


def test_a_prompt_for_an_image_that_never_comes_is_answered(model):
    discs = Discs(4)
    discs.prompts = [dataclasses.replace(discs.prompt(1), message=Prompt(header=header(30), id=1,
                                                                         box=discs.box(1, 0)))]
    (answer,) = run(discs, model, Parameters()).answers
    assert not answer.accepted and answer.reason == ENDED


def test_an_image_that_cannot_be_read_costs_that_image(model):
    discs = Discs(5, broken=[2])
    discs.prompts = [discs.prompt(1)]
    result = run(discs, model, Parameters())
    assert [frame.index for frame in result.frames] == [0, 1, 3, 4] and result.dropped == []
    assert result.unusable == {2: 'image 2: cut off; record it again'}


def test_so_does_an_image_that_cannot_be_decoded(model):
    discs = Discs(4)
    discs.prompts = [discs.prompt(1)]
    image = discs.image

    def damaged(index):
        message = image(index)
        if index == 1:
            message.encoding = 'nv24'
        return message
    discs.image = damaged
    result = run(discs, model, Parameters())
    assert [frame.index for frame in result.frames] == [0, 2, 3]
    assert "encoding 'nv24': not supported" in result.unusable[1]


@pytest.mark.parametrize('codec', ['', 'png', 'rvl'])
def test_objects_are_located_where_there_is_depth(model, codec):
    discs = Discs(3)
    discs.prompts = [discs.prompt(1)]
    info = CameraInfo(header=header(0), width=WIDTH, height=HEIGHT, k=[150.0, 0, 80, 0, 150, 60, 0, 0, 1],
                      distortion_model='plumb_bob', d=[0.0] * 5)
    pixels = np.full((HEIGHT, WIDTH), 1500, np.uint16)
    discs.depth = lambda index: None if index == 1 else (
        compressed_depth(pixels, header(index), codec) if codec else from_pixels(pixels, '16UC1', header(index)), info)
    first, second, third = (frame.objects[1].shape for frame in run(discs, model, Parameters()).frames)
    assert second is None
    assert first.centre[2] == pytest.approx(1.5, abs=0.05) and third.centre[2] == pytest.approx(1.5, abs=0.05)
    assert run(discs, model, Parameters(use_depth=False)).frames[0].objects[1].shape is None


def test_a_thermal_recording_gives_the_same_result_every_time_and_follows_its_objects(model):
    """The room becomes warmer, and the range of the images with it."""
    discs = Discs(12)
    discs.prompts = [discs.prompt(1)]
    image = discs.image

    def thermal(index):
        grey = to_rgb(image(index)).sum(-1, dtype=np.uint16)
        return from_pixels(20_000 + 3 * grey + np.uint16(8 * index), 'mono16', header(index))
    discs.image = thermal
    first, second = (run(discs, model, Parameters()) for _ in range(2))
    assert not first.unusable and len(first.frames) == 12
    for one, other in zip(first.frames, second.frames, strict=True):
        np.testing.assert_array_equal(one.objects[1].mask(HEIGHT, WIDTH), other.objects[1].mask(HEIGHT, WIDTH))
    assert iou(first.frames[-1].objects[1].mask(HEIGHT, WIDTH), discs.mask(1, 11)) > 0.6
    ranges = [frame.intensity for frame in first.frames]
    assert ranges[0] == ranges[3] and ranges[-1].low > ranges[0].low
    for item, (low, high) in zip(processed(first, discs), ranges, strict=True):  # reports and exports show the same
        values = np.frombuffer(item.message.data, np.uint16).reshape(HEIGHT, WIDTH).astype(float)
        shown = np.clip((values - low) * 255 / (high - low), 0, 255)
        assert np.abs(item.frame.image - shown[..., None]).max() <= 0.501


def test_every_stage_is_timed_and_the_model_is_left_as_it_was(model):
    discs = Discs(3)
    discs.prompts = [discs.prompt(1)]
    before = dict(vars(model))
    result = run(discs, model, Parameters())
    assert vars(model) == before
    stages = result.frames[-1].stages
    assert set(stages) == {*STAGES, TOTAL}
    assert all(seconds > 0 for seconds in stages.values())
    assert sum(stages[name] for name in STAGES) <= stages[TOTAL]
    assert result.frames[0].stages.keys() == stages.keys() - {'attend'}, 'nothing is remembered yet'
    assert result.peak_memory > 50e6 and result.peak_gpu_memory == 0


# --- real time

def test_images_that_come_while_the_node_is_busy_are_dropped_and_the_newest_wins(model, monkeypatch):
    discs = Discs()
    discs.prompts = [discs.prompt(1)]
    result = run(discs, model, Parameters(), 'real-time', timer=Clock(monkeypatch, model, 0.25))
    # an image comes every 0.1 s: 0 is ready at 0.25, when 2 is the newest, which is ready at 0.5, when 5 has just come
    assert [frame.index for frame in result.frames] == [0, 2, 5, 7]
    assert result.dropped == [1, 3, 4, 6]
    assert [frame.dropped for frame in result.frames] == [0, 1, 2, 1]
    assert [frame.available - discs.arrivals[0] for frame in result.frames] == [
        round(seconds * 1e9) for seconds in (0.25, 0.5, 0.75, 1.0)]


def test_a_fast_machine_drops_nothing(model, monkeypatch):
    discs = Discs()
    discs.prompts = [discs.prompt(1)]
    result = run(discs, model, Parameters(), 'real-time', timer=Clock(monkeypatch, model, 0.09))
    assert result.dropped == []
    assert [frame.available for frame in result.frames] == [moment + 90_000_000 for moment in discs.arrivals]


@pytest.mark.parametrize(('rate', 'processed'), [(0.5, list(range(8))), (1, [0, 1, 3, 4, 6, 7]), (2, [0, 3, 6, 7])])
def test_the_rate_is_how_much_faster_images_come(model, monkeypatch, rate, processed):
    discs = Discs()
    discs.prompts = [discs.prompt(1)]
    result = run(discs, model, Parameters(), 'real-time', rate=rate, timer=Clock(monkeypatch, model, 0.15))
    assert [frame.index for frame in result.frames] == processed
    assert result.frames[0].available - discs.arrivals[0] == round(0.15e9 * rate), 'on the clock of the recording'


def test_a_late_prompt_is_caught_up_with_and_costs_time(model, monkeypatch):
    discs = Discs(12)
    discs.prompts = [discs.prompt(1), discs.prompt(2, 1, delay=3.5)]
    result = run(discs, model, Parameters(), 'real-time', timer=Clock(monkeypatch, model, 0.06))
    late = next(answer for answer in result.answers if answer.id == 2)
    assert late.accepted and late.applied == stamp(1)
    assert late.answered == discs.arrivals[4] + 120_000_000, 'image 4 was in work, then its own was encoded again'
    joined = next(frame.index for frame in result.frames if 2 in frame.objects)
    assert joined > 5, 'after it came, at 4.5'
    assert result.dropped, 'two images in the time of one'
    frame = result.frames[-1]
    assert iou(frame.objects[2].mask(result.height, result.width), discs.mask(2, frame.index)) > 0.8


def test_load_is_shed_when_the_target_is_missed(model, monkeypatch):
    discs = Discs(120)
    discs.prompts = [discs.prompt(1)]
    discs.mask = lambda object_id, index: Discs.mask(discs, object_id, index % 8)
    result = run(discs, model, Parameters(latency_target=0.05), 'real-time', timer=Clock(monkeypatch, model, 0.09))
    gaps = np.diff([frame.index for frame in result.frames])
    assert gaps[0] == 1 and gaps[-1] == 2, 'every second image at last'


def test_lock_step_takes_every_image_whatever_time_it_was_recorded_at(model):
    """A converted bag may have the same recording time for all messages."""
    discs = Discs(5)
    discs.stamps = [stamp(0) + index * 3_000_000_000 for index in range(5)]
    discs.arrivals = [stamp(0)] * 5
    read, discs.image = discs.image, lambda index: at_stamp(read(index), discs.stamps[index])
    assert [frame.index for frame in run(discs, model, Parameters()).frames] == [0, 1, 2, 3, 4]


def at_stamp(message, nanoseconds):
    message.header.stamp.sec, message.header.stamp.nanosec = divmod(nanoseconds, 10**9)
    return message


def test_depth_that_cannot_be_read_costs_no_image(model):
    discs = Discs(4)
    discs.prompts = [discs.prompt(1)]

    def depth(index):
        raise RecordingError(f'/camera/depth at stamp {index}: cut off')
    discs.depth = depth
    result = run(discs, model, Parameters())
    assert [frame.index for frame in result.frames] == [0, 1, 2, 3] and not result.unusable
    assert result.problems == [f'depth of image {index} skipped: /camera/depth at stamp {index}: cut off'
                               for index in range(4)]


def test_a_recording_without_images_gives_an_empty_run(model):
    for mode in ('lock-step', 'real-time'):
        result = run(Discs(0), model, Parameters(), mode)
        assert result.frames == [] and result.images == 0


def test_modes_and_rates_that_do_not_exist_are_refused(model):
    with pytest.raises(ValueError, match=r"mode 'fast': must be"):
        run(Discs(1), model, Parameters(), 'fast')
    with pytest.raises(ValueError, match=r'rate 0: must be positive'):
        run(Discs(1), model, Parameters(), 'real-time', rate=0)
