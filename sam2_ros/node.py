"""The node ``sam2``: lifecycle, parameters, and the wiring of cameras, model and worker."""
from __future__ import annotations

if __name__ == '__main__':  # before the imports below, which take seconds
    from sam2_ros.runtime.executables import main_of

    main_of('sam2_node')

import sam2_ros.runtime.threads  # noqa: F401  before torch

# isort: split
import functools
import gc
import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any

import rclpy
import torch
from rcl_interfaces.msg import SetParametersResult
from rclpy.executors import ExternalShutdownException
from rclpy.lifecycle import LifecycleState, TransitionCallbackReturn
from rclpy.parameter import Parameter
from rclpy.signals import SignalHandlerOptions

from sam2_core import Sam2Model
from sam2_ros.depth.transforms import Transforms
from sam2_ros.messages.tf2 import tf2_for
from sam2_ros.messages.vision import require_vision_msgs
from sam2_ros.perception.model_loading import LOAD_ERRORS, load
from sam2_ros.perception.worker import Worker
from sam2_ros.runtime.dds import remove_dead_segments, use_image_profile
from sam2_ros.runtime.executables import install
from sam2_ros.runtime.guarded_node import GuardedExecutor, GuardedNode
from sam2_ros.runtime.image_transports import check_transports
from sam2_ros.runtime.lifecycle_bond import ManagerBond, why_no_bond
from sam2_ros.runtime.node_arguments import ARGUMENT_ERRORS, problems, why
from sam2_ros.runtime.node_help import parse
from sam2_ros.runtime.node_parameters import accepted, declare_parameters, read_parameters
from sam2_ros.runtime.parameter_rules import ParameterError
from sam2_ros.runtime.parameters import Parameters
from sam2_ros.runtime.stopping import STOPPING
from sam2_ros.topics.diagnostics import Diagnostics
from sam2_ros.topics.node_camera import NodeCamera
from sam2_ros.topics.object_frames import why_unusable_target

SUCCESS, FAILURE, ERROR = (TransitionCallbackReturn.SUCCESS, TransitionCallbackReturn.FAILURE,
                           TransitionCallbackReturn.ERROR)


def _logged(transition: Callable[..., TransitionCallbackReturn]) -> Callable[..., TransitionCallbackReturn]:
    """Report exceptions raised by a lifecycle transition, which rclpy would discard."""
    @functools.wraps(transition)
    def run(self: Sam2Node, state: LifecycleState) -> TransitionCallbackReturn:
        try:
            return transition(self, state)
        except Exception as error:
            self.failures.report(transition.__name__, error)
            return ERROR
    return run


