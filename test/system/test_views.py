"""One node process and its planners: images, labels, topics of objects, detections in and out, clicks."""
import json

import numpy as np
import pytest
from builtin_interfaces.msg import Time
from geometry_msgs.msg import Point, PointStamped, Quaternion, Transform, TransformStamped, Vector3
from rcl_interfaces.srv import SetParametersAtomically
from rclpy.parameter import Parameter
from rclpy.qos import DurabilityPolicy, QoSProfile
from sensor_msgs.msg import CameraInfo, Image, PointCloud2
from std_msgs.msg import Header, String

from sam2_core.metrics import iou
from sam2_ros.messages.vision import vision_msgs
from sam2_ros.msg import Instance, Prompt
from testing.camera_images import image_message, roi
from testing.peer import FRAME_ID, Scene, ids, instance_of, running_node, whole_mask

SCENE = Scene()
GOOD = 0.6  # IoU; nano reaches about 0.9 on this scene
FOCAL = 500.0  # pixels
DISC_DEPTH, WALL_DEPTH = 0.8, 1.2  # metres
LATCHED = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
DETECTIONS = '/detector/detections'
needs_vision_msgs = pytest.mark.skipif(vision_msgs is None, reason='needs vision_msgs (CONTRIBUTING.md)')


class Robot:
    """RGB-D camera, detector, user of RViz and planners."""

    def __init__(self, peer):
        self.peer = peer
        self._depth = peer.node.create_publisher(Image, '/depth', 5)
        self._info = peer.node.create_publisher(CameraInfo, '/camera_info', 5)
        self._clicks = peer.node.create_publisher(PointStamped, f'{peer.name}/prompt_point', 5)
        if vision_msgs is not None:
            self._detections = peer.node.create_publisher(vision_msgs.Detection2DArray, DETECTIONS, 5)
            peer.wait_for(self._detections.get_subscription_count, 'the node to listen to the detector')
        for publisher in (self._depth, self._info, self._clicks):
            peer.wait_for(publisher.get_subscription_count, 'the node to listen')

    def listen(self, kind, name, qos=10):
        """Subscribe to ~/name; return the list that messages are appended to."""
        arrived = []
        self.peer.node.create_subscription(kind, f'{self.peer.name}/{name}', arrived.append, qos)
        return arrived

    def show(self, time: float = 0, hidden=()):
        """Show an image with depth; return its instances."""
        header = self.peer.header()
        depth = np.full((SCENE.height, SCENE.width), WALL_DEPTH, np.float32)
        for disc in {*SCENE.IDS} - {*hidden}:
            depth[SCENE.mask(time, disc)] = DISC_DEPTH
        self._depth.publish(image_message(depth, header, '32FC1'))
        self._info.publish(CameraInfo(header=header, width=SCENE.width, height=SCENE.height,
                                      k=[FOCAL, 0.0, SCENE.width / 2, 0.0, FOCAL, SCENE.height / 2, 0.0, 0.0, 1.0]))
        return self.peer.process_image(self.peer.message(SCENE.image(time, hidden), header))

    def show_until(self, condition, time: float = 0):
        """Show the same image repeatedly until the condition is true."""
        for _ in range(300):
            if condition():
                return
            self.show(time)
        raise AssertionError(f'not within 300 images; the log:\n{self.peer.process.log}')

    def click(self, x: float, y: float, z: float, frame_id: str = FRAME_ID):
        """Click a point in RViz; return the answer."""
        seen = len(self.peer.statuses)
        self._clicks.publish(PointStamped(header=Header(stamp=Time(sec=1), frame_id=frame_id),
                                          point=Point(x=x, y=y, z=z)))
        self.show_until(lambda: len(self.peer.statuses) > seen)
        return self.peer.statuses[seen]

    def detect(self, header: Header, *boxes):
        """Publish detections in the image with this header."""
        message = vision_msgs.Detection2DArray(header=header)
        for x0, y0, x1, y1 in boxes:
            item = vision_msgs.Detection2D(header=header, results=[vision_msgs.ObjectHypothesisWithPose(
                hypothesis=vision_msgs.ObjectHypothesis(class_id='disc', score=0.9))])
            item.bbox.center.position.x, item.bbox.center.position.y = (x0 + x1) / 2, (y0 + y1) / 2
            item.bbox.size_x, item.bbox.size_y = float(x1 - x0), float(y1 - y0)
            message.detections.append(item)
        self._detections.publish(message)


