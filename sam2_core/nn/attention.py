"""Attention with its projections, plain and with rotary positions."""
from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sam2_core.nn.position import RotaryTable

SCORES_AT_ONCE = 2 ** 23  # numbers; fewer cost more calls, more leave the cache


class Attention(nn.Module):
    """Multi-head attention whose inner width is ``dim // downsample``; keys and values may come from ``dim_kv``."""

    def __init__(self, dim: int, num_heads: int, downsample: int = 1, dim_kv: int | None = None) -> None:
        super().__init__()
        inner, dim_kv = dim // downsample, dim_kv or dim
        self.num_heads = num_heads
        self.q_proj = nn.Linear(dim, inner)
        self.k_proj = nn.Linear(dim_kv, inner)
        self.v_proj = nn.Linear(dim_kv, inner)
        self.out_proj = nn.Linear(inner, dim)

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Attention over projected (B, N, inner) tensors, then the output projection."""

        def heads(x: Tensor) -> Tensor:
            return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)

        x = attention(heads(query), heads(key), heads(value))
        return self.out_proj(x.transpose(1, 2).flatten(-2))

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Query (B, N, dim), key and value (B, M, dim_kv) -> (B, N, dim)."""
        return self.attend(self.q_proj(query), self.k_proj(key), self.v_proj(value))


class RotaryAttention(Attention):
    """Attention whose queries and keys turn with their place in the grid; the last ``plain_keys`` keys do not."""

    def forward(self, query: Tensor, key: Tensor, value: Tensor, table: RotaryTable,
                plain_keys: int = 0) -> Tensor:
        """Query (1 or B, N, dim), key and value (B, R * N + plain_keys, dim_kv) -> (B, N, dim)."""
        query, key = self.q_proj(query), self.k_proj(key)
        placed = key.shape[1] - plain_keys
        if runs_plainly_on_cpu(key):
            table.rotate_in_place(query)
            table.rotate_in_place(key[:, :placed])
        else:
            query = table(query)
            key = torch.cat((table(key[:, :placed]), key[:, placed:]), dim=1)
        query = query.expand(len(key), -1, -1)
        if self.num_heads == 1 and value.shape[-1] < key.shape[-1] and runs_plainly_on_cpu(key):
            return self._attend_before_projecting(query, key, value)
        return self.attend(query, key, self.v_proj(value))

    def _attend_before_projecting(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Values are averaged in their own width, and projected afterwards.

        Exact for one head: the weights P of a query sum to one, so P (V W + b) = (P V) W + b, and the two projections
        that follow each other are one. Made anew each time, a product of two small matrices, it is never stale.
        """
        weight = self.out_proj.weight @ self.v_proj.weight
        bias = F.linear(self.v_proj.bias, self.out_proj.weight, self.out_proj.bias)
        averaged = torch.stack([_average(q, k, v) for q, k, v in zip(query, key, value, strict=True)])
        return F.linear(averaged, weight, bias)


def attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """PyTorch's fused attention over (B, heads, N, C).

    In training under bfloat16 autocast on a CPU it stays in float32: backward in bfloat16 takes three times as long.
    """
    if query.device.type == 'cpu' and torch.is_grad_enabled() and torch.is_autocast_enabled('cpu'):
        with torch.autocast('cpu', enabled=False):
            return F.scaled_dot_product_attention(query.float(), key.float(), value.float())
    return F.scaled_dot_product_attention(query, key, value)


def runs_plainly_on_cpu(x: Tensor) -> bool:
    """Whether ``x`` is float32 on a CPU and no gradient is wanted: where narrow values and work in place pay.

    Elsewhere PyTorch's fused attention is faster, which wants values as wide as keys.
    """
    return x.device.type == 'cpu' and x.dtype == torch.float32 and not torch.is_grad_enabled()


def _average(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attention of one head: query (N, C), key (M, C), value (M, D) -> (N, D). A few rows at a time, for the cache."""
    rows = max(1, SCORES_AT_ONCE // len(key))
    query = query * query.shape[-1] ** -0.5
    averaged = query.new_empty(len(query), value.shape[-1])
    scores = query.new_empty(min(rows, len(query)), len(key))
    for part, out in zip(query.split(rows), averaged.split(rows), strict=True):
        weights = scores[:len(part)]
        torch.mm(part, key.T, out=weights)
        torch.softmax(weights, dim=-1, out=weights)
        torch.mm(weights, value, out=out)
    return averaged
