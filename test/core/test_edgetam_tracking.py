"""All that tracks works with EdgeTAM: number types, changed weights, batches of images, single images, saved states.

test_random_streams.py runs late prompts, corrections, forks and restarts; test_compiled.py, test_adapters_and_hooks.py,
export/ and training/ have a case for EdgeTAM each.
"""
import copy

import numpy as np
import pytest
import torch

from sam2_core import Filters, ImageSegmenter, Prompt, Sam2Model, StreamTracker, encode_images
from testing.small_edgetam import SMALL, pictures, small_edgetam

IMAGES = pictures(16)
MASK = np.zeros((128, 128), bool)
MASK[30:70, 40:100] = True
PROMPTS = {0: [Prompt(1, box=(5, 5, 80, 80)), Prompt(2, mask=MASK)], 2: [Prompt(1, points=[(40, 40)], labels=[1])],
           3: [Prompt(3, points=[(100, 30)], labels=[1])], 6: [Prompt(2, points=[(60, 50), (9, 9)], labels=[1, 0])]}


@pytest.fixture(scope='module')
def model():
    return small_edgetam()


def stream(model, images=8):
    """Return the logits of three objects in a stream with prompts of each kind, late objects and corrections."""
    tracker = StreamTracker(model)
    return torch.cat([item.logits.flatten() for number in range(images)
                      for item in tracker.step(IMAGES[number], PROMPTS.get(number, [])).objects.values()])


@pytest.fixture(scope='module')
def expected(model):
    return stream(model)


def with_parameters(model, dtype):
    """Return a copy with another type of its parameters, as ``load_model`` makes it."""
    model = copy.deepcopy(model)
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    return model


# --- number types

# Logits of this model reach 0.35; numbers have 8 bits in bfloat16 and 11 in float16.
@pytest.mark.parametrize(('dtype', 'error'), [(torch.bfloat16, 0.02), (torch.float16, 0.005)])
def test_half_precision_rounds_weights_but_no_statistics(model, expected, dtype, error):
    loaded, converted = with_parameters(model, dtype), copy.deepcopy(model).to(dtype)
    found = stream(loaded)
    assert 0 < (found - expected).abs().max() < error
    assert torch.equal(stream(converted), found)
    for other in (loaded, converted):
        assert all(torch.equal(ours, plain) for ours, plain in zip(other.buffers(), model.buffers(), strict=True))


def test_double_precision_gives_the_same_masks(model, expected):
    torch.testing.assert_close(stream(copy.deepcopy(model).double()), expected, atol=1e-3, rtol=0)


def test_autocast_leaves_nothing_behind(model, expected):
    with torch.autocast('cpu', torch.bfloat16):
        found = stream(model)
    assert 0 < (found - expected).abs().max() < 0.02
    assert torch.equal(stream(model), expected)


def test_statistics_that_half_precision_cannot_hold_stay_in_use(model, expected):
    """A convolution with outputs a thousand times as large is normalised to the same values."""
    model = copy.deepcopy(model)
    layer = model.image_encoder.trunk.body['stages_1'].blocks[0].channel_mixer.conv2
    for value, factor in ((layer.c.weight, 1e3), (layer.bn.running_mean, 1e3), (layer.bn.running_var, 1e6)):
        value.mul_(factor)
    assert layer.bn.running_var.half().isinf().any()
    assert (stream(model.half()) - expected).abs().max() < 0.005


def test_a_default_number_type_changes_nothing(model, expected):
    torch.set_default_dtype(torch.float64)
    try:
        other = Sam2Model(SMALL).eval().requires_grad_(False)
        other.load_state_dict(model.state_dict())
        assert torch.equal(stream(other), expected)
    finally:
        torch.set_default_dtype(torch.float32)


# --- changed weights

TRUNK = 'image_encoder.trunk.body.'
CHANGED = [TRUNK + 'stem.conv1.c.weight', TRUNK + 'stages_2.blocks.1.token_mixer.conv.bn.bias',
           TRUNK + 'stages_1.blocks.0.token_mixer.conv1.bn.running_mean',
           TRUNK + 'stages_3.downsample.channel_downsample.bn.running_var', 'spatial_perceiver.latents_2d']


