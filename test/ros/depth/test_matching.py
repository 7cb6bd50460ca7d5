"""Depth messages are decoded, matched to calibration and image by stamp, waited for, or refused with a reason."""
import sys
import threading
import time
from dataclasses import replace

import cv2
import numpy as np
import pytest
import rclpy
from builtin_interfaces.msg import Time
from rclpy.executors import SingleThreadedExecutor
from rclpy.qos import DurabilityPolicy, QoSProfile
from sensor_msgs.msg import CameraInfo, Image, RegionOfInterest
from std_msgs.msg import Header

from sam2_ros.depth.calibration import DepthError, to_rays
from sam2_ros.depth.matching import DepthMailbox, to_metres
from sam2_ros.messages.conversions import ImageError, from_pixels
from sam2_ros.runtime.parameters import Parameters
from sam2_ros.topics.depth_topics import PAIRINGS, DepthTopics
from testing.waiting import PATIENCE

HEIGHT, WIDTH = 6, 8
MS = 1_000_000
PARAMETERS = Parameters(depth_tolerance=0.02, depth_wait=0.0)
FOR_EVER = replace(PARAMETERS, depth_wait=1e6)


def header(milliseconds, frame='camera'):
    seconds, rest = divmod(milliseconds, 1000)
    return Header(stamp=Time(sec=seconds, nanosec=rest * MS), frame_id=frame)


def depth(milliseconds, metres=1.0, frame='camera', height=HEIGHT, width=WIDTH):
    return from_pixels(np.full((height, width), metres, np.float32), '32FC1', header(milliseconds, frame))


def info(milliseconds=0, focal=100.0, frame='camera', height=HEIGHT, width=WIDTH, **fields):
    k = [focal, 0, (width - 1) / 2, 0, focal, (height - 1) / 2, 0, 0, 1]
    return CameraInfo(header=header(milliseconds, frame), height=height, width=width, k=np.array(k, float), **fields)


@pytest.fixture
def mailbox():
    return DepthMailbox(threading.Condition(), '/depth')


def ask(mailbox, milliseconds, parameters=PARAMETERS, frame='camera', size=(HEIGHT, WIDTH)):
    return mailbox.depth_for(header(milliseconds, frame), size, parameters)


# --- messages to arrays

def padded(pixels, encoding, padding, big_endian):
    rows = pixels.astype(pixels.dtype.newbyteorder('>' if big_endian else '<')).view(np.uint8)
    rows = np.pad(rows.reshape(len(pixels), -1), ((0, 0), (0, padding)), constant_values=0xAA)
    message = Image(height=pixels.shape[0], width=pixels.shape[1], encoding=encoding, step=rows.shape[1],
                    is_bigendian=int(big_endian))
    message.data.frombytes(rows.tobytes())
    return message


@pytest.mark.parametrize('big_endian', [False, True])
@pytest.mark.parametrize('padding', [0, 1, 6])
def test_millimetres_become_metres_whatever_padding_and_byte_order(padding, big_endian):
    millimetres = np.array([[0, 99, 100, 1234], [9999, 10000, 10001, 65535]], np.uint16)
    metres, raw = to_metres(padded(millimetres, '16UC1', padding, big_endian), 0.1, 10.0)
    assert metres.dtype == np.float32 and raw.dtype == np.uint16
    np.testing.assert_array_equal(raw, millimetres)
    nan = np.nan
    np.testing.assert_allclose(metres, [[nan, nan, 0.1, 1.234], [9.999, 10.0, nan, nan]], rtol=1e-6)


@pytest.mark.parametrize('big_endian', [False, True])
@pytest.mark.parametrize('padding', [0, 4, 5])
def test_metres_stay_metres_whatever_padding_and_byte_order(padding, big_endian):
    given = np.array([[0, 0.05, 0.2, 1.5], [np.nan, np.inf, -np.inf, -1], [10, 10.1, 1e-9, 5]], np.float32)
    metres, raw = to_metres(padded(given, '32FC1', padding, big_endian), 0.1, 10.0)
    assert metres.dtype == np.float32
    np.testing.assert_array_equal(raw, given)
    nan = np.float32(np.nan)
    np.testing.assert_array_equal(metres, np.float32([[nan, nan, 0.2, 1.5], [nan] * 4, [10, nan, nan, 5]]))


@pytest.mark.parametrize('encoding', ['16UC1', '32FC1'])
def test_zero_is_never_a_distance(encoding):
    zeros = np.zeros((2, 2), np.uint16 if encoding == '16UC1' else np.float32)
    assert np.isnan(to_metres(padded(zeros, encoding, 0, sys.byteorder == 'big'), 0.0, 10.0)[0]).all()


