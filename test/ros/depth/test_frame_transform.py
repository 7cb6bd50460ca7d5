"""Transforms between frames: their geometry, and the one of the time of an image."""
import math
import sys

import cv2
import numpy as np
import pytest
from geometry_msgs.msg import Quaternion, Transform, TransformStamped, Vector3
from hypothesis import given, settings
from hypothesis import strategies as st
from rclpy.clock import Clock, ClockChange, TimeJump
from rclpy.duration import Duration

from sam2_ros.depth import transforms as module
from sam2_ros.depth.frame_transform import CAMERA_FRAME, FrameTransform, TransformError, frame_transform
from sam2_ros.depth.oriented_box import OrientedBox
from sam2_ros.depth.transforms import TargetFrame, TransformNotYet, Transforms
from sam2_ros.messages.tf2 import Tf2Missing
from testing.camera_images import header

vectors = st.tuples(*[st.floats(-5, 5)] * 3)
axes = st.tuples(*[st.floats(-1, 1)] * 3).filter(lambda axis: np.linalg.norm(axis) > 0.1)


def turned(axis, angle: float) -> tuple[FrameTransform, np.ndarray]:
    """Return a transform by (1, 2, 3) and a rotation, and the rotation as OpenCV computes it."""
    axis = np.array(axis) / np.linalg.norm(axis)
    quaternion = (*axis * math.sin(angle / 2), math.cos(angle / 2))
    return frame_transform('map', quaternion, (1.0, 2.0, 3.0)), cv2.Rodrigues(axis * angle)[0]


# --- geometry

@given(axis=axes, angle=st.floats(-3, 3), points=st.lists(vectors, min_size=1, max_size=5))
@settings(max_examples=60)
def test_a_transform_turns_and_moves_points(axis, angle, points):
    transform, rotation = turned(axis, angle)
    expected = [rotation @ point + (1, 2, 3) for point in points]
    np.testing.assert_allclose(transform.points(np.array(points)), expected, atol=1e-9)
    np.testing.assert_allclose(transform.points(np.array(points[0])), expected[0], atol=1e-9)


@given(axis=axes, angle=st.floats(-3, 3), centre=vectors, own=axes, turn=st.floats(-3, 3))
@settings(max_examples=60)
def test_the_corners_of_a_box_move_with_it(axis, angle, centre, own, turn):
    transform, _ = turned(axis, angle)
    box = OrientedBox(np.array(centre), turned(own, turn)[1], np.array([0.3, 0.2, 0.1]))
    moved = transform.box(box)
    signs = np.array(np.meshgrid(*[[-0.5, 0.5]] * 3)).reshape(3, -1).T

    def corners(one: OrientedBox) -> np.ndarray:
        return one.centre + (signs * one.size) @ one.axes.T
    np.testing.assert_allclose(corners(moved), transform.points(corners(box)), atol=1e-9)
    assert np.linalg.det(moved.axes) == pytest.approx(1)
    assert np.linalg.norm(moved.quaternion) == pytest.approx(1)


def test_a_quaternion_that_is_a_little_too_long_is_a_rotation_still():
    transform = frame_transform('map', (0.0, 0.0, 0.708, 0.708), (0.0, 0.0, 0.0))
    np.testing.assert_allclose(transform.points(np.array([1.0, 0.0, 0.0])), [0, 1, 0], atol=1e-12)


@pytest.mark.parametrize(('quaternion', 'offset'), [
    ((0.0, 0.0, 0.0, 0.0), (0.0, 0.0, 0.0)),
    ((0.0, 0.0, math.nan, 1.0), (0.0, 0.0, 0.0)),
    ((0.0, 0.0, 0.0, 1.0), (0.0, math.inf, 0.0)),
])
def test_a_transform_without_a_rotation_is_refused(quaternion, offset):
    with pytest.raises(TransformError, match="transform into 'map' .*must be finite, with a rotation of length 1"):
        frame_transform('map', quaternion, offset)


