"""Replay of a recording in this process: lock-step or real-time, by the node's own code and without topics."""
from __future__ import annotations

import contextlib
import math
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from rclpy.serialization import serialize_message
from sensor_msgs.msg import CameraInfo

from sam2_core import Sam2Model, StreamTracker
from sam2_ros.depth.depth_messages import DepthMessage
from sam2_ros.depth.matching import DepthMailbox
from sam2_ros.evaluation.delivery import deliveries
from sam2_ros.evaluation.results import TOTAL, Answer, FrameOutput, Mode, ObjectOutput, Run, action_name
from sam2_ros.evaluation.stopwatch import PeakMemory, Stopwatch, TimedModel
from sam2_ros.evaluation.versions import versions
from sam2_ros.messages.conversions import to_nanoseconds
from sam2_ros.perception.camera_pipeline import CameraPipeline
from sam2_ros.perception.frame import Frame
from sam2_ros.perception.inbox import Inbox
from sam2_ros.perception.instance_messages import instance_array
from sam2_ros.perception.prompt_plan import PromptAnswer, PromptRequest, refuse
from sam2_ros.perception.worker import step, step_aside
from sam2_ros.recordings.recording import RecordedPrompt, Recording, RecordingError
from sam2_ros.runtime.parameters import Parameters

ASIDE = 'aside'  # stage of the work on late prompts
REASONS = 5  # most frequent reasons for unused depth, reported per run
ENDED = 'the recording ended before it could be applied'


