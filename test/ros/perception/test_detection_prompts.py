"""A detector's boxes: which become prompts, and for which object."""
import math
import re
from types import SimpleNamespace

import numpy as np
import pytest
from builtin_interfaces.msg import Time
from hypothesis import given, settings
from hypothesis import strategies as st

from sam2_core.masks import mask_box
from sam2_core.metrics import box_iou
from sam2_ros.messages.vision import vision_msgs
from sam2_ros.msg import Instance, Prompt
from sam2_ros.perception.detection_pixels import upright
from sam2_ros.perception.detection_prompts import Detection, DetectionGate, Known, propose, read
from sam2_ros.perception.frame import Frame, TrackedObject
from sam2_ros.perception.prompt_plan import PromptAnswer, PromptRequest, refuse
from sam2_ros.runtime.parameters import Parameters
from testing.camera_images import header

HEIGHT, WIDTH = 480, 640
PARAMETERS = Parameters()
boxes = st.tuples(st.integers(0, 599), st.integers(0, 439), st.integers(1, 40), st.integers(1, 40)).map(
    lambda box: (box[0], box[1], box[0] + box[2], box[1] + box[3]))


def array(detections, seconds: float = 1.0):
    """Return a Detection2DArray of (box, label, score), or a stand-in with its fields without vision_msgs."""
    real = vision_msgs or SimpleNamespace(**dict.fromkeys(
        ('BoundingBox2D', 'Pose2D', 'Point2D', 'Detection2D', 'Detection2DArray', 'ObjectHypothesis',
         'ObjectHypothesisWithPose'), SimpleNamespace))
    items = []
    for (x0, y0, x1, y1), label, score, *theta in detections:
        centre = real.Pose2D(position=real.Point2D(x=(x0 + x1) / 2, y=(y0 + y1) / 2), theta=float(*theta or (0,)))
        items.append(real.Detection2D(
            bbox=real.BoundingBox2D(center=centre, size_x=float(x1 - x0), size_y=float(y1 - y0)),
            results=[real.ObjectHypothesisWithPose(hypothesis=real.ObjectHypothesis(class_id=label, score=score))]))
    return real.Detection2DArray(header=header(seconds), detections=items)


def wanted(detections, parameters=PARAMETERS):
    return read(array(detections), parameters, HEIGHT, WIDTH)


def box_of(prompt: Prompt):
    box = prompt.box
    return box.x_offset, box.y_offset, box.x_offset + box.width, box.y_offset + box.height


# --- reading a message

def test_a_detection_is_read_as_it_is():
    (found,), refused = wanted([((10, 20, 30, 60), 'cup', 0.9)])
    assert found == Detection((10, 20, 30, 60), 'cup', 0.9) and not refused


def test_the_best_hypothesis_counts():
    message = array([((10, 20, 30, 60), 'cup', 0.6)])
    message.detections[0].results.append(array([((0, 0, 1, 1), 'mug', 0.8)]).detections[0].results[0])
    (found,), _ = read(message, PARAMETERS, HEIGHT, WIDTH)
    assert (found.label, found.score) == ('mug', 0.8)


def test_only_classes_asked_for_and_scores_high_enough_are_taken():
    detections = [((0, 0, 9, 9), 'cup', 0.9), ((20, 0, 29, 9), 'dog', 0.9), ((40, 0, 49, 9), 'cup', 0.3),
                  ((60, 0, 69, 9), 'cup', math.nan)]
    found, refused = wanted(detections, Parameters(detections_classes=('cup',), detections_min_score=0.5))
    assert [item.box for item in found] == [(0, 0, 9, 9)] and not refused
    assert len(wanted(detections)[0]) == 2


def test_a_detection_without_hypothesis_is_below_every_score():
    message = array([((0, 0, 9, 9), 'cup', 0.9)])
    message.detections[0].results = []
    assert read(message, PARAMETERS, HEIGHT, WIDTH) == ([], [])


