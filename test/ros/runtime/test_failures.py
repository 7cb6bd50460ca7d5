"""An exception in a step of a camera's work loses the result of that step only; frames, answers and outputs go on."""
import time
from dataclasses import replace

import pytest
from rclpy.lifecycle import LifecyclePublisher
from rclpy.publisher import Publisher
from std_srvs.srv import Trigger

import sam2_ros.perception.image_intake
import sam2_ros.perception.instance_messages
import sam2_ros.perception.tracked_objects
import sam2_ros.topics.publishers
from sam2_core import ImageSegmenter, Sam2Model, StreamTracker
from sam2_ros.depth.matching import DepthMailbox
from sam2_ros.drawing.label_images import ClassTable
from sam2_ros.messages.stamps import StampWatch
from sam2_ros.msg import ImagePoint, Prompt
from sam2_ros.perception.camera_pipeline import CameraPipeline
from sam2_ros.perception.catch_up import CatchUp
from sam2_ros.perception.detection_prompts import DetectionGate
from sam2_ros.perception.image_depth import ImageDepth
from sam2_ros.perception.image_history import ImageHistory
from sam2_ros.perception.inbox import Inbox
from sam2_ros.perception.late_prompts import LatePrompts
from sam2_ros.perception.load_shedding import LoadShedder
from sam2_ros.perception.meter import Meter
from sam2_ros.perception.object_states import ObjectStates
from sam2_ros.perception.open_requests import OpenRequests
from sam2_ros.perception.prompt_plan import Ids, Plan
from sam2_ros.perception.prompt_routing import PromptRouter
from sam2_ros.perception.single_image import Queries, SegmentImageQuery
from sam2_ros.perception.tracked_objects import TrackedObjects
from sam2_ros.srv import SegmentImage, SetPrompt
from sam2_ros.topics.clouds import Markers
from sam2_ros.topics.diagnostics import ERROR, camera_status
from sam2_ros.topics.planner_views import LabelLists, ObjectTopics
from sam2_ros.topics.publishers import CameraPublishers
from testing.in_process import in_process, set_box

STEPS = [  # tested by make test; make fuzz tests the others
    (sam2_ros.perception.image_decoder, 'to_rgb'), (CameraPipeline, '_process'), (PromptRouter, '_route'),
    (CatchUp, 'begin'), (TrackedObjects, 'step'), (DepthMailbox, 'depth_for'),
    (SegmentImageQuery, 'advance'), (DetectionGate, 'see')]
OTHERS = [
    (ObjectStates, 'observe'), (Meter, 'processed'), (StampWatch, 'judge'), (StreamTracker, 'step'),
    (sam2_ros.perception.tracked_objects, 'measure'), (sam2_ros.perception.instance_messages, 'instance_message'),
    (ImageHistory, 'put'), (Meter, 'received'), (DepthMailbox, 'expect'), (CameraPipeline, '_route'),
    (CameraPipeline, '_follow_clock'), (ImageDepth, 'find'), (PromptRouter, 'route'),
    (PromptRouter, '_target'), (PromptRouter, '_expire'), (Plan, 'add'), (Ids, 'next'), (Ids, 'use'),
    (ImageHistory, 'at'), (ImageHistory, 'between'), (LatePrompts, 'take_arrived'), (LatePrompts, 'place'),
    (LatePrompts, 'add'), (CatchUp, 'go_on'), (LatePrompts, 'next'), (Inbox, 'take_dropped'),
    (Inbox, 'look'), (OpenRequests, 'begin'),
    (TrackedObjects, 'observe'), (TrackedObjects, 'locate'), (TrackedObjects, 'join'),
    (StreamTracker, 'fork'), (StreamTracker, 'adopt'), (ImageSegmenter, 'encode'), (Sam2Model, 'encode_image'),
    (Sam2Model, 'decode_masks'), (Sam2Model, 'attend_memory'), (Sam2Model, 'encode_memory'), (ObjectStates, 'name'),
    (ObjectStates, 'expire'), (ObjectStates, 'take_events'), (ObjectStates, 'remove'), (Meter, 'depth'),
    (Queries, 'add'), (Queries, 'advance'), (SegmentImageQuery, 'find_image'), (CameraPublishers, '_age'),
    (CameraPublishers, '_publish_instances'), (CameraPublishers, '_publish_event'),
    (CameraPublishers, '_publish_labels'), (sam2_ros.topics.publishers, 'draw_overlay'), (Markers, 'message'),
    (ClassTable, 'update'), (LabelLists, 'publish'), (ObjectTopics, 'publish'), (ObjectTopics, '_publish_mask'),
    (ObjectTopics, '_publish_points'), (LoadShedder, 'update'), (DetectionGate, 'take')]
