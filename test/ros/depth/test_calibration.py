"""CameraInfo: which one belongs to an image, what its numbers mean, and which numbers are refused."""
import math
import threading

import numpy as np
import pytest
from builtin_interfaces.msg import Time
from geometry_msgs.msg import Point, PointStamped
from sensor_msgs.msg import CameraInfo, RegionOfInterest
from std_msgs.msg import Header

from sam2_core.prompts import PromptError
from sam2_ros.depth.calibration import Calibration, DepthError, calibrate, doubt, info_of_image, to_rays
from sam2_ros.depth.matching import DepthMailbox
from sam2_ros.depth.transforms import Transforms
from sam2_ros.messages.conversions import from_pixels
from sam2_ros.msg import Prompt
from sam2_ros.preflight.camera import Topic, check_camera_info
from sam2_ros.preflight.findings import Verdict
from sam2_ros.runtime.parameters import Parameters
from sam2_ros.topics.point_prompts import PointPrompts, project
from testing.in_process import in_process
from testing.lens_truth import HEADER, HEIGHT, ODD, SIZE, WIDTH, brown, forward, info, kannala_brandt, tilted

# --- the numbers of a CameraInfo

K1, K2, P1, P2, K3 = -0.2, 0.05, 0.002, -0.001, 0.01


@pytest.mark.parametrize(('given', 'meant'), [
    ([K1], [K1]), ([K1, K2], [K1, K2]), ([K1, K2, 0], [K1, K2]), ([K1, K2, 0, 0, 0, 0, 0], [K1, K2]),
    ([K1, K2, P1, P2], [K1, K2, P1, P2]), ([K1, K2, P1, P2, K3, 0], [K1, K2, P1, P2, K3]),
    ([K1, K2, P1, P2, K3] + [0] * 11, [K1, K2, P1, P2, K3]), ([K1, K2, P1, 0], [K1, K2, P1, 0])])
def test_a_list_of_another_length_whose_meaning_is_certain_is_taken(given, meant):
    found = to_rays(info(d=given))
    x, y = forward(info(d=meant), found.x.astype(float), found.y.astype(float))
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    assert np.hypot(x - columns, y - rows).max() < 0.1


@pytest.mark.parametrize('name', ['equidistant', 'fisheye', 'Kannala Brandt', 'KANNALA_BRANDT4'])
def test_a_fisheye_may_be_spelled_as_it_is_elsewhere(name):
    d = [0.05, -0.01, 0.002, 0.0]
    assert calibrate(info(d=d, model=name)) == calibrate(info(d=d, model='equidistant'))


@pytest.mark.parametrize('do_rectify', [False, True])
def test_the_offset_of_a_roi_holds_for_the_rectified_image_too(do_rectify):
    roi = RegionOfInterest(x_offset=10, y_offset=4, width=32, height=24, do_rectify=do_rectify)
    found, whole = (to_rays(info(**more), rectified=True) for more in ({'roi': roi}, {}))
    np.testing.assert_allclose(found.x, whole.x[4:28, 10:42], atol=1e-6)


def matrix(*changes):
    """Return K with some of its numbers replaced."""
    k = [*info().k]
    for index, value in changes:
        k[index] = float(value)
    return k


def roi(x, y, width, height):
    return {'roi': RegionOfInterest(x_offset=x, y_offset=y, width=width, height=height)}