def test_two_detections_of_one_thing_are_the_surer_one():
    found, _ = wanted([((10, 10, 50, 50), 'mug', 0.7), ((12, 10, 52, 50), 'cup', 0.9), ((70, 10, 110, 50), 'cup', 0.6)])
    assert [(item.label, item.score) for item in found] == [('cup', 0.9), ('cup', 0.6)]


def test_boxes_are_cut_at_the_edge_of_the_image():
    (found,), refused = wanted([((-30, 400, 100, 500), 'cup', 0.9)])
    assert found.box == (0, 400, 100, HEIGHT) and not refused


@pytest.mark.parametrize(('box', 'reason'), [
    ((641, 20, 660, 90), r'box \(641, 20, 660, 90\): outside the image; it has no pixel in it'),
    ((10, 10, 10, 50), '0 x 40 pixels .*size positive'),
    ((10, 10, 50, 10), '40 x 0 pixels .*size positive'),
    ((10, 10, math.nan, 50), 'must be finite'),
    ((10, 10, math.inf, 50), 'must be finite'),
])
def test_a_box_that_cannot_be_used_is_refused_and_the_others_are_not(box, reason):
    (found,), (refused,) = wanted([(box, 'cup', 0.9), ((10, 10, 50, 50), 'dog', 0.8)])
    assert found.label == 'dog'
    assert refused.startswith("detection 'cup'") and re.search(reason, refused)


@pytest.mark.parametrize('theta', [math.nan, math.inf])
def test_a_rotation_that_is_no_number_is_refused(theta):
    assert wanted([((10, 10, 50, 50), 'cup', 0.9, theta)])[0] == []


@given(x=st.floats(100, 500), y=st.floats(100, 400), size=st.tuples(st.floats(1, 90), st.floats(1, 90)),
       theta=st.floats(-7, 7))
@settings(max_examples=100)
def test_the_upright_box_touches_every_side_of_the_rotated_one(x, y, size, theta):
    box = array([((x - size[0] / 2, y - size[1] / 2, x + size[0] / 2, y + size[1] / 2), '', 1.0, theta)],
                ).detections[0].bbox
    corners = np.array([(-1, -1), (-1, 1), (1, -1), (1, 1)]) / 2 * size
    turned = corners @ np.array([[math.cos(theta), math.sin(theta)], [-math.sin(theta), math.cos(theta)]]) + (x, y)
    assert upright(box) == pytest.approx((*turned.min(0), *turned.max(0)), abs=1e-6)


@given(boxes, boxes)
@settings(max_examples=100)
def test_iou_is_that_of_the_pixels(first, second):
    grids = np.zeros((2, HEIGHT, WIDTH), bool)
    for grid, (x0, y0, x1, y1) in zip(grids, (first, second), strict=True):
        grid[y0:y1, x0:x1] = True
    expected = (grids[0] & grids[1]).sum() / (grids[0] | grids[1]).sum()
    np.testing.assert_allclose(box_iou(first, np.array([second, first])), (expected, 1))


# --- which object it is

def known(object_id, box, label='cup', visible_now=None):
    return Known(object_id, label, box is not None if visible_now is None else visible_now, box)


def proposed(detections, objects, min_iou=0.5):
    return propose([Detection(box, label, 0.9) for box, label in detections], objects, min_iou, header(1.0))


def test_something_new_is_set_with_its_box_its_label_and_the_image_it_was_seen_on():
    (prompt,) = proposed([((10.4, 20.0, 30.2, 60.9), 'cup')], [known(3, (200, 200, 240, 240))])
    assert (prompt.action, prompt.id, prompt.label, prompt.header) == (Prompt.SET, 0, 'cup', header(1.0))
    assert box_of(prompt) == (10, 20, 31, 61)


def test_what_is_tracked_is_left_alone_whatever_it_is_called():
    assert proposed([((12, 20, 52, 60), 'mug')], [known(3, (10, 20, 50, 60), 'cup')]) == []