@pytest.fixture(scope='module', params=['raw', 'compressed'])
def node(request, tmp_path_factory):
    parameters = {'image_transport': request.param, 'class_names': ['disc', 'ball'], 'depth_wait': 1.0}
    if vision_msgs is not None:
        parameters['detections_topic'] = DETECTIONS
    with running_node(tmp_path_factory.mktemp('views'), parameters, compressed=request.param == 'compressed') as peer:
        yield Robot(peer)


@pytest.fixture
def robot(node):
    """Return the shared robot; its node has no objects."""
    node.peer.reset()
    node.peer.instances.clear()
    node.peer.statuses.clear()
    return node


def covers(array, object_id: int, time: float, disc: int) -> bool:
    return iou(whole_mask(array, object_id), SCENE.mask(time, disc)) > GOOD


def array_of(message: Image, dtype) -> np.ndarray:
    return np.frombuffer(message.data, dtype).reshape(message.height, message.width)


def test_pictures_are_in_step_and_a_late_planner_knows_what_their_values_mean(robot):
    robot.peer.start_object(7, SCENE.box(0, 1), SCENE.image(), label='ball')
    robot.peer.start_object(9, SCENE.box(0, 2), SCENE.image(), label='plate')  # not among class_names
    labels = robot.listen(String, 'labels', LATCHED)
    robot.peer.wait_for(lambda: labels, 'the labels, without another image')
    values = {name: int(value) for value, name in json.loads(labels[-1].data).items()}
    assert (values['background'], values['disc'], values['ball']) == (0, 1, 2) and 3 <= values['plate'] < 255

    pictures = {name: robot.listen(Image, name) for name in ('label_image', 'class_image', 'confidence')}
    robot.show_until(lambda: all(pictures.values()))
    array = robot.show()
    robot.peer.wait_for(lambda: all(arrived[-1].header == array.header for arrived in pictures.values()), 'pictures')
    label_image, class_image, confidence = (
        array_of(pictures[name][-1], dtype)
        for name, dtype in (('label_image', np.uint16), ('class_image', np.uint8), ('confidence', np.uint8)))
    for object_id, label in ((7, 'ball'), (9, 'plate')):
        instance = instance_of(array, object_id)
        on_object = label_image == object_id
        np.testing.assert_array_equal(on_object, whole_mask(array, object_id))
        assert set(class_image[on_object]) == {values[label]}
        assert set(confidence[on_object]) == {round(255 * instance.score)}
    assert not class_image[label_image == 0].any() and not confidence[label_image == 0].any()
    assert len(labels) == 1  # nothing changed


def test_an_object_has_its_own_cloud_and_mask_until_it_is_removed(robot):
    robot.peer.start_object(5, SCENE.box(0, 1), SCENE.image())
    masks, clouds = robot.listen(Image, 'objects/id_5/mask'), robot.listen(PointCloud2, 'objects/id_5/points')
    robot.show_until(lambda: masks and clouds)
    array = robot.show()
    robot.peer.wait_for(lambda: masks[-1].header == clouds[-1].header == array.header, 'mask and cloud of one image')
    np.testing.assert_array_equal(array_of(masks[-1], np.uint8), whole_mask(array, 5) * np.uint8(255))
    cloud = clouds[-1]
    x, y, z = np.frombuffer(cloud.data, np.float32).reshape(cloud.width, -1)[:, :3].T
    assert z == pytest.approx(DISC_DEPTH)
    centre = (np.array(SCENE.centre(0, 1)) - (SCENE.width / 2, SCENE.height / 2)) / FOCAL * DISC_DEPTH
    assert (x.mean(), y.mean()) == pytest.approx(centre, abs=0.02)

    assert robot.peer.prompt(Prompt(action=Prompt.REMOVE, id=5), None).accepted
    robot.show()
    for name in ('mask', 'points'):
        robot.peer.wait_for(lambda name=name: not robot.peer.node.count_publishers(
            f'{robot.peer.name}/objects/id_5/{name}'), 'the end of its topics')