class Sam2Node(GuardedNode):
    """Lifecycle node. Cameras receive in the executor's thread; only the worker's thread uses the model."""

    def __init__(self, **options: Any) -> None:
        """Declare the parameters and create the cameras.

        Args:
            options: Those of rclpy's Node.

        Raises:
            ParameterError: A parameter has a value that cannot be used.
        """
        super().__init__('sam2', **options)
        self._model: Sam2Model | None = None  # while configured
        self._worker: Worker | None = None  # while active
        try:
            declare_parameters(self)
        except ParameterError:
            self.destroy_node()
            raise
        self.add_post_set_parameters_callback(self._on_parameters_set)
        chosen = read_parameters(self)
        self._transforms = Transforms(self)
        self._cameras = [NodeCamera(self, name, self._transforms) for name in chosen.cameras or ('',)]
        for problem in problems(self, chosen):
            self.get_logger().warning(problem)
        self._diagnostics = Diagnostics(self, self.failures)
        self._bond = ManagerBond(self)
        if chosen.autostart:
            self._autostart_timer = self.create_timer(0.0, self._autostart)

    def set_parameters(self, parameter_list: list[Parameter]) -> list[SetParametersResult]:
        """Set each parameter on its own."""
        return [self.set_parameters_atomically([parameter]) for parameter in parameter_list]

    def set_parameters_atomically(self, parameter_list: list[Parameter]) -> SetParametersResult:
        """Set all of the parameters, or none and return the reason."""
        try:
            changes = accepted(parameter_list, self, configured=self._model is not None)
        except ParameterError as error:
            return SetParametersResult(successful=False, reason=str(error))
        return super().set_parameters_atomically(changes)

    @_logged
    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Load the model, warm it up and create pipelines and publishers."""
        chosen = read_parameters(self)
        started = time.monotonic()
        try:
            if chosen.detections_topic:
                require_vision_msgs(f"detections_topic '{chosen.detections_topic}'")
            check_transports(chosen)
            self._prepare_frames(chosen)
        except ValueError as error:
            self.get_logger().error(str(error))
            self._diagnostics.not_loaded(str(error))
            return FAILURE
        try:
            with STOPPING.interrupting():  # a signal may interrupt a download or a compilation of minutes
                model = load(chosen)
        except LOAD_ERRORS as error:
            # a traceback for errors of the device
            why = traceback.format_exc() if isinstance(error, RuntimeError) else error
            self.get_logger().error(f'the model cannot be loaded: {why}')
            self._free()
            self._diagnostics.not_loaded(str(error))
            return FAILURE
        if problem := why_no_bond(chosen.bond_heartbeat_period):
            self.get_logger().warning(problem)
        self._model = model
        self._changed = threading.Condition()
        for camera in self._cameras:
            camera.configure(model, chosen, self._changed)
        self._diagnostics.loaded(model, chosen.dtype, [camera.topics.watched() for camera in self._cameras])
        self.get_logger().info(f'{model.name} ({model.image_size} pixels, {chosen.dtype}) on {model.device}: '
                               f'ready after {time.monotonic() - started:.1f} s')
        return super().on_configure(state)

    @_logged
    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Start the worker, subscribe and publish."""
        assert self._model is not None, 'configured'
        result = super().on_activate(state)
        self._worker = Worker(self._model, [camera.topics for camera in self._cameras], self._changed, self.context.ok,
                              self.get_logger())
        self._worker.start()
        self._diagnostics.worker_alive = lambda worker=self._worker: worker.alive
        for camera in self._cameras:
            camera.activate()
        self.failures.run('bond', self._bond.start, read_parameters(self).bond_heartbeat_period)
        return result

    @_logged
    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Stop subscribing and publishing; keep the tracked objects."""
        self._stop('the node was deactivated')
        return super().on_deactivate(state)

    @_logged
    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Free the model and forget the objects."""
        self._free()
        return super().on_cleanup(state)

    @_logged
    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Stop the worker and free the model."""
        self._stop('the node was shut down')
        self._free()
        return super().on_shutdown(state)

    @_logged
    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Return to unconfigured after a transition has failed."""
        self._stop('the node failed')
        self._free()
        return SUCCESS

    def leave(self) -> None:
        """End the bond with a lifecycle manager. Call it before ROS is shut down; any thread may."""
        self.failures.run('bond', self._bond.close)

    def close(self) -> None:
        """Stop the worker. Call it before ``destroy_node``, after the executor has stopped."""
        self.failures.run('end', self._stop, 'the node ended')
        for camera in self._cameras:
            self.failures.run('end', camera.end)
        self.failures.run('bond', self._bond.free)

    def destroy_node(self) -> None:
        """Leave the graph at once; rclpy would wait for the garbage collector to destroy the state machine."""
        self._state_machine.destroy_when_not_in_use()
        super().destroy_node()

    def _stop(self, reason: str) -> None:
        self.failures.run('bond', self._bond.end)
        self._diagnostics.worker_alive = None
        for camera in self._cameras:
            self.failures.run('end of subscriptions', camera.unsubscribe)
        worker, self._worker = self._worker, None
        if worker is not None:
            problem = worker.stop()
            for camera in self._cameras:
                self.failures.run('deactivation', camera.deactivate, reason, not problem)
            if problem:
                raise RuntimeError(problem)

    def _prepare_frames(self, chosen: Parameters) -> None:
        """Subscribe to /tf if positions are to be transformed. Raise ValueError if tf2 or a frame cannot be used."""
        if chosen.publish_tf:
            tf2_for('publish_tf')
            if reason := why_unusable_target(chosen.target_frame, self):
                raise ValueError(reason)
        if chosen.target_frame:
            self._transforms.subscribe(f"target_frame '{chosen.target_frame}'")

    def _free(self) -> None:
        self.failures.run('bond', self._bond.free)
        for camera in self._cameras:
            self.failures.run('cleanup', camera.cleanup)
        self.failures.run('cleanup', self._transforms.close)
        self._diagnostics.freed()
        self._model = None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _autostart(self) -> None:
        self._autostart_timer.cancel()
        if self.trigger_configure() == SUCCESS:
            self.trigger_activate()

    def _on_parameters_set(self, _: list[Parameter]) -> None:
        if self._model is not None:
            chosen = read_parameters(self)
            for camera in self._cameras:
                camera.pipeline.change(chosen)


def main(args: list[str] | None = None) -> int:
    """Run the node until SIGINT or SIGTERM; return the exit code of the process."""
    install('sam2_node')
    parse(sys.argv[1:] if args is None else args)
    gc.freeze()  # PyTorch's modules hold no garbage, and scanning them takes up to a second
    use_image_profile()
    freed = remove_dead_segments()
    try:
        rclpy.init(args=args, signal_handler_options=SignalHandlerOptions.NO)
    except ARGUMENT_ERRORS as error:
        print(f'sam2_node: {why(error)}', file=sys.stderr)
        return 1
    node = executor = None

    def stop() -> None:
        if node is not None:
            node.leave()
        rclpy.try_shutdown()

    STOPPING.act_on_signal(stop)
    if freed:
        rclpy.logging.get_logger('sam2').info(
            f'freed {freed / 2**20:.0f} MiB of shared memory left behind by killed processes')
    try:
        try:
            node = Sam2Node()
        except ARGUMENT_ERRORS as error:
            if not rclpy.ok():
                raise
            rclpy.logging.get_logger('sam2').fatal(why(error))
            return 1
        executor = GuardedExecutor(node.failures)
        executor.add_node(node)
        executor.spin()
    except (ExternalShutdownException, KeyboardInterrupt):
        pass
    except Exception:  # rclpy raises various errors when it is shut down while in use
        if rclpy.ok():
            raise
    finally:
        if node is not None:
            node.close()
        if executor is not None:
            executor.shutdown()
        if node is not None:
            node.destroy_node()
        rclpy.try_shutdown()
    return 0
