"""Direct tests of the published rules that re-implementations often get wrong.

Expected values are computed from the formulas, written here a second time, and not by the code under test. The model
has nano's shape and random weights, since the rules do not depend on the size.
"""
import contextlib
import copy
import dataclasses
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from sam2_core import VARIANTS, Prompt, Sam2Model, StreamTracker
from sam2_core.images import mask_to_model, to_model
from sam2_core.memory import MemoryBank, stack_memories
from sam2_core.nn.attention import RotaryAttention
from sam2_core.nn.layers import LayerNorm2d
from sam2_core.nn.mask_decoder import DecodedMasks
from sam2_core.nn.position import RotaryTable, sine_grid, sine_time
from sam2_core.tensors import ImageFeatures, ObjectMasks
from testing import comparisons, reference
from testing.comparisons import BOX, CLICK

SIZE = reference.IMAGE_SIZE
CLICKED = Prompt(1, points=[CLICK], labels=[1])


@pytest.fixture(scope='module', autouse=True)
def without_gradients():
    with torch.no_grad():
        yield


@pytest.fixture(scope='module')
def model():
    return comparisons.make_pair('nano').ours


@pytest.fixture(scope='module')
def frames():
    return reference.moving_scene(8)


@pytest.fixture(scope='module')
def image(model, frames):
    return model.encode_image(reference.pixel_values(frames[0]))


@contextlib.contextmanager
def inputs_of(module):
    """Return a list that collects the arguments of each call of a module."""
    calls = []
    handle = module.register_forward_pre_hook(lambda _, arguments: calls.append(arguments))
    try:
        yield calls
    finally:
        handle.remove()


def started(model, image, *prompts):
    tracker = StreamTracker(model)
    tracker.step(image, prompts or [CLICKED])
    return tracker


def triangle_resize(values, size):
    """Resize (H, W), float64, by the definition of bilinear with antialias: a triangle as wide as the scale factor."""
    def weights(length):
        scale = max(length / size, 1)
        centres = (np.arange(size)[:, None] + 0.5) * length / size
        hat = np.clip(1 - np.abs(np.arange(length)[None] + 0.5 - centres) / scale, 0, None)
        return hat / hat.sum(axis=1, keepdims=True)
    return weights(values.shape[0]) @ values @ weights(values.shape[1]).T


# preprocessing

def test_image_is_stretched_to_the_square_bilinear_with_antialias(model):
    image = np.random.default_rng(0).integers(0, 256, (375, 500, 3), np.uint8)
    pixels = to_model(model, image)[0].double().numpy()
    for channel, (mean, std) in enumerate(((0.485, 0.229), (0.456, 0.224), (0.406, 0.225))):
        expected = (triangle_resize(image[..., channel] / 255, SIZE) - mean) / std
        np.testing.assert_allclose(pixels[channel], expected, atol=1e-4)


def test_image_of_the_models_size_is_only_normalised(model, frames):
    torch.testing.assert_close(to_model(model, frames[0]), reference.pixel_values(frames[0]), atol=1e-6, rtol=0)


# prompts

def test_point_counts_from_the_pixel_centre_and_is_coded_by_random_waves(model):
    encoder = model.sam_prompt_encoder
    x, y = 100.0, 37.25
    token = encoder.encode_points(torch.tensor([[[x, y]]]), torch.tensor([[1]]), SIZE)[0, 0]
    matrix = encoder.pe_layer.positional_encoding_gaussian_matrix.double().numpy()
    angle = 2 * np.pi * (np.array([2 * (x + 0.5) / SIZE - 1, 2 * (y + 0.5) / SIZE - 1]) @ matrix)
    expected = np.concatenate((np.sin(angle), np.cos(angle))) + encoder.point_embeddings[1].weight[0].double().numpy()
    np.testing.assert_allclose(token.numpy(), expected, atol=1e-5)


