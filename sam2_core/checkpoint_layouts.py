"""Conversion of checkpoints of other programs to the published names; errors say what a checkpoint is instead."""
from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sam2_core.checkpoint_files import CheckpointError

_PARTS = ('image_encoder', 'memory_attention', 'memory_encoder', 'sam_prompt_encoder', 'sam_mask_decoder',
          'mask_downsample', 'obj_ptr_proj')
_OF_IMAGES = {'image_encoder', 'sam_prompt_encoder', 'sam_mask_decoder'}
_VECTORS = ('maskmem_tpos_enc', 'no_mem_embed', 'no_mem_pos_enc', 'no_obj_ptr', 'no_obj_embed_spatial',
            'obj_ptr_tpos_proj')
_TRANSFORMERS_ROOTS = {
    'vision_encoder': 'image_encoder', 'prompt_encoder': 'sam_prompt_encoder', 'mask_decoder': 'sam_mask_decoder',
    'object_pointer_proj': 'obj_ptr_proj', 'temporal_positional_encoding_projection_layer': 'obj_ptr_tpos_proj',
    'memory_temporal_positional_encoding': 'maskmem_tpos_enc', 'no_memory_embedding': 'no_mem_embed',
    'no_memory_positional_encoding': 'no_mem_pos_enc', 'no_object_pointer': 'no_obj_ptr',
    'occlusion_spatial_embedding_parameter': 'no_obj_embed_spatial', 'shared_image_embedding': ''}
_ROOTS = {*_PARTS, *_VECTORS, *_TRANSFORMERS_ROOTS, 'spatial_perceiver'}
_ENCODERS = ('image_encoder', 'vision_encoder')

_PREFERRED = ('model', 'state_dict', 'model_state_dict', 'module')  # keys to prefer if a file has several state dicts
_NOT_WEIGHTS = re.compile(r'optim|sched|scaler|rng', re.IGNORECASE)
# Names that DDP, torch.compile and FSDP insert.
_WRAPPERS = {'module', '_orig_mod', '_fsdp_wrapped_module', '_checkpoint_wrapped_module'}
_ADAPTER = re.compile(r'\.(base_layer|(lora|hada|lokr|ia3|oft|boft|vera)_\w+|modules_to_save)(\.|$)')

_SUPPORTED = 'only SAM 2, SAM 2.1 and EdgeTAM are supported; give one of those'
_OTHERS = (  # other models, and patterns of keys that only these have
    ('a SAM 3', (r'(^|\.)(detector|detector_model|sam3_model)\.', r'(^|\.)(tracker|tracker_model|sam2_predictor)\.')),
    ('a SAM 3', (r'(^|\.)(detr_encoder\.|geometry_encoder\.|vision_encoder\.backbone\.layers\.\d+\.)',)),
    ('an HQ-SAM', (r'mask_decoder\.(hf_token|hq_token)\.',)),
    ('a MobileSAM', (r'(^|\.)image_encoder\.(layers\.\d+\.blocks|patch_embed\.seq)\.',)),
    ('a SAM 1', (r'(^|\.)(image_encoder\.blocks|vision_encoder\.layers)\.\d+\.',)),
    ('a Hiera without the rest of SAM 2', (r'^(encoder\.|trunk\.)?blocks\.\d+\.attn\.qkv\.',
                                           r'^(encoder\.|trunk\.)?pos_embed')),
)

