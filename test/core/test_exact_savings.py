"""Exact savings on a CPU: each is compared with the plain computation in float64."""

import copy
import dataclasses

import pytest
import torch

from sam2_core import VARIANTS, Sam2Model
from sam2_core.nn import attention, hiera
from sam2_core.nn.attention import RotaryAttention
from sam2_core.nn.position import RotaryTable
from sam2_core.tensors import Memory
from testing import comparisons, reference

SIDE, DIM, NARROW, POINTERS, OBJECTS = 6, 32, 8, 5, 3
TOKENS = SIDE * SIDE


@pytest.fixture(scope='module')
def model():
    return comparisons.make_pair('nano').ours


@pytest.fixture(scope='module')
def image(model):
    with torch.no_grad():
        return model.encode_image(reference.pixel_values(reference.moving_scene(1)[0]))


@pytest.fixture
def cross():
    torch.manual_seed(0)
    return RotaryAttention(DIM, num_heads=1, dim_kv=NARROW)


@pytest.fixture
def inputs():
    """Return queries of objects, and keys and values of two frames and some pointers."""
    generator = torch.Generator().manual_seed(1)
    tokens = 2 * TOKENS + POINTERS
    return (torch.randn(OBJECTS, TOKENS, DIM, generator=generator),
            torch.randn(OBJECTS, tokens, NARROW, generator=generator) * 3,
            torch.randn(OBJECTS, tokens, NARROW, generator=generator))


