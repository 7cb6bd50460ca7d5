"""A callback that raises an exception ends neither the process nor other callbacks; real nodes and executors."""
import time

import pytest
import rclpy
from action_msgs.msg import GoalStatus
from lifecycle_msgs.srv import GetState
from rcl_interfaces.msg import Parameter as ParameterMessage
from rcl_interfaces.msg import ParameterType, ParameterValue
from rcl_interfaces.srv import SetParameters, SetParametersAtomically
from rclpy.action import ActionClient
from rclpy.callback_groups import ReentrantCallbackGroup
from rclpy.task import Future
from rosgraph_msgs.msg import Clock
from std_msgs.msg import String
from std_srvs.srv import Trigger

from sam2_ros.action import Track
from sam2_ros.msg import Prompt
from sam2_ros.runtime.failures import LOG_EVERY, MAX_STEPS, WINDOW, Failures
from sam2_ros.runtime.guarded_node import GuardedExecutor, GuardedNode
from sam2_ros.srv import SetPrompt
from sam2_ros.topics.diagnostics import ERROR, model_status
from testing.in_process import in_process, set_box


@pytest.fixture
def node(context):
    made = GuardedNode('guarded', context=context)
    yield made
    made.destroy_node()


def failing(*_):
    raise ZeroDivisionError('injected')


def spin(node: GuardedNode, executor: GuardedExecutor, condition) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        executor.spin_once(timeout_sec=0.01)


def test_subscriptions_timers_services_and_what_cannot_be_taken_are_survived(node):
    """Callbacks over DDS, with an executor of rclpy."""
    executor = GuardedExecutor(node.failures, context=node.context)
    executor.add_node(node)
    seen = []
    node.create_subscription(String, 'bad', failing, 10, failed=lambda message, reason: seen.append(
        (message.data, reason)))
    node.create_subscription(String, 'good', lambda message: seen.append(message.data), 10)
    node.create_timer(0.01, failing)
    node.create_service(Trigger, 'asked', failing)
    client = node.create_client(Trigger, 'asked')
    publishers = {name: node.create_publisher(String, name, 10) for name in ('bad', 'good')}
    spin(node, executor, lambda: client.service_is_ready() and all(
        one.get_subscription_count() for one in publishers.values()))
    publishers['bad'].publish(String(data='first'))
    spin(node, executor, lambda: seen)
    assert seen == [('first', 'ZeroDivisionError: injected')]
    answer = client.call_async(Trigger.Request())
    spin(node, executor, answer.done)
    assert not answer.result().success
    assert answer.result().message == 'the node failed to handle it, see the log: ZeroDivisionError: injected'
    # a message that cannot be converted raises before the callback; rclpy would leave its callback group blocked
    broken = next(one for one in node.subscriptions if one.topic == 'bad')
    broken.msg_type = int
    publishers['bad'].publish(String(data='second'))
    spin(node, executor, lambda: any('arrival at bad' in text for text in node.failures.recent(time.monotonic())))
    broken.msg_type = String
    publishers['good'].publish(String(data='third'))
    spin(node, executor, lambda: seen[-1] == 'third')


def test_a_goal_that_fails_is_aborted_with_the_reason_and_a_cancellation_that_fails_is_rejected(node):
    executor = GuardedExecutor(node.failures, context=node.context)
    executor.add_node(node)
    released = Future(executor=executor)

    async def execute(handle):
        if handle.request.lost_timeout:
            await released
        failing()
    node.create_action_server(Track, 'track', execute, failing, ReentrantCallbackGroup())
    client = ActionClient(node, Track, 'track')
    spin(node, executor, client.server_is_ready)
    sent = [client.send_goal_async(Track.Goal(lost_timeout=seconds)) for seconds in (0.0, 1.0)]
    spin(node, executor, lambda: all(one.done() for one in sent))
    handles = [one.result() for one in sent]
    assert all(handle.accepted for handle in handles)
    results = [handle.get_result_async() for handle in handles]
    cancelled = handles[1].cancel_goal_async()
    spin(node, executor, lambda: results[0].done() and cancelled.done())
    assert not results[1].done() and cancelled.result().goals_canceling == []
    released.set_result(None)
    spin(node, executor, results[1].done)
    for result in results:
        assert result.result().status == GoalStatus.STATUS_ABORTED
        assert result.result().result.reason == Track.Result.FAILED
        assert result.result().result.text == 'the node failed to handle it, see the log: ZeroDivisionError: injected'
    assert node.failures.totals() == [
        'action track failed 2 times, the last time with ZeroDivisionError: injected',
        'cancellation of track failed 1 times, the last time with ZeroDivisionError: injected']
    client.destroy()


