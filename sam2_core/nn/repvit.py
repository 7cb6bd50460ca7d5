"""RepViT, a convolutional trunk of the image encoder: arXiv 2307.09283, with the sizes and names of EdgeTAM.

Parallel branches and batch normalisations are kept as published and merged into one convolution when they run. The
statistics of the normalisations are those of the checkpoint, also in training: a few clips per step would spoil them.
"""
from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from sam2_core.config import RepVitConfig
from sam2_core.nn.derived import Derived
from sam2_core.nn.layers import Float32Buffers, is_observed, is_plain

_EXPANSION = 2  # hidden channels of a feed-forward block, relative to its input
_SQUEEZE = 4  # channels per channel of a squeeze-and-excitation block, before rounding to a multiple of 8


class FrozenNorm(Float32Buffers, nn.BatchNorm2d):
    """Weights and statistics of a batch normalisation, which ``ConvNorm`` applies; the statistics stay float32."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, dtype=torch.float32)  # whatever torch.set_default_dtype says


class ConvNorm(nn.Module):
    """Convolution without bias, and the batch normalisation after it."""

    def __init__(self, channels_in: int, channels_out: int, kernel_size: int = 1, stride: int = 1,
                 groups: int = 1) -> None:
        super().__init__()
        self.c = nn.Conv2d(channels_in, channels_out, kernel_size, stride, kernel_size // 2, groups=groups, bias=False)
        self.bn = FrozenNorm(channels_out)
        self._merged = Derived()

    @property
    def is_mergeable(self) -> bool:
        """True if the weights describe the convolution fully: it has no adapters and no hooks."""
        return is_plain(self.c)

    @property
    def sources(self) -> tuple[Tensor, ...]:
        """Tensors that the merged weights depend on."""
        mean, variance = self.bn.running_mean, self.bn.running_var
        assert mean is not None and variance is not None
        return self.c.weight, self.bn.weight, self.bn.bias, mean, variance

    def merged(self) -> tuple[Tensor, Tensor]:
        """Return weight and bias of the one convolution that does the same, at least in float32."""
        scale, shift = self._scale_and_shift()
        return self.c.weight * scale[:, None, None, None], shift

    def convolution(self) -> tuple[Tensor, Tensor]:
        """Return weight and bias of that convolution in the type of the weights."""
        return _cast(self.merged(), self.c.weight.dtype)

    def _scale_and_shift(self) -> tuple[Tensor, Tensor]:
        _, weight, bias, mean, variance = (source.to(torch.promote_types(source.dtype, torch.float32))
                                           for source in self.sources)
        scale = weight * (variance + self.bn.eps).rsqrt()
        return scale, bias - mean * scale

    def forward(self, x_bchw: Tensor) -> Tensor:
        """Convolve and normalise (B, C, H, W)."""
        if not self.is_mergeable:
            scale, shift = (part.to(x_bchw.dtype)[:, None, None] for part in self._scale_and_shift())
            return self.c(x_bchw) * scale + shift
        weight, bias = self._merged.get(self.sources, self.convolution)
        return F.conv2d(x_bchw, weight, bias, self.c.stride, self.c.padding, groups=self.c.groups)


def _cast(merged: tuple[Tensor, Tensor], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return weight and bias in a type, and the weight in the memory format in which CPUs convolve fastest."""
    weight, bias = merged
    return weight.to(dtype).contiguous(memory_format=torch.channels_last), bias.to(dtype)


