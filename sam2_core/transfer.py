"""Copies between host and device that do not synchronise more often than necessary.

A GPU works through a queue, and reading a result drains it. A tracker's step reads results once, at its end; some
memory policies read scores and areas once more, before the memory is written.
"""
from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor


def to_device(values: Any, device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """Convert numbers, a numpy array or a tensor to a tensor on the device; copies to a GPU are queued."""
    here = values.device if isinstance(values, Tensor) else 'cpu'  # independent of torch.set_default_device
    tensor = torch.as_tensor(values, dtype=dtype, device=here)
    if device.type != 'cuda' or tensor.device.type != 'cpu':
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def to_host(*tensors: Tensor) -> list[np.ndarray]:
    """Convert tensors to numpy arrays with a single synchronisation."""
    if all(tensor.device.type != 'cuda' for tensor in tensors):
        return [tensor.cpu().numpy() for tensor in tensors]
    copies = [torch.empty(tensor.shape, dtype=tensor.dtype, device='cpu', pin_memory=True) for tensor in tensors]
    for copy, tensor in zip(copies, tensors, strict=True):
        copy.copy_(tensor, non_blocking=True)
    torch.cuda.current_stream(tensors[0].device).synchronize()
    return [copy.numpy() for copy in copies]
