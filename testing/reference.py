"""Reference for sam2_core: the independent SAM 2 of transformers, with random weights.

The weights are drawn by drawn_weights.py. They are renamed to the layout of the published checkpoints, so that
sam2_core loads them exactly as it loads a published file. Nothing here is taken from sam2_core: shapes, names and rules
of the stream are written a second time, from the published configuration files and tracker.
"""
from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import (
    EdgeTamConfig,
    EdgeTamModel,
    EdgeTamVideoModel,
    Sam2Config,
    Sam2HieraDetConfig,
    Sam2VideoConfig,
    Sam2VideoModel,
    Sam2VisionConfig,
)
from transformers import Sam2Model as Sam2ImageModel
from transformers.models.sam2_video.configuration_sam2_video import (
    Sam2VideoMaskDecoderConfig,
    Sam2VideoPromptEncoderConfig,
)

from testing.drawn_weights import weight_of

VideoModel = Sam2VideoModel | EdgeTamVideoModel
_IMAGE_TYPES = {Sam2VideoModel: (Sam2Config, Sam2ImageModel), EdgeTamVideoModel: (EdgeTamConfig, EdgeTamModel)}

IMAGE_SIZE = 256
GROUND_MARGIN = 60  # pixels that the ground of a scene moves before it starts again


class _Size(NamedTuple):
    """One row of the published configuration files."""

    embed_dim: int
    heads: int
    blocks: tuple[int, int, int, int]
    global_blocks: tuple[int, ...]
    windows: tuple[int, int, int, int]
    background: int
    d_model: int = 256
    memory_dim: int = 64
    memory_layers: int = 4
    feedforward: int = 2048
    decoder_heads: int = 8
    iou_hidden: int = 256


_SIZES = {
    'tiny': _Size(96, 1, (1, 2, 7, 2), (5, 7, 9), (8, 4, 14, 7), 7),
    'small': _Size(96, 1, (1, 2, 11, 2), (7, 10, 13), (8, 4, 14, 7), 7),
    'base_plus': _Size(112, 2, (2, 3, 16, 3), (12, 16, 20), (8, 4, 14, 7), 14),
    'large': _Size(144, 2, (2, 6, 36, 4), (23, 33, 43), (8, 4, 16, 8), 7),
}
_NANO = _Size(32, 1, (1, 2, 4, 1), (4, 6), (8, 4, 8, 8), 8, d_model=96, memory_dim=32, memory_layers=2,
              feedforward=256, decoder_heads=4, iou_hidden=128)