class TokenMixer(nn.Module):
    """Depthwise 3x3 convolution, depthwise 1x1 convolution and identity, added up."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = ConvNorm(channels, channels, kernel_size=3, groups=channels)
        self.conv1 = ConvNorm(channels, channels, groups=channels)
        self._merged = Derived()

    def forward(self, x_bchw: Tensor) -> Tensor:
        """Mix the tokens of (B, C, H, W)."""
        branches = (self.conv, self.conv1)
        if not all(branch.is_mergeable and not is_observed(branch) for branch in branches):
            return self.conv(x_bchw) + self.conv1(x_bchw) + x_bchw
        weight, bias = self._merged.get([*self.conv.sources, *self.conv1.sources], self.convolution)
        return F.conv2d(x_bchw, weight, bias, padding=1, groups=len(weight))

    def convolution(self) -> tuple[Tensor, Tensor]:
        """Return weight and bias of the one convolution that does the same, in the type of the weights."""
        (large, large_bias), (small, small_bias) = self.conv.merged(), self.conv1.merged()
        return _cast((large + F.pad(small + 1, (1, 1, 1, 1)), large_bias + small_bias), self.conv.c.weight.dtype)


class SqueezeExcite(nn.Module):
    """Gate per channel, computed from the mean of each channel (arXiv 1709.01507)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = max(8, (channels // _SQUEEZE + 4) // 8 * 8)
        self.fc1 = nn.Conv2d(channels, hidden, kernel_size=1)
        self.fc2 = nn.Conv2d(hidden, channels, kernel_size=1)

    def forward(self, x_bchw: Tensor) -> Tensor:
        """Scale the channels of (B, C, H, W)."""
        gate = self.fc2(F.relu(self.fc1(x_bchw.mean(dim=(2, 3), keepdim=True))))
        return x_bchw * gate.sigmoid()


class FeedForward(nn.Module):
    """Two 1x1 convolutions with an activation between them."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = ConvNorm(channels, channels * _EXPANSION)
        self.conv2 = ConvNorm(channels * _EXPANSION, channels)

    def forward(self, x_bchw: Tensor) -> Tensor:
        """Transform (B, C, H, W)."""
        return self.conv2(F.gelu(self.conv1(x_bchw)))


class RepVitBlock(nn.Module):
    """Token mixer, optional squeeze-and-excitation, and feed-forward with a residual."""

    def __init__(self, channels: int, squeeze: bool) -> None:
        super().__init__()
        self.token_mixer = TokenMixer(channels)
        self.se = SqueezeExcite(channels) if squeeze else nn.Identity()
        self.channel_mixer = FeedForward(channels)

    def forward(self, x_bchw: Tensor) -> Tensor:
        """Transform (B, C, H, W)."""
        x = self.se(self.token_mixer(x_bchw))
        return x + self.channel_mixer(x)


class RepVitDownsample(nn.Module):
    """Half the grid and another number of channels, between two blocks' halves."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.pre_block = RepVitBlock(channels_in, squeeze=False)
        self.spatial_downsample = ConvNorm(channels_in, channels_in, kernel_size=3, stride=2, groups=channels_in)
        self.channel_downsample = ConvNorm(channels_in, channels_out)
        self.ffn = FeedForward(channels_out)

    def forward(self, x_bchw: Tensor) -> Tensor:
        """Downsample (B, C, H, W) to (B, C', H / 2, W / 2)."""
        x = self.channel_downsample(self.spatial_downsample(self.pre_block(x_bchw)))
        return x + self.ffn(x)


class RepVitStem(nn.Module):
    """Two strided convolutions, to stride 4."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = ConvNorm(3, channels // 2, kernel_size=3, stride=2)
        self.conv2 = ConvNorm(channels // 2, channels, kernel_size=3, stride=2)

    def forward(self, image_bchw: Tensor) -> Tensor:
        """Embed images (B, 3, S, S): (B, C, S / 4, S / 4)."""
        return self.conv2(F.gelu(self.conv1(image_bchw)))


class RepVitStage(nn.Module):
    """Blocks on one grid, every other one with squeeze-and-excitation, after the downsampling to that grid."""

    def __init__(self, channels_in: int, channels_out: int, blocks: int, downsample: bool) -> None:
        super().__init__()
        self.downsample = RepVitDownsample(channels_in, channels_out) if downsample else nn.Identity()
        self.blocks = nn.Sequential(*(RepVitBlock(channels_out, squeeze=i % 2 == 0) for i in range(blocks)))

    def forward(self, x_bchw: Tensor, recompute: bool = False) -> Tensor:
        """Transform (B, C, H, W); ``recompute``: run each block again in the backward pass, to save memory."""
        for part in (self.downsample, *self.blocks):
            x_bchw = _call(part, x_bchw, recompute)
        return x_bchw


class RepVit(nn.Module):
    """RepViT with four stages, at strides 4, 8, 16 and 32."""

    def __init__(self, config: RepVitConfig) -> None:
        super().__init__()
        self.recompute = False  # in training, recompute blocks in the backward pass to save memory
        self.channels = list(config.channels)
        self.body = nn.ModuleDict({'stem': RepVitStem(config.channels[0])})
        for i, blocks in enumerate(config.stages):
            self.body[f'stages_{i}'] = RepVitStage(config.channels[max(0, i - 1)], config.channels[i], blocks,
                                             downsample=i > 0)

    def forward(self, image_bchw: Tensor) -> list[Tensor]:
        """Return feature maps (B, C, S / 4, S / 4), ... (B, C', S / 32, S / 32) of images (B, 3, S, S)."""
        if not torch.is_grad_enabled():
            image_bchw = image_bchw.contiguous(memory_format=torch.channels_last)
        recompute = self.recompute and torch.is_grad_enabled()
        stem, *stages = self.body.values()
        x, levels = _call(stem, image_bchw, recompute), []
        for stage in stages:
            x = stage(x, recompute)
            levels.append(x)
        return levels

    def hold_constants(self, image_size: int) -> None:
        """Replace branches and normalisations by merged convolutions, so that graphs hold these; for any image size."""
        with torch.no_grad():
            for module in list(self.modules()):
                for name, child in module.named_children():
                    if isinstance(child, (ConvNorm, TokenMixer)):
                        module.add_module(name, _merged_convolution(child))


def _call(module: nn.Module, x_bchw: Tensor, recompute: bool) -> Tensor:
    return checkpoint(module, x_bchw, use_reentrant=False) if recompute else module(x_bchw)


def _merged_convolution(module: ConvNorm | TokenMixer) -> nn.Conv2d:
    """Return a plain convolution with the results of ``module``."""
    merged = copy.deepcopy(module.conv.c if isinstance(module, TokenMixer) else module.c)
    merged.weight, merged.bias = (nn.Parameter(part) for part in module.convolution())
    return merged.requires_grad_(False)
