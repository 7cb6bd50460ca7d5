"""Messages of a frame with depth, read byte by byte as their consumers do."""
from dataclasses import replace

import numpy as np
import pytest
from builtin_interfaces.msg import Time
from sensor_msgs.msg import PointField
from std_msgs.msg import Header
from visualization_msgs.msg import Marker

from sam2_core.drawing.overlay import colour
from sam2_core.masks import mask_box
from sam2_ros.depth.frame_transform import frame_transform
from sam2_ros.depth.lens import PixelRays
from sam2_ros.depth.surface import DepthFrame, measure
from sam2_ros.msg import Instance
from sam2_ros.perception.frame import Frame, TrackedObject
from sam2_ros.perception.instance_messages import box_pose, instance_message, size_vector
from sam2_ros.runtime.parameters import Parameters
from sam2_ros.topics.clouds import (
    Markers,
    background_depth_message,
    background_points_message,
    object_points_message,
    points_message,
)

HEIGHT, WIDTH, FOCAL = 120, 160, 150.0
CAMERA = PixelRays.pinhole(WIDTH, HEIGHT, FOCAL, FOCAL, (WIDTH - 1) / 2, (HEIGHT - 1) / 2)
HEADER = Header(stamp=Time(sec=5, nanosec=6), frame_id='camera_optical')
PARAMETERS = Parameters(cloud_stride=1, edge_erosion=2)
NUMPY = {PointField.FLOAT32: '<f4', PointField.UINT32: '<u4'}
FIRST, SECOND = (20, 30, 60, 70), (90, 40, 130, 100)  # boxes, pixels


def scene(encoding='32FC1', hidden=False, with_depth=True) -> Frame:
    """Return plates 3 and 500, at 0.8 and 1.2 m, before a wall at 2 m; a corner has no depth."""
    metres = np.full((HEIGHT, WIDTH), 2.0, np.float32)
    metres[:10, :10] = np.nan
    masks = []
    for (x0, y0, x1, y1), z in ((FIRST, 0.8), (SECOND, 1.2)):
        masks.append(np.zeros((HEIGHT, WIDTH), bool))
        masks[-1][y0:y1, x0:x1] = True
        metres[masks[-1]] = z
    image = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
    raw = np.nan_to_num(metres * 1000).round().astype(np.uint16) if encoding == '16UC1' else metres
    depth = DepthFrame(metres, CAMERA, raw)
    objects = [TrackedObject(number, 'cup' * (number == 3), Instance.TRACKED, 0.9, 0.9, HEADER.stamp, mask_box(mask),
                             mask, measure(depth, mask, mask_box(mask), 2) if with_depth else None)
               for number, mask in zip((3, 500), masks, strict=True)]
    if hidden:
        objects[1] = TrackedObject(500, '', Instance.OCCLUDED, 0.0, 0.1, HEADER.stamp)
    return Frame(HEADER, image, objects, 0, depth if with_depth else None)


def read(cloud):
    """Return the points of a PointCloud2 as a structured array, decoded by the message's own fields."""
    kind = np.dtype({'names': [field.name for field in cloud.fields],
                     'formats': [NUMPY[field.datatype] for field in cloud.fields],
                     'offsets': [field.offset for field in cloud.fields], 'itemsize': cloud.point_step})
    assert cloud.row_step == cloud.width * cloud.point_step == len(cloud.data) and cloud.height == 1
    assert not cloud.is_bigendian and cloud.is_dense
    return np.frombuffer(cloud.data, kind)


def pixels_of(points):
    """Return the rows and columns of the pixels that see these points."""
    columns = points['x'] / points['z'] * FOCAL + (WIDTH - 1) / 2
    rows = points['y'] / points['z'] * FOCAL + (HEIGHT - 1) / 2
    return rows.round().astype(int), columns.round().astype(int)


def colours_of(points):
    """Unpack the float called rgb as PCL and RViz do."""
    bits = points['rgb'].view(np.uint32)
    return np.stack([bits >> 16 & 255, bits >> 8 & 255, bits & 255], 1)


