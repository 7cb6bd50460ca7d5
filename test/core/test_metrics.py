"""J and F equal the published tools of DAVIS and SA-V, and cases that can be worked out on paper."""
import json
from pathlib import Path

import numpy as np
import pytest

from sam2_core.metrics import boundary_f, box_iou, counted_frames, iou
from testing import metric_masks

# written by testing/published_metrics.py
PUBLISHED = json.loads(Path(metric_masks.__file__).with_name('published_metrics.json').read_text())


def test_the_published_values_were_made_for_these_masks():
    assert metric_masks.digest() == PUBLISHED['masks']


def test_j_and_f_of_a_frame_are_those_of_the_published_tools():
    pairs = metric_masks.pairs()
    found = {name: [iou(*pair), boundary_f(*pair)] for name, pair in pairs.items()}
    assert found.keys() == PUBLISHED['pairs'].keys()
    for name, values in PUBLISHED['pairs'].items():
        assert found[name] == pytest.approx(values, abs=1e-6), name


@pytest.mark.parametrize(('tool', 'rule'), [
    ('DAVIS', {}), ('SA-V', {'sav': True}), ('SA-V, all frames', {'sav': True, 'skip_first_and_last': False})])
def test_the_mean_of_an_object_is_that_of_the_published_tools(tool, rule):
    for seed in metric_masks.SEQUENCES:
        published = PUBLISHED['sequences'][tool][f'sequence{seed}']
        predicted, true = metric_masks.sequence(seed)
        assert len(published) == true.max()
        for number, values in published.items():
            pairs = [(a == int(number), b == int(number)) for a, b in zip(predicted, true, strict=True)]
            counted = [pairs[frame] for frame in counted_frames([(a | b).any() for a, b in pairs], **rule)]
            means = [np.mean([metric(*pair) for pair in counted]) for metric in (iou, boundary_f)]
            assert means == pytest.approx(values, abs=1e-6), f'sequence {seed}, object {number}'


@pytest.mark.parametrize('frames', [0, 1, 2])
def test_too_few_frames_leave_none_to_count(frames):
    assert not counted_frames([True] * frames)
    assert not counted_frames([False] * frames, skip_first_and_last=False, sav=True)


def square(x0, y0, x1, y1, size=100):
    mask = np.zeros((size, size), bool)
    mask[y0:y1, x0:x1] = True
    return mask


def test_equal_masks_have_equal_boundaries():
    assert boundary_f(square(20, 20, 60, 60), square(20, 20, 60, 60)) == 1


def test_a_shift_within_the_tolerance_costs_nothing():
    # 0.008 of the diagonal of 100 x 100 is 1.1 pixels, rounded up to 2
    assert boundary_f(square(22, 20, 62, 60), square(20, 20, 60, 60)) == 1
    assert boundary_f(square(23, 20, 63, 60), square(20, 20, 60, 60)) < 1


def test_boundaries_far_apart_share_nothing():
    assert boundary_f(square(10, 10, 30, 30), square(60, 60, 90, 90)) == 0


def test_empty_masks():
    empty = square(0, 0, 0, 0)
    assert boundary_f(empty, empty) == 1
    assert boundary_f(square(10, 10, 20, 20), empty) == 0
    assert boundary_f(empty, square(10, 10, 20, 20)) == 0


def test_half_of_the_boundary_right():
    # the right half is cut off: three sides agree left of the middle, and no side at the cut
    true, found = square(10, 10, 90, 50), square(10, 10, 50, 50)
    # boundary lengths: true 2 * 80 + 2 * 40, found 4 * 40; shared 40 + 40 + 40, and 2 pixels at either end of the cut
    precision, recall = 120 / 160, 120 / 240
    assert boundary_f(found, true) == pytest.approx(2 * precision * recall / (precision + recall), abs=0.03)


def test_shapes_must_agree():
    with pytest.raises(ValueError, match=r'\(100, 100\) and \(50, 50\)'):
        boundary_f(square(0, 0, 1, 1), square(0, 0, 1, 1, 50))


def test_boxes_overlap_by_the_share_of_their_union():
    others = np.array([(0, 0, 10, 10), (5, 0, 15, 10), (10, 0, 20, 10), (2, 2, 4, 7)], float)
    assert box_iou((0, 0, 10, 10), others) == pytest.approx([1, 1 / 3, 0, 0.1])
    assert box_iou(others[0], others[:0]).shape == (0,)
