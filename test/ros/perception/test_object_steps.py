"""A step that fails for one object costs that object alone: the real tracker, with failures injected below it."""
import math
import time

import numpy as np
import pytest
import torch
from sensor_msgs.msg import RegionOfInterest

from sam2_core import ImageSegmenter, Prompt, PromptError, StreamTracker, load_model
from sam2_core.finite import NotFiniteError
from sam2_core.model import Sam2Model
from sam2_ros.msg import Instance
from sam2_ros.msg import Prompt as PromptMessage
from sam2_ros.perception.load_shedding import LoadShedder
from sam2_ros.perception.object_steps import take_step
from sam2_ros.perception.single_image import SegmentAllQuery, SegmentImageQuery
from sam2_ros.srv import SegmentAll, SegmentImage
from sam2_ros.topics.diagnostics import ERROR, WatchedCamera, camera_status
from testing import pipelines
from testing.camera_images import header
from testing.pipelines import send

HEIGHT, WIDTH = 60, 120
BOXES = {1: (10, 10, 40, 40), 2: (70, 10, 100, 40), 3: (30, 20, 80, 55)}


@pytest.fixture(scope='module')
def small() -> Sam2Model:
    return load_model('nano', device='cpu', image_size=128)


def picture(number: int = 0) -> np.ndarray:
    image = np.full((HEIGHT, WIDTH, 3), 80 + number, np.uint8)
    for object_id, (x0, y0, x1, y1) in BOXES.items():
        image[y0:y1, x0:x1] = (80 * object_id, 255 - 60 * object_id, 40)
    return image


def prompts(*ids: int) -> dict[int, list[Prompt]]:
    return {object_id: [Prompt(object_id, box=BOXES[object_id])] for object_id in ids}


def tracking(model: Sam2Model, *ids: int, images: int = 3) -> StreamTracker:
    tracker = StreamTracker(model)
    for number in range(images):
        take_step(tracker, picture(number), prompts(*ids) if number == 0 else {})
    return tracker


def continued(tracker: StreamTracker, object_id: int) -> torch.Tensor:
    """Return the logits of an object in one more image, which depend on its memory."""
    return tracker.fork([object_id]).step(picture(9)).objects[object_id].logits


@pytest.fixture
def broken(monkeypatch):
    """Make every step fail that one of these objects takes part in."""
    step = StreamTracker.step

    def choose(*ids: int) -> None:
        def fail(tracker, *arguments):
            if {*ids} & {*tracker.object_ids}:
                raise StopIteration
            return step(tracker, *arguments)
        monkeypatch.setattr(StreamTracker, 'step', fail)
    return choose


@pytest.mark.parametrize('failing', [[1], [2], [1, 3]])
def test_only_the_failing_objects_miss_the_image_and_keep_their_memory(small, broken, monkeypatch, failing):
    tracker, expected = tracking(small, 1, 2, 3), tracking(small, 1, 2, 3)
    before = {object_id: continued(tracker, object_id) for object_id in failing}
    results = take_step(expected, picture(3), {}).results
    broken(*failing)
    step = take_step(tracker, picture(3), {})
    monkeypatch.undo()
    assert tracker.object_ids == (1, 2, 3)
    assert [*step.missed] == failing and all(isinstance(error, StopIteration) for error in step.missed.values())
    assert isinstance(step.together, Exception) and not step.refused
    for object_id, found in step.results.items():
        np.testing.assert_array_equal(found.mask, results[object_id].mask)
    for object_id in failing:
        assert torch.equal(continued(tracker, object_id), before[object_id])
    assert take_step(tracker, picture(4), {}).results.keys() == {1, 2, 3}, 'the next image has them all'


def test_when_all_fail_the_error_is_raised_and_nothing_has_changed(small, broken, monkeypatch):
    tracker = tracking(small, 1, 2)
    before = [continued(tracker, object_id) for object_id in (1, 2)]
    broken(1, 2)
    with pytest.raises(StopIteration):
        take_step(tracker, picture(3), {})
    monkeypatch.undo()
    assert tracker.object_ids == (1, 2)
    assert all(torch.equal(continued(tracker, one), old) for one, old in zip((1, 2), before, strict=True))


def test_a_new_object_is_started_beside_one_that_fails(small, broken, monkeypatch):
    tracker = tracking(small, 1)
    broken(1)
    step = take_step(tracker, picture(3), prompts(2))
    monkeypatch.undo()
    assert [*step.results] == [2] and [*step.missed] == [1] and tracker.object_ids == (1, 2)


