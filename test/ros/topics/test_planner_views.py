"""Views of a frame for planners: images, labels, detections, topics of single objects."""
import json
import math
from dataclasses import replace

import numpy as np
import pytest
import rclpy
from builtin_interfaces.msg import Time
from hypothesis import given
from hypothesis import strategies as st
from rclpy.executors import SingleThreadedExecutor
from rclpy.lifecycle import LifecycleNode
from rclpy.qos import DurabilityPolicy, QoSProfile
from sensor_msgs.msg import Image, PointCloud2
from std_msgs.msg import Header, String

from sam2_core.masks import mask_box
from sam2_ros.depth.frame_transform import frame_transform
from sam2_ros.depth.lens import PixelRays
from sam2_ros.depth.oriented_box import OrientedBox
from sam2_ros.depth.surface import DepthFrame
from sam2_ros.drawing.label_images import (
    BACKGROUND,
    UNLABELED,
    ClassTable,
    class_image,
    confidence_image,
    label_image,
)
from sam2_ros.messages.vision import VisionMessagesMissing, require_vision_msgs, vision_msgs
from sam2_ros.msg import Instance
from sam2_ros.perception.detection_prompts import read
from sam2_ros.perception.frame import Frame, TrackedObject
from sam2_ros.runtime.parameters import Parameters
from sam2_ros.topics.planner_views import (
    LabelLists,
    ObjectTopics,
    detections_2d,
    detections_3d,
    label_info,
    planner_views,
)
from sam2_ros.topics.publishers import CameraPublishers

HEADER = Header(stamp=Time(sec=5, nanosec=6), frame_id='camera')
PARAMETERS = Parameters()
needs_vision_msgs = pytest.mark.skipif(vision_msgs is None, reason='needs vision_msgs (CONTRIBUTING.md)')


def tracked(object_id: int, box, score: float = 0.9, label: str = 'cup') -> TrackedObject:
    x0, y0, x1, y1 = box
    mask = np.zeros((60, 80), bool)
    mask[y0:y1, x0:x1] = True
    return TrackedObject(object_id, label, Instance.TRACKED, score, 0.99, HEADER.stamp, mask_box(mask), mask)


def hidden(object_id: int, label: str = 'cup') -> TrackedObject:
    return TrackedObject(object_id, label, Instance.OCCLUDED, 0.0, 0.1, Time(sec=3))


def frame(*objects: TrackedObject, depth: DepthFrame | None = None, header: Header = HEADER) -> Frame:
    return Frame(header, np.full((60, 80, 3), 100, np.uint8), list(objects), 0, depth)


def wall(metres: float) -> DepthFrame:
    """Return the depth of a wall seen head-on."""
    return DepthFrame(np.full((60, 80), metres, np.float32), PixelRays.pinhole(80, 60, 100, 100, 40, 30))


def table(*class_names: str, labels=()) -> ClassTable:
    classes = ClassTable()
    classes.update(class_names, labels)
    return classes


# --- images

def test_the_label_image_holds_ids_and_the_higher_score_wins():
    labels = label_image(frame(tracked(300, (0, 0, 20, 20), 0.9), tracked(65535, (10, 10, 40, 40), 0.5), hidden(3)))
    assert labels.dtype == np.uint16 and labels.shape == (60, 80)
    assert labels[5, 5] == labels[15, 15] == 300
    assert labels[30, 30] == 65535
    assert labels[50, 50] == 0
    assert set(np.unique(labels)) == {0, 300, 65535}


def test_class_and_confidence_are_those_of_the_object_in_the_label_image():
    shown = frame(tracked(1, (0, 0, 20, 20), 0.399, 'dog'), tracked(2, (10, 10, 40, 40), 0.8, 'cup'),
                  tracked(3, (15, 15, 30, 30), 0.6, 'dog'))
    ids, classes, confidence = label_image(shown), class_image(shown, table('cup', 'dog')), confidence_image(shown)
    assert classes.dtype == confidence.dtype == np.uint8
    for object_id, value, score in ((0, BACKGROUND, 0), (1, 2, 102), (2, 1, 204)):
        assert set(classes[ids == object_id]) == {value}
        assert set(confidence[ids == object_id]) == {score}
    assert 3 not in ids  # covered by one with a higher score


def test_what_is_not_visible_is_in_no_image():
    assert not class_image(frame(hidden(1)), table('cup')).any()
    assert not confidence_image(frame(hidden(1))).any()