REFUSED = [
    (info(d=[K1, K2, P1]), "3 coefficients in D: 'plumb_bob' must have 4, 5, 8, 12, 14"),
    (info(d=[K1] * 6), "6 coefficients in D: 'plumb_bob' must have 4, 5, 8, 12, 14"),
    (info(d=[K1] * 7, model='rational_polynomial'), "7 coefficients in D: 'rational_polynomial' must have"),
    (info(d=[K1] * 16), "16 coefficients in D: 'plumb_bob' must have"),
    (info(d=[0.1] * 8, model='thin_prism'), "8 coefficients in D: 'thin_prism' must have 12 or 14"),
    (info(d=[0.1] * 5, model='equidistant'), "5 coefficients in D: 'equidistant' must have 4"),
    (info(d=[], model='equidistant'), "0 coefficients in D: 'equidistant' must have 4"),
    (info(d=[0.1] * 5, model=''), "distortion_model '': must be one of plumb_bob, rational_polynomial"),
    (info(d=[0.1, math.nan, 0, 0, 0]), 'D = [0.1, nan, 0.0, 0.0, 0.0]: must be finite'),
    (info(d=[0.1, 0, 0, 0, 1e300]), 'must be finite, and at most 1e+08'),
    (info(k=matrix((0, -60))), 'fx -60 and fy 60 must be positive'),
    (info(k=matrix((2, math.inf))), 'all of K finite'),
    (info(k=matrix((1, 3.0))), 'a skew of 3 in K: must be 0; calibrate without skew'),
    (info(k=matrix((8, 0))), 'must be fx 0 cx, 0 fy cy, 0 0 1, row by row'),
    (info(k=[60.0, 0, 0, 0, 60, 0, 32, 24, 1]), 'must be fx 0 cx, 0 fy cy, 0 0 1, row by row'),  # column by column
    (info(k=matrix((0, 0.9), (2, 0.5), (4, 1.2), (5, 0.5))),
     'fx 0.9 and cx 0.5 for 64 pixels: no camera has this view'),
    (info(k=matrix((4, 1e300))), 'fy 1e+300 and cy 23.5 for 48 pixels: no camera has this view'),
    (info(k=matrix((5, 1e300))), 'no camera has this view'),
    (info(k=matrix((2, -1e6))), 'cx -1e+06 for 64 pixels: no camera has this view'),
    (info(0, 0, k=matrix()), 'camera_info of 0 x 0 pixels: must be the size of the calibrated image'),
    (info(100_000, 100_000), 'camera_info of 100000 x 100000 pixels: must be at most'),
    (info(binning_x=65, binning_y=1), 'binning 65 x 1: must not exceed the image of 64 x 48 pixels'),
    (info(**roi(40, 0, 32, 48)), 'roi of 32 x 48 pixels at (40, 0): must lie inside 64 x 48'),
    (info(**roi(4, 4, 0, 0)), 'roi of 0 x 0 pixels at (4, 4): must have a width and a height'),
    (info(**roi(0, 0, 32, 0)), 'must have a width and a height'),
]


@pytest.mark.parametrize(('calibration', 'reason'), REFUSED, ids=[reason[:30] for _, reason in REFUSED])
def test_what_is_no_calibration_is_refused_with_value_rule_and_cure(calibration, reason):
    with pytest.raises(DepthError) as refusal:
        to_rays(calibration)
    assert reason in str(refusal.value)
    assert str(refusal.value).startswith('camera_info ') and '; ' in str(refusal.value)
    with pytest.raises(PromptError) as same:
        project(np.array([0.0, 0.0, 1.0]), calibration)
    assert str(same.value) == str(refusal.value)


def test_a_rectified_image_needs_a_whole_p():
    for change, reason in (({6: 1e9}, 'P must be in pixels'), ({8: 1.0}, 'with P = '), ({0: 0.0}, 'not calibrated')):
        calibration = info()
        calibration.p = [change.get(index, value) for index, value in enumerate(calibration.p)]
        assert calibrate(calibration).fx == 60, 'K is all right'
        with pytest.raises(DepthError, match=reason):
            calibrate(calibration, rectified=True)


# --- drivers that bin images

def binned(width, height, focal, cx, cy, binning, **more):
    return info(width, height, k=[focal, 0.0, cx, 0.0, focal, cy, 0.0, 0.0, 1.0], binning_x=binning,
                binning_y=binning, **more)


@pytest.mark.parametrize('binning', [2, 3, 4, 8])
def test_a_matrix_of_the_binned_image_beside_the_full_size_is_found_out(binning):
    right = binned(320 * binning, 240 * binning, 300.0 * binning, 163.0 * binning, 115.0 * binning, binning)
    assert calibrate(right) == Calibration(320, 240, 300.0, 300.0, 163.0, 115.0)
    wrong = binned(320 * binning, 240 * binning, 300.0, 163.0, 115.0, binning)
    with pytest.raises(DepthError, match=rf'binning {binning} x {binning} and principal point \(163, 115\): must be '
                                         rf'that of the full .*, and seems to be of the binned image already'):
        calibrate(wrong)


def test_a_size_of_the_binned_image_beside_its_binning_is_found_out():
    with pytest.raises(DepthError, match='160 x 120 pixels: must be 320 x 240, as the image; with binning 2 x 2 .* '
                                         'binned already'):
        info_of_image([binned(320, 240, 300.0, 160.0, 120.0, 2)], 'camera', (240, 320))


def test_a_roi_far_from_the_middle_of_a_binned_image_is_no_fault():
    cut = binned(1280, 960, 1200.0, 645.0, 470.0, 2, **roi(0, 0, 320, 240))
    assert calibrate(cut) == Calibration(160, 120, 600.0, 600.0, 322.5, 235.0)
    assert not doubt(cut, False)


@pytest.mark.parametrize(('k', 'suspect'), [
    (matrix(), False), (matrix((2, 16), (5, 12)), True), (matrix((2, 63), (5, 47)), True),
    (matrix((2, 31), (5, 5)), False)])  # cropped at the top, as KITTI's images are
def test_a_matrix_that_seems_to_be_of_another_resolution_is_doubted(k, suspect):
    calibration = info(k=k)
    calibrate(calibration)
    assert ('if the matrix belongs to another resolution' in doubt(calibration, False)) == suspect


