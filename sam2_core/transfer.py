"""Between host and device without waiting: a GPU's work is queued, and whoever reads a result in between stops it."""
from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor


def to_device(values: Any, device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """Numbers, a numpy array or a tensor as a tensor on the device; a GPU fetches them when it gets there."""
    here = values.device if isinstance(values, Tensor) else 'cpu'  # whatever torch.set_default_device says
    tensor = torch.as_tensor(values, dtype=dtype, device=here)
    if device.type != 'cuda' or tensor.device.type != 'cpu':
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def to_host(*tensors: Tensor) -> list[np.ndarray]:
    """Tensors as numpy arrays, after one wait for all of them."""
    if all(tensor.device.type != 'cuda' for tensor in tensors):
        return [tensor.cpu().numpy() for tensor in tensors]
    copies = [torch.empty(tensor.shape, dtype=tensor.dtype, device='cpu', pin_memory=True) for tensor in tensors]
    for copy, tensor in zip(copies, tensors, strict=True):
        copy.copy_(tensor, non_blocking=True)
    torch.cuda.current_stream(tensors[0].device).synchronize()
    return [copy.numpy() for copy in copies]
