"""Initialisation of a new model.

With plain initialisation, the masks stay empty for thousands of steps. Two changes shorten that: the mask decoder's
attention begins local (queries and keys share one projection, so a prompt attends to its own place), and the path of
the memory begins as a near copy (remembered features are read back at their own place).
"""
from __future__ import annotations

import torch
from torch import Tensor, nn

from sam2_core.config import Sam2Config
from sam2_core.model import Sam2Model
from sam2_core.nn.attention import Attention
from sam2_core.nn.memory_attention import MemoryAttentionLayer
from sam2_core.nn.memory_encoder import ConvNextBlock
from sam2_core.nn.spatial_perceiver import SpatialPerceiver

_TIED_GAIN = 1.5
_MASK_GAIN = 3.0  # of the mask in a memory frame, beside the image
_DAMPED = 0.3  # gain of the other branches of the memory attention


@torch.no_grad()
def new_model(config: Sam2Config, name: str = 'custom') -> Sam2Model:
    """Return a model to train from nothing, drawn from torch's generator."""
    model = Sam2Model(config, name)
    for key, parameter in model.named_parameters():
        if 'pos_embed' in key or key.startswith(('maskmem_tpos_enc', 'no_mem_embed', 'no_obj_')):
            nn.init.trunc_normal_(parameter, std=0.02)
    for module in model.modules():
        if isinstance(module, ConvNextBlock):
            module.gamma.fill_(0.1)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=0.3)
        elif isinstance(module, SpatialPerceiver):
            for latents in (module.latents, module.latents_2d):  # equal ones would stay equal
                nn.init.normal_(latents)
    for module in model.sam_mask_decoder.transformer.modules():
        if isinstance(module, Attention):
            nn.init.orthogonal_(module.q_proj.weight, gain=_TIED_GAIN)
            module.k_proj.weight.copy_(module.q_proj.weight)
            module.q_proj.bias.zero_()
            module.k_proj.bias.zero_()
    return model


@torch.no_grad()
def start_memory(model: Sam2Model, features_bchw: Tensor) -> None:
    """Initialise the path of the memory, given stride-16 features of some images from a trained image encoder."""
    channels = features_bchw.float().transpose(0, 1).flatten(1)
    mean, std = channels.mean(dim=1), channels.std(dim=1).clamp(min=1e-3)
    encoder, attention = model.memory_encoder, model.memory_attention
    _set(attention.norm, std, mean)
    _set(encoder.pix_feat_proj, torch.diag(1 / std)[..., None, None], -mean / std)
    downsampled = encoder.mask_downsampler.encoder[-1]
    assert isinstance(downsampled, nn.Conv2d)
    downsampled.weight.mul_(_MASK_GAIN)
    out = encoder.out_proj.weight[..., 0, 0]  # (memory_dim, d_model)
    nn.init.orthogonal_(out)
    _set(encoder.out_proj, out[..., None, None])
    eye = torch.eye(model.config.d_model, device=out.device)
    for layer in attention.layers:
        assert isinstance(layer, MemoryAttentionLayer)
        cross = layer.cross_attn_image
        for projection, weight in ((cross.q_proj, 1.2 * eye), (cross.k_proj, out.T), (cross.v_proj, 1.5 * out.T),
                                   (cross.out_proj, eye)):
            _set(projection, weight)
        layer.self_attn.out_proj.weight.mul_(_DAMPED)
        layer.linear2.weight.mul_(_DAMPED)


def _set(layer: nn.LayerNorm | nn.Conv2d | nn.Linear, weight: Tensor, bias: Tensor | None = None) -> None:
    """Set the weight and the bias of a layer; None sets the bias to 0."""
    layer.weight.copy_(weight)
    assert layer.bias is not None
    if bias is None:
        layer.bias.zero_()
    else:
        layer.bias.copy_(bias)
