"""Oriented boxes: exact shapes, wrong masks, wrong depth, and the same axes from image to image."""
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from sam2_core.masks import mask_box
from sam2_ros.depth.lens import PixelRays
from sam2_ros.depth.oriented_box import OrientedBox, oriented_box
from sam2_ros.depth.surface import DepthFrame, measure, object_pixels, object_points

WIDTH, HEIGHT, FOCAL = 320, 240, 300.0
CAMERA = PixelRays.pinhole(WIDTH, HEIGHT, FOCAL, FOCAL, (WIDTH - 1) / 2, (HEIGHT - 1) / 2)
BOX = (120, 80, 200, 160)  # of the plate below, in pixels


def plate(z=1.0, background=2.0):
    """Return the depth of a square plate in front of a wall, and the mask of the plate."""
    metres = np.full((HEIGHT, WIDTH), background, np.float32)
    mask = np.zeros((HEIGHT, WIDTH), bool)
    x0, y0, x1, y1 = BOX
    mask[y0:y1, x0:x1] = True
    metres[mask] = z
    return metres, mask


def rotation(random):
    axes, _ = np.linalg.qr(random.normal(size=(3, 3)))
    return axes * [1, 1, np.sign(np.linalg.det(axes))]


def corner(random, axes, size, count=2000):
    """Return points on the three faces of a block that meet in one corner."""
    points = random.uniform(-0.5, 0.5, (count, 3))
    points[np.arange(count), random.integers(0, 3, count)] = -0.5
    return points * size @ axes.T + [0.1, -0.05, 1.0]


def same_axes(one, other):
    """Return the angles in degrees between two orientations, axis by axis."""
    return np.degrees(np.arccos(np.clip((np.trace(one.T @ other) - 1) / 2, -1, 1)))


# --- points

def test_points_are_where_the_pixels_look():
    metres, mask = plate(z=1.2)
    points = object_points(DepthFrame(metres, CAMERA), mask, BOX, 0)
    rows, columns = np.nonzero(mask)
    expected = np.stack([(columns - (WIDTH - 1) / 2) * 1.2 / FOCAL, (rows - (HEIGHT - 1) / 2) * 1.2 / FOCAL,
                         np.full(len(rows), 1.2)], 1)
    np.testing.assert_allclose(points, expected, atol=1e-6)


@pytest.mark.parametrize('erosion', [1, 2, 5])
def test_erosion_leaves_out_the_rim(erosion):
    metres, mask = plate()
    rows, columns = object_pixels(DepthFrame(metres, CAMERA), mask, BOX, erosion)
    assert (rows.min(), rows.max()) == (80 + erosion, 159 - erosion)
    assert (columns.min(), columns.max()) == (120 + erosion, 199 - erosion)


def test_a_small_object_does_not_vanish_by_erosion():
    metres, mask = plate()
    mask[:] = False
    mask[100:104, 120:200] = True  # four rows
    metres[mask] = 1.0
    rows, _ = object_pixels(DepthFrame(metres, CAMERA), mask, (120, 100, 200, 104), 5)
    assert len(rows) >= 100 and set(rows) <= {100, 101, 102, 103}


def test_a_stride_takes_the_same_pixels_whatever_the_box():
    metres, mask = plate()
    for box in (BOX, (119, 77, 201, 163)):
        rows, columns = object_pixels(DepthFrame(metres, CAMERA), mask, box, 2, stride=3)
        assert not (rows % 3).any() and not (columns % 3).any()
        assert len(rows) == len(range(84, 158, 3)) * len(range(123, 198, 3))


def test_the_background_that_shows_through_is_left_out():
    metres, mask = plate()
    metres[110:130, 150:170] = 2.0  # a hole, like the handle of a mug
    rows, columns = object_pixels(DepthFrame(metres, CAMERA), mask, BOX, 2)
    assert metres[rows, columns].max() == 1.0
    assert len(rows) >= 0.85 * 76 * 76


def test_flying_pixels_are_left_out():
    random = np.random.default_rng(0)
    metres, mask = plate()
    flying = mask & (random.random(mask.shape) < 0.1)
    metres[flying] = random.uniform(1.05, 1.95, flying.sum())
    rows, columns = object_pixels(DepthFrame(metres, CAMERA), mask, BOX, 2)
    assert (metres[rows, columns] == 1.0).mean() > 0.999
    assert len(rows) > 0.85 * 76 * 76 * 0.9


def test_unknown_depth_gives_no_points():
    metres, mask = plate()
    metres[80:120] = np.nan
    rows, _ = object_pixels(DepthFrame(metres, CAMERA), mask, BOX, 2)
    assert rows.min() == 120
    metres[:] = np.nan
    assert not len(object_pixels(DepthFrame(metres, CAMERA), mask, BOX, 2)[0])
    assert measure(DepthFrame(metres, CAMERA), mask, BOX, 2) is None


