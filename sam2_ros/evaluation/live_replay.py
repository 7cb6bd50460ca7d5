"""Live replay: a recording played over DDS to a node process, at the recorded times."""
from __future__ import annotations

import contextlib
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import rclpy
import yaml
from domain_coordinator import domain_id
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.publisher import Publisher
from rclpy.qos import QoSProfile
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from std_msgs.msg import Header

from sam2_core import Sam2Model
from sam2_core.metrics import iou
from sam2_ros.evaluation.metrics import Agreement
from sam2_ros.evaluation.results import Answer, FrameOutput, Mode, ObjectOutput, Run, action_name
from sam2_ros.evaluation.stopwatch import peak_resident_memory
from sam2_ros.evaluation.versions import versions
from sam2_ros.messages.conversions import ImageError, to_nanoseconds, to_rgb
from sam2_ros.msg import InstanceArray, Prompt, PromptStatus
from sam2_ros.perception.instance_messages import tracked_object
from sam2_ros.recordings.recording import RecordedPrompt, Recording, RecordingError
from sam2_ros.runtime.child_process import ChildProcess
from sam2_ros.runtime.dds import image_profile_environment
from sam2_ros.runtime.parameters import Parameters

PATIENCE = 120.0  # seconds until the node has loaded its model and answers
STOP_PATIENCE = 10.0  # seconds between SIGINT and SIGKILL
QUIET = 3.0  # seconds without a result after which the node is taken to be idle; a slow node gets more


class NodeFailed(RuntimeError):
    """Failure of the node: it ended or did not answer. The text has the end of its log."""


def run_live(recording: Recording, model: Sam2Model, parameters: Parameters, *, rate: float = 1.0,
             progress: Callable[[int], None] = lambda index: None) -> Run:
    """Play a recording to a node and return what the node published.

    The node runs in its own process, in a ROS domain that nothing else uses, and communicates with this machine only.

    Args:
        recording: Recording to play.
        model: Model that the parameters name; the run states its version.
        parameters: Parameters of the node.
        rate: Speed relative to the recording.
        progress: Function that is called with the index of each image that is published.

    Raises:
        NodeFailed: The node ended or did not answer.
        RecordingError: No image can be used.
    """
    started = time.monotonic()
    result = Run(recording.name, Mode.LIVE, rate, len(recording.stamps), 0, 0, dict(recording.labels),
                 parameters=asdict(parameters), versions=versions(model))
    if not recording.stamps:
        return result
    os.environ.update(image_profile_environment(), ROS_AUTOMATIC_DISCOVERY_RANGE='LOCALHOST')
    first = _first_image(recording)
    depth = _first_depth(recording)
    chosen = replace(parameters, autostart=True, cameras=(), detections_topic='', target_frame='', publish_tf=False,
                     keep_objects='',  # the file is a robot's
                     image_transport='compressed' if isinstance(first, CompressedImage) else 'raw',
                     depth_transport='compressedDepth' if depth is CompressedImage else 'raw',
                     image_transports=(), depth_transports=())
    with domain_id() as domain, tempfile.TemporaryDirectory() as folder, \
            contextlib.closing(_NodeProcess(domain, Path(folder), chosen)) as node, \
            contextlib.closing(_Player(domain, recording, type(first), depth, node)) as player:
        player.wait_until_ready(first)
        player.play(rate, progress)
        result.peak_memory = peak_resident_memory(node.pid)
    player.fill_in(result)
    result.wall_seconds = time.monotonic() - started
    return result


def agreement(a: Run, b: Run) -> Agreement:
    """Return the similarity of the masks of two runs, as J.

    J counts in the images that both runs processed and in which at least one of them has a mask of the object.
    """
    others = {frame.index: frame for frame in b.frames}
    values: dict[int, list[float]] = {}
    for frame in a.frames:
        if frame.index not in others:
            continue
        pair = frame.objects, others[frame.index].objects
        for number in sorted(pair[0].keys() | pair[1].keys()):
            size = a.size_of(frame)
            masks = [objects[number].mask(*size) if number in objects else np.zeros(size, bool) for objects in pair]
            if masks[0].any() or masks[1].any():
                values.setdefault(number, []).append(iou(*masks))
    objects = {number: float(np.mean(found)) for number, found in sorted(values.items())}
    return Agreement(float(np.mean([*objects.values()])) if objects else None, objects,
                     sum(frame.index in others for frame in a.frames))


def _first_image(recording: Recording) -> Image | CompressedImage:
    """Return the first image that the node can use; it is published until the node answers."""
    failure = ''
    for index in range(len(recording.stamps)):
        try:
            image = recording.image(index)
            to_rgb(image)
            return image
        except (ImageError, RecordingError) as error:
            failure = failure or str(error)
    raise RecordingError(f'{recording.name}: none of its {len(recording.stamps)} images can be used; {failure}')


