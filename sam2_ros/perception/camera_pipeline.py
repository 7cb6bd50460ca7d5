"""One camera: its images, its prompts, its objects, and what is done with them image by image."""
from __future__ import annotations

import threading
import time
from collections import deque
from dataclasses import replace

import numpy as np
from builtin_interfaces.msg import Time
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import Header

from sam2_core import EncodedImage, ImageSegmenter, ObjectResult, PromptError, StreamTracker
from sam2_ros.depth.matching import DepthMailbox
from sam2_ros.depth.surface import DepthFrame, is_beyond_lens
from sam2_ros.messages.conversions import ImageError, to_nanoseconds, to_rgb
from sam2_ros.messages.stamps import TIME_JUMP, StampWatch
from sam2_ros.perception.camera_image import CameraImage
from sam2_ros.perception.frame import Frame, TrackedObject, sighting
from sam2_ros.perception.image_history import ImageHistory, StoredImage
from sam2_ros.perception.inbox import Inbox
from sam2_ros.perception.late_prompts import CatchUp, LatePrompts
from sam2_ros.perception.load_shedding import Level, half_of_recent_frames
from sam2_ros.perception.meter import Meter
from sam2_ros.perception.object_states import ObjectStates, probability, score_correction, unit
from sam2_ros.perception.prompt_plan import NEEDS_IMAGE, Ids, Plan, PromptAnswer, PromptRequest, refuse
from sam2_ros.perception.prompt_routing import PromptRouter, Routing
from sam2_ros.perception.single_image import Queries, Query
from sam2_ros.perception.skipped_images import SkippedImages
from sam2_ros.perception.tracked_objects import TrackedObjects
from sam2_ros.runtime.failures import Failures, describe
from sam2_ros.runtime.parameters import Parameters

WARN_EVERY = 5.0  # seconds
STEPS_KNOWN = 64  # stamps of past steps that are kept: more than any object remembers


