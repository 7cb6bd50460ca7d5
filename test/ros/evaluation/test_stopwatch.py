"""Stage times are measured on a view of the model, plain or compiled, that computes the same and leaves it alone."""
import numpy as np
import pytest
import torch

from sam2_core import Prompt, StreamTracker, load_model
from sam2_ros.evaluation.replay import run
from sam2_ros.evaluation.results import STAGES, TOTAL, TRACK
from sam2_ros.evaluation.stopwatch import PeakMemory, Stopwatch, TimedModel, peak_resident_memory
from sam2_ros.messages.conversions import to_rgb
from sam2_ros.runtime.parameters import Parameters
from testing.discs import Discs

IMAGES = 4


@pytest.fixture(scope='module', params=[
    pytest.param(False, id='plain'), pytest.param('eager', id='compiled', marks=pytest.mark.slow)])
def model(request):
    """Return nano at a small size; torch.compile traces it for every backend, and 'eager' is the fastest of them."""
    yield load_model('nano', device='cpu', image_size=64, compile=request.param)
    torch._dynamo.reset()


@pytest.fixture
def discs():
    """One object: each further one means that more shapes are compiled."""
    discs = Discs(IMAGES)
    discs.prompts = [discs.prompt(1)]
    return discs


def state(model):
    """All that could be left on a model: attributes, modules and their hooks."""
    return dict(vars(model)), [dict(vars(module)) for module in model.modules()]


def track(model, discs):
    """Return the results of a tracker that is given a box and corrected later."""
    tracker, box = StreamTracker(model), discs.box(1, 0)
    prompts = {0: Prompt(1, box=(box.x_offset, box.y_offset, box.x_offset + box.width, box.y_offset + box.height)),
               2: Prompt(1, points=[(44, 40)], labels=[1])}
    return [tracker.step(to_rgb(discs.image(index)), [prompts[index]] if index in prompts else [])
            for index in range(IMAGES)]


def test_a_view_tracks_as_the_model_itself_to_the_last_bit(model, discs):
    watch = Stopwatch(model.device)
    for found, expected in zip(track(TimedModel(model, watch), discs), track(model, discs), strict=True):
        assert found.objects.keys() == expected.objects.keys()
        for number, item in found.objects.items():
            wanted = expected.objects[number]
            np.testing.assert_array_equal(item.mask, wanted.mask)
            assert item.logits.equal(wanted.logits)
            assert (item.iou, item.object_score) == (wanted.iou, wanted.object_score)
    tracked = 'attend' if model.compiled is None else TRACK
    assert set(watch.take()) == {'encode', tracked, 'decode mask', 'memory'}


def test_a_run_leaves_nothing_on_the_model(model, discs):
    attributes, modules = state(model)
    run(discs, model, Parameters())
    after, modules_after = state(model)
    assert after == attributes and after.get('compiled') is attributes.get('compiled')
    assert modules_after == modules


def test_every_stage_is_timed(model, discs):
    frames = run(discs, model, Parameters()).frames
    tracked = {'attend', 'decode mask'} if model.compiled is None else {TRACK}
    assert set(frames[-1].stages) == {*STAGES, TOTAL} - {'attend', 'decode mask'} | tracked
    assert set(frames[0].stages) == {*STAGES, TOTAL} - {'attend'}, 'a prompt alone is decoded by the model itself'
    for frame in frames:
        assert all(seconds > 0 for seconds in frame.stages.values())
        assert sum(seconds for stage, seconds in frame.stages.items() if stage != TOTAL) <= frame.stages[TOTAL]


@torch.no_grad()
def test_a_mask_that_is_prompted_is_timed_too(model, discs):
    watch = Stopwatch(model.device)
    image, mask = to_rgb(discs.image(0)), discs.mask(1, 0)
    found, expected = (StreamTracker(each).step(image, [Prompt(1, mask=mask)]).objects[1]
                       for each in (TimedModel(model, watch), model))
    assert found.logits.equal(expected.logits) and set(watch.take()) == {'encode', 'decode mask', 'memory'}


def test_a_view_shares_the_weights_and_is_a_model(model):
    view = TimedModel(model, Stopwatch(model.device))
    assert {name: id(tensor) for name, tensor in view.state_dict(keep_vars=True).items()} == {
        name: id(tensor) for name, tensor in model.state_dict(keep_vars=True).items()}
    assert (view.device, view.dtype, view.image_size, view.name) == (model.device, model.dtype, 64, model.name)


def test_the_seconds_of_a_stage_add_up_until_they_are_taken():
    moments = iter([0.0, 1.0, 2.0, 5.0])
    watch = Stopwatch(torch.device('cpu'), lambda: next(moments))
    for _ in range(2):
        with watch.stage('encode'):
            pass
    assert watch.take() == {'encode': 4.0} and watch.take() == {}


def test_the_peak_of_memory_is_that_of_the_process():
    model = load_model('nano', device='cpu', image_size=64)
    assert PeakMemory(model).process > 50e6 and PeakMemory(model).gpu == 0
    assert peak_resident_memory(2**22 + 1) == 0, 'no such process'