OUTPUTS = ('instances', 'labels', 'label_image', 'class_image', 'confidence', 'overlay', 'points', 'markers',
           'background_depth', 'background_points', 'objects/id_1/mask', 'objects/id_1/points')


@pytest.fixture(scope='module')
def robot():
    with in_process(threaded=False, history_seconds=1.0, catch_up_images=2) as robot, pytest.MonkeyPatch.context() as p:
        p.setattr(Publisher, 'get_subscription_count', lambda publisher: 1)
        robot.pipeline.change(replace(robot.pipeline.parameters, detections_topic='detections'))
        yield robot


def restart(robot) -> None:
    """Return a prompt for an object on the image four images ago."""
    robot.send('/prompt', Prompt(action=Prompt.CLEAR))
    robot.serve()
    for number in range(4):
        if number == 0:
            robot.send('/prompt', set_box(id=1, label='cup'))
        robot.show()
        robot.serve()
    assert [item.id for item in robot.frames[-1].instances] == [1]
    robot.pipeline.failures._steps.clear()
    robot.published.clear()


def failing(*_, **__):
    raise ZeroDivisionError('injected')


@pytest.mark.parametrize(('owner', 'name'), STEPS, ids=lambda value: getattr(value, '__name__', value))
def test_a_step_that_raises_costs_no_answer_and_no_later_image(robot, monkeypatch, owner, name):
    check_that_nothing_is_lost(robot, monkeypatch, owner, name)


@pytest.mark.fuzz
def test_nor_does_any_other_step(robot, monkeypatch, rounds):
    for owner, name in OTHERS[:rounds(2, len(OTHERS))]:
        check_that_nothing_is_lost(robot, monkeypatch, owner, name)


def check_that_nothing_is_lost(robot, monkeypatch, owner, name):
    restart(robot)
    before = robot.pipeline.failures.count
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, failing)
        prompts = [set_box(id=2, label='new'), set_box(robot.now - 3 * 10**8, id=3), set_box(id=1),
                   Prompt(action=Prompt.REFINE, id=1, points=[ImagePoint(x=20.0, y=20.0, label=1)]),
                   Prompt(action=Prompt.REMOVE, id=77)]
        for prompt in prompts:
            robot.send('/prompt', prompt)
        asked = [robot.ask('/set_prompt', SetPrompt.Request(prompt=set_box(label='asked'))),
                 robot.ask('/segment_image', SegmentImage.Request(prompts=[set_box(robot.now - 10**8)]))]
        robot.spin()
        image = robot.show()
        robot.serve()
        robot.spin()
    for _ in range(3):  # until late prompts have caught up
        last = robot.show()
        robot.serve()
        robot.spin()
    for task in asked:
        assert task.done() and task.exception() is None
    assert len(robot.statuses) == len(prompts) + 1, 'each prompt is answered once'
    assert all(status.accepted or status.reason for status in robot.statuses)
    reached = robot.pipeline.failures.count > before
    stamps = {frame.header.stamp.sec * 10**9 + frame.header.stamp.nanosec: frame for frame in robot.frames}
    assert last in stamps and (image in stamps or sum(frame.dropped for frame in robot.frames) > 0
                               or name == '_publish_instances')
    assert 1 in [item.id for item in stamps[last].instances]
    assert not robot.pipeline._requests and not robot.pipeline.inbox.prompts
    if reached:
        assert 'injected' in said(robot)
    answer = robot.ask('/reset', Trigger.Request())
    robot.spin()
    robot.serve()
    robot.spin()
    assert answer.result().success


def said(robot) -> str:
    """Return the message of the camera on /diagnostics."""
    status = camera_status('sam2', '', 'active', robot.camera.topics.watched(), robot.pipeline.parameters,
                           time.monotonic())
    assert status.level == ERROR
    return status.message


def test_an_output_that_raises_costs_no_other_output(robot, monkeypatch):
    restart(robot)
    for name in OUTPUTS:
        # a new class makes the node publish the labels again
        robot.send('/prompt', set_box(id=1, label=f'cup for {name}'))
        robot.published.clear()
        with monkeypatch.context() as patch:
            for kind in (Publisher, LifecyclePublisher):
                patch.setattr(kind, 'publish', failing_at(f'~/{name}', kind.publish))
            robot.show()
            robot.serve()
        topics = [topic for topic, _ in robot.published]
        assert {topic.removeprefix('~/') for topic in topics} >= {*OUTPUTS} - {name}
        assert f'~/{name}' not in topics and 'injected' in said(robot)


def failing_at(topic, publish):
    def refuse(publisher, message):
        if publisher.topic == topic:
            failing()
        publish(publisher, message)
    return refuse
