"""Attention with its projections, plain and with rotary positions."""
from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sam2_core.nn.position import RotaryTable

QUERIES_AT_ONCE, KEYS_AT_ONCE = 1024, 512  # fewer cost more calls, more leave the cache


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
    """Attention of one head: query (N, C), key (M, C), value (M, D) -> (N, D).

    Scores are made, used and forgotten block by block, so that they stay in the cache; weights are relative to the
    highest score met so far, and what was averaged is scaled when a higher one comes (arXiv 2112.05682).
    """
    query = query * query.shape[-1] ** -0.5
    averaged = query.new_empty(len(query), value.shape[-1])
    block = query.new_empty(QUERIES_AT_ONCE * KEYS_AT_ONCE)
    blocks = list(zip(key.split(KEYS_AT_ONCE), value.split(KEYS_AT_ONCE), strict=True))
    for part, out in zip(query.split(QUERIES_AT_ONCE), averaged.split(QUERIES_AT_ONCE), strict=True):
        out.zero_()
        highest, total = part.new_full((len(part), 1), -math.inf), part.new_zeros(len(part), 1)
        for keys, values in blocks:
            weights = block[:len(part) * len(keys)].view(len(part), len(keys))
            torch.mm(part, keys.T, out=weights)
            higher = torch.maximum(highest, weights.amax(dim=1, keepdim=True))
            weights.sub_(higher).exp_()
            scale = (highest - higher).exp_()
            total.mul_(scale).add_(weights.sum(dim=1, keepdim=True))
            out.mul_(scale).addmm_(weights, values)
            highest = higher
        out.div_(total)
    return averaged