_THREE_LAYERS = r'(output_hypernetworks_mlps\.\d+|iou_prediction_head|pred_obj_score_head|obj_ptr_proj)\.'
_PERCEIVER = r'^(spatial_perceiver\.layers\.\d+)\.'
_RENAMED = [(re.compile(pattern), name) for pattern, name in (  # applied in this order, after the root
    (r'^(image_encoder)\.backbone\.timm_model\.', r'\1.trunk.body.'),
    (r'^(memory_attention\.layers\.\d+)\.mlp\.up_proj\.', r'\1.linear1.'),
    (r'^(memory_attention\.layers\.\d+)\.mlp\.down_proj\.', r'\1.linear2.'),
    (r'^spatial_perceiver\.latents_1d$', 'spatial_perceiver.latents'),
    (_PERCEIVER + r'layer_norm_input\.', r'\1.attn.norm_x.'),
    (_PERCEIVER + r'layer_norm_latents\.', r'\1.attn.norm_latents.'),
    (_PERCEIVER + r'layer_norm_self\.', r'\1.self_attn.norm.'),
    (_PERCEIVER + r'cross_attention\.', r'\1.attn.'),
    (_PERCEIVER + r'self_attention\.', r'\1.self_attn.'),
    (_PERCEIVER + r'((?:self_)?attn)\.([qkv])_proj\.', r'\1.\2.to_\3.'),
    (_PERCEIVER + r'((?:self_)?attn)\.o_proj\.', r'\1.\2.to_out.'),
    (_PERCEIVER + r'(self_)?mlp\.layer_norm\.', r'\1.\2ff.0.'),
    (_PERCEIVER + r'(self_)?mlp\.up_proj\.', r'\1.\2ff.1.'),
    (_PERCEIVER + r'(self_)?mlp\.down_proj\.', r'\1.\2ff.3.'),
    (r'^(image_encoder)\.backbone\.', r'\1.trunk.'),
    (r'^(image_encoder\.neck\.convs\.\d+)\.(?!conv\.)', r'\1.conv.'),
    (r'\.patch_embed\.projection\.', '.patch_embed.proj.'),
    (r'(\.layers\.\d+|\.blocks\.\d+)\.mlp\.proj_in\.', r'\1.mlp.layers.0.'),
    (r'(\.layers\.\d+|\.blocks\.\d+)\.mlp\.proj_out\.', r'\1.mlp.layers.1.'),
    (r'\.mask_embed\.conv1\.', '.mask_downscaling.0.'),
    (r'\.mask_embed\.layer_norm1\.', '.mask_downscaling.1.'),
    (r'\.mask_embed\.conv2\.', '.mask_downscaling.3.'),
    (r'\.mask_embed\.layer_norm2\.', '.mask_downscaling.4.'),
    (r'\.mask_embed\.conv3\.', '.mask_downscaling.6.'),
    (r'\.upscale_conv1\.', '.output_upscaling.0.'),
    (r'\.upscale_layer_norm\.', '.output_upscaling.1.'),
    (r'\.upscale_conv2\.', '.output_upscaling.3.'),
    (r'\.mask_downsampler\.final_conv\.', '.mask_downsampler.encoder.12.'),
    (r'\.feature_projection\.', '.pix_feat_proj.'),
    (r'^memory_encoder\.projection\.', 'memory_encoder.out_proj.'),
    (r'\.memory_fuser\.', '.fuser.'),
    (r'(\.fuser\.layers\.\d+)\.scale$', r'\1.gamma'),
    (r'\.depthwise_conv\.', '.dwconv.'),
    (r'\.pointwise_conv(\d)\.', r'.pwconv\1.'),
    (r'\.o_proj\.', '.out_proj.'),
    (r'\.layer_norm', '.norm'),
)]
_DOWNSAMPLER = re.compile(r'\.mask_downsampler\.layers\.(\d+)\.(conv|layer_norm)\.')
_HEADS = re.compile(_THREE_LAYERS + r'(proj_in|layers\.(\d+)|proj_out)\.')
_GAUSSIAN = 'sam_prompt_encoder.pe_layer.positional_encoding_gaussian_matrix'
_GAUSSIANS = ('shared_image_embedding.positional_embedding', 'prompt_encoder.shared_embedding.positional_embedding')


def published_weights(content: Any, path: Path | str) -> dict[str, Tensor]:
    """Return the weights in the content of a checkpoint with their published names.

    Supported are state dicts, bare or in a dict (``{"model": ...}``, ``{"state_dict": ...}``, ...), with the prefixes
    of DDP, torch.compile, FSDP, Lightning and averaged models, and with the names of transformers. Raise
    CheckpointError, which says what the content is, for anything else.
    """
    weights = _state_dict(content, path)
    _refuse_adapters(weights, path)
    _refuse_others(weights, path)
    weights = _without_wrappers(_without_prefix(weights, path), path)
    if any(key.partition('.')[0] in _TRANSFORMERS_ROOTS for key in weights):
        weights = _from_transformers(weights, path)
    _refuse_parts(weights, path)
    for key, value in weights.items():
        if value.is_meta or value.is_quantized or value.is_complex() or value.layout != torch.strided:
            kind = 'meta' if value.is_meta else f'{value.dtype}, {value.layout}'
            raise CheckpointError(f'checkpoint {path}: {key} is a tensor without plain numbers ({kind}): save dense '
                                  f'floating-point weights')
    return weights


