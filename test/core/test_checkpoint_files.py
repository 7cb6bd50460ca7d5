"""Checkpoints of other programs load if they hold a SAM 2; errors say what any other file is."""
import argparse
import collections
import gzip
import json
import pathlib
import pickle
import re
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from sam2_core import VARIANTS, CheckpointError, Sam2Model, load_model
from sam2_core.checkpoint import check_finite, find_weights, read_checkpoint, read_weights
from sam2_core.checkpoint_layouts import published_weights
from testing import comparisons, reference, reference_edgetam
from testing.drawn_weights import drawn_weights

NANO = find_weights('nano')


@pytest.fixture(scope='module')
def weights():
    return load_file(NANO)


@pytest.fixture
def refused(tmp_path):
    """Return a function that returns the error for the content of a file."""
    def text(content, name='file.pt'):
        path = content if isinstance(content, pathlib.Path) else tmp_path / name
        if isinstance(content, bytes):
            path.write_bytes(content)
        elif path is not content:
            torch.save(content, path)
        with pytest.raises(CheckpointError) as caught:
            read_checkpoint(path)
        error, found = caught.value, ''
        assert str(path) in str(error)
        while error is not None:  # the text of a traceback
            found += str(error)
            error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
        assert not re.search('weights_only|trust|torch.load', found)
        return str(caught.value).replace(str(path), 'FILE')
    return text


def under(prefix, weights):
    return {prefix + key: value for key, value in weights.items()}


class Harmless:
    """Class of a program that is not installed where its checkpoint is read."""


# --- layouts that load

WRAPPED = {
    'bare': lambda w: w,
    'published': lambda w: {'model': w},
    'ordered': lambda w: collections.OrderedDict(w),
    'DDP': lambda w: under('module.', w),
    'compiled': lambda w: {'model': under('_orig_mod.', w)},
    'DDP of a compiled one': lambda w: under('module._orig_mod.', w),
    'compiled DDP in Lightning': lambda w: {'state_dict': under('model._orig_mod.module.', w), 'epoch': 3},
    'a part compiled': lambda w: {k.replace('image_encoder.', 'image_encoder._orig_mod.'): v for k, v in w.items()},
    'parts wrapped': lambda w: {k.replace('s.0.', 's.0._checkpoint_wrapped_module.'): v for k, v in w.items()},
    'Lightning': lambda w: {'state_dict': {**under('model.', w), 'loss.weight': torch.ones(2), 'n.n': torch.ones(1)},
                            'pytorch-lightning_version': '2.5', 'loops': {}, 'optimizer_states': [{'state': {}}]},
    'any other prefix': lambda w: under('net.sam2.', w),
    'average': lambda w: {'n_averaged': torch.tensor(3), **under('module.', w)},
    'EMA alone': lambda w: {'ema': w, 'step': 3},
    'EMA beside': lambda w: {'ema': {k: v + 1 for k, v in w.items()}, 'model': w},
    'trainer': lambda w: {'model_state_dict': w, 'optimizer': {'state': {0: {'exp_avg': torch.ones(2)}}}, 'epoch': 3},
    'nested': lambda w: {'checkpoint': {'net': w}},
    'parameters': lambda w: {k: nn.Parameter(v) for k, v in w.items()},
    'numbers of numpy': lambda w: {'model': w, 'best': np.float64(0.5), 'loss': np.array([1.0, 2.0]), 'n': np.int64(2)},
    'arguments': lambda w: {'model': w, 'args': argparse.Namespace(lr=1e-4, output=pathlib.PosixPath('/tmp'))},
    'metadata': lambda w: {'model': {**w, '_extra_state': None}},
}


@pytest.mark.parametrize('wrap', WRAPPED.values(), ids=WRAPPED)
def test_weights_load_however_they_were_wrapped(tmp_path, weights, wrap):
    found = published_weights(wrap(weights), 'file')
    assert found.keys() == weights.keys()
    assert all(torch.equal(found[key], value) for key, value in weights.items())


@pytest.mark.parametrize('wrap', [WRAPPED[name] for name in (
    'Lightning', 'parameters', 'numbers of numpy', 'arguments')])
def test_extra_content_of_training_programs_is_ignored(tmp_path, weights, wrap):
    torch.save(wrap(weights), tmp_path / 'file.pt')
    name, found = read_checkpoint(tmp_path / 'file.pt')
    assert name == 'nano' and found.keys() == weights.keys()


