"""Positions in a world frame from a camera that moves, through the node over DDS, with the real tf2."""
import time

import numpy as np
import pytest
from builtin_interfaces.msg import Time
from diagnostic_msgs.msg import DiagnosticArray
from geometry_msgs.msg import Quaternion, Transform, TransformStamped, Vector3
from sensor_msgs.msg import CameraInfo, Image, PointCloud2
from std_msgs.msg import Header
from visualization_msgs.msg import Marker, MarkerArray

from sam2_core.metrics import iou
from sam2_ros.messages.vision import vision_msgs
from sam2_ros.msg import Instance, Prompt
from sam2_ros.tabletop import textures
from sam2_ros.tabletop.scene import SceneObject, TabletopScene
from sam2_ros.tabletop.solids import Block, Frustum, Pose
from testing.camera_images import image_message
from testing.depth_truth import truth_in_table
from testing.peer import FRAME_ID, ids, instance_of, running_node, whole_mask

tf2_ros = pytest.importorskip('tf2_ros', reason='needs tf2_ros (CONTRIBUTING.md)')
from rclpy.time import Time as RosTime  # noqa: E402
from tf2_msgs.msg import TFMessage  # noqa: E402

CAN, TEA = 2, 3
WORLD = 'world'
EXACT = 0.005  # metres
TRUE = 0.97  # IoU of a mask that is the true one but for the model's resolution
FAR_OFF = 0.04  # metres; smallest error that the transform of a neighbouring image must make
PERIOD = 0.1  # seconds from image to image
TF_PERIOD = 0.02  # seconds from transform to transform; none is at the stamp of an image


def still_things(random: np.random.Generator) -> dict[int, SceneObject]:
    """Return a can and a box, so far apart that neither hides the other."""
    colours = random.permutation(textures.PALETTES)
    return {CAN: SceneObject('can', Frustum(0.035, 0.035, 0.11), textures.can(random, colours[0], 'SOUP'),
                             lambda t: Pose(-0.12, 0.06, 0.5)),
            TEA: SceneObject('tea box', Block(0.14, 0.09, 0.1), textures.dotted_box(random, colours[1], 'TEA'),
                             lambda t: Pose(0.1, 0.05, 0.3))}


class MovingCamera(TabletopScene):
    """Still objects on a table, filmed by a camera that sways to and fro by 0.2 m and turns as it goes."""

    def __init__(self) -> None:
        super().__init__(seed=3, width=480, height=360, fps=1 / PERIOD, objects=still_things)

    def camera_pose(self, i: float) -> tuple[np.ndarray, np.ndarray]:
        rotation, centre = super().camera_pose(0)
        sway = np.sin(2.5 * i / self.fps)
        c, s = np.cos(0.1 * sway), -np.sin(0.1 * sway)
        return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) @ rotation, centre + [0.2 * sway, 0.04 * sway, 0]


SCENE = MovingCamera()


def moves_fast(i: int) -> bool:
    return abs(np.cos(2.5 * i * PERIOD)) > 0.8