@pytest.mark.parametrize('box', [(0, 0, 40, 40), (280, 200, 320, 240), (0, 100, 320, 140), (0, 0, 320, 240)])
def test_objects_may_reach_the_edge_of_the_image(box):
    x0, y0, x1, y1 = box
    metres, mask = np.full((HEIGHT, WIDTH), 2, np.float32), np.zeros((HEIGHT, WIDTH), bool)
    mask[y0:y1, x0:x1] = True
    metres[mask] = 1.0
    found = measure(DepthFrame(metres, CAMERA), mask, box, 2)
    expected = np.array([((x0 + x1) - WIDTH) / 2 / FOCAL, ((y0 + y1) - HEIGHT) / 2 / FOCAL, 1.0])
    np.testing.assert_allclose(found.centre, expected, atol=0.003)
    np.testing.assert_allclose(found.size[:2], sorted([(x1 - x0) / FOCAL, (y1 - y0) / FOCAL])[::-1], rtol=0.02)


@given(mask=arrays.arrays(bool, (24, 32)), speckle=st.booleans(), erosion=st.integers(0, 6), stride=st.integers(1, 5),
       levels=arrays.arrays(np.float32, (24, 32), elements=st.sampled_from([0.3, 1.0, 1.01, 4.0, np.nan])))
@settings(max_examples=150, deadline=None)
def test_whatever_mask_and_depth_are_there_is_a_proper_box_or_none(mask, speckle, erosion, stride, levels):
    if not speckle:
        mask = mask.copy()
        mask[4:20, 3:30] = True
    if not mask.any():
        return
    depth = DepthFrame(levels, PixelRays.pinhole(32, 24, 30, 30, 16, 12))
    box = mask_box(mask)
    rows, columns = object_pixels(depth, mask, box, erosion, stride)
    assert mask[rows, columns].all() and np.isfinite(levels[rows, columns]).all()
    first = measure(depth, mask, box, erosion)
    for found in (first, measure(depth, mask, box, erosion, first)):
        if found is not None:
            assert np.isfinite(found.centre).all() and np.isfinite(found.size).all() and (found.size >= 0).all()
            np.testing.assert_allclose(found.axes.T @ found.axes, np.eye(3), atol=1e-5)
            assert np.linalg.det(found.axes) == pytest.approx(1, abs=1e-5)
            assert sum(part * part for part in found.quaternion) == pytest.approx(1)


# --- boxes

def test_the_box_reaches_to_the_edge_of_the_mask():
    metres, mask = plate()
    for erosion in (0, 2, 6):
        found = measure(DepthFrame(metres, CAMERA), mask, BOX, erosion)
        np.testing.assert_allclose(found.size[:2], 80 / FOCAL, rtol=0.01)
        np.testing.assert_allclose(found.centre, [0, 0, 1], atol=0.001)
        assert found.size[2] < 0.002


@pytest.mark.parametrize('pixels', [-2, -1, 1, 2])
def test_where_depth_jumps_near_the_edge_of_the_mask_the_box_ends_at_the_jump(pixels):
    metres, mask = plate()
    x0, y0, x1, y1 = BOX
    wrong = np.zeros_like(mask)
    wrong[y0 - pixels:y1 + pixels, x0 - pixels:x1 + pixels] = True
    found = measure(DepthFrame(metres, CAMERA), wrong, mask_box(wrong), 2)
    np.testing.assert_allclose(found.size[:2], 80 / FOCAL, rtol=0.01)


@pytest.mark.parametrize('behind', [1.0, np.nan])
def test_where_it_does_not_the_box_ends_at_the_edge_of_the_mask(behind):
    """The object touches something, or the depth around it is unknown."""
    metres, mask = plate(background=behind)
    metres[BOX[1]:BOX[1] + 3] = metres[:, BOX[0]:BOX[0] + 3] = behind  # two edges of the plate as well
    found = measure(DepthFrame(metres, CAMERA), mask, BOX, 2)
    np.testing.assert_allclose(found.size[:2], 80 / FOCAL, rtol=0.01)
    np.testing.assert_allclose(found.centre, [0, 0, 1], atol=0.001)


def test_a_slanted_plate_is_continued_along_its_plane():
    metres, mask = plate()
    slope = 1.0  # 45 degrees: z = 1 + x
    metres[:] = 3.0
    metres[mask] = (1 / (1 - slope * CAMERA.x))[mask]
    found = measure(DepthFrame(metres, CAMERA), mask, BOX, 4)
    left, right = ((x - WIDTH / 2) / FOCAL for x in (120, 200))
    length = np.sqrt(2) * (right / (1 - right) - left / (1 - left))
    assert found.size[0] == pytest.approx(length, rel=0.02)
    assert abs(found.axes[:, 2] @ [1, 0, -1]) / np.sqrt(2) == pytest.approx(1, abs=0.01), 'the normal of the plate'
    assert found.size[2] < 0.01