def _first_depth(recording: Recording) -> type[Image] | type[CompressedImage]:
    """Return the type of the first depth image that can be read; Image if there is none."""
    for index in range(len(recording.stamps)):
        with contextlib.suppress(RecordingError):
            depth = recording.depth(index)
            if depth is not None:
                return type(depth[0])
    return Image


class _NodeProcess(ChildProcess):
    """``python -m sam2_ros.node`` with its parameters in a file."""

    def __init__(self, domain: int, folder: Path, parameters: Parameters) -> None:
        file = folder / 'parameters.yaml'
        # ROS cannot tell the type of an empty array; the node takes [''] for one.
        values = {name: [*value] or [''] if isinstance(value, tuple) else value
                  for name, value in asdict(parameters).items()}
        file.write_text(yaml.safe_dump({'/**': {'ros__parameters': values}}))
        super().__init__([sys.executable, '-m', 'sam2_ros.node', '--ros-args', '--params-file', str(file)],
                         {**os.environ, 'ROS_DOMAIN_ID': str(domain), 'ROS_LOG_DIR': str(folder)}, folder / 'node.log')

    def check(self) -> None:
        """Raise NodeFailed if the process has ended."""
        if not self.running:
            raise self.failed(f'the node ended with {self.exit_code}')

    def failed(self, what: str) -> NodeFailed:
        """Return an error with the end of the log."""
        return NodeFailed(f'{what}; its log ends:\n{self.log_tail()}')

    def close(self) -> None:
        """Stop the process."""
        self.stop(patience=STOP_PATIENCE)


