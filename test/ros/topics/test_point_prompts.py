"""Clicks from 3D points: the pixel that sees a point, and the reasons if none does."""
import math
import re
import sys

import numpy as np
import pytest
from builtin_interfaces.msg import Time
from geometry_msgs.msg import Point, PointStamped, Transform, TransformStamped, Vector3
from hypothesis import given, settings
from hypothesis import strategies as st
from rclpy.clock import Clock
from rclpy.time import Time as RosTime
from sensor_msgs.msg import CameraInfo
from std_msgs.msg import Header

from sam2_core.prompts import PromptError
from sam2_ros.depth.transforms import Transforms
from sam2_ros.msg import ImagePoint, Prompt
from sam2_ros.topics.point_prompts import PointPrompts, project

IMAGE = Header(stamp=Time(sec=5), frame_id='camera_optical_frame')
SIZE = (480, 640)
MATRIX = np.array([[600.0, 0, 320], [0, 610, 240], [0, 0, 1]])
BARREL = [-0.28, 0.07, 0.0002, -0.0001, 0.01]


def info(distortion=(), model='plumb_bob', width=640, height=480) -> CameraInfo:
    return CameraInfo(width=width, height=height, distortion_model=model, d=list(map(float, distortion)),
                      k=MATRIX.ravel(), header=IMAGE)


def clicked(x, y, z, frame_id=IMAGE.frame_id) -> PointStamped:
    return PointStamped(header=Header(stamp=Time(sec=99), frame_id=frame_id), point=Point(x=x, y=y, z=z))


class ClockOnly:
    """The part of a node that the store of transforms uses, beside its subscriptions."""

    def __init__(self):
        self._clock = Clock()

    def get_clock(self):
        return self._clock


def points(node=None) -> PointPrompts:
    return PointPrompts(Transforms(node or ClockOnly()))


def prompt(message, camera_info=None, image=IMAGE) -> Prompt:
    return points().prompt(message, [camera_info or info()], image, SIZE)


def test_a_point_becomes_a_click_on_its_pixel_in_the_newest_image():
    found = prompt(clicked(0.1, -0.1, 1.0))
    assert (found.header, found.action, found.id) == (IMAGE, Prompt.SET, 0)
    assert found.points == [ImagePoint(x=320 + 60.0, y=240 - 61.0, label=ImagePoint.FOREGROUND)]


@given(x=st.floats(-0.5, 0.5), y=st.floats(-0.35, 0.35), z=st.floats(0.1, 10),
       lens=st.sampled_from([(), BARREL, [*BARREL, 0.01, 0.001, 0.0001]]))
@settings(max_examples=100)
def test_the_pixel_is_that_of_the_lens_model(x, y, z, lens):
    """Project by the formulas of plumb_bob and rational_polynomial (sensor_msgs/CameraInfo)."""
    k1, k2, p1, p2, k3, k4, k5, k6 = [*lens, *[0.0] * 8][:8]
    r2 = x * x + y * y
    radial = (1 + k1 * r2 + k2 * r2**2 + k3 * r2**3) / (1 + k4 * r2 + k5 * r2**2 + k6 * r2**3)
    expected = (320 + 600 * (x * radial + 2 * p1 * x * y + p2 * (r2 + 2 * x * x)),
                240 + 610 * (y * radial + p1 * (r2 + 2 * y * y) + 2 * p2 * x * y))
    found = project(np.array([x, y, 1]) * z, info(lens, 'rational_polynomial' if len(lens) > 5 else 'plumb_bob'))
    assert found == pytest.approx(expected, abs=0.75)  # whole pixels


def test_a_fisheye_lens_is_understood():
    angle = 0.5
    x, y = project(np.array([math.tan(angle), 0, 1]), info([0.1, 0, 0, 0], 'equidistant'))
    assert (x, y) == pytest.approx((320 + 600 * (angle + 0.1 * angle**3), 240), abs=0.75)


@pytest.mark.parametrize(('point', 'reason'), [
    ((0.0, 0.0, -1.0), r'point \(0.000, 0.000, -1.000\) m in the frame of the camera: behind the camera'),
    ((0.0, 0.0, 0.0), 'behind the camera'),
    ((1.0, 0.0, 1.0), 'outside the image of 640 x 480 pixels'),
    ((0.0, -1.0, 1.0), 'outside the image'),
    ((math.nan, 0.0, 1.0), 'must be finite'),
    ((0.0, 0.0, math.inf), 'must be finite'),
])
def test_what_the_camera_does_not_see_is_refused(point, reason):
    with pytest.raises(PromptError, match=reason):
        prompt(clicked(*point))


@pytest.mark.parametrize('x', [1.2, 1.6, 3.0, 8.0, 40.0])
def test_a_lens_does_not_fold_what_is_far_outside_into_the_image(x):
    with pytest.raises(PromptError, match='outside the image'):
        project(np.array([x, 0, 1.0]), info(BARREL))


def test_a_camera_that_is_not_calibrated_is_refused():
    with pytest.raises(PromptError, match='camera_info not calibrated: fx 0 and fy 0'):
        prompt(clicked(0.0, 0.0, 1.0), CameraInfo(width=640, height=480))