def test_prompts_that_are_refused_only_now_cost_no_other_object(small):
    tracker = tracking(small, 1)
    outside = {3: [Prompt(3, points=[(500.0, 5.0)], labels=[1])], 1: [Prompt(1, points=[(500.0, 5.0)], labels=[1])]}
    step = take_step(tracker, picture(3), {**prompts(2), **outside})
    assert [*step.results] == [1, 2] and not step.missed
    assert [*step.refused] == [1, 3] and all(isinstance(error, PromptError) for error in step.refused.values())
    assert tracker.object_ids == (1, 2)


def test_a_correction_that_fails_leaves_the_object_tracked(small, monkeypatch):
    tracker = tracking(small, 1)
    decode = StreamTracker._prompt
    monkeypatch.setattr(StreamTracker, '_prompt', lambda *_: 1 / 0)
    step = take_step(tracker, picture(3), {1: [Prompt(1, points=[(20.0, 20.0)], labels=[1])]})
    monkeypatch.setattr(StreamTracker, '_prompt', decode)
    assert [*step.results] == [1] and isinstance(step.refused[1], ZeroDivisionError) and not step.missed


@pytest.fixture
def spoilt(monkeypatch):
    """Make the decoder's output NaN or infinite in some rows of a batch of two."""
    def choose(part: str, value: float, rows=(0,), only_batches_of: int = 2) -> None:
        decode = Sam2Model.decode_masks

        def spoil(model, features, *arguments, **options):
            decoded = decode(model, features, *arguments, **options)
            if features.shape[0] == only_batches_of:
                getattr(decoded, part)[list(rows)] = value
            return decoded
        monkeypatch.setattr(Sam2Model, 'decode_masks', spoil)
    return choose


@pytest.mark.parametrize('value', [math.nan, math.inf])
@pytest.mark.parametrize('part', ['iou', 'object_score', 'logits'])
def test_a_result_that_is_not_finite_is_an_error_of_that_object_alone(small, monkeypatch, spoilt, part, value):
    tracker = tracking(small, 1, 2)
    spoilt(part, value)
    step = take_step(tracker, picture(3), {})
    monkeypatch.undo()
    assert [*step.results] == [2] and isinstance(step.missed[1], NotFiniteError)
    named = {'iou': f'iou {value}', 'object_score': f'object score {value}', 'logits': 'logits of the mask'}
    assert f'{named[part]}' in str(step.missed[1])
    again = take_step(tracker, picture(4), {})
    assert [*again.results] == [1, 2], 'its memory has none of it'
    assert all(math.isfinite(found.object_score) for found in again.results.values())


# --- in the pipeline of a camera

def show(pipeline, tenths: int, *prompts: PromptMessage):
    return pipelines.show(pipeline, picture(), header(100 + tenths / 10), *prompts)


def box(object_id: int) -> RegionOfInterest:
    x0, y0, x1, y1 = BOXES[object_id]
    return RegionOfInterest(x_offset=x0, y_offset=y0, width=x1 - x0, height=y1 - y0)


def diagnostics(pipeline):
    camera = WatchedCamera('', pipeline.topic, pipeline.meter, LoadShedder(), pipeline.history.extent,
                           pipeline.failures)
    return camera_status('sam2', '', 'active', camera, pipeline.parameters, time.monotonic())


def test_a_failing_object_is_published_as_out_of_sight_and_named_on_diagnostics(make, small, broken, monkeypatch):
    pipeline = make(StreamTracker(small), lost_after=0.15)
    show(pipeline, 0, PromptMessage(id=1, box=box(1), label='cup'), PromptMessage(id=2, box=box(2)))
    broken(1)
    states = []
    for tenths in range(1, 4):
        frame, answers = show(pipeline, tenths, PromptMessage(action=PromptMessage.REFINE, id=1, box=box(1)))
        first, second = frame.objects
        states.append(first.state)
        assert (first.id, first.label, first.visibility, first.score, first.mask) == (1, 'cup', 0.0, 0.0, None)
        assert second.state == Instance.TRACKED
        assert [answer.reason for answer in answers] == ['the model failed for this object: StopIteration']
    assert states == [Instance.OCCLUDED, Instance.LOST, Instance.LOST]
    status = diagnostics(pipeline)
    assert status.level == ERROR and 'tracking failed: object 1: StopIteration' in status.message
    monkeypatch.undo()
    frame, (answer,) = show(pipeline, 4, PromptMessage(action=PromptMessage.REFINE, id=1, box=box(1)))
    assert answer.accepted and frame.objects[0].state == Instance.TRACKED


