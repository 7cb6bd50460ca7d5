"""Status of the node on /diagnostics, once a second, in every lifecycle state."""
from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import monotonic

import torch
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from rclpy.clock import Clock, ClockType
from rclpy.lifecycle import LifecycleNode
from rclpy.qos import QoSProfile

from sam2_core import Sam2Model
from sam2_ros.perception.kept_objects import KeptObjects
from sam2_ros.perception.load_shedding import LoadShedder, why_unusable
from sam2_ros.perception.meter import WINDOW, Meter, Snapshot
from sam2_ros.runtime.failures import Failures
from sam2_ros.runtime.namesakes import Namesakes
from sam2_ros.runtime.node_parameters import read_parameters
from sam2_ros.runtime.parameters import Parameters

SILENT = 2.0  # seconds without an image
STALLED = 10.0  # seconds without a result while images arrive
OK, WARN, ERROR = DiagnosticStatus.OK, DiagnosticStatus.WARN, DiagnosticStatus.ERROR
CURES = {'unconfigured': 'ros2 lifecycle set {node} configure', 'inactive': 'ros2 lifecycle set {node} activate'}


@dataclass(frozen=True)
class WatchedCamera:
    """The parts of a camera that diagnostics read."""

    name: str  # empty: the only camera
    topic: str  # full name of the image topic
    meter: Meter
    shedder: LoadShedder
    history: Callable[[], tuple[int, int, float]]  # images, bytes and seconds that are stored
    failures: Failures | None = None  # failed steps of its work
    intensity: Callable[[], str] = str  # range of 16-bit images, if it is chosen from them
    kept: KeptObjects | None = None  # file of its objects


@dataclass(frozen=True)
class LoadedModel:
    """Description of a loaded model. It holds no reference to the model, so that cleanup frees it."""

    name: str
    device: str
    dtype: str
    image_size: int


class Diagnostics:
    """Publisher of /diagnostics, on a steady clock that neither simulated time nor a bag can stop.

    The node calls ``loaded`` or ``not_loaded`` on configure and ``freed`` on cleanup. It sets ``worker_alive`` on
    activate, and to None on deactivate. All other figures come from the cameras' meters.
    """

    def __init__(self, node: LifecycleNode, failures: Failures | None = None) -> None:
        """``failures`` are those of the node's callbacks."""
        self._failures = failures
        self.worker_alive: Callable[[], bool] | None = None
        self._node = node
        self._namesakes = Namesakes(node)
        self._model: LoadedModel | None = None
        self._failure = ''
        self._cameras: list[WatchedCamera] = []
        # a lifecycle publisher would publish only while the node is active
        self._publisher = node.create_publisher(DiagnosticArray, '/diagnostics', QoSProfile(depth=10))
        node.create_timer(1.0, self._publish, clock=Clock(clock_type=ClockType.STEADY_TIME))

    def loaded(self, model: Sam2Model, dtype: str, cameras: list[WatchedCamera]) -> None:
        """Report a loaded model and the cameras that use it."""
        self._model = LoadedModel(model.name, str(model.device), dtype, model.image_size)
        self._failure = ''
        self._cameras = cameras

    def not_loaded(self, reason: str) -> None:
        """Report why no model could be loaded."""
        self.freed()
        self._failure = reason

    def freed(self) -> None:
        """Report that no model is loaded, without an error."""
        self._model, self._failure, self._cameras = None, '', []

    def _publish(self) -> None:
        if not self._node.context.ok():
            return
        now = monotonic()
        state = self._node._state_machine.current_state[1]
        name = self._node.get_fully_qualified_name()
        alive = None if self.worker_alive is None else self.worker_alive()
        parameters = read_parameters(self._node)
        statuses = [model_status(name, state, self._model, self._failure, alive, failed=_failed(self._failures, now),
                                 failed_count=0 if self._failures is None else self._failures.count,
                                 namesakes=self._namesakes.look())]
        hardware = '' if self._model is None else self._model.device
        statuses += [camera_status(name, hardware, state, camera, parameters, now) for camera in self._cameras]
        array = DiagnosticArray(status=statuses)
        array.header.stamp = self._node.get_clock().now().to_msg()
        self._publisher.publish(array)