def test_overlap_below_the_limit_is_something_else():
    objects = [known(3, (0, 0, 100, 100))]
    assert proposed([((0, 0, 100, 60), 'cup')], objects, min_iou=0.5) == []
    assert len(proposed([((0, 0, 100, 60), 'cup')], objects, min_iou=0.7)) == 1


def test_the_one_hidden_object_of_its_label_is_found_again_under_its_id():
    objects = [known(3, None, 'cup'), known(4, None, 'dog'), known(5, (200, 200, 240, 240), 'cup')]
    (prompt,) = proposed([((10, 20, 50, 60), 'cup')], objects)
    assert (prompt.action, prompt.id) == (Prompt.REFINE, 3)


@pytest.mark.parametrize(('detections', 'objects'), [
    ([((10, 20, 50, 60), 'cup')], [known(3, None), known(4, None)]),
    ([((10, 20, 50, 60), 'cup'), ((90, 20, 130, 60), 'cup')], [known(3, None)]),
    ([((10, 20, 50, 60), 'cup')], [known(3, None, 'dog')]),
    ([((10, 20, 50, 60), '')], [known(3, None, '')]),
], ids=['two hidden objects', 'two detections', 'another label', 'no label'])
def test_in_doubt_it_is_a_new_object(detections, objects):
    prompts = proposed(detections, objects)
    assert [prompt.action for prompt in prompts] == [Prompt.SET] * len(detections)


def test_what_came_back_by_itself_since_is_left_alone():
    assert proposed([((10, 20, 50, 60), 'cup')], [known(3, None, visible_now=True)]) == []


# --- over time

class Camera:
    """Camera that tracks each prompt of the gate perfectly: the mask fills ``part`` of the prompt's box."""

    def __init__(self, parameters=PARAMETERS, part=1.0):
        self.gate = DetectionGate()
        self.parameters = parameters
        self.part = part
        self.objects: dict[int, tuple] = {}  # id: (label, box or None)

    def detect(self, seconds, *detections):
        self.gate.put(array([(box, label, 0.9) for box, label in detections], seconds))
        return self.take()

    def take(self):
        return self.gate.take(self.parameters, HEIGHT, WIDTH).prompts

    def apply(self, prompts):
        """Apply prompts and pass the answers to the gate; return the ids."""
        answers = []
        for prompt in prompts:
            object_id = prompt.id or max(self.objects, default=0) + 1
            x0, y0, x1, y1 = box_of(prompt)
            box = x0, y0, x0 + max(1, round((x1 - x0) * self.part)), y1
            self.objects[object_id] = prompt.label, box
            answers.append(PromptAnswer(PromptRequest(prompt, 0.0), object_id, prompt.header,
                                        item=self.tracked(object_id)))
        return answers

    def tracked(self, object_id):
        label, box = self.objects[object_id]
        if box is None:
            return TrackedObject(object_id, label, Instance.OCCLUDED, 0.0, 0.1, Time())
        mask = np.zeros((HEIGHT, WIDTH), bool)
        mask[box[1]:box[3], box[0]:box[2]] = True
        return TrackedObject(object_id, label, Instance.TRACKED, 0.9, 0.9, Time(), mask_box(mask), mask)

    def show(self, seconds, answers=(), without=()):
        objects = [self.tracked(object_id) for object_id in self.objects if object_id not in without]
        self.gate.see(Frame(header(seconds), np.zeros((HEIGHT, WIDTH, 3), np.uint8), objects, 0), answers,
                      self.parameters)

    def follow(self, seconds, *detections):
        """Show an image and its detections without a delay."""
        answers = self.apply(self.detect(seconds, *detections))
        self.show(seconds, answers)


@given(detections=st.lists(st.tuples(boxes, st.sampled_from(['cup', 'dog', ''])), max_size=5),
       part=st.floats(0.05, 1.0))
