"""Check of the transforms into target_frame, with the real tf2 where there is one."""
import sys

import pytest
from geometry_msgs.msg import Quaternion, Transform, TransformStamped, Vector3
from rclpy.clock import Clock
from sensor_msgs.msg import Image

from sam2_ros.messages.tf2 import Tf2Missing
from sam2_ros.preflight.camera import Topic
from sam2_ros.preflight.findings import Verdict
from sam2_ros.preflight.frames import FrameWatch
from sam2_ros.preflight.machine import check_machine
from sam2_ros.runtime.parameters import Parameters
from testing.camera_images import header

PERIOD = 0.1  # seconds from image to image


class ClockOwner:
    """The part of a node that the store of transforms uses, with its listener replaced."""

    def __init__(self) -> None:
        self._clock = Clock()

    def get_clock(self) -> Clock:
        return self._clock


class Watched:
    """Images and /tf as they arrive at the check."""

    def __init__(self, target_frame: str = 'map') -> None:
        self.watch = FrameWatch(ClockOwner(), target_frame)
        self.image = Topic('/image', 'sensor_msgs/msg/Image')

    def tf(self, seconds: float, static: bool = False) -> None:
        buffer = self.watch._transforms._buffer
        (buffer.set_transform_static if static else buffer.set_transform)(TransformStamped(
            header=header(seconds, frame_id='map'), child_frame_id='camera',
            transform=Transform(translation=Vector3(x=seconds), rotation=Quaternion(w=1.0))), 'test')

    def show(self, seconds: float, frame_id: str = 'camera') -> None:
        self.image.last = Image(header=header(seconds, frame_id=frame_id))
        self.image.stamps.append(round(seconds * 1e9))
        self.watch.note('/image', self.image.last.header)

    def finding(self, wait: float = 0.05):
        return self.watch.check(self.image, wait)


@pytest.fixture
def watched(monkeypatch):
    tf2_ros = pytest.importorskip('tf2_ros', reason='needs tf2_ros (CONTRIBUTING.md)')
    monkeypatch.setattr(tf2_ros, 'TransformListener', lambda buffer, node: None)
    return Watched()


def test_transforms_at_the_stamps_of_the_images_are_good(watched):
    watched.tf(100.0)
    for number in range(20):
        watched.tf(100.0 + number * PERIOD + 0.01)
        watched.show(100.0 + number * PERIOD)
        watched.watch.poll()
    assert watched.finding().verdict is Verdict.GOOD
    assert "'camera' to 'map': 100% of the images" in watched.finding().text


def test_transforms_that_arrive_after_the_wait_are_doubtful(watched, monkeypatch):
    now = [0.0]
    monkeypatch.setattr('sam2_ros.preflight.frames.time.monotonic', lambda: now[0])
    watched.tf(99.0)
    for number in range(20):
        watched.show(100.0 + number * PERIOD)
        watched.watch.poll()
        now[0] += 0.25
        watched.tf(100.0 + number * PERIOD + 0.01)
        watched.watch.poll()
    finding = watched.finding(wait=0.05)
    assert finding.verdict is Verdict.DOUBTFUL
    assert 'arrives 0.250 s after the image (median): raise transform_wait (0.05 s)' in finding.text
    assert watched.finding(wait=0.3).verdict is Verdict.GOOD


def test_a_transform_that_stopped_long_ago_is_bad(watched):
    watched.tf(90.0)
    for number in range(20):
        watched.show(100.0 + number * PERIOD)
    finding = watched.finding()
    assert finding.verdict is Verdict.BAD and 'the newest transform is 11.900 s older' in finding.text


def test_transforms_that_begin_late_are_bad(watched):
    for number in range(20):
        watched.show(100.0 + number * PERIOD)
    watched.tf(101.0)
    watched.tf(102.0)
    finding = watched.finding()
    assert finding.verdict is Verdict.BAD and '50% of the images have a transform' in finding.text


def test_a_static_transform_and_the_frame_of_the_camera_itself_are_good(watched):
    watched.show(100.0)
    watched.tf(1.0, static=True)
    assert watched.finding().text == "'camera' to 'map': static"
    own = Watched('camera')
    own.show(100.0, frame_id='/camera')
    assert own.finding().verdict is Verdict.GOOD


def test_a_frame_that_nobody_publishes_is_bad(watched):
    watched.show(100.0)
    finding = watched.finding()
    assert finding.verdict is Verdict.BAD
    assert "no transform from 'camera' to 'map'" in finding.text and 'correct target_frame' in finding.text


def test_without_images_or_their_frame_other_checks_report(watched):
    assert watched.finding() is None
    watched.show(100.0, frame_id='')
    assert watched.finding() is None


@pytest.mark.parametrize(('parameters', 'feature'), [
    ({'target_frame': 'map'}, "target_frame 'map'"), ({'publish_tf': True}, 'publish_tf true')])
def test_without_tf2_the_package_is_named(monkeypatch, parameters, feature):
    monkeypatch.setitem(sys.modules, 'tf2_ros', None)
    found = [*check_machine(Parameters(**parameters), 'rmw_fastrtps_cpp', {})]
    assert any(finding.verdict is Verdict.BAD and f'{feature} needs the package tf2_ros' in finding.text
               for finding in found)
    with pytest.raises(Tf2Missing):
        FrameWatch(ClockOwner(), 'map')