@pytest.mark.parametrize(('name', 'save'), [
    ('safetensors.pt', lambda w, path: save_file(w, path)),
    ('pickle.safetensors', lambda w, path: torch.save({'model': w}, path)),
    ('old', lambda w, path: torch.save(w, path, _use_new_zipfile_serialization=False)),
])
def test_the_content_decides_not_the_suffix(tmp_path, weights, name, save):
    save(weights, tmp_path / name)
    assert read_checkpoint(tmp_path / name)[1].keys() == weights.keys()


@pytest.fixture(scope='module')
def theirs():
    return reference.reference_model('nano', 256)


def test_transformers_weights_load_and_compute_the_same(tmp_path, theirs):
    theirs.save_pretrained(tmp_path)
    ours = load_model('nano', tmp_path / 'model.safetensors', device='cpu')
    for key, value in reference.published_state(theirs).items():  # renamed by an independent table
        assert torch.equal(ours.state_dict()[key], value), key
    pair = comparisons.Pair('nano', ours, theirs)
    assert max(comparisons.encoder_errors(pair).values()) < 1e-3


def test_transformers_shards_load_by_their_index(tmp_path, theirs, refused):
    theirs.save_pretrained(tmp_path, max_shard_size='3MB')
    whole = read_weights(tmp_path / 'model.safetensors.index.json')
    assert whole.keys() == reference.published_state(theirs).keys()
    shards = sorted(tmp_path.glob('model-*'))
    assert len(shards) > 2
    assert 'one of several shards: give the .index.json file beside it' in refused(shards[1])
    shards[1].unlink()
    assert f'its shard {shards[1].name} is not beside it' in refused(tmp_path / 'model.safetensors.index.json')
    (tmp_path / 'evil.index.json').write_text(json.dumps({'weight_map': {'a': '../../other.safetensors'}}))
    assert 'its shard ../../other.safetensors is not beside it' in refused(tmp_path / 'evil.index.json')


@pytest.mark.parametrize('name', ['sam2_hiera_tiny', 'sam2.1_hiera_base_plus'])
def test_transformers_names_of_published_variants_are_known(name):
    with torch.device('meta'):
        own = Sam2Model(VARIANTS[name]).state_dict()
        state = reference.Sam2VideoModel(reference.reference_config(name)).state_dict()
    found = published_weights({key: torch.zeros(1).expand(value.shape) for key, value in state.items()}, 'file')
    assert {key: value.shape for key, value in found.items()} == {key: value.shape for key, value in own.items()}


@pytest.fixture(scope='module')
def edgetam_weights():
    with torch.device('meta'):
        state = Sam2Model(VARIANTS['edgetam']).state_dict()
    return drawn_weights(state)


def test_published_edgetam_loads_with_its_counts_of_batches(tmp_path, edgetam_weights):
    counts = [key for key, value in edgetam_weights.items() if not value.is_floating_point()]
    assert len(counts) == 106 and all(key.endswith('.bn.num_batches_tracked') for key in counts)
    torch.save({'model': edgetam_weights}, tmp_path / 'mine.pt')
    model = load_model(checkpoint=tmp_path / 'mine.pt', device='cpu', dtype=torch.bfloat16)
    assert model.name == 'edgetam' and model.image_size == 1024
    assert all(torch.equal(value, edgetam_weights[key].to(value.dtype)) for key, value in model.state_dict().items())


def test_edgetam_of_transformers_has_the_same_weights(tmp_path, edgetam_weights):
    """The names of its trunk are those of timm, which is not installed here."""
    theirs = reference_edgetam.with_weights(edgetam_weights)
    state = {key.replace('backbone.trunk.body.', 'backbone.timm_model.'): value.contiguous()
             for key, value in theirs.state_dict().items()}
    save_file(state, tmp_path / 'model.safetensors')
    name, found = read_checkpoint(tmp_path / 'model.safetensors')
    assert name == 'edgetam'
    assert found.keys() == edgetam_weights.keys()
    assert all(torch.equal(value, edgetam_weights[key]) for key, value in found.items())


@pytest.mark.parametrize(('part', 'missing'), [
    ('image_encoder.trunk.body.stages_3.', 'image_encoder.trunk.body.stages_3.downsample'),
    ('spatial_perceiver.', 'spatial_perceiver.latents')])
def test_parts_that_an_edgetam_lacks_are_named(tmp_path, edgetam_weights, part, missing):
    path = tmp_path / 'part.pt'
    torch.save({key: value for key, value in edgetam_weights.items() if not key.startswith(part)}, path)
    with pytest.raises(CheckpointError, match=f'is not edgetam: missing {re.escape(missing)}'):
        read_checkpoint(path, 'edgetam')