def test_box_is_two_points_before_the_clicks():
    points, labels = Prompt(box=(8, 16, 64, 80), points=[(1, 2), (3, 4)], labels=[1, 0]).as_points(SIZE, SIZE, SIZE)
    assert points.tolist() == [[8, 16], [64, 80], [1, 2], [3, 4]]
    assert labels.tolist() == [2, 3, 1, 0]


def test_points_are_scaled_to_the_models_square():
    points, _ = Prompt(points=[(320, 120)], labels=[1]).as_points(height=480, width=640, image_size=SIZE)
    assert points.tolist() == [[128, 64]]


def test_a_padding_token_always_follows_even_a_box(model):
    encoder = model.sam_prompt_encoder
    tokens = encoder.encode_points(torch.tensor([[[8.0, 16.0], [64.0, 80.0]]]), torch.tensor([[2, 3]]), SIZE)
    assert tokens.shape[1] == 3
    assert torch.equal(tokens[0, 2], encoder.not_a_point_embed.weight[0])  # without a position


@pytest.mark.parametrize('label', [0, 1, 2, 3])
def test_every_kind_of_point_has_its_own_embedding(model, label):
    encoder = model.sam_prompt_encoder
    point = torch.tensor([[[50.0, 60.0]]])
    token = encoder.encode_points(point, torch.tensor([[label]]), SIZE)[0, 0]
    expected = encoder.pe_layer((point[0, 0] + 0.5) / SIZE) + encoder.point_embeddings[label].weight[0]
    torch.testing.assert_close(token, expected)


def test_frame_without_prompt_has_two_empty_points(model, frames):
    tracker = started(model, frames[0])
    with inputs_of(model.sam_mask_decoder) as calls, inputs_of(
            model.sam_mask_decoder.transformer.layers[0].self_attn) as attention:
        tracker.step(frames[1])
    prompt_tokens = calls[0][2]
    assert torch.equal(prompt_tokens[0], model.sam_prompt_encoder.not_a_point_embed.weight.expand(2, -1))
    assert attention[0][0].shape[1] == 8  # object score, IoU, four masks, two empty points


def test_previous_logits_are_clamped_before_they_are_a_prompt(model, frames):
    model = copy.deepcopy(model)
    for mlp in model.sam_mask_decoder.output_hypernetworks_mlps:
        mlp.layers[-1].weight.mul_(20)
    logits = started(model, frames[0]).step(frames[1]).objects[1].logits
    with inputs_of(model.sam_prompt_encoder.mask_downscaling[0]) as calls:
        started(model, frames[0]).step(frames[1], [Prompt(1, points=[(30, 30)], labels=[0])])
    assert logits.abs().max() > 40
    torch.testing.assert_close(calls[0][0][0, 0], logits.clamp(-32, 32))


def test_users_mask_is_stretched_with_antialias_and_cut_at_one_half(model):
    rows, columns = np.mgrid[:300, :500]
    mask = (rows - 130) ** 2 + (columns - 260) ** 2 < 90 ** 2
    share = triangle_resize(mask.astype(float), SIZE)
    ours = mask_to_model(model, mask)[0, 0].numpy()
    clear = np.abs(share - 0.5) > 1e-4
    np.testing.assert_array_equal(ours[clear], (share >= 0.5)[clear])


# decoder

@pytest.mark.parametrize(('prompt', 'multimask'), [
    (CLICKED, True), (Prompt(1, points=[CLICK, (9, 9)], labels=[1, 0]), False), (Prompt(1, box=BOX), False)])
def test_three_masks_for_up_to_one_point_and_a_box_counts_two(model, frames, prompt, multimask):
    with inputs_of(model.sam_mask_decoder) as calls:
        started(model, frames[0], prompt)
    assert [call[-1] for call in calls] == [multimask]


def test_three_masks_when_tracking_and_for_a_correction_by_one_click(model, frames):
    tracker = started(model, frames[0], Prompt(1, box=BOX))
    with inputs_of(model.sam_mask_decoder) as calls:
        tracker.step(frames[1], [Prompt(1, points=[(30, 30)], labels=[0])])
    assert [call[-1] for call in calls] == [True, True]


