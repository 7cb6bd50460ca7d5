"""Losses of SAM 2 (arXiv 2408.00714, appendix D.2).

Focal and dice loss on the best mask, L1 loss on the predicted IoU of all masks, cross-entropy on the object score.
Masks are compared at the decoder's resolution with the exact mask, averaged over each cell.
"""
from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

FOCAL_WEIGHT = 20.0
FOCAL_ALPHA, FOCAL_GAMMA = 0.25, 2.0
ABSENT_WEIGHT = 3.0  # frames without the object are rare


def focal_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the focal loss (arXiv 1708.02002), averaged over the last two dimensions; targets in 0..1."""
    probability = logits.sigmoid()
    entropy = F.binary_cross_entropy_with_logits(logits, targets, reduction='none')
    right = probability * targets + (1 - probability) * (1 - targets)
    alpha = FOCAL_ALPHA * targets + (1 - FOCAL_ALPHA) * (1 - targets)
    return (alpha * (1 - right) ** FOCAL_GAMMA * entropy).mean(dim=(-2, -1))


def dice_loss(logits: Tensor, targets: Tensor, smooth: float = 0.5) -> Tensor:
    """Return 1 - dice over the last two dimensions; targets in 0..1."""
    probability = logits.sigmoid()
    shared = 2 * (probability * targets).sum(dim=(-2, -1))
    return 1 - (shared + smooth) / (probability.sum(dim=(-2, -1)) + targets.sum(dim=(-2, -1)) + smooth)


def balanced_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the cross-entropy over the last two dimensions, half from the object and half from the background."""
    entropy = F.binary_cross_entropy_with_logits(logits, targets, reduction='none')
    inside, outside = targets, 1 - targets
    one, other = ((entropy * part).sum(dim=(-2, -1)) / (part.sum(dim=(-2, -1)) + 1e-3) for part in (inside, outside))
    return 0.5 * (one + other)


def mask_iou(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the IoU over the last two dimensions, of logits above 0 and targets above 0.5; 1 for two empty masks."""
    predicted, real = logits > 0, targets > 0.5
    union = (predicted | real).sum(dim=(-2, -1))
    return torch.where(union > 0, (predicted & real).sum(dim=(-2, -1)) / union.clamp(min=1), 1.0)


def weighted_mean(values: Tensor, weights: Tensor) -> Tensor:
    """Return the weighted mean of values (B,), or 0 if all weights are 0."""
    return (values * weights).sum() / weights.sum().clamp(min=1e-6)


def mask_losses(logits_bmhw: Tensor, iou_bm: Tensor, targets_bhw: Tensor, balance: Tensor | float,
                all_masks: float) -> tuple[Tensor, Tensor]:
    """Return the losses of B objects with M masks each: (B,) for the masks, (B,) for the predicted IoU.

    balance: weight of the balanced loss, which gets a new model off the all-background plateau; all_masks: share of the
    loss that is the mean over all masks, the rest is that of the best mask.
    """
    targets = targets_bhw[:, None].expand_as(logits_bmhw)
    each = (FOCAL_WEIGHT * focal_loss(logits_bmhw, targets) + dice_loss(logits_bmhw, targets)
            + balance * balanced_loss(logits_bmhw, targets))
    masks = (1 - all_masks) * each.amin(dim=1) + all_masks * each.mean(dim=1)
    with torch.no_grad():
        real_iou = mask_iou(logits_bmhw, targets)
    return masks, (iou_bm - real_iou).abs().mean(dim=1)


def object_score_loss(scores_b: Tensor, visible_b: Tensor) -> tuple[Tensor, Tensor]:
    """Return the cross-entropy (B,) of object scores against visibility (bool), and its weight (B,)."""
    loss = F.binary_cross_entropy_with_logits(scores_b, visible_b.float(), reduction='none')
    return loss, torch.where(visible_b, 1.0, ABSENT_WEIGHT)
