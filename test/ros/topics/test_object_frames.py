"""TF frames of objects: their names, when they are sent, and what needs tf2."""
import sys
from dataclasses import replace

import numpy as np
import pytest
import rclpy
from rclpy.lifecycle import TransitionCallbackReturn
from rclpy.parameter import Parameter

from sam2_ros.depth.frame_transform import CAMERA_FRAME, frame_transform
from sam2_ros.depth.oriented_box import OrientedBox
from sam2_ros.messages.tf2 import Tf2Missing
from sam2_ros.msg import Instance
from sam2_ros.node import Sam2Node
from sam2_ros.perception.frame import Frame, TrackedObject
from sam2_ros.runtime.parameters import Parameters
from sam2_ros.topics.object_frames import ObjectFrames, frame_name, frame_prefix
from testing.camera_images import header

IMAGE = header(5.0, frame_id='camera_optical_frame')
BOX = OrientedBox(np.array([0.1, 0.2, 0.9]), np.eye(3), np.array([0.3, 0.2, 0.1]))


def tracked(object_id: int, label: str = '', **changes) -> TrackedObject:
    item = TrackedObject(object_id, label, Instance.TRACKED, 0.9, 0.9, IMAGE.stamp, (0, 0, 4, 4),
                         np.ones((4, 4), bool), BOX)
    return replace(item, **changes)


# --- names

@pytest.mark.parametrize(('label', 'name'), [
    ('mug', 'mug_3'), ('', 'object_3'), ('tea box', 'tea_box_3'), ('/map', 'map_3'), ('a//b', 'a_b_3'),
    ('rote Tasse – groß', 'rote_Tasse_gro_3'), ('杯子', 'object_3'), ('  ', 'object_3'), ('x\n"\'\\', 'x_3')])
def test_a_label_becomes_a_name_that_every_tool_takes(label, name):
    assert frame_name('sam2', tracked(3, label), 'label') == f'sam2/{name}'
    assert frame_name('sam2', tracked(3, label), 'id') == 'sam2/3'


def test_two_objects_with_one_label_have_two_names():
    assert frame_name('sam2', tracked(3, 'mug'), 'label') != frame_name('sam2', tracked(4, 'mug'), 'label')


def test_nodes_and_cameras_have_frames_of_their_own(context):
    node = rclpy.create_node('sam2', namespace='/robot_1', context=context)
    assert frame_prefix(node, '') == 'robot_1/sam2' and frame_prefix(node, 'front') == 'robot_1/sam2/front'
    node.destroy_node()


# --- when they are sent

class Broadcaster:
    """Stand-in for the broadcaster of tf2_ros."""

    def __init__(self, node) -> None:
        self.pub_tf = None
        self.sent: list = []

    def sendTransform(self, transforms) -> None:  # noqa: N802 name of tf2_ros
        self.sent += transforms


class Tf2:
    """Stand-in for tf2_ros."""

    TransformBroadcaster = Broadcaster


class Silent:
    """Node of which only the log is used."""

    def __init__(self) -> None:
        self.warnings: list[str] = []

    def get_logger(self):
        return self

    def warning(self, text: str, **options) -> None:
        self.warnings.append(text)


@pytest.fixture
def frames(monkeypatch):
    monkeypatch.setitem(sys.modules, 'tf2_ros', Tf2)
    return ObjectFrames(Silent(), 'sam2')


def sent(frames: ObjectFrames, *items: TrackedObject, image=IMAGE) -> list:
    before = len(frames._broadcaster.sent)
    frames.publish(Frame(image, np.zeros((4, 4, 3), np.uint8), [*items], 0), Parameters())
    return frames._broadcaster.sent[before:]


def test_a_tracked_object_has_a_frame_in_that_of_the_camera_at_the_stamp_of_the_image(frames):
    (found,) = sent(frames, tracked(3))
    assert found.header == IMAGE and found.child_frame_id == 'sam2/3'
    offset, turn = found.transform.translation, found.transform.rotation
    assert (offset.x, offset.y, offset.z) == pytest.approx((0.1, 0.2, 0.9)) and turn.w == 1


