"""Feature pyramid between the trunk and the other parts (arXiv 1612.03144)."""
from __future__ import annotations

from typing import TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sam2_core.nn.layers import is_observed, is_plain


class Lateral(nn.Module):
    """1x1 convolution of one level."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels_in, channels_out, kernel_size=1)

    def forward(self, x_bchw: Tensor) -> Tensor:
        """Project (B, C, H, W) to (B, d_model, H, W)."""
        return self.conv(x_bchw)


class FpnNeck(nn.Module):
    """Projection of trunk levels at strides 4, 8, 16 and 32 to d_model channels at strides 4, 8 and 16.

    The deepest level is added to stride 16; strides 4 and 8 are lateral projections only. ``convs[0]`` belongs to the
    deepest level, as in the published checkpoints.
    """

    def __init__(self, channels: list[int], d_model: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(Lateral(c, d_model) for c in reversed(channels))

    def forward(self, levels: list[Tensor], to_stride4: nn.Conv2d | None = None,
                to_stride8: nn.Conv2d | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Return feature maps at strides 4, 8 and 16.

        ``to_stride4`` and ``to_stride8`` are 1x1 convolutions to apply afterwards at these strides.
        """
        stride32, stride16, stride8, stride4 = zip(self.convs, reversed(levels), strict=True)
        deepest, upper = (conv(level) for conv, level in (stride32, stride16))
        top_down = F.interpolate(deepest.float(), scale_factor=2.0, mode='nearest').to(upper.dtype)
        return _chained(*stride4, to_stride4), _chained(*stride8, to_stride8), upper + top_down


def _chained(lateral: nn.Module, level_bchw: Tensor, following: nn.Conv2d | None) -> Tensor:
    """Apply a lateral projection and the 1x1 convolution after it, if any, as one map unless gradients are needed.

    Exact, since both are linear: W2 (W1 x + b1) + b2 = (W2 W1) x + (W2 b1 + b2). This avoids the d_model channels
    between them, which at stride 4 are the largest tensor of all. The small product is computed on each call, so it is
    never stale. If either module is more than a 1x1 convolution, both are called.
    """
    if following is None:
        return lateral(level_bchw)
    if torch.is_grad_enabled() or is_observed(lateral) or not (_is_map(lateral.conv) and _is_map(following)):
        return following(lateral(level_bchw))
    assert lateral.conv.bias is not None and following.bias is not None
    with torch.autocast(level_bchw.device.type, enabled=False):
        precise = torch.promote_types(following.weight.dtype, torch.float32)
        first, second = (conv.weight[..., 0, 0].to(precise) for conv in (lateral.conv, following))
        bias = F.linear(lateral.conv.bias.to(precise), second, following.bias.to(precise))
        weight = (second @ first)[..., None, None]
    return F.conv2d(level_bchw, weight.to(level_bchw.dtype), bias.to(level_bchw.dtype))


def _is_map(conv: object) -> TypeGuard[nn.Conv2d]:
    return (isinstance(conv, nn.Conv2d) and is_plain(conv) and conv.kernel_size == conv.stride == (1, 1)
            and conv.padding == (0, 0) and conv.groups == 1)
