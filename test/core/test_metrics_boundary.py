"""F of boundaries, against cases that can be worked out on paper."""
import numpy as np
import pytest

from sam2_core.metrics import boundary_f


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
    # the right half cut off: three of the sides left of the middle agree, and none of the cut
    true, found = square(10, 10, 90, 50), square(10, 10, 50, 50)
    # boundary lengths: true 2 * 80 + 2 * 40, found 4 * 40; shared 40 + 40 + 40, and 2 pixels at either end of the cut
    precision, recall = 120 / 160, 120 / 240
    assert boundary_f(found, true) == pytest.approx(2 * precision * recall / (precision + recall), abs=0.03)


def test_shapes_must_agree():
    with pytest.raises(ValueError, match=r'\(100, 100\) and \(50, 50\)'):
        boundary_f(square(0, 0, 1, 1), square(0, 0, 1, 1, 50))
