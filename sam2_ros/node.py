"""The node ``sam2``: tracks what it is prompted with in the images of its cameras. Wires the parts, no more."""
from __future__ import annotations

import sam2_ros.cores  # noqa: F401  before torch

# isort: split
import functools
import gc
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable

import rclpy
import torch
from rclpy.exceptions import InvalidParameterTypeException, InvalidParameterValueException
from rclpy.executors import ExternalShutdownException
from rclpy.lifecycle import LifecycleState, TransitionCallbackReturn

from sam2_core import Sam2Model
from sam2_ros import parameters
from sam2_ros.camera import Camera
from sam2_ros.dds import remove_dead_segments, use_image_profile
from sam2_ros.diagnostics import Diagnostics
from sam2_ros.guarded_node import GuardedExecutor, GuardedNode
from sam2_ros.loading import LOAD_ERRORS, load
from sam2_ros.parameters import Parameters
from sam2_ros.vision_messages import require_vision_msgs
from sam2_ros.worker import Worker

SUCCESS, FAILURE, ERROR = (TransitionCallbackReturn.SUCCESS, TransitionCallbackReturn.FAILURE,
                           TransitionCallbackReturn.ERROR)


def _logged(transition: Callable) -> Callable:
    """Report exceptions raised by a lifecycle transition, which rclpy would discard."""
    @functools.wraps(transition)
    def run(self, state: LifecycleState) -> TransitionCallbackReturn:
        try:
            return transition(self, state)
        except Exception as error:
            self.failures.report(transition.__name__, error)
            return ERROR
    return run


class Sam2Node(GuardedNode):
    """Wires cameras, model and worker: cameras receive in the executor's thread, only the worker uses the model."""

    def __init__(self, **options) -> None:
        """``options``: as for rclpy's Node. Raises rclpy's exceptions for parameter values that are not acceptable."""
        super().__init__('sam2', **options)
        self._model: Sam2Model | None = None  # while configured
        self._worker: Worker | None = None  # while active
        self.add_on_set_parameters_callback(
            lambda changes: parameters.check(changes, configured=self._model is not None))
        Parameters.declare(self)
        self.add_post_set_parameters_callback(self._on_parameters_set)
        chosen = Parameters.read(self)
        self._cameras = [Camera(self, name) for name in chosen.cameras or ('',)]
        self._diagnostics = Diagnostics(self, self.failures)
        if chosen.autostart:
            self._autostart_timer = self.create_timer(0.0, self._autostart)

    @_logged
    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Load the model and warm it up."""
        chosen = Parameters.read(self)
        started = time.monotonic()
        try:
            _check_detections(chosen)
        except ValueError as error:
            self.get_logger().error(str(error))
            self._diagnostics.not_loaded(str(error))
            return FAILURE
        try:
            model = load(chosen)
        except LOAD_ERRORS as error:
            # what the device says is for the log in full
            why = traceback.format_exc() if isinstance(error, RuntimeError) else error
            self.get_logger().error(f'the model cannot be loaded: {why}')
            self._free()
            self._diagnostics.not_loaded(str(error))
            return FAILURE
        self._model = model
        self._changed = threading.Condition()
        for camera in self._cameras:
            camera.configure(model, chosen, self._changed)
        self._diagnostics.loaded(model, chosen.dtype, [camera.watched() for camera in self._cameras])
        self.get_logger().info(f'{model.name} ({model.image_size} pixels, {chosen.dtype}) on {model.device}: '
                               f'ready after {time.monotonic() - started:.1f} s')
        return super().on_configure(state)

    @_logged
    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Start to listen and to publish."""
        result = super().on_activate(state)
        self._worker = Worker(self._model, self._cameras, self._changed, self.context.ok, self.get_logger())
        self._worker.start()
        self._diagnostics.worker_alive = lambda worker=self._worker: worker.alive
        for camera in self._cameras:
            camera.activate()
        return result

    @_logged
    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Stop to listen and to publish; the objects are kept."""
        self._stop('the node was deactivated before the prompt was applied')
        return super().on_deactivate(state)

    @_logged
    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Free the model and forget the objects."""
        self._free()
        return super().on_cleanup(state)

    @_logged
    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        self._stop('the node was shut down before the prompt was applied')
        self._free()
        return super().on_shutdown(state)

    @_logged
    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Back to unconfigured, whatever failed."""
        self._stop('the node failed before the prompt was applied')
        self._free()
        return SUCCESS

    def close(self) -> None:
        """End the worker. Call it before ``destroy_node``, when the executor no longer spins."""
        self.failures.run('end', self._stop, 'the node ended before the prompt was applied')

    def _stop(self, reason: str) -> None:
        self._diagnostics.worker_alive = None
        for camera in self._cameras:
            self.failures.run('end of subscriptions', camera.stop_listening)
        worker, self._worker = self._worker, None
        if worker is not None:
            problem = worker.stop()
            for camera in self._cameras:
                self.failures.run('deactivation', camera.deactivate, reason, not problem)
            if problem:
                raise RuntimeError(problem)

    def _free(self) -> None:
        for camera in self._cameras:
            self.failures.run('cleanup', camera.cleanup)
        self._diagnostics.freed()
        self._model = None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _autostart(self) -> None:
        self._autostart_timer.cancel()
        if self.trigger_configure() == SUCCESS:
            self.trigger_activate()

    def _on_parameters_set(self, _) -> None:
        if self._model is not None:
            chosen = Parameters.read(self)
            for camera in self._cameras:
                camera.stream.change(chosen)


def _check_detections(chosen: Parameters) -> None:
    """ValueError when detections are wanted that cannot be had."""
    if chosen.detections_topic:
        require_vision_msgs(f"detections_topic '{chosen.detections_topic}'")
    if chosen.cameras and chosen.detections_topic.startswith('/'):
        raise ValueError(f"detections_topic '{chosen.detections_topic}': with several cameras it is relative to each; "
                         f'leave out the first /, and remap {chosen.cameras[0]}{chosen.detections_topic}')


def main(args: list[str] | None = None) -> int:
    """Run the node until SIGINT or SIGTERM. Returns the process's exit code."""
    gc.freeze()  # PyTorch's modules hold no garbage; going through them takes a second at the end, and pauses before
    use_image_profile()
    freed = remove_dead_segments()
    # rclpy shuts down on SIGINT by itself; a KeyboardInterrupt would strike anywhere, within rclpy's conversions too
    signal.signal(signal.SIGINT, lambda number, frame: None)
    rclpy.init(args=args)
    if freed:
        rclpy.logging.get_logger('sam2').info(
            f'{freed / 2**20:.0f} MiB of shared memory freed, which processes that were killed had left')
    try:
        node = Sam2Node()
    except (InvalidParameterTypeException, InvalidParameterValueException) as error:
        rclpy.logging.get_logger('sam2').fatal(str(error))
        rclpy.try_shutdown()
        return 1
    executor = GuardedExecutor(node.failures)
    executor.add_node(node)
    try:
        executor.spin()
    except ExternalShutdownException:
        pass
    except RuntimeError:  # what rclpy makes of its own end while it publishes or waits
        if rclpy.ok():
            raise
    finally:
        node.close()
        executor.shutdown()
        node.destroy_node()
        rclpy.try_shutdown()
    return 0


if __name__ == '__main__':
    sys.exit(main())