def test_views_keep_size_encoding_and_header_of_the_image():
    messages = {view.topic: view.build(frame(tracked(1, (0, 0, 9, 9))), PARAMETERS)
                for view in planner_views(ClassTable()) if view.type is Image}
    assert {topic: message.encoding for topic, message in messages.items()} == {
        'label_image': 'mono16', 'class_image': 'mono8', 'confidence': 'mono8'}
    for message in messages.values():
        assert (message.header, message.width, message.height) == (HEADER, 80, 60)
        assert len(message.data) == message.step * message.height


def test_views_of_vision_msgs_are_there_exactly_when_it_is_installed():
    topics = {view.topic for view in planner_views(ClassTable())}
    assert ({'detections', 'detections_3d'} <= topics) == (vision_msgs is not None)


# --- values of labels

def test_named_classes_come_first_and_others_as_they_appear():
    classes = table('person', 'cup', labels=['dog', 'cup'])
    classes.update(('person', 'cup'), ['cat', 'dog'])
    assert classes.names == {0: 'background', 1: 'person', 2: 'cup', 3: 'dog', 4: 'cat', 255: 'unlabeled'}


def test_an_object_without_a_label_is_unlabeled():
    assert table(labels=['']).value('') == UNLABELED


@given(class_names=st.lists(st.text(max_size=3), max_size=6),
       frames=st.lists(st.lists(st.text(max_size=3), max_size=4), max_size=8))
def test_a_label_keeps_its_value_and_shares_it_with_no_other(class_names, frames):
    classes = ClassTable()
    seen: dict[str, int] = {}
    for labels in frames:
        classes.update(tuple(class_names), labels)
        assert all(classes.value(label) == value for label, value in seen.items())
        seen |= {label: classes.value(label) for label in labels if label}
    assert len(set(seen.values())) == len(seen)
    assert all(classes.names[value] == label for label, value in seen.items())


def test_labels_beyond_the_last_value_are_unlabeled():
    classes = table('first', labels=[f'label {number}' for number in range(400)])
    assert classes.value('label 252') == 254
    assert classes.value('label 253') == classes.value('label 399') == UNLABELED
    assert classes.names[UNLABELED] == 'unlabeled'
    assert table(*(f'name {number}' for number in range(300))).value('name 280') == UNLABELED


def test_a_name_given_twice_has_its_first_place():
    classes = table('cup', 'dog', 'cup', labels=['cat'])
    assert [classes.value(label) for label in ('cup', 'dog', 'cat')] == [1, 2, 4]


def test_new_class_names_come_into_force_and_known_labels_follow_them():
    classes = table('cup', labels=['dog'])
    classes.update(('cat', 'dog'), ['bird'])
    assert [classes.value(label) for label in ('cat', 'dog', 'cup', 'bird')] == [1, 2, 3, 4]


# --- labels and topics of objects, over DDS

class Wire:
    """A publishing and a subscribing node."""

    def __init__(self):
        self.context = rclpy.Context()
        rclpy.init(context=self.context)
        self.node, self.listener = (rclpy.create_node(name, context=self.context) for name in ('sam2', 'planner'))
        self._executor = SingleThreadedExecutor(context=self.context)
        for node in (self.node, self.listener):
            self._executor.add_node(node)

    def listen(self, kind, topic, qos=10) -> list:
        arrived = []
        topic = topic if topic.startswith('/') else f'/sam2/{topic}'
        self.listener.create_subscription(kind, topic, arrived.append, qos)
        return arrived

    def spin_until(self, condition):
        for _ in range(600):
            if condition():
                return
            self._executor.spin_once(timeout_sec=0.05)
        raise AssertionError('not within 30 s')

    def topics(self):
        return {name for name, _ in self.listener.get_publisher_names_and_types_by_node('sam2', '/')
                if '/objects/' in name}

    def close(self):
        self._executor.shutdown()
        for node in (self.node, self.listener):
            node.destroy_node()
        rclpy.shutdown(context=self.context)


@pytest.fixture
def wire(ros_domain):
    wire = Wire()
    yield wire
    wire.close()


def latched():
    return QoSProfile(depth=10, durability=DurabilityPolicy.TRANSIENT_LOCAL)


def test_the_list_of_labels_reaches_who_comes_late_and_is_said_again_only_when_it_changes(wire):
    lists = LabelLists(wire.node, '~')
    early = wire.listen(String, 'labels', latched())
    classes = table('cup')
    for _ in range(3):
        lists.publish(classes.names, HEADER)
    wire.spin_until(lambda: early)
    classes.update(('cup',), ['dög'])
    lists.publish(classes.names, HEADER)
    wire.spin_until(lambda: len(early) > 1)
    late = wire.listen(String, 'labels', latched())
    wire.spin_until(lambda: late)
    assert [json.loads(message.data) for message in late] == [{'0': 'background', '1': 'cup', '2': 'dög',
                                                               '255': 'unlabeled'}]
    assert len(early) == 2


