"""Attention with projections, plain and with rotary positions."""
from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sam2_core.nn.layers import is_observed, is_plain
from sam2_core.nn.position import RotaryTable

QUERIES_AT_ONCE, KEYS_AT_ONCE = 1024, 512  # smaller blocks need more calls, larger ones leave the cache


class Attention(nn.Module):
    """Multi-head attention with an inner width of ``dim // downsample``; keys and values have ``dim_kv`` channels."""

    def __init__(self, dim: int, num_heads: int, downsample: int = 1, dim_kv: int | None = None) -> None:
        super().__init__()
        inner, dim_kv = dim // downsample, dim_kv or dim
        self.num_heads = num_heads
        self.q_proj = nn.Linear(dim, inner)
        self.k_proj = nn.Linear(dim_kv, inner)
        self.v_proj = nn.Linear(dim_kv, inner)
        self.out_proj = nn.Linear(inner, dim)

    def attend(self, query: Tensor, key: Tensor, value: Tensor, exists: Tensor | None = None) -> Tensor:
        """Attend over projected (B, N, inner) tensors, and project the output; ``exists``: bool (B, M)."""

        def heads(x: Tensor) -> Tensor:
            return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)

        x = attention(heads(query), heads(key), heads(value), None if exists is None else exists[:, None, None])
        return self.out_proj(x.transpose(1, 2).flatten(-2))

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Attend from query (B, N, dim) to key and value (B, M, dim_kv): (B, N, dim)."""
        return self.attend(self.q_proj(query), self.k_proj(key), self.v_proj(value))


class RotaryAttention(Attention):
    """Attention with queries and keys rotated by their positions, except the last ``plain_keys`` keys.

    ``pooling`` is an approximation: blocks of n x n rotated keys are replaced by their mean, with the weight of all.
    """

    pooling = 1

    def forward(self, query: Tensor, key: Tensor, value: Tensor, table: RotaryTable,  # type: ignore[override]
                plain_keys: int = 0, exists: Tensor | None = None, key_table: RotaryTable | None = None) -> Tensor:
        """Attend from query (1 or B, N, dim) to key and value (B, M, dim_kv): (B, N, dim).

        The type check of the override is off, because both classes are only called by their own names.

        Args:
            query: The tokens of ``table``.
            key: The tokens of ``key_table``, repeated for each remembered frame, and ``plain_keys`` more.
            value: As ``key``.
            table: Rotations of the queries.
            plain_keys: Number of keys without a rotation.
            exists: bool (B, M), False for keys to ignore; None means all exist.
            key_table: Rotations of the keys; None means those of the queries.
        """
        key_table = key_table or table
        query, key = self.q_proj(query), self.k_proj(key)
        placed = key.shape[1] - plain_keys
        if (runs_plainly_on_cpu(key) and is_plain(self.q_proj) and is_plain(self.k_proj)
                and not is_observed(table) and not is_observed(key_table)):  # a hook may have kept its input
            table.rotate_in_place(query)
            key_table.rotate_in_place(key[:, :placed])
        else:
            query = table(query)
            key = torch.cat((key_table(key[:, :placed]), key[:, placed:]), dim=1)
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
        """Pool the tokens of each grid; return keys, values, existence, and the number of tokens per key (M,)."""
        side = math.isqrt(table.cos_nc.shape[0])

        def pooled(x: Tensor) -> Tensor:
            grids = x[:, :placed].unflatten(1, (-1, side, side)).flatten(0, 1).permute(0, 3, 1, 2)
            tokens = F.avg_pool2d(grids, self.pooling).flatten(2).transpose(1, 2).unflatten(0, (len(x), -1))
            return torch.cat((tokens.flatten(1, 2), x[:, placed:]), dim=1)

        key, value = pooled(key), pooled(value)
        left = placed // self.pooling ** 2
        counts = key.new_ones(key.shape[1])
        counts[:left] = self.pooling ** 2
        if exists is not None:  # all tokens of a grid exist, or none
            exists = torch.cat((exists[:, :placed:self.pooling ** 2], exists[:, placed:]), dim=1)
        return key, value, exists, counts

    def _attend_before_projecting(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Average values in their own width, and project afterwards.

        Exact for one head: the weights P of a query sum to one, so P (V W + b) = (P V) W + b, and the two consecutive
        projections become one. This product of two small matrices is computed on each call, so it is never stale.
        """
        weight = self.out_proj.weight @ self.v_proj.weight
        bias = F.linear(self.v_proj.bias, self.out_proj.weight, self.out_proj.bias)
        averaged = torch.stack([_average(q, k, v) for q, k, v in zip(query, key, value, strict=True)])
        return F.linear(averaged, weight, bias)


def _counted(query: Tensor, key: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """Append channels to queries and keys that add the logarithm of each key's count to its score."""
    channels = query.shape[-1]
    # One channel would do, but kernels need a multiple of eight. Scores are divided by the root of the width.
    wider = channels + 8
    query, key = (F.pad(x, (0, wider - channels)) for x in (query * (wider / channels) ** 0.5, key))
    query[..., channels] = 1
    key[..., channels] = counts.log() * wider ** 0.5
    return query, key


def attention(query: Tensor, key: Tensor, value: Tensor, exists: Tensor | None = None) -> Tensor:
    """Run PyTorch's fused attention over (B, heads, N, C); ``exists``: bool, broadcast to (B, heads, N, M).

    Training under bfloat16 autocast on a CPU uses float32, because backward in bfloat16 takes three times as long.
    """
    if query.device.type == 'cpu' and torch.is_grad_enabled() and torch.is_autocast_enabled('cpu'):
        with torch.autocast('cpu', enabled=False):
            return F.scaled_dot_product_attention(query.float(), key.float(), value.float(), exists)
    return F.scaled_dot_product_attention(query, key, value, exists)


def runs_plainly_on_cpu(x: Tensor) -> bool:
    """Return whether ``x`` is float32 on a CPU without gradients, where narrow values and in-place operations are fast.

    Elsewhere PyTorch's fused attention is faster, and it needs values as wide as keys. Compiled code uses it as well.
    """
    return (x.device.type == 'cpu' and x.dtype == torch.float32 and not torch.is_grad_enabled()
            and not torch.compiler.is_compiling())


def _average(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Compute attention of one head with query (N, C), key (M, C) and value (M, D): (N, D).

    Scores are computed and used block by block, so that they stay in the cache. Weights are relative to the highest
    score so far, and the running average is rescaled when a higher score follows (arXiv 2112.05682).
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
