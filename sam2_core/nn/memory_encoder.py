"""Memory encoder: makes a memory frame from an image and an object's mask (SAM 2 paper, section 4)."""
from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sam2_core.config import Sam2Config
from sam2_core.nn.layers import LayerNorm2d


class MaskDownsampler(nn.Module):
    """Four strided convolutions from a mask at image size to d_model channels at stride 16."""

    def __init__(self, channels: int, d_model: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        width = 1
        for _ in range(4):
            convolution = nn.Conv2d(width, width * 4, kernel_size=3, stride=2, padding=1)
            layers += [convolution, LayerNorm2d(width * 4), nn.GELU()]
            width *= 4
        if width != channels:
            raise ValueError(f'mask_channels {channels}: must be {width}, as four stages multiply the channels by four')
        layers.append(nn.Conv2d(width, d_model, kernel_size=1))
        self.encoder = nn.Sequential(*layers)

    def forward(self, mask_bchw: Tensor) -> Tensor:
        """Downsample masks (B, 1, S, S): (B, d_model, S / 16, S / 16)."""
        return self.encoder(mask_bchw)


class ConvNextBlock(nn.Module):
    """ConvNeXt block (arXiv 2201.03545) with layer scale."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dwconv = nn.Conv2d(dim, dim, kernel_size=7, padding=3, groups=dim)
        self.norm = LayerNorm2d(dim)
        self.pwconv1 = nn.Linear(dim, dim * 4)
        self.pwconv2 = nn.Linear(dim * 4, dim)
        self.gamma = nn.Parameter(torch.full((dim,), 1e-6))

    def forward(self, x_bchw: Tensor) -> Tensor:
        """Transform (B, C, H, W)."""
        x = self.norm(self.dwconv(x_bchw)).permute(0, 2, 3, 1)
        x = self.gamma * self.pwconv2(F.gelu(self.pwconv1(x)))
        return x_bchw + x.permute(0, 3, 1, 2)


class Fuser(nn.Module):
    """Sequence of ConvNeXt blocks."""

    def __init__(self, dim: int, layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(ConvNextBlock(dim) for _ in range(layers))

    def forward(self, x_bchw: Tensor) -> Tensor:
        """Transform (B, C, H, W)."""
        for layer in self.layers:
            x_bchw = layer(x_bchw)
        return x_bchw


class MemoryEncoder(nn.Module):
    """Encoder of memory frames from image features and masks."""

    def __init__(self, config: Sam2Config) -> None:
        super().__init__()
        dim = config.d_model
        self.mask_downsampler = MaskDownsampler(config.mask_channels, dim)
        self.pix_feat_proj = nn.Conv2d(dim, dim, kernel_size=1)
        self.fuser = Fuser(dim, config.fuser_layers)
        self.out_proj = nn.Conv2d(dim, config.memory_dim, kernel_size=1)

    def forward(self, features_bchw: Tensor, masks_bchw: Tensor) -> Tensor:
        """Encode features (1 or B, d_model, h, w) and masks (B, 1, 16 h, 16 w): (B, memory_dim, h, w)."""
        return self.out_proj(self.fuser(self.pix_feat_proj(features_bchw) + self.mask_downsampler(masks_bchw)))