def reference_config(name: str, image_size: int = IMAGE_SIZE) -> Sam2VideoConfig:
    """Return the transformers configuration of a published variant ('sam2.1_hiera_tiny', ...) or of nano."""
    size = _NANO if name == 'nano' else _SIZES[name.split('_hiera_')[1]]
    is_21 = not name.startswith('sam2_hiera_')
    dims = [size.embed_dim << i for i in range(4)]
    sides = [image_size // stride for stride in (4, 8, 16)]
    backbone = Sam2HieraDetConfig(
        hidden_size=size.embed_dim, num_attention_heads=size.heads, image_size=[image_size] * 2,
        blocks_per_stage=list(size.blocks), embed_dim_per_stage=dims,
        num_attention_heads_per_stage=[size.heads << i for i in range(4)],
        window_size_per_stage=list(size.windows), global_attention_blocks=list(size.global_blocks),
        window_positional_embedding_background_size=[size.background] * 2)
    vision = Sam2VisionConfig(
        backbone_config=backbone, backbone_channel_list=dims[::-1], fpn_hidden_size=size.d_model,
        backbone_feature_sizes=[[side, side] for side in sides])
    return Sam2VideoConfig(
        vision_config=vision,
        prompt_encoder_config=Sam2VideoPromptEncoderConfig(hidden_size=size.d_model, image_size=image_size),
        mask_decoder_config=Sam2VideoMaskDecoderConfig(
            hidden_size=size.d_model, mlp_dim=size.feedforward, num_attention_heads=size.decoder_heads,
            iou_head_hidden_dim=size.iou_hidden),
        image_size=image_size, memory_attention_hidden_size=size.d_model,
        memory_attention_num_layers=size.memory_layers, memory_attention_feed_forward_hidden_size=size.feedforward,
        memory_attention_rope_feat_sizes=[sides[-1]] * 2, memory_encoder_hidden_size=size.d_model,
        memory_encoder_output_channels=size.memory_dim, mask_downsampler_embed_dim=size.d_model,
        memory_fuser_embed_dim=size.d_model, memory_fuser_intermediate_dim=size.d_model * 4,
        enable_occlusion_spatial_embedding=is_21, enable_temporal_pos_encoding_for_object_pointers=is_21)


def reference_model(name: str, image_size: int = IMAGE_SIZE, seed: int = 0) -> Sam2VideoModel:
    """Return a Sam2VideoModel with random weights that give every part an effect."""
    config = reference_config(name, image_size)
    model = Sam2VideoModel(config).eval().requires_grad_(False)
    if config.memory_encoder_output_channels != 64:  # transformers hard-codes the published 64
        for layer in model.memory_attention.layers:
            attention = layer.cross_attn_image
            for projection in ('k_proj', 'v_proj'):
                setattr(attention, projection, nn.Linear(config.memory_encoder_output_channels,
                                                         config.memory_attention_hidden_size))
        model.requires_grad_(False)
    _draw_weights(model, torch.Generator().manual_seed(seed))
    return model


def image_model(video: VideoModel) -> Sam2ImageModel | EdgeTamModel:
    """Return the model for single images that shares the weights of ``video``."""
    config_type, model_type = _IMAGE_TYPES[type(video)]
    config = config_type(vision_config=video.config.vision_config,
                         prompt_encoder_config=video.config.prompt_encoder_config.to_dict(),
                         mask_decoder_config=video.config.mask_decoder_config.to_dict())
    with torch.device('meta'):  # its weights are never allocated
        model = model_type(config).eval()
    for part in ('shared_image_embedding', 'vision_encoder', 'prompt_encoder', 'mask_decoder', 'no_memory_embedding'):
        setattr(model, part, getattr(video, part))
    return model


def _draw_weights(model: nn.Module, generator: torch.Generator) -> None:
    for name, parameter in model.named_parameters():
        parameter.copy_(weight_of(published_name(name), torch.randn(parameter.shape, generator=generator)))
    gaussian = torch.randn(model.shared_image_embedding.positional_embedding.shape, generator=generator)
    model.shared_image_embedding.positional_embedding.copy_(gaussian)
    model.prompt_encoder.shared_embedding.positional_embedding.copy_(gaussian)  # one matrix, published once


def set_object_score_bias(model: VideoModel, bias: float) -> None:
    """Make objects visible (a few units above zero) or absent (below)."""
    model.mask_decoder.pred_obj_score_head.proj_out.bias.fill_(bias)


_NAMES = [(re.compile(pattern), name) for pattern, name in (
    (r'^vision_encoder\.backbone\.', 'image_encoder.trunk.'),
    (r'^vision_encoder\.neck\.convs\.(\d)\.', r'image_encoder.neck.convs.\1.conv.'),
    (r'patch_embed\.projection\.', 'patch_embed.proj.'),
    (r'^(image_encoder\.trunk\.blocks\.\d+\.mlp\.|mask_decoder\.transformer\.layers\.\d\.mlp\.)proj_in\.',
     r'\1layers.0.'),
    (r'^(image_encoder\.trunk\.blocks\.\d+\.mlp\.|mask_decoder\.transformer\.layers\.\d\.mlp\.)proj_out\.',
     r'\1layers.1.'),
    (r'^prompt_encoder\.shared_embedding\.positional_embedding$',
     'sam_prompt_encoder.pe_layer.positional_encoding_gaussian_matrix'),
    (r'^prompt_encoder\.mask_embed\.conv1\.', 'sam_prompt_encoder.mask_downscaling.0.'),
    (r'^prompt_encoder\.mask_embed\.layer_norm1\.', 'sam_prompt_encoder.mask_downscaling.1.'),
    (r'^prompt_encoder\.mask_embed\.conv2\.', 'sam_prompt_encoder.mask_downscaling.3.'),
    (r'^prompt_encoder\.mask_embed\.layer_norm2\.', 'sam_prompt_encoder.mask_downscaling.4.'),
    (r'^prompt_encoder\.mask_embed\.conv3\.', 'sam_prompt_encoder.mask_downscaling.6.'),
    (r'^prompt_encoder\.', 'sam_prompt_encoder.'),
    (r'^mask_decoder\.upscale_conv1\.', 'mask_decoder.output_upscaling.0.'),
    (r'^mask_decoder\.upscale_layer_norm\.', 'mask_decoder.output_upscaling.1.'),
    (r'^mask_decoder\.upscale_conv2\.', 'mask_decoder.output_upscaling.3.'),
    (r'^mask_decoder\.', 'sam_mask_decoder.'),
    (r'^object_pointer_proj\.', 'obj_ptr_proj.'),
    # three linear layers: the middle one is called layers.0 in transformers
    (r'((?:mlps\.\d|_head)|^obj_ptr_proj)\.layers\.0\.', r'\1.layers.1.'),
    (r'((?:mlps\.\d|_head)|^obj_ptr_proj)\.proj_in\.', r'\1.layers.0.'),
    (r'((?:mlps\.\d|_head)|^obj_ptr_proj)\.proj_out\.', r'\1.layers.2.'),
    (r'^memory_encoder\.mask_downsampler\.final_conv\.', 'memory_encoder.mask_downsampler.encoder.12.'),
    (r'^memory_encoder\.feature_projection\.', 'memory_encoder.pix_feat_proj.'),
    (r'^memory_encoder\.projection\.', 'memory_encoder.out_proj.'),
    (r'^memory_encoder\.memory_fuser\.', 'memory_encoder.fuser.'),
    (r'\.depthwise_conv\.', '.dwconv.'),
    (r'\.pointwise_conv(\d)\.', r'.pwconv\1.'),
    (r'(fuser\.layers\.\d)\.scale$', r'\1.gamma'),
    (r'^temporal_positional_encoding_projection_layer\.', 'obj_ptr_tpos_proj.'),
    (r'^memory_temporal_positional_encoding$', 'maskmem_tpos_enc'),
    (r'^no_memory_embedding$', 'no_mem_embed'),
    (r'^no_memory_positional_encoding$', 'no_mem_pos_enc'),
    (r'^no_object_pointer$', 'no_obj_ptr'),
    (r'^occlusion_spatial_embedding_parameter$', 'no_obj_embed_spatial'),
    (r'\.o_proj\.', '.out_proj.'),
    (r'\.layer_norm_final_attn\.', '.norm_final_attn.'),
)]
_DOWNSAMPLER = re.compile(r'^memory_encoder\.mask_downsampler\.layers\.(\d)\.(conv|layer_norm)\.')
_POINT_EMBEDDINGS = 'sam_prompt_encoder.point_embed.weight'
_DUPLICATE = 'shared_image_embedding.positional_embedding'


def published_name(key: str) -> str:
    """Return the published name of a parameter or buffer of Sam2VideoModel."""
    key = _DOWNSAMPLER.sub(
        lambda m: f'memory_encoder.mask_downsampler.encoder.{int(m[1]) * 3 + (m[2] == "layer_norm")}.', key)
    for pattern, name in _NAMES:
        key = pattern.sub(name, key)
    return re.sub(r'layer_norm', 'norm', key)


def published_state(model: nn.Module, name: Callable[[str], str] = published_name) -> dict[str, Tensor]:
    """Return the weights with the names of the published checkpoints; ``name`` converts them."""
    state = {name(key): value.clone() for key, value in model.state_dict().items() if key != _DUPLICATE}
    for i, row in enumerate(state.pop(_POINT_EMBEDDINGS)):
        state[f'sam_prompt_encoder.point_embeddings.{i}.weight'] = row[None].clone()
    return state


def load_published(model: nn.Module, state: Mapping[str, Tensor],
                   name: Callable[[str], str] = published_name) -> None:
    """Load weights with published names into a model of transformers; raise KeyError for a missing name."""
    points = [state[f'sam_prompt_encoder.point_embeddings.{i}.weight'] for i in range(4)]
    state = {**state, _POINT_EMBEDDINGS: torch.cat(points)}
    own = {key: state['sam_prompt_encoder.pe_layer.positional_encoding_gaussian_matrix' if key == _DUPLICATE
                      else name(key)].to(value.dtype) for key, value in model.state_dict().items()}
    model.load_state_dict(own)


def pixel_values(image: np.ndarray) -> Tensor:
    """Normalise a uint8 RGB image of exactly the model's size as published: (1, 3, S, S)."""
    pixels = torch.from_numpy(image).permute(2, 0, 1).float() / 255
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    return ((pixels - mean[:, None, None]) / std[:, None, None])[None]


class Encoded(NamedTuple):
    """One frame, encoded once by transformers for all objects."""

    pixels: Tensor
    levels: list[Tensor]  # (tokens, 1, channels), strides 4 (projected), 8 (projected), 16
    positions: list[Tensor]

    def maps(self, model: VideoModel) -> list[Tensor]:
        """Return the levels as (1, channels, h, w)."""
        return [level.permute(1, 2, 0).unflatten(-1, size) for level, size in
                zip(self.levels, model.backbone_feature_sizes, strict=True)]


@torch.inference_mode()
def encode(model: VideoModel, image: np.ndarray) -> Encoded:
    """Encode an image with transformers."""
    pixels = pixel_values(image)
    features = model.get_image_features(pixels, return_dict=True)
    return Encoded(pixels, list(features.fpn_hidden_states), list(features.fpn_position_encoding))


def smooth_texture(random: np.random.Generator, size: int) -> np.ndarray:
    """Return smooth colours with grain, uint8 (size, size, 3)."""
    coarse = torch.from_numpy(random.random((1, 3, max(2, size // 16), max(2, size // 16)), dtype=np.float32))
    smooth = F.interpolate(coarse, size=(size, size), mode='bicubic')[0].clamp(0, 1).permute(1, 2, 0).numpy()
    grain = random.random((size, size, 1), dtype=np.float32) * 0.2
    return ((smooth * 0.8 + grain) * 255).astype(np.uint8)


def exact_texture(random: np.random.Generator, size: int) -> np.ndarray:
    """Return blocks of colour with grain, uint8 (size, size, 3), from integers: the same on every machine."""
    blocks = random.integers(0, 206, (size // 16 + 1, size // 16 + 1, 3)).repeat(16, axis=0).repeat(16, axis=1)
    return (blocks[:size, :size] + random.integers(0, 50, (size, size, 1))).astype(np.uint8)


def moving_scene(count: int, size: int = IMAGE_SIZE, seed: int = 0,
                 texture: Callable[[np.random.Generator, int], np.ndarray] = smooth_texture) -> list[np.ndarray]:
    """Return frames, uint8 RGB (size, size, 3): a textured square and a disc cross a textured ground.

    A longer scene starts with the frames of a shorter one.
    """
    random = np.random.default_rng(seed)
    ground = texture(random, size + 2 * GROUND_MARGIN)
    patch = texture(random, size // 3)
    y, x = np.mgrid[:size, :size]
    frames = []
    for i in range(count):
        down, right = i % GROUND_MARGIN, 2 * i % GROUND_MARGIN
        frame = ground[down:down + size, right:right + size].copy()
        top, left = size // 4 + 2 * i % (size // 3), size // 8 + 5 * i % (size // 2)
        frame[top:top + len(patch), left:left + len(patch)] = patch
        frame[(y - size * 0.7) ** 2 + (x - size * 0.75 + 4 * i % size) ** 2 < (size / 9) ** 2] = (220, 60, 40)
        frames.append(frame)
    return frames


def as_points(points: Sequence[Sequence[float]] = (), labels: Sequence[int] = (),
              box: Sequence[float] | None = None) -> tuple[Tensor, Tensor]:
    """Convert clicks and a box to points as the published tracker does: corners of the box first, labels 2 and 3."""
    corners = [] if box is None else [[box[0], box[1]], [box[2], box[3]]]
    kinds = [] if box is None else [2, 3]
    return torch.tensor([*corners, *points], dtype=torch.float32), torch.tensor([*kinds, *labels])
