"""Global settings of PyTorch, and changes of a model's type, leave its masks unchanged."""
import contextlib
import copy

import numpy as np
import pytest
import torch

from sam2_core import Filters, ImageSegmenter, Prompt, StreamTracker, load_model

SIZE = 64
HALVES = (torch.bfloat16, torch.float16)


@pytest.fixture(scope='module')
def model():
    return tiny()


def tiny(**options):
    return load_model('nano', device='cpu', image_size=SIZE, **options)


def stream(model, scene, around=lambda step: contextlib.nullcontext()):
    """Return logits of a stream with prompts of each kind, late objects and corrections, and of a single image."""
    tracker, segmenter, found = StreamTracker(model), ImageSegmenter(model), []
    prompts = [[Prompt(1, box=scene.box(1)), Prompt(2, mask=scene.truth(2, 0))], [],
               [Prompt(1, points=[(80, 70)], labels=[1]), Prompt(3, points=[(230, 175)], labels=[1])], []]
    for step, given in enumerate(prompts):
        with around(step):
            found += [item.logits for item in tracker.step(scene.image(step), given).objects.values()]
    with around(4):
        encoded = segmenter.encode(scene.image(0))
    with around(5):
        click = Prompt(points=[(70, 70)], labels=[1])
        first = segmenter.segment(encoded, click, multimask=True)
        found += [first.logits, segmenter.segment(encoded, click, previous_logits=first.logits[0]).logits]
        segmenter.segment_all(encoded, points_per_side=2, filters=Filters(min_iou=0.0, min_stability=0.0))
    return torch.cat([logits.flatten() for logits in found])


@pytest.fixture(scope='module')
def expected(model, scene):
    return stream(model, scene)


@pytest.mark.parametrize('where', ['everywhere', 'from the second image', 'at the first image', 'every other image'])
@pytest.mark.parametrize('dtype', HALVES, ids=str)
def test_autocast_works_wherever_it_begins_and_ends(model, scene, expected, dtype, where):
    chosen = {'everywhere': range(6), 'from the second image': range(1, 6), 'at the first image': [0],
              'every other image': (1, 3, 5)}[where]
    found = stream(model, scene, lambda step: torch.autocast('cpu', dtype, enabled=step in chosen))
    assert ((found > 0) == (expected > 0)).float().mean() > 0.95
    assert found.dtype == torch.float32 and not torch.equal(found, expected)  # autocast has an effect


@pytest.mark.parametrize(('dtype', 'autocast'), [HALVES, HALVES[::-1]], ids=str)
def test_a_half_precision_model_computes_in_its_own_type_under_autocast(scene, dtype, autocast):
    model = tiny(dtype=dtype)
    found = stream(model, scene, lambda step: torch.autocast('cpu', autocast, enabled=step > 0))
    assert torch.equal(found, stream(model, scene))


def test_features_encoded_under_autocast_have_the_models_type(model, scene):
    with torch.autocast('cpu', torch.bfloat16):
        encoded = ImageSegmenter(model).encode(scene.image(0))
    assert {part.dtype for part in encoded.features} == {torch.float32}


@pytest.fixture
def settings():
    """Restore the global settings of PyTorch."""
    yield
    torch.set_default_dtype(torch.float32)
    torch.set_default_device(None)
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize('when', ['before the model is loaded', 'afterwards'])
@pytest.mark.parametrize('change', [
    lambda: torch.set_default_dtype(torch.float64), lambda: torch.set_default_dtype(torch.float16),
    lambda: torch.set_default_dtype(torch.bfloat16), lambda: torch.set_default_device('meta')],
    ids=['float64', 'float16', 'bfloat16', 'meta'])
def test_global_defaults_change_nothing(model, scene, expected, settings, change, when):
    change()
    assert torch.equal(stream(tiny() if when.startswith('before') else model, scene), expected)


def test_deterministic_algorithms_are_used_already(model, scene, expected, settings):
    torch.use_deterministic_algorithms(True)
    assert torch.equal(stream(model, scene), expected)


@pytest.mark.parametrize('around', [torch.inference_mode, torch.no_grad, torch.enable_grad])
def test_gradient_modes_around_a_tracker_change_nothing(model, scene, expected, around):
    assert torch.equal(stream(model, scene, lambda step: around()), expected)


@pytest.mark.parametrize('change', [lambda model: model.half(), lambda model: model.to(torch.bfloat16),
                                    lambda model: model.double()], ids=['half', 'bfloat16', 'double'])
def test_a_model_that_changes_its_type_keeps_its_tables(model, scene, change):
    """The result is that of load_model(dtype=...): coordinates and positions are never rounded."""
    changed = change(copy.deepcopy(model))
    assert {parameter.dtype for parameter in changed.parameters()} == {changed.dtype} != {torch.float32}
    for (name, ours), plain in zip(changed.named_buffers(), model.buffers(), strict=True):
        assert torch.equal(ours, plain), name
    if changed.dtype in HALVES:
        assert torch.equal(stream(changed, scene), stream(tiny(dtype=changed.dtype), scene))
    else:
        assert (stream(changed, scene) > 0).any()


def test_a_tracker_goes_on_when_its_model_changes_its_type(scene):
    model = tiny()
    tracker = StreamTracker(model)
    tracker.step(scene.image(0), [Prompt(1, box=scene.box(1))])
    encoded = ImageSegmenter(model).encode(scene.image(1))
    for change in (model.half, model.double, model.float):
        change()
        tracker.step(scene.image(1))
        assert np.isfinite(tracker.step(encoded).objects[1].object_score)