@settings(max_examples=60, deadline=None)
def test_ids_never_change_while_the_boxes_stay(detections, part):
    """Masks may fill the detector's boxes badly."""
    camera = Camera(part=part)
    camera.follow(1.0, *detections)
    first = dict(camera.objects)
    for step in range(1, 4):
        assert camera.detect(1 + step / 10, *detections) == []
        camera.show(1 + step / 10)
    assert camera.objects == first


def test_a_moving_object_is_compared_with_where_it_was_when_the_detector_saw_it():
    camera = Camera()
    camera.follow(1.0, ((0, 100, 40, 140), 'cup'))
    for step in range(1, 11):
        camera.objects[1] = 'cup', (50 * step, 100, 50 * step + 40, 140)
        camera.show(1 + step / 10)
    assert camera.detect(1.3, ((150, 100, 190, 140), 'cup')) == []
    assert camera.detect(1.35, ((175, 100, 215, 140), 'cup')) == []  # between two images
    assert [prompt.action for prompt in camera.detect(1.3, ((500, 100, 540, 140), 'cup'))] == [Prompt.SET]


def test_an_object_on_its_way_from_a_past_image_is_not_prompted_again():
    camera = Camera()
    prompts = camera.detect(1.0, ((0, 100, 40, 140), 'cup'))
    camera.show(1.1)
    assert camera.detect(1.1, ((50, 100, 90, 140), 'cup')) == []  # not answered yet
    answers = camera.apply(prompts)
    camera.show(1.2, answers, without=[1])
    assert camera.take() == []  # answered, not yet in the live images
    camera.objects[1] = 'cup', (150, 100, 190, 140)
    camera.show(1.3)
    assert camera.take() == []  # the detections of 1.1, where the object was on its way
    assert camera.detect(1.3, ((150, 100, 190, 140), 'cup')) == []


def test_of_detections_that_wait_the_newest_counts():
    camera = Camera()
    prompts = camera.detect(1.0, ((0, 100, 40, 140), 'cup'))
    assert camera.detect(1.1, ((300, 100, 340, 140), 'dog')) == camera.detect(1.2, ((400, 100, 440, 140), 'cat')) == []
    camera.show(1.2, camera.apply(prompts))
    assert [prompt.label for prompt in camera.take()] == ['cat']
    assert camera.take() == []


def test_a_refused_prompt_does_not_hold_up_the_next():
    camera = Camera()
    (prompt,) = camera.detect(1.0, ((0, 100, 40, 140), 'cup'))
    camera.show(1.0, [refuse(PromptRequest(prompt, 0.0), 'max_objects')])
    assert len(camera.detect(1.1, ((0, 100, 40, 140), 'cup'))) == 1


def test_an_object_that_never_turns_up_does_not_hold_up_the_others_for_ever():
    camera = Camera()
    camera.show(1.0, camera.apply(camera.detect(1.0, ((0, 100, 40, 140), 'cup'))), without=[1])
    del camera.objects[1]  # removed by a user on its way
    for step in range(1, 100):
        camera.show(1 + step / 100)
    assert len(camera.detect(2.0, ((300, 100, 340, 140), 'dog'))) == 1


def test_no_more_is_started_than_there_is_room_for_and_the_surest_first():
    camera = Camera(Parameters(max_objects=3))
    camera.follow(1.0, ((0, 100, 40, 140), 'cup'))
    boxes = [((100 * column, 200, 100 * column + 40, 240), f'cup {column}', 0.6 + 0.1 * column) for column in range(4)]
    camera.gate.put(array([((0, 100, 40, 140), 'cup', 0.9), *boxes], 1.1))
    proposal = camera.gate.take(camera.parameters, HEIGHT, WIDTH)
    assert [prompt.label for prompt in proposal.prompts] == ['cup 3', 'cup 2']
    (reason,) = proposal.refused
    assert '2 of 4 new objects skipped' in reason and '1 objects are known and max_objects is 3' in reason


