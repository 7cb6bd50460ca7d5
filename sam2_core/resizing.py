"""Resizing between images and the square input of the model."""
from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK_BYTES = 16 << 20  # size limit of resized logits in memory at one time


def stretch(pixels_bchw: Tensor, size: int) -> Tensor:
    """Resize images (B, C, H, W) to a square of ``size`` pixels, bilinear with antialias, as published."""
    if pixels_bchw.shape[-2:] == (size, size):
        return pixels_bchw
    return F.interpolate(pixels_bchw, size=(size, size), mode='bilinear', antialias=True)


def at_image_size(logits: Tensor, height: int, width: int, above: float = 0.0) -> Tensor:
    """Resize mask logits (B, h, w) to an image and threshold them: bool (B, height, width).

    Resized logits have four bytes per pixel, so only a few masks are resized at a time.
    """
    masks = torch.empty(len(logits), height, width, dtype=torch.bool, device=logits.device)
    at_a_time = max(1, CHUNK_BYTES // (height * width * logits.element_size()))
    for some, scaled in zip(masks.split(at_a_time), logits[:, None].split(at_a_time), strict=True):
        torch.gt(F.interpolate(scaled, size=(height, width), mode='bilinear')[:, 0], above, out=some)
    return masks