def model_status(node: str, state: str, model: LoadedModel | None, failure: str,
                 worker_alive: bool | None, *, failed: Sequence[str] = (), failed_count: int = 0,
                 namesakes: str = '') -> DiagnosticStatus:
    """Return the status of the model, of the worker thread, and of the node's callbacks and name.

    Args:
        node: Full name of the node.
        state: Lifecycle state.
        model: The loaded model, or None.
        failure: Why no model could be loaded; empty if none was requested.
        worker_alive: Whether the worker runs; None if it should not.
        failed: Callbacks that failed in the last seconds, with the reason.
        failed_count: Number of failed callbacks since the start.
        namesakes: Problem with the node's name; empty if there is none.
    """
    values: dict[str, object] = {'state': state, 'failed callbacks': failed_count}
    if model is not None:
        values |= {'model': model.name, 'device': model.device, 'dtype': model.dtype, 'image size': model.image_size}
        values |= gpu_memory(model.device)
    level, message = OK, state
    if failure:
        level, message = ERROR, f'{state}, the model cannot be loaded: {failure}'
    elif worker_alive is False:
        level, message = ERROR, 'the worker has died, see the log: deactivate and activate the node'
    elif failed:
        level, message = ERROR, f'{state}, {"; ".join(failed)}; the log has the traceback'
    elif state in CURES:
        message = f'{state}: {CURES[state].format(node=node)}'
    elif model is not None:
        message = f'{state}: {model.name} on {model.device}'
    if namesakes:
        level, message = (WARN, f'{namesakes}; {message}') if level == OK else (level, f'{message}; {namesakes}')
    return _status(node, 'model', '' if model is None else model.device, level, message, values)


def gpu_memory(device: str) -> dict[str, int]:
    """Return the bytes of GPU memory that tensors use and that PyTorch holds; empty for a CPU."""
    if not device.startswith('cuda'):
        return {}
    return {'GPU memory allocated (bytes)': torch.cuda.memory_allocated(device),
            'GPU memory reserved (bytes)': torch.cuda.memory_reserved(device)}


def camera_status(node: str, hardware: str, state: str, camera: WatchedCamera,
                  parameters: Parameters, now: float) -> DiagnosticStatus:
    """Return the status of one camera: problems in the message, worst first, and figures in the values.

    Args:
        node: Full name of the node.
        hardware: Device of the model.
        state: Lifecycle state.
        camera: The camera.
        parameters: Those of the node.
        now: Seconds, time.monotonic().
    """
    seen = camera.meter.snapshot(now)
    problems = _problems(seen, camera, parameters, now) if state == 'active' else []
    level = max((level for level, _ in problems), default=OK)
    texts = [text for wanted in (ERROR, WARN) for found, text in problems if found == wanted]
    if not texts and state == 'active':
        texts = [f'{seen.processed_rate:.1f} of {seen.input_rate:.1f} images/s, '
                 f'{seen.tracked + seen.occluded + seen.lost} objects']
    name = f'camera {camera.name}' if camera.name else 'camera'
    return _status(node, name, hardware, level, '; '.join(texts) or state, _values(seen, camera, parameters, now))