@needs_vision_msgs
def test_the_label_info_is_latched_too(wire):
    LabelLists(wire.node, '~').publish(table('cup').names, HEADER)
    late = wire.listen(vision_msgs.LabelInfo, 'label_info', latched())
    wire.spin_until(lambda: late)
    assert late[0].header == HEADER
    assert [(entry.class_id, entry.class_name) for entry in late[0].class_map] == [
        (0, 'background'), (1, 'cup'), (255, 'unlabeled')]


def test_only_what_somebody_subscribes_to_is_built(wire, monkeypatch):
    built = []

    def watched(views):
        def watch(view):
            return replace(view, build=lambda *arguments: built.append(view.topic) or view.build(*arguments))
        return [watch(view) for view in views]
    pictures = CameraPublishers._picture_views
    monkeypatch.setattr('sam2_ros.topics.publishers.planner_views', lambda classes: watched(planner_views(classes)))
    monkeypatch.setattr(CameraPublishers, '_picture_views', lambda self: watched(pictures(self)))
    monkeypatch.setattr('sam2_ros.topics.planner_views.object_points_message',
                        lambda *_: built.append('objects/id_1/points'))
    node = LifecycleNode('tracker', context=wire.context)
    outputs = CameraPublishers(node, '~')
    node.trigger_configure()
    node.trigger_activate()
    shown = frame(tracked(1, (10, 20, 31, 60)), depth=wall(2.0))
    outputs.publish(shown, [], PARAMETERS)
    assert built == []

    masks = wire.listen(Image, '/tracker/class_image')

    def publish_until_it_arrives():
        outputs.publish(shown, [], PARAMETERS)
        return masks
    wire.spin_until(publish_until_it_arrives)
    assert set(built) == {'class_image'}
    outputs.destroy()
    node.destroy_node()


def test_every_object_has_its_topics_as_long_as_it_is_known(wire):
    topics = ObjectTopics(wire.node, '~')
    topics.publish(frame(tracked(1, (0, 0, 9, 9)), hidden(7)), PARAMETERS)
    expected = {f'/sam2/objects/id_{number}/{name}' for number in (1, 7) for name in ('points', 'mask')}
    wire.spin_until(lambda: wire.topics() == expected)
    topics.publish(frame(hidden(7)), PARAMETERS)
    wire.spin_until(lambda: wire.topics() == {name for name in expected if 'id_7' in name})
    topics.destroy()
    wire.spin_until(lambda: not wire.topics())


def test_topics_of_an_object_that_cannot_be_created_leave_nothing_behind(wire, monkeypatch):
    topics, before = ObjectTopics(wire.node, '~'), len([*wire.node.publishers])
    create = wire.node.create_publisher
    monkeypatch.setattr(wire.node, 'create_publisher', lambda kind, *arguments, **options: 1 / 0 if kind is Image
                        else create(kind, *arguments, **options))
    for _ in range(3):
        topics.publish(frame(tracked(1, (0, 0, 9, 9))), PARAMETERS)
    assert len([*wire.node.publishers]) == before


def test_the_mask_of_one_object_is_whole_in_step_and_only_there_when_it_is_seen(wire):
    topics = ObjectTopics(wire.node, '~')
    masks, points = wire.listen(Image, 'objects/id_1/mask'), wire.listen(PointCloud2, 'objects/id_1/points')
    cup = tracked(1, (10, 20, 30, 40), 0.2)

    def publish_until_it_arrives():
        topics.publish(frame(cup, tracked(2, (0, 0, 80, 60), 0.9)), PARAMETERS)
        return masks
    wire.spin_until(publish_until_it_arrives)
    mask = masks[0]
    assert (mask.header, mask.encoding, mask.width, mask.height) == (HEADER, 'mono8', 80, 60)
    np.testing.assert_array_equal(np.reshape(mask.data, (60, 80)), cup.mask * 255)  # despite its lower score
    later = Header(stamp=Time(sec=9), frame_id='camera')
    topics.publish(frame(hidden(1)), PARAMETERS)
    topics.publish(frame(cup, header=later), PARAMETERS)
    wire.spin_until(lambda: masks[-1].header == later)
    assert all(np.any(message.data) for message in masks)
    assert not points  # no depth


