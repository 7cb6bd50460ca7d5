"""Reasons given to prompts and queries that wait for an image in vain: none arrives, or none can be used."""
import time

import pytest
from geometry_msgs.msg import Point, PointStamped

from sam2_ros.perception.image_history import ImageHistory, NotStored
from sam2_ros.perception.inbox import Inbox
from sam2_ros.perception.single_image import MAX_QUERIES
from sam2_ros.srv import SegmentAll, SegmentImage, SetPrompt
from testing.in_process import header, image, in_process, set_box

SECOND = 10**9
TIMEOUT = 30.0  # seconds
UNSUPPORTED = "encoding 'nv24': not supported"


@pytest.fixture(scope='module')
def robot():
    with in_process(threaded=False, prompt_timeout=TIMEOUT, use_depth=False) as robot:
        yield robot


class Clock:
    """Clock that a test advances."""

    def __init__(self) -> None:
        self.now = time.monotonic()

    def __call__(self) -> float:
        return self.now


@pytest.fixture(autouse=True)
def clock(robot, monkeypatch):
    clock = Clock()
    monkeypatch.setattr(time, 'monotonic', clock)
    return clock


@pytest.fixture(autouse=True)
def fresh(robot, clock):
    robot.restart()


def ask_everything(robot, clock, meanwhile=lambda: None) -> list:
    """Send a prompt and call the services; return their reasons after the timeout."""
    robot.send('/prompt', set_box(id=1))
    tasks = [robot.ask('/set_prompt', SetPrompt.Request(prompt=set_box(id=2))),
             robot.ask('/segment_image', SegmentImage.Request(prompts=[set_box()])),
             robot.ask('/segment_all', SegmentAll.Request())]
    robot.spin()
    robot.serve()
    clock.now += TIMEOUT + 1
    robot.wait_for(lambda: meanwhile() or robot.serve() or all(task.done() for task in tasks))
    return [robot.statuses[0].reason, *(task.result().reason for task in tasks)]


def test_a_camera_that_does_not_run(robot, clock):
    assert ask_everything(robot, clock) == ['no image on /image for 30 s: is the camera running?'] * 4


def test_images_of_an_encoding_that_is_not_supported(robot, clock):
    def show_infrared():
        robot.send('/image', image(robot.now, encoding='nv24'))

    for reason in ask_everything(robot, clock, show_infrared):
        assert reason.startswith('no image on /image could be used for 30 s; the last one was skipped 0.0 s')
        assert UNSUPPORTED in reason and 'camera running' not in reason


def test_images_that_stopped_after_one_that_could_not_be_used(robot, clock):
    robot.send('/image', image(robot.now, encoding='nv24'))
    robot.serve()
    clock.now += 60
    for reason in ask_everything(robot, clock):
        assert reason.startswith('no image on /image for 91.0 s') and UNSUPPORTED in reason


def test_an_image_whose_stamp_is_odd(robot, clock):
    robot.show(depth=False)
    robot.serve()
    robot.send('/image', image(robot.now - 60 * SECOND))
    robot.send('/prompt', set_box(robot.now + SECOND, id=1))
    robot.serve()
    clock.now += robot.pipeline.seconds_to_deadline()
    robot.serve()
    (status,) = robot.statuses
    assert status.reason.startswith('no image with its stamp 1') and 'single outlier' in status.reason


def test_once_images_can_be_used_again_nobody_hears_of_the_old_ones(robot):
    robot.send('/image', image(robot.now, encoding='nv24'))
    robot.serve()
    robot.show(depth=False)
    robot.serve()
    assert robot.pipeline.skipped.reason == robot.pipeline.skipped.hint() == ''


def test_full_queues_name_the_images_too(robot):
    robot.send('/image', image(robot.now, encoding='nv24'))
    robot.serve()
    for _ in range(Inbox.PROMPT_LIMIT + 1):
        robot.send('/prompt', set_box())
    assert UNSUPPORTED in robot.statuses[-1].reason
    tasks = [robot.ask('/segment_all', SegmentAll.Request()) for _ in range(MAX_QUERIES + 1)]
    robot.wait_for(lambda: any(task.done() for task in tasks))
    assert [UNSUPPORTED in task.result().reason for task in tasks if task.done()] == [True]


def test_a_model_that_fails_is_the_reason_for_those_who_wait(robot, clock, monkeypatch):
    monkeypatch.setattr('sam2_ros.perception.image_decoder.to_rgb', lambda *_: 1 / 0)
    robot.show(depth=False)
    for reason in ask_everything(robot, clock):
        assert 'ZeroDivisionError' in reason


def click() -> PointStamped:
    return PointStamped(header=header(0), point=Point(z=1.0))


def test_a_click_before_any_image_is_told_why_there_is_none(robot):
    robot.send('/prompt_point', click())
    robot.send('/image', image(robot.now, encoding='nv24'))
    robot.serve()
    robot.send('/prompt_point', click())
    first, second = (status.reason for status in robot.statuses)
    assert first == 'no image yet on /image: is the camera running?'
    assert second.startswith('no image on /image could be used so far') and UNSUPPORTED in second


def test_the_reason_stays_while_the_next_image_is_in_work(robot, monkeypatch):
    robot.send('/image', image(robot.now, encoding='nv24'))
    robot.serve()
    seen = []
    monkeypatch.setattr('sam2_ros.perception.image_decoder.to_rgb',
                        lambda *_: seen.append(robot.pipeline.skipped.reason) or 1 / 0)
    robot.show(depth=False)
    robot.serve()
    assert UNSUPPORTED in seen[0]


@pytest.mark.parametrize(('stamp', 'max_bytes', 'reason'), [
    (0, 10**6, 'images carry no stamp'), (5, 10, 'history_bytes is 10')])
def test_an_empty_history_says_why_it_is_empty(stamp, max_bytes, reason):
    history = ImageHistory()
    history.put(image(stamp * SECOND), 2.0, max_bytes)
    with pytest.raises(NotStored, match=reason):
        history.at(5 * SECOND)


def test_prompts_that_wait_behind_another_are_told_of_it(robot, clock):
    robot.show(depth=False)
    robot.serve()
    robot.send('/prompt', set_box(robot.now + SECOND, id=1))
    robot.send('/prompt', set_box(id=1))
    robot.show(depth=False)
    robot.serve()
    clock.now += robot.pipeline.seconds_to_deadline()
    robot.show(depth=False)
    robot.serve()
    first, second = (status.reason for status in robot.statuses)
    assert first.startswith('no image with its stamp')
    assert second.startswith('an earlier prompt for object 1 waits: no image with its stamp')