def test_in_the_frame_of_the_camera_a_box_is_the_same():
    box = OrientedBox(np.ones(3), np.eye(3), np.ones(3))
    assert CAMERA_FRAME.box(box) is box


# --- the time of an image

class Arriving:
    """Stand-in for the store of transforms: the transform arrives while somebody waits for it."""

    def __init__(self, after: int, error: type[TransformError] = TransformNotYet) -> None:
        self._left = after
        self._error = error
        self.asked: list[tuple] = []

    def at(self, target, source, stamp):
        self.asked.append((target, source, stamp))
        self._left -= 1
        if self._left >= 0:
            raise self._error('no transform')
        return frame_transform(target, (0.0, 0.0, 0.0, 1.0), (1.0, 0.0, 0.0))


def test_a_transform_that_may_still_arrive_is_waited_for(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(module.time, 'monotonic', lambda: now[0])
    monkeypatch.setattr(module.time, 'sleep', lambda seconds: now.__setitem__(0, now[0] + seconds))
    arriving = Arriving(after=10)
    found = TargetFrame(arriving, 'map').find(header(5.0), wait=1.0)
    assert found.frame_id == 'map' and now[0] == pytest.approx(10 * module.POLL)
    assert set(arriving.asked) == {('map', 'camera', 5 * 10**9)}, 'the time of the image, each time'


def test_the_wait_ends(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(module.time, 'monotonic', lambda: now[0])
    monkeypatch.setattr(module.time, 'sleep', lambda seconds: now.__setitem__(0, now[0] + seconds))
    with pytest.raises(TransformNotYet):
        TargetFrame(Arriving(after=10**6), 'map').find(header(5.0), wait=0.1)
    assert 0.1 <= now[0] < 0.1 + 2 * module.POLL


@pytest.mark.parametrize(('wait', 'error'), [(0.0, TransformNotYet), (10.0, TransformError)])
def test_without_a_wait_or_a_hope_nothing_is_waited_for(wait, error):
    arriving = Arriving(after=10**6, error=error)
    with pytest.raises(error):
        TargetFrame(arriving, 'map').find(header(5.0), wait)
    assert len(arriving.asked) == 1


@pytest.mark.parametrize(('image', 'reason'), [
    (header(5.0, frame_id=''), 'image without a frame.* have the camera driver set frame_id'),
    (header(0.0), 'image with the stamp 0.000 s.* have the camera driver stamp its images'),
    (header(-5.0), 'image with the stamp -5.000 s.* must be positive'),
])
def test_an_image_without_a_frame_or_a_stamp_has_no_transform(image, reason):
    with pytest.raises(TransformError, match=reason):
        TargetFrame(Arriving(after=0), 'map').find(image, 0.0)


@pytest.mark.parametrize('frame_id', ['camera', '/camera'])
def test_the_frame_of_the_camera_needs_no_transform(frame_id):
    arriving = Arriving(after=10**6, error=TransformError)
    found = TargetFrame(arriving, 'camera').find(header(5.0, frame_id=frame_id), 0.0)
    assert found.frame_id == 'camera' and not arriving.asked
    np.testing.assert_array_equal(found.points(np.array([1.0, 2.0, 3.0])), [1, 2, 3])


def test_without_tf2_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, 'tf2_ros', None)
    with pytest.raises(Tf2Missing, match=r"target_frame 'map' needs the package tf2_ros, .*: sudo apt install ros-\$"):
        Transforms(None).subscribe("target_frame 'map'")


# --- tf2 itself

class ClockNode:
    """The part of a node that the store of transforms uses, with its listener replaced."""

    def __init__(self) -> None:
        self._clock = Clock()

    def get_clock(self) -> Clock:
        return self._clock


@pytest.fixture
def tf(monkeypatch):
    """Yield a store of transforms, and a function that fills it: the camera moves by 1 m/s along x of the map."""
    tf2_ros = pytest.importorskip('tf2_ros', reason='needs tf2_ros (CONTRIBUTING.md)')
    monkeypatch.setattr(tf2_ros, 'TransformListener', lambda buffer, node: None)
    store = Transforms(ClockNode())
    store.subscribe('test')

    def send(*times: float, static: bool = False, parent: str = 'map', child: str = 'camera') -> None:
        for seconds in times:
            transform = TransformStamped(
                header=header(seconds, frame_id=parent), child_frame_id=child,
                transform=Transform(translation=Vector3(x=float(seconds)), rotation=Quaternion(w=1.0)))
            (store._buffer.set_transform_static if static else store._buffer.set_transform)(transform, 'test')
    yield store, send
    store.close()


def at(store: Transforms, seconds: float) -> float:
    """Return x of the camera in the map."""
    return store.at('map', 'camera', round(seconds * 1e9)).offset[0]


def test_between_two_transforms_tf2_interpolates(tf):
    store, send = tf
    send(4.0, 6.0)
    assert at(store, 4.5) == pytest.approx(4.5) and at(store, 6.0) == pytest.approx(6.0)


@pytest.mark.parametrize(('seconds', 'error', 'reason'), [
    (6.2, TransformNotYet, r"from 'camera' to 'map' at the stamp of the image: the newest is 0\.200 s older; "
                           r'raise transform_wait'),
    (9.0, TransformError, r'the newest is 3\.000 s older'),
    (3.9, TransformError, r'the image is older than what is stored of /tf'),
])
def test_a_transform_of_another_time_is_refused(tf, seconds, error, reason):
    store, send = tf
    send(4.0, 6.0)
    with pytest.raises(TransformError, match=reason) as refused:
        at(store, seconds)
    assert type(refused.value) is error


def test_a_single_transform_serves_its_own_time_only(tf):
    store, send = tf
    send(4.0)
    assert at(store, 4.0) == pytest.approx(4.0)
    with pytest.raises(TransformError):
        at(store, 4.001)


def test_a_static_transform_serves_any_time(tf):
    store, send = tf
    send(4.0, static=True)
    assert at(store, 1.0) == at(store, 1e6) == pytest.approx(4.0)
    assert store.newest('map', 'camera')[1] == 0


def test_frames_that_nobody_connects_are_named(tf):
    store, send = tf
    send(4.0, child='tool')
    with pytest.raises(TransformError, match="no transform from 'camera' to 'map' .*start what publishes it on /tf"):
        at(store, 4.0)
    send(4.0, parent='other', child='camera')
    with pytest.raises(TransformError, match="no transform from 'camera' to 'map' .*two or more unconnected trees"):
        at(store, 4.0)


def test_after_a_jump_back_nothing_of_the_time_before_is_used(tf):
    store, send = tf
    send(104.0, 106.0)
    send(7.0, static=True, child='base')
    store.clear()
    with pytest.raises(TransformError):
        at(store, 105.0)
    send(4.0, 6.0)  # tf2 would have refused them: they are older than what it stored by more than 10 s
    assert at(store, 5.0) == pytest.approx(5.0)
    assert store.at('map', 'base', 5 * 10**9).offset[0] == pytest.approx(7.0), 'static transforms stay'


def test_a_jump_back_of_simulated_time_empties_the_store(tf):
    store, send = tf
    send(4.0, 6.0)
    no_change = ClockChange.ROS_TIME_NO_CHANGE
    store._on_jump(TimeJump(no_change, Duration(seconds=3)))
    assert at(store, 5.0) == pytest.approx(5.0)
    store._on_jump(TimeJump(no_change, Duration(seconds=-3)))
    with pytest.raises(TransformError):
        at(store, 5.0)


def test_after_the_end_there_is_no_transform_and_no_error_of_another_kind(tf):
    store, send = tf
    send(4.0, 6.0)
    store.close()
    store.clear()
    with pytest.raises(TransformError, match='not subscribed'):
        at(store, 5.0)