def test_a_point_clicked_in_the_room_starts_the_object_that_is_there(robot):
    robot.show()
    x, y = (np.array(SCENE.centre(0, 2)) - (SCENE.width / 2, SCENE.height / 2)) / FOCAL * DISC_DEPTH
    status = robot.click(x, y, DISC_DEPTH)
    assert status.accepted, status.reason
    assert covers(robot.show(), status.id, 0, 2)


@pytest.mark.parametrize(('click', 'reason'), [
    ((0.0, 0.0, -1.0), 'behind the camera'),
    ((5.0, 0.0, 1.0), 'outside the image of 480 x 360 pixels'),
    ((0.0, 0.0, 1.0, 'nowhere'), f"frame 'nowhere', image in '{FRAME_ID}'"),
])
def test_a_point_that_the_camera_does_not_see_is_refused_with_the_reason(robot, click, reason):
    robot.show()
    status = robot.click(*click)
    assert not status.accepted and reason in status.reason
    assert status.header.stamp == Time(sec=1)  # the stamp of the click


def test_a_point_clicked_in_another_frame_is_found_by_tf(robot):
    pytest.importorskip('tf2_ros', reason='needs tf2_ros (CONTRIBUTING.md)')
    from tf2_msgs.msg import TFMessage
    tf = robot.peer.node.create_publisher(TFMessage, '/tf_static', LATCHED)
    tf.publish(TFMessage(transforms=[TransformStamped(  # the camera looks down on the table, 1 m above it
        header=Header(frame_id='table'), child_frame_id=FRAME_ID,
        transform=Transform(translation=Vector3(z=1.0), rotation=Quaternion(x=1.0, w=0.0)))]))
    robot.show()
    x, y = (np.array(SCENE.centre(0, 2)) - (SCENE.width / 2, SCENE.height / 2)) / FOCAL * DISC_DEPTH
    clicks = []

    def accepted():
        clicks.append(robot.click(x, -y, 1.0 - DISC_DEPTH, 'table'))
        return clicks[-1].accepted
    robot.show_until(accepted)
    assert covers(robot.show(), clicks[-1].id, 0, 2)
    assert all('click again' in refused.reason for refused in clicks[:-1])


@needs_vision_msgs
def test_a_detector_starts_objects_once_and_their_ids_stay(robot):
    array = robot.show(0)
    robot.detect(array.header, SCENE.box(0, 1))
    robot.show_until(lambda: len(ids(robot.peer.instances[-1])) == 1)
    (first,) = ids(robot.peer.instances[-1])
    for time in range(1, 9):  # a little late, on old images
        robot.detect(array.header, *(SCENE.box(time - 1, disc) for disc in SCENE.IDS))
        array = robot.show(time)
    robot.show_until(lambda: len(ids(robot.peer.instances[-1])) == 2, 8)
    array = robot.show(8)
    first_two = ids(array)
    assert first_two[0] == first and covers(array, first, 8, 1) and covers(array, first_two[1], 8, 2)
    assert {instance.label for instance in array.instances} == {'disc'}
    corner = (0, 300, 60, 360)
    robot.detect(array.header, *(SCENE.box(8, disc) for disc in SCENE.IDS), corner)  # only the new one is prompted
    robot.show_until(lambda: len(ids(robot.peer.instances[-1])) > 2, 8)
    array = robot.show(8)
    assert ids(array)[:2] == first_two and len(ids(array)) == 3


