"""Positions in target_frame, from the depth of an image to messages and /diagnostics; the transforms are known."""
import time

import numpy as np
import pytest

from sam2_ros.depth.frame_transform import TransformError, frame_transform
from sam2_ros.messages.conversions import to_nanoseconds
from sam2_ros.msg import Prompt
from sam2_ros.runtime.parameters import Parameters
from sam2_ros.srv import SegmentImage, SetPrompt
from sam2_ros.topics.diagnostics import WARN, camera_status
from testing.in_process import in_process, set_box

QUARTER = (0.0, 0.0, np.sqrt(0.5), np.sqrt(0.5))  # about z


class KnownTransforms:
    """Transforms of a camera that is turned by 90 degrees and moves by 1 m/s along x of the map."""

    def __init__(self) -> None:
        self.missing = ''
        self.waits: list[float] = []
        self.cleared = 0

    def find(self, image, wait):
        self.waits.append(wait)
        if self.missing:
            raise TransformError(self.missing)
        return frame_transform('map', QUARTER, (to_nanoseconds(image.stamp) / 1e9, 0.0, 0.0))

    def clear(self):
        self.cleared += 1


@pytest.fixture
def robot():
    with in_process(threaded=False, transform_wait=0.3) as robot:
        robot.transforms = robot.pipeline._depth._target = KnownTransforms()
        yield robot


def place(pose) -> list[float]:
    return [pose.position.x, pose.position.y, pose.position.z]


def expected(instance, stamp: int) -> list[float]:
    """Return box_center after a quarter turn about z and the way of the camera."""
    x, y, z = place(instance.box_center)
    return [-y + stamp / 1e9, x, z]


def tracked(robot):
    """Return the instance of an object in a new image with depth, and the stamp of the image in ns."""
    stamp = robot.show()
    robot.send('/prompt', set_box(id=3))
    robot.serve()
    (instance,) = robot.frames[-1].instances
    assert instance.has_depth
    return instance, stamp


def test_an_instance_has_its_pose_in_target_frame_at_the_stamp_of_its_image(robot):
    for _ in range(2):
        instance, stamp = tracked(robot)
        (pose,) = instance.target_pose
        assert pose.header.frame_id == 'map' and pose.header.stamp == robot.frames[-1].header.stamp
        assert place(pose.pose) == pytest.approx(expected(instance, stamp))
        assert robot.frames[-1].header.frame_id == 'camera'
    assert robot.transforms.waits == [0.3, 0.3]


def test_without_a_transform_the_position_in_the_image_stays_and_the_reason_is_told(robot):
    tracked(robot)
    robot.transforms.missing = "no transform from 'camera' to 'map'"
    instance, _ = tracked(robot)
    assert not instance.target_pose and instance.box_center.position.z == pytest.approx(1.0, abs=0.05)
    chosen = Parameters(target_frame='map')
    status = camera_status('/sam2', 'cpu', 'active', robot.camera.topics.watched(), chosen, time.monotonic())
    assert status.level == WARN
    assert ("1 of 2 images have no position in target_frame 'map': no transform from 'camera' to 'map'"
            in status.message)
    values = {pair.key: pair.value for pair in status.values}
    assert (values['transforms found'], values['transforms missing']) == ('1', '1')
    assert values['transform missing because'] == robot.transforms.missing


def test_an_error_of_another_kind_costs_the_transform_only(robot):
    def broken(image, wait):
        raise KeyError('tf')
    robot.transforms.find = broken
    instance, _ = tracked(robot)
    assert instance.has_depth and not instance.target_pose


def test_an_image_without_depth_asks_for_no_transform(robot):
    robot.show(depth=False)
    robot.serve()
    assert robot.transforms.waits == []


def test_services_answer_in_target_frame_too(robot):
    past = robot.show()
    robot.serve()
    for _ in range(3):
        robot.show()
        robot.serve()
    task = robot.ask('/segment_image', SegmentImage.Request(prompts=[set_box(past, id=3)]))
    robot.wait_for(lambda: robot.serve() or task.done())
    (found,) = task.result().result.instances
    assert place(found.target_pose[0].pose) == pytest.approx(expected(found, past)), 'of the past image'
    assert robot.transforms.waits[-1] == 0.0, 'a transform of the past need not be waited for'
    task = robot.ask('/set_prompt', SetPrompt.Request(prompt=set_box(id=5)))
    robot.spin()
    now = robot.show()
    robot.wait_for(lambda: robot.serve() or task.done())
    response = task.result()
    assert response.accepted and to_nanoseconds(response.header.stamp) == now
    assert place(response.instance.target_pose[0].pose) == pytest.approx(expected(response.instance, now))


def test_a_jump_back_of_image_stamps_drops_the_transforms(robot):
    tracked(robot)
    robot.now -= 60 * 10**9
    for _ in range(3):  # the first is skipped as an outlier
        robot.show()
        robot.serve()
    assert robot.transforms.cleared == 1


def test_without_target_frame_there_is_no_pose_in_it():
    with in_process(threaded=False) as robot:
        instance, _ = tracked(robot)
        assert not instance.target_pose
        robot.send('/prompt', Prompt(action=Prompt.CLEAR))