def decoded(model, scores, object_score):
    generator = torch.Generator().manual_seed(2)
    masks = len(scores)
    return DecodedMasks(torch.randn(1, masks, 4, 4, generator=generator), torch.tensor([scores]),
                        torch.randn(1, masks, model.config.d_model, generator=generator), torch.tensor([object_score]))


def test_mask_of_highest_predicted_iou_and_its_token_win(model):
    three = decoded(model, [0.2, 0.9, 0.4], 1.0)
    chosen = model.choose_masks(three)
    assert torch.equal(chosen.logits[0], three.logits[0, 1])
    assert float(chosen.iou) == pytest.approx(0.9)
    torch.testing.assert_close(chosen.pointers, model.obj_ptr_proj(three.tokens[:, 1]))


@pytest.mark.parametrize('object_score', [0.0, -0.1])
def test_absent_object_has_no_mask_and_the_pointer_of_none(model, object_score):
    chosen = model.choose_masks(decoded(model, [0.2, 0.9, 0.4], object_score))
    assert (chosen.logits == -1024).all()
    assert torch.equal(chosen.pointers, model.no_obj_ptr)


@pytest.mark.parametrize('stable', [True, False])
def test_unstable_single_mask_gives_way_but_its_token_stays(model, image, stable):
    model = copy.deepcopy(model)
    decoder = model.sam_mask_decoder
    features = model.without_memory(image)
    three = model.decode_masks(features, image, multimask=True, unprompted=True)
    decoder.stability_threshold = 0.0
    first = model.decode_masks(features, image, unprompted=True)
    logits = first.logits.flatten()
    stability = (logits > 0.05).sum() / (logits > -0.05).sum()
    assert stability < 1
    decoder.stability_threshold = float(stability) - 1e-6 if stable else float(stability) + 1e-6
    answer = model.decode_masks(features, image, unprompted=True)
    best = int(three.iou.argmax())
    torch.testing.assert_close(answer.logits[:, 0], first.logits[:, 0] if stable else three.logits[:, best])
    torch.testing.assert_close(answer.iou[:, 0], first.iou[:, 0] if stable else three.iou[:, best])
    torch.testing.assert_close(answer.tokens, first.tokens)


def test_stability_is_judged_as_published():
    assert {(c.stability_delta, c.stability_threshold) for c in VARIANTS.values()} == {(0.05, 0.98)}


def test_first_decoder_layer_replaces_its_tokens_and_the_second_adds(model, image):
    model = copy.deepcopy(model)
    layers = model.sam_mask_decoder.transformer.layers
    for layer in layers:
        layer.self_attn.out_proj.weight.zero_()
        layer.self_attn.out_proj.bias.zero_()
    with inputs_of(layers[0].norm1) as first, inputs_of(layers[1].norm1) as second, inputs_of(layers[1]) as entered:
        model.decode_masks(model.without_memory(image), image, unprompted=True)
    assert (first[0][0] == 0).all()
    assert torch.equal(second[0][0], entered[0][0])


def test_norms_and_activations_have_the_published_constants(model):
    for name, module in model.named_modules():
        if isinstance(module, LayerNorm2d) or (name.startswith('image_encoder') and hasattr(module, 'eps')):
            assert module.eps == 1e-6, name
        elif isinstance(module, torch.nn.LayerNorm):
            assert module.eps == 1e-5, name
    x = torch.linspace(-3, 3, 50)
    exact = x * (1 + torch.erf(x / 2 ** 0.5)) / 2
    torch.testing.assert_close(model.image_encoder.trunk.blocks[0].mlp.activation(x), exact)
    torch.testing.assert_close(model.sam_mask_decoder.transformer.layers[0].mlp.activation(x), x.clamp(min=0))