@pytest.mark.parametrize('seed', range(12))
def test_of_a_block_whose_three_faces_are_seen_the_whole_block_is_found(seed):
    random = np.random.default_rng(seed)
    axes, size = rotation(random), random.uniform(0.04, 0.25, 3)
    found = oriented_box(corner(random, axes, size))
    np.testing.assert_allclose(found.size, np.sort(size)[::-1], rtol=0.09)
    np.testing.assert_allclose(found.centre, [0.1, -0.05, 1.0], atol=0.004)


@pytest.mark.parametrize('seed', range(12))
def test_a_box_has_right_handed_axes_and_their_quaternion(seed):
    random = np.random.default_rng(seed)
    found = oriented_box(corner(random, rotation(random), random.uniform(0.04, 0.25, 3)))
    np.testing.assert_allclose(found.axes.T @ found.axes, np.eye(3), atol=1e-6)
    assert np.linalg.det(found.axes) == pytest.approx(1)
    x, y, z, w = found.quaternion
    vector = random.normal(size=3)
    part = np.array([x, y, z])
    np.testing.assert_allclose(vector + 2 * np.cross(part, np.cross(part, vector) + w * vector), found.axes @ vector,
                               atol=1e-6)


def test_too_few_points_have_no_box():
    assert oriented_box(np.random.default_rng(0).normal(size=(29, 3))) is None


def test_points_in_one_place_or_on_one_line_have_a_box():
    for points in (np.ones((50, 3)), np.linspace(0, 1, 50)[:, None] * [1.0, 2.0, 2.0] + 1):
        found = oriented_box(points)
        assert np.isfinite(found.axes).all() and np.isfinite(found.size).all()
        assert np.linalg.det(found.axes) == pytest.approx(1)
        assert found.size[0] == pytest.approx(np.linalg.norm(np.ptp(points, axis=0)), abs=0.02)


# --- from image to image

def test_the_first_box_names_its_axes_by_length_and_direction():
    random = np.random.default_rng(3)
    for _ in range(10):
        found = oriented_box(corner(random, rotation(random), random.uniform(0.04, 0.25, 3)))
        assert found.size[0] >= found.size[1] >= found.size[2]
        assert found.axes[np.argmax(np.abs(found.axes[:2, 0])), 0] > 0, 'x to the right, or down'
        assert found.axes[:, 2] @ found.centre <= 0, 'z to the camera'


def test_the_axes_follow_a_thing_that_turns():
    random = np.random.default_rng(5)
    angle, box, first = 0.0, None, None
    for _ in range(60):
        turn = np.array([[np.cos(angle), 0, np.sin(angle)], [0, 1, 0], [-np.sin(angle), 0, np.cos(angle)]])
        tilt = np.array([[0.8, 0.6, 0], [-0.6, 0.8, 0], [0, 0, 1]])
        now = oriented_box(corner(random, turn @ tilt, np.array([0.10, 0.09, 0.11])), box)
        first = first or now
        if box is not None:
            assert same_axes(box.axes, now.axes) < 6
        box, angle = now, angle + np.radians(3)
    # after half a rotation the axes are those of the start, rotated with the object
    half = np.array([[-1, 0, 0], [0, 1, 0], [0, 0, -1]])
    assert same_axes(half @ first.axes, box.axes) < 12


@pytest.mark.parametrize('shape', ['ball', 'cube', 'disc'])
def test_the_axes_of_what_has_none_of_its_own_stay(shape):
    random = np.random.default_rng(7)

    def points():
        normal = random.normal(size=(1500, 3))
        ball = normal / np.linalg.norm(normal, axis=1, keepdims=True)
        if shape == 'ball':
            ball[:, 2] = -np.abs(ball[:, 2])
        if shape == 'disc':
            ball[:, 2] = 0
        if shape == 'cube':
            ball = corner(random, np.eye(3), np.ones(3), 1500) - [0.1, -0.05, 1.0]
        return 0.1 * ball + [0, 0, 1] + random.normal(0, 0.001, (1500, 3))

    first = box = oriented_box(points())
    for _ in range(40):
        now = oriented_box(points(), box)
        assert same_axes(box.axes, now.axes) < 5
        box = now
    assert same_axes(first.axes, box.axes) < 15
    assert sorted(box.size)[0] > 0


def test_a_poor_first_box_is_given_up_when_more_is_seen():
    random = np.random.default_rng(9)
    axes, size = rotation(random), np.array([0.2, 0.12, 0.08])
    wrong = OrientedBox(np.array([0.1, -0.05, 1.0]), rotation(random), size)
    found = oriented_box(corner(random, axes, size), wrong)
    np.testing.assert_allclose(np.sort(found.size), np.sort(size), rtol=0.06)


def test_the_same_points_give_the_same_box():
    random = np.random.default_rng(11)
    points = corner(random, rotation(random), np.array([0.2, 0.12, 0.08]))
    one, other = oriented_box(points), oriented_box(points.copy())
    assert np.array_equal(one.axes, other.axes) and np.array_equal(one.size, other.size)
