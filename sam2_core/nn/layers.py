"""Small layers and helpers that several blocks share."""
from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

_PLAIN = frozenset((nn.Linear, nn.Conv2d, nn.Embedding))


def is_observed(module: nn.Module) -> bool:
    """Return whether calling ``module`` does more than its class's forward: it has hooks, or a forward of its own."""
    return bool(module._forward_hooks or module._forward_pre_hooks or module._backward_hooks
                or module._backward_pre_hooks or torch_module._global_forward_hooks
                or torch_module._global_forward_pre_hooks or torch_module._global_backward_hooks
                or torch_module._global_backward_pre_hooks or 'forward' in module.__dict__)


def is_plain(module: nn.Module) -> bool:
    """Return whether ``module`` is fully described by its weights, so that reading them can replace a call.

    Modules with adapters (LoRA, DoRA), parametrizations, quantised weights or hooks, and subclasses, must be called.
    """
    return (type(module) in _PLAIN and not is_observed(module)
            and (torch.compiler.is_compiling()  # while a graph is traced, parameters have another type
                 or all(parameter is None or type(parameter) is nn.Parameter
                        for parameter in module._parameters.values())))


def all_rows(embedding: nn.Embedding, count: int) -> Tensor:
    """Return the ``count`` vectors of an embedding, (count, channels)."""
    if is_plain(embedding):
        return embedding.weight
    return embedding(torch.arange(count, device=embedding.weight.device))


class Float32Buffers(nn.Module):
    """Module with buffers that stay float32 when its parameters change type, since they multiply coordinates."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Float32Buffers:
        before = dict(self._buffers)
        super()._apply(fn, recurse)
        for name, buffer in before.items():
            changed = self._buffers[name]
            if buffer is not None and changed is not None and changed.dtype != buffer.dtype:
                self._buffers[name] = buffer.to(changed.device)
        return self


class LayerNorm2d(nn.Module):
    """Layer normalisation over the channels of (B, C, H, W) tensors."""

    def __init__(self, channels: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.eps = eps

    def forward(self, x_bchw: Tensor) -> Tensor:
        """Normalise (B, C, H, W) over C."""
        x_bhwc = x_bchw.permute(0, 2, 3, 1)
        return F.layer_norm(x_bhwc, self.weight.shape, self.weight, self.bias, self.eps).permute(0, 3, 1, 2)


class MLP(nn.Module):
    """Perceptron of ``depth`` linear layers with ``activation`` between them."""

    def __init__(self, dim_in: int, dim_hidden: int, dim_out: int, depth: int,
                 activation: Callable[[Tensor], Tensor] = F.relu) -> None:
        super().__init__()
        dims = [dim_in] + [dim_hidden] * (depth - 1) + [dim_out]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(dims))
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., dim_in) to (..., dim_out)."""
        for layer in self.layers[:-1]:
            x = self.activation(layer(x))
        return self.layers[-1](x)