@pytest.mark.parametrize('name', CHANGED)
@pytest.mark.parametrize('how', ['data', 'load_state_dict', 'assign'])
def test_a_change_of_any_kind_of_weight_is_noticed(model, expected, name, how):
    model = copy.deepcopy(model)
    assert torch.equal(stream(model, 2), expected[:4 * 32 ** 2])
    weights = {**model.state_dict()}
    value = weights[name]
    weights[name] = value + 0.5 * torch.rand(value.shape, generator=torch.Generator().manual_seed(1))
    if how == 'data':
        value.data.copy_(weights[name])
    else:
        model.load_state_dict(weights, assign=how == 'assign')
    found = stream(model, 2)
    assert (found - expected[:4 * 32 ** 2]).abs().max() > 1e-4
    fresh = copy.deepcopy(model)  # without anything cached
    assert torch.equal(stream(fresh, 2), found)


def test_a_copy_has_weights_of_its_own(model, expected):
    changed = copy.deepcopy(model)
    changed.image_encoder.trunk.body['stem'].conv1.bn.running_mean.add_(1)
    assert not torch.equal(stream(changed), expected)
    assert torch.equal(stream(model), expected)


# --- memory

def test_memory_of_an_object_has_a_constant_size(model):
    """At most four conditioning and six recent frames, 4 + 15 pointers, and a row of each to write to."""
    tracker = StreamTracker(model)
    sizes = set()
    for number, image in enumerate(IMAGES * 2):
        prompts = [Prompt(1, box=(5, 5, 80, 80))] if number % 3 == 0 else []
        tracker.step(image, prompts)
        sizes.add(tracker.memory_bytes)
    assert sizes == {(4 + 6 + 1) * (5 + 4 * 4) * 16 * 2 + (4 + 15 + 1) * 32 * 4}


@pytest.mark.parametrize(('limit', 'frames'), [(None, 1 + 6), (3, 1 + 3), (0, 1)])
def test_a_limit_of_recent_frames_shortens_the_memory_that_is_read(model, monkeypatch, limit, frames):
    tracker, seen = StreamTracker(model), []
    attend = model.attend_memory
    monkeypatch.setattr(model, 'attend_memory', lambda image, memory: seen.append(memory.frames.shape)
                        or attend(image, memory))
    for number, image in enumerate(IMAGES[:10]):
        tracker.step(image, [Prompt(1, box=(5, 5, 80, 80))] if number == 0 else [])
    tracker.recent_frames = limit
    tracker.step(IMAGES[10])
    assert seen[-1] == (1, frames, 5 + 4 * 4, 16)


def test_a_saved_state_continues_bit_for_bit(model):
    tracker, restarted = StreamTracker(model), StreamTracker(model)
    for number in range(8):
        tracker.step(IMAGES[number], PROMPTS.get(number, []))
    restarted.load_state_dict(tracker.state_dict())
    for image in IMAGES[8:12]:
        ours, theirs = restarted.step(image).objects, tracker.step(image).objects
        assert list(ours) == list(theirs) == [1, 2, 3]
        assert all(torch.equal(ours[i].logits, theirs[i].logits) for i in theirs)


# --- single images

def test_images_encoded_as_a_batch_equal_those_encoded_one_by_one(model):
    together = encode_images(model, IMAGES[:3])
    for image, encoded in zip(IMAGES, together, strict=False):
        torch.testing.assert_close(encoded.features, encode_images(model, [image])[0].features, atol=1e-5, rtol=1e-5)


def test_a_single_image_is_segmented_as_the_first_of_a_stream(model):
    segmenter = ImageSegmenter(model)
    encoded = segmenter.encode(IMAGES[0])
    for prompt in (Prompt(1, box=(5, 5, 80, 80)), Prompt(1, points=[(40, 40), (9, 9)], labels=[1, 0])):
        tracked = StreamTracker(model).step(IMAGES[0], [prompt]).objects[1]
        found = segmenter.segment(encoded, prompt)
        torch.testing.assert_close(found.logits[0], tracked.logits)
        assert np.array_equal(found.masks[0], tracked.mask)


def test_everything_in_an_image_is_segmented(model):
    found = ImageSegmenter(model).segment_all(IMAGES[0], points_per_side=3,
                                              filters=Filters(min_iou=0.0, min_stability=0.0))
    assert found and all(one.mask.shape == (128, 128) and one.mask.any() for one in found)