def run(recording: Recording, model: Sam2Model, parameters: Parameters, mode: Mode | str = Mode.LOCK_STEP, *,
        rate: float = 1.0, timer: Callable[[], float] = time.perf_counter,
        progress: Callable[[int], None] = lambda index: None) -> Run:
    """Process a recording and return the outputs.

    In lock-step every image is processed in order, with the prompts that were drawn on it; the result is the same to
    the last bit every time. In real time images and prompts arrive at their recorded times, on a simulated clock that
    advances by the time the work takes on this machine: images are dropped and prompts are late as on a robot.

    Args:
        recording: Recording to process.
        model: Model that is warmed up. It is not changed.
        parameters: Parameters of the node.
        mode: Lock-step or real-time.
        rate: Speed relative to the recording, in real time only.
        timer: Clock in seconds that measures the work.
        progress: Function that is called with the index of each image that arrives.

    Raises:
        ValueError: ``mode`` is another one, or ``rate`` is not positive.
    """
    if mode not in (Mode.LOCK_STEP, Mode.REAL_TIME):
        raise ValueError(f"mode '{mode}': must be lock-step or real-time")
    if not (rate > 0 and math.isfinite(rate)):
        raise ValueError(f'rate {rate:g}: must be positive')
    started, memory = time.monotonic(), PeakMemory(model)
    deterministic = torch.backends.cudnn.deterministic
    torch.backends.cudnn.deterministic = True
    replay = _Replay(recording, model, parameters, Mode(mode), rate, timer, progress)
    try:
        if mode == Mode.LOCK_STEP:
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
    """Camera whose images and prompts come from a recording, and whose results go into a ``Run``.

    The worker's own functions serve it (``ServedCamera``), on the clock of the recording.
    """

    def __init__(self, recording: Recording, model: Sam2Model, parameters: Parameters, mode: Mode, rate: float,
                 timer: Callable[[], float], progress: Callable[[int], None]) -> None:
        changed = threading.Condition()
        self.watch = Stopwatch(model.device, timer)
        self.result = Run(recording.name, mode, rate, len(recording.stamps), 0, 0, dict(recording.labels),
                          parameters=asdict(parameters), versions=versions(model))
        self.closed = False
        self._recording = recording
        self._progress = progress
        self._depth = DepthMailbox(changed) if parameters.use_depth else None
        # The depth of an image arrives before the image, so the pipeline need not wait for it.
        chosen = replace(parameters, depth_wait=0.0)
        if mode == Mode.LOCK_STEP:
            chosen = replace(chosen, latency_target=0.0)  # without latency there is no load to shed
        tracker = StreamTracker(TimedModel(model, self.watch), memory_policy=parameters.memory_policy)
        self.pipeline = CameraPipeline(tracker, chosen, changed, recording.name, _Silence(), self._depth)
        self._asked: dict[PromptRequest, RecordedPrompt] = {}
        self._with_depth: set[int] = set()  # images whose depth the recording has
        self._unused_depth: Counter[str] = Counter()  # images by the reason
        self._arrivals = arrivals(recording)
        self._offered: int | None = None  # index of the image to process next
        self._working = contextlib.ExitStack()  # the stage of the stopwatch that ends with ``publish``
        self._clock: Callable[[float], int] = round  # from seconds of work to time of the recording, nanoseconds
        self._done = 0  # end of the last work, nanoseconds on the clock of the recording

    # --- modes

    def lock_step(self) -> None:
        """Process every image in order, each prompt with the image it was drawn on."""
        prompts = deliveries(self._recording)
        for index, arrival in enumerate(self._recording.arrivals):
            self._clock = partial(_stopped_clock, arrival)
            self._ask(prompts.pop(index, ()))
            self._offer(index)
            self._serve()
            while self.pipeline.has_work_aside():
                self._work_aside()
        self._ask([prompt for rest in prompts.values() for prompt in rest])
        self._end()

    def real_time(self) -> None:
        """Process images and prompts as they were recorded, on a clock that advances by the time the work takes."""
        events: list[tuple[int, Callable[[], None]]] = []
        events += [(arrival, partial(self._offer, index)) for index, arrival in enumerate(self._recording.arrivals)]
        events += [(prompt.arrival, partial(self._ask, [prompt])) for prompt in self._recording.prompts]
        coming = deque(sorted(events, key=lambda event: event[0]))
        self._done = coming[0][0] if coming else 0
        # The clock of the recording runs ``rate`` times as fast as that of the machine.
        self._clock = lambda seconds: self._done + round(seconds * 1e9 * self.result.rate)
        while True:
            while coming and coming[0][0] <= self._done:
                _, deliver = coming.popleft()
                deliver()
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
            # Prompts must not expire while the simulated clock stands still.
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

    def _depth_of(self, index: int) -> tuple[DepthMessage, CameraInfo] | None:
        """Return the depth of an image; record a problem if it cannot be read."""
        try:
            return self._recording.depth(index) if self._depth is not None else None
        except RecordingError as error:
            self.result.problems.append(f'depth of image {index} skipped: {error}')
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

    def before_step(self) -> None:
        """Do nothing: the prompts are recorded."""

    def publish(self, frame: Frame | None, answers: list[PromptAnswer]) -> float:
        """Build the message that the node would publish, and record what came of the image and the prompts."""
        if frame is not None:
            with self.watch.stage('publish'):
                serialize_message(instance_array(frame, failures=self.pipeline.failures))
        self._working.close()  # the node would do nothing more
        stages = self.watch.take()
        aside = ASIDE in stages
        self._done = self._clock(stages[ASIDE if aside else TOTAL])
        if not aside:
            index, self._offered = self._offered, None
            if frame is not None and index is not None:
                self._record(index, frame, stages)
            elif index is not None and self.pipeline.skipped.reason:
                self.result.unusable[index] = self.pipeline.skipped.reason
        self._answer(answers, self._done)
        return 0.0 if frame is None else (self._done - to_nanoseconds(frame.header.stamp)) / 1e9 / self.result.rate

    def now(self) -> float:
        """Return the time of the recording in seconds, as this machine experiences it."""
        return self._done / 1e9 / self.result.rate

    # --- out

    def _record(self, index: int, frame: Frame, stages: dict[str, float]) -> None:
        if not self.result.frames:
            self.result.height, self.result.width = frame.image.shape[:2]
        self.result.frames.append(FrameOutput(
            index, to_nanoseconds(frame.header.stamp), self._done,
            {item.id: ObjectOutput.of(item) for item in frame.objects}, stages, frame.dropped, frame.image.shape[:2],
            self.pipeline.decoder.used(to_nanoseconds(frame.header.stamp))))
        if self._depth is not None and index in self._with_depth and frame.depth is None:
            self._unused_depth[self._depth.report.reason] += 1
        self.result.labels.update({item.id: item.label for item in frame.objects if item.label})

    def _answer(self, answers: Sequence[PromptAnswer], now: int) -> None:
        for answer in answers:
            prompt = self._asked.pop(answer.request)
            message = prompt.message
            self.result.answers.append(Answer(
                prompt.arrival, to_nanoseconds(message.header.stamp), action_name(message.action),
                answer.id, message.label, answer.accepted, answer.reason,
                to_nanoseconds(answer.header.stamp) if answer.accepted else None, now))

    def _end(self) -> None:
        self._answer(self.pipeline.drain(ENDED), self._done)
        self.result.failures = self.pipeline.failures.totals()
        self.result.problems += [f'depth not used in {count} of {len(self._with_depth)} images: {reason}'
                                 for reason, count in self._unused_depth.most_common(REASONS)]


def arrivals(recording: Recording) -> Sequence[int]:
    """Return the times of arrival, nanoseconds, against which the pipeline checks the stamps of images.

    They are the recording times. A converted bag may have the same recording time for all messages; if these times
    hardly advance, the stamps are used instead.
    """
    if len(recording.stamps) < 2:
        return recording.arrivals
    recorded, stamped = (float(np.median(np.diff(times))) for times in (recording.arrivals, recording.stamps))
    return recording.arrivals if recorded >= stamped / 2 else recording.stamps


class _Silence:
    """Logger that discards everything: the run has the failures and problems."""

    def info(self, text: str, **options: Any) -> None:
        """Discard information."""

    def warning(self, text: str, **options: Any) -> None:
        """Discard a warning."""

    def error(self, text: str, **options: Any) -> None:
        """Discard an error."""


def _stopped_clock(now: int, seconds: float) -> int:
    """Return the time on a clock that does not advance while images are processed."""
    return now
