"""Synthetic tabletop: its ground truth against its geometry, computed in another way."""
import cv2
import numpy as np
import pytest

from sam2_core.metrics import iou
from sam2_ros.tabletop.scene import LABELS, TabletopScene
from sam2_ros.tabletop.solids import Ball, Block, Frustum

SEEDS = (0, 1, 7)


@pytest.fixture(scope='module')
def scenes():
    return {seed: TabletopScene(seed, 320, 240, fps=10) for seed in SEEDS}


def test_a_frame_is_an_image_and_a_mask_of_every_object(scenes):
    rgb, truth = scenes[0].frame(3)
    assert rgb.shape == (240, 320, 3) and rgb.dtype == np.uint8
    assert set(truth) == set(LABELS) == set(scenes[0].objects)
    assert all(mask.shape == (240, 320) and mask.dtype == bool for mask in truth.values())
    assert np.sum(list(truth.values()), axis=0).max() == 1, 'a pixel shows one object'


def test_a_frame_depends_on_the_seed_and_its_number_alone(scenes):
    forward, backward = TabletopScene(1, 320, 240, fps=10), scenes[1]
    backward.frame(40)
    for number in (0, 20):
        assert np.array_equal(forward.render(number)[0], backward.render(number)[0])
        assert np.array_equal(forward.render(number)[1], backward.render(number)[1])
        assert not np.array_equal(forward.render(number)[0], scenes[7].render(number)[0])


@pytest.mark.parametrize('seed', SEEDS)
def test_the_ball_is_hidden_for_about_a_second_and_comes_back(scenes, seed):
    seen = np.array([scenes[seed].frame(number)[1][1].sum() for number in range(110)])
    hidden = np.flatnonzero(seen == 0)
    assert 0.6 * 10 <= len(hidden) <= 2.0 * 10
    assert np.array_equal(hidden, np.arange(hidden[0], hidden[-1] + 1)), 'in one go'
    assert seen[0] > 300 and seen[hidden[-1] + 15] > 300


@pytest.mark.parametrize('seed', SEEDS)
def test_the_cup_comes_late_and_stays_in_view(scenes, seed):
    seen = [scenes[seed].frame(number)[1][4] for number in (0, 50, 100, 200)]
    assert not seen[0].any()
    for mask in seen[1:]:
        assert mask.sum() > 500
        assert not mask[[0, -1]].any() and not mask[:, [0, -1]].any(), 'all of it'


def outline(solid, pose):
    """Return points in table coordinates whose convex hull is the solid."""
    angle = np.linspace(0, 2 * np.pi, 721)
    if isinstance(solid, Frustum):
        return np.concatenate([np.stack([radius * np.cos(angle), radius * np.sin(angle), np.full_like(angle, z)], 1)
                               for radius, z in ((solid.bottom, 0), (solid.top, solid.height))]) + [pose.x, pose.y, 0]
    corners = np.array([[x, y, z] for x in (-0.5, 0.5) for y in (-0.5, 0.5) for z in (0, 1)]) * solid.size
    turn = np.array([[np.cos(pose.yaw), -np.sin(pose.yaw)], [np.sin(pose.yaw), np.cos(pose.yaw)]])
    return np.column_stack([corners[:, :2] @ turn.T, corners[:, 2]]) + [pose.x, pose.y, 0]


def silhouette(scene, object_id, number):
    """Return the mask of an unoccluded object, bool, computed from pose, size and camera."""
    rotation, centre = scene.camera_pose(number)
    solid, pose = scene.objects[object_id].solid, scene.pose(object_id, number)
    if isinstance(solid, Ball):  # a ray meets a sphere when the angle to its middle is small enough
        y, x = np.mgrid[:scene.height, :scene.width]
        rays = np.stack([x, y, np.ones_like(x)], -1) @ np.linalg.inv(scene.intrinsics).T @ rotation.T
        middle = np.array([pose.x, pose.y, solid.radius]) - centre
        cosine = rays @ middle / np.linalg.norm(rays, axis=-1) / np.linalg.norm(middle)
        return np.arccos(cosine) < np.arcsin(solid.radius / np.linalg.norm(middle))
    seen = (outline(solid, pose) - centre) @ rotation @ scene.intrinsics.T
    hull = cv2.convexHull((seen[:, :2] / seen[:, 2:]).astype(np.float32))[:, 0]
    mask = np.zeros((scene.height, scene.width), np.uint8)
    cv2.fillConvexPoly(mask, np.round(hull * 16).astype(np.int32), 1, shift=4)
    return mask > 0


@pytest.mark.parametrize('object_id', LABELS)
def test_the_mask_is_what_pose_size_and_camera_say(object_id):
    scene, number = TabletopScene(2, 640, 480, fps=10), 50
    _, truth = scene.frame(number)
    behind = {3: [4, 5], 1: [5], 2: [5, 1], 4: [5], 5: [4]}[object_id]  # who may stand before it
    before = np.any([truth[other] for other in behind], axis=0)
    expected = silhouette(scene, object_id, number) & ~before
    assert expected.sum() > 2000
    assert iou(truth[object_id], expected) > 0.97, 'the outlines differ by half a pixel at most'


