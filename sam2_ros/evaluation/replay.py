"""A recording put through what the node does with one camera, in this process and without topics."""
from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import math
import platform
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from xml.etree import ElementTree

import cv2
import numpy as np
import torch
from ament_index_python import get_package_share_directory
from rclpy.serialization import serialize_message
from sensor_msgs.msg import CameraInfo, Image

from sam2_core import Sam2Model, StreamTracker
from sam2_ros.depth.matching import DepthMailbox
from sam2_ros.evaluation.delivery import deliveries
from sam2_ros.evaluation.results import TOTAL, Answer, FrameOutput, ObjectOutput, Run
from sam2_ros.evaluation.stopwatch import PeakMemory, Stopwatch
from sam2_ros.messages.conversions import to_nanoseconds
from sam2_ros.msg import Prompt
from sam2_ros.perception.camera_pipeline import CameraPipeline
from sam2_ros.perception.frame import Frame
from sam2_ros.perception.inbox import Inbox
from sam2_ros.perception.instance_messages import instance_array
from sam2_ros.perception.prompt_plan import PromptAnswer, PromptRequest, refuse
from sam2_ros.perception.worker import step, step_aside
from sam2_ros.recordings.recording import RecordedPrompt, Recording, RecordingError
from sam2_ros.runtime.parameters import Parameters

ASIDE = 'aside'
REASONS = 5  # why depth is not used: the most frequent ones are told
ENDED = 'the recording ended before it could be applied'
ACTIONS = {getattr(Prompt, name): name for name in ('SET', 'REFINE', 'REMOVE', 'CLEAR')}


def run(recording: Recording, model: Sam2Model, parameters: Parameters, mode: str = 'lock-step', *, rate: float = 1.0,
        timer: Callable[[], float] = time.perf_counter, progress: Callable[[int], None] = lambda index: None) -> Run:
    """Put a recording through a warm model; what came of it.

    mode: ``lock-step``: every image in order, none dropped, and every prompt with the image it was drawn on: the same
    to the last bit each time. ``real-time``: on a simulated clock that advances by the time the work takes on this
    machine, images and prompts come when they were recorded; the newest image wins, late prompts are late.
    rate: real-time: how many times as fast they come. timer: seconds, measures the work. progress: is told the index of
    each image when its turn comes. ValueError for another mode or a rate that is not positive.
    """
    if mode not in ('lock-step', 'real-time'):
        raise ValueError(f"mode '{mode}': must be lock-step or real-time")
    if not (rate > 0 and math.isfinite(rate)):
        raise ValueError(f'rate {rate:g}: must be positive')
    started, memory = time.monotonic(), PeakMemory(model)
    deterministic = torch.backends.cudnn.deterministic
    torch.backends.cudnn.deterministic = True
    replay = _Replay(recording, model, parameters, mode, rate, timer, progress)
    try:
        with replay.watch.watch_model():
            if mode == 'lock-step':
                replay.lock_step()
            else:
                replay.real_time()
    finally:
        torch.backends.cudnn.deterministic = deterministic
    result = replay.result
    result.peak_memory, result.peak_gpu_memory = memory.process, memory.gpu
    result.wall_seconds = time.monotonic() - started
    return result


