"""Attention with its projections, plain and with rotary positions."""
from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sam2_core.nn.position import RotaryTable


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

        x = F.scaled_dot_product_attention(heads(query), heads(key), heads(value))
        return self.out_proj(x.transpose(1, 2).flatten(-2))

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Query (B, N, dim), key and value (B, M, dim_kv) -> (B, N, dim)."""
        return self.attend(self.q_proj(query), self.k_proj(key), self.v_proj(value))


class RotaryAttention(Attention):
    """Attention whose queries and keys turn with their place in the grid; the last ``plain_keys`` keys do not."""

    def forward(self, query: Tensor, key: Tensor, value: Tensor, table: RotaryTable,
                plain_keys: int = 0) -> Tensor:
        """Query (B, N, dim), key and value (B, R * N + plain_keys, dim_kv) -> (B, N, dim)."""
        query = table(self.q_proj(query))
        key = self.k_proj(key)
        placed = key.shape[1] - plain_keys
        key = torch.cat((table(key[:, :placed]), key[:, placed:]), dim=1)
        return self.attend(query, key, self.v_proj(value))
