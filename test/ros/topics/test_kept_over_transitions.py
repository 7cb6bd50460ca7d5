"""Objects of the real node in its file, over lifecycle transitions and calls of ~/reset."""
import pytest
from rclpy.lifecycle import TransitionCallbackReturn
from rclpy.parameter import Parameter
from std_srvs.srv import Trigger

from sam2_core import load_state
from testing.in_process import in_process, set_box

SUCCESS = TransitionCallbackReturn.SUCCESS


@pytest.fixture
def file(tmp_path):
    return tmp_path / 'objects.safetensors'


@pytest.fixture
def robot(file):
    with in_process(False, keep_objects=str(file)) as robot:
        for number in (1, 2):
            robot.send('/prompt', set_box(id=number, label=f'box {number}'))
        show(robot)
        yield robot


def show(robot):
    """Let the node process an image; return ids and labels."""
    robot.show()
    robot.serve()
    return [(instance.id, instance.label) for instance in robot.frames[-1].instances]


def reset(robot):
    task = robot.ask('/reset', Trigger.Request())
    robot.spin()
    assert task.done() and task.result().success, task.result()


def in_file(file):
    return [one['id'] for one in load_state(file)[0]['metadata']['objects']]


def configure(robot):
    assert robot.node.trigger_configure() == SUCCESS
    robot.pipeline = robot.camera.pipeline


def test_objects_return_with_configure(robot, file):
    assert robot.node.trigger_deactivate() == SUCCESS
    assert robot.node.trigger_cleanup() == SUCCESS
    assert in_file(file) == [1, 2]
    configure(robot)
    assert robot.pipeline.objects.ids == (1, 2)
    assert robot.node.trigger_activate() == SUCCESS
    assert show(robot) == [(1, 'box 1'), (2, 'box 2')]


def test_objects_of_another_memory_policy_are_not_brought_back(robot, file):
    assert robot.node.trigger_deactivate() == SUCCESS
    assert robot.node.trigger_cleanup() == SUCCESS
    assert robot.node.set_parameters([Parameter('memory_policy', value='distractor_aware')])[0].successful
    configure(robot)
    assert robot.pipeline.objects.ids == () and file.with_name(f'{file.name}.unusable').exists()
    assert robot.node.trigger_activate() == SUCCESS
    robot.send('/prompt', set_box(id=5))
    show(robot)
    assert show(robot) == [(5, '')]
    assert load_state(file)[0]['metadata']['memory_policy'] == 'distractor_aware'


@pytest.mark.parametrize('state', ['inactive', 'unconfigured'])
def test_a_reset_in_any_state_empties_the_file(robot, file, state):
    assert robot.node.trigger_deactivate() == SUCCESS
    if state == 'unconfigured':
        assert robot.node.trigger_cleanup() == SUCCESS
    reset(robot)
    assert not file.exists() or in_file(file) == []
    if state == 'inactive':
        assert robot.node.trigger_cleanup() == SUCCESS
    configure(robot)
    assert robot.node.trigger_activate() == SUCCESS
    assert show(robot) == []


def test_objects_without_a_file_end_with_cleanup():
    with in_process(False) as robot:
        robot.send('/prompt', set_box(id=1))
        assert show(robot) == [(1, '')]
        assert robot.node.trigger_deactivate() == SUCCESS
        assert robot.node.trigger_cleanup() == SUCCESS
        configure(robot)
        assert robot.pipeline.objects.ids == ()


def test_a_step_that_fails_to_keep_objects_costs_no_frame(robot, monkeypatch):
    kept = robot.camera.topics.kept
    for name in ('before_step', 'before_publish', 'after_publish'):
        monkeypatch.setattr(kept, name, lambda: 1 / 0)
    assert show(robot) == [(1, 'box 1'), (2, 'box 2')]
    assert any('kept objects failed: ZeroDivisionError' in line
               for line in robot.pipeline.failures.recent(robot.pipeline.failures._steps['kept objects'].when))
