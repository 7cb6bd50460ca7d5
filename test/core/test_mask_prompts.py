"""Mask prompts at the model's size: resized as published, thickened where they would vanish, or rejected."""
import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from sam2_core import ImageSegmenter, Prompt, PromptError, StreamTracker
from sam2_core.mask_prompts import fit_mask
from sam2_core.metrics import iou


def published(mask: np.ndarray, size: int) -> np.ndarray:
    """Resize a mask to the model's square as the published code does."""
    pixels = torch.from_numpy(mask).float()[None, None]
    return (F.interpolate(pixels, size=(size, size), mode='bilinear', antialias=True)[0, 0] >= 0.5).numpy()


def returned(square: np.ndarray, height: int, width: int) -> np.ndarray:
    """Return the mask that the published tracker returns for a mask prompt in the model's square."""
    logits = torch.from_numpy(square).float()[None, None] * 20 - 10
    low = F.interpolate(logits, size=(len(square) // 4,) * 2, mode='bilinear', antialias=True)
    return (F.interpolate(low, size=(height, width), mode='bilinear')[0, 0] > 0).numpy()


def line(height, width, thickness, degrees=90.0, centre=None, length=0.6):
    """Return a straight line through ``centre``, ``length`` in units of the image's shorter side."""
    centre = np.array(centre or (width / 2, height / 2))
    along = np.array([np.cos(np.radians(degrees)), np.sin(np.radians(degrees))])
    across = np.array([-along[1], along[0]]) * thickness / 2
    along = along * length * min(height, width) / 2
    corners = np.array([centre - along - across, centre + along - across, centre + along + across,
                        centre - along + across])
    mask = np.zeros((height, width), np.uint8)
    cv2.fillPoly(mask, [np.round((corners - 0.5) * 16).astype(np.int32)], 1, shift=4)
    return mask.astype(bool)


def rectangle(height, width, x, y, across, down):
    mask = np.zeros((height, width), bool)
    mask[y:y + down, x:x + across] = True
    return mask


@pytest.mark.parametrize('size', [256, 1024])
def test_masks_of_which_nothing_vanishes_are_those_of_the_published_model(size):
    rows, columns = np.ogrid[:480, :640]
    disc = (rows - 200) ** 2 + (columns - 250) ** 2 < 90 ** 2
    ring = disc & ((rows - 200) ** 2 + (columns - 250) ** 2 > 50 ** 2)
    for mask in (disc, ring, disc | rectangle(480, 640, 400, 300, 60, 90), np.ones((480, 640), bool),
                 line(480, 640, 25, 30), rectangle(480, 640, 0, 0, 30, 25)):
        assert np.array_equal(fit_mask(mask, size), published(mask, size))


VANISHING = {
    'a cable': (rectangle(720, 1280, 640, 0, 4, 720), 256, 'too thin', (12, 6.75)),
    'a bolt': (rectangle(720, 1280, 640, 360, 6, 4), 256, 'too small', (25, 14.1)),
    'a line of one pixel': (line(720, 1280, 1, 45), 256, 'too thin', (12, 6.75)),
    'a line of one pixel, upright': (rectangle(1080, 1920, 900, 100, 1, 900), 1024, 'too thin', (4.5, 2.53)),
    'a pixel': (rectangle(1080, 1920, 900, 100, 1, 1), 1024, 'too small', (9.38, 5.27)),
}


@pytest.mark.parametrize(('mask', 'size', 'fault', 'needed'), VANISHING.values(), ids=VANISHING)
def test_vanishing_masks_are_refused_with_the_size_they_need(mask, size, fault, needed):
    height, width = mask.shape
    with pytest.raises(PromptError) as refused:
        Prompt(mask=mask).check(height, width, image_size=size)
    text = str(refused.value)
    x, y, across, down = cv2.boundingRect(mask.view(np.uint8))
    assert f'mask of {mask.sum()} pixels, {across} x {down} at ({x}, {y}): {fault}' in text
    assert f'the image of {width} x {height} as {size} x {size}' in text
    assert f'at least {needed[0]:g} pixels wide and {needed[1]:g} high' in text
    Prompt(mask=mask).check(height, width)  # for an image of its own size the mask is valid


@pytest.mark.fuzz
@pytest.mark.parametrize('size', [256, 1024])
def test_lines_and_dots_as_large_as_a_refusal_asks_are_never_refused(size, rounds):
    rng = np.random.default_rng(size)
    for _ in range(rounds(6, 200)):
        height, width = (int(side) for side in rng.integers(size // 2, 2 * size, 2))
        dot = [int(np.ceil(1.25 * 4 * side / size)) for side in (width, height)]
        x, y = rng.integers(0, width - dot[0]), rng.integers(0, height - dot[1])
        thickness = 0.6 * 4 * max(height, width) / size + 1  # a pixel for the ragged edge
        centre = tuple(rng.uniform(0.4, 0.6, 2) * (width, height))
        for mask in (rectangle(height, width, x, y, *dot),
                     line(height, width, thickness, rng.uniform(0, 180), centre)):
            assert iou(returned(fit_mask(mask, size), height, width), mask) >= 1 / 3


@pytest.mark.fuzz
def test_no_mask_is_taken_for_nothing_or_for_something_much_fatter(rounds):
    rng = np.random.default_rng(5)
    taken = 0
    for number in range(rounds(40, 5000)):
        size = 256 if number % 4 else 1024
        height, width = (int(side) for side in rng.integers(8, 700, 2))
        mask = odd_mask(rng, height, width)
        try:
            square = fit_mask(mask, size)
        except PromptError:
            continue
        taken += 1
        result = returned(square, height, width)
        assert result.any()
        changed = not np.array_equal(square, published(mask, size))
        assert not changed or iou(result, mask) >= 1 / 3
    assert taken > rounds(10, 1500)


def odd_mask(rng, height, width) -> np.ndarray:
    """Draw specks, lines, rings, nets and noise, some beside a blob."""
    mask = np.zeros((height, width), np.uint8)
    centre, thickness = (int(rng.integers(width)), int(rng.integers(height))), int(rng.integers(1, 12))
    kind = rng.integers(5)
    if kind == 0:
        mask[rng.random(mask.shape) < 0.02] = 1
    elif kind == 1:
        end = (int(rng.integers(width)), int(rng.integers(height)))
        cv2.line(mask, centre, end, 1, thickness)
    elif kind == 2:
        cv2.circle(mask, centre, int(rng.integers(1, 80)), 1, thickness)
    elif kind == 3:
        mask[::int(rng.integers(3, 40))] = 1
        mask[:, ::int(rng.integers(3, 40))] = 1
    if kind == 4 or rng.random() < 0.3:
        cv2.circle(mask, centre, int(rng.integers(1, 60)), 1, -1)
    mask[centre[1], centre[0]] = 1
    return mask.astype(bool)


def test_a_thin_cable_stays_whole_at_1024_pixels():
    for x in range(640, 646):
        mask = rectangle(720, 1280, x, 0, 4, 720)
        result = returned(fit_mask(mask, 1024), 720, 1280)
        assert result.any(axis=1).all() and iou(result, mask) > 0.5
    assert not min(returned(published(rectangle(720, 1280, x, 0, 4, 720), 1024), 720, 1280).sum()
                   for x in range(640, 646))  # as published, it vanishes if it falls between two cells


def test_a_handle_is_kept_where_it_can_be_and_left_out_where_not():
    blob = rectangle(480, 640, 100, 150, 120, 140)
    handle = rectangle(480, 640, 220, 211, 150, 5)
    assert not (returned(published(blob | handle, 256), 480, 640)[:, 240:]).any()
    kept = returned(fit_mask(blob | handle, 256), 480, 640)
    assert kept[:, 225:365].any(axis=0).all() and iou(kept, blob | handle) > 0.8
    hair = rectangle(480, 640, 220, 211, 150, 1)
    assert np.array_equal(fit_mask(blob | hair, 256), published(blob | hair, 256))


def test_one_of_several_parts_that_vanishes_is_left_out_and_iou_says_so(nano):
    blob, bolt = rectangle(480, 640, 100, 150, 120, 140), rectangle(480, 640, 400, 300, 3, 3)
    found = stepped(nano, blob | bolt)
    assert not found.mask[:, 300:].any() and found.iou == iou(found.mask, blob | bolt) < 1
    wires = [rectangle(480, 640, x, 60, 3, 300) for x in (400, 440, 480, 520, 560, 600)]
    small = rectangle(480, 640, 100, 150, 16, 14)
    with pytest.raises(PromptError, match=r'object 1: mask of .*too thin .*IoU 0.0\d'):
        stepped(nano, np.any([small, *wires], axis=0))


def stepped(model, mask):
    return StreamTracker(model).step(np.full((*mask.shape, 3), 90, np.uint8), [Prompt(1, mask=mask)]).objects[1]


@pytest.mark.parametrize('mask', [rectangle(480, 640, 300, 100, 7, 300), rectangle(480, 640, 200, 150, 120, 200),
                                  rectangle(480, 640, 200, 150, 14, 12), line(480, 640, 7, 40)])
def test_iou_of_a_mask_prompt_is_that_of_the_mask_given_and_the_mask_returned(nano, mask):
    found = stepped(nano, mask)
    assert found.box is not None and found.object_score > 0
    assert 0.3 < found.iou == iou(found.mask, mask) < 1
    assert not torch.equal(found.logits > 0, torch.zeros(64, 64, dtype=torch.bool))


def test_a_correction_by_a_thin_mask_is_refused_and_the_object_stays(nano, scene):
    tracker, other = StreamTracker(nano), StreamTracker(nano)
    for one in (tracker, other):
        one.step(scene.image(0), [Prompt(1, box=scene.box(1))])
    with pytest.raises(PromptError, match='object 1: mask of 240 pixels, 1 x 240 at .50, 0.: too thin'):
        tracker.step(scene.image(1), [Prompt(1, mask=rectangle(240, 320, 50, 0, 1, 240))])
    expected, found = (one.step(scene.image(1)).objects[1] for one in (other, tracker))
    assert torch.equal(found.logits, expected.logits)


def test_a_single_image_refuses_a_thin_mask_too(nano, scene):
    segmenter = ImageSegmenter(nano)
    with pytest.raises(PromptError, match='too thin'):
        segmenter.segment(segmenter.encode(scene.image(0)), Prompt(mask=rectangle(240, 320, 50, 0, 1, 240)))
