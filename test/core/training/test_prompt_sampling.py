"""Prompts drawn from masks are prompts that a user could have given."""
import pytest
import torch

from sam2_core.masks import mask_box
from sam2_core.nn.prompt_encoder import BOX_BOTTOM_RIGHT, BOX_TOP_LEFT
from sam2_core.training import prompt_sampling


@pytest.fixture
def masks():
    torch.manual_seed(0)
    masks = torch.zeros(40, 64, 64, dtype=torch.bool)
    for row in masks:
        x, y = torch.randint(0, 48, (2,)).tolist()
        w, h = torch.randint(3, 16, (2,)).tolist()
        row[y:y + h, x:x + w] = True
    return masks


def test_clicks_are_on_the_object(masks):
    points, labels = prompt_sampling.clicks(masks)
    assert points.shape == (40, 1, 2)
    assert (labels == 1).all()
    for (x, y), mask in zip(points[:, 0].long().tolist(), masks, strict=True):
        assert mask[y, x]


def test_clicks_vary(masks):
    assert not torch.equal(prompt_sampling.clicks(masks)[0], prompt_sampling.clicks(masks)[0])


def test_corrections_lie_in_the_error_and_have_its_label(masks):
    predicted = masks.roll(2, dims=2)
    points, labels = prompt_sampling.corrections(predicted, masks)
    kinds = set()
    for (x, y), label, mine, true in zip(points[:, 0].long().tolist(), labels[:, 0].tolist(), predicted, masks,
                                         strict=True):
        assert mine[y, x] != true[y, x]
        assert label == int(true[y, x])
        kinds.add(label)
    assert kinds == {0, 1}


def test_a_right_mask_is_confirmed(masks):
    _, labels = prompt_sampling.corrections(masks, masks)
    assert (labels == 1).all()


def test_boxes_are_around_the_object_and_half_of_them_exact(masks):
    corners, labels = prompt_sampling.boxes(masks)
    assert (labels == torch.tensor([BOX_TOP_LEFT, BOX_BOTTOM_RIGHT])).all()
    exact = 0
    for found, mask in zip(corners.flatten(1), masks, strict=True):
        true = torch.tensor(mask_box(mask.numpy()), dtype=torch.float32)
        exact += int(torch.equal(found, true))
        sides = (true[2:] - true[:2]).repeat(2)
        assert ((found - true).abs() <= 5 * prompt_sampling.BOX_NOISE * sides).all()
    assert 8 <= exact <= 32
