"""Spatial perceiver: compresses a memory frame to a few hundred tokens (EdgeTAM, arXiv 2501.07256, section 3.2).

Global latents attend to the whole frame and have no position afterwards. Each 2-D latent attends to one window of the
frame and keeps its place in a grid.
"""
from __future__ import annotations

import torch
from torch import Tensor, nn

from sam2_core.config import PerceiverConfig
from sam2_core.nn.attention import attention
from sam2_core.nn.position import sine_grid


class LatentAttention(nn.Module):
    """Attention of one head without biases; keys and values share a projection. The normalisations are the caller's."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.to_q = nn.Linear(channels, channels, bias=False)
        self.to_kv = nn.Linear(channels, channels * 2, bias=False)
        self.to_out = nn.Linear(channels, channels, bias=False)

    def attend(self, query_bnc: Tensor, memory_bmc: Tensor, position_mc: Tensor | None = None) -> Tensor:
        """Attend from (B, N, C) to (B, M, C); ``position_mc`` is added to keys and values."""
        key_value = self.to_kv(memory_bmc)
        if position_mc is not None:
            key_value = key_value + torch.cat((position_mc, position_mc), dim=-1)
        heads = (x[:, None] for x in (self.to_q(query_bnc), *key_value.chunk(2, dim=-1)))
        return self.to_out(attention(*heads)[:, 0])


class CrossAttention(LatentAttention):
    """Attention of latents to memory tokens, each with its own normalisation."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.norm_x = nn.LayerNorm(channels)
        self.norm_latents = nn.LayerNorm(channels)

    def forward(self, latents_bnc: Tensor, memory_bmc: Tensor, position_mc: Tensor | None) -> Tensor:
        """Attend from (B, N, C) to (B, M, C): (B, N, C)."""
        return self.attend(self.norm_latents(latents_bnc), self.norm_x(memory_bmc), position_mc)


class SelfAttention(LatentAttention):
    """Attention of latents to each other."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.norm = nn.LayerNorm(channels)

    def forward(self, latents_bnc: Tensor) -> Tensor:
        """Transform (B, N, C)."""
        normed = self.norm(latents_bnc)
        return self.attend(normed, normed)


def _feed_forward(channels: int, hidden: int) -> nn.Sequential:
    return nn.Sequential(nn.LayerNorm(channels), nn.Linear(channels, hidden, bias=False), nn.GELU(),
                         nn.Linear(hidden, channels, bias=False))


class PerceiverLayer(nn.Module):
    """Cross-attention, feed-forward, self-attention and a second feed-forward, each with a residual."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.attn = CrossAttention(channels)
        self.ff = _feed_forward(channels, hidden)
        self.self_attn = SelfAttention(channels)
        self.self_ff = _feed_forward(channels, hidden)

    def forward(self, latents_bnc: Tensor, memory_bmc: Tensor, position_mc: Tensor | None) -> Tensor:
        """Update latents (B, N, C) from memory tokens (B, M, C)."""
        latents = latents_bnc + self.attn(latents_bnc, memory_bmc, position_mc)
        latents = latents + self.ff(latents)
        latents = latents + self.self_attn(latents)
        return latents + self.self_ff(latents)


class SpatialPerceiver(nn.Module):
    """Compression of memory frames to global latents, followed by a grid of 2-D latents."""

    def __init__(self, config: PerceiverConfig, channels: int) -> None:
        super().__init__()
        self.grid_side = config.grid_side
        self.latents = nn.Parameter(torch.zeros(config.global_latents, channels))
        self.latents_2d = nn.Parameter(torch.zeros(config.grid_side ** 2, channels))
        self.layers = nn.ModuleList(PerceiverLayer(channels, channels * config.feedforward)
                                    for _ in range(config.layers))
        self.norm = nn.LayerNorm(channels)

    def forward(self, memory_bnc: Tensor, position_nc: Tensor) -> Tensor:
        """Compress the memory of B objects.

        Args:
            memory_bnc: (B, N, C), tokens of a square grid, row by row; its side is a multiple of ``grid_side``.
            position_nc: (N, C), sine encoding of that grid.

        Returns:
            (B, tokens, C), the global latents and then the 2-D latents, row by row.
        """
        batch, tokens, channels = memory_bnc.shape
        everything = self.latents.expand(batch, -1, -1)
        places = self.latents_2d.tile(batch, 1)[:, None]  # each is the only latent of its window
        side = self.grid_side
        cells = int(tokens ** 0.5) // side  # per side of a window
        windows = memory_bnc.view(batch, side, cells, side, cells, channels).transpose(2, 3).reshape(
            batch * side ** 2, cells ** 2, channels)
        for layer in self.layers:
            everything = layer(everything, memory_bnc, position_nc)
            places = layer(places, windows, None)
        return self.norm(torch.cat((everything, places.view(batch, side ** 2, channels)), dim=1))


def token_position(config: PerceiverConfig, channels: int) -> Tensor:
    """Return the position of the tokens of a compressed frame, (tokens, channels): zero for global latents."""
    places = sine_grid(channels, config.grid_side, config.grid_side).flatten(1).T
    return torch.cat((places.new_zeros(config.global_latents, channels), places))
