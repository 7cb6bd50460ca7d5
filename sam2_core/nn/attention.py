"""Attention with its projections, plain and with rotary positions."""
from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sam2_core.nn.layers import is_observed, is_plain
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

    def attend(self, query: Tensor, key: Tensor, value: Tensor, exists: Tensor | None = None) -> Tensor:
        """Attention over projected (B, N, inner) tensors, then the output projection; ``exists``: bool (B, M)."""

        def heads(x: Tensor) -> Tensor:
            return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)

        x = attention(heads(query), heads(key), heads(value), None if exists is None else exists[:, None, None])
        return self.out_proj(x.transpose(1, 2).flatten(-2))

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Query (B, N, dim), key and value (B, M, dim_kv) -> (B, N, dim)."""
        return self.attend(self.q_proj(query), self.k_proj(key), self.v_proj(value))


class RotaryAttention(Attention):
    """Attention whose queries and keys turn with their place in the grid; the last ``plain_keys`` keys do not.

    ``pooling``: an approximation, n x n turned keys of a grid are looked at as one, their mean, which counts for all.
    """

    pooling = 1

    def forward(self, query: Tensor, key: Tensor, value: Tensor, table: RotaryTable,
                plain_keys: int = 0, exists: Tensor | None = None) -> Tensor:
        """Query (1 or B, N, dim), key and value (B, R * N + plain_keys, dim_kv) -> (B, N, dim).

        ``exists``: bool (B, R * N + plain_keys), False for keys that must not be looked at; None: all are there.
        """
        query, key = self.q_proj(query), self.k_proj(key)
        placed = key.shape[1] - plain_keys
        if (runs_plainly_on_cpu(key) and is_plain(self.q_proj) and is_plain(self.k_proj)
                and not is_observed(table)):  # a hook may have kept what it saw
            table.rotate_in_place(query)
            table.rotate_in_place(key[:, :placed])
        else:
            query = table(query)
            key = torch.cat((table(key[:, :placed]), key[:, placed:]), dim=1)
        query = query.expand(len(key), -1, -1)
        if self.pooling > 1:
            key, value, exists, counts = self._pool(key, value, exists, table, placed)
            query, key = _counted(query, key, counts)
        if (exists is None and self.num_heads == 1 and value.shape[-1] < key.shape[-1] and runs_plainly_on_cpu(key)
                and is_plain(self.v_proj) and is_plain(self.out_proj)):
            return self._attend_before_projecting(query, key, value)
        return self.attend(query, key, self.v_proj(value), exists)

    def _pool(self, key: Tensor, value: Tensor, exists: Tensor | None, table: RotaryTable,
              placed: int) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
        """Keys, values and existence with the tokens of each grid pooled, and how many tokens each stands for (M,)."""
        side = math.isqrt(table.cos_nc.shape[0])

        def pooled(x: Tensor) -> Tensor:
            grids = x[:, :placed].unflatten(1, (-1, side, side)).flatten(0, 1).permute(0, 3, 1, 2)
            tokens = F.avg_pool2d(grids, self.pooling).flatten(2).transpose(1, 2).unflatten(0, (len(x), -1))
            return torch.cat((tokens.flatten(1, 2), x[:, placed:]), dim=1)

        key, value = pooled(key), pooled(value)
        left = placed // self.pooling ** 2
        counts = key.new_ones(key.shape[1])
        counts[:left] = self.pooling ** 2
        if exists is not None:  # the tokens of a grid exist together
            exists = torch.cat((exists[:, :placed:self.pooling ** 2], exists[:, placed:]), dim=1)
        return key, value, exists, counts

    def _attend_before_projecting(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Values are averaged in their own width, and projected afterwards.

        Exact for one head: the weights P of a query sum to one, so P (V W + b) = (P V) W + b, and the two projections
        that follow each other are one. Made anew each time, a product of two small matrices, it is never stale.
        """
        weight = self.out_proj.weight @ self.v_proj.weight
        bias = F.linear(self.v_proj.bias, self.out_proj.weight, self.out_proj.bias)
        averaged = torch.stack([_average(q, k, v) for q, k, v in zip(query, key, value, strict=True)])
        return F.linear(averaged, weight, bias)


def _counted(query: Tensor, key: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """Queries and keys with channels appended that add the logarithm of each key's count to its score."""
    channels = query.shape[-1]
    wider = channels + 8  # one would do, but kernels want a multiple of eight; scores are divided by the root of this
    query, key = (F.pad(x, (0, wider - channels)) for x in (query * (wider / channels) ** 0.5, key))
    query[..., channels] = 1
    key[..., channels] = counts.log() * wider ** 0.5
    return query, key


def attention(query: Tensor, key: Tensor, value: Tensor, exists: Tensor | None = None) -> Tensor:
    """PyTorch's fused attention over (B, heads, N, C); ``exists``: bool, broadcast to (B, heads, N, M).

    In training under bfloat16 autocast on a CPU it stays in float32: backward in bfloat16 takes three times as long.
    """
    if query.device.type == 'cpu' and torch.is_grad_enabled() and torch.is_autocast_enabled('cpu'):
        with torch.autocast('cpu', enabled=False):
            return F.scaled_dot_product_attention(query.float(), key.float(), value.float(), exists)
    return F.scaled_dot_product_attention(query, key, value, exists)


def runs_plainly_on_cpu(x: Tensor) -> bool:
    """Whether ``x`` is float32 on a CPU and no gradient is wanted: where narrow values and work in place pay.

    Elsewhere PyTorch's fused attention is faster, which wants values as wide as keys. What is compiled is plain too.
    """
    return (x.device.type == 'cpu' and x.dtype == torch.float32 and not torch.is_grad_enabled()
            and not torch.compiler.is_compiling())


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
