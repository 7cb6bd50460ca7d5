"""Boxes of a detector in pixels of its own input."""
import math

import cv2
import numpy as np
import pytest

from sam2_core.masks import mask_box
from sam2_ros.perception.detection_pixels import ImageFit
from sam2_ros.perception.detection_prompts import DetectionGate, read
from sam2_ros.runtime.parameters import Parameters
from test.ros.perception.test_detection_prompts import array

FITS = ('stretch', 'letterbox', 'corner', 'crop')
SIZES = [(480, 640), (720, 1280), (640, 480), (300, 300)]  # of images, height and width
INPUTS = [(640, 640), (320, 416), (416, 320)]  # of detectors


def detector_input(image: np.ndarray, height: int, width: int, fit: str) -> np.ndarray:
    """Return an image as a detector's preprocessing makes it, with OpenCV."""
    if fit == 'stretch':
        return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
    rows, columns = image.shape
    if fit == 'crop':  # first cut to the shape of the input, as cameras with a detector on board do
        ratio = width / height
        kept = min(rows, round(columns / ratio)), min(columns, round(rows * ratio))
        top, left = (rows - kept[0]) // 2, (columns - kept[1]) // 2
        return cv2.resize(image[top:top + kept[0], left:left + kept[1]], (width, height), interpolation=cv2.INTER_AREA)
    ratio = min(height / rows, width / columns)
    small = cv2.resize(image, (round(columns * ratio), round(rows * ratio)), interpolation=cv2.INTER_AREA)
    down, across = height - small.shape[0], width - small.shape[1]
    above, before = (down // 2, across // 2) if fit == 'letterbox' else (0, 0)
    return cv2.copyMakeBorder(small, above, down - above, before, across - before, cv2.BORDER_CONSTANT, value=0)


@pytest.mark.parametrize('fit', FITS)
@pytest.mark.parametrize('inner', INPUTS, ids=str)
@pytest.mark.parametrize('size', SIZES, ids=str)
def test_a_box_in_the_input_of_a_detector_is_found_again_in_the_image(size, inner, fit):
    (height, width), (rows, columns) = size, inner
    truth = (width // 2 - 60, height // 2 - 90, width // 2 + 100, height // 2 + 40)
    image = np.zeros(size, np.uint8)
    image[truth[1]:truth[3], truth[0]:truth[2]] = 255
    seen = mask_box(detector_input(image, rows, columns, fit) >= 128)
    chosen = Parameters(detections_width=columns, detections_height=rows, detections_fit=fit)
    (found,), refused = read(array([(seen, 'cup', 0.9)]), chosen, height, width)
    pixel = max(width / columns, height / rows, 1)  # of the detector, in the image
    assert not refused and found.box == pytest.approx(truth, abs=1.5 * pixel)


@pytest.mark.parametrize(('parameters', 'box'), [
    (Parameters(), (10, 20, 110, 640)),  # the lower part of a detector input of 640 x 640
    (Parameters(), (640, 20, 700, 60)),
    (Parameters(), (-60, 20, 100, 60)),
    (Parameters(detections_width=640, detections_height=640), (10, 20, 1000, 300)),
    (Parameters(detections_width=640, detections_height=640, detections_fit='letterbox'), (10, 10, 100, 70)),  # a bar
    (Parameters(detections_width=300, detections_height=300, detections_fit='letterbox'), (10, 100, 400, 200)),
])
def test_one_box_in_another_scale_refuses_the_message_and_names_the_cure(parameters, box):
    found, (refused,) = read(array([((10, 100, 50, 150), 'dog', 0.9), (box, 'cup', 0.9)]), parameters, 480, 640)
    assert found == []
    assert refused.startswith(f"detection 'cup' with box ({', '.join(map(str, box))}): must lie within the image of "
                              f'640 x 480 pixels')
    assert 'set detections_width, detections_height and detections_fit' in refused
    if parameters.detections_width:
        size = f'{parameters.detections_width} x {parameters.detections_height} ({parameters.detections_fit})'
        assert f'in a detector input of {size}' in refused


def test_a_detection_that_is_not_wanted_shows_the_scale_too():
    others = array([((10, 100, 50, 150), 'dog', 0.9), ((10, 100, 50, 640), 'cup', 0.1)])
    found, (refused,) = read(others, Parameters(detections_classes=('dog',)), 480, 640)
    assert found == [] and refused.startswith("detection 'cup'")


@pytest.mark.parametrize('overhang', [0.4, 2.0, 23.9])
def test_a_detector_that_does_not_clip_its_boxes_is_understood(overhang):
    (found,), refused = read(array([((-overhang, 100, 640 + overhang, 480 + overhang), 'cup', 0.9)]), Parameters(),
                             480, 640)
    assert not refused and found.box == (0, 100, 640, 480)


def test_the_corners_of_a_rotated_box_may_lie_outside():
    long_box = [((-100, 20, 300, 40), 'cup', 0.9, math.pi / 4)]  # centre (100, 30), 300 pixels long in x and y
    (found,), refused = read(array(long_box), Parameters(), 480, 640)
    assert not refused and found.box[:2] == (0, 0)
    found, refused = read(array([((300, 500, 400, 600), 'cup', 0.9, math.pi / 4)]), Parameters(), 480, 640)
    assert found == [] and len(refused) == 1


def test_a_refused_message_leaves_the_gate_ready_for_the_next():
    gate = DetectionGate()
    gate.put(array([((10, 20, 110, 640), 'cup', 0.9)]))
    assert gate.take(Parameters(), 480, 640).refused
    gate.put(array([((10, 20, 110, 440), 'cup', 0.9)]))
    assert len(gate.take(Parameters(), 480, 640).prompts) == 1


def test_without_a_size_boxes_are_taken_as_they_are():
    box = 0.25, 1.5, 33.3, 44.4
    assert ImageFit.of(Parameters(detections_fit='crop'), 480, 640).to_image(box) == box
