"""Messages and images of a frame: instances, label image, overlay."""
import numpy as np
import pytest
from builtin_interfaces.msg import Time
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from sensor_msgs.msg import Image
from std_msgs.msg import Header

from sam2_core.drawing.overlay import colour
from sam2_core.masks import mask_box
from sam2_ros.drawing.label_images import label_image
from sam2_ros.drawing.overlay import draw_overlay
from sam2_ros.msg import Instance
from sam2_ros.perception.frame import Frame, TrackedObject
from sam2_ros.perception.instance_messages import instance_message

HEADER = Header(stamp=Time(sec=5, nanosec=6), frame_id='camera')


def tracked(object_id: int, mask: np.ndarray, score: float = 0.9, label: str = '') -> TrackedObject:
    return TrackedObject(object_id, label, Instance.TRACKED, score, 0.99, HEADER.stamp, mask_box(mask), mask)


def hidden(object_id: int, state: int = Instance.OCCLUDED, label: str = '') -> TrackedObject:
    return TrackedObject(object_id, label, state, 0.0, 0.1, Time(sec=3))


def rectangle(x0, y0, x1, y1, height=60, width=80) -> np.ndarray:
    mask = np.zeros((height, width), bool)
    mask[y0:y1, x0:x1] = True
    return mask


def frame(*objects: TrackedObject, height=60, width=80) -> Frame:
    return Frame(HEADER, np.full((height, width, 3), 100, np.uint8), list(objects), 0)


@given(mask=arrays.arrays(bool, st.tuples(st.integers(1, 20), st.integers(1, 20))).filter(np.any))
@settings(max_examples=60)
def test_the_numbers_are_those_of_the_mask(mask):
    message = instance_message(tracked(7, mask, label='cup'), HEADER)
    rows, columns = np.nonzero(mask)
    assert (message.id, message.label, message.state, message.last_seen) == (7, 'cup', Instance.TRACKED, HEADER.stamp)
    assert message.area == mask.sum()
    assert message.centroid_x == pytest.approx(columns.mean(), abs=1e-4)
    assert message.centroid_y == pytest.approx(rows.mean(), abs=1e-4)
    roi, crop = message.roi, message.mask
    assert (crop.height, crop.width, crop.encoding, crop.header) == (roi.height, roi.width, 'mono8', HEADER)
    again = np.zeros_like(mask, np.uint8)
    again[roi.y_offset:roi.y_offset + roi.height, roi.x_offset:roi.x_offset + roi.width] = (
        np.asarray(crop.data).reshape(crop.height, crop.width))
    np.testing.assert_array_equal(again, mask * 255)
    assert rows.min() == roi.y_offset and columns.max() == roi.x_offset + roi.width - 1


@pytest.mark.parametrize('state', [Instance.OCCLUDED, Instance.LOST])
def test_what_is_not_visible_has_no_mask_but_a_time(state):
    message = instance_message(hidden(7, state), HEADER)
    assert message.state == state and message.last_seen == Time(sec=3)
    assert message.roi.width == 0 and message.area == 0 and message.score == 0
    assert message.mask == Image()


def test_label_image_holds_ids_and_the_higher_score_wins():
    labels = label_image(frame(tracked(300, rectangle(0, 0, 20, 20), score=0.9),
                               tracked(65535, rectangle(10, 10, 40, 40), score=0.5), hidden(3)))
    assert labels.dtype == np.uint16 and labels.shape == (60, 80)
    assert labels[5, 5] == labels[15, 15] == 300
    assert labels[30, 30] == 65535
    assert labels[50, 50] == 0
    assert set(np.unique(labels)) == {0, 300, 65535}


def test_overlay_colours_the_object_and_leaves_image_and_background_alone():
    mask = rectangle(30, 30, 70, 55)
    shown = frame(tracked(1, mask))
    picture = draw_overlay(shown.image, shown.objects, opacity=1.0)
    assert picture.shape == shown.image.shape and picture.dtype == np.uint8
    assert tuple(picture[48, 50]) == colour(1)
    assert (picture[:10, :] == 100).all()
    assert (shown.image == 100).all()


def test_overlay_without_opacity_draws_the_outline_only():
    shown = frame(tracked(1, rectangle(20, 25, 70, 58)))
    picture = draw_overlay(shown.image, shown.objects, opacity=0.0)
    assert tuple(picture[45, 45]) == (100, 100, 100)
    assert np.abs(picture[50, 20].astype(int) - colour(1)).max() < 60  # its edges are smooth


def test_overlay_lists_what_is_not_visible():
    shown = frame(hidden(2, Instance.LOST, 'cup'), height=240, width=320)
    picture = draw_overlay(shown.image, shown.objects, 0.5)
    assert tuple(picture[-2, 1]) == colour(2)
    assert (picture[:200] == 100).all()


@given(box=st.tuples(st.integers(0, 7), st.integers(0, 5), st.integers(1, 8), st.integers(1, 6))
       .filter(lambda box: box[0] < box[2] and box[1] < box[3]), label=st.text(max_size=40))
@settings(max_examples=40)
def test_overlay_can_be_drawn_at_any_place_with_any_label(box, label):
    objects = tracked(1, rectangle(*box, height=6, width=8), label=label), hidden(2, label=label)
    shown = frame(*objects, height=6, width=8)
    assert draw_overlay(shown.image, shown.objects, 0.4).shape == (6, 8, 3)


@pytest.mark.parametrize('label', ['Tasse à café', '\ud800', 'カップ', '\n'])
def test_a_label_that_the_font_does_not_have_is_drawn_with_question_marks(label):
    image, mask = np.zeros((60, 80, 3), np.uint8), np.zeros((60, 80), bool)
    mask[20:40, 20:40] = True
    item = TrackedObject(1, label, Instance.TRACKED, 0.9, 0.9, Time(), (20, 20, 40, 40), mask)
    assert draw_overlay(image, [item], 0.5).any()


def test_colours_are_stable_and_neighbours_differ():
    colours = np.array([colour(object_id) for object_id in range(1, 9)], int)
    assert tuple(colours[0]) == colour(1)
    distances = np.abs(colours[:, None] - colours[None]).sum(-1) + 999 * np.eye(8, dtype=int)
    assert distances.min() > 60