def test_the_cloud_of_one_object_is_where_its_mask_is_and_only_there_when_depth_is(wire):
    topics = ObjectTopics(wire.node, '~')
    clouds = wire.listen(PointCloud2, 'objects/id_1/points')
    cup = tracked(1, (40, 30, 70, 50))

    def publish_until_it_arrives():
        topics.publish(frame(cup, tracked(2, (0, 0, 30, 30)), depth=wall(2.0)), PARAMETERS)
        return clouds
    wire.spin_until(publish_until_it_arrives)
    later = Header(stamp=Time(sec=9), frame_id='camera')
    topics.publish(frame(cup, depth=wall(np.nan)), PARAMETERS)
    topics.publish(frame(cup, depth=wall(1.0), header=later), PARAMETERS)
    wire.spin_until(lambda: clouds[-1].header == later)
    assert all(cloud.width for cloud in clouds)
    assert clouds[0].header == HEADER
    x, y, z = np.frombuffer(clouds[0].data, np.float32).reshape(clouds[0].width, -1)[:, :3].T
    assert z == pytest.approx(2.0)
    assert 0 <= x.min() < x.max() < 30 / 100 * 2 and 0 <= y.min() < y.max() < 20 / 100 * 2


# --- vision_msgs

def test_what_needs_vision_msgs_says_so(monkeypatch):
    monkeypatch.setattr('sam2_ros.messages.vision.vision_msgs', None)
    with pytest.raises(VisionMessagesMissing, match="detections_topic '/yolo' needs the package vision_msgs.*apt"):
        require_vision_msgs("detections_topic '/yolo'")


@needs_vision_msgs
def test_detections_are_the_visible_objects_with_id_label_score_and_box():
    message = detections_2d(frame(tracked(7, (10, 20, 31, 60), 0.75, 'cup'), hidden(8)))
    assert message.header == HEADER
    (detection,) = message.detections
    assert (detection.id, detection.header) == ('7', HEADER)
    (result,) = detection.results
    assert (result.hypothesis.class_id, result.hypothesis.score) == ('cup', 0.75)
    centre = detection.bbox.center
    assert (centre.position.x, centre.position.y, centre.theta) == (20.5, 40.0, 0.0)
    assert (detection.bbox.size_x, detection.bbox.size_y) == (21.0, 40.0)


@needs_vision_msgs
def test_a_box_goes_out_and_comes_in_as_the_same_pixels():
    (found,), _ = read(detections_2d(frame(tracked(7, (10, 20, 31, 60)))), PARAMETERS, 60, 80)
    assert found.box == (10, 20, 31, 60)


@needs_vision_msgs
def test_detections_in_space_are_the_oriented_boxes():
    turned = np.array([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    box = OrientedBox(np.array([0.1, 0.2, 0.7]), turned, np.array([0.3, 0.2, 0.1]))
    message = detections_3d(frame(replace(tracked(7, (10, 20, 31, 60)), shape=box), tracked(8, (0, 0, 9, 9)),
                                  depth=wall(2.0)))
    (detection,) = message.detections  # the other one has no oriented box
    assert (detection.id, detection.header, message.header) == ('7', HEADER, HEADER)
    pose, size = detection.bbox.center, detection.bbox.size
    assert (pose.position.x, pose.position.y, pose.position.z) == (0.1, 0.2, 0.7)
    assert (size.x, size.y, size.z) == (0.3, 0.2, 0.1)
    quarter = math.sqrt(0.5)
    assert [abs(value) for value in (pose.orientation.x, pose.orientation.y, pose.orientation.z, pose.orientation.w)
            ] == pytest.approx([0, 0, quarter, quarter])
    assert pose.orientation.z * pose.orientation.w > 0  # a quarter turn from x to y
    assert detection.results[0].pose.pose == pose


@needs_vision_msgs
def test_without_depth_nothing_is_said_about_places():
    assert detections_3d(frame(tracked(7, (10, 20, 31, 60)))) is None


@needs_vision_msgs
def test_detections_in_space_are_in_target_frame_or_not_at_all():
    target = frame_transform('map', (0.0, 0.0, 0.0, 1.0), (1.0, 0.0, 0.0))
    box = OrientedBox(np.array([0.1, 0.2, 0.7]), np.eye(3), np.array([0.3, 0.2, 0.1]))
    shown = frame(replace(tracked(7, (10, 20, 31, 60)), shape=box), depth=wall(2.0))
    message = detections_3d(replace(shown, target=target))
    (detection,) = message.detections
    assert message.header == detection.header == Header(stamp=HEADER.stamp, frame_id='map')
    assert detection.bbox.center.position.x == pytest.approx(1.1) and detection.bbox.size.x == 0.3
    assert detections_3d(replace(shown, target=None)) is None


@needs_vision_msgs
def test_label_info_names_every_value():
    names = table('cup', 'dog').names
    assert {entry.class_id: entry.class_name for entry in label_info(names, HEADER).class_map} == names