class MovingRobot:
    """RGB-D camera on a robot that broadcasts its pose. Image ``i`` is taken at ``i`` * PERIOD after the start."""

    def __init__(self, peer) -> None:
        self.peer = peer
        self._depth = peer.node.create_publisher(Image, 'depth', 5)
        self._info = peer.node.create_publisher(CameraInfo, 'camera_info', 5)
        self._tf = peer.node.create_publisher(TFMessage, '/tf', 100)
        self.transforms: list[TransformStamped] = []
        peer.node.create_subscription(TFMessage, '/tf', lambda message: self.transforms.extend(message.transforms), 100)
        for publisher in (self._depth, self._info, self._tf):
            peer.wait_for(publisher.get_subscription_count, 'the node to listen')
        stamp = peer.header().stamp
        self._start = stamp.sec * 10**9 + stamp.nanosec
        self.i = 0  # the last image
        self.sent = -0.993  # seconds; time of the last transform

    def stamp(self, seconds: float) -> Time:
        whole, rest = divmod(self._start + round(seconds * 1e9), 10**9)
        return Time(sec=whole, nanosec=rest)

    def broadcast(self, until: float) -> None:
        """Send the poses of the camera up to a time in seconds."""
        transforms = []
        for seconds in np.arange(self.sent + TF_PERIOD, until, TF_PERIOD):
            rotation, centre = SCENE.camera_pose(seconds / PERIOD)
            transforms.append(TransformStamped(
                header=Header(stamp=self.stamp(seconds), frame_id=WORLD), child_frame_id=FRAME_ID,
                transform=Transform(translation=Vector3(**dict(zip('xyz', centre.tolist(), strict=True))),
                                    rotation=quaternion(rotation))))
            self.sent = seconds
        self._tf.publish(TFMessage(transforms=transforms))

    def next_fast(self, after: int = 1) -> int:
        """Return the next image, at least ``after`` images later, at which the camera moves fast."""
        return next(i for i in range(self.i + after, self.i + after + 100) if moves_fast(i))

    def show(self, i: int, *prompted: int, tf: bool = True, tf_after: bool = False):
        """Show image ``i`` with its depth, and with transforms up to its time; return the instances."""
        self.i = i
        rgb, labels, metres = SCENE.render_depth(i)
        self._labels = labels
        while time.time_ns() < self._start + round(i * PERIOD * 1e9):  # an image that is stamped ahead is skipped
            self.peer.spin(0.01)
        header = Header(stamp=self.stamp(i * PERIOD), frame_id=FRAME_ID)
        for object_id in prompted:  # the true mask: the position must not depend on the model's quality
            mask = image_message((labels == object_id).astype(np.uint8) * 255, Header(), 'mono8')
            self.peer.send_prompt(Prompt(id=object_id, label='tea box' if object_id == TEA else '', mask=mask,
                                         header=header))
        if tf:
            self.broadcast(i * PERIOD + 0.05)
        self._info.publish(CameraInfo(header=header, width=SCENE.width, height=SCENE.height,
                                      distortion_model='plumb_bob', k=SCENE.intrinsics.ravel().tolist(), d=[0.0] * 5))
        self._depth.publish(image_message((metres * 1000).round().astype(np.uint16), header, '16UC1'))
        self.peer.send(self.peer.message(rgb, header))
        if tf_after:
            self.peer.spin(0.2)
            self.broadcast(i * PERIOD + 0.05)
        return self.peer.wait_for(lambda: self.peer.instances_at(header.stamp), 'the instances of an image')

    def show_prompted(self, *prompted: int, **show):
        """Show images in which the camera moves fast until one has the true masks; return its instances.

        A prompt may arrive after its image, which has the model's own mask then.
        """
        while True:
            found = self.show(self.next_fast(), *prompted, **show)
            if all(self._has_true_mask(found, object_id) for object_id in prompted):
                return found

    def _has_true_mask(self, found, object_id: int) -> bool:
        if object_id not in ids(found) or not instance_of(found, object_id).has_depth:
            return False
        return iou(whole_mask(found, object_id), self._labels == object_id) > TRUE


def quaternion(rotation: np.ndarray) -> Quaternion:
    """Return a rotation as a quaternion, from its eigenvector: not the formula of the code under test."""
    values, vectors = np.linalg.eig(rotation)
    axis = np.real(vectors[:, np.argmin(np.abs(values - 1))])
    skew = np.array([rotation[2, 1] - rotation[1, 2], rotation[0, 2] - rotation[2, 0], rotation[1, 0] - rotation[0, 1]])
    half = np.arctan2(skew @ axis, np.trace(rotation) - 1) / 2
    x, y, z = (np.sin(half) * axis).tolist()
    return Quaternion(x=x, y=y, z=z, w=float(np.cos(half)))


