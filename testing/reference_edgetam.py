"""Reference for EdgeTAM: the independent EdgeTamVideoModel of transformers, with random weights.

Its trunk needs timm, which the tests do without: they put the trunk of sam2_core in its place, whose results
test_edgetam.py compares with those of the official implementation. With timm, its own trunk runs.
"""
from __future__ import annotations

import re
from collections.abc import Mapping
from importlib.util import find_spec
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import (
    EdgeTamVideoConfig,
    EdgeTamVideoModel,
    EdgeTamVisionConfig,
    PreTrainedConfig,
    Sam2HieraDetConfig,
    TimmWrapperConfig,
)
from transformers.models.edgetam_video.configuration_edgetam_video import EdgeTamVideoPromptEncoderConfig
from transformers.models.edgetam_video.modeling_edgetam_video import EdgeTamVideoInferenceSession

from sam2_core.config import RepVitConfig
from sam2_core.nn.repvit import RepVit
from testing import reference
from testing.drawn_weights import drawn_weights
from testing.reference_stream import Followed, ReferenceObject

HAS_TIMM = find_spec('timm') is not None


class _Levels(NamedTuple):
    last_hidden_state: list[Tensor]
    hidden_states: None = None


class _OurTrunk(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.trunk = RepVit(RepVitConfig())

    def forward(self, pixel_values: Tensor, **options: object) -> _Levels:
        return _Levels(self.trunk(pixel_values))


def edgetam_config(image_size: int) -> EdgeTamVideoConfig:
    """Return the configuration of the published checkpoint, whose flags are not the defaults."""
    sides = [image_size // stride for stride in (4, 8, 16)]
    vision = EdgeTamVisionConfig(backbone_config=_backbone(), backbone_feature_sizes=[[side, side] for side in sides])
    return EdgeTamVideoConfig(
        vision_config=vision, prompt_encoder_config=EdgeTamVideoPromptEncoderConfig(image_size=image_size),
        image_size=image_size, memory_attention_rope_feat_sizes=[sides[-1]] * 2,
        enable_occlusion_spatial_embedding=False, enable_temporal_pos_encoding_for_object_pointers=False)


def _backbone() -> PreTrainedConfig:
    if not HAS_TIMM:
        return Sam2HieraDetConfig()  # replaced by _OurTrunk
    return TimmWrapperConfig(architecture='repvit_m1.dist_in1k', num_labels=0,
                             model_args={'in_chans': 3, 'features_only': True, 'out_indices': [0, 1, 2, 3]})


def edgetam_model(image_size: int = reference.IMAGE_SIZE) -> EdgeTamVideoModel:
    """Return an EdgeTamVideoModel with drawn weights."""
    model = _new_model(image_size)
    _load(model, drawn_weights(published_state(model)))
    return model


def with_weights(state: Mapping[str, Tensor]) -> EdgeTamVideoModel:
    """Return an EdgeTamVideoModel with weights of published names."""
    model = _new_model(reference.IMAGE_SIZE)
    _load(model, state)
    return model


def _new_model(image_size: int) -> EdgeTamVideoModel:
    model = EdgeTamVideoModel(edgetam_config(image_size))
    if not HAS_TIMM:
        model.vision_encoder.backbone = _OurTrunk()
    return model.eval().requires_grad_(False)


def _load(model: EdgeTamVideoModel, state: Mapping[str, Tensor]) -> None:
    parts = {}
    for key in [key for key in state if key.endswith('.to_kv.weight')]:
        parts[key.replace('to_kv', 'to_k')], parts[key.replace('to_kv', 'to_v')] = state[key].chunk(2)
    reference.load_published(model, {**state, **parts}, _published_name)


def published_state(model: EdgeTamVideoModel) -> dict[str, Tensor]:
    """Return the weights with the names of the published checkpoint, which has keys and values in one matrix."""
    state = reference.published_state(model, _published_name)
    for key in [key for key in state if key.endswith('.to_k.weight')]:
        values = state.pop(key.replace('to_k', 'to_v'))
        state[key.replace('to_k', 'to_kv')] = torch.cat((state.pop(key), values))
    return state


_NAMES = [(re.compile(pattern), name) for pattern, name in (
    (r'^vision_encoder\.backbone\.trunk\.', 'image_encoder.trunk.'),
    (r'^vision_encoder\.backbone\.timm_model\.', 'image_encoder.trunk.body.'),
    (r'^(memory_attention\.layers\.\d)\.mlp\.up_proj\.', r'\1.linear1.'),
    (r'^(memory_attention\.layers\.\d)\.mlp\.down_proj\.', r'\1.linear2.'),
    (r'^spatial_perceiver\.latents_1d$', 'spatial_perceiver.latents'),
    (r'^(spatial_perceiver\.layers\.\d)\.layer_norm_input\.', r'\1.attn.norm_x.'),
    (r'^(spatial_perceiver\.layers\.\d)\.layer_norm_latents\.', r'\1.attn.norm_latents.'),
    (r'^(spatial_perceiver\.layers\.\d)\.layer_norm_self\.', r'\1.self_attn.norm.'),
    (r'^(spatial_perceiver\.layers\.\d)\.cross_attention\.', r'\1.attn.'),
    (r'^(spatial_perceiver\.layers\.\d)\.self_attention\.', r'\1.self_attn.'),
    (r'^(spatial_perceiver\S*)\.([qkv])_proj\.', r'\1.to_\2.'),
    (r'^(spatial_perceiver\S*)\.o_proj\.', r'\1.to_out.'),
    (r'^(spatial_perceiver\.layers\.\d\.(?:self_)?)mlp\.layer_norm\.', r'\1ff.0.'),
    (r'^(spatial_perceiver\.layers\.\d\.(?:self_)?)mlp\.up_proj\.', r'\1ff.1.'),
    (r'^(spatial_perceiver\.layers\.\d\.(?:self_)?)mlp\.down_proj\.', r'\1ff.3.'),
)]


def _published_name(key: str) -> str:
    for pattern, name in _NAMES:
        key = pattern.sub(name, key)
    return reference.published_name(key)


class EdgeTamObject(ReferenceObject):
    """Object that EdgeTamVideoModel tracks in a stream.

    transformers stores memory as float32, the published tracker as bfloat16.
    """

    session_type = EdgeTamVideoInferenceSession
    correction_options = {'run_mem_encoder': False}

    @staticmethod
    def frame_of(features: Tensor) -> Tensor:
        """Return a memory frame (tokens, memory_dim), as stored, from the features of transformers."""
        return features[0].bfloat16()

    def _encode_prompted(self, time: int, output: dict) -> None:
        features, positions = self.model._encode_new_memory(
            self.session.cache.get_vision_features(time)['vision_feats'][-1],
            F.interpolate(output['pred_masks'], scale_factor=4.0, mode='bilinear'), output['object_score_logits'], True)
        self.conditioning[time] |= {'maskmem_features': features, 'maskmem_pos_enc': positions}
        self._round(time)

    def _forward(self, time: int, frame: reference.Encoded) -> Followed:
        result = super()._forward(time, frame)
        self._round(time)
        return result

    def _round(self, time: int) -> None:
        stored = self.conditioning.get(time) or self.others[time]
        stored['maskmem_features'] = stored['maskmem_features'].bfloat16()