@pytest.mark.parametrize(('change', 'reason'), [
    ({'encoding': 'rgb8'}, "encoding 'rgb8': must be 16UC1 (millimetres) or 32FC1 (metres)"),
    ({'step': 5}, 'step 5: a row of 8 pixels 32FC1 has 32 bytes'),
    ({'height': 7}, '192 bytes of data: height 7 times step 32 makes 224'),
    ({'width': 0}, 'image of 0 x 6 pixels')])
def test_malformed_depth_is_refused_by_name(change, reason):
    message = depth(0)
    for name, value in change.items():
        setattr(message, name, value)
    with pytest.raises(ImageError) as refusal:
        to_metres(message, 0.1, 10.0)
    assert reason in str(refusal.value)


# --- calibration

def test_a_pinhole_looks_where_k_says():
    camera = to_rays(info(focal=200.0))
    assert camera.x.shape == camera.y.shape == (HEIGHT, WIDTH)
    np.testing.assert_allclose(camera.x[2], (np.arange(WIDTH) - 3.5) / 200, rtol=1e-6)
    np.testing.assert_allclose(camera.y[:, 3], (np.arange(HEIGHT) - 2.5) / 200, rtol=1e-6)


@pytest.mark.parametrize(('model', 'd'), [
    ('plumb_bob', [0.1, -0.2, 0.003, -0.002, 0.05]),
    ('rational_polynomial', [0.1, -0.2, 0.003, -0.002, 0.05, 0.2, 0, 0]),
    ('equidistant', [0.05, -0.01, 0.002, 0.0])])
def test_distortion_is_undone(model, d):
    calibration = info(height=48, width=64, focal=60.0, d=d, distortion_model=model)
    camera = to_rays(calibration)
    rays = np.stack([camera.x, camera.y, np.ones_like(camera.x)], -1).reshape(-1, 1, 3).astype(float)
    project = cv2.fisheye.projectPoints if model == 'equidistant' else cv2.projectPoints
    pixels = project(rays, np.zeros(3), np.zeros(3), calibration.k.reshape(3, 3), np.array(d))[0].reshape(48, 64, 2)
    rows, columns = np.mgrid[:48, :64]
    np.testing.assert_allclose(pixels, np.stack([columns, rows], -1), atol=0.05)
    straight = to_rays(info(height=48, width=64, focal=60.0))
    assert np.abs(camera.x - straight.x).max() > 0.005, 'the distortion can be seen'


def test_of_a_rectified_image_p_holds_and_not_the_lens():
    calibration = info(height=48, width=64, focal=60.0, d=[0.4, 0.1, 0.0, 0.0, 0.0], distortion_model='plumb_bob')
    calibration.p = np.array([50.0, 0, 30.5, -3.0, 0, 52.0, 20.5, 0, 0, 0, 1, 0])
    rectified = to_rays(calibration, rectified=True)
    assert rectified.x[0, 0] == pytest.approx(-30.5 / 50) and rectified.y[0, 0] == pytest.approx(-20.5 / 52)
    assert rectified.x[0, 63] == pytest.approx((63 - 30.5) / 50), 'straight, whatever D says'
    with pytest.raises(DepthError, match='not calibrated'):
        to_rays(info(), rectified=True)  # P is all zero


def test_a_distortion_of_zeros_needs_no_model():
    np.testing.assert_array_equal(to_rays(info(d=[0.0] * 5, distortion_model='whatever')).x, to_rays(info()).x)


def test_binning_and_region_of_interest_are_those_of_the_image():
    full = to_rays(info(height=480, width=640, focal=500.0))
    cut = to_rays(info(height=480, width=640, focal=500.0,
                       roi=RegionOfInterest(x_offset=100, y_offset=50, width=200, height=120)))
    np.testing.assert_allclose(cut.x, full.x[50:170, 100:300], atol=1e-6)
    np.testing.assert_allclose(cut.y, full.y[50:170, 100:300], atol=1e-6)
    binned = to_rays(info(height=480, width=640, focal=500.0, binning_x=2, binning_y=4))
    assert binned.x.shape == (120, 320)
    assert np.ptp(binned.x[0]) == pytest.approx(319 * 2 / 500, rel=1e-5)
    assert np.ptp(binned.y[:, 0]) == pytest.approx(119 * 4 / 500, rel=1e-5)