def test_points_have_their_place_their_colour_and_the_id_of_their_object():
    frame = scene()
    cloud = points_message(frame, PARAMETERS)
    assert cloud.header == HEADER
    assert [field.name for field in cloud.fields] == ['x', 'y', 'z', 'rgb', 'instance']
    points = read(cloud)
    assert set(points['instance']) == {3, 500}
    rows, columns = pixels_of(points)
    for number, (x0, y0, x1, y1), z in ((3, FIRST, 0.8), (500, SECOND, 1.2)):
        own = points['instance'] == number
        np.testing.assert_allclose(points['z'][own], z)
        expected = {(row, column) for row in range(y0 + 2, y1 - 2) for column in range(x0 + 2, x1 - 2)}
        assert set(zip(rows[own].tolist(), columns[own].tolist(), strict=True)) == expected, 'all but the rim'
    np.testing.assert_array_equal(colours_of(points), frame.image[rows, columns])


@pytest.mark.parametrize('stride', [2, 3])
def test_a_stride_thins_out_rows_and_columns(stride):
    rows, columns = pixels_of(read(points_message(scene(), Parameters(cloud_stride=stride))))
    assert len(rows) and not (rows % stride).any() and not (columns % stride).any()


def test_the_cloud_of_one_object_has_all_of_its_points():
    frame = scene()
    points = read(object_points_message(frame, frame.objects[1], Parameters(cloud_stride=7)))
    assert len(points) == 36 * 56 and set(points['instance']) == {500}


def test_objects_out_of_sight_have_no_points():
    frame = scene(hidden=True)
    assert set(read(points_message(frame, PARAMETERS))['instance']) == {3}
    assert object_points_message(frame, frame.objects[1], PARAMETERS) is None
    nothing = points_message(Frame(HEADER, frame.image, [], 0, frame.depth), PARAMETERS)
    assert nothing.width == 0 and not len(nothing.data) and nothing.fields, 'a message all the same'


def test_without_depth_there_is_nothing_to_say():
    frame = scene(with_depth=False)
    for build in (points_message, background_depth_message, background_points_message):
        assert build(frame, PARAMETERS) is None
    assert object_points_message(frame, frame.objects[0], PARAMETERS) is None


@pytest.mark.parametrize(('encoding', 'dtype'), [('16UC1', '<u2'), ('32FC1', '<f4')])
def test_the_background_keeps_its_depth_and_the_objects_lose_theirs(encoding, dtype):
    frame = scene(encoding)
    came = frame.depth.raw.copy()
    message = background_depth_message(frame, PARAMETERS)
    assert (message.header, message.encoding, message.height, message.width) == (HEADER, encoding, HEIGHT, WIDTH)
    depth = np.frombuffer(message.data, dtype).reshape(HEIGHT, WIDTH)
    taken = np.zeros((HEIGHT, WIDTH), bool)
    for x0, y0, x1, y1 in (FIRST, SECOND):
        taken[y0 - 3:y1 + 3, x0 - 3:x1 + 3] = True
    assert (depth[taken] == 0).all() if encoding == '16UC1' else np.isnan(depth[taken]).all()
    np.testing.assert_array_equal(depth[~taken], came[~taken])
    np.testing.assert_array_equal(frame.depth.raw, came, 'the next view reads the same depth')


def test_a_hidden_object_takes_nothing_out_of_the_background():
    message = background_depth_message(scene(hidden=True), PARAMETERS)
    depth = np.frombuffer(message.data, '<f4').reshape(HEIGHT, WIDTH)
    assert depth[70, 110] == np.float32(1.2) and np.isnan(depth[50, 40])


