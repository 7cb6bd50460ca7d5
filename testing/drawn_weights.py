"""Random weights for comparisons of implementations, by the published names of parameters and buffers.

With the initial values of a model, half of its parts have no effect: layer scales are 1e-6 and embeddings zero. With
these weights every part has one, and the values stay of the same size from layer to layer.
"""
from __future__ import annotations

import re
import zlib
from collections.abc import Mapping

import torch
from torch import Tensor

VISIBLE = 3.0  # bias of the object score with which objects are visible
_OBJECT_SCORE = 'pred_obj_score_head.layers.2.bias'
_EMBEDDING = re.compile(r'(embed|embeddings\.\d|tokens?)\.weight$')
_BEFORE_RELU = re.compile(r'(hypernetworks_mlps\.\d|_head|obj_ptr_proj)\.layers\.[01]\.weight$'
                          r'|transformer\S*\.mlp\.layers\.0\.weight$')
_FACTORS = [(re.compile(pattern), factor) for pattern, factor in (
    # memory and its age must have an effect on the masks
    (r'cross_attn_image\.(k_proj|out_proj)\.weight$', 2.0),
    (r'obj_ptr_tpos_proj\.weight$', 6.0),
    (r'spatial_perceiver\.norm\.weight$', 3.0),  # tokens as large as those that are not compressed
    # a pixel of a binarised mask that float noise moves across zero must not dominate the result
    (r'mask_downsampler\.encoder\.12\.weight$', 0.25),
    # branches of RepViT blocks add to their input, dozens of times
    (r'token_mixer\.conv1?\.bn\.weight$', 0.35))]


def weight_of(name: str, noise: Tensor) -> Tensor:
    """Return the values of a parameter or buffer from noise of its shape, with mean 0 and deviation 1."""
    factor = next((factor for pattern, factor in _FACTORS if pattern.search(name)), 1.0)
    return _typical(name, noise) * factor


def _typical(name: str, noise: Tensor) -> Tensor:
    leaf = name.rpartition('.')[2]
    if name.endswith(_OBJECT_SCORE):
        return torch.full_like(noise, VISIBLE)
    if leaf == 'weight' and noise.ndim == 1:  # of a normalisation
        return 1 + 0.1 * noise
    if leaf == 'running_var':
        return 1 + 0.2 * noise.abs()
    if leaf == 'gamma':  # layer scale
        return 0.5 + 0.1 * noise
    if leaf in ('bias', 'running_mean'):
        return 0.1 * noise
    if leaf == 'positional_encoding_gaussian_matrix':
        return noise
    if leaf != 'weight' or _EMBEDDING.search(name):  # embeddings, tokens and latents
        return 0.5 * noise
    inputs = noise.shape[0] if 'output_upscaling' in name else noise[0].numel()
    return noise * (1.4 if _BEFORE_RELU.search(name) else 1.0) / inputs ** 0.5


def drawn_weights(like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return weights for a state dict with published names; those of a name depend on the name and the shape only."""
    weights = {}
    for name, value in like.items():
        if not value.is_floating_point():  # the number of batches that a normalisation has seen
            weights[name] = torch.ones(value.shape, dtype=value.dtype)
            continue
        noise = torch.randn(value.shape, generator=torch.Generator().manual_seed(zlib.crc32(name.encode())))
        weights[name] = weight_of(name, noise)
    return weights