def test_transformers_models_for_images_alone_are_named(theirs, refused):
    assert refused(reference.image_model(theirs).state_dict()) == (
        'checkpoint FILE: only image_encoder, sam_prompt_encoder, sam_mask_decoder of a SAM 2; memory_attention, '
        'memory_encoder, mask_downsample, obj_ptr_proj missing: tracking needs them; this is a model for single '
        'images: save the model for videos')


# --- files that are not checkpoints

@pytest.mark.parametrize(('content', 'text'), [
    (b'', 'an empty file: fetch or copy it again'),
    (bytes(5000), '5000 bytes, all zero: fetch or copy it again'),
    (b'version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n', 'a git-lfs pointer, not the weights: run'),
    (b'\n<!DOCTYPE html><html><body>Sign in</body></html>', 'a web page, such as the error or login page'),
    (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', 'a web page'),
    (b'{"model_type": "sam2"}', 'a JSON file, not weights: give the .safetensors or .pt file beside it'),
    (b'{"error": "Repository not found', 'a text file, not weights'),
    (b'ftrt' + bytes(10) + b'x', 'a TensorRT engine: give the checkpoint that it was built from'),
    (b'ptrt' + bytes(10) + b'x', 'a TensorRT engine'),
    (b'\xef\xbb\xbf<!DOCTYPE html><html></html>', 'a web page'),
    (pickle.dumps({'model': [1.0]}), 'damaged, or pickled without torch.save: save it with'),
    (b'GGUF\3', 'a GGUF file'),
    (gzip.compress(b'weights', mtime=0), 'a compressed archive: unpack it'),
    (b'Not Found', r"unknown format, begins with b'Not Found': give a complete file of torch\.save or"),
    (b'PK\3\4' + bytes(3000), 'truncated or damaged, the directory at its end cannot be read: fetch or copy it again'),
    (b'\x80\x02}q\x00(X', 'truncated or not a PyTorch file'),
    ((10 ** 6).to_bytes(8, 'little') + b'{"a": ', 'not a whole safetensors file'),
], ids=lambda value: '' if isinstance(value, bytes) else value[:30])
def test_a_file_is_named_for_what_it_is(refused, content, text):
    assert re.match(f'checkpoint FILE: {text}', refused(content))


def test_exported_graphs_and_programs_are_named(tmp_path, refused):
    onnx = pytest.importorskip('onnx')
    model = onnx.helper.make_model(onnx.helper.make_graph([], 'g', [], []), producer_name='pytorch')
    assert 'an ONNX graph: give the checkpoint that it was exported from' in refused(model.SerializeToString())
    with pytest.warns(DeprecationWarning):
        torch.jit.script(nn.Linear(1, 1)).save(tmp_path / 'program.pt')
    assert 'a TorchScript program: save the weights of the model' in refused(tmp_path / 'program.pt')
    np.savez(tmp_path / 'arrays.npz', a=np.ones(2))
    assert 'numpy arrays: give a PyTorch checkpoint' in refused(tmp_path / 'arrays.npz')
    torch.export.save(torch.export.export(nn.Linear(1, 1), (torch.ones(1),)), tmp_path / 'program.pt2')
    assert 'a program of torch.export: save the weights of the model' in refused(tmp_path / 'program.pt2')
    with zipfile.ZipFile(tmp_path / 'weights.zip', 'w') as archive:
        archive.writestr('model.pt', 'weights')
    assert 'a zip archive of model.pt' in refused(tmp_path / 'weights.zip')


def test_a_folder_and_a_file_that_cannot_be_read_are_named(tmp_path, refused):
    (tmp_path / 'model').mkdir()
    (tmp_path / 'model' / 'model.safetensors').touch()
    assert refused(tmp_path / 'model') == 'checkpoint FILE: a folder: give a file in it, such as model.safetensors'


# --- content that is not a SAM 2

@pytest.mark.parametrize(('content', 'text'), [
    ({0: torch.ones(1), 1: torch.ones(1)}, r'no state dict in it, but keys that are not names \(0, 1\): expected'),
    ({'state': {0: {'exp_avg': torch.ones(2)}}, 'param_groups': []}, 'no state dict in it, but the state of an opt'),
    ({'optimizer': {'state': {}}}, 'no state dict in it, but the state of an optimizer without the weights'),
    ({'epoch': 3, 'loss': 0.5}, 'no state dict in it, but a dict of epoch, loss'),
    ({'model': {'a.weight': np.ones(2, np.float16)}}, 'no state dict in it, but numpy arrays, which torch.from_num'),
    (torch.ones(3), 'no state dict in it, but an object of type Tensor'),
    ({'resnet.conv.weight': torch.ones(1)}, r'not a SAM 2 checkpoint, its keys are resnet\.conv\.weight'),
    ({'a': Harmless()}, r'contains a Python object, \S*Harmless, beside tensors: it was not loaded, because that'),
    (nn.Linear(1, 1), r'contains a Python object, torch\.nn\.modules\.linear\.Linear, beside tensors'),
], ids=lambda value: value if isinstance(value, str) else '')
def test_content_without_weights_is_named(refused, content, text):
    assert re.match(f'checkpoint FILE: {text}', refused(content))


def test_parts_and_extras_of_a_sam2_are_named(weights, refused):
    decoder = {key: value for key, value in weights.items() if key.startswith('sam_mask_decoder')}
    assert re.match(r'checkpoint FILE: only sam_mask_decoder of a SAM 2; image_encoder, memory_attention, .* missing: '
                    r'give a file of the complete model', refused(decoder))
    assert ('is not nano: unexpected criterion.weight; apart from that it is one: save the complete state dict of '
            'the nano, and nothing else') in refused({**weights, 'criterion.weight': torch.ones(2)})
    assert "several models, with the prefixes 'student.', 'teacher.': save only one of them" in refused(
        {**under('teacher.', weights), **under('student.', weights)})
    assert 'several models, under ema, swa: save only one of them' in refused({'ema': weights, 'swa': weights})
    assert 'names that differ only by' in refused(
        {**weights, 'image_encoder.module.trunk.pos_embed': weights['image_encoder.trunk.pos_embed']})


@pytest.mark.parametrize(('model', 'keys'), [
    ('a SAM 3', ['detector.backbone.vision_backbone.trunk.pos_embed', 'tracker.sam_mask_decoder.iou_token.weight']),
    ('a SAM 3', ['detector_model.detr_encoder.layers.0.norm.weight', 'tracker_model.mask_decoder.iou_token.weight']),
    ('a SAM 3', ['vision_encoder.backbone.layers.0.attention.q_proj.weight', 'mask_decoder.iou_token.weight']),
    ('a MobileSAM', ['image_encoder.patch_embed.seq.0.c.weight', 'mask_decoder.iou_token.weight']),
    ('an HQ-SAM', ['image_encoder.blocks.0.attn.qkv.weight', 'mask_decoder.hf_token.weight']),
    ('a SAM 1', ['image_encoder.blocks.0.attn.rel_pos_h', 'mask_decoder.iou_token.weight']),
    ('a Hiera without the rest of SAM 2', ['blocks.0.attn.qkv.weight', 'pos_embed', 'pos_embed_window']),
])
def test_other_models_are_named(refused, model, keys):
    wrong = {key: torch.ones(1) for key in keys}
    for content in (wrong, {'model': wrong}, under('module.', wrong) if 'Hiera' not in model else wrong):
        assert refused(content) == (f'checkpoint FILE: {model}: only SAM 2, SAM 2.1 and EdgeTAM are supported; give '
                                    f'one of those')


def test_transformers_sam1_and_an_efficienttam_are_named(refused):
    from transformers import SamConfig, SamModel
    with torch.device('meta'):
        keys = list(SamModel(SamConfig(vision_config={'num_hidden_layers': 1})).state_dict())
    assert 'FILE: a SAM 1: only SAM 2, ' in refused({key: torch.ones(1) for key in keys})
    assert 'FILE: an EfficientTAM' in refused({'image_encoder.trunk.pos_embed': torch.ones(1, 197, 192)})


def test_adapters_are_named_with_the_way_to_merge_them(tmp_path, weights, refused):
    peft = pytest.importorskip('peft', reason='needs peft')
    model = load_model('nano', device='cpu', image_size=64)
    tuned = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=r'.*\.qkv'))
    tuned.save_pretrained(tmp_path)
    assert re.match(r'checkpoint FILE: adapters without their model \(\S+lora_A\.weight\): load both with peft, '
                    r'call merge_and_unload\(\), and save', refused(tmp_path / 'adapter_model.safetensors'))
    for content in (tuned.state_dict(), model.state_dict()):
        assert 'adapters beside the weights' in refused(content)
    torch.save(tuned.merge_and_unload().state_dict(), tmp_path / 'merged.pt')
    assert read_checkpoint(tmp_path / 'merged.pt')[0] == 'nano'