def turned(x):
    """Rotate by axial positions as complex numbers, row by row of the grid, for each frame."""
    pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous())
    quarter = pairs.shape[-1] // 2
    frequency = 10000.0 ** (-torch.arange(quarter, dtype=torch.float64) / quarter)
    token = torch.arange(x.shape[-2], dtype=torch.float64)[:, None] % TOKENS
    angle = torch.cat((token % SIDE * frequency, token // SIDE * frequency), dim=1)
    return torch.view_as_real(pairs * torch.polar(torch.ones_like(angle), angle)).flatten(-2)


def plain_attention(cross, query, key, value):
    """Compute attention without fusing: project, rotate keys with a position, weigh, project."""
    weights = {name: parameter.detach().double() for name, parameter in cross.named_parameters()}

    def projected(x, name):
        return x.double() @ weights[f'{name}.weight'].T + weights[f'{name}.bias']

    query, keys = turned(projected(query, 'q_proj')), projected(key, 'k_proj')
    keys = torch.cat((turned(keys[:, :2 * TOKENS]), keys[:, 2 * TOKENS:]), dim=1)
    scores = query @ keys.transpose(1, 2) / DIM ** 0.5
    return projected(scores.softmax(-1) @ projected(value, 'v_proj'), 'out_proj').float()


@torch.no_grad()
@pytest.mark.parametrize('queries, keys', [(1024, 512), (10, 77), (7, 5), (1, 1)])
def test_values_averaged_before_they_are_projected(cross, inputs, monkeypatch, queries, keys):
    monkeypatch.setattr(attention, 'QUERIES_AT_ONCE', queries)
    monkeypatch.setattr(attention, 'KEYS_AT_ONCE', keys)
    ours = cross(*inputs, RotaryTable(DIM, SIDE, SIDE, 10000.0), POINTERS)
    torch.testing.assert_close(ours, plain_attention(cross, *inputs), atol=1e-5, rtol=0)


@torch.no_grad()
def test_blocks_of_keys_whose_scores_grow_and_shrink_out_of_range(cross, monkeypatch):
    """Scores of consecutive blocks differ by hundreds, which overflows exp() unless scores are relative."""
    monkeypatch.setattr(attention, 'KEYS_AT_ONCE', 4)
    generator = torch.Generator().manual_seed(3)
    query, value = torch.randn(5, DIM, generator=generator), torch.randn(16, NARROW, generator=generator)
    level = torch.tensor([-400.0, 300.0, 310.0, -50.0]).repeat_interleave(4)[:, None]
    key = torch.randn(16, DIM, generator=generator) + level * query.mean(dim=0) * 10
    expected = (query.double() @ key.double().T / DIM ** 0.5).softmax(-1) @ value.double()
    assert (query @ key.T).abs().max() > 500
    torch.testing.assert_close(attention._average(query, key, value), expected.float(), atol=1e-3, rtol=0)


@torch.no_grad()
def test_fused_projections_follow_the_weights(cross, inputs):
    """Weights may change by an optimiser, a checkpoint, or a CUDA graph that does not count versions."""
    table = RotaryTable(DIM, SIDE, SIDE, 10000.0)
    before = cross(*inputs, table, POINTERS)
    cross.v_proj.weight.data.mul_(-2)
    cross.out_proj.bias.data.add_(1)
    after = cross(*inputs, table, POINTERS)
    assert (after - before).abs().max() > 0.5
    torch.testing.assert_close(after, plain_attention(cross, *inputs), atol=1e-5, rtol=0)


def test_training_computes_what_inference_does(cross, inputs):
    table = RotaryTable(DIM, SIDE, SIDE, 10000.0)
    trained = cross(*inputs, table, POINTERS)
    trained.sum().backward()
    assert all(parameter.grad is not None for parameter in cross.parameters())
    with torch.inference_mode():
        torch.testing.assert_close(cross(*inputs, table, POINTERS), trained.detach(), atol=1e-5, rtol=0)


@torch.no_grad()
def test_keys_are_rotated_in_place_as_by_the_table():
    table = RotaryTable(DIM, SIDE, SIDE, 10000.0)
    keys = torch.randn(OBJECTS, 3 * TOKENS + POINTERS, DIM, generator=torch.Generator().manual_seed(0))
    changed = keys.clone()
    table.rotate_in_place(changed[:, :3 * TOKENS])
    torch.testing.assert_close(changed[:, :3 * TOKENS], table(keys[:, :3 * TOKENS]), atol=1e-6, rtol=0)
    torch.testing.assert_close(changed[:, :3 * TOKENS], turned(keys[:, :3 * TOKENS].double()).float(),
                               atol=1e-5, rtol=0)
    assert torch.equal(changed[:, 3 * TOKENS:], keys[:, 3 * TOKENS:])


def memory_of(model, objects):
    generator = torch.Generator().manual_seed(2)
    return Memory(torch.randn(objects, 3, model.grid ** 2, model.config.memory_dim, generator=generator),
                  torch.tensor([[6, 1, 0]] * objects),
                  torch.randn(objects, 3, model.config.d_model, generator=generator),
                  torch.tensor([[9, 2, 1]] * objects))


@torch.no_grad()
def test_work_that_objects_share_is_done_once(model, image):
    memory, first = memory_of(model, OBJECTS), model.memory_attention.layers[0]
    shapes = []
    hooks = [module.register_forward_pre_hook(lambda _, arguments: shapes.append(arguments[0].shape[0]))
             for module in (first.self_attn, first.cross_attn_image, first.norm3)]
    together = model.attend_memory(image, memory)
    for hook in hooks:
        hook.remove()
    assert shapes == [1, 1, OBJECTS]
    repeated = image._replace(stride16_bchw=image.stride16_bchw.repeat(OBJECTS, 1, 1, 1))
    torch.testing.assert_close(together, model.attend_memory(repeated, memory), atol=1e-4, rtol=0)
    for i in range(OBJECTS):
        alone = model.attend_memory(image, Memory(*(part[i:i + 1] for part in memory[:4])))
        torch.testing.assert_close(together[i], alone[0], atol=1e-4, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize('numbers', [1, 50_000], ids=['one row of windows', 'some rows'])
@pytest.mark.parametrize('name', ['nano', 'sam2.1_hiera_tiny'])
def test_encoder_works_through_its_windows_in_bands(name, numbers, monkeypatch):
    """The blocks include windows that fit the grid, padded windows, and pooling."""
    torch.manual_seed(0)
    trunk = Sam2Model(dataclasses.replace(VARIANTS[name], image_size=160)).image_encoder.trunk
    picture = torch.randn(2, 3, 160, 160)
    with torch.enable_grad():  # all at once
        expected = trunk(picture)
    monkeypatch.setattr(hiera, 'NUMBERS_AT_ONCE', numbers)
    for ours, plain in zip(trunk(picture), expected, strict=True):
        torch.testing.assert_close(ours, plain, atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize('pool', [False, True], ids=['', 'pooled queries'])
@pytest.mark.parametrize('height, width', [(6, 10), (8, 8), (2, 14)])
def test_windows_are_padded_after_the_projection(height, width, pool):
    """Follow the published order: pad with zeros, split, project, attend, project, join, crop."""
    torch.manual_seed(0)
    attend, window = hiera.MultiScaleAttention(8, 16, num_heads=2, pool_queries=pool), 4
    picture = torch.randn(2, height, width, 8)
    rows, columns = -(-height // window), -(-width // window)
    padded = torch.nn.functional.pad(picture, (0, 0, 0, columns * window - width, 0, rows * window - height))
    windows = padded.view(2, rows, window, columns, window, 8).transpose(2, 3).reshape(-1, window, window, 8)
    side, attended = window // (1 + pool), attend(windows)
    joined = attended.view(2, rows, columns, side, side, 16).transpose(2, 3).reshape(2, rows * side, columns * side, 16)
    torch.testing.assert_close(attend(picture, window), joined[:, :height // (1 + pool), :width // (1 + pool)],
                               atol=1e-6, rtol=1e-5)


@torch.no_grad()
def test_neck_and_the_decoders_projections_are_one_map(model):
    model = copy.deepcopy(model)
    encoder, decoder = model.image_encoder, model.sam_mask_decoder
    picture = reference.pixel_values(reference.moving_scene(1)[0])

    def plain(conv, x):
        return torch.einsum('oc,bchw->bohw', conv.weight[..., 0, 0].double(), x.double()) + conv.bias[:, None, None]

    for _ in range(2):
        levels, features = encoder.trunk(picture), model.encode_image(picture)
        for level, lateral, after, ours in ((levels[0], encoder.neck.convs[3], decoder.conv_s0, features.stride4_bchw),
                                            (levels[1], encoder.neck.convs[2], decoder.conv_s1, features.stride8_bchw)):
            torch.testing.assert_close(ours, plain(after, plain(lateral.conv, level)).float(), atol=1e-4, rtol=0)
            lateral.conv.weight.data.mul_(2)  # the second time, fused weights must follow the changed weights
            after.bias.data.add_(1)
