"""Prompts as a user would give them, drawn from exact masks in batches, without synchronising with the device.

Points are pixels of the model's square image (SAM 2 paper, appendix D.2, "interactive" sampling).
"""
from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from sam2_core.nn.prompt_encoder import BOX_BOTTOM_RIGHT, BOX_TOP_LEFT

BOX_NOISE = 0.08  # standard deviation of half of the boxes, as a share of their sides


def _pixel(score_bhw: Tensor) -> Tensor:
    """Return the pixel with the highest score, x and y, as int64 (B, 2)."""
    best = score_bhw.flatten(1).argmax(dim=1)
    width = score_bhw.shape[-1]
    return torch.stack((best % width, best // width), dim=1)


def points_in(masks_bhw: Tensor) -> Tensor:
    """Return one point in each mask, float32 (B, 2): anywhere for half of the masks, else well inside.

    An empty mask gets the point (0, 0).
    """
    masks = masks_bhw.float()
    anywhere = _pixel(torch.rand_like(masks) * masks)
    cells = F.avg_pool2d(masks[:, None], 4)
    inner = F.avg_pool2d(cells, 7, stride=1, padding=3) * (cells > 0.99)
    inner = (inner * (0.7 + 0.3 * torch.rand_like(inner)))[:, 0]
    inside = _pixel(inner) * 4 + 2
    use = (torch.rand(len(masks), device=masks.device) < 0.5) & (inner.flatten(1).amax(dim=1) > 0)
    return torch.where(use[:, None], inside, anywhere).float()


def labels_at(masks_bhw: Tensor, points_b2: Tensor) -> Tensor:
    """Return 1 for each point on its mask, else 0, as int64 (B,)."""
    x, y = points_b2.long().unbind(dim=1)
    rows = torch.arange(len(masks_bhw), device=masks_bhw.device)
    return masks_bhw[rows, y, x].long()


def clicks(masks_bhw: Tensor) -> tuple[Tensor, Tensor]:
    """Return one point on each object: points (B, 1, 2), labels (B, 1)."""
    points = points_in(masks_bhw)
    return points[:, None], labels_at(masks_bhw, points)[:, None]


def corrections(predicted_bhw: Tensor, masks_bhw: Tensor) -> tuple[Tensor, Tensor]:
    """Return one point where the prediction (bool) is wrong, or on the object if it is right.

    Points have the shape (B, 1, 2), labels (B, 1).
    """
    wrong = predicted_bhw ^ masks_bhw
    points = points_in(torch.where(wrong.flatten(1).any(dim=1)[:, None, None], wrong, masks_bhw))
    return points[:, None], labels_at(masks_bhw, points)[:, None]


def boxes(masks_bhw: Tensor) -> tuple[Tensor, Tensor]:
    """Return a box around each object, half of them inexact: points (B, 2, 2), labels (B, 2)."""
    size = masks_bhw.shape[-1]
    sides = []
    for axis in (1, 2):  # columns, then rows
        occupied = masks_bhw.any(dim=axis).byte()
        sides.append((occupied.argmax(dim=1), size - occupied.flip(1).argmax(dim=1)))
    (x0, x1), (y0, y1) = sides
    corners = torch.stack((x0, y0, x1, y1), dim=1).float()
    extent = torch.stack((x1 - x0, y1 - y0), dim=1).float().repeat(1, 2)
    careless = (torch.rand(len(corners), 1, device=corners.device) < 0.5) * BOX_NOISE
    corners = (corners + torch.randn_like(corners) * extent * careless).clamp(0, size)
    labels = torch.arange(BOX_TOP_LEFT, BOX_BOTTOM_RIGHT + 1, device=corners.device)
    return corners.view(-1, 2, 2), labels.expand(len(corners), 2)