def test_logits_are_float32_before_anything_is_scaled(model, image):
    half = copy.deepcopy(model).to(torch.bfloat16)
    features = ImageFeatures(*(level.bfloat16() for level in image))
    answer = half.decode_masks(half.without_memory(features), features, multimask=True, unprompted=True)
    assert answer.logits.dtype == answer.iou.dtype == answer.object_score.dtype == torch.float32
    assert ((answer.iou > 0) & (answer.iou < 1)).all()


# memory write

def test_memory_is_made_of_raw_features_and_the_mask_at_image_size(model, frames, image):
    with inputs_of(model.memory_encoder) as calls:
        result = started(model, frames[0]).step(frames[1])
    features, mask = calls[0]
    torch.testing.assert_close(features, image.stride16_bchw)  # neither no_mem_embed nor features conditioned on memory
    assert mask.shape == (1, 1, SIZE, SIZE)
    tracked = F.interpolate(result.objects[1].logits[None, None], size=(SIZE, SIZE), mode='bilinear')
    torch.testing.assert_close(calls[1][1], tracked.sigmoid() * 20 - 10)


def test_only_the_prompted_objects_mask_is_binarised(model, frames):
    tracker = started(model, frames[0], CLICKED, Prompt(2, box=BOX))
    with inputs_of(model.memory_encoder) as calls:
        tracker.step(frames[1], [Prompt(2, points=[(30, 30)], labels=[0])])
    one, two = calls[0][1]
    assert set(two.unique().tolist()) == {-10.0, 10.0}
    assert len(one.unique()) > 100


def test_objects_may_overlap(model, frames):
    results = [started(model, frames[0], CLICKED, Prompt(2, points=[CLICK], labels=[1])).step(frames[1]),
               started(model, frames[0]).step(frames[1])]
    alone = results[1].objects[1].logits
    for object_id in (1, 2):
        torch.testing.assert_close(results[0].objects[object_id].logits, alone, atol=1e-3, rtol=0)