# --- numbers

@pytest.mark.parametrize(('dtype', 'value'), [
    (torch.float32, float('nan')), (torch.float32, float('inf')), (torch.float32, -float('inf')),
    (torch.float64, float('nan')), (torch.float16, float('nan')), (torch.bfloat16, float('inf')),
    (torch.float8_e5m2, float('nan'))], ids=str)
def test_weights_that_are_not_finite_are_refused_by_name(tmp_path, weights, dtype, value):
    broken = {key: tensor.to(dtype) for key, tensor in weights.items()}
    for key, count in (('no_mem_embed', 1), ('image_encoder.trunk.blocks.3.mlp.layers.0.weight', 7)):
        numbers = weights[key].float().clone()
        numbers.view(-1)[-count:] = value
        broken[key] = numbers.to(dtype)
    torch.save({'model': broken}, tmp_path / 'file.pt')
    first = next(key for key in weights if key in ('no_mem_embed', 'image_encoder.trunk.blocks.3.mlp.layers.0.weight'))
    with pytest.raises(CheckpointError, match=r'file\.pt: 2 of 371 tensors are not finite: .*; in ' + re.escape(first)
                       + r' \d of \d+ values are NaN or infinite: .*; use an earlier checkpoint'):
        load_model('nano', tmp_path / 'file.pt', device='cpu')