def test_an_unanswered_prompt_holds_up_the_next_no_longer_than_a_prompt_waits(monkeypatch):
    camera = Camera(Parameters(prompt_timeout=5.0))
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr('sam2_ros.perception.detection_prompts.time', SimpleNamespace(monotonic=lambda: clock.now))
    assert camera.detect(1.0, ((0, 100, 40, 140), 'cup'))
    clock.now += 4.9
    assert not camera.detect(1.1, ((0, 100, 40, 140), 'cup'))
    clock.now += 0.2
    assert camera.take()


def test_a_hidden_object_is_found_again_once():
    camera = Camera()
    camera.follow(1.0, ((0, 100, 40, 140), 'cup'))
    camera.objects[1] = 'cup', None
    camera.show(1.1)
    prompts = camera.detect(1.1, ((200, 100, 240, 140), 'cup'))
    assert [(prompt.action, prompt.id) for prompt in prompts] == [(Prompt.REFINE, 1)]
    camera.show(1.1, camera.apply(prompts))
    camera.follow(1.2, ((200, 100, 240, 140), 'cup'))
    assert camera.objects == {1: ('cup', (200, 100, 240, 140))}


def test_what_there_is_no_room_for_comes_with_the_next_detections():
    gate, found = DetectionGate(), [((60 * x, 60 * y, 60 * x + 40, 60 * y + 40), 'cup', 0.99 - 0.01 * (x + 10 * y))
                                    for y in range(5) for x in range(10)]
    parameters = Parameters(max_objects=200)
    gate.put(array(found))
    first = gate.take(parameters, HEIGHT, WIDTH, 30)
    assert len(first.prompts) == 30 and not first.refused
    assert box_of(first.prompts[0]) == found[0][0]
    gate.see(None, [refuse(PromptRequest(prompt, 0.0), 'for a reason') for prompt in first.prompts], parameters)
    gate.put(array(found))
    assert len(gate.take(parameters, HEIGHT, WIDTH).prompts) == 50


def test_detections_of_another_camera_are_refused_once_for_all():
    gate = DetectionGate()
    for frame_id, count in (('camera', 2), ('', 2), ('/camera', 2), ('other', 0)):
        gate.put(array([((10, 20, 30, 60), 'cup', 0.9), ((110, 20, 130, 60), 'cup', 0.9)]))
        gate._pending.clear()
        proposal = gate.take(PARAMETERS, HEIGHT, WIDTH, None, frame_id)
        assert (len(proposal.prompts), len(proposal.refused)) == (count, count == 0)
    assert proposal.refused[0].startswith("detections in frame 'camera': must be in 'other', as the image; have the")


def test_detections_without_a_stamp_are_of_the_newest_image():
    camera = Camera()
    camera.follow(1.0, ((0, 100, 40, 140), 'cup'))
    camera.objects[1] = 'cup', (300, 100, 340, 140)
    camera.show(1.5)
    assert camera.detect(0.0, ((300, 100, 340, 140), 'cup')) == []


def test_a_bag_that_starts_again_is_compared_with_its_own_images():
    camera = Camera()
    camera.follow(100.0, ((0, 100, 40, 140), 'cup'))
    camera.objects[1] = 'cup', (300, 100, 340, 140)
    camera.show(50.0)
    assert camera.detect(50.0, ((300, 100, 340, 140), 'cup')) == []
    assert len(camera.detect(100.0, ((0, 100, 40, 140), 'dog'))) == 1  # where it was before the jump


def test_between_two_images_an_object_is_in_sight_as_in_the_nearer_one():
    camera = Camera()
    camera.follow(1.0, ((0, 100, 40, 140), 'cup'))
    camera.objects[1] = 'cup', None
    camera.show(1.2)
    assert camera.detect(1.05, ((0, 100, 40, 140), 'cup')) == []
    assert [prompt.action for prompt in camera.detect(1.15, ((0, 100, 40, 140), 'cup'))] == [Prompt.REFINE]
