"""Colour and depth of the synthetic tabletop through the node over DDS: positions of objects in metres."""
import numpy as np
import pytest
from builtin_interfaces.msg import Time
from geometry_msgs.msg import PointStamped
from sensor_msgs.msg import CameraInfo, Image, PointCloud2
from std_msgs.msg import Header
from visualization_msgs.msg import Marker, MarkerArray

from sam2_ros.msg import Prompt
from sam2_ros.tabletop.scene import TabletopScene
from testing.camera_images import image_message
from testing.peer import FRAME_ID, running_node

SCENE = TabletopScene(seed=3, width=480, height=360)
FRAME = 70  # all objects are in view
CAN, TEA = 2, 3


class RgbdCamera:
    """Publisher of depth and camera_info beside the images of the peer."""

    def __init__(self, peer) -> None:
        self._peer = peer
        self._depth = peer.node.create_publisher(Image, 'depth', 5)
        self._info = peer.node.create_publisher(CameraInfo, 'camera_info', 5)
        rgb, self.labels, self.metres = SCENE.render_depth(FRAME)
        self.rgb = rgb
        peer.wait_for(lambda: self._depth.get_subscription_count() and self._info.get_subscription_count(),
                      'the node to listen to depth')

    def show(self, depth: Image | None = None, stamp_offset: int = 0, **prompts):
        """Show an image with depth, by default 16UC1 of the same stamp; return the instances."""
        message = self._peer.message(self.rgb)
        header = message.header
        beside = Header(stamp=Time(sec=header.stamp.sec + stamp_offset, nanosec=header.stamp.nanosec),
                        frame_id=FRAME_ID)
        if depth is None:
            depth = self.millimetres(beside)
        depth.header = beside
        self.publish_info(beside)
        self._depth.publish(depth)
        return self._peer.process_image(message)

    def publish_info(self, header: Header, **changes) -> None:
        right = {'width': SCENE.width, 'height': SCENE.height, 'k': SCENE.intrinsics.ravel().tolist(), 'd': [0.0] * 5}
        self._info.publish(CameraInfo(header=header, distortion_model='plumb_bob', **right | changes))

    def millimetres(self, header: Header) -> Image:
        metres = np.where(np.isfinite(self.metres), self.metres, 0)
        return image_message((metres * 1000).round().astype(np.uint16), header, '16UC1')

    def prompt(self, object_id: int) -> None:
        """Start an object from its true mask, so that its position does not depend on the model's quality."""
        mask = image_message((self.labels == object_id).astype(np.uint8) * 255, Header(), 'mono8')
        self._peer.send_prompt(Prompt(id=object_id, label=f'thing {object_id}', mask=mask))

    def show_with(self, *object_ids: int, **show):
        """Return the instances of an image in which these objects have just been prompted and have depth."""
        for object_id in object_ids:
            self.prompt(object_id)
        return self.until(lambda array: len(array.instances) == len(object_ids)
                          and all(instance.has_depth for instance in array.instances), **show)

    def until(self, condition, **show):
        arrays = []
        self._peer.wait_for(lambda: arrays.append(self.show(**show)) or condition(arrays[-1]), 'depth')
        return arrays[-1]


@pytest.fixture(scope='module', params=[False, True], ids=['raw', 'compressed'])
def node(request, tmp_path_factory):
    parameters = {'depth_wait': 2.0, 'image_transport': 'compressed' if request.param else 'raw'}
    with running_node(tmp_path_factory.mktemp('depth'), parameters, compressed=request.param) as peer:
        yield peer


@pytest.fixture(scope='module')
def camera(node):
    return RgbdCamera(node)


def true_points(camera: RgbdCamera, object_id: int) -> np.ndarray:
    """Return the visible surface from the exact depth, (N, 3) metres in the optical frame."""
    rows, columns = np.nonzero(camera.labels == object_id)
    z = camera.metres[rows, columns]
    fx, fy, cx, cy = (SCENE.intrinsics[i] for i in ((0, 0), (1, 1), (0, 2), (1, 2)))
    return np.stack([(columns - cx) / fx * z, (rows - cy) / fy * z, z], 1)


def cloud(message: PointCloud2) -> np.ndarray:
    names = [field.name for field in message.fields]
    formats = ['<u4' if name in ('rgb', 'instance') else '<f4' for name in names]
    kind = np.dtype({'names': names, 'formats': formats, 'offsets': [field.offset for field in message.fields],
                     'itemsize': message.point_step})
    return np.frombuffer(message.data, kind)


def test_instances_say_where_they_are(peer, camera):
    array = camera.show_with(CAN, TEA)
    for instance in array.instances:
        points = true_points(camera, instance.id)
        centre, size = instance.box_center.position, instance.box_size
        assert np.abs([centre.x, centre.y, centre.z] - (points.min(0) + points.max(0)) / 2).max() < 0.03
        q = instance.box_center.orientation
        assert q.x ** 2 + q.y ** 2 + q.z ** 2 + q.w ** 2 == pytest.approx(1)
        _, _, true_size = SCENE.box(instance.id, FRAME)
        assert min(size.x, size.y, size.z) > 0.02 and max(size.x, size.y, size.z) < 1.2 * np.linalg.norm(true_size)


