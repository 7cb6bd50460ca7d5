"""Rays of published cameras and of lenses whose model ends inside the image; clicks, which need the inverse."""
import math
import threading
import time

import numpy as np
import pytest
from sensor_msgs.msg import RegionOfInterest

from sam2_core import StreamTracker
from sam2_core.masks import mask_box
from sam2_core.prompts import PromptError
from sam2_ros.depth.calibration import Calibration, calibrate, to_rays
from sam2_ros.depth.lens import Lens
from sam2_ros.depth.matching import DepthMailbox
from sam2_ros.depth.surface import DepthFrame, measure, object_points
from sam2_ros.messages.conversions import from_pixels
from sam2_ros.msg import Prompt
from sam2_ros.perception.camera_pipeline import CameraPipeline
from sam2_ros.perception.prompt_plan import PromptRequest
from sam2_ros.runtime.parameters import Parameters
from sam2_ros.topics.point_prompts import project
from testing.lens_truth import (
    BARREL,
    BARREL_FOLD,
    EUROC,
    HEADER,
    HEIGHT,
    KINECT_COLOUR,
    KINECT_DEPTH,
    KITTI,
    ODD,
    THIN_PRISM,
    TILTED,
    TUM_RGBD,
    TUM_VI,
    WIDTH,
    forward,
    info,
    kannala_brandt,
    miss,
)


@pytest.mark.parametrize('calibration', [EUROC, TUM_RGBD, KITTI, KINECT_COLOUR, KINECT_DEPTH, THIN_PRISM, TILTED],
                         ids=['EuRoC', 'TUM RGB-D', 'KITTI', 'Kinect colour', 'Kinect depth', 'thin prism', 'tilted'])
def test_every_pixel_of_a_published_camera_has_a_ray_that_meets_it(calibration):
    assert miss(calibration).max() < 0.3
    assert calibrate(calibration).coverage() == 1


def test_a_fisheye_of_195_degrees_has_rays_forwards_only():
    found = miss(TUM_VI)
    rows, columns = np.mgrid[:512, :512]
    radius = np.hypot((columns - TUM_VI.k[2]) / TUM_VI.k[0], (rows - TUM_VI.k[5]) / TUM_VI.k[4])
    angles = np.array([85.0, 90.0])
    inner, outer = kannala_brandt(np.tan(np.radians(angles)), np.zeros(2), TUM_VI.d)[0]
    assert np.nanmax(found) < 0.3
    assert np.isfinite(found[radius < inner]).all()
    assert (radius > outer).mean() > 0.05 and np.isnan(found[radius >= outer]).all()