def test_memory_of_an_absent_object_is_marked(model, image):
    masks = ObjectMasks(torch.zeros(2, SIZE // 4, SIZE // 4), torch.ones(2), torch.tensor([1.0, 0.0]),
                        torch.zeros(2, model.config.d_model))
    visible, absent = model.encode_memory(image, masks, torch.tensor([False, False])).float()
    mark = model.no_obj_embed_spatial[0]
    rounding = 2 ** -8 * (visible.abs() + absent.abs())  # both rounded to bfloat16
    assert ((absent - visible - mark).abs() <= rounding).all()


def test_first_release_neither_marks_absence_nor_dates_pointers(model, image):
    """In 2.0, the memory of an absent object is like any other, and the age of a pointer has no effect."""
    first_release = [c for name, c in VARIANTS.items() if name.startswith('sam2_')]
    assert len(first_release) == 4
    assert not any(c.no_object_embedding or c.pointer_time_codes for c in first_release)
    early = Sam2Model(dataclasses.replace(model.config, no_object_embedding=False, pointer_time_codes=False))
    missing, unexpected = early.load_state_dict(model.state_dict(), strict=False)
    assert not missing
    assert sorted(unexpected) == ['no_obj_embed_spatial', 'obj_ptr_tpos_proj.bias', 'obj_ptr_tpos_proj.weight']
    masks = ObjectMasks(torch.zeros(2, SIZE // 4, SIZE // 4), torch.ones(2), torch.tensor([1.0, -1.0]),
                        torch.zeros(2, model.config.d_model))
    visible, absent = early.encode_memory(image, masks, torch.tensor([False, False]))
    assert torch.equal(visible, absent)
    memory = filled(model, 5)
    later = memory._replace(pointer_ages=memory.pointer_ages + 7)
    assert torch.equal(early.attend_memory(image, memory), early.attend_memory(image, later))
    assert (model.attend_memory(image, memory) - model.attend_memory(image, later)).abs().max() > 0.01


def test_memory_is_stored_in_bfloat16_whatever_the_model_computes_in(model, image):
    masks = ObjectMasks(torch.zeros(1, SIZE // 4, SIZE // 4), torch.ones(1), torch.ones(1), torch.zeros(1, 96))
    assert model.dtype == torch.float32
    assert model.encode_memory(image, masks, torch.tensor([True])).dtype == torch.bfloat16


def test_mask_prompt_is_the_answer_and_the_decoder_only_makes_its_pointer(model, image):
    mask = torch.zeros(1, 1, SIZE, SIZE)
    mask[..., 70:141, 33:110] = 1
    adopted = model.adopt_masks(image, mask)
    low = triangle_resize(mask[0, 0].double().numpy(), SIZE // 4) * 20 - 10
    np.testing.assert_allclose(adopted.logits[0].numpy(), low, atol=1e-4)
    assert float(adopted.iou) == 1
    assert float(adopted.object_score) == 10

    raw = image.stride16_bchw  # without no_mem_embed
    prompt = F.conv2d(mask, model.mask_downsample.weight, model.mask_downsample.bias, stride=4)
    single = model.decode_masks(raw, image, mask_logits=prompt, unprompted=True)
    torch.testing.assert_close(adopted.pointers, model.choose_masks(single).pointers)
    three = model.choose_masks(model.decode_masks(raw, image, mask_logits=prompt, multimask=True, unprompted=True))
    assert (adopted.pointers - three.pointers).abs().max() > 0.01


def test_empty_mask_prompt_says_that_the_object_is_absent(model, image):
    adopted = model.adopt_masks(image, torch.zeros(1, 1, SIZE, SIZE))
    assert float(adopted.object_score) == -10
    assert torch.equal(adopted.pointers, model.no_obj_ptr)


# memory read

def test_first_frame_gets_the_embedding_of_no_memory(model, frames, image):
    with inputs_of(model.sam_mask_decoder) as decoder, inputs_of(model.memory_attention) as attention:
        started(model, frames[0])
    torch.testing.assert_close(decoder[0][0], image.stride16_bchw + model.no_mem_embed.view(1, -1, 1, 1))
    assert not attention


def test_correction_reads_memory_and_replaces_the_tracked_frame(model, frames):
    tracker = started(model, frames[0])
    with inputs_of(model.sam_mask_decoder) as decoder:
        tracker.step(frames[1], [Prompt(1, points=[(30, 30)], labels=[0])])
    assert len(decoder) == 2
    torch.testing.assert_close(decoder[1][0], decoder[0][0])  # the features that tracking used
    with inputs_of(model.memory_attention) as attention:
        tracker.step(frames[2])
    tokens = model.grid ** 2
    memory = attention[0][2]
    assert memory.shape[1] == 2 * tokens + 2 * 3  # frames 0 and 1, once each, and their pointers of three tokens


def filled(model, count, conditioning=(0,)):
    """Return a bank after ``count`` frames; frame i holds the number i."""
    bank = MemoryBank(model.config, 4, model.device, model.dtype)
    for i in range(count):
        bank.write(torch.full((model.grid ** 2, model.config.memory_dim), float(i), dtype=torch.bfloat16),
                   torch.full((model.config.d_model,), float(i)), i in conditioning)
    return stack_memories([bank])


def test_time_slots_of_memories(model):
    """Conditioning frames have the last slot, the frame k back has slot k - 1, and missing frames are omitted."""
    memory = filled(model, 10)
    found = dict(zip(memory.frames[0, :, 0, 0].tolist(), memory.time_slots[0].tolist(), strict=True))
    assert found == {0: 6, 9: 0, 8: 1, 7: 2, 6: 3, 5: 4, 4: 5}
    early = filled(model, 2)
    assert dict(zip(early.frames[0, :, 0, 0].tolist(), early.time_slots[0].tolist(), strict=True)) == {0: 6, 1: 0}


def test_pointers_reach_fifteen_frames_back_and_to_the_conditioning_frames(model):
    memory = filled(model, 25)
    found = dict(zip(memory.pointers[0, :, 0].tolist(), memory.pointer_ages[0].tolist(), strict=True))
    assert found == {0: 25, **{25 - k: k for k in range(1, 16)}}


def test_pointer_ages_count_in_fifteenths_from_the_first_frame_on(model, frames):
    tracker = started(model, frames[0])
    with inputs_of(model.memory_attention) as calls:
        tracker.step(frames[1])
    half = model.config.d_model // 2
    waves = [1 / 15 / 10000 ** (2 * (i // 2) / half) for i in range(half)]  # neighbouring channels share a frequency
    code = [math.sin(w) for w in waves] + [math.cos(w) for w in waves]  # all sines first
    expected = model.obj_ptr_tpos_proj(torch.tensor(code))
    position, pieces = calls[0][3][0], model.config.d_model // model.config.memory_dim
    torch.testing.assert_close(position[-pieces:], expected.expand(pieces, -1), atol=1e-5, rtol=0)


def test_sine_of_time_has_sines_first_and_pairs_of_one_frequency():
    code = sine_time(torch.tensor([0.7]), 8)[0].tolist()
    waves = [0.7, 0.7, 0.7 / 100, 0.7 / 100]
    assert code == pytest.approx([math.sin(w) for w in waves] + [math.cos(w) for w in waves], abs=1e-6)


def test_pointer_is_cut_into_tokens_that_come_last(model, image):
    memory = filled(model, 1)
    pointer = torch.arange(float(model.config.d_model))
    memory = memory._replace(pointers=pointer[None, None])
    with inputs_of(model.memory_attention) as calls:
        model.attend_memory(image, memory)
    read = calls[0][2][0]
    assert read.shape == (model.grid ** 2 + 3, 32)
    assert torch.equal(read[-3:], pointer.view(3, 32))


def rotated(x, side, theta=10000.0):
    """Rotate by definition: pairs are complex numbers; columns rotate the first half of the pairs, rows the second."""
    pairs = np.ascontiguousarray(x.double().numpy()).view(np.complex128)
    quarter = pairs.shape[-1] // 2
    frequency = theta ** (-np.arange(quarter) / quarter)
    token = np.arange(x.shape[-2])[:, None] % (side * side)
    angle = np.concatenate(((token % side) * frequency, (token // side) * frequency), axis=1)
    return torch.from_numpy((pairs * np.exp(1j * angle)).view(np.float64))


def test_pointer_tokens_skip_rotation():
    torch.manual_seed(0)
    side, dim, pointers = 4, 16, 3
    attention = RotaryAttention(dim, num_heads=1, dim_kv=8)
    query, key, value = torch.randn(1, 16, dim), torch.randn(1, 32 + pointers, 8), torch.randn(1, 32 + pointers, 8)
    ours = attention(query, key, value, RotaryTable(dim, side, side, 10000.0), pointers)
    keys = attention.k_proj(key)[0]
    keys = torch.cat((rotated(keys[:32], side), keys[32:].double()))  # two frames of 16 tokens, each from its corner
    scores = rotated(attention.q_proj(query)[0], side) @ keys.T / dim ** 0.5
    expected = attention.out_proj((scores.softmax(-1) @ attention.v_proj(value)[0].double()).float())
    torch.testing.assert_close(ours[0], expected, atol=1e-5, rtol=0)


def test_positions_enter_the_query_once_by_a_tenth_and_the_keys_but_not_the_values(model, image):
    memory = filled(model, 3)
    layers = model.memory_attention.layers
    with contextlib.ExitStack() as stack:
        first, key, read, last = (stack.enter_context(inputs_of(module)) for module in (
            layers[0].norm1, layers[1].cross_attn_image.k_proj, layers[1].cross_attn_image,
            model.memory_attention.norm))
        attended = model.attend_memory(image, memory)
    raw = image.stride16_bchw.flatten(2).transpose(1, 2)
    position = sine_grid(model.config.d_model, model.grid, model.grid).flatten(1).T
    torch.testing.assert_close(first[0][0], raw + 0.1 * position)

    tokens = model.grid ** 2
    frames = memory.frames[0].float().flatten(0, 1)
    _, _, values, *_ = read[0]
    torch.testing.assert_close(values[0, :3 * tokens], frames)
    grid = sine_grid(model.config.memory_dim, model.grid, model.grid).flatten(1).T
    slots = model.maskmem_tpos_enc[memory.time_slots[0], 0, 0]
    torch.testing.assert_close(key[0][0][0, :3 * tokens], frames + (grid[None] + slots[:, None]).flatten(0, 1))
    normed = F.layer_norm(last[0][0], (model.config.d_model,), model.memory_attention.norm.weight,
                          model.memory_attention.norm.bias)
    torch.testing.assert_close(attended.flatten(2).transpose(1, 2), normed)


def test_sine_grid_counts_from_one_rows_first_and_alternates():
    grid = sine_grid(8, 3, 5)
    for row, column in ((0, 0), (2, 3)):
        y, x = (row + 1) / (3 + 1e-6) * 2 * math.pi, (column + 1) / (5 + 1e-6) * 2 * math.pi
        expected = [f(v / s) for v in (y, x) for s in (1, 100) for f in (math.sin, math.cos)]
        assert grid[:, row, column].tolist() == pytest.approx(expected, abs=1e-5)


# image encoder

@pytest.mark.parametrize(('name', 'windows'), [
    ('sam2.1_hiera_tiny', [8, 8, 4, 4, 14, 0, 14, 0, 14, 0, 14, 7]),
    ('sam2.1_hiera_small', [8, 8, 4, 4, 14, 14, 14, 0, 14, 14, 0, 14, 14, 0, 14, 7]),
])
def test_window_changes_one_block_after_the_stage(name, windows):
    with torch.device('meta'):
        blocks = Sam2Model(VARIANTS[name]).image_encoder.trunk.blocks
    assert [block.window for block in blocks] == windows
    pooled = [i for i, block in enumerate(blocks) if block.pool_queries]
    assert pooled == [1, 3, len(blocks) - 2]  # the first block of the stages after the first


def test_shortcut_of_a_pooled_block_is_the_pooled_projection_of_the_normed_input(model):
    block = copy.deepcopy(model.image_encoder.trunk.blocks[1])
    for branch in (block.attn.proj, block.mlp.layers[-1]):
        branch.weight.zero_()
        branch.bias.zero_()
    x = torch.randn(1, 16, 16, block.norm1.weight.shape[0], generator=torch.Generator().manual_seed(0))
    projected = block.proj(block.norm1(x))
    expected = projected.view(1, 8, 2, 8, 2, -1).amax(dim=(2, 4))
    torch.testing.assert_close(block(x), expected)


def test_position_is_a_resized_background_and_a_repeated_window(model):
    trunk = model.image_encoder.trunk
    position = trunk.position(24, 16)[0]
    background = F.interpolate(trunk.pos_embed, size=(24, 16), mode='bicubic')[0].permute(1, 2, 0)
    window = trunk.pos_embed_window[0].permute(1, 2, 0)
    for row, column in ((0, 0), (9, 15), (23, 8)):
        torch.testing.assert_close(position[row, column], background[row, column] + window[row % 8, column % 8])


def test_pyramid_adds_the_nearest_of_the_deepest_level_to_stride_16_alone(model):
    neck = model.image_encoder.neck
    generator = torch.Generator().manual_seed(0)
    channels = [conv.conv.weight.shape[1] for conv in neck.convs][::-1]
    levels = [torch.randn(1, c, 16 >> i, 16 >> i, generator=generator) for i, c in enumerate(channels)]
    stride4, stride8, stride16 = neck(levels)
    lateral = [conv(level) for conv, level in zip(neck.convs, levels[::-1], strict=True)]
    torch.testing.assert_close(stride4, lateral[3])
    torch.testing.assert_close(stride8, lateral[2])
    torch.testing.assert_close(stride16, lateral[1] + lateral[0].repeat_interleave(2, 2).repeat_interleave(2, 3))
