"""Prompts and queries that cannot be meant as they are written: refused with the value, the rule and the cure."""
from array import array
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from sensor_msgs.msg import Image
from std_msgs.msg import Header

from sam2_ros.depth.calibration import DepthError, calibrate
from sam2_ros.messages.conversions import from_pixels
from sam2_ros.msg import ImagePoint, Prompt
from sam2_ros.perception.inbox import Inbox
from sam2_ros.srv import SegmentImage, SetPrompt
from testing.in_process import BOX, HEIGHT, WIDTH, camera_info, header, image, in_process, picture, set_box

POINT = ImagePoint(x=20.0, y=20.0, label=1)


@pytest.fixture(scope='module')
def robot():
    with in_process(threaded=False, use_depth=False, max_objects=300) as robot:
        robot.show(depth=False)
        robot.serve()
        yield robot


@pytest.fixture(autouse=True)
def fresh(robot):
    robot.send('/prompt', Prompt(action=Prompt.CLEAR))
    robot.serve()
    robot.published.clear()


def reasons(robot, *prompts: Prompt) -> list[str]:
    """Return the reasons in the answers to prompts for the next image, empty if accepted."""
    robot.published.clear()
    robot.show(depth=False)
    for prompt in prompts:
        robot.send('/prompt', prompt)
    robot.serve()
    return [status.reason for status in robot.statuses]


def found(robot, *prompts: Prompt, **fields) -> str:
    """Return the reason of ~/segment_image, empty if it has found something."""
    task = robot.ask('/segment_image', SegmentImage.Request(prompts=list(prompts), **fields))
    robot.wait_for(lambda: robot.serve() or task.done())
    assert task.result().success == (not task.result().reason)
    return task.result().reason


def test_a_label_that_fills_every_message_is_refused(robot):
    (reason,) = reasons(robot, set_box(id=1, label='x' * (1 << 20)))
    assert reason == f"label of 1048576 characters, '{'x' * 20}...': must have at most 1000"
    assert reasons(robot, set_box(id=1, label='ä' * 1000)) == ['']


def test_points_that_would_hold_up_the_camera_are_refused_one_by_one_or_together(robot):
    refused = 'points: must be at most 1000 for an object in one image; give a mask'
    assert reasons(robot, Prompt(id=1, points=[POINT] * 20_000)) == [f'20000 {refused}']
    more = [Prompt(action=Prompt.REFINE, id=1, points=[POINT] * 400) for _ in range(3)]
    assert reasons(robot, Prompt(id=1, points=[POINT] * 100), *more) == ['', '', '', f'1300 {refused}']
    assert found(robot, Prompt(points=[POINT] * 20_000)) == f'prompt 1: 20000 {refused}'


def test_a_prompt_that_was_drawn_on_another_camera_is_refused(robot):
    for at in (0, robot.now, robot.now + 10**8):  # the next image, the last one, one to come
        message = set_box(at, id=1)
        message.header.frame_id = 'other'
        robot.published.clear()
        (reason,) = reasons(robot, message)
        assert reason == ("prompt in frame 'other': must be 'camera', as the image; send it to the camera it was drawn "
                          'on, or leave frame_id empty')
        assert 'other' in found(robot, message) or at
    assert found(robot, message, image=image(robot.now)) == '', 'it comes with its image'
    for frame in ('', 'camera', '/camera'):
        assert reasons(robot, Prompt(header=Header(frame_id=frame), id=1, box=BOX)) == ['']


@pytest.mark.parametrize(('fields', 'reason'), [
    ({'mask': Image(height=HEIGHT, encoding='mono8', data=array('B', [255] * 9)), 'points': [POINT]},
     'image of 0 x 48 pixels: both must be'),
    ({'mask': Image(encoding='mono8', data=array('B', [255] * 9)), 'box': BOX}, 'image of 0 x 0 pixels: both must be')])
def test_a_mask_with_data_and_no_width_is_not_passed_over(robot, fields, reason):
    (answer,) = reasons(robot, Prompt(id=1, **fields))
    assert answer.startswith(reason)


def test_an_image_with_data_and_no_width_is_not_replaced_by_the_cameras(robot):
    given = image(robot.now, width=0)
    assert found(robot, set_box(), image=given).startswith('image: image of 0 x 48 pixels')


def test_one_query_is_about_one_image(robot):
    before = robot.now
    robot.show(depth=False)
    robot.serve()
    assert found(robot, set_box(robot.now), set_box(before)) == (
        f'prompt 2: has the stamp {before / 1e9:.3f}, and prompt 1 has {robot.now / 1e9:.3f}: must be of one image; '
        f'ask once for each image')
    assert found(robot, set_box(robot.now), set_box(), set_box(robot.now)) == ''


def test_a_camera_info_of_very_many_coefficients_is_refused():
    with pytest.raises(DepthError, match='with 1000000 coefficients in D: must be at most 1000'):
        calibrate(camera_info(1, d=[0.0] * 1_000_000))


def test_an_unconfigured_node_says_what_has_to_be_done_first():
    with in_process(threaded=False) as robot:
        robot.node.trigger_deactivate()
        robot.node.trigger_cleanup()
        task = robot.ask('/set_prompt', SetPrompt.Request(prompt=set_box()))
        robot.wait_for(task.done)
        assert task.result().reason == 'the node is unconfigured: configure and activate it first'


def test_detections_never_overfill_the_queue_of_prompts(robot):
    count = Inbox.PROMPT_LIMIT + 50

    def one(place: int) -> SimpleNamespace:
        position = SimpleNamespace(x=2.0 + 4 * (place % 16), y=2.0 + 4 * (place // 16))
        return SimpleNamespace(bbox=SimpleNamespace(center=SimpleNamespace(position=position, theta=0.0), size_x=3.0,
                                                    size_y=3.0),
                               results=[SimpleNamespace(hypothesis=SimpleNamespace(class_id='', score=0.9))])
    chosen = robot.pipeline.parameters
    try:
        robot.pipeline.change(replace(chosen, detections_topic='detections'))
        robot.camera.topics._on_detections(SimpleNamespace(header=header(0), detections=[one(n) for n in range(count)]))
        answers = reasons(robot)
        assert len(answers) == Inbox.PROMPT_LIMIT
        assert not [reason for reason in answers if 'are waiting already' in reason]
    finally:
        robot.pipeline.change(chosen)
        robot.camera.topics._gate.__init__()


def test_a_mask_of_the_image_still_starts_an_object(robot):
    mask = from_pixels((picture()[..., 0] > 100).astype(np.uint8) * 255, 'mono8', header(0))
    assert (mask.height, mask.width) == (HEIGHT, WIDTH)
    assert reasons(robot, Prompt(id=1, mask=mask)) == ['']
