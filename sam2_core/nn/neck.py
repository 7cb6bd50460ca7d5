"""The feature pyramid between the trunk and everything else (arXiv 1612.03144)."""
from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class Lateral(nn.Module):
    """The 1x1 convolution of one level."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels_in, channels_out, kernel_size=1)

    def forward(self, x_bchw: Tensor) -> Tensor:
        return self.conv(x_bchw)


class FpnNeck(nn.Module):
    """Trunk levels at strides 4, 8, 16, 32 -> d_model channels at strides 4, 8, 16.

    Only the deepest level reaches down, into stride 16; strides 4 and 8 are lateral projections alone.
    ``convs[0]`` belongs to the deepest level, as in the published checkpoints.
    """

    def __init__(self, channels: list[int], d_model: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(Lateral(c, d_model) for c in reversed(channels))

    def forward(self, levels: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        stride32, stride16, stride8, stride4 = (
            conv(level) for conv, level in zip(self.convs, reversed(levels), strict=True))
        top_down = F.interpolate(stride32.float(), scale_factor=2.0, mode='nearest').to(stride16.dtype)
        return stride4, stride8, stride16 + top_down
