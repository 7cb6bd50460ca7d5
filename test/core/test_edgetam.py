"""EdgeTAM's own parts: the trunk's merged branches, the perceiver, and the positions of its memory.

test/core/parity/ compares them with the published program.
"""
import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from sam2_core import Prompt, StreamTracker
from sam2_core.approximations import pool_memory, quantize_encoder
from sam2_core.config import VARIANTS, PerceiverConfig
from sam2_core.nn.position import RotaryTable, sine_grid
from sam2_core.nn.repvit import ConvNorm, RepVit, TokenMixer
from sam2_core.nn.spatial_perceiver import SpatialPerceiver, token_position
from testing.small_edgetam import SMALL, pictures, randomised, small_edgetam


@pytest.fixture(scope='module')
def model():
    return small_edgetam()


def published_conv_norm(layer, x):
    norm = layer.bn
    return F.batch_norm(layer.c(x), norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps)


@pytest.mark.parametrize('layer', [ConvNorm(6, 4), ConvNorm(6, 4, kernel_size=3, stride=2),
                                   ConvNorm(6, 6, kernel_size=3, groups=6)])
@torch.inference_mode()
def test_normalisation_is_merged_into_the_convolution(layer):
    x = torch.randn(2, 6, 7, 9)
    torch.testing.assert_close(randomised(layer)(x), published_conv_norm(layer, x))


@torch.inference_mode()
def test_branches_are_merged_into_one_convolution():
    mixer, x = randomised(TokenMixer(6)), torch.randn(2, 6, 7, 9)
    expected = published_conv_norm(mixer.conv, x) + published_conv_norm(mixer.conv1, x) + x
    torch.testing.assert_close(mixer(x), expected)


@pytest.mark.parametrize('part', ['conv.c', 'conv1', 'conv1.c'])
@torch.inference_mode()
def test_a_hook_on_a_merged_layer_sees_its_call(part):
    mixer, x = randomised(TokenMixer(6)), torch.randn(1, 6, 5, 5)
    expected = mixer(x)
    seen = []
    mixer.get_submodule(part).register_forward_hook(lambda *_: seen.append(part))
    torch.testing.assert_close(mixer(x), expected)
    assert seen == [part]


def test_training_leaves_the_statistics_and_reaches_all_weights_of_the_branches():
    mixer = randomised(TokenMixer(6)).train().requires_grad_(True)
    before = copy.deepcopy(dict(mixer.named_buffers()))
    mixer(torch.randn(2, 6, 7, 9)).square().sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in mixer.parameters())
    assert all(torch.equal(value, before[name]) for name, value in mixer.named_buffers())


def test_recomputing_blocks_changes_no_gradient():
    trunk = randomised(RepVit(SMALL.trunk)).requires_grad_(True)
    gradients = []
    for trunk.recompute in (False, True):
        trunk.zero_grad()
        sum(level.square().mean() for level in trunk(torch.ones(1, 3, 64, 64))).backward()
        gradients.append([parameter.grad.clone() for parameter in trunk.parameters()])
    torch.testing.assert_close(*gradients)


@torch.inference_mode()
def test_a_hook_on_a_stage_sees_its_map():
    trunk, seen = randomised(RepVit(SMALL.trunk)), []
    trunk.body['stages_2'].register_forward_hook(lambda module, inputs, output: seen.append(output))
    levels = trunk(torch.randn(1, 3, 64, 64))
    assert len(seen) == 1 and seen[0] is levels[2]


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
@torch.inference_mode()
def test_constant_trunk_has_plain_convolutions_and_the_same_levels(dtype):
    trunk, image = randomised(RepVit(SMALL.trunk)).to(dtype), torch.randn(1, 3, 64, 64).to(dtype)
    expected = trunk(image)
    trunk.hold_constants(64)
    assert not any(isinstance(module, (ConvNorm, TokenMixer, torch.nn.BatchNorm2d)) for module in trunk.modules())
    torch.testing.assert_close(trunk(image), expected)