class _Player:
    """Camera, user and planner: publishes at the recorded times and records the answers with their times of arrival."""

    def __init__(self, domain: int, recording: Recording, kind: type, depth: type, node: _NodeProcess) -> None:
        """Create publishers and subscriptions; ``kind`` and ``depth``: types of the images and of their depth."""
        self._recording, self._process = recording, node
        self._frames: list[tuple[int, InstanceArray]] = []  # with the time.monotonic_ns() of their arrival
        self._statuses: list[tuple[int, PromptStatus]] = []
        self._problems: list[str] = []  # depth that could not be published
        self._start = self._first = 0  # one moment by time.monotonic_ns() and by the clock of the recording
        self._rate = 1.0
        self._context = rclpy.Context()
        rclpy.init(args=[], context=self._context, domain_id=domain)
        self._node = rclpy.create_node('player', context=self._context)
        reliable = QoSProfile(depth=100)
        self._images = self._node.create_publisher(kind, 'image' if kind is Image else 'image/compressed',
                                                   QoSProfile(depth=5))
        self._depth = self._node.create_publisher(depth, 'depth' if depth is Image else 'depth/compressedDepth',
                                                  QoSProfile(depth=5))
        self._infos = self._node.create_publisher(CameraInfo, 'camera_info', QoSProfile(depth=5))
        self._prompts = self._node.create_publisher(Prompt, 'sam2/prompt', reliable)
        self._node.create_subscription(InstanceArray, 'sam2/instances',
                                       lambda message: self._frames.append((time.monotonic_ns(), message)), reliable)
        self._node.create_subscription(PromptStatus, 'sam2/prompt_status',
                                       lambda message: self._statuses.append((time.monotonic_ns(), message)), reliable)
        self._executor = SingleThreadedExecutor(context=self._context)
        self._executor.add_node(self._node)
        self._thread = threading.Thread(target=self._spin, name='player', daemon=True)
        self._thread.start()

    def close(self) -> None:
        rclpy.try_shutdown(context=self._context)
        self._thread.join()
        self._executor.shutdown()
        self._node.destroy_node()

    def _spin(self) -> None:
        with contextlib.suppress(ExternalShutdownException):
            self._executor.spin()

    # --- before

    def wait_until_ready(self, image: Image | CompressedImage) -> None:
        """Wait until the node receives prompts and images, and its answers arrive.

        The image is published without a stamp, so that it neither matches a prompt nor advances the node's time.

        Raises:
            NodeFailed: The node ended or did not answer within PATIENCE.
        """
        with _without_stamp(image):
            self._repeat(lambda: self._prompts.publish(Prompt(action=Prompt.REMOVE, id=65535)),
                         lambda: self._statuses, 'answer prompts')
            self._repeat(lambda: self._images.publish(image), lambda: self._frames, 'process images')
        self._wait_for_quiet(0.5)
        self._frames.clear()
        self._statuses.clear()

    def _repeat(self, send: Callable[[], None], answered: Callable[[], object], what: str) -> None:
        """Call ``send`` repeatedly until there is an answer; ``what``: what the node does then, for the error."""
        deadline = time.monotonic() + PATIENCE
        while not answered():
            if time.monotonic() > deadline:
                raise self._process.failed(f'the node did not {what} within {PATIENCE:g} s')
            self._process.check()
            send()
            self._wait(answered, 0.5)

    def _wait(self, condition: Callable[[], object], seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not condition() and time.monotonic() < deadline:
            time.sleep(0.005)

    # --- playing

    def play(self, rate: float, progress: Callable[[int], None]) -> None:
        """Publish images and prompts at their recorded times, ``rate`` times as fast, and wait for the answers.

        Raises:
            NodeFailed: The node ended.
        """
        recording = self._recording
        events: list[tuple[int, int | RecordedPrompt]] = []
        events += [(arrival, index) for index, arrival in enumerate(recording.arrivals)]
        events += [(prompt.arrival, prompt) for prompt in recording.prompts]
        events.sort(key=lambda event: event[0])
        self._rate, self._first = rate, events[0][0]
        self._start = time.monotonic_ns()
        for arrival, event in events:
            if isinstance(event, RecordedPrompt):
                self._sleep_until(arrival)
                self._prompts.publish(event.message)
                continue
            index = event
            with contextlib.suppress(RecordingError):  # ``fill_in`` reports images that cannot be read
                messages = self._read(index)
                self._sleep_until(arrival)
                for publisher, message in messages:
                    publisher.publish(message)
            self._process.check()
            progress(index)
        self._wait_for_quiet(QUIET)

    def _read(self, index: int) -> list[tuple[Publisher, Any]]:
        """Return the messages of an image, each with its publisher."""
        image = self._recording.image(index)
        try:
            depth = self._recording.depth(index)
        except RecordingError as error:
            depth = None
            self._problems.append(f'depth of image {index} skipped: {error}')
        before = [] if depth is None else [(self._infos, depth[1]), (self._depth, depth[0])]
        return [*before, (self._images, image)]

    def _sleep_until(self, arrival: int) -> None:
        due = self._start + (arrival - self._first) / self._rate
        time.sleep(max(0.0, (due - time.monotonic_ns()) / 1e9))

    def _wait_for_quiet(self, seconds: float) -> None:
        """Wait until nothing has arrived for this time, and for three times the longest pause so far."""
        began = time.monotonic_ns()
        while True:
            times = [moment for moment, _ in (*self._frames, *self._statuses)] or [began]
            pause = max(np.diff(sorted(times)), default=0) / 1e9
            rest = max(seconds, 3 * pause) - (time.monotonic_ns() - max(max(times), began)) / 1e9
            if rest <= 0:
                return
            self._process.check()
            time.sleep(min(rest, 0.1))

    # --- after

    def fill_in(self, result: Run) -> None:
        """Add the received messages to the run."""
        places = {stamp: index for index, stamp in enumerate(self._recording.stamps)}
        processed = set()
        for moment, message in self._frames:
            index = places.get(to_nanoseconds(message.header.stamp))
            if index is None or index in processed:
                continue
            processed.add(index)
            if not result.frames:
                result.height, result.width = message.height, message.width
            result.frames.append(FrameOutput(
                index, self._recording.stamps[index], self._clock(moment),
                {item.id: ObjectOutput.of(tracked_object(item, message.height, message.width))
                 for item in message.instances}, dropped=message.dropped, size=(message.height, message.width)))
            result.labels.update({item.id: item.label for item in message.instances if item.label})
        for index in range(result.images):
            if index not in processed:
                try:
                    to_rgb(self._recording.image(index))
                except (ImageError, RecordingError) as error:
                    result.unusable[index] = str(error)
        result.problems += self._problems
        result.answers += self._answers()

    def _clock(self, moment: int) -> int:
        """Return a time.monotonic_ns() on the clock of the recording, nanoseconds."""
        return self._first + round((moment - self._start) * self._rate)

    def _answers(self) -> Iterator[Answer]:
        waiting = sorted(self._recording.prompts, key=lambda prompt: prompt.arrival)
        for moment, status in self._statuses:
            prompt = _asked(status, waiting)
            if prompt is not None:
                waiting.remove(prompt)
                yield _answer(prompt, status.id, status.accepted, status.reason,
                              to_nanoseconds(status.header.stamp), self._clock(moment))
        for prompt in waiting:
            yield _answer(prompt, prompt.message.id, False, 'no answer from the node', 0, 0)


def _asked(status: PromptStatus, waiting: list[RecordedPrompt]) -> RecordedPrompt | None:
    """Return the prompt that a status answers: one for its object, preferably on its image."""
    found = [prompt for prompt in waiting if prompt.message.id in (status.id, 0)]
    return min(found, default=None, key=lambda prompt: (prompt.message.header.stamp != status.header.stamp,
                                                        prompt.message.id != status.id))


def _answer(prompt: RecordedPrompt, number: int, accepted: bool, reason: str, stamp: int, answered: int) -> Answer:
    message = prompt.message
    return Answer(prompt.arrival, to_nanoseconds(message.header.stamp), action_name(message.action), number,
                  message.label, accepted, reason, stamp if accepted else None, answered)


@contextlib.contextmanager
def _without_stamp(message: Image | CompressedImage) -> Iterator[None]:
    header, message.header = message.header, Header(frame_id=message.header.frame_id)
    try:
        yield
    finally:
        message.header = header