@pytest.mark.parametrize('stride', [1, 4])
def test_background_points_are_those_of_the_background_depth(stride):
    frame = scene()
    points = read(background_points_message(frame, Parameters(cloud_stride=stride)))
    message = background_depth_message(frame, PARAMETERS)
    known = np.isfinite(np.frombuffer(message.data, '<f4').reshape(HEIGHT, WIDTH)[::stride, ::stride])
    assert len(points) == known.sum()
    rows, columns = pixels_of(points)
    assert known[rows // stride, columns // stride].all() and not (rows % stride).any()
    np.testing.assert_array_equal(colours_of(points), frame.image[rows, columns])
    assert points.dtype.names == ('x', 'y', 'z', 'rgb')


# --- boxes

def test_an_instance_says_where_it_is():
    item = scene().objects[0]
    message = instance_message(item, HEADER)
    assert message.has_depth
    x0, y0, x1, y1 = FIRST
    middle = [((x0 + x1) - WIDTH) / 2 * 0.8 / FOCAL, ((y0 + y1) - HEIGHT) / 2 * 0.8 / FOCAL, 0.8]
    position = message.box_center.position
    np.testing.assert_allclose([position.x, position.y, position.z], middle, atol=0.002)
    np.testing.assert_allclose([message.box_size.x, message.box_size.y], 40 * 0.8 / FOCAL, rtol=0.02)
    turn = message.box_center.orientation
    assert np.hypot(np.hypot(turn.x, turn.y), np.hypot(turn.z, turn.w)) == pytest.approx(1)
    assert not instance_message(scene(with_depth=False).objects[0], HEADER).has_depth


def test_every_located_object_has_a_box_and_a_name_and_what_is_gone_is_deleted():
    markers = Markers()
    shown = markers.message(scene(), PARAMETERS).markers
    assert {(marker.ns, marker.id, marker.action) for marker in shown} == {
        (space, number, Marker.ADD) for space in ('box', 'label') for number in (3, 500)}
    item = scene().objects[0]
    box, label = (next(marker for marker in shown if (marker.ns, marker.id) == (space, 3))
                  for space in ('box', 'label'))
    assert (box.type, box.pose, box.scale, box.header) == (Marker.CUBE, box_pose(item.shape), size_vector(item.shape),
                                                           HEADER)
    assert [round(255 * value) for value in (box.color.r, box.color.g, box.color.b)] == list(colour(3))
    assert 0 < box.color.a < 1 and box.lifetime.sec > 0
    assert (label.type, label.text, label.header) == (Marker.TEXT_VIEW_FACING, '3 cup', HEADER)
    assert label.pose.position.y < item.shape.centre[1] - 0.1, 'above the box: y points down'
    after = markers.message(scene(hidden=True), PARAMETERS).markers
    assert {(marker.ns, marker.id) for marker in after if marker.action == Marker.DELETE} == {('box', 500),
                                                                                              ('label', 500)}
    assert {marker.id for marker in after if marker.action == Marker.ADD} == {3}
    assert not [marker for marker in markers.message(scene(hidden=True), PARAMETERS).markers
                if marker.action == Marker.DELETE], 'once'
    gone = markers.message(scene(with_depth=False), PARAMETERS).markers
    assert {(marker.id, marker.action) for marker in gone} == {(3, Marker.DELETE)}


# --- in another frame

OVER_HEAD = frame_transform('table', (1.0, 0.0, 0.0, 0.0), (10.0, 0.0, 2.0))  # looks down from 2 m: z is height


def moved(target=OVER_HEAD, **scene_options) -> Frame:
    shown = scene(**scene_options)
    return replace(shown, target=target, objects=[replace(item, target=target) for item in shown.objects])


def at_table(points) -> np.ndarray:
    """Return points of the camera's frame as the table sees them: half a turn about x, then an offset."""
    return np.stack([points['x'] + 10.0, -points['y'], 2.0 - points['z']], 1)


@pytest.mark.parametrize('build', [
    points_message, background_points_message, lambda frame, parameters: object_points_message(
        frame, frame.objects[0], parameters)], ids=['points', 'background', 'object'])
def test_clouds_are_in_target_frame_and_name_it(build):
    here, there = build(scene(), PARAMETERS), build(moved(), PARAMETERS)
    assert (there.header.frame_id, there.header.stamp) == ('table', HEADER.stamp)
    points, found = read(here), read(there)
    np.testing.assert_allclose(np.stack([found[axis] for axis in 'xyz'], 1), at_table(points), atol=1e-5)
    for name in set(points.dtype.names) - {*'xyz'}:
        np.testing.assert_array_equal(found[name].view(np.uint32), points[name].view(np.uint32))


def test_markers_are_in_target_frame_and_names_stay_above_in_the_image():
    shown = Markers().message(moved(), PARAMETERS).markers
    box, label = (next(marker for marker in shown if (marker.ns, marker.id) == (space, 3))
                  for space in ('box', 'label'))
    (pose,) = instance_message(moved().objects[0], HEADER).target_pose
    assert box.header == label.header == pose.header and box.header.frame_id == 'table'
    assert box.pose == pose.pose and box.pose.position.z == pytest.approx(2.0 - 0.8, abs=0.01)
    assert label.pose.position.y > box.pose.position.y + 0.1, 'y of the camera points down, that of the table up'


def test_without_a_transform_there_are_no_clouds_and_markers_but_the_depth_of_the_background():
    frame = moved(target=None)
    for build in (points_message, background_points_message, Markers().message):
        assert build(frame, PARAMETERS) is None
    assert object_points_message(frame, frame.objects[0], PARAMETERS) is None
    assert background_depth_message(frame, PARAMETERS).header == HEADER
    message = instance_message(frame.objects[0], HEADER)
    assert message.has_depth and not message.target_pose