def test_a_fisheye_whose_coefficients_are_all_zero_is_no_pinhole():
    camera = to_rays(info(focal=40.0, d=[0.0] * 4, model='equidistant'))
    angle = (WIDTH - 1) / 2 / 40
    assert camera.x[HEIGHT // 2, -1] == pytest.approx(math.tan(angle), rel=1e-3)


def test_where_a_lens_model_folds_back_a_pixel_has_no_ray():
    """Every pixel with a ray meets it before the fold, and every ray well before the fold has a pixel."""
    camera = to_rays(BARREL)
    length = np.hypot(camera.x, camera.y)
    assert np.nanmax(miss(BARREL)) < 0.1
    assert np.nanmax(length) <= BARREL_FOLD
    angle, radius = np.meshgrid(np.linspace(0, 2 * np.pi, 200), np.linspace(0, 0.9 * BARREL_FOLD, 100))
    columns, rows = (values.round().astype(int) for values in forward(BARREL, radius * np.cos(angle),
                                                                      radius * np.sin(angle)))
    inside = (columns >= 0) & (columns < 320) & (rows >= 0) & (rows < 240)
    assert np.isfinite(camera.x[rows[inside], columns[inside]]).all()
    np.testing.assert_array_equal(camera.blind, np.isnan(camera.x))
    assert 0.1 < camera.blind.mean() < 0.5


def disc(x, y, radius=24):
    rows, columns = np.mgrid[:240, :320]
    return np.hypot(columns - x, rows - y) < radius


def test_points_and_boxes_leave_out_what_the_lens_model_does_not_cover():
    camera = to_rays(BARREL)
    depth = DepthFrame(np.ones((240, 320), np.float32), camera)
    corner, middle = disc(12, 12), disc(160, 120)
    assert not len(object_points(depth, corner, mask_box(corner), 0))
    assert measure(depth, corner, mask_box(corner), 2) is None
    points = object_points(depth, middle, mask_box(middle), 0)
    assert len(points) > 0.9 * middle.sum() and np.isfinite(points).all()
    edge = disc(45, 60, 40)
    assert camera.blind[edge].any() and not camera.blind[edge].all()
    found = measure(depth, edge, mask_box(edge), 2)
    assert np.isfinite(found.centre).all() and np.abs(found.centre[:2]).max() < BARREL_FOLD


def test_an_object_beyond_the_lens_model_has_no_depth_and_diagnostics_say_why(model):
    depths = DepthMailbox(threading.Condition())
    pipeline = CameraPipeline(StreamTracker(model), Parameters(depth_wait=0.0), threading.Condition(), '/image', None,
                              depths)
    picture = np.full((240, 320, 3), 80, np.uint8)
    picture[disc(20, 20)] = (230, 60, 40)
    depths.put_info(BARREL)
    depths.put_depth(from_pixels(np.full((240, 320), 1000, np.uint16), '16UC1', HEADER))
    pipeline.inbox.put_prompt(PromptRequest(Prompt(id=3, box=RegionOfInterest(width=40, height=40)),
                                            time.monotonic()))
    pipeline.put_image(from_pixels(picture, 'rgb8', HEADER))
    pipeline.take()
    frame, (answer,) = pipeline.work()
    assert answer.accepted and frame.objects[0].box is not None and frame.objects[0].shape is None
    assert 'object 3 has no depth: the lens model of camera_info has no ray' in pipeline.meter.snapshot(0).depth_doubt


# --- clicks without rays

def test_a_click_computes_no_rays_of_other_pixels(monkeypatch):
    """The rays of all pixels take seconds for large images."""
    monkeypatch.setattr(Calibration, 'rays', None)
    monkeypatch.setattr(Lens, 'undistort_grid', None)
    wide = info(12_000, 9_000, focal=12_000.0, d=[-0.1, 0.03, 0.001, 0, 0])
    assert project(np.array([0.0, 0.0, 1.0]), wide) == (6000.0, 4500.0)  # 5999.5, 4499.5, rounded to even


@pytest.mark.parametrize('calibration', [EUROC, KINECT_COLOUR, TILTED, TUM_VI, BARREL],
                         ids=['EuRoC', 'Kinect', 'tilted', 'TUM VI', 'barrel'])
def test_a_click_finds_the_pixel_whose_ray_it_lies_on(calibration):
    camera, random = to_rays(calibration), np.random.default_rng(0)
    for row, column in zip(random.integers(0, calibration.height, 200), random.integers(0, calibration.width, 200),
                           strict=True):
        x, y = float(camera.x[row, column]), float(camera.y[row, column])
        if math.isfinite(x):
            z = random.uniform(0.1, 50)
            assert project(np.array([x * z, y * z, z]), calibration) == pytest.approx((column, row), abs=1)


def test_a_point_beyond_the_lens_model_is_not_folded_into_the_image():
    x = 1.2 * BARREL_FOLD
    column, row = forward(BARREL, np.array(x), np.array(0.0))
    assert 0 <= column < 320 and 0 <= row < 240, 'the formula would have it inside'
    with pytest.raises(PromptError, match='outside the image of 320 x 240 pixels, or where its lens model has no ray'):
        project(np.array([x, 0.0, 1.0]), BARREL)


@pytest.mark.fuzz
def test_whatever_point_is_clicked_its_pixel_is_in_the_image_or_it_is_refused(rounds):
    random = np.random.default_rng(3)
    cameras = [info(), EUROC, TUM_VI, BARREL, TILTED]
    for _ in range(rounds(500, 20_000)):
        camera = cameras[random.integers(len(cameras))]
        point = random.normal(size=3) * 10.0 ** random.integers(-3, 4)
        if random.random() < 0.2:
            point[random.integers(3)] = ODD[random.integers(len(ODD))]
        try:
            x, y = project(point, camera)
        except PromptError:
            continue
        assert 0 <= x < camera.width and 0 <= y < camera.height
