"""Lifecycle node and executor that survive exceptions raised by callbacks."""
from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

from rcl_interfaces.msg import SetParametersResult
from rclpy.action import ActionServer, CancelResponse
from rclpy.action.server import ServerGoalHandle
from rclpy.callback_groups import CallbackGroup
from rclpy.context import Context
from rclpy.executors import SingleThreadedExecutor
from rclpy.impl.implementation_singleton import rclpy_implementation
from rclpy.lifecycle import LifecycleNode
from rclpy.logging import get_logger
from rclpy.qos import QoSProfile
from rclpy.service import Service
from rclpy.subscription import Subscription
from rclpy.task import Task
from rclpy.timer import Timer

from sam2_ros.runtime.failures import Failures

RESULT_SECONDS = 60  # how long the result of a goal is stored for a client that asks late
# the default depth of 10 loses requests and results of many goals that begin or end together
_ACTION_QUEUE = QoSProfile(depth=256)
_TAKES = ('_take_timer', '_take_subscription', '_take_client', '_take_service', '_take_guard_condition',
          '_take_waitable')


class GuardedNode(LifecycleNode):
    """Lifecycle node whose callbacks cannot end the process.

    Callbacks of subscriptions, services, actions, timers and parameters are guarded, including those that rclpy,
    message_filters and tf2_ros create on the node. An exception is logged and counted in ``failures``, and a service
    call or a goal is answered with it.
    """

    def __init__(self, name: str, **options: Any) -> None:
        """Create a node. ``options`` are those of rclpy's LifecycleNode."""
        self._action_servers: list[ActionServer] = []
        self.failures = Failures(get_logger(name))  # the constructor of rclpy calls parameter callbacks already
        super().__init__(name, **options)
        self.failures = Failures(self.get_logger(), usable=self.context.ok)
        self._guard_lifecycle_services()

    def create_subscription(self, msg_type: Any, topic: str, callback: Callable, *arguments: Any,
                            failed: Callable | None = None, **options: Any) -> Subscription:
        """Create a subscription as rclpy does.

        ``failed`` is called with the message and the reason if ``callback`` raises an exception.
        """
        return super().create_subscription(msg_type, topic, self._guarded(f'callback of {topic}', callback, failed),
                                           *arguments, **options)

    def create_service(self, srv_type: Any, srv_name: str, callback: Callable, **options: Any) -> Service:
        """Create a service as rclpy does. If ``callback`` raises an exception, the call is answered with the reason."""
        return super().create_service(srv_type, srv_name, self._guarded_service(srv_type, srv_name, callback),
                                      **options)

    def create_action_server(self, action_type: Any, name: str, execute: Callable, cancel: Callable,
                             group: CallbackGroup) -> ActionServer:
        """Create an action server that accepts every goal. A goal is executed in the executor's thread.

        Args:
            action_type: Type of the action.
            name: Name of the action.
            execute: Coroutine function that is called with the goal handle, ends the goal and returns the result. If it
                raises an exception, the goal is aborted with the reason.
            cancel: Called with the goal handle; returns a CancelResponse. An exception rejects the cancellation.
            group: Callback group.
        """
        def aborted(goal: ServerGoalHandle, reason: str) -> Any:
            if goal.is_active:
                goal.abort()
            return with_reason(action_type.Result(), _told(reason))

        server = ActionServer(
            self, action_type, name, self._guarded(f'action {name}', execute, aborted), callback_group=group,
            cancel_callback=self._guarded(f'cancellation of {name}', cancel,
                                          lambda goal, reason: CancelResponse.REJECT),
            goal_service_qos_profile=_ACTION_QUEUE, result_service_qos_profile=_ACTION_QUEUE,
            cancel_service_qos_profile=_ACTION_QUEUE, result_timeout=RESULT_SECONDS)
        self._action_servers.append(server)
        return server

    def destroy_node(self) -> None:
        """Destroy the node and its action servers, which rclpy would leave to the garbage collector."""
        for server in self._action_servers:
            server.destroy()
        self._action_servers = []
        super().destroy_node()

    def create_timer(self, timer_period_sec: float, callback: Callable, *arguments: Any, **options: Any) -> Timer:
        """Create a timer as rclpy does."""
        name = getattr(callback, '__qualname__', 'timer')
        return super().create_timer(timer_period_sec, self._guarded(name, callback), *arguments, **options)

    def add_on_set_parameters_callback(self, callback: Callable) -> None:
        """Add a callback as rclpy does. If it raises an exception, the change is refused."""
        super().add_on_set_parameters_callback(self._guarded(
            'check of parameters', callback,
            lambda changes, reason: SetParametersResult(successful=False, reason=_told(reason))))

    def add_post_set_parameters_callback(self, callback: Callable) -> None:
        """Add a callback as rclpy does."""
        super().add_post_set_parameters_callback(self._guarded('change of parameters', callback))

    def _guarded(self, name: str, callback: Callable, failed: Callable | None = None) -> Callable:
        """Return a callback that reports exceptions instead of raising them.

        It returns the result of ``failed`` then, which is called with the arguments and the reason.
        """
        def report(error: Exception, arguments: tuple) -> Any:
            reason = self.failures.report(name, error)
            return None if failed is None else self.failures.run(name, failed, *arguments, reason)

        if inspect.iscoroutinefunction(callback):
            @functools.wraps(callback)
            async def awaited(*arguments: Any) -> Any:
                try:
                    return await callback(*arguments)
                except Exception as error:
                    return report(error, arguments)
            return awaited

        @functools.wraps(callback)
        def called(*arguments: Any) -> Any:
            try:
                return callback(*arguments)
            except Exception as error:
                return report(error, arguments)
        return called

    def _guarded_service(self, srv_type: Any, name: str, callback: Callable) -> Callable:
        """Return a service callback that answers with the reason if ``callback`` raises an exception."""
        return self._guarded(f'service {name}', callback,
                             lambda request, response, reason: refusal(srv_type, request, _told(reason)))

    def _guard_lifecycle_services(self) -> None:
        """Guard the lifecycle services, which rclpy does not create with ``create_service``."""
        change_state = self._service_change_state.callback

        def change(request: Any, response: Any) -> Any:
            # rclpy of Jazzy raises an exception if a transition is not possible (rclpy issue 1209, fixed in Kilted)
            try:
                return change_state(request, response)
            except rclpy_implementation.RCLError as error:
                self.get_logger().warning(f'transition refused: {str(error).splitlines()[0]}')
                response.success = False
                return response
        self._service_change_state.callback = change
        for service in (self._service_change_state, self._service_get_state, self._service_get_available_states,
                        self._service_get_available_transitions, self._service_get_transition_graph):
            service.callback = self._guarded_service(service.srv_type, service.srv_name, service.callback)