def test_in_target_frame_it_is_where_the_transform_puts_it(frames):
    half_turn_about_z = frame_transform('map', (0.0, 0.0, 1.0, 0.0), (1.0, 0.0, 0.0))
    (found,) = sent(frames, tracked(3, target=half_turn_about_z))
    assert (found.header.frame_id, found.header.stamp) == ('map', IMAGE.stamp)
    offset, turn = found.transform.translation, found.transform.rotation
    assert (offset.x, offset.y, offset.z) == pytest.approx((0.9, -0.2, 0.9)) and abs(turn.z) == 1


@pytest.mark.parametrize('changes', [{'state': Instance.OCCLUDED}, {'state': Instance.LOST}, {'shape': None},
                                     {'target': None}], ids=['occluded', 'lost', 'no depth', 'no transform'])
def test_without_a_position_of_now_it_has_none(frames, changes):
    assert [found.child_frame_id for found in sent(frames, tracked(3, **changes), tracked(4))] == ['sam2/4']


def test_an_image_without_a_frame_is_told(frames):
    assert sent(frames, tracked(3, target=CAMERA_FRAME), image=header(5.0, frame_id='')) == []
    assert 'have the camera driver set frame_id' in frames._node.warnings[0]


def test_each_of_several_cameras_has_its_name_in_its_frames(context, monkeypatch):
    monkeypatch.setitem(sys.modules, 'tf2_ros', Tf2)
    node = Sam2Node(context=context, parameter_overrides=[
        Parameter(name, value=value) for name, value in {
            'image_size': 64, 'autostart': False, 'device': 'cpu', 'publish_tf': True, 'cameras': ['front', 'back'],
        }.items()])
    assert node.trigger_configure() == TransitionCallbackReturn.SUCCESS
    names = []
    for camera in node._cameras:
        frames = camera.topics._publishers._frames
        names += [found.child_frame_id for found in sent(frames, tracked(3))]
    assert names == ['sam2/front/3', 'sam2/back/3']
    node.close()
    node.destroy_node()


# --- at configure

def configured(context, **parameters) -> tuple[TransitionCallbackReturn, str]:
    """Configure a node; return the result, and the reason on /diagnostics."""
    overrides = {'image_size': 64, 'autostart': False, 'device': 'cpu', **parameters}
    node = Sam2Node(context=context, parameter_overrides=[Parameter(name, value=value)
                                                          for name, value in overrides.items()])
    result = node.trigger_configure(), node._diagnostics._failure
    node.close()
    node.destroy_node()
    return result


@pytest.mark.parametrize(('parameters', 'feature'), [
    ({'target_frame': 'map'}, "target_frame 'map'"), ({'publish_tf': True}, 'publish_tf')])
def test_without_tf2_configuring_fails_and_says_what_to_install(context, monkeypatch, parameters, feature):
    monkeypatch.setitem(sys.modules, 'tf2_ros', None)
    result, reason = configured(context, **parameters)
    assert result == TransitionCallbackReturn.FAILURE
    assert reason == (f'{feature} needs the package tf2_ros, which is not installed: '
                      f'sudo apt install ros-$ROS_DISTRO-tf2-ros-py')
    result, reason = configured(context)
    assert result == TransitionCallbackReturn.SUCCESS and not reason, 'nothing else needs it'


def test_the_frame_of_an_object_cannot_be_the_parent_of_all_of_them(context, monkeypatch):
    monkeypatch.setitem(sys.modules, 'tf2_ros', Tf2)
    result, reason = configured(context, publish_tf=True, target_frame='sam2/3')
    assert result == TransitionCallbackReturn.FAILURE
    assert reason.startswith("target_frame 'sam2/3' with publish_tf: must not be the frame of an object")


def test_the_broadcaster_itself_needs_tf2(monkeypatch):
    monkeypatch.setitem(sys.modules, 'tf2_ros', None)
    with pytest.raises(Tf2Missing, match='publish_tf needs the package tf2_ros'):
        ObjectFrames(Silent(), 'sam2')
