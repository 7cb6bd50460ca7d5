"""Approximations that are faster than the published model and slightly less exact. All are off by default.

docs/reference/benchmarks.md lists the cost and gain of each. Related options elsewhere: fewer recent frames
(``StreamTracker.recent_frames``), a smaller image (``image_size``) and half precision (``dtype``).
"""
from __future__ import annotations

import warnings

import torch
from torch import nn

from sam2_core.model import Sam2Model

POOLINGS = (1, 2)


def pool_memory(model: Sam2Model, pooling: int) -> None:
    """Average memory tokens over ``pooling`` x ``pooling`` blocks before cross-attention.

    After "Efficient Track Anything" (arXiv 2411.18933, section 3.3): keys are rotated before pooling, and each pooled
    key has the weight of all tokens of its block. Only 1 (off) and 2 are supported, since 4 breaks nano's masks. Raise
    ValueError for other values, and for a model whose perceiver has compressed the memory already.
    """
    if pooling not in POOLINGS:
        raise ValueError(f'memory_pooling {pooling!r}: must be 1 (off) or 2')
    if pooling > 1 and model.config.perceiver is not None:
        raise ValueError(f'memory_pooling {pooling} with {model.name}: must be 1 (off), since its perceiver compresses '
                         f'the memory already')
    for attention in model.memory_attention.cross_attentions:
        attention.pooling = pooling


def quantize_encoder(model: Sam2Model) -> None:
    """Quantise the linear layers of the image encoder to 8-bit integers, for CPUs.

    Raise ValueError for a model that is not float32 on a CPU, that has adapters in its image encoder, or whose image
    encoder has no linear layers.
    """
    if model.device.type != 'cpu' or model.dtype != torch.float32:
        raise ValueError(f'int8_encoder on {model.device} in {model.dtype}: only on a CPU in float32; '
                         f'leave it out, or load the model with device="cpu"')
    replaced = next((name for name, module in model.image_encoder.trunk.named_modules()
                     if not type(module).__module__.startswith(('torch.', 'sam2_core.'))), None)
    if replaced is not None:
        raise ValueError(f'int8_encoder on {model.name} with image_encoder.trunk.{replaced} replaced: merge adapters '
                         f'into the weights first (merge_and_unload), and quantise once')
    if not any(isinstance(module, nn.Linear) for module in model.image_encoder.trunk.modules()):
        raise ValueError(f'int8_encoder with {model.name}: its image encoder has no linear layers to quantise; leave '
                         f'it out')
    with warnings.catch_warnings():  # PyTorch announces that this module will move
        warnings.filterwarnings('ignore', message='torch.ao.quantization is deprecated', category=DeprecationWarning)
        warnings.filterwarnings('ignore', message='torch.quantize_per_tensor', category=UserWarning)
        torch.ao.quantization.quantize_dynamic(model.image_encoder.trunk, {nn.Linear}, dtype=torch.qint8, inplace=True)