@torch.inference_mode()
def test_each_place_of_the_perceiver_sees_its_window_alone_and_global_latents_see_everything():
    perceiver = randomised(SpatialPerceiver(PerceiverConfig(global_latents=5, grid_side=4), 16))
    memory, position = torch.randn(1, 8, 8, 16), sine_grid(16, 8, 8).flatten(1).T
    changed = memory.clone()
    changed[0, 3, 6] += torch.arange(16.0)  # row 3, column 6: the window of 2 x 2 cells at row 1, column 3
    before, after = (perceiver(frame.flatten(1, 2), position)[0] for frame in (memory, changed))
    differs = (before - after).abs().amax(dim=1) > 1e-6
    assert differs[:5].all()
    assert (differs[5:].nonzero().flatten() == 1 * 4 + 3).all()
    assert differs[5:].any()


@torch.inference_mode()
def test_position_tells_the_global_latents_where_a_token_is():
    perceiver = randomised(SpatialPerceiver(PerceiverConfig(global_latents=5, grid_side=4), 16))
    memory, position = torch.randn(1, 64, 16), sine_grid(16, 8, 8).flatten(1).T
    moved = perceiver(memory.flip(1), position)
    assert (perceiver(memory, position) - moved)[:, :5].abs().max() > 1e-3
    torch.testing.assert_close(perceiver(memory, 0 * position)[:, :5], perceiver(memory.flip(1), 0 * position)[:, :5])


def test_global_latents_have_no_position_and_places_that_of_their_grid():
    position = token_position(PerceiverConfig(global_latents=5, grid_side=4), 16)
    assert position.shape == (5 + 16, 16)
    assert not position[:5].any()
    torch.testing.assert_close(position[5:], sine_grid(16, 4, 4).flatten(1).T)


def test_unplaced_keys_are_not_rotated_and_the_others_as_in_their_grid():
    grid, table = RotaryTable(16, 4, 4, 10000.0), RotaryTable(16, 4, 4, 10000.0, unplaced=5)
    keys = torch.randn(2, 3 * 21, 16)
    frames = keys.unflatten(1, (3, 21))
    expected = torch.cat((frames[:, :, :5], grid(frames[:, :, 5:].flatten(0, 1)).unflatten(0, (2, 3))), dim=2)
    assert torch.equal(table(keys), expected.flatten(1, 2))
    table.rotate_in_place(keys)
    torch.testing.assert_close(keys, expected.flatten(1, 2))


@pytest.mark.parametrize('size', [256, 512, 768, 1024])
def test_image_sizes_that_windows_divide_are_accepted(size):
    assert replace(VARIANTS['edgetam'], image_size=size).memory_tokens == 512


@pytest.mark.parametrize('size', [320, 896, 1056])
def test_image_sizes_that_windows_do_not_divide_are_refused_with_the_cure(size):
    with pytest.raises(ValueError, match=rf'image_size {size}: must be a multiple of 256 .* 256, 512 or 1024'):
        replace(VARIANTS['edgetam'], image_size=size)


def test_sixteen_objects_in_a_batch_equal_sixteen_trackers(model):
    prompts = [Prompt(i + 1, box=(8 * (i % 4), 8 * (i // 4), 8 * (i % 4) + 50, 8 * (i // 4) + 40)) for i in range(16)]
    together, alone = StreamTracker(model), [StreamTracker(model) for _ in prompts]
    for time, image in enumerate(pictures(5)):
        results = together.step(image, prompts if time == 0 else ()).objects
        for tracker, prompt in zip(alone, prompts, strict=True):
            one = tracker.step(image, [prompt] if time == 0 else ()).objects[prompt.object_id]
            torch.testing.assert_close(results[prompt.object_id].logits, one.logits, atol=1e-4, rtol=1e-4)
    assert len({result.logits.sum().item() for result in results.values()}) == 16, 'the objects differ'


def test_approximations_that_do_not_apply_are_refused_with_the_cure(model):
    with pytest.raises(ValueError, match=r'memory_pooling 2 with custom: must be 1 \(off\), since its perceiver'):
        pool_memory(model, 2)
    pool_memory(model, 1)
    with pytest.raises(ValueError, match='int8_encoder with custom: .* no linear layers to quantise; leave it out'):
        quantize_encoder(model)


def test_memory_of_an_object_takes_an_eighth_of_that_of_tiny():
    edgetam, tiny = VARIANTS['edgetam'], VARIANTS['sam2.1_hiera_tiny']
    assert edgetam.memory_tokens * edgetam.memory_dim * 8 == tiny.memory_tokens * tiny.memory_dim