def array(point) -> np.ndarray:
    return np.array([point.x, point.y, point.z])


@pytest.fixture(scope='module')
def robot(tmp_path_factory):
    parameters = {'target_frame': WORLD, 'publish_tf': True, 'tf_names': 'label', 'depth_wait': 5.0,
                  'transform_wait': 5.0, 'cloud_stride': 3}
    with running_node(tmp_path_factory.mktemp('frames'), parameters) as peer:
        robot = MovingRobot(peer)
        while not robot.show_prompted(TEA).instances[0].target_pose:  # DDS takes a while to connect both ends
            assert robot.i < 1000, peer.process.log
        yield robot


@pytest.fixture
def moving(robot):
    robot.peer.reset()
    robot.peer.instances.clear()
    robot.peer.statuses.clear()
    robot.transforms.clear()
    return robot


def test_positions_are_in_the_world_to_5_mm_although_the_camera_moves(moving):
    errors, others = [], []
    for _ in range(6):
        instances = moving.show_prompted(CAN, TEA)
        assert instances.header.frame_id == FRAME_ID, 'masks stay in the image'
        for instance in instances.instances:
            (pose,) = instance.target_pose
            assert (pose.header.stamp, pose.header.frame_id) == (instances.header.stamp, WORLD)
            expected = truth_in_table(SCENE, instance.id)
            errors.append(np.linalg.norm(array(pose.pose.position) - expected))
            for neighbour in (moving.i - 1, moving.i + 1):
                rotation, centre = SCENE.camera_pose(neighbour)
                others.append(np.linalg.norm(rotation @ array(instance.box_center.position) + centre - expected))
    assert max(errors) < EXACT, errors
    assert min(others) > FAR_OFF, 'the transform of another image would have shown'


def test_clouds_markers_and_detections_name_the_frame_that_they_are_in(moving):
    wanted = {'points': PointCloud2, 'background_points': PointCloud2, 'markers': MarkerArray,
              f'objects/id_{TEA}/points': PointCloud2}
    if vision_msgs is not None:
        wanted['detections_3d'] = vision_msgs.Detection3DArray
    moving.show_prompted(TEA)
    arrived = {name: moving.peer.subscribe(kind, name) for name, kind in wanted.items()}

    def of(stamp):
        found = {name: [message for message in messages if header_of(message).stamp == stamp]
                 for name, messages in arrived.items()}
        return {name: messages[0] for name, messages in found.items() if messages}
    while True:
        instances = moving.show_prompted(TEA)
        stamp = instances.header.stamp
        for _ in range(40):
            moving.peer.spin(0.05)
            if len(of(stamp)) == len(wanted):
                break
        else:
            continue
        break
    found = of(stamp)
    assert {header_of(message).frame_id for message in found.values()} == {WORLD}
    size = np.array(SCENE.objects[TEA].solid.size)
    middle = truth_in_table(SCENE, TEA)
    for name in ('points', f'objects/id_{TEA}/points'):
        points = xyz(found[name])
        assert np.linalg.norm(points - middle, axis=1).max() < np.linalg.norm(size) / 2 + EXACT
        assert abs(points[:, 2].max() - size[2]) < EXACT, 'its top is at its height above the table'
    assert np.median(np.abs(xyz(found['background_points'])[:, 2])) < 0.002, 'the table is at 0'
    (instance,) = instances.instances
    (cube,) = (marker for marker in found['markers'].markers if marker.type == Marker.CUBE)
    assert cube.pose == instance.target_pose[0].pose
    if vision_msgs is not None:
        (detection,) = found['detections_3d'].detections
        assert detection.bbox.center == cube.pose and detection.header.frame_id == WORLD


def header_of(message) -> Header:
    return message.markers[0].header if isinstance(message, MarkerArray) and message.markers else getattr(
        message, 'header', Header())


def xyz(cloud: PointCloud2) -> np.ndarray:
    return np.frombuffer(cloud.data, np.float32).reshape(cloud.width, -1)[:, :3].astype(float)


