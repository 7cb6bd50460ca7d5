"""Approximations are off by default, and compute what their documentation says."""
import copy
import warnings

import pytest
import torch

from sam2_core import Prompt, StreamTracker, load_model
from sam2_core.approximations import pool_memory, quantize_encoder
from sam2_core.metrics import iou
from sam2_core.nn.attention import RotaryAttention
from sam2_core.nn.position import RotaryTable
from sam2_core.tensors import Memory

SIDE, DIM, NARROW, POINTERS, OBJECTS = 8, 32, 8, 5, 2
TOKENS = SIDE * SIDE


def pooled_attention(cross, query, key, value, table, pooling):
    """Compute attention in float64 over the mean keys and values of each block, repeated by their count."""
    def squares(x):
        grids = x[:, :2 * TOKENS].unflatten(1, (2, SIDE // pooling, pooling, SIDE // pooling, pooling))
        means = grids.mean(dim=(3, 5), keepdim=True).expand_as(grids)
        return torch.cat((means.flatten(1, 5), x[:, 2 * TOKENS:]), dim=1)

    query, key, value = (projection(x) for projection, x in zip(
        (cross.q_proj, cross.k_proj, cross.v_proj), (query, key, value), strict=True))
    query, turned = table(query), torch.cat((table(key[:, :2 * TOKENS]), key[:, 2 * TOKENS:]), dim=1)
    scores = query.double() @ squares(turned).double().transpose(1, 2) / DIM ** 0.5
    return cross.out_proj((scores.softmax(-1) @ squares(value).double()).float())


@torch.no_grad()
@pytest.mark.parametrize('pooling', [2, 4])
@pytest.mark.parametrize('narrow', [True, False], ids=['narrow values', 'fused attention'])
def test_pooled_keys_are_means_that_count_for_all_they_stand_for(pooling, narrow, monkeypatch):
    torch.manual_seed(0)
    cross, table = RotaryAttention(DIM, num_heads=1, dim_kv=NARROW), RotaryTable(DIM, SIDE, SIDE, 10000.0)
    query, key = torch.randn(OBJECTS, TOKENS, DIM), torch.randn(OBJECTS, 2 * TOKENS + POINTERS, NARROW) * 3
    value = torch.randn_like(key)
    cross.pooling = pooling
    expected = pooled_attention(cross, query, key, value, table, pooling)
    if not narrow:
        monkeypatch.setattr('sam2_core.nn.attention.runs_plainly_on_cpu', lambda x: False)
    torch.testing.assert_close(cross(query, key, value, table, POINTERS), expected, atol=1e-5, rtol=0)
    cross.pooling = 1
    assert (cross(query, key, value, table, POINTERS) - expected).abs().max() > 1e-3


@torch.no_grad()
def test_padded_pooled_memory_gives_the_same_result_as_alone(nano):
    model = copy.deepcopy(nano)
    pool_memory(model, 2)
    features = model.encode_image(torch.randn(1, 3, 256, 256, generator=torch.Generator().manual_seed(0)))
    frames, pointers = torch.randn(1, 3, 256, 32), torch.randn(1, 4, 96)
    slots, ages = torch.tensor([[6, 1, 0]]), torch.tensor([[7, 3, 2, 1]])
    short = Memory(frames[:, :2], slots[:, :2], pointers[:, :3], ages[:, :3])
    filled_up = Memory(frames, slots, pointers, ages, torch.tensor([[True, True, False]]),
                       torch.tensor([[True, True, True, False]]))
    torch.testing.assert_close(model.attend_memory(features, filled_up), model.attend_memory(features, short),
                               atol=1e-4, rtol=0)


@pytest.mark.parametrize('options', [{'memory_pooling': 2}, {'int8_encoder': True}], ids=str)
def test_approximations_follow_an_easy_object(nano, scene, options):
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        tracker = StreamTracker(load_model('nano', device='cpu', **options))
    exact = StreamTracker(nano)
    differs = False
    for frame in range(10):
        prompts = [Prompt(1, box=scene.box(2, 0))] if frame == 0 else []
        item, expected = (t.step(scene.image(frame), prompts).objects[1] for t in (tracker, exact))
        assert iou(item.mask, scene.truth(2, frame)) > 0.7
        differs |= not torch.equal(item.logits, expected.logits)
    assert differs


def test_eight_bit_encoder_is_near_the_exact_one(nano):
    model = load_model('nano', device='cpu', int8_encoder=True)
    image = torch.randn(1, 3, 256, 256, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        for ours, exact in zip(model.encode_image(image), nano.encode_image(image), strict=True):
            error = (ours - exact).norm() / exact.norm()
            assert 1e-4 < error < 0.1


@pytest.mark.parametrize('pooling', [0, 3, 4, 2.5, '2'])
def test_other_poolings_are_refused(pooling):
    with pytest.raises(ValueError, match=r'memory_pooling .*: must be 1 \(off\) or 2'):
        load_model('nano', memory_pooling=pooling)


def test_eight_bits_in_half_precision_are_refused(nano):
    with pytest.raises(ValueError, match='int8_encoder on cpu in torch.bfloat16: only on a CPU in float32'):
        load_model('nano', device='cpu', dtype=torch.bfloat16, int8_encoder=True)
    with pytest.raises(ValueError, match='int8_encoder'):
        quantize_encoder(copy.deepcopy(nano).to(torch.float16))