@pytest.mark.parametrize(('calibration', 'reason'), [
    (info(focal=0.0), 'camera_info not calibrated: fx 0 and fy 0 must be positive'),
    (info(focal=float('nan')), 'camera_info not calibrated'),
    (info(d=[0.1] * 5, distortion_model='cylinder'), "distortion_model 'cylinder': must be one of plumb_bob")])
def test_a_calibration_that_cannot_be_used_is_refused_by_name(calibration, reason):
    with pytest.raises(DepthError, match=reason):
        to_rays(calibration)


# --- pairing with the image

def test_an_image_gets_the_depth_nearest_to_its_stamp(mailbox):
    mailbox.put_info(info())
    for moment in (1000, 1033, 1066, 1100):
        mailbox.put_depth(depth(moment, metres=moment / 1000))
    for stamp, nearest in ((1033, 1.033), (1040, 1.033), (1055, 1.066), (1110, 1.1)):
        frame = ask(mailbox, stamp)
        assert frame.metres[0, 0] == pytest.approx(nearest), stamp
    assert (mailbox.report.used, mailbox.report.reason) == (4, '')


def test_stale_depth_is_not_used_and_the_reason_says_how_old_it_is(mailbox):
    mailbox.put_info(info())
    mailbox.put_depth(depth(1000))
    assert ask(mailbox, 1310) is None
    assert mailbox.report.unmatched == 1
    assert 'the nearest depth is 0.310 s older than the image: must be within 0.02 s' in mailbox.report.reason
    assert 'raise depth_tolerance' in mailbox.report.reason
    assert ask(mailbox, 1310, replace(PARAMETERS, depth_tolerance=0.4)) is not None
    assert mailbox.report.reason == ''


def test_without_any_depth_the_reason_is_the_topic(mailbox):
    mailbox.put_info(info())
    assert ask(mailbox, 1000, FOR_EVER) is None, 'nothing arrives: there is nothing to wait for'
    assert mailbox.report.absent == 1
    assert 'no depth on /depth: remap it' in mailbox.report.reason


def test_an_image_without_a_stamp_has_no_depth(mailbox):
    mailbox.put_info(info())
    mailbox.put_depth(depth(0))
    assert ask(mailbox, 0) is None
    assert 'the image has no stamp' in mailbox.report.reason


def test_depth_under_way_is_waited_for(mailbox):
    mailbox.put_info(info())
    mailbox.put_depth(depth(1000))
    later = threading.Timer(0.1, mailbox.put_depth, [depth(1033, metres=2.0)])
    later.start()
    frame = ask(mailbox, 1033, FOR_EVER)
    later.join()
    assert frame.metres[0, 0] == 2.0


def test_nothing_is_waited_for_once_newer_depth_has_come(mailbox):
    mailbox.put_info(info())
    mailbox.put_depth(depth(1000))
    mailbox.put_depth(depth(1100))
    assert ask(mailbox, 1050, FOR_EVER) is None


def test_a_slow_model_finds_the_depth_of_its_image_still_there(mailbox):
    mailbox.put_info(info())
    mailbox.put_depth(depth(1000, metres=1.5))
    mailbox.expect(header(1005))
    for number in range(1, 200):  # seven seconds at 30 images per second
        mailbox.put_depth(depth(1000 + 33 * number, metres=3.0))
    assert ask(mailbox, 1005).metres[0, 0] == 1.5


def test_what_is_kept_is_bounded(mailbox):
    mailbox.put_info(info())
    for number in range(200):
        mailbox.put_depth(depth(1000 + 10 * number))
    assert ask(mailbox, 1000) is None
    assert ask(mailbox, 1000 + 10 * 199) is not None


def test_a_bag_that_starts_again_finds_its_depth(mailbox):
    mailbox.put_info(info())
    mailbox.put_depth(depth(100_000, metres=1.0))
    mailbox.put_depth(depth(4_967, metres=3.0))
    assert ask(mailbox, 100_000) is not None, 'may be a single odd stamp'
    mailbox.put_depth(depth(5_000, metres=2.0))
    assert ask(mailbox, 5_000).metres[0, 0] == 2.0
    assert ask(mailbox, 100_000) is None


@pytest.mark.parametrize(('message', 'calibration', 'reason'), [
    (depth(1000, height=3, width=4), info(), 'depth of 4 x 3 pixels: must be 8 x 6, as the image'),
    (depth(1000, frame='depth_optical'), info(), "depth in frame 'depth_optical': must be 'camera', as the image"),
    (depth(1000), None, 'no camera_info'),
    (depth(1000), info(height=480, width=640), 'camera_info of 640 x 480 pixels: must be 8 x 6, as the image'),
    (depth(1000), info(frame='other'), "camera_info in frame 'other': must be 'camera'"),
    (depth(1000), info(focal=0.0), 'not calibrated'),
    (from_pixels(np.zeros((HEIGHT, WIDTH), np.uint8), 'mono8', header(1000)), info(), "encoding 'mono8'")])
