"""Hiera, the trunk of the image encoder: arXiv 2306.00989, with absolute window positions as in arXiv 2311.05613."""
from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from sam2_core.config import HieraConfig
from sam2_core.nn.attention import attention, runs_plainly_on_cpu
from sam2_core.nn.derived import Derived
from sam2_core.nn.layers import MLP, is_observed, is_plain

NUMBERS_AT_ONCE = 2 ** 22  # elements of a block's widest layer to compute at once on a CPU


def _pool(x_bhwc: Tensor) -> Tensor:
    return F.max_pool2d(x_bhwc.permute(0, 3, 1, 2), 2).permute(0, 2, 3, 1)


def _to_windows(x_bhwc: Tensor, window: int, fill: Tensor | None) -> tuple[Tensor, int, int]:
    """Split into (B * windows, window, window, C), padded with ``fill``; also return the padded size."""
    batch, height, width, channels = x_bhwc.shape
    full_height, full_width = -(-height // window) * window, -(-width // window) * window
    if full_width > width:
        assert fill is not None
        filled = fill.to(x_bhwc.dtype).expand(batch, height, full_width - width, channels)
        x_bhwc = torch.cat((x_bhwc, filled), dim=2)
    if full_height > height:
        assert fill is not None
        filled = fill.to(x_bhwc.dtype).expand(batch, full_height - height, full_width, channels)
        x_bhwc = torch.cat((x_bhwc, filled), dim=1)
    x = x_bhwc.view(batch, full_height // window, window, full_width // window, window, channels)
    return x.transpose(2, 3).reshape(-1, window, window, channels), full_height, full_width


def _from_windows(windows: Tensor, full_height: int, full_width: int, height: int, width: int) -> Tensor:
    window, channels = windows.shape[1], windows.shape[-1]
    x = windows.view(-1, full_height // window, full_width // window, window, window, channels)
    return x.transpose(2, 3).reshape(-1, full_height, full_width, channels)[:, :height, :width]


def _bicubic(size_in: int, size_out: int, device: torch.device) -> Tensor:
    """Return the matrix (size_out, size_in) that resizes a line."""
    lines = torch.eye(size_in, dtype=torch.float32, device=device)[None, None]
    return F.interpolate(lines, size=(size_out, size_in), mode='bicubic')[0, 0]


class MultiScaleAttention(nn.Module):
    """Self-attention over a (B, H, W, C) grid, or in windows of it; queries may be max-pooled by two."""

    def __init__(self, dim: int, dim_out: int, num_heads: int, pool_queries: bool) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.pool_queries = pool_queries
        self.qkv = nn.Linear(dim, dim_out * 3)
        self.proj = nn.Linear(dim_out, dim_out)

    def forward(self, x_bhwc: Tensor, window: int = 0) -> Tensor:
        """Attend within windows of side ``window``, or over the whole grid if 0.

        The published model pads the last windows with zeros, and projects these too. Here only real tokens are
        projected, and padding is filled with the projection of zeros, which is the bias. A projection that is more
        than its weights is called with the zeros.
        """
        shrink = 2 if self.pool_queries else 1
        height, width = (side // shrink for side in x_bhwc.shape[1:3])
        bias = self._bias()
        called_with_zeros = bias is None and window and any(side % window for side in x_bhwc.shape[1:3])
        if called_with_zeros:
            x_bhwc, full_height, full_width = _to_windows(x_bhwc, window, x_bhwc.new_zeros(()))
        qkv = self.qkv(x_bhwc)
        if window and not called_with_zeros:
            qkv, full_height, full_width = _to_windows(qkv, window, bias)
        query, key, value = qkv.chunk(3, dim=-1)
        if self.pool_queries:
            query = _pool(query)

        def heads(t: Tensor) -> Tensor:
            return t.reshape(len(t), -1, self.num_heads, t.shape[-1] // self.num_heads).transpose(1, 2)

        x = attention(heads(query), heads(key), heads(value)).transpose(1, 2).reshape(*query.shape[:3], -1)
        if window:
            x = _from_windows(x, full_height // shrink, full_width // shrink, height, width)
        return self.proj(x)

    def _bias(self) -> Tensor | None:
        """Return the projection of zeros by ``qkv``, or None if it is only known by calling ``qkv``."""
        if is_plain(self.qkv):
            return self.qkv.bias
        if isinstance(self.qkv, torch.ao.nn.quantized.dynamic.Linear) and not is_observed(self.qkv):
            return self.qkv.bias()
        return None


class MultiScaleBlock(nn.Module):
    """Transformer block that may double the channels and halve the grid; with ``window`` 0 it attends globally."""

    def __init__(self, dim: int, dim_out: int, num_heads: int, window: int, pool_queries: bool) -> None:
        super().__init__()
        self.window = window
        self.pool_queries = pool_queries
        self._widest = dim_out * 4
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = MultiScaleAttention(dim, dim_out, num_heads, pool_queries)
        self.norm2 = nn.LayerNorm(dim_out, eps=1e-6)
        self.mlp = MLP(dim_out, dim_out * 4, dim_out, depth=2, activation=F.gelu)
        self.proj = nn.Linear(dim, dim_out) if dim != dim_out else None

    def forward(self, x_bhwc: Tensor) -> Tensor:
        """Transform (B, H, W, C), on a CPU in bands of rows."""
        if not self.window or not runs_plainly_on_cpu(x_bhwc):
            return self._transform(x_bhwc)
        # Windows are independent, so some rows of windows run at a time, and intermediate results stay in the cache.
        rows = self.window * max(1, NUMBERS_AT_ONCE // (self.window * x_bhwc.shape[2] * self._widest))
        if rows >= x_bhwc.shape[1] or any(map(is_observed, self.modules())):  # a hook must see the whole image
            return self._transform(x_bhwc)
        return torch.cat([self._transform(band) for band in x_bhwc.split(rows, dim=1)], dim=1)

    def _transform(self, x_bhwc: Tensor) -> Tensor:
        normed = self.norm1(x_bhwc)
        shortcut = x_bhwc
        if self.proj is not None:
            shortcut = self.proj(normed)
            if self.pool_queries:
                shortcut = _pool(shortcut)
        x = shortcut + self.attn(normed, self.window)
        return x + self.mlp(self.norm2(x))


class PatchEmbed(nn.Module):
    """Embedding of overlapping 7x7 patches at stride 4."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, channels, kernel_size=7, stride=4, padding=3)

    def forward(self, image_bchw: Tensor) -> Tensor:
        """Embed images (B, 3, S, S): (B, S / 4, S / 4, C)."""
        return self.proj(image_bchw).permute(0, 2, 3, 1)


class Hiera(nn.Module):
    """Hierarchical vision transformer with four stages, at strides 4, 8, 16 and 32."""

    def __init__(self, config: HieraConfig) -> None:
        super().__init__()
        self.recompute = False  # in training, recompute blocks in the backward pass to save memory
        dim, heads = config.embed_dim, config.num_heads
        stage_starts = [sum(config.stages[:i]) for i in range(1, len(config.stages))]
        self.stage_ends = [start - 1 for start in stage_starts] + [config.blocks - 1]
        self.channels = [dim << i for i in range(len(config.stages))]
        self.patch_embed = PatchEmbed(dim)
        self.pos_embed = nn.Parameter(torch.zeros(1, dim, config.position_grid, config.position_grid))
        self.pos_embed_window = nn.Parameter(torch.zeros(1, dim, config.window_sizes[0], config.window_sizes[0]))
        self._position = Derived()
        self.blocks = nn.ModuleList()
        stage = 0
        for i in range(config.blocks):
            # The first block of a stage has the windows of the previous stage, because it attends before it pools.
            window = 0 if i in config.global_attention_blocks else config.window_sizes[stage]
            starts = i in stage_starts
            if starts:
                stage, heads = stage + 1, heads * 2
            dim_out = dim * 2 if starts else dim
            self.blocks.append(MultiScaleBlock(dim, dim_out, heads, window, pool_queries=starts))
            dim = dim_out

    def position(self, height: int, width: int) -> Tensor:
        """Return the position embedding (1, H, W, C): a resized coarse one plus a repeated one per window position."""
        return self._position.get((self.pos_embed, self.pos_embed_window), self._make_position, height, width)

    def _make_position(self, height: int, width: int) -> Tensor:
        # One matrix product per axis is many times faster than a bicubic kernel on a CPU.
        rows, columns = (_bicubic(self.pos_embed.shape[-1], size, self.pos_embed.device) for size in (height, width))
        coarse = rows @ self.pos_embed.float() @ columns.T
        window = self.pos_embed_window.float()
        repeats = height // window.shape[-2], width // window.shape[-1]
        return (coarse + window.tile(1, 1, *repeats)).permute(0, 2, 3, 1)

    def hold_constants(self, image_size: int) -> None:
        """Replace the position embedding by its value for one image size, so that graphs hold that."""
        position = self.position(image_size // 4, image_size // 4)
        setattr(self, 'position', lambda height, width: position)  # noqa: B010 - mypy refuses to assign to a method

    def forward(self, image_bchw: Tensor) -> list[Tensor]:
        """Return feature maps (B, C, S / 4, S / 4), ... (B, 8 C, S / 32, S / 32) of images (B, 3, S, S)."""
        x = self.patch_embed(image_bchw)
        x = x + self.position(*x.shape[1:3]).to(x.dtype)
        levels = []
        for i, block in enumerate(self.blocks):
            recompute = self.recompute and torch.is_grad_enabled()
            x = checkpoint(block, x, use_reentrant=False) if recompute else block(x)
            if i in self.stage_ends:
                levels.append(x.permute(0, 3, 1, 2))
        return levels
