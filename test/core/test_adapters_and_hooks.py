"""Adapters and hooks take effect: fast paths read the weights of plain layers only."""
import copy
import re

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations, prune

from sam2_core import ImageSegmenter, Prompt, StreamTracker, load_model
from sam2_core.approximations import quantize_encoder
from sam2_core.export.graph_model import GraphModel
from sam2_core.nn import attention, hiera, layers, mask_decoder, memory_attention, neck, prompt_encoder, repvit
from sam2_core.nn.attention import RotaryAttention
from sam2_core.nn.hiera import MultiScaleAttention
from sam2_core.nn.position import RotaryTable
from sam2_core.tensors import Memory
from sam2_core.training.adapters import merged_state
from testing.small_edgetam import small_edgetam

SIZE = 64  # grids of 16, 8, 4 and 2: some windows of 8, 4 and 8 fit, others are padded
ADAPTED = (nn.Linear, nn.Conv2d, nn.Embedding)
both_trunks = pytest.mark.parametrize('model', ['nano', 'small edgetam'], indirect=True)


@pytest.fixture(scope='module')
def model(request):
    """Return nano at a tiny size, or the small EdgeTAM; in both, every object is visible."""
    if getattr(request, 'param', 'nano') != 'nano':
        return small_edgetam()
    model = load_model('nano', device='cpu', image_size=SIZE)
    model.sam_mask_decoder.pred_obj_score_head.layers[-1].bias.fill_(4.0)
    return model


@pytest.fixture(scope='module')
def peft():
    return pytest.importorskip('peft', reason='needs peft')


def layers_of(model):
    return [name for name, module in model.named_modules() if type(module) in ADAPTED]