def test_a_number_that_is_not_finite_is_found_anywhere(rounds):
    generator = np.random.default_rng(0)
    for _ in range(rounds(200, 20_000)):
        numbers = torch.zeros(tuple(generator.integers(1, 40, generator.integers(0, 4))))
        check_finite({'a': numbers}, 'file')
        numbers.view(-1)[generator.integers(numbers.numel())] = generator.choice([np.nan, np.inf, -np.inf])
        with pytest.raises(CheckpointError):
            check_finite({'a': numbers}, 'file')


def test_weights_beyond_the_asked_type_are_refused_by_name(tmp_path, weights):
    torch.save({'model': {**weights, 'no_obj_ptr': torch.full((1, 96), 70_000.0)}}, tmp_path / 'file.pt')
    for dtype in (torch.float32, torch.bfloat16):
        read_checkpoint(tmp_path / 'file.pt', 'nano', dtype)
    with pytest.raises(CheckpointError, match=r'1 of 371 tensors exceed 65504, the largest torch\.float16; no_obj_ptr '
                                              r'reaches 70000: load it with dtype bfloat16 or float32'):
        load_model('nano', tmp_path / 'file.pt', device='cpu', dtype=torch.float16)
    with pytest.raises(CheckpointError, match=r'a reaches 1e\+300'):
        check_finite({'a': torch.tensor([1e300], dtype=torch.float64), 'n': torch.tensor([2 ** 62])}, 'file')


@pytest.mark.parametrize('odd', [lambda t: t.to('meta'), lambda t: t.to(torch.complex64), lambda t: t.to_sparse()],
                         ids=['meta', 'complex', 'sparse'])
def test_tensors_without_plain_numbers_are_refused(weights, odd):
    with pytest.raises(CheckpointError, match='no_mem_embed is a tensor without plain numbers'):
        published_weights({**weights, 'no_mem_embed': odd(weights['no_mem_embed'])}, 'file')


@pytest.mark.parametrize('dtype', [torch.int8, torch.int32, torch.bool], ids=str)
def test_weights_that_are_not_floating_point_are_refused_by_name(refused, weights, dtype):
    key = 'sam_mask_decoder.iou_token.weight'
    assert f'{key} is {dtype}, must be floating-point; save the weights before they are quantised' in refused(
        {**weights, key: weights[key].to(dtype)})


@pytest.mark.fuzz
@pytest.mark.timeout(1800)
def test_damaged_files_end_in_no_other_error(tmp_path, weights, rounds):
    """Flip, cut off and insert bytes; with few parameters, most of the file is structure."""
    few = {key: value for key, value in weights.items() if value.numel() < 100}
    generator = np.random.default_rng(0)
    path = tmp_path / 'file.pt'
    for save in (lambda: torch.save({'model': few}, path), lambda: save_file(few, path),
                 lambda: torch.save(few, path, _use_new_zipfile_serialization=False)):
        save()
        whole = path.read_bytes()
        for _ in range(rounds(30, 5_000)):
            data = bytearray(whole)
            for _ in range(generator.integers(1, 5)):
                place = int(generator.integers(len(data) if generator.random() < 0.5 else min(len(data), 3000)))
                data[place:place + int(generator.integers(0, 3))] = generator.bytes(int(generator.integers(0, 3)))
            path.write_bytes(bytes(data[:generator.integers(len(data))] if generator.random() < 0.2 else data))
            with pytest.raises(CheckpointError):  # at best, a part of a model is readable
                read_checkpoint(path)
