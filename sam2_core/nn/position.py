"""Sine, random-Fourier and rotary position encodings."""
from __future__ import annotations

import math

import torch
from torch import Tensor

from sam2_core.nn.derived import Derived
from sam2_core.nn.layers import Float32Buffers, is_observed


def sine_grid(channels: int, height: int, width: int, device: torch.device | None = None) -> Tensor:
    """Return the sine encoding of a grid, float32 (channels, height, width): channels of rows, then of columns.

    Coordinates are counted from 1 and scaled to 2 pi at the far edge; sine and cosine alternate (as in DETR,
    arXiv 2005.12872, appendix A.4).
    """
    half = channels // 2
    frequency = 10000.0 ** (2 * (torch.arange(half, dtype=torch.float32, device=device) // 2) / half)

    def encode(length: int) -> Tensor:
        position = torch.arange(1, length + 1, dtype=torch.float32, device=device) / (length + 1e-6) * 2 * math.pi
        angle = position[:, None] / frequency
        return torch.stack((angle[:, 0::2].sin(), angle[:, 1::2].cos()), dim=-1).flatten(-2)

    rows = encode(height)[:, None].expand(height, width, half)
    columns = encode(width)[None].expand(height, width, half)
    return torch.cat((rows, columns), dim=-1).permute(2, 0, 1)


def sine_time(position: Tensor, channels: int) -> Tensor:
    """Return the sine encoding of scalars (...,), float32 (..., channels): all sines, then all cosines."""
    half = channels // 2
    channel = torch.arange(half, dtype=torch.float32, device=position.device)
    frequency = 10000.0 ** (2 * (channel // 2) / half)
    angle = position.float()[..., None] / frequency
    return torch.cat((angle.sin(), angle.cos()), dim=-1)


class FourierPosition(Float32Buffers):
    """Random Fourier features of points in the unit square (SAM, arXiv 2304.02643, appendix A)."""

    positional_encoding_gaussian_matrix: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer('positional_encoding_gaussian_matrix',
                             torch.randn(2, channels // 2, dtype=torch.float32))
        self._grid = Derived()

    def forward(self, points: Tensor) -> Tensor:
        """Encode points (..., 2), x and y in 0..1: float32 (..., channels)."""
        angle = 2 * math.pi * ((2 * points.float() - 1) @ self.positional_encoding_gaussian_matrix.float())
        return torch.cat((angle.sin(), angle.cos()), dim=-1)

    def grid(self, height: int, width: int) -> Tensor:
        """Return the encoding of all cell centres of a grid, float32 (channels, height, width)."""
        if is_observed(self):
            return self._make_grid(height, width)
        return self._grid.get((self.positional_encoding_gaussian_matrix,), self._make_grid, height, width)

    def _make_grid(self, height: int, width: int) -> Tensor:
        device = self.positional_encoding_gaussian_matrix.device
        y = (torch.arange(height, dtype=torch.float32, device=device) + 0.5) / height
        x = (torch.arange(width, dtype=torch.float32, device=device) + 0.5) / width
        points = torch.stack((x.expand(height, width), y[:, None].expand(height, width)), dim=-1)
        return self(points).permute(2, 0, 1)


class RotaryTable(Float32Buffers):
    """Cosines and sines that rotate pairs of channels by the position of a token (axial RoPE, arXiv 2403.13298).

    Neighbouring channels form a pair. The first half of the pairs rotates with the column, the second with the row.
    Tokens without a position, which come before those of the grid, are not rotated.
    """

    cos_nc: Tensor
    sin_nc: Tensor

    def __init__(self, channels: int, height: int, width: int, theta: float, unplaced: int = 0) -> None:
        super().__init__()
        frequency = theta ** (-torch.arange(0, channels, 4, dtype=torch.float32) / channels)
        tokens = torch.arange(height * width)
        columns = (tokens % width).float()[:, None] * frequency
        rows = (tokens // width).float()[:, None] * frequency
        angle = torch.cat((columns, rows), dim=-1)
        angle = torch.cat((angle.new_zeros(unplaced, angle.shape[1]), angle))  # a rotation by zero is exact
        self.register_buffer('cos_nc', angle.cos(), persistent=False)
        self.register_buffer('sin_nc', angle.sin(), persistent=False)

    def forward(self, x_bnc: Tensor) -> Tensor:
        """Rotate (B, N, C) in float32 and keep the dtype; N is a multiple of the table's tokens, for repeated grids."""
        batch, tokens, channels = x_bnc.shape
        pairs = x_bnc.float().reshape(batch, -1, self.cos_nc.shape[0], channels // 2, 2)
        even, odd = pairs.unbind(-1)
        rotated = torch.stack((even * self.cos_nc - odd * self.sin_nc, even * self.sin_nc + odd * self.cos_nc), dim=-1)
        return rotated.reshape(batch, tokens, channels).to(x_bnc.dtype)

    def rotate_in_place(self, x_bnc: Tensor) -> None:
        """Rotate float32 (B, N, C) in place, in one pass: pairs of channels are multiplied as complex numbers."""
        pairs = torch.view_as_complex(x_bnc.unflatten(-1, (-1, 2)))
        pairs.unflatten(1, (-1, self.cos_nc.shape[0])).mul_(torch.complex(self.cos_nc, self.sin_nc))