def test_what_cannot_be_used_is_refused_and_counted(mailbox, message, calibration, reason):
    if calibration is not None:
        mailbox.put_info(calibration)
    mailbox.put_depth(message)
    assert ask(mailbox, 1000) is None
    assert mailbox.report.refused == 1
    assert reason in mailbox.report.reason
    mailbox.put_info(info())
    mailbox.put_depth(depth(2000))
    assert ask(mailbox, 2000) is not None, 'good depth is used again at once'
    assert mailbox.report.reason == ''


def values(array, encoding='32FC1', milliseconds=1000):
    return from_pixels(np.asarray(array).astype('u2' if encoding == '16UC1' else 'f4'), encoding,
                       header(milliseconds))


RAMP = np.linspace(0.9, 1.1, HEIGHT * WIDTH).reshape(HEIGHT, WIDTH)


@pytest.mark.parametrize(('message', 'reason'), [
    (values(RAMP * 1500), 'no pixel between 0.1 and 10 m: the largest is 1650 m: is the unit wrong?'),
    (values(RAMP * 0.05), 'no pixel between 0.1 and 10 m: the largest is 0.055 m; is the scene too near?'),
    (values(RAMP * 50, '16UC1'), 'the largest is 0.055 m; is the scene too near?'),
    (values(RAMP * 0, '16UC1'), 'all are 0 or not finite; is the lens covered'),
    (values(RAMP * np.nan), 'all are 0 or not finite; is the lens covered'),
    (values(RAMP * np.inf), 'all are 0 or not finite'), (values(-RAMP), 'all are 0 or not finite')])
def test_depth_that_says_nothing_is_refused_and_not_matched_in_silence(mailbox, message, reason):
    mailbox.put_info(info())
    mailbox.put_depth(message)
    assert ask(mailbox, 1000) is None
    assert reason in mailbox.report.reason and mailbox.report.refused == 1


def test_millimetres_in_32fc1_are_no_metres_however_large_depth_max_is(mailbox):
    mailbox.put_info(info())
    mailbox.put_depth(values((RAMP * 800).round()))
    assert ask(mailbox, 1000, replace(PARAMETERS, depth_max=1000.0)) is None
    assert 'whole numbers, median 800: must be in metres and seems to be in millimetres' in mailbox.report.reason
    mailbox.put_depth(values(RAMP * 800, milliseconds=2000))
    assert ask(mailbox, 2000, replace(PARAMETERS, depth_max=1000.0)) is not None, 'a far mountain'


def test_a_calibration_of_another_resolution_is_used_and_doubted(mailbox):
    wrong = info(focal=50.0)
    wrong.k[2], wrong.k[5] = WIDTH / 4, HEIGHT / 4
    for calibration, doubtful in ((wrong, True), (info(), False)):
        mailbox.put_info(calibration)
        mailbox.put_depth(depth(1000))
        assert ask(mailbox, 1000) is not None
        assert ('if the matrix belongs to another resolution' in mailbox.report.doubt) == doubtful


def test_a_calibration_that_changes_holds_from_its_depth_on(mailbox):
    for number, focal in enumerate((100.0, 200.0, 100.0)):
        mailbox.put_info(info(focal=focal))
        mailbox.put_depth(depth(1000 + 100 * number))
        assert ask(mailbox, 1000 + 100 * number).rays.focal == pytest.approx(focal)


def test_a_frame_that_is_not_named_is_no_contradiction(mailbox):
    mailbox.put_info(info(frame=''))
    mailbox.put_depth(depth(1000, frame=''))
    assert ask(mailbox, 1000) is not None


# --- topics

class Robot:
    """Publishers of a driver and subscriptions of the node, in one process."""

    def __init__(self, domain, pairing):
        self.context = rclpy.Context()
        rclpy.init(context=self.context, domain_id=domain)
        self.driver = rclpy.create_node('driver', context=self.context)
        self.node = rclpy.create_node('sam2', context=self.context)
        self.mailbox = DepthMailbox(threading.Condition(), '/depth')
        self.executor = SingleThreadedExecutor(context=self.context)
        self.executor.add_node(self.node)
        self.pairing = pairing
        self.depths = self.driver.create_publisher(Image, 'depth', 10)

    def listen(self):
        self.topics = DepthTopics(self.node, self.mailbox, pairing=self.pairing)
        self.wait_for(lambda: self.depths.get_subscription_count() == 1)

    def wait_for(self, condition):
        deadline = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < deadline
            self.executor.spin_once(timeout_sec=0.02)

    def close(self):
        self.topics.destroy()
        self.executor.shutdown()
        self.driver.destroy_node()
        self.node.destroy_node()
        rclpy.shutdown(context=self.context)