def _state_dict(content: Any, path: Path | str) -> dict[str, Tensor]:
    found = dict(_state_dicts(content))
    if not found:
        raise CheckpointError(f'checkpoint {path}: no state dict in it, but {_described(content)}: expected '
                              f'{{"model": {{name: tensor}}}}, as published')
    known = {where: weights for where, weights in found.items()
             if any(not _ROOTS.isdisjoint(key.split('.')) for key in weights)} or found
    for name in _PREFERRED:
        chosen = [weights for where, weights in known.items() if where and where[-1] == name]
        if len(known) > 1 and len(chosen) == 1:
            return chosen[0]
    if len(known) > 1:
        raise CheckpointError(f'checkpoint {path}: several models, under {", ".join(".".join(w) for w in known)}: save '
                              f'only one of them, torch.save({{"model": ...}}, ...)')
    return next(iter(known.values()))


def _state_dicts(content: Any, where: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], dict[str, Tensor]]]:
    if not isinstance(content, dict) or len(where) > 3:
        return
    weights = {key: value for key, value in content.items() if isinstance(key, str) and isinstance(value, Tensor)}
    if any('.' in key for key in weights):
        yield where, weights
        return
    for key, value in content.items():
        if isinstance(key, str) and not _NOT_WEIGHTS.search(key):
            yield from _state_dicts(value, (*where, key))


def _described(content: Any) -> str:
    if not isinstance(content, dict):
        return f'an object of type {type(content).__name__}'
    keys = [key for key in content if isinstance(key, str)]
    if {'state', 'param_groups'} <= set(keys) or any(_NOT_WEIGHTS.search(key) for key in keys):
        return 'the state of an optimizer without the weights'
    if any(isinstance(value, np.ndarray) for inner in (content, *content.values()) if isinstance(inner, dict)
           for value in inner.values()):
        return 'numpy arrays, which torch.from_numpy() converts to tensors'
    if content and not keys:
        return f'keys that are not names ({", ".join(repr(key) for key in list(content)[:3])})'
    return f'a dict of {", ".join(keys[:4])}' if keys else 'an empty dict'


def _refuse_adapters(weights: dict[str, Tensor], path: Path | str) -> None:
    adapters = [key for key in weights if _ADAPTER.search(key)]
    if not adapters:
        return
    if any('.base_layer.' in key or _ENCODERS[0] in key and not _ADAPTER.search(key) for key in weights):
        raise CheckpointError(f'checkpoint {path}: adapters beside the weights ({adapters[0]}): merge them before '
                              f'saving, model.merge_and_unload()')
    raise CheckpointError(f'checkpoint {path}: adapters without their model ({adapters[0]}): load both with peft, '
                          f'call merge_and_unload(), and save the state dict')


def _refuse_others(weights: dict[str, Tensor], path: Path | str) -> None:
    for model, patterns in _OTHERS:
        if all(any(re.search(pattern, key) for key in weights) for pattern in patterns):
            raise CheckpointError(f'checkpoint {path}: {model}: {_SUPPORTED}')
    for key, value in weights.items():
        if key.endswith('image_encoder.trunk.pos_embed') and value.ndim == 3:
            raise CheckpointError(f'checkpoint {path}: an EfficientTAM: {_SUPPORTED}')