def test_a_task_that_raises_is_survived_and_recorded(node):
    """Also tasks of rclpy's own: it runs each goal as a task, and raises from ``spin`` what that raises."""
    executor = GuardedExecutor(node.failures, context=node.context)
    executor.add_node(node)

    async def coroutine(value):
        failing(value)

    async def fine(value):
        return value
    tasks = [executor.create_task(failing), executor.create_task(coroutine, 1), executor.create_task(coroutine(1)),
             executor.create_task(fine, 7), executor.create_task(lambda value: value, 8)]
    spin(node, executor, lambda: all(task.done() for task in tasks))
    assert [task.result() for task in tasks] == [None, None, None, 7, 8]
    assert node.failures.count == 3
    assert all('ZeroDivisionError: injected' in text for text in node.failures.totals())


def test_parameter_callbacks_that_raise_refuse_the_change(node):
    node.declare_parameter('number', 1)
    node.add_on_set_parameters_callback(failing)
    (result,) = node.set_parameters([rclpy.parameter.Parameter('number', value=2)])
    assert not result.successful and 'ZeroDivisionError: injected' in result.reason
    assert node.get_parameter('number').value == 1


@pytest.mark.parametrize(('kind', 'name', 'read'), [
    (SetParameters, 'set_parameters', lambda response: [one.reason for one in response.results]),
    (SetParametersAtomically, 'set_parameters_atomically', lambda response: [response.result.reason])])
def test_parameter_services_that_fail_say_so(node, monkeypatch, kind, name, read):
    monkeypatch.setattr(node, 'set_parameters', failing)
    monkeypatch.setattr(node, 'set_parameters_atomically', failing)
    service = next(one for one in node.services if one.srv_name.endswith(name))
    change = ParameterMessage(name='x', value=ParameterValue(type=ParameterType.PARAMETER_BOOL))
    response = service.callback(kind.Request(parameters=[change]), kind.Response())
    (reason,) = read(response)
    assert reason == 'the node failed to handle it, see the log: ZeroDivisionError: injected'


def test_rclpys_own_callbacks_are_guarded_too(node):
    """A clock before 1970 raises in the time source of rclpy, a destroyed state machine in its lifecycle services."""
    node.set_parameters([rclpy.parameter.Parameter('use_sim_time', value=True)])
    clock = next(one for one in node.subscriptions if one.topic == '/clock')
    message = Clock()
    message.clock.sec = -5
    clock.callback(message)
    assert any('/clock' in text for text in node.failures.recent(time.monotonic()))
    state = next(one for one in node.services if one.srv_name.endswith('get_state'))
    machine, node._state_machine = node._state_machine, None
    assert state.callback(GetState.Request(), GetState.Response()) == GetState.Response()
    node._state_machine = machine


def test_prompts_whose_callback_raises_are_refused_and_counted(monkeypatch):
    with in_process(threaded=False, use_depth=False) as robot:
        monkeypatch.setattr(robot.camera.topics, 'submit', failing)
        robot.send('/prompt', set_box(id=5))
        task = robot.ask('/set_prompt', SetPrompt.Request(prompt=Prompt()))
        robot.spin()
        assert [(one.id, one.accepted, one.reason) for one in robot.statuses] == [
            (5, False, 'the node failed to read it, see the log: ZeroDivisionError: injected')]
        assert task.result().reason == 'the node failed to handle it, see the log: ZeroDivisionError: injected'
        failed = robot.node.failures
        status = model_status('sam2', 'active', None, '', True, failed=failed.recent(time.monotonic()),
                              failed_count=failed.count)
        assert status.level == ERROR and 'callback of ~/prompt failed: ZeroDivisionError: injected' in status.message
        assert ('failed callbacks', '2') in [(one.key, one.value) for one in status.values]


class Log:
    def __init__(self) -> None:
        self.lines = []

    def error(self, text: str) -> None:
        self.lines.append(text)


def test_failures_are_logged_with_their_traceback_and_not_again_at_once(monkeypatch):
    log, now = Log(), [100.0]
    monkeypatch.setattr('sam2_ros.runtime.failures.time.monotonic', lambda: now[0])
    failures = Failures(log, '/image')
    for _ in range(10):
        assert failures.run('depth', failing, default=7) == 7
    failures.run('events', failing, about='object 3')
    assert [line.splitlines()[0] for line in log.lines] == [
        '/image: depth failed: ZeroDivisionError: injected',
        '/image: events failed: object 3: ZeroDivisionError: injected']
    assert all('in failing' in line for line in log.lines)
    now[0] += LOG_EVERY
    failures.run('depth', failing)
    assert len(log.lines) == 3 and failures.count == 12
    assert failures.recent(now[0])[0].startswith('depth failed')
    assert failures.recent(now[0] + WINDOW) == []


def test_failures_are_bounded():
    failures = Failures(Log())
    for number in range(2 * MAX_STEPS):
        failures.run(f'step {number}', failing)
    assert len(failures.recent(time.monotonic())) == MAX_STEPS