@needs_vision_msgs
def test_a_detector_in_pixels_of_its_own_input_is_refused_until_the_node_knows_the_input(robot):
    def letterboxed(disc):  # 480 x 360 in 640 x 640: scale 4/3, bars of 80 pixels above and below
        return tuple(round(side * 4 / 3) + (80 if axis % 2 else 0) for axis, side in enumerate(SCENE.box(0, disc)))

    def choose(**values):
        changes = [Parameter(name, value=value).to_parameter_msg() for name, value in values.items()]
        request = SetParametersAtomically.Request(parameters=changes)
        assert robot.peer.ask(SetParametersAtomically, 'set_parameters_atomically', request).result.successful

    array = robot.show(0)
    robot.detect(array.header, *map(letterboxed, SCENE.IDS))
    robot.show_until(lambda: 'set detections_width, detections_height and detections_fit' in robot.peer.process.log)
    assert ids(robot.show(0)) == []
    choose(detections_width=640, detections_height=640, detections_fit='letterbox')
    try:
        robot.detect(robot.show(0).header, *map(letterboxed, SCENE.IDS))
        robot.show_until(lambda: len(ids(robot.peer.instances[-1])) == 2)
        array = robot.show(0)
        assert all(any(covers(array, object_id, 0, disc) for object_id in ids(array)) for disc in SCENE.IDS)
    finally:
        choose(detections_width=0, detections_height=0, detections_fit='stretch')


@needs_vision_msgs
def test_an_object_that_a_detector_finds_again_keeps_its_id(robot):
    array = robot.show(0)
    robot.detect(array.header, *(SCENE.box(0, disc) for disc in SCENE.IDS))
    robot.show_until(lambda: len(ids(robot.peer.instances[-1])) == 2)
    array = robot.show(0)
    wanted = next(object_id for object_id in ids(array) if covers(array, object_id, 0, 1))
    hidden = instance_of(array, wanted)
    while hidden.state != Instance.OCCLUDED:
        hidden = instance_of(robot.show(0, hidden=(1,)), wanted)
    for _ in range(6):
        array = robot.show(25)
        robot.detect(array.header, *(SCENE.box(25, disc) for disc in SCENE.IDS))
    robot.show_until(lambda: covers(robot.peer.instances[-1], wanted, 25, 1), 25)
    assert wanted in ids(robot.show(25))


@needs_vision_msgs
def test_what_is_tracked_goes_out_as_detections_and_labels(robot):
    robot.peer.start_object(4, SCENE.box(0, 1), SCENE.image(), label='disc')
    infos = robot.listen(vision_msgs.LabelInfo, 'label_info', LATCHED)
    flat = robot.listen(vision_msgs.Detection2DArray, 'detections')
    solid = robot.listen(vision_msgs.Detection3DArray, 'detections_3d')
    robot.show_until(lambda: infos and flat and solid and solid[-1].detections)
    assert (1, 'disc') in [(entry.class_id, entry.class_name) for entry in infos[-1].class_map]
    array = robot.show()
    robot.peer.wait_for(lambda: flat[-1].header == solid[-1].header == array.header, 'detections of one image')
    instance, (box,), (solid_box,) = instance_of(array, 4), flat[-1].detections, solid[-1].detections
    assert box.id == solid_box.id == '4' and box.results[0].hypothesis.class_id == 'disc'
    assert box.results[0].hypothesis.score == pytest.approx(instance.score)
    assert roi((box.bbox.center.position.x - box.bbox.size_x / 2, box.bbox.center.position.y - box.bbox.size_y / 2,
                box.bbox.center.position.x + box.bbox.size_x / 2, box.bbox.center.position.y + box.bbox.size_y / 2),
               ) == instance.roi
    assert solid_box.bbox.center == instance.box_center and solid_box.bbox.size == instance.box_size