def _without_prefix(weights: dict[str, Tensor], path: Path | str) -> dict[str, Tensor]:
    """Remove the prefix of the model's names, and with it the weights of other modules."""
    prefixes: Counter[str] = Counter()
    whole = set()
    for key in weights:
        names = key.split('.')
        place = next((i for i, name in enumerate(names) if name in _ROOTS), None)
        if place is not None:
            prefix = ''.join(f'{name}.' for name in names[:place])
            prefixes[prefix] += 1
            if names[place] in _ENCODERS:
                whole.add(prefix)
    if len(whole) > 1:
        raise CheckpointError(f'checkpoint {path}: several models, with the prefixes '
                              f'{", ".join(repr(prefix) for prefix in sorted(whole))}: save only one of them')
    if not prefixes:
        return weights
    prefix = next(iter(whole)) if whole else prefixes.most_common(1)[0][0]
    return {key[len(prefix):]: value for key, value in weights.items() if key.startswith(prefix)}


def _without_wrappers(weights: dict[str, Tensor], path: Path | str) -> dict[str, Tensor]:
    """Remove the names that wrappers of submodules insert."""
    plain = {'.'.join(name for name in key.split('.') if name not in _WRAPPERS): value
             for key, value in weights.items()}
    if len(plain) != len(weights):
        raise CheckpointError(f'checkpoint {path}: names that differ only by {", ".join(sorted(_WRAPPERS))}: save the '
                              f'state dict of the model itself')
    return plain


def _from_transformers(weights: dict[str, Tensor], path: Path | str) -> dict[str, Tensor]:
    gaussians = [weights[key] for key in _GAUSSIANS if key in weights]
    if len(gaussians) == 2 and not torch.equal(*gaussians):
        raise CheckpointError(f'checkpoint {path}: {" and ".join(_GAUSSIANS)} differ: SAM 2 has one matrix for both')
    renamed = {_published_name(key): value for key, value in weights.items() if key not in _GAUSSIANS}
    if gaussians:
        renamed[_GAUSSIAN] = gaussians[0]
    points = renamed.pop('sam_prompt_encoder.point_embed.weight', None)
    for i, row in enumerate(() if points is None else points):
        renamed[f'sam_prompt_encoder.point_embeddings.{i}.weight'] = row[None]
    for key in [key for key in renamed if key.endswith('.to_k.weight')]:
        if (value_key := key.replace('.to_k.', '.to_v.')) in renamed:  # published as one matrix
            both = torch.cat((renamed.pop(key), renamed.pop(value_key)))
            renamed[key.replace('.to_k.', '.to_kv.')] = both
    return renamed


def _published_name(key: str) -> str:
    """Convert the name of a parameter of transformers to the published name; leave published names unchanged."""
    root, dot, rest = key.partition('.')
    key = _TRANSFORMERS_ROOTS.get(root, root) + dot + rest
    key = _DOWNSAMPLER.sub(lambda m: f'.mask_downsampler.encoder.{int(m[1]) * 3 + (m[2] == "layer_norm")}.', key)
    if root in _TRANSFORMERS_ROOTS:  # of three linear layers, transformers numbers only the middle one
        key = _HEADS.sub(lambda m: f'{m[1]}.layers.{0 if m[2] == "proj_in" else 2 if m[3] is None else int(m[3]) + 1}.',
                         key)
    for pattern, name in _RENAMED:
        key = pattern.sub(name, key)
    return key


def _refuse_parts(weights: dict[str, Tensor], path: Path | str) -> None:
    present = {key.partition('.')[0] for key in weights}
    missing = [part for part in _PARTS if part not in present]
    if not missing:
        return
    have = [part for part in _PARTS if part in present]
    if not have:
        raise CheckpointError(f'checkpoint {path}: not a SAM 2 checkpoint, its keys are '
                              f'{", ".join(list(weights)[:3])}, ...: give one of SAM 2, SAM 2.1 or EdgeTAM')
    if re.search(r'-\d+-of-\d+\.\w+$', str(path)):
        cure = 'it is one of several shards: give the .index.json file beside it'
    elif set(have) == _OF_IMAGES:
        cure = 'tracking needs them; this is a model for single images: save the model for videos'
    else:
        cure = 'give a file of the complete model'
    raise CheckpointError(f'checkpoint {path}: only {", ".join(have)} of a SAM 2; {", ".join(missing)} missing: {cure}')