def test_a_lens_model_that_is_not_known_is_refused():
    with pytest.raises(PromptError, match="distortion_model 'scaramuzza': must be one of plumb_bob"):
        prompt(clicked(0.0, 0.0, 1.0), info([0.1], 'scaramuzza'))


def test_without_camera_info_it_says_what_is_missing():
    with pytest.raises(PromptError, match='no camera_info yet'):
        points().prompt(clicked(0.0, 0.0, 1.0), [], IMAGE, SIZE)


# --- other frames

def test_another_frame_without_tf2_is_refused_naming_both(monkeypatch):
    monkeypatch.setitem(sys.modules, 'tf2_ros', None)
    with pytest.raises(PromptError, match="frame 'map', image in 'camera_optical_frame'.* package tf2_ros"):
        prompt(clicked(0.0, 0.0, 1.0, 'map'))


class StandIn:
    """Stand-in for the part of tf2_ros that is used; it is not on PyPI."""

    TransformException = type('TransformException', (Exception,), {})
    ExtrapolationException = type('ExtrapolationException', (TransformException,), {})

    class Buffer:
        def __init__(self):
            self._known = []

        def set_transform(self, transform, authority):
            self._known.append((RosTime.from_msg(transform.header.stamp).nanoseconds, transform))

        def lookup_transform(self, target, source, time):
            if not self._known or source != 'map':
                raise StandIn.TransformException(f'"{source}" does not exist')
            (start, first), (end, last) = self._known[0], self._known[-1]
            if not time.nanoseconds:
                return last
            if not start <= time.nanoseconds <= end:
                raise StandIn.ExtrapolationException('would require extrapolation')
            part = (time.nanoseconds - start) / (end - start)
            z = [first.transform.translation.z, last.transform.translation.z]
            return TransformStamped(transform=Transform(translation=Vector3(z=z[0] + part * (z[1] - z[0]))))


@pytest.fixture(params=['tf2_ros', 'its stand-in'])
def tf(request, monkeypatch):
    """Publish /tf of a camera that moves towards the map, between two times in seconds."""
    if request.param == 'tf2_ros':
        module = pytest.importorskip('tf2_ros', reason='needs tf2_ros (CONTRIBUTING.md)')
    else:
        module = StandIn
        monkeypatch.setitem(sys.modules, 'tf2_ros', module)

    def known(*times):
        listeners = []

        def listen(buffer, node):
            listeners.append(node)
            for time in times:
                buffer.set_transform(TransformStamped(
                    header=Header(stamp=Time(sec=int(time), nanosec=round(time % 1 * 1e9)), frame_id=IMAGE.frame_id),
                    child_frame_id='map', transform=Transform(translation=Vector3(z=2.0 - time / 10))), 'test')
        monkeypatch.setattr(module, 'TransformListener', listen, raising=False)
        return listeners
    return known


def test_a_point_in_another_frame_is_seen_from_where_the_camera_was_at_its_image(tf):
    listeners, node = tf(4.0, 6.0), ClockOnly()
    converter = points(node)
    for _ in range(2):
        found = converter.prompt(clicked(0.5, 0.0, 0.0, 'map'), [info()], IMAGE, SIZE)
    assert found.points[0].x == pytest.approx(320 + 600 * 0.5 / (2.0 - 0.5), abs=0.75)
    assert listeners == [node]  # one for all points


def test_tf_a_little_behind_the_image_will_do_and_far_behind_will_not(tf):
    tf(4.0, 4.95)
    assert prompt(clicked(0.5, 0.0, 0.0, 'map')).points[0].x == pytest.approx(320 + 600 * 0.5 / (2.0 - 0.495), abs=0.75)
    tf(3.0, 4.0)
    with pytest.raises(PromptError, match="frame 'map', .*: the nearest transform is 1.00 s before the image"):
        prompt(clicked(0.1, 0.0, 0.0, 'map'))


@pytest.mark.parametrize('seconds', [-1, -2**31])
def test_an_image_stamped_before_time_began_is_refused(tf, seconds):
    tf(4.0, 6.0)
    with pytest.raises(PromptError, match=r'the image has the stamp -.*, which must not be negative'):
        prompt(clicked(0.1, 0.0, 0.0, 'map'), image=Header(stamp=Time(sec=seconds), frame_id=IMAGE.frame_id))


@pytest.mark.parametrize(('point_frame', 'image_frame'), [('', 'camera_optical_frame'), ('map', '')])
def test_a_point_or_an_image_without_a_frame_is_refused(point_frame, image_frame):
    with pytest.raises(PromptError, match='both must name one; set frame_id'):
        prompt(clicked(0.0, 0.0, 1.0, point_frame), image=Header(frame_id=image_frame))


def test_a_frame_may_begin_with_a_slash_as_in_ros_1():
    assert prompt(clicked(0.0, 0.0, 1.0, f'/{IMAGE.frame_id}')).points


def test_a_frame_that_nobody_knows_is_refused_naming_both(tf):
    tf()
    with pytest.raises(PromptError) as refused:
        prompt(clicked(0.1, 0.0, 0.0, 'map'))
    assert re.search("frame 'map', image in 'camera_optical_frame': no transform .*click again", str(refused.value))
