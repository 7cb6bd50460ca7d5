"""Losses agree with values worked out by hand."""
import math

import pytest
import torch

from sam2_core.training.losses import (
    balanced_loss,
    dice_loss,
    focal_loss,
    mask_iou,
    mask_losses,
    object_score_loss,
    weighted_mean,
)


def _logit(p):
    return math.log(p / (1 - p))


def test_focal_loss_of_two_pixels():
    logits = torch.tensor([[[_logit(0.8), _logit(0.3)]]])
    targets = torch.tensor([[[1.0, 0.0]]])
    expected = (0.25 * 0.2 ** 2 * -math.log(0.8) + 0.75 * 0.3 ** 2 * -math.log(0.7)) / 2
    assert focal_loss(logits, targets).item() == pytest.approx(expected, rel=1e-5)


def test_dice_loss_of_two_pixels():
    logits = torch.tensor([[_logit(0.8), _logit(0.3)]])[None]
    targets = torch.tensor([[[1.0, 0.0]]])
    assert dice_loss(logits, targets, smooth=0.0).item() == pytest.approx(1 - 1.6 / 2.1, rel=1e-5)


def test_balanced_loss_does_not_depend_on_the_objects_area():
    losses = []
    for pixels in (1, 30):
        targets = torch.zeros(1, 8, 8)
        targets.view(-1)[:pixels] = 1
        losses.append(balanced_loss(torch.full((1, 8, 8), -2.0), targets).item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-2)
    assert losses[0] == pytest.approx((math.log(1 + math.e ** 2) + math.log(1 + math.e ** -2)) / 2, rel=1e-2)


def test_mask_iou_counts_pixels():
    logits = torch.tensor([[[1.0, 1.0, -1.0, -1.0]], [[-1.0, -1.0, -1.0, -1.0]]])
    targets = torch.tensor([[[1.0, 0.0, 1.0, 0.4]], [[0.0, 0.0, 0.2, 0.0]]])
    assert mask_iou(logits, targets).tolist() == [pytest.approx(1 / 3), 1.0]


def test_only_the_best_mask_gets_a_gradient_if_masks_may_differ():
    targets = torch.zeros(1, 4, 4)
    targets[0, :2] = 1
    good = (targets * 2 - 1).clone()
    logits = torch.stack((good[0], -good[0], -good[0]))[None].requires_grad_()
    masks, _ = mask_losses(logits, torch.full((1, 3), 0.5), targets, balance=0.0, all_masks=0.0)
    masks.sum().backward()
    assert logits.grad[0, 0].abs().sum() > 0
    assert logits.grad[0, 1:].abs().sum() == 0


def test_the_predicted_iou_of_every_mask_is_learnt():
    targets = torch.zeros(1, 4, 4)
    targets[0, :2] = 1
    logits = torch.stack((targets[0] * 2 - 1, 1 - targets[0] * 2))[None]  # IoU 1 and 0
    _, iou = mask_losses(logits, torch.tensor([[0.9, 0.3]]), targets, 0.0, 0.0)
    assert iou.item() == pytest.approx((0.1 + 0.3) / 2)


def test_a_hidden_object_weighs_more_than_a_visible_one():
    loss, weight = object_score_loss(torch.tensor([0.0, 0.0]), torch.tensor([True, False]))
    assert loss.tolist() == pytest.approx([math.log(2)] * 2)
    assert weight[1] > weight[0] == 1


def test_a_mean_of_nothing_is_zero():
    assert weighted_mean(torch.ones(3), torch.zeros(3)) == 0
    assert weighted_mean(torch.tensor([1.0, 3.0, 9.0]), torch.tensor([1.0, 1.0, 0.0])) == 2
