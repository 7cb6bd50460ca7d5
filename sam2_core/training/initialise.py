"""Where a model's training starts, when it starts from nothing.

Plain initialisation stays at "all background" for thousands of steps. Two things shorten that: the mask decoder's
attention begins local (queries and keys share one projection, so a prompt attends to its own place), and the memory's
path begins as a near copy (what was remembered comes back where it was).
"""
from __future__ import annotations

import torch
from torch import Tensor, nn

from sam2_core.config import Sam2Config
from sam2_core.model import Sam2Model
from sam2_core.nn.attention import Attention
from sam2_core.nn.memory_encoder import ConvNextBlock

_TIED_GAIN = 1.5
_MASK_GAIN = 3.0  # of the mask's part in a memory, beside the image's
_DAMPED = 0.3  # other branches of the memory attention


@torch.no_grad()
def new_model(config: Sam2Config, name: str = 'custom') -> Sam2Model:
    """A model to train from nothing; drawn from torch's generator."""
    model = Sam2Model(config, name)
    for key, parameter in model.named_parameters():
        if 'pos_embed' in key or key.startswith(('maskmem_tpos_enc', 'no_mem_embed', 'no_obj_')):
            nn.init.trunc_normal_(parameter, std=0.02)
    for module in model.modules():
        if isinstance(module, ConvNextBlock):
            module.gamma.fill_(0.1)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=0.3)
    for module in model.sam_mask_decoder.transformer.modules():
        if isinstance(module, Attention):
            nn.init.orthogonal_(module.q_proj.weight, gain=_TIED_GAIN)
            module.k_proj.weight.copy_(module.q_proj.weight)
            module.q_proj.bias.zero_()
            module.k_proj.bias.zero_()
    return model


@torch.no_grad()
def start_memory(model: Sam2Model, features_bchw: Tensor) -> None:
    """Start the memory's path from a trained image encoder, given its stride-16 features of some images."""
    channels = features_bchw.float().transpose(0, 1).flatten(1)
    mean, std = channels.mean(dim=1), channels.std(dim=1).clamp(min=1e-3)
    encoder, attention = model.memory_encoder, model.memory_attention
    attention.norm.weight.copy_(std)
    attention.norm.bias.copy_(mean)
    encoder.pix_feat_proj.weight.copy_(torch.diag(1 / std)[..., None, None])
    encoder.pix_feat_proj.bias.copy_(-mean / std)
    encoder.mask_downsampler.encoder[-1].weight.mul_(_MASK_GAIN)
    out = encoder.out_proj.weight[..., 0, 0]  # (memory_dim, d_model)
    nn.init.orthogonal_(out)
    encoder.out_proj.weight.copy_(out[..., None, None])
    encoder.out_proj.bias.zero_()
    eye = torch.eye(model.config.d_model, device=out.device)
    for layer in attention.layers:
        cross = layer.cross_attn_image
        for projection, weight in ((cross.q_proj, 1.2 * eye), (cross.k_proj, out.T), (cross.v_proj, 1.5 * out.T),
                                   (cross.out_proj, eye)):
            projection.weight.copy_(weight)
            projection.bias.zero_()
        layer.self_attn.out_proj.weight.mul_(_DAMPED)
        layer.linear2.weight.mul_(_DAMPED)