class _Replay:
    """A camera whose images and prompts come from a recording, and whose results go into a ``Run``.

    It is served by the worker's own functions (``ServedCamera``), on a clock that is the recording's.
    """

    def __init__(self, recording: Recording, model: Sam2Model, parameters: Parameters, mode: str, rate: float,
                 timer: Callable[[], float], progress: Callable[[int], None]) -> None:
        changed = threading.Condition()
        self.watch = Stopwatch(model, timer)
        self.result = Run(recording.name, mode, rate, len(recording.stamps), 0, 0, dict(recording.labels),
                          parameters=asdict(parameters), versions=versions(model))
        self.closed = False
        self._recording = recording
        self._progress = progress
        self._depth = DepthMailbox(changed) if parameters.use_depth else None
        # the depth of an image is there before the image: there is nothing to wait for
        chosen = replace(parameters, depth_wait=0.0)
        if mode == 'lock-step':
            chosen = replace(chosen, latency_target=0.0)  # there is no latency, and no load to shed
        self.pipeline = CameraPipeline(StreamTracker(model), chosen, changed, recording.name, _Silence(), self._depth)
        self._asked: dict[PromptRequest, RecordedPrompt] = {}
        self._with_depth: set[int] = set()  # images whose depth the recording has
        self._unused_depth: Counter[str] = Counter()  # reason -> images
        self._arrivals = arrivals(recording)
        self._offered: int | None = None  # index of the image that is to be processed next
        self._working = contextlib.ExitStack()  # the stage of the stopwatch that lasts until ``publish``
        self._clock: Callable[[float], int] = round  # from the seconds that the work took to the recording's time, ns
        self._done = 0  # ns of the recording, when the last work was done

    # --- modes

    def lock_step(self) -> None:
        """Process every image in order, each prompt with the image it was drawn on."""
        prompts = deliveries(self._recording)
        for index, arrival in enumerate(self._recording.arrivals):
            self._clock = lambda seconds, arrival=arrival: arrival
            self._ask(prompts.pop(index, ()))
            self._offer(index)
            self._serve()
            while self.pipeline.has_work_aside():
                self._work_aside()
        self._ask([prompt for rest in prompts.values() for prompt in rest])
        self._end()

    def real_time(self) -> None:
        """Process images and prompts as they were recorded, on a clock that advances by the time the work takes."""
        events = [(arrival, self._offer, index) for index, arrival in enumerate(self._recording.arrivals)]
        events += [(prompt.arrival, self._ask, [prompt]) for prompt in self._recording.prompts]
        coming = deque(sorted(events, key=lambda event: event[0]))
        self._done = coming[0][0] if coming else 0
        # the clock of the recording is faster than that of the machine by the rate
        self._clock = lambda seconds: self._done + round(seconds * 1e9 * self.result.rate)
        while True:
            while coming and coming[0][0] <= self._done:
                _, deliver, what = coming.popleft()
                deliver(what)
            if self.pipeline.inbox.waiting_since() is not None:
                self._serve()
            elif not self.pipeline.has_work_aside():
                if not coming:
                    break
                self._done = coming[0][0]
                continue
            if self.pipeline.has_work_aside():
                self._work_aside()
        self._end()

    # --- in

    def _ask(self, prompts: Sequence[RecordedPrompt]) -> None:
        for prompt in prompts:
            # nobody waits on the wall clock: a prompt never expires
            request = PromptRequest(prompt.message, math.inf)
            self._asked[request] = prompt
            if not self.pipeline.inbox.put_prompt(request):
                self._answer([refuse(request, f'{Inbox.PROMPT_LIMIT} prompts are waiting already')], prompt.arrival)

    def _offer(self, index: int) -> None:
        try:
            message = self._recording.image(index)
        except RecordingError as error:
            self.result.unusable[index] = str(error)
            self._progress(index)
            return
        arrived = self._arrivals[index] / 1e9
        depth = self._depth_of(index)
        if self._depth is not None and depth is not None:
            self._with_depth.add(index)
            self._depth.put_info(depth[1])
            self._depth.put_depth(depth[0], arrived)
        if self.pipeline.put_image(message, arrived):
            self._offered = index
        else:
            self.result.unusable[index] = self.pipeline.skipped.reason
        self._progress(index)

    def _depth_of(self, index: int) -> tuple[Image, CameraInfo] | None:
        """Return the depth of an image; one that cannot be read costs the image nothing else."""
        try:
            return self._recording.depth(index) if self._depth is not None else None
        except RecordingError as error:
            self.result.problems.append(f'depth of image {index} left out: {error}')
            return None

    # --- work

    def _serve(self) -> None:
        """Process what has arrived."""
        with self._working:
            self._working.enter_context(self.watch.stage(TOTAL))
            with self.watch.stage('decode'):
                self.pipeline.take()
            step(self)

    def _work_aside(self) -> None:
        with self._working:
            self._working.enter_context(self.watch.stage(ASIDE))
            step_aside(self)

    def propose_prompts(self) -> None:
        """Do nothing: the prompts are recorded."""

    def publish(self, frame: Frame | None, answers: list[PromptAnswer]) -> float:
        """Build the message that the node would publish, and record what came of the image and the prompts."""
        if frame is not None:
            with self.watch.stage('publish'):
                serialize_message(instance_array(frame, failures=self.pipeline.failures))
        self._working.close()  # what follows is not the node's work
        stages = self.watch.take()
        aside = ASIDE in stages
        self._done = self._clock(stages[ASIDE if aside else TOTAL])
        if not aside:
            index, self._offered = self._offered, None
            if frame is not None:
                self._record(index, frame, stages)
            elif index is not None and self.pipeline.skipped.reason:
                self.result.unusable[index] = self.pipeline.skipped.reason
        self._answer(answers, self._done)
        return 0.0 if frame is None else (self._done - to_nanoseconds(frame.header.stamp)) / 1e9 / self.result.rate

    def now(self) -> float:
        """Return the time of the recording in seconds of this machine."""
        return self._done / 1e9 / self.result.rate

    # --- out

    def _record(self, index: int, frame: Frame, stages: dict[str, float]) -> None:
        if not self.result.frames:
            self.result.height, self.result.width = frame.image.shape[:2]
        self.result.frames.append(FrameOutput(
            index, to_nanoseconds(frame.header.stamp), self._done,
            {item.id: ObjectOutput.of(item) for item in frame.objects}, stages, frame.dropped, frame.image.shape[:2]))
        if self._depth is not None and index in self._with_depth and frame.depth is None:
            self._unused_depth[self._depth.report.reason] += 1
        self.result.labels.update({item.id: item.label for item in frame.objects if item.label})

    def _answer(self, answers: Sequence[PromptAnswer], now: int) -> None:
        for answer in answers:
            prompt = self._asked.pop(answer.request)
            message = prompt.message
            self.result.answers.append(Answer(
                prompt.arrival, to_nanoseconds(message.header.stamp), ACTIONS.get(message.action, str(message.action)),
                answer.id, message.label, answer.accepted, answer.reason,
                to_nanoseconds(answer.header.stamp) if answer.accepted else None, now))

    def _end(self) -> None:
        self._answer(self.pipeline.drain(ENDED), self._done)
        self.result.failures = self.pipeline.failures.totals()
        self.result.problems += [f'depth not used in {count} of {len(self._with_depth)} images: {reason}'
                                 for reason, count in self._unused_depth.most_common(REASONS)]