def answers(model):
    """Return all outputs of the stages of a model for one image, memory and prompt of each kind."""
    generator = torch.Generator().manual_seed(1)

    def draw(*shape):
        return torch.randn(*shape, generator=generator)

    size, config = model.image_size, model.config
    image = model.encode_image(draw(1, 3, size, size))
    memory = Memory(draw(2, 2, config.memory_tokens, config.memory_dim), torch.tensor([[6, 0]] * 2),
                    draw(2, 2, config.d_model), torch.tensor([[5, 1]] * 2))
    attended = model.attend_memory(image, memory)
    points, labels = torch.tensor([[[9.0, 20.0], [40.0, 50.0], [30.0, 5.0]]]), torch.tensor([[2, 3, 0]])
    decoded = [model.decode_masks(attended, image, multimask=True, unprompted=True),
               model.decode_masks(model.without_memory(image), image, points, labels,
                                 draw(1, 1, size // 4, size // 4), True),
               model.decode_masks(model.without_memory(image), image, points, labels - 1, multimask=True)]
    masks = model.adopt_masks(image, (draw(1, 1, size, size) > 0).float())
    remembered = model.memory_encoder(image.stride16_bchw, draw(1, 1, size, size) * 10)  # encode_memory rounds to it
    if model.spatial_perceiver is not None:
        remembered = model.spatial_perceiver(remembered.flatten(2).transpose(1, 2), model.grid_position)
    pointers = [model.obj_ptr_proj(one.tokens) for one in decoded]
    return [part.detach().float() for part in (*image, attended, *(p for d in decoded for p in d), *pointers,
                                               masks.pointers, remembered)]


def adaptable(model, kinds=ADAPTED):
    """Return the names of the layers that can have an adapter: peft adapts no grouped convolution."""
    return [name for name in layers_of(model) if type(layer := model.get_submodule(name)) in kinds
            and getattr(layer, 'groups', 1) == 1]


def largest(ours, theirs):
    """Return the largest difference, as a share of the largest value of its tensor."""
    return max(float((a - b).abs().max() / b.abs().max().clamp(min=1e-3)) for a, b in zip(ours, theirs, strict=True))


def adapt(peft, model, target, **options):
    """Add adapters with random weights to the layers whose names match."""
    peft.inject_adapter_in_model(peft.LoraConfig(target_modules=target, **{'r': 2, **options}), model)
    generator = torch.Generator().manual_seed(2)
    for name, parameter in model.named_parameters():
        if 'lora_' in name and 'magnitude' not in name:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.1
    return model.eval().requires_grad_(False)


def merged(model):
    """Return the model with plain layers, into whose weights peft has merged the adapters."""
    model = copy.deepcopy(model)
    for name, module in list(model.named_modules()):
        if hasattr(module, 'base_layer'):
            module.merge()
            parent, _, leaf = name.rpartition('.')
            setattr(model.get_submodule(parent), leaf, module.base_layer)
    return model


@pytest.fixture
def asked(monkeypatch):
    """Return the names of all layers that fast paths inspect."""
    found = set()

    def record(module):
        found.add(module)
        return layers.is_plain(module)

    for place in (attention, hiera, memory_attention, neck, repvit):
        monkeypatch.setattr(place, 'is_plain', record)
    monkeypatch.setattr('sam2_core.model.is_plain', record)
    def rows(embedding, count):
        record(embedding)
        return layers.all_rows(embedding, count)

    for place in (mask_decoder, prompt_encoder):
        monkeypatch.setattr(place, 'all_rows', rows)
    return found


@both_trunks
@torch.inference_mode()
def test_every_layer_that_a_fast_path_reads_works_with_an_adapter(peft, model, asked, rounds):
    """Test one layer at a time: adapters must have an effect, the same as merged weights."""
    base = answers(model)
    fast = [name for name in layers_of(model) if model.get_submodule(name) in asked]
    assert len(fast) > 30
    ignored, different = [], {}
    for name in rounds([name for name in fast if name in adaptable(model)], adaptable(model)):
        parent, leaf = model.get_submodule(name.rpartition('.')[0]), name.rpartition('.')[2]
        plain = getattr(parent, leaf)
        weight = plain.weight.clone()
        try:
            adapt(peft, model, re.escape(name))
            ours = answers(model)
            getattr(parent, leaf).merge()
            setattr(parent, leaf, plain)
            expected = answers(model)
        finally:
            setattr(parent, leaf, plain)
            plain.weight.copy_(weight)
            del model.peft_config
        if largest(expected, base) > 1e-4 > largest(ours, base) * 10:
            ignored.append(name)
        if (error := largest(ours, expected)) > 1e-4:
            different[name] = error
    assert (ignored, different) == ([], {})


@both_trunks
@pytest.mark.parametrize('options', [{}, {'use_dora': True}, {'use_rslora': True, 'lora_bias': True}], ids=str)
def test_all_layers_at_once_work_with_adapters(peft, model, options):
    """Adapters act alike in inference, with gradients (nothing is fused) and when merged, and not when disabled."""
    kinds = (nn.Linear, nn.Conv2d) if options else ADAPTED
    names = [name for name in adaptable(model, kinds)  # peft merges no bias into a layer without one
             if 'lora_bias' not in options or model.get_submodule(name).bias is not None]
    adapted = adapt(peft, copy.deepcopy(model), '|'.join(map(re.escape, names)), **options)
    with torch.inference_mode():
        base, ours, of_merged = answers(model), answers(adapted), answers(merged(adapted))
    with torch.enable_grad():
        plain = answers(adapted)
    assert largest(ours, base) > 0.01
    assert largest(ours, plain) < 1e-3
    assert largest(ours, of_merged) < 1e-3
    for module in adapted.modules():
        if hasattr(module, 'enable_adapters'):
            module.enable_adapters(False)
    with torch.inference_mode():
        assert largest(answers(adapted), base) < 1e-4


@both_trunks
def test_trained_adapters_are_saved_merged(peft, model):
    layers = r'.*(qkv|channel_mixer\.conv1\.c|convs\.\d\.conv|conv_s0|v_proj|mlp\.layers\.\d)'
    adapted = adapt(peft, copy.deepcopy(model), layers, r=3, lora_alpha=5)
    state, written = merged_state(adapted), copy.deepcopy(model)
    assert state.keys() == model.state_dict().keys()
    written.load_state_dict(state)
    with torch.inference_mode():
        ours = answers(adapted)
        assert largest(answers(written), ours) < 1e-3 < largest(answers(model), ours)


def test_a_tracker_runs_on_a_peft_model_and_on_what_it_merges_to(peft, model, scene):
    config = peft.LoraConfig(r=2, init_lora_weights=False, target_modules=r'.*cross_attn_image\.(v_proj|out_proj)')
    tuned = peft.get_peft_model(copy.deepcopy(model), config).eval()

    def logits(model):
        tracker = StreamTracker(model)
        tracker.step(scene.image(0), [Prompt(1, box=scene.box(1))])
        return tracker.step(scene.image(1)).objects[1].logits

    ours, base = logits(tuned), logits(model)
    assert (ours - base).abs().max() > 0.01
    torch.testing.assert_close(logits(tuned.merge_and_unload()), ours, atol=1e-3, rtol=0)


def video(model, scene):
    """Run a stream with a prompt of each kind, and a single image."""
    tracker = StreamTracker(model)
    tracker.step(scene.image(0), [Prompt(1, box=scene.box(1)), Prompt(2, mask=scene.truth(2, 0))])
    tracker.step(scene.image(1))
    tracker.step(scene.image(2), [Prompt(1, points=[(80, 70)], labels=[1])])
    segmenter = ImageSegmenter(model)
    segmenter.segment(segmenter.encode(scene.image(0)), Prompt(points=[(70, 70)], labels=[1]))


@both_trunks
@pytest.mark.parametrize('register', ['register_forward_hook', 'register_forward_pre_hook'])
def test_hooks_of_every_layer_are_called_in_a_video(model, scene, register):
    model = copy.deepcopy(model)
    silent = {}
    for name in layers_of(model):
        module = model.get_submodule(name)
        silent[module] = name
        getattr(module, register)(lambda module, *_: silent.pop(module, None) and None)
    for _ in range(2):  # the second run must not use anything cached by the first
        expected, silent_before = set(silent.values()), dict(silent)
        video(model, scene)
        assert set(silent.values()) == set(), f'of {len(expected)}'
        silent.update(silent_before)


@both_trunks
def test_global_hooks_see_every_layer(model, scene):
    seen = set()
    handle = nn.modules.module.register_module_forward_hook(lambda module, *_: seen.add(module))
    try:
        video(model, scene)
    finally:
        handle.remove()
    assert [name for name in layers_of(model) if model.get_submodule(name) not in seen] == []


@both_trunks
@torch.inference_mode()
def test_tensors_that_a_hook_keeps_are_not_changed_afterwards(model):
    """In-place rotations and activations would overwrite the tensors that a hook has recorded."""
    model = copy.deepcopy(model)
    kept = []
    for name in layers_of(model):
        model.get_submodule(name).register_forward_hook(
            lambda module, inputs, output: kept.append((module, output, output.clone())))
    answers(model)
    changed = {name for module, output, then in kept if not torch.equal(output, then)
               for name, other in model.named_modules() if other is module}
    assert len(kept) > 100 and changed == set()


@torch.no_grad()
@pytest.mark.parametrize('observed', ['attn', 'attn.qkv', 'mlp.layers.0'])
def test_a_hook_in_the_encoder_sees_all_windows_at_once(observed, monkeypatch):
    model = load_model('nano', device='cpu', image_size=128)
    monkeypatch.setattr(hiera, 'NUMBERS_AT_ONCE', 1)
    shapes = []
    model.image_encoder.trunk.blocks[0].get_submodule(observed).register_forward_hook(
        lambda module, inputs, output: shapes.append(tuple(inputs[0].shape)))
    model.encode_image(torch.zeros(1, 3, 128, 128))
    assert shapes == [(1, 32, 32, 32)]


class Shifted(nn.Linear):
    """Subclass that adds one to the result."""

    def forward(self, x):
        return super().forward(x) + 1


def replace(change):
    def changed(cross, name):
        setattr(cross, name, change(getattr(cross, name)))
    return changed


def patched_forward(layer):
    plain = layer.forward
    layer.forward = lambda x: plain(x) + 1


def subclass(layer):
    layer.__class__ = Shifted


def hook_that_changes(layer):
    layer.register_forward_hook(lambda module, inputs, output: output + 1)


def pre_hook_that_changes(layer):
    layer.register_forward_pre_hook(lambda module, inputs: (inputs[0] + 1,))


def spectral_norm(layer):
    parametrizations.spectral_norm(layer).eval()


def weight_norm(layer):
    parametrizations.weight_norm(layer)
    layer.parametrizations.weight.original0.data.mul_(2)


def pruned(layer):
    prune.l1_unstructured(layer, 'weight', amount=0.5)


@torch.no_grad()
@pytest.mark.parametrize('name', ['q_proj', 'k_proj', 'v_proj', 'out_proj'])
@pytest.mark.parametrize('change', [patched_forward, subclass, hook_that_changes, pre_hook_that_changes, spectral_norm,
                                    weight_norm, pruned], ids=lambda change: change.__name__)
def test_attention_calls_projections_that_were_replaced(name, change):
    torch.manual_seed(0)
    cross, table = RotaryAttention(32, num_heads=1, dim_kv=8), RotaryTable(32, 4, 4, 10000.0)
    query, key, value = torch.randn(1, 16, 32), torch.randn(1, 35, 8) * 3, torch.randn(1, 35, 8)
    before = cross(query, key, value, table, 3)
    change(getattr(cross, name))
    cross.eval()
    projected = [projection(x) for projection, x in ((cross.q_proj, query), (cross.k_proj, key), (cross.v_proj, value))]
    keys = torch.cat((table(projected[1][:, :32]), projected[1][:, 32:]), dim=1)
    scores = (table(projected[0]) @ keys.transpose(1, 2) / 32 ** 0.5).softmax(-1)
    after = cross(query, key, value, table, 3)
    torch.testing.assert_close(after, cross.out_proj(scores @ projected[2]), atol=1e-5, rtol=0)
    assert (after - before).abs().max() > 1e-3


@torch.no_grad()
@pytest.mark.parametrize('change', [hook_that_changes, pre_hook_that_changes, subclass], ids=lambda c: c.__name__)
def test_windows_are_padded_before_a_projection_that_is_more_than_its_weights(change):
    torch.manual_seed(0)
    attend, window = MultiScaleAttention(8, 16, num_heads=2, pool_queries=False), 4
    change(attend.qkv)
    picture = torch.randn(2, 6, 10, 8)
    padded = F.pad(picture, (0, 0, 0, 2, 0, 2)).view(2, 2, window, 3, window, 8).transpose(2, 3)
    windows = attend(padded.reshape(-1, window, window, 8))
    joined = windows.view(2, 2, 3, window, window, 16).transpose(2, 3).reshape(2, 8, 12, 16)
    torch.testing.assert_close(attend(picture, window), joined[:, :6, :10], atol=1e-6, rtol=1e-5)


@torch.no_grad()
def test_another_convolution_in_place_of_a_1x1_is_called(model):
    """The weight of a 3x3 convolution of class nn.Conv2d could be misread as that of a 1x1 convolution."""
    model = copy.deepcopy(model)
    model.sam_mask_decoder.conv_s0 = wider = nn.Conv2d(96, 12, kernel_size=3, padding=1)
    picture = torch.randn(1, 3, SIZE, SIZE)
    level = model.image_encoder.trunk(picture)[0]
    expected = wider(model.image_encoder.neck.convs[3](level))
    torch.testing.assert_close(model.encode_image(picture).stride4_bchw, expected)


def test_exporting_or_quantising_adapters_and_hooks_is_refused(peft, model):
    adapted = adapt(peft, copy.deepcopy(model), r'.*blocks\.0\.attn\.qkv')
    with pytest.raises(ValueError, match=r'blocks\.0\.attn\.qkv replaced by Linear: .* merge adapters'):
        GraphModel(adapted)
    with pytest.raises(ValueError, match=r'int8_encoder on nano with image_encoder\.trunk\.blocks\.0\.attn\.qkv'):
        quantize_encoder(adapted)
    hooked = copy.deepcopy(model)
    hooked.sam_mask_decoder.conv_s0.register_forward_hook(lambda *_: None)
    with pytest.raises(ValueError, match=r'nano with hooks on sam_mask_decoder\.conv_s0: graphs cannot run hooks'):
        GraphModel(hooked)
    GraphModel(merged(adapted))
