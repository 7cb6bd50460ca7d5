"""Between the size of an image and that of the model."""
from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK_BYTES = 16 << 20  # of scaled logits that exist at a time


def stretch(pixels_bchw: Tensor, size: int) -> Tensor:
    """Resize to a square, bilinear with antialias, as the published image predictor does."""
    if pixels_bchw.shape[-2:] == (size, size):
        return pixels_bchw
    return F.interpolate(pixels_bchw, size=(size, size), mode='bilinear', antialias=True)


def at_image_size(logits: Tensor, height: int, width: int, above: float = 0.0) -> Tensor:
    """Return where mask logits (B, h, w), scaled to an image, exceed a threshold: bool (B, height, width).

    Scaled logits have four bytes to the pixel: they exist for a few masks at a time only.
    """
    masks = torch.empty(len(logits), height, width, dtype=torch.bool, device=logits.device)
    at_a_time = max(1, CHUNK_BYTES // (height * width * logits.element_size()))
    for some, scaled in zip(masks.split(at_a_time), logits[:, None].split(at_a_time), strict=True):
        torch.gt(F.interpolate(scaled, size=(height, width), mode='bilinear')[:, 0], above, out=some)
    return masks