class CameraPipeline:
    """Everything about one camera but its topics.

    Any thread may call ``put_image`` and fill the inbox; the rest is the worker's. It calls ``take``, may encode what
    was taken together with that of other cameras, and then ``work``; between images it calls ``work_aside``, a slice
    at a time. None of these raises: a step that fails costs its own result (``failures``), and every request that was
    taken from the inbox is answered once.
    """

    def __init__(self, tracker: StreamTracker, parameters: Parameters, changed: threading.Condition, topic: str, logger,
                 depth: DepthMailbox | None = None, failures: Failures | None = None, ids: Ids | None = None) -> None:
        """``changed`` is notified of arrivals; ``topic`` is named where images are found to be wrong or missing.

        failures: where failed steps are recorded. ids: for new objects, where they go on from an earlier stream.
        """
        self.inbox = Inbox(changed)
        self.history = ImageHistory()
        self.meter = Meter()
        self.depth = depth
        self.parameters = parameters  # may be replaced at any time by a newer set
        self.failures = failures or Failures(logger, topic)
        self.skipped = SkippedImages(topic)
        self.topic = topic
        self._every_second = False  # image is left out
        self._segmenter = ImageSegmenter(tracker.model)
        self._logger = logger
        self._stamps = StampWatch()
        self._states = ObjectStates(score_correction(parameters))
        self._objects = TrackedObjects(tracker, self._states, self.failures)
        self._late = LatePrompts()
        self._reader = PromptRouter(self.history, self._late, topic, ids or Ids(), self.failures, self.skipped,
                                    tracker.model.image_size)
        self._steps: deque[int] = deque(maxlen=STEPS_KNOWN)  # stamps of the tracker's steps, ns
        self._taken: CameraImage | None = None  # not yet processed
        self._newest: CameraImage | None = None  # processed
        self._queries = Queries(self._segmenter, self.history, self.failures, self.skipped, self._past_depth)
        if depth is not None:
            depth.on_drop = self.history.put_depth
        self._open: dict[PromptRequest, None] = {}  # taken from the inbox and not yet answered
        self._late_is_next = True  # of what is done aside
        self._skipped_last = False
        self._jumps_seen = 0  # of the clock

    @property
    def tracker(self) -> StreamTracker:
        """The tracker of the live objects."""
        return self._objects.tracker

    # --- what arrives

    def put_image(self, message: Image | CompressedImage, arrived: float | None = None) -> bool:
        """Take an image; return whether its stamp lets it be used.

        arrived: seconds, of any clock that goes on while images come; None: that of now.
        """
        run = self.failures.run
        now = time.monotonic()
        run('meter', self.meter.received, now)
        odd = run('stamps', self._stamps.judge, to_nanoseconds(message.header.stamp),
                  now if arrived is None else arrived, default='')
        if odd:
            self.inbox.count_dropped()
            self._unusable(odd)
            return False
        run('history', self.history.put, message, self.parameters.history_seconds, self.parameters.history_bytes)
        self.inbox.put_image(message)
        return True

    def change(self, parameters: Parameters) -> None:
        """From now on these hold, also for what waits already."""
        self.parameters = parameters
        self.inbox.notify()

    def leave_out(self, level: Level) -> None:
        """Do less: what concerns the tracker and the images; the pictures are for whoever publishes."""
        self.tracker.recent_frames = half_of_recent_frames(self.tracker.model) if level >= Level.MEMORY else None
        self._every_second = level >= Level.IMAGES

    # --- what there is to do

    def waiting_since(self) -> float | None:
        """When the first thing arrived that has not been looked at, seconds, time.monotonic(); None: nothing."""
        return self.inbox.waiting_since()

    def seconds_to_deadline(self) -> float | None:
        """Until the first waiting prompt or question has to be refused; None when none waits."""
        received = [moment for moment in (self.inbox.oldest_prompt(), self._queries.oldest_waiting)
                    if moment is not None]
        return max(0.0, min(received) + self.parameters.prompt_timeout - time.monotonic()) if received else None

    @property
    def newest(self) -> Header | None:
        """Of the last image that was processed."""
        return None if self._newest is None else self._newest.header

    @property
    def image_size(self) -> tuple[int, int] | None:
        """Height and width of the last image that was processed."""
        return None if self._newest is None else self._newest.image.shape[:2]

    @property
    def newest_view(self) -> tuple[Header | None, tuple[int, int]]:
        """Header and size (height, width) of one image, the last that was processed."""
        newest = self._newest  # the worker may replace it
        return (None, (0, 0)) if newest is None else (newest.header, newest.image.shape[:2])

    @property
    def catching_up(self) -> int:
        """Objects on their way from past images."""
        return len(self._late.object_ids)

    def has_work_aside(self) -> bool:
        return bool(self._queries) or self._next_late() is not None

    # --- images

    def take(self) -> bool:
        """Take the newest image out of the inbox; whether there was one that can and is to be used."""
        message = self.inbox.take_image()
        if message is None:
            return False
        self._skipped_last = self._every_second and not self._skipped_last and not self.inbox.prompts
        if self._skipped_last:
            self.inbox.count_dropped()
            return False
        try:
            self._taken = CameraImage(message.header, to_rgb(message))
        except Exception as error:
            self.inbox.count_dropped()
            self._unusable(error if isinstance(error, ImageError) else self.failures.report('decoding', error))
            return False
        if self.depth is not None:
            self.failures.run('depth', self.depth.expect, message.header)
        return True

    def image_to_encode(self) -> np.ndarray | None:
        """The image taken, uint8 RGB (H, W, 3), if its features will be needed for sure."""
        return self._taken.image if self._taken is not None and self.tracker.object_ids else None

    def work(self, encoded: EncodedImage | None = None) -> tuple[Frame | None, list[PromptAnswer]]:
        """Process the image taken, apply prompts: the frame, if there was an image, and the answers.

        encoded: the features of ``image_to_encode``, if they have been computed already.
        """
        picture, self._taken = self._taken, None
        requests, queries = self.inbox.take_requests()
        self._open.update(dict.fromkeys(requests))
        frame, answers, reason = None, [], ''
        try:
            if picture is None:
                answers = self._apply_without_image(requests)
            else:
                picture.encoded = encoded
                frame, answers = self._process(picture, requests)
        except Exception as error:
            reason = self.failures.report('image', error)
            if picture is not None:
                self.inbox.count_dropped()
        self._ask(queries)
        return frame, self._settle(answers, reason)

    def drain(self, reason: str) -> list[PromptAnswer]:
        """Refuse what waits and let objects under way join where they are: nothing is left to do."""
        self.inbox.take_image()
        self.inbox.take_dropped()
        self._taken = None
        self._join(None)
        requests, queries = self.inbox.take_requests()
        self._open.update(dict.fromkeys(requests))
        self._cancel_late()
        self._ask(queries)
        self._queries.refuse(reason)
        return self._settle([refuse(request, reason) for request in self._open])

    def abandon(self, reason: str) -> list[PromptAnswer]:
        """Refuse what waits in the inbox while a worker that did not end may still be at work on the rest."""
        requests, queries = self.inbox.take_requests()
        for call in queries:
            call.reply(reason)
        return [refuse(request, reason) for request in requests]

    def reset(self) -> None:
        """Forget all objects."""
        self._objects.reset()

    def _apply_without_image(self, requests: list[PromptRequest]) -> list[PromptAnswer]:
        reading = self._read(requests, None)
        self._objects.forget(reading.plan.forget)
        return reading.answers

    def _process(self, picture: CameraImage, requests: list[PromptRequest]) -> tuple[Frame | None, list[PromptAnswer]]:
        header, run = picture.header, self.failures.run
        answers = run('time jump', self._notice_time_jump, header.stamp, default=[])
        joined = self._join(to_nanoseconds(self._newest.header.stamp)) if self._newest is not None else set()
        reading = run('prompts', self._read, requests, picture) or Routing(Plan(self._objects.ids, 0), header)
        now = reading.plan.now
        answers += reading.answers
        try:
            advance = self._objects.advance(picture, self._segmenter, now, reading.plan.forget)
        except Exception as error:
            # whoever waits has to be told, the node and its other objects go on
            self.inbox.count_dropped()
            reason = self._failed(error)
            return None, [refuse(answer.request, reason) if _applied(answer, header) else answer for answer in answers]
        self._newest = picture
        self.skipped.clear()
        self._steps.append(to_nanoseconds(header.stamp))
        items = run('states', self._objects.observe, advance, header.stamp, now.labels, joined | now.prompts.keys(),
                    self.parameters, self._late.object_ids)
        if items is None:
            items = self._objects.without_states(advance, header.stamp)
        if self.depth is not None:
            self._find_depth(picture)
            items = run('position', self._objects.measure, picture, items, self.parameters.edge_erosion, default=items)
            run('position', self._name_beyond_lens, picture, items)
        frame = Frame(header, picture.image, items, run('meter', self.inbox.take_dropped, default=0), picture.depth,
                      run('events', self._states.take_events, default=[]))
        found = {item.id: item for item in items}
        return frame, [self._answered(answer, header, advance.refused, found) for answer in answers]

    @staticmethod
    def _answered(answer: PromptAnswer, header: Header, refused: dict[int, str],
                  found: dict[int, TrackedObject]) -> PromptAnswer:
        if answer.id in refused and _applied(answer, header):
            return refuse(answer.request, refused[answer.id])
        return replace(answer, item=found.get(answer.id)) if answer.accepted else answer

    def _find_depth(self, picture: CameraImage) -> None:
        """Give the image its depth, if it has come."""
        before = self.depth.report
        try:
            picture.depth = self.depth.depth_for(picture.header, picture.image.shape[:2], self.parameters)
        except Exception as error:
            self.meter.depth(time.monotonic(), self.failures.report('depth', error))
            return
        report = self.depth.report
        if report.absent == before.absent or report.used:  # it arrives, or did so before
            self.meter.depth(time.monotonic(), report.reason)
        self.meter.depth_doubt(time.monotonic(), report.doubt)

    def _past_depth(self, picture: CameraImage) -> DepthFrame | None:
        """Return the depth of a past image, if it is still there."""
        if self.depth is None:
            return None
        return self.depth.past(picture.header, picture.image.shape[:2], self.parameters,
                               self.history.depth_at(to_nanoseconds(picture.header.stamp)))

    def _name_beyond_lens(self, picture: CameraImage, items: list[TrackedObject]) -> None:
        """Note for /diagnostics which visible object has no depth because the lens model has no rays there."""
        for item in items:
            if (picture.depth is not None and item.box is not None and item.shape is None
                    and is_beyond_lens(picture.depth, item.mask, item.box)):
                self.meter.depth_doubt(time.monotonic(), f'object {item.id} has no depth: the lens model of '
                                                         f'camera_info has no ray for most of its pixels')

    # --- answers

    def _settle(self, answers: list[PromptAnswer], reason: str = '') -> list[PromptAnswer]:
        """Return one answer for each request that has one, and refuse those that nobody waits with any more."""
        settled = []
        for answer in answers:
            if answer.request in self._open:
                del self._open[answer.request]
                settled.append(answer)
        waiting = {*self.inbox.prompts, *self._late.requests}
        for request in [request for request in self._open if request not in waiting]:
            del self._open[request]
            settled.append(refuse(request, f'the node failed before the prompt was applied, see the log: '
                                           f'{reason or next(iter(self.failures.recent(time.monotonic())), "")}'))
        return settled

    def _ask(self, queries: list[Query]) -> None:
        """Take questions in, and look whether there is an image for those that wait for one."""
        try:
            self._queries.add(queries, self._newest, self.parameters.prompt_timeout)
        except Exception as error:
            self._queries.lose(queries, f'the question cannot be answered: '
                                            f'{self.failures.report("question", error)}')

    # --- objects

    def _read(self, requests: list[PromptRequest], picture: CameraImage | None) -> Routing:
        reading = self._reader.read(requests, picture, self.newest, self._objects.ids, self.parameters)
        self.inbox.return_prompts([*reading.waiting])
        return reading

    def _join(self, live_stamp: int | None) -> set[int]:
        """Let late prompts join that have come to the last live image (None: all); return their objects."""
        run = self.failures.run
        arrived = run('late prompts', self._late.take_arrived, self.history, live_stamp, default=[])
        return {object_id for late in arrived for object_id in run('late prompts', self._objects.join, late,
                                                                   self._steps, default=())}

    def _cancel_late(self) -> list[PromptRequest]:
        """End what is under way; the requests that have not been answered."""
        return [request for object_id in self._late.object_ids for request in self._late.cancel(object_id)]

    def _notice_time_jump(self, stamp: Time) -> list[PromptAnswer]:
        if self._newest is None:
            return []
        last, now = to_nanoseconds(self._newest.header.stamp), to_nanoseconds(stamp)
        if now >= last - TIME_JUMP:
            if now > last + TIME_JUMP and self._jumps_seen != self._stamps.jumps:
                self._jumps_seen = self._stamps.jumps
                self._states.time_jumped(stamp)  # no object has been out of sight for as long as the stamps say
            return []
        self._jumps_seen = self._stamps.jumps
        reset = self.parameters.on_time_jump == 'reset'
        self._logger.warning(f'{self.topic}: image stamps jumped back by {(last - now) / 1e9:.3f} s; '
                             f'objects are {"forgotten" if reset else "kept"} (on_time_jump)',
                             throttle_duration_sec=WARN_EVERY)
        self._join(None)
        self._steps.clear()
        taken_back = []
        if reset:
            taken_back = self._cancel_late()
            self.reset()
        self._states.time_jumped(stamp)
        return [refuse(request, 'image stamps jumped back before it was applied, and objects are forgotten then '
                                '(on_time_jump)') for request in taken_back]

    def _unusable(self, error: ImageError | str) -> None:
        reason = str(error)
        self.skipped.note(reason)
        self.failures.run('meter', self.meter.skipped, time.monotonic(), reason)
        self._logger.warning(f'{self.topic}: image skipped: {reason}', throttle_duration_sec=WARN_EVERY)

    def _failed(self, error: Exception) -> str:
        """Report that the model failed on an image; return the reason for those who wait."""
        reason = self.failures.report('model', error, keep=False)
        self.failures.run('meter', self.meter.failed, time.monotonic(), reason)
        reason = f'the model failed on this image: {reason}'
        self.skipped.note(reason)
        return reason

    # --- aside

    def work_aside(self) -> list[PromptAnswer]:
        """A slice of what is to be done besides the images of the stream: late prompts and questions, in turn."""
        late = self._next_late()
        if late is not None and (self._late_is_next or not self._queries):
            self._late_is_next = False
            return self._settle(self.failures.run('late prompt', self._advance_late, *late, default=[]))
        self._late_is_next = True
        if self._queries:
            self.failures.run('question', self._queries.advance, self.parameters.edge_erosion)
        return []

    def _next_late(self) -> tuple[CatchUp, StoredImage] | None:
        if self._newest is None:
            return None
        return self._late.next(self.history, to_nanoseconds(self._newest.header.stamp))

    def _advance_late(self, late: CatchUp, past: StoredImage) -> list[PromptAnswer]:
        if late.tracker is None:
            return self._begin_late(late, past)
        try:
            step = self._late.go_on(late, past)
        except ImageError as error:
            self._unusable(error)
        except Exception as error:
            self._failed(error)  # the objects were accepted: they go on without this image
        else:
            for object_id, error in step.missed.items():
                self.failures.report('late prompt', error, f'object {object_id}')
        return []

    def _begin_late(self, late: CatchUp, past: StoredImage) -> list[PromptAnswer]:
        requests = [(object_id, request) for object_id, requests in late.waiting.items() for request in requests]
        try:
            frames_back = sum(stamp >= past.stamp for stamp in self._steps)  # as it was before this image
            step = self._late.begin(late, self.tracker, frames_back, self.parameters.catch_up_images)
            answers = self._late_answers(late, requests, step.results, {
                object_id: self._late_reason(object_id, error) for object_id, error in step.refused.items()})
        except Exception as error:
            self._late.drop(late)
            reason = self._failed(error)
            return [refuse(request, reason) for _, request in requests]
        late.waiting.clear()
        for object_id in step.refused:
            self._late.cancel(object_id)
        return answers

    def _late_answers(self, late: CatchUp, requests: list[tuple[int, PromptRequest]], results: dict[int, ObjectResult],
                      refused: dict[int, str]) -> list[PromptAnswer]:
        header, answers = late.past.message.header, []
        for object_id, request in requests:
            if object_id in refused:
                answers.append(refuse(request, refused[object_id]))
                continue
            found = results[object_id]
            label = late.batch.labels.get(object_id)
            item = sighting(object_id, self._states.label(object_id) if label is None else label, found.mask,
                            unit(found.iou), probability(found.object_score), header.stamp)
            answers.append(PromptAnswer(request, object_id, header, item=item))
        return answers

    def _late_reason(self, object_id: int, error: Exception) -> str:
        if isinstance(error, PromptError):
            return str(error)
        self.failures.report('late prompt', error, f'object {object_id}')
        return f'the model failed for this object: {describe(error)}'


def _applied(answer: PromptAnswer, header: Header) -> bool:
    """Return whether the answer accepts a prompt for the image of this header."""
    return answer.accepted and answer.header is header and answer.request.message.action in NEEDS_IMAGE