@pytest.fixture(params=['message_filters', 'by stamp'])
def robot(request, ros_domain):
    if request.param not in PAIRINGS:
        pytest.skip('message_filters is not installed: it comes with ROS 2')
    robot = Robot(ros_domain, request.param)
    yield robot
    robot.close()


def focal_of(robot, milliseconds):
    """Return the focal length in the depth of an image with this stamp, or None if it has no depth."""
    frame = ask(robot.mailbox, milliseconds)
    return None if frame is None else frame.rays.focal


def test_each_depth_has_the_calibration_of_its_stamp(robot):
    """The camera zooms, and either message may arrive first."""
    infos = robot.driver.create_publisher(CameraInfo, 'camera_info', 10)
    robot.listen()
    robot.wait_for(lambda: infos.get_subscription_count() >= 1)
    for number in range(6):
        stamp = 1000 + 33 * number
        messages = [(infos, info(stamp, focal=100.0 + number)), (robot.depths, depth(stamp))]
        for publisher, message in messages if number % 2 else messages[::-1]:
            publisher.publish(message)
        robot.wait_for(lambda stamp=stamp, number=number: focal_of(robot, stamp) == pytest.approx(100.0 + number))
    for number in range(6):
        assert focal_of(robot, 1000 + 33 * number) == pytest.approx(100.0 + number), 'also when asked for later'


def test_a_calibration_latched_once_before_we_came_serves_all_depth(robot):
    latched = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
    infos = robot.driver.create_publisher(CameraInfo, 'camera_info', latched)
    infos.publish(info(1, focal=123.0))
    robot.listen()
    for stamp in (1000, 1900):
        robot.depths.publish(depth(stamp))
        robot.wait_for(lambda stamp=stamp: focal_of(robot, stamp) == pytest.approx(123.0))


def test_a_driver_that_does_not_latch_is_not_asked_to(robot):
    """The driver would log a warning of an incompatible subscription."""
    infos = robot.driver.create_publisher(CameraInfo, 'camera_info', 10)
    robot.listen()
    robot.wait_for(lambda: infos.get_subscription_count())
    robot.depths.publish(depth(1000))
    robot.wait_for(lambda: infos.publish(info(1000, focal=111.0)) or focal_of(robot, 1000) == pytest.approx(111.0))
    found = robot.driver.get_subscriptions_info_by_topic(infos.topic_name)
    assert found and all(item.qos_profile.durability == DurabilityPolicy.VOLATILE for item in found)


def test_a_calibration_without_a_stamp_or_at_another_rate_serves_all_depth(robot):
    infos = robot.driver.create_publisher(CameraInfo, 'camera_info', 10)
    robot.listen()
    robot.wait_for(lambda: infos.get_subscription_count() >= 1)
    infos.publish(info(0, focal=111.0))
    for stamp in (1000, 1033, 1066):
        robot.depths.publish(depth(stamp))
        robot.wait_for(lambda stamp=stamp: focal_of(robot, stamp) == pytest.approx(111.0))


def test_stamps_before_time_began_cost_neither_the_callback_nor_the_depth_after(robot):
    infos = robot.driver.create_publisher(CameraInfo, 'camera_info', 10)
    robot.listen()
    robot.wait_for(lambda: infos.get_subscription_count() >= 1)
    for stamp in (1000, -5000, 1033):
        for publisher, message in ((infos, info(stamp, focal=111.0)), (robot.depths, depth(stamp))):
            publisher.publish(message)
        if stamp > 0:
            robot.wait_for(lambda stamp=stamp: focal_of(robot, stamp) == pytest.approx(111.0))


def test_destroyed_topics_hear_nothing_and_can_be_made_again(robot):
    robot.listen()
    robot.topics.destroy()
    robot.wait_for(lambda: robot.depths.get_subscription_count() == 0)
    robot.listen()
    robot.depths.publish(depth(1000))
    robot.wait_for(lambda: ask(robot.mailbox, 1000) is None and robot.mailbox.report.refused)
    assert 'no camera_info' in robot.mailbox.report.reason