def test_clouds_markers_and_what_is_left_without_the_objects(peer, camera):
    points, markers = peer.subscribe(PointCloud2, 'points'), peer.subscribe(MarkerArray, 'markers')
    left, rest = peer.subscribe(Image, 'background_depth'), peer.subscribe(PointCloud2, 'background_points')
    camera.show_with(CAN, TEA)
    alone = peer.subscribe(PointCloud2, f'objects/id_{TEA}/points')
    array = camera.until(lambda array: all((points, markers, left, rest, alone))
                         and points[-1].header == markers[-1].markers[0].header == left[-1].header)
    found = cloud(points[-1])
    assert set(found['instance'].tolist()) == {CAN, TEA}
    for object_id in (CAN, TEA):
        truth = true_points(camera, object_id)
        mine = found[found['instance'] == object_id]
        middle = [np.median(mine[axis]) for axis in 'xyz']
        assert np.abs(middle - np.median(truth, 0)).max() < 0.02
    tea = cloud(alone[-1])
    assert np.abs([np.median(tea[axis]) for axis in 'xyz'] - np.median(true_points(camera, TEA), 0)).max() < 0.02
    depth = np.frombuffer(left[-1].data, np.uint16).reshape(SCENE.height, SCENE.width)
    assert left[-1].encoding == '16UC1'
    inner = np.isin(camera.labels, (CAN, TEA))
    assert (depth[inner] == 0).mean() > 0.97
    ball = camera.labels == 1
    assert (depth[ball] > 0).mean() > 0.9, 'other things stay'
    remaining = cloud(rest[-1])
    assert 0.5 * (depth > 0).sum() / 4 < len(remaining) <= (depth > 0).sum()
    cubes = [marker for marker in markers[-1].markers if marker.type == Marker.CUBE and marker.action == Marker.ADD]
    assert len(cubes) == 2 and array.header.frame_id == cubes[0].header.frame_id


def test_depth_in_metres_serves_too(peer, camera):
    camera.prompt(TEA)
    metres = image_message(camera.metres.astype(np.float32), Header(), '32FC1')
    array = camera.until(lambda array: array.instances and array.instances[0].has_depth, depth=metres)
    centre = array.instances[0].box_center.position
    assert np.abs([centre.x, centre.y, centre.z] - np.median(true_points(camera, TEA), 0)).max() < 0.06


def test_without_depth_of_its_stamp_an_image_is_still_processed_at_once(peer, camera):
    camera.show_with(TEA)
    assert peer.set_parameter('depth_wait', 0.0)[0]
    try:
        array = camera.show(stamp_offset=-5)
        assert [instance.id for instance in array.instances] == [TEA]
        assert not array.instances[0].has_depth and array.instances[0].roi.width
    finally:
        assert peer.set_parameter('depth_wait', 2.0)[0]


def test_depth_of_another_size_is_not_used(peer, camera):
    camera.show_with(TEA)
    small = image_message(np.full((120, 160), 700, np.uint16), Header(), '16UC1')
    array = camera.show(depth=small)
    assert not array.instances[0].has_depth and array.instances[0].roi.width
    assert camera.show_with(TEA).instances[0].has_depth


def test_a_point_clicked_in_rviz_becomes_an_object(peer, camera):
    clicks = peer.node.create_publisher(PointStamped, f'{peer.private}/prompt_point', 10)
    peer.wait_for(clicks.get_subscription_count, 'the node to listen to points')
    camera.show()
    target = np.median(true_points(camera, TEA), 0)

    def click(frame_id: str, x: float, y: float, z: float):
        message = PointStamped(header=Header(frame_id=frame_id))
        message.point.x, message.point.y, message.point.z = x, y, z
        seen = len(peer.statuses)
        for others in ({'width': 0, 'height': 0}, {'width': 240, 'height': 180, 'd': [0.1] * 6}):
            camera.publish_info(Header(frame_id=FRAME_ID), **others)  # calibrations of other images do no harm
        clicks.publish(message)
        peer.wait_for(lambda: camera.show() and len(peer.statuses) > seen, 'the answer')
        return peer.statuses[seen]
    assert click(FRAME_ID, *target.tolist()).accepted
    array = camera.until(lambda array: array.instances)
    (instance,) = array.instances
    x, y = (SCENE.intrinsics @ target)[:2] / target[2]
    roi = instance.roi
    assert roi.x_offset <= x <= roi.x_offset + roi.width and roi.y_offset <= y <= roi.y_offset + roi.height
    refused = click(FRAME_ID, 0.0, 0.0, -1.0)
    assert not refused.accepted and 'behind the camera' in refused.reason
    refused = click('map', *target.tolist())
    assert not refused.accepted and "point in frame 'map'" in refused.reason
