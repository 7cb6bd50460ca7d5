"""The feature pyramid between the trunk and everything else (arXiv 1612.03144)."""
from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sam2_core.nn.layers import is_observed, is_plain


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

    def forward(self, levels: list[Tensor], to_stride4: nn.Conv2d | None = None,
                to_stride8: nn.Conv2d | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """``to_stride4``, ``to_stride8``: 1x1 convolutions that follow at these strides."""
        stride32, stride16, stride8, stride4 = zip(self.convs, reversed(levels), strict=True)
        deepest, upper = (conv(level) for conv, level in (stride32, stride16))
        top_down = F.interpolate(deepest.float(), scale_factor=2.0, mode='nearest').to(upper.dtype)
        return _chained(*stride4, to_stride4), _chained(*stride8, to_stride8), upper + top_down


def _chained(lateral: Lateral, level_bchw: Tensor, following: nn.Conv2d | None) -> Tensor:
    """A lateral projection and the 1x1 convolution that follows, if any: one map where no gradient is wanted.

    Exact, since both are linear: W2 (W1 x + b1) + b2 = (W2 W1) x + (W2 b1 + b2). The d_model channels between them, at
    stride 4 the largest tensor of all, are never made. The small product is made each time, so it is never stale.
    Where either is more than a 1x1 convolution, both are called.
    """
    if following is None:
        return lateral(level_bchw)
    if torch.is_grad_enabled() or is_observed(lateral) or not (_is_map(lateral.conv) and _is_map(following)):
        return following(lateral(level_bchw))
    with torch.autocast(level_bchw.device.type, enabled=False):
        precise = torch.promote_types(following.weight.dtype, torch.float32)
        first, second = (conv.weight[..., 0, 0].to(precise) for conv in (lateral.conv, following))
        bias = F.linear(lateral.conv.bias.to(precise), second, following.bias.to(precise))
        weight = (second @ first)[..., None, None]
    return F.conv2d(level_bchw, weight.to(level_bchw.dtype), bias.to(level_bchw.dtype))


def _is_map(conv: nn.Module) -> bool:
    return (is_plain(conv) and conv.kernel_size == conv.stride == (1, 1) and conv.padding == (0, 0)
            and conv.groups == 1)