class GuardedExecutor(SingleThreadedExecutor):
    """Executor that continues if a message cannot be taken or a handler of rclpy raises an exception."""

    def __init__(self, failures: Failures, *, context: Context | None = None) -> None:
        """Create an executor. ``failures`` records the exceptions."""
        super().__init__(context=context)
        self._failures = failures
        for name in _TAKES:
            if hasattr(self, name):
                setattr(self, name, functools.partial(self._take, getattr(self, name)))

    def create_task(self, callback: Any, *arguments: Any, **options: Any) -> Task:
        """Create a task as rclpy does. An exception is reported; ``spin`` would raise it and end."""
        name = getattr(callback, '__qualname__', 'task')

        async def awaited() -> Any:
            try:
                return await (callback if inspect.iscoroutine(callback) else callback(*arguments, **options))
            except Exception as error:
                self._failures.report(f'task {name}', error)

        def called() -> Any:
            return self._failures.run(f'task {name}', lambda: callback(*arguments, **options))
        awaits = inspect.iscoroutine(callback) or inspect.iscoroutinefunction(callback)
        return super().create_task(awaited if awaits else called)

    def _take(self, take: Callable, entity: Any) -> Callable | None:
        """Take a message, and return a handler for it that reports exceptions."""
        # an exception here would block the entity and its callback group for good
        name = getattr(entity, 'topic', '') or getattr(entity, 'srv_name', '') or type(entity).__name__
        execute = self._failures.run(f'arrival at {name}', take, entity)
        if execute is None:
            return None

        async def guarded() -> None:
            try:
                await execute()
            except Exception as error:
                self._failures.report(f'handling of {name}', error)
        return guarded


def refusal(srv_type: Any, request: Any, reason: str) -> Any:
    """Return a response that reports a failure, with the reason if the type has a field for it."""
    response = srv_type.Response()
    fields = with_reason(response, reason).get_fields_and_field_types()
    result = SetParametersResult(successful=False, reason=reason)
    if 'results' in fields and hasattr(request, 'parameters'):
        response.results = [result for _ in request.parameters]
    elif 'result' in fields and hasattr(request, 'parameters'):
        response.result = result
    return response


def with_reason(message: Any, reason: str) -> Any:
    """Set the field for a reason in words, if the message has one, and return the message."""
    fields = message.get_fields_and_field_types()
    for name in ('reason', 'message', 'text'):
        if fields.get(name) == 'string':
            setattr(message, name, reason)
    return message


def _told(reason: str) -> str:
    """Return the reason of a failure as an answer to a caller."""
    return f'the node failed to handle it, see the log: {reason}'