def test_an_object_whose_new_start_fails_goes_on_as_it_was(make, small, monkeypatch):
    pipeline = make(StreamTracker(small))
    show(pipeline, 0, PromptMessage(id=1, box=box(1), label='cup'), PromptMessage(id=2, box=box(2)))
    with monkeypatch.context() as patch:
        patch.setattr(StreamTracker, '_prompt', lambda *_: 1 / 0)
        frame, (answer,) = show(pipeline, 1, PromptMessage(id=1, box=box(2), label='other'))
    assert not answer.accepted and 'ZeroDivisionError' in answer.reason
    assert sorted((item.id, item.label, item.state) for item in frame.objects) == [
        (1, 'cup', Instance.TRACKED), (2, '', Instance.TRACKED)] and not frame.events


def test_late_prompts_for_one_image_fail_one_by_one(make, small, monkeypatch):
    pipeline = make(StreamTracker(small))
    show(pipeline, 0, PromptMessage(id=1, box=box(1)))
    show(pipeline, 1)
    for object_id, place in ((2, box(2)), (3, box(3))):
        message = PromptMessage(header=header(100), id=object_id, box=place)
        send(pipeline, message)
    pipeline.work()
    original = StreamTracker._prompt

    def fail(tracker, image, prompt, *rest):
        if prompt.object_id == 3:
            raise MemoryError('no memory')
        return original(tracker, image, prompt, *rest)
    with monkeypatch.context() as patch:
        patch.setattr(StreamTracker, '_prompt', fail)
        answers = pipeline.work_aside()
    assert [(answer.id, answer.reason) for answer in answers] == [
        (2, ''), (3, 'the model failed for this object: MemoryError: no memory')]
    while pipeline.has_work_aside():
        pipeline.work_aside()
    frame, _ = show(pipeline, 2)
    assert [item.id for item in frame.objects] == [1, 2]


@pytest.fixture
def poisoned(small):
    """Return a model with NaN in its decoder's weights, as a diverged training leaves them."""
    model = load_model('nano', device='cpu', image_size=128)
    for parameter in model.sam_mask_decoder.parameters():
        parameter.data.fill_(math.nan)
    return model


def test_weights_of_nan_are_an_error_on_diagnostics_and_no_lost_object(make, poisoned):
    pipeline = make(StreamTracker(poisoned))
    frame, (answer,) = show(pipeline, 0, PromptMessage(id=1, box=box(1)))
    assert frame is None and not answer.accepted
    assert answer.reason.startswith("the model failed on this image: the model's result is not finite (iou nan, object "
                                    "score nan): the weights or the dtype cannot be used; run sam2_check")
    status = diagnostics(pipeline)
    assert status.level == ERROR and "the model's result is not finite" in status.message
    assert show(pipeline, 1)[0].objects == [], 'nothing is tracked that was not seen'


@pytest.mark.parametrize('call', [
    lambda reply: SegmentImageQuery(SegmentImage.Request(prompts=[PromptMessage(box=box(1))]), reply),
    lambda reply: SegmentAllQuery(SegmentAll.Request(points_per_side=2), reply, 5.0)])
def test_queries_to_such_a_model_are_answered_with_the_error(make, poisoned, call):
    pipeline, replies = make(StreamTracker(poisoned)), []
    show(pipeline, 0)
    pipeline.inbox.put_query(call(replies.append))
    pipeline.work()
    pipeline.work_aside()
    assert len(replies) == 1 and "the model's result is not finite" in replies[0]


@pytest.mark.parametrize('part', ['iou', 'logits'])
@pytest.mark.parametrize(('call', 'clicks'), [
    (lambda reply: SegmentImageQuery(
        SegmentImage.Request(prompts=[PromptMessage(box=box(1))], multimask=True), reply), 1),
    (lambda reply: SegmentAllQuery(SegmentAll.Request(points_per_side=2), reply, 5.0), 4)])
def test_a_query_whose_result_is_not_finite_in_one_part_is_answered_with_the_error(make, small, spoilt, part, call,
                                                                                      clicks):
    pipeline, replies = make(StreamTracker(small)), []
    show(pipeline, 0)
    spoilt(part, math.nan, only_batches_of=clicks)
    pipeline.inbox.put_query(call(replies.append))
    pipeline.work()
    pipeline.work_aside()
    assert len(replies) == 1 and "the model's result is not finite" in replies[0]


def test_segment_all_of_such_a_model_is_no_empty_result(poisoned):
    with pytest.raises(NotFiniteError):
        ImageSegmenter(poisoned).segment_all(picture(), points_per_side=2)
