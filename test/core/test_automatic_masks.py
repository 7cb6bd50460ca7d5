"""Automatic mask generation: search, filters, cleaning and order."""
import cv2
import numpy as np
import pytest
import torch

from sam2_core import Filters, FoundMask, ImageSegmenter
from sam2_core.automatic_masks import clean, point_grid, stability, suppress
from sam2_core.metrics import iou

LOOSE = Filters(min_iou=0.3, min_stability=0.5)  # nano predicts lower IoU than the published models


def found(box, predicted=0.9, shape=(60, 80)):
    mask = np.zeros(shape, bool)
    mask[box[1]:box[3], box[0]:box[2]] = True
    return FoundMask(mask, box, int(mask.sum()), predicted, 1.0, (0, 0))


@pytest.fixture(scope='module')
def masks(nano, scene):
    return ImageSegmenter(nano).segment_all(scene.image(0), points_per_side=10, filters=LOOSE)


def test_thing_in_the_image_is_among_the_masks(masks, scene):
    assert max(iou(item.mask, scene.truth(2, 0)) for item in masks) > 0.7


def test_masks_are_described_and_sorted_by_size(masks):
    assert [item.area for item in masks] == sorted((item.area for item in masks), reverse=True)
    for item in masks:
        rows, columns = np.nonzero(item.mask)
        assert item.area == len(rows)
        assert item.box == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
        assert item.iou > LOOSE.min_iou and item.stability >= LOOSE.min_stability


def test_no_two_masks_have_nearly_the_same_box(masks):
    def overlap(a, b):
        width = min(a[2], b[2]) - max(a[0], b[0])
        height = min(a[3], b[3]) - max(a[1], b[1])
        inner = max(width, 0) * max(height, 0)
        return inner / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - inner)

    for i, one in enumerate(masks):
        assert all(overlap(one.box, other.box) <= LOOSE.max_box_overlap for other in masks[:i])


def test_answer_does_not_depend_on_the_size_of_batches(nano, scene, masks):
    again = ImageSegmenter(nano).segment_all(scene.image(0), points_per_side=10, filters=LOOSE, points_per_batch=7)
    assert len(again) == len(masks)
    for one, other in zip(masks, again, strict=True):
        assert iou(one.mask, other.mask) > 0.99


def test_features_of_the_image_serve_as_well(nano, scene, masks):
    segmenter = ImageSegmenter(nano)
    again = segmenter.segment_all(segmenter.encode(scene.image(0)), points_per_side=10, filters=LOOSE)
    assert [item.box for item in again] == [item.box for item in masks]


def test_time_limit_ends_the_search_early_and_keeps_what_was_found(nano, scene, masks):
    few = ImageSegmenter(nano).segment_all(scene.image(0), points_per_side=10, filters=LOOSE, time_limit=0.0,
                                           points_per_batch=50)
    assert 0 < len(few) <= len(masks)


def test_search_in_slices_finds_the_same(nano, scene, masks):
    segmenter = ImageSegmenter(nano)
    search = segmenter.search(segmenter.encode(scene.image(0)), points_per_side=10, filters=LOOSE, points_per_batch=64)
    assert search.masks() == [] and not search.complete
    search.advance()
    early = search.masks()
    assert early and not search.complete
    search.advance()
    assert search.complete
    again = search.masks()
    assert len(again) == len(masks)
    for one, other in zip(again, masks, strict=True):
        assert (one.mask == other.mask).all()
        assert (one.box, one.area, one.iou, one.stability, one.point) == (
            other.box, other.area, other.iou, other.stability, other.point)


def test_masks_found_so_far_are_filtered_like_all(nano, scene):
    segmenter = ImageSegmenter(nano)
    encoded = segmenter.encode(scene.image(0))
    cleaning = Filters(min_iou=0.3, min_stability=0.5, min_area=200)
    search = segmenter.search(encoded, points_per_side=10, filters=cleaning, points_per_batch=40)
    search.advance()
    stopped = segmenter.segment_all(encoded, points_per_side=10, filters=cleaning, points_per_batch=40, time_limit=0.0)
    assert [(item.box, item.area) for item in search.masks()] == [(item.box, item.area) for item in stopped]


def test_complete_search_runs_no_more_clicks(nano, scene):
    segmenter = ImageSegmenter(nano)
    search = segmenter.search(segmenter.encode(scene.image(0)), points_per_side=4, filters=LOOSE)
    search.advance()
    before = len(search.masks())
    search.advance()
    assert search.complete and len(search.masks()) == before


def test_strict_filters_keep_less(nano, scene, masks):
    strict = Filters(min_iou=0.99, min_stability=0.99)
    assert len(ImageSegmenter(nano).segment_all(scene.image(0), points_per_side=6, filters=strict)) < len(masks)


def test_grid_points_lie_in_the_middle_of_cells():
    assert point_grid(2).tolist() == [[0.25, 0.25], [0.75, 0.25], [0.25, 0.75], [0.75, 0.75]]
    assert point_grid(32).shape == (1024, 2)


def test_stability_counts_pixels_between_the_thresholds():
    logits = torch.tensor([[2.0, 0.5, -0.5, -2.0]])
    assert stability(logits, 1.0) == pytest.approx(1 / 3)
    assert stability(torch.full((2, 2), -5.0), 1.0) == 1.0


def test_first_of_two_overlapping_boxes_stays():
    kept = suppress([found((0, 0, 20, 20)), found((1, 1, 20, 20)), found((0, 0, 10, 10)), found((40, 0, 60, 20))], 0.7)
    assert [item.box for item in kept] == [(0, 0, 20, 20), (0, 0, 10, 10), (40, 0, 60, 20)]


def test_small_holes_are_filled_and_small_islands_dropped():
    mask = np.zeros((60, 80), np.uint8)
    cv2.rectangle(mask, (10, 10), (39, 39), 1, cv2.FILLED)
    mask[20:22, 20:22] = 0  # a hole of 4 pixels
    mask[25:35, 25:35] = 0  # one of 100
    mask[50:52, 60:62] = 1  # an island of 4
    item = FoundMask(mask.astype(bool), (10, 10, 62, 52), int(mask.sum()), 0.9, 1.0, (0, 0))
    expected = mask.copy()
    expected[20:22, 20:22] = 1
    expected[50:52, 60:62] = 0
    cleaned = clean(item, 10)
    assert (cleaned.mask == expected.astype(bool)).all()
    assert cleaned.area == 800 and cleaned.box == (10, 10, 40, 40)


def test_largest_island_stays_however_small():
    cleaned = clean(found((5, 5, 8, 8)), 100)
    assert cleaned.area == 9


@pytest.mark.parametrize('arguments', [{'points_per_side': 0}, {'points_per_batch': 0}])
def test_empty_grid_is_refused(nano, scene, arguments):
    with pytest.raises(ValueError, match='both must be at least 1'):
        ImageSegmenter(nano).segment_all(scene.image(0), **arguments)