@pytest.mark.parametrize(('topic', 'rectified', 'text'), [
    ('/camera/image_rect_color', False, 'set the parameter rectified'), ('/zed/rgb/rect/image', False, 'set the param'),
    ('/camera/image_rect/compressed', True, ''), ('/camera/image_raw', False, ''),
    ('/camera/image_raw', True, 'subscribe to the rectified image'), ('/direct/image', False, '')])
def test_the_name_of_a_topic_and_the_parameter_rectified_have_to_agree(topic, rectified, text):
    found = doubt(info(d=[-0.2, 0.05, 0, 0, 0]), rectified, topic)
    assert text in found and bool(found) == bool(text)
    assert not doubt(info(), rectified, topic), 'without distortion there is no difference'


# --- the same rules for depth, clicks and sam2_check

def by_depth(calibration, image_frame='camera'):
    mailbox = DepthMailbox(threading.Condition(), '/depth')
    mailbox.put_info(calibration)
    image = Header(stamp=HEADER.stamp, frame_id=image_frame)
    metres = np.ones(SIZE, np.float32) + np.arange(WIDTH, dtype=np.float32) / 1000
    mailbox.put_depth(from_pixels(metres, '32FC1', image))
    mailbox.depth_for(image, SIZE, Parameters(depth_wait=0.0))
    return mailbox.report.reason.removeprefix('/depth: ')


def by_click(calibration, image_frame='camera'):
    message = PointStamped(header=Header(frame_id=image_frame), point=Point(z=1.0))
    try:
        PointPrompts(Transforms(None)).prompt(message, [calibration], Header(frame_id=image_frame), SIZE)
    except PromptError as error:
        return str(error)
    return ''


def by_check(calibration, image_frame='camera'):
    image = from_pixels(np.zeros((*SIZE, 3), np.uint8), 'rgb8', Header(frame_id=image_frame))
    finding = check_camera_info(calibration, Topic('/image', 'sensor_msgs/msg/Image', last=image))
    return finding.text if finding.verdict is Verdict.BAD else ''


@pytest.mark.parametrize(('calibration', 'image_frame', 'reason'), [
    (info(), 'camera', ''), (info(frame='/camera'), 'camera', ''), (info(frame=''), 'camera', ''),
    (info(), '', ''), (info(128, 96, focal=120.0, binning_x=2, binning_y=2), 'camera', ''),
    (info(128, 96, **roi(0, 0, WIDTH, HEIGHT)), 'camera', ''),
    (info(frame='depth'), 'camera', "camera_info in frame 'depth': must be 'camera', as the image"),
    (info(128, 96), 'camera', 'camera_info of 128 x 96 pixels: must be 64 x 48, as the image'),
    (info(binning_x=2, binning_y=2), 'camera', 'camera_info of 32 x 24 pixels: must be 64 x 48, as the image; with'),
    *((calibration, 'camera', reason) for calibration, reason in REFUSED
      if (calibration.width, calibration.height) == (WIDTH, HEIGHT) and not calibration.roi.width)])
def test_depth_click_and_check_accept_the_same_and_refuse_in_the_same_words(calibration, image_frame, reason):
    found = {by(calibration, image_frame) for by in (by_depth, by_click, by_check)}
    assert len(found) == 1
    assert found == {''} if not reason else reason in found.pop()


def test_a_click_is_placed_by_the_camera_info_of_the_image_among_those_of_other_cameras():
    others = [info(320, 240, focal=300.0), info(frame='depth', focal=30.0), info(frame='', focal=40.0)]
    message = PointStamped(header=HEADER, point=Point(x=0.1, y=0.05, z=1.0))
    found = PointPrompts(Transforms(None)).prompt(message, [*others, info()], HEADER, SIZE)
    assert (found.points[0].x, found.points[0].y) == pytest.approx((31.5 + 6, 23.5 + 3), abs=0.51)


def test_an_image_without_frame_between_two_cameras_is_refused():
    with pytest.raises(DepthError, match="in the frames 'left' and 'right', and the image names none"):
        info_of_image([info(frame='left'), info(frame='right')], '', SIZE)
    assert info_of_image([info(frame='left'), info(frame='right')], 'right', SIZE).header.frame_id == 'right'


# --- arbitrary content

NAMES = ['plumb_bob', 'rational_polynomial', 'equidistant', 'fisheye', 'thin_prism', '', 'Kannala Brandt', 'scaramuzza']


