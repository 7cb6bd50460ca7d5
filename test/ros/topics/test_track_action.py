"""The action ~/track where something fails in the node: the real node in this process, and a client over DDS."""
import gc
import weakref

import pytest
import rclpy
from action_msgs.msg import GoalStatus
from rclpy.action import ActionClient
from rclpy.lifecycle import TransitionCallbackReturn

from sam2_ros.action import Track
from sam2_ros.msg import Prompt
from sam2_ros.perception.tracking_goals import TrackingGoals
from testing.in_process import in_process, set_box

Result = Track.Result


class GoalInProcess:
    """A goal of a client that the node's executor serves, too."""

    def __init__(self, robot, client: ActionClient, prompt: Prompt, lost_timeout: float = 0.0) -> None:
        self._robot, self.feedback = robot, []
        robot.wait_for(client.server_is_ready)
        sent = client.send_goal_async(Track.Goal(prompt=prompt, lost_timeout=lost_timeout),
                                      lambda message: self.feedback.append(message.feedback))
        robot.wait_for(sent.done)
        self.handle = sent.result()
        self.result = self.handle.get_result_async()

    def end(self) -> tuple[int, Track.Result]:
        self._robot.wait_for(self.result.done, 'the result of a goal')
        return self.result.result().status, self.result.result().result


@pytest.fixture(scope='module')
def robot_and_client():
    with in_process(threaded=False, use_depth=False) as robot:
        node = rclpy.create_node('planner', context=robot.node.context)
        robot.executor.add_node(node)
        yield robot, ActionClient(node, Track, '/sam2/track')
        node.destroy_node()


@pytest.fixture
def robot(robot_and_client):
    robot, _ = robot_and_client
    robot.restart()
    return robot


@pytest.fixture
def begin(robot_and_client, robot):
    def begin(prompt: Prompt) -> GoalInProcess:
        goal = GoalInProcess(robot, robot_and_client[1], prompt)
        robot.spin()
        robot.show(depth=False)
        robot.serve()
        robot.wait_for(lambda: goal.feedback or goal.result.done())
        return goal
    return begin


def failing(*_, **__):
    raise ZeroDivisionError('injected')


def test_feedback_that_fails_is_recorded_and_the_goal_goes_on(robot, begin, monkeypatch):
    goal = begin(set_box(id=5))
    with monkeypatch.context() as patch:
        patch.setattr('sam2_ros.topics.track_action.instance_message', failing)
        robot.show(depth=False)
        robot.serve()
        robot.wait_for(lambda: any('feedback of track' in text for text in robot.node.failures.totals()))
    assert len(goal.feedback) == 1
    robot.show(depth=False)
    robot.serve()
    robot.wait_for(lambda: len(goal.feedback) == 2)
    goal.handle.cancel_goal_async()
    robot.spin()
    robot.serve()
    assert goal.end()[1].reason == Result.CANCELLED


@pytest.mark.parametrize('method', ['see_step', '_see_answers'])
def test_goals_end_as_failed_if_they_cannot_be_followed(robot, begin, monkeypatch, method):
    goals = [begin(set_box(id=5)), begin(Prompt(action=Prompt.REFINE, id=5))]
    with monkeypatch.context() as patch:
        patch.setattr(TrackingGoals, method, failing)
        robot.show(depth=False)
        robot.serve()
        robot.spin()
    for goal in goals:
        status, result = goal.end()
        assert (status, result.reason) == (GoalStatus.STATUS_ABORTED, Result.FAILED)
        assert result.text == 'the node failed, see the log: ZeroDivisionError: injected'
    assert begin(Prompt(action=Prompt.REFINE, id=5)).feedback, 'the object and the node are as they were'


def test_a_goal_that_fails_at_its_begin_is_aborted(robot, begin, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(robot.camera.topics, 'submit', failing)
        status, result = begin(set_box(id=5)).end()
    assert (status, result.reason) == (GoalStatus.STATUS_ABORTED, Result.FAILED)
    assert result.text == 'the node failed to handle it, see the log: ZeroDivisionError: injected'
    assert begin(set_box(id=5)).feedback


def test_a_prompt_that_finds_the_inbox_full_is_refused_at_once(robot, begin, monkeypatch):
    for _ in range(100):
        robot.send('/prompt', set_box(10**19))
    status, result = begin(set_box(id=5)).end()
    assert (status, result.reason) == (GoalStatus.STATUS_ABORTED, Result.REFUSED)
    assert result.text.startswith('100 prompts are waiting already')


def test_nothing_of_the_camera_outlives_cleanup_with_goals_open(robot, begin):
    goals = [begin(set_box(id=5)), begin(Prompt(action=Prompt.REFINE, id=5))]
    robot.show(depth=False)
    robot.serve()
    tracker = weakref.ref(robot.pipeline.objects.tracker)
    robot.pipeline = None
    assert robot.node.trigger_deactivate() == robot.node.trigger_cleanup() == TransitionCallbackReturn.SUCCESS
    for goal in goals:
        assert goal.end()[1].reason == Result.NODE_STOPPED
    robot.spin()
    gc.collect()
    assert tracker() is None
    assert robot.node.trigger_configure() == robot.node.trigger_activate() == TransitionCallbackReturn.SUCCESS
    robot.pipeline = robot.camera.pipeline