@pytest.mark.parametrize('distance', [0.5, 1.5])
def test_depth_puts_every_pixel_on_the_surface_it_shows(distance):
    scene, number = TabletopScene(2, 320, 240, fps=10, distance=distance), 50
    rgb, ids, depth = scene.render_depth(number)
    assert np.array_equal(rgb, scene.render(number)[0]) and np.array_equal(ids, scene.render(number)[1])
    rotation, centre = scene.camera_pose(number)
    y, x = np.mgrid[:scene.height, :scene.width]
    rays = np.stack([x, y, np.ones_like(x)], -1) @ np.linalg.inv(scene.intrinsics).T
    points = rays * depth[..., None] @ rotation.T + centre  # in table coordinates
    assert np.abs(points[ids == 0][:, 2]).max() < 1e-4, 'the table'
    assert np.linalg.norm(centre) == pytest.approx(distance, rel=0.15)
    for key, item in scene.objects.items():
        own, pose = points[ids == key], scene.pose(key, number)
        if not len(own):
            continue
        if isinstance(item.solid, Ball):
            radii = np.linalg.norm(own - [pose.x, pose.y, item.solid.radius], axis=1)
            assert np.abs(radii - item.solid.radius).max() < 1e-4
        elif isinstance(item.solid, Block):
            turn = np.array([[np.cos(pose.yaw), -np.sin(pose.yaw)], [np.sin(pose.yaw), np.cos(pose.yaw)]])
            inside = np.column_stack([(own[:, :2] - [pose.x, pose.y]) @ turn, own[:, 2] - item.solid.height / 2])
            beyond = np.abs(inside) - np.array(item.solid.size) / 2
            assert np.abs(beyond.max(1)).max() < 1e-4, 'each on a face'
        else:
            reach = np.hypot(own[:, 0] - pose.x, own[:, 1] - pose.y)
            wall = item.solid.bottom + (item.solid.top - item.solid.bottom) * own[:, 2] / item.solid.height
            lid = np.abs(own[:, 2] - item.solid.height) < 1e-4
            assert np.abs((reach - wall)[~lid]).max() < 1e-4 and (reach[lid] <= item.solid.top + 1e-4).all()


def test_the_box_of_an_object_is_around_it_in_the_cameras_frame(scenes):
    scene, number = scenes[0], 60
    rotation, camera = scene.camera_pose(number)
    for key, item in scene.objects.items():
        centre, axes, size = scene.box(key, number)
        assert np.linalg.det(axes) == pytest.approx(1)
        if isinstance(item.solid, Ball):
            continue
        corners = (outline(item.solid, scene.pose(key, number)) - camera) @ rotation
        along = (corners - centre) @ axes
        if isinstance(item.solid, Block):
            np.testing.assert_allclose([along.min(0), along.max(0)], [-size / 2, size / 2], atol=1e-9)
        else:
            np.testing.assert_allclose([along.min(0), along.max(0)], [-size / 2, size / 2], atol=2e-4)


@pytest.mark.parametrize('seed', SEEDS)
def test_things_never_stand_in_one_another(scenes, seed):
    for number in range(0, 200, 3):
        table = np.zeros((900, 1600), np.uint8)  # millimetres
        for key, item in scenes[seed].objects.items():
            pose = scenes[seed].pose(key, number)
            footprint = np.zeros_like(table)
            if isinstance(item.solid, Block):
                points = outline(item.solid, pose)[:, :2]
            else:
                angle = np.linspace(0, 2 * np.pi, 100)
                points = item.solid.size[0] / 2 * np.stack([np.cos(angle), np.sin(angle)], 1) + [pose.x, pose.y]
            hull = cv2.convexHull(np.round(points * 1000 + [700, 400]).astype(np.int32))
            cv2.fillConvexPoly(footprint, hull, 1)
            table += footprint
        assert table.max() == 1, f'frame {number}'


def test_light_and_noise_change_while_the_scene_stands_still(scenes):
    table = [scenes[0].render(number)[0][200:230, 100:200].astype(float) for number in range(0, 200, 10)]
    assert np.ptp([patch.mean() for patch in table]) > 10
    residual = table[0] - cv2.GaussianBlur(table[0], (0, 0), 2)
    assert residual.std() > 1


@pytest.mark.parametrize(('arguments', 'message'), [
    ({'width': 32}, '32x480'), ({'height': 0}, '640x0'), ({'fps': 0}, 'fps 0'), ({'fps': -5}, 'fps -5'),
    ({'distance': 0}, 'distance 0')])
def test_impossible_settings_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        TabletopScene(**arguments)