def _problems(seen: Snapshot, camera: WatchedCamera, parameters: Parameters,
              now: float) -> list[tuple[bytes, str]]:
    """Return the level (``DiagnosticStatus`` has bytes) and the text of each problem."""
    shedder, found = camera.shedder, []
    if seen.failed:
        found.append((ERROR, f'the model fails on images: {seen.failed}'))
    found += [(ERROR, text) for text in _failed(camera.failures, now)]
    if camera.kept is not None and camera.kept.problem:
        found.append((WARN, camera.kept.problem))
    if seen.silence > SILENT:
        cure = 'has the camera stopped?' if seen.images else 'is the camera running? QoS? sam2_check finds out'
        found.append((WARN, f'no image on {camera.topic} for {seen.silence:.1f} s: {cure}'))
    if seen.skipped:
        found.append((WARN, f'images on {camera.topic} cannot be used: {seen.skipped}'))
    if seen.stalled > STALLED:
        found.append((WARN, f'images arrive, none has been finished for {seen.stalled:.0f} s: is the model too large '
                            f'for this machine, or is ~/segment_all at work?'))
    if seen.depth_missing:
        found.append((WARN, f'{seen.depth_missing} of {seen.depth_matched + seen.depth_missing} images have no depth: '
                            f'{seen.depth_reason}'))
    if seen.depth_doubt:
        found.append((WARN, seen.depth_doubt))
    if seen.transforms_missing:
        found.append((WARN, f"{seen.transforms_missing} of {seen.transforms_found + seen.transforms_missing} images "
                            f"have no position in target_frame '{parameters.target_frame}': {seen.transform_reason}"))
    if seen.latencies and (clock := why_unusable(seen.latencies[0])):
        found.append((WARN, clock))
    if parameters.latency_target > 0:
        if shedder.missed:
            found.append((WARN, f'latency_target {parameters.latency_target:g} s is not held (p95 '
                                f'{seen.latencies[1] if seen.latencies else 0:.3f} s)'))
        if shedder.level:
            found.append((WARN, f'load shedding level {shedder.level}: {shedder.level.description}'))
    return found


def _values(seen: Snapshot, camera: WatchedCamera, parameters: Parameters, now: float) -> dict[str, object]:
    p50, p95, p99 = (f'{1000 * value:.1f}' for value in seen.latencies) if seen.latencies else ('', '', '')
    images, history_bytes, seconds = camera.history()
    return {
        'topic': camera.topic,
        'input rate (images/s)': f'{seen.input_rate:.2f}', 'processed rate (images/s)': f'{seen.processed_rate:.2f}',
        'latency p50 (ms)': p50, 'latency p95 (ms)': p95, 'latency p99 (ms)': p99,
        'latency target (ms)': f'{1000 * parameters.latency_target:g}',
        'load shedding level': int(camera.shedder.level),
        'dropped': seen.dropped, 'dropped since activation': seen.dropped_in_all,
        'objects tracked': seen.tracked, 'objects occluded': seen.occluded, 'objects lost': seen.lost,
        'tracker memory (bytes)': seen.memory_bytes,
        'history (images)': images, 'history (bytes)': history_bytes, 'history (s)': f'{seconds:.2f}',
        'late prompts catching up': seen.catching_up,
        'depth matched': seen.depth_matched, 'depth missing': seen.depth_missing,
        'depth missing because': seen.depth_reason, 'depth doubtful because': seen.depth_doubt,
        'range of 16-bit images': camera.intensity(),
        'transforms found': seen.transforms_found, 'transforms missing': seen.transforms_missing,
        'transform missing because': seen.transform_reason,
        'failed steps since configuration': 0 if camera.failures is None else camera.failures.count,
        **_kept_values(camera.kept, now), 'window (s)': f'{WINDOW:g}'}


def _kept_values(kept: KeptObjects | None, now: float) -> dict[str, str]:
    if kept is None:
        return {}
    return {'objects kept in': str(kept.path),
            'objects saved (s ago)': '' if kept.saved is None else f'{now - kept.saved:.1f}'}


def _failed(failures: Failures | None, now: float) -> list[str]:
    return [] if failures is None else failures.recent(now)


def _status(node: str, name: str, hardware: str, level: bytes, message: str,
            values: dict[str, object]) -> DiagnosticStatus:
    return DiagnosticStatus(level=level, name=f'{node.lstrip("/")}: {name}', message=message, hardware_id=hardware,
                            values=[KeyValue(key=key, value=str(value)) for key, value in values.items()])
