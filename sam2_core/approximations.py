"""What is faster and not quite equal to the published model. Nothing here is on unless it is asked for.

What each costs and saves is in docs/reference/benchmarks.md. More of the kind are elsewhere: fewer recent frames
(``StreamTracker.recent_frames``), a smaller image (``image_size``) and half precision (``dtype``).
"""
from __future__ import annotations

import warnings

import torch
from torch import nn

from sam2_core.model import Sam2Model

POOLINGS = (1, 2)


def pool_memory(model: Sam2Model, pooling: int) -> None:
    """Let objects look at the means of ``pooling`` x ``pooling`` remembered tokens: so many times fewer.

    After "Efficient Track Anything" (arXiv 2411.18933, section 3.3): keys are pooled after they were turned, and each
    weighs as much as all it stands for. 1: off. ValueError for anything but 1 and 2: of 4 x 4, nano makes nothing.
    """
    if pooling not in POOLINGS:
        raise ValueError(f'memory_pooling {pooling!r}: must be 1 (off) or 2')
    for layer in model.memory_attention.layers:
        layer.cross_attn_image.pooling = pooling


def quantize_encoder(model: Sam2Model) -> None:
    """Let the linear layers of the image encoder compute in 8-bit integers, for CPUs.

    ValueError for a model that is not float32 on a CPU, or that has adapters in its image encoder.
    """
    if model.device.type != 'cpu' or model.dtype != torch.float32:
        raise ValueError(f'int8_encoder on {model.device} in {model.dtype}: only on a CPU in float32; '
                         f'leave it out, or load the model with device="cpu"')
    replaced = next((name for name, module in model.image_encoder.trunk.named_modules()
                     if not type(module).__module__.startswith(('torch.', 'sam2_core.'))), None)
    if replaced is not None:
        raise ValueError(f'int8_encoder on {model.name} with image_encoder.trunk.{replaced} replaced: merge adapters '
                         f'into the weights first (merge_and_unload), and quantise once')
    with warnings.catch_warnings():  # PyTorch moves this into a package of its own; here it is still whole
        warnings.filterwarnings('ignore', message='torch.ao.quantization is deprecated', category=DeprecationWarning)
        warnings.filterwarnings('ignore', message='torch.quantize_per_tensor', category=UserWarning)
        torch.ao.quantization.quantize_dynamic(model.image_encoder.trunk, {nn.Linear}, dtype=torch.qint8, inplace=True)