def test_a_script_looks_an_object_up_in_tf_while_it_is_tracked(moving):
    buffer = tf2_ros.Buffer()
    name = f'sam2/tea_box_{TEA}'
    seen = moving.show_prompted(TEA)
    moving.peer.wait_for(lambda: [found for found in moving.transforms if found.child_frame_id == name
                                  and found.header.stamp == seen.header.stamp], 'the frame of the object')
    for transform in moving.transforms:
        buffer.set_transform(transform, 'test')
    found = buffer.lookup_transform(WORLD, name, RosTime.from_msg(seen.header.stamp)).transform
    (instance,) = seen.instances
    assert array(found.translation) == pytest.approx(array(instance.target_pose[0].pose.position))
    assert np.linalg.norm(array(found.translation) - truth_in_table(SCENE, TEA)) < EXACT
    turns = found.rotation, instance.target_pose[0].pose.orientation
    assert [turns[0].x, turns[0].y, turns[0].z, turns[0].w] == pytest.approx([*map(turns[1].__getattribute__, 'xyzw')])
    own = {transform.child_frame_id for transform in moving.transforms if transform.child_frame_id != FRAME_ID}
    assert own == {name}

    assert moving.peer.prompt(Prompt(action=Prompt.REMOVE, id=TEA), None).accepted
    moving.transforms.clear()
    other = moving.show_prompted(CAN)
    moving.peer.wait_for(lambda: any(found.header.stamp == other.header.stamp and found.child_frame_id != FRAME_ID
                                     for found in moving.transforms), 'the frame of another object')
    assert {transform.child_frame_id for transform in moving.transforms} == {FRAME_ID, f'sam2/object_{CAN}'}


def test_a_transform_of_another_time_is_refused_and_told(moving):
    moving.show_prompted(TEA)
    points = moving.peer.subscribe(PointCloud2, 'points')
    diagnostics = []
    moving.peer.node.create_subscription(DiagnosticArray, '/diagnostics', diagnostics.append, 10)
    moving.show_prompted(TEA)
    assert moving.peer.set_parameter('transform_wait', 0.0)[0]
    try:
        alone = moving.show(moving.next_fast(after=5), tf=False)
    finally:
        assert moving.peer.set_parameter('transform_wait', 5.0)[0]
    (instance,) = alone.instances
    assert instance.state == Instance.TRACKED and instance.has_depth, 'in the frame of the camera it has its position'
    assert not instance.target_pose
    reason = (f"images have no position in target_frame '{WORLD}': no transform from '{FRAME_ID}' to '{WORLD}' at the "
              f'stamp of the image: the newest is {moving.i * PERIOD - moving.sent:.3f} s older')
    moving.peer.wait_for(lambda: any(reason in status.message for one in diagnostics for status in one.status),
                         'the reason on /diagnostics')
    assert 'positions are not published in target_frame: no transform' in moving.peer.process.log

    def cloud_of_a_later_image():
        moving.show_prompted(TEA)
        moving.peer.spin(0.05)
        return any(later(cloud.header.stamp, alone.header.stamp) for cloud in points)
    moving.peer.wait_for(cloud_of_a_later_image, 'a cloud of a later image')
    assert all(cloud.header.stamp != alone.header.stamp for cloud in points)
    assert not [found for found in moving.transforms
                if found.header.stamp == alone.header.stamp and found.child_frame_id != FRAME_ID]


def later(one: Time, other: Time) -> bool:
    return (one.sec, one.nanosec) > (other.sec, other.nanosec)


def test_a_transform_that_arrives_after_the_image_is_waited_for(moving):
    moving.show_prompted(TEA)
    late = moving.show_prompted(TEA, tf=False, tf_after=True)
    (instance,) = late.instances
    assert np.linalg.norm(array(instance.target_pose[0].pose.position) - truth_in_table(SCENE, TEA)) < EXACT