def arrivals(recording: Recording) -> Sequence[int]:
    """Return the times, ns, by which an odd stamp of an image is told from a pause of the camera.

    They are those at which the images were recorded; where these hardly advance, as in a converted bag that has one
    time for all of its messages, the stamps themselves.
    """
    if len(recording.stamps) < 2:
        return recording.arrivals
    recorded, stamped = (float(np.median(np.diff(times))) for times in (recording.arrivals, recording.stamps))
    return recording.arrivals if recorded >= stamped / 2 else recording.stamps


class _Silence:
    """Log of a camera that nobody reads: what is worth to be said is in the result."""

    def warning(self, text: str, **options) -> None:
        pass

    error = warning


def versions(model: Sam2Model) -> dict[str, str]:
    """What took part, as far as it may change an answer."""
    weights = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        weights.update(name.encode())
        weights.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy() if tensor.ndim else b'')
    gpu = model.device.type == 'cuda'
    return {
        'sam2_ros': _own_version(), 'python': platform.python_version(),
        'torch': torch.__version__, 'numpy': np.__version__, 'opencv': cv2.__version__,
        'model': f'{model.name}, {model.image_size} pixels, {str(model.dtype).removeprefix("torch.")}',
        'weights': weights.hexdigest()[:16],
        'device': torch.cuda.get_device_name(model.device) if gpu else f'CPU, {torch.get_num_threads()} threads',
        'machine': f'{platform.system()} {platform.machine()}'}


def _own_version() -> str:
    try:
        return importlib.metadata.version('sam2_ros')
    except importlib.metadata.PackageNotFoundError:  # built by colcon
        package = Path(get_package_share_directory('sam2_ros'), 'package.xml')
        return ElementTree.parse(package).findtext('version')
