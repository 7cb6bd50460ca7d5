"""Live replay: what becomes of the node's messages. test/system/test_evaluate.py plays to a real node."""
import numpy as np
import pytest
from builtin_interfaces.msg import Time

from sam2_ros.depth.oriented_box import OrientedBox
from sam2_ros.evaluation.live_replay import _asked, agreement
from sam2_ros.evaluation.metrics import Agreement
from sam2_ros.evaluation.results import FrameOutput, ObjectOutput, Run
from sam2_ros.msg import Instance, PromptStatus
from sam2_ros.perception.frame import TrackedObject
from sam2_ros.perception.instance_messages import instance_message, tracked_object
from testing.discs import Discs, header, stamp


def test_an_instance_becomes_what_it_was_made_of():
    mask = np.zeros((20, 30), bool)
    mask[4:9, 5:16] = np.random.default_rng(1).random((5, 11)) < 0.7
    mask[4, 5] = mask[8, 15] = True
    axes = np.linalg.qr(np.random.default_rng(2).normal(size=(3, 3)))[0]
    axes[:, 2] *= np.linalg.det(axes)
    shape = OrientedBox(np.array([0.1, 0.2, 1.3]), axes, np.array([0.3, 0.2, 0.1]))
    item = TrackedObject(3, 'cup', Instance.TRACKED, 0.75, 0.5, Time(), (5, 4, 16, 9), mask, shape)
    found, expected = ObjectOutput.of(tracked_object(instance_message(item, header(0)), 20, 30)), ObjectOutput.of(item)
    assert (found.state, found.score, found.visibility, found.box) == (Instance.TRACKED, 0.75, 0.5, expected.box)
    np.testing.assert_array_equal(found.mask(20, 30), mask)
    for name in ('centre', 'axes', 'size'):
        np.testing.assert_allclose(getattr(found.shape, name), getattr(shape, name), atol=1e-9)
    hidden = TrackedObject(3, 'cup', Instance.LOST, 0.0, 0.25, Time())
    assert ObjectOutput.of(tracked_object(instance_message(hidden, header(0)), 20, 30)).mask(20, 30).sum() == 0


def test_an_answer_belongs_to_the_prompt_of_its_object_on_its_image():
    discs = Discs()
    first, other, corrected = discs.prompt(1), discs.prompt(2), discs.prompt(1, 3)
    waiting = [first, other, corrected]
    assert _asked(PromptStatus(id=1, header=header(3)), waiting) is corrected
    assert _asked(PromptStatus(id=2, header=header(5)), waiting) is other
    assert _asked(PromptStatus(id=9), waiting) is None, 'of somebody else'
    first.message.id = 0
    assert _asked(PromptStatus(id=9, header=header(0)), waiting) is first, 'the node has picked the id'


def test_agreement_of_two_runs_is_over_the_images_that_both_have_and_the_masks_that_either_has():
    def run_of(frames):
        return Run('a', 'live', 1.0, 4, 4, 4, {}, [
            FrameOutput(index, stamp(index), 0, {
                number: ObjectOutput(0, 1.0, 1.0, box, np.packbits(np.ones((box[3] - box[1], box[2] - box[0]), bool)))
                for number, box in objects.items()}) for index, objects in frames.items()])
    whole, half = (0, 0, 4, 4), (0, 0, 4, 2)
    a = run_of({0: {1: whole}, 1: {1: whole, 2: half}, 3: {1: half}})
    b = run_of({0: {1: half}, 1: {1: whole}, 2: {1: whole}})
    assert agreement(a, b) == Agreement(pytest.approx((0.75 + 0) / 2), {1: 0.75, 2: 0.0}, 2)
    assert agreement(a, run_of({})) == Agreement(None, {}, 0)