def odd_info(random: np.random.Generator) -> CameraInfo:
    """Return a valid calibration in which some fields have been replaced."""
    def some(values):
        return values[random.integers(len(values))]
    width, height = WIDTH, HEIGHT
    if random.random() < 0.3:
        width, height = (int(some([0, 1, 7, 64, 640, 100_000, 2**32 - 1])) for _ in range(2))
    result = info(width, height, focal=float(some([60.0, 20.0, 600.0])), model=some(NAMES),
                  d=random.normal(0, some([0.01, 0.1, 1, 100]), some([0, 1, 2, 3, 4, 5, 6, 7, 8, 12, 14, 16, 20])),
                  frame=some(['camera', '', 'other', '/camera']))
    if random.random() < 0.5:
        result.d = [value * (index < random.integers(1, 8)) for index, value in enumerate(result.d)]
    for numbers in (result.k, result.p, result.d):
        if len(numbers) and random.random() < 0.2:
            numbers[random.integers(len(numbers))] = some(ODD)
    if random.random() < 0.2:
        result.binning_x, result.binning_y = (int(some([0, 1, 2, 4, 1000, 2**32 - 1])) for _ in range(2))
    if random.random() < 0.2:
        result.roi = RegionOfInterest(**{name: int(some([0, 1, 16, 48, 64, 2**32 - 1]))
                                         for name in ('x_offset', 'y_offset', 'width', 'height')},
                                      do_rectify=bool(random.integers(2)))
    result.header.stamp.sec = int(some([5, 0, -5, 2**31 - 1, -2**31]))
    return result


@pytest.mark.fuzz
def test_whatever_camera_info_arrives_depth_and_clicks_are_right_or_refused(rounds):
    """Every ray meets its pixel by the formula of the model."""
    random, used, clicked = np.random.default_rng(12), 0, 0
    mailbox, points = DepthMailbox(threading.Condition(), '/depth'), PointPrompts(Transforms(None))
    metres = np.ones(SIZE, np.float32) + np.arange(WIDTH, dtype=np.float32) / 1000
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    for _ in range(rounds(300, 10_000)):
        odd, rectified = odd_info(random), bool(random.integers(2))
        mailbox.put_info(odd)
        mailbox.put_depth(from_pixels(metres, '32FC1', HEADER))
        frame = mailbox.depth_for(HEADER, SIZE, Parameters(depth_wait=0.0, rectified=rectified))
        assert (frame is None) == bool(mailbox.report.reason)
        message = PointStamped(header=HEADER, point=Point(x=float(random.normal()), y=float(random.normal()), z=2.0))
        try:
            click = points.prompt(message, [odd], HEADER, SIZE, rectified).points[0]
            assert 0 <= click.x < WIDTH and 0 <= click.y < HEIGHT
            clicked += 1
        except PromptError as error:
            assert len(str(error)) > 20
        try:
            calibration = calibrate(info_of_image([odd], 'camera', SIZE), rectified)
        except DepthError:
            continue
        camera, lens = calibration.rays(), calibration.lens
        x, y = camera.x.astype(float), camera.y.astype(float)
        if lens is not None and lens.fisheye:
            x, y = kannala_brandt(x, y, lens.coefficients)
        elif lens is not None:
            x, y = tilted(*brown(x, y, lens.coefficients), *lens.coefficients[12:])
        apart = np.hypot(x * calibration.fx + calibration.cx - columns, y * calibration.fy + calibration.cy - rows)
        assert np.isfinite(apart).any() and np.nanmax(apart) < 1
        used += 1
    assert used > 0.1 * rounds(300, 10_000) and clicked


@pytest.mark.fuzz
def test_whatever_is_clicked_beside_whatever_camera_info_the_node_answers_each_click(rounds):
    """The callbacks of the real node run without an exception that its guards would have to catch."""
    random, clicks = np.random.default_rng(7), 0
    with in_process(threaded=False) as robot:
        for number in range(rounds(150, 10_000)):
            if number % 25 == 0:
                robot.show(depth=bool(random.integers(2)))
                robot.serve()
                robot.send('/prompt', Prompt(action=Prompt.CLEAR))
                clicks += 1
                robot.serve()
            robot.send('/camera_info', odd_info(random))
            point = random.normal(size=3) * (0.5, 0.4, 2)
            if random.random() < 0.2:
                point[random.integers(3)] = ODD[random.integers(len(ODD))]
            frame = ['camera', '/camera', '', 'map'][random.choice(4, p=[0.7, 0.1, 0.1, 0.1])]
            stamp = Time(sec=int(random.choice([0, -1, 1000, 2**31 - 1, -2**31])))
            robot.send('/prompt_point', PointStamped(header=Header(stamp=stamp, frame_id=frame),
                                                     point=Point(x=point[0], y=point[1], z=point[2])))
            clicks += 1
        robot.show()
        robot.serve()
        assert len(robot.statuses) == clicks
        assert robot.node.failures.count == robot.pipeline.failures.count == 0
        assert any(status.accepted and status.id for status in robot.statuses)
