"""One camera: its images, its prompts, its tracker and what is known about its objects."""
from __future__ import annotations

import threading
import time
import traceback
from collections import deque
from collections.abc import Iterable
from dataclasses import replace

import numpy as np
from builtin_interfaces.msg import Time
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import Header

from sam2_core import EncodedImage, FrameResult, ImageSegmenter, StreamTracker
from sam2_ros.catch_up import CatchUp, Late
from sam2_ros.conversions import ImageError, to_nanoseconds, to_rgb
from sam2_ros.depth import DepthMailbox
from sam2_ros.frame import Frame, TrackedObject, sighting
from sam2_ros.history import TIME_JUMP, History, Past
from sam2_ros.mailbox import Mailbox
from sam2_ros.meter import Meter
from sam2_ros.one_shot import OneShots, Picture
from sam2_ros.parameters import Parameters
from sam2_ros.prompt_reader import PromptReader, Reading
from sam2_ros.prompting import NEEDS_IMAGE, PromptAnswer, PromptRequest, refuse
from sam2_ros.shedding import Level, half_of_recent_frames
from sam2_ros.spatial import OrientedBox, measure
from sam2_ros.states import ObjectStates, probability, score_correction, unit

WARN_EVERY = 5.0  # seconds
STEPS_KNOWN = 64  # stamps of past steps that are kept: more than any object remembers


class Stream:
    """Everything about one camera but its topics.

    Any thread may call ``put_image`` and fill the mailbox; the rest is the worker's. It calls ``take``, may encode what
    was taken together with that of other cameras, and then ``work``; between images it calls ``work_aside``, a slice
    at a time.
    """

    def __init__(self, tracker: StreamTracker, parameters: Parameters, changed: threading.Condition, topic: str, logger,
                 depth: DepthMailbox | None = None) -> None:
        """``changed`` is notified of arrivals; ``topic`` is named where images are found to be wrong or missing."""
        self.mailbox = Mailbox(changed)
        self.history = History()
        self.meter = Meter()
        self.depth = depth
        self.parameters = parameters  # may be replaced at any time by a newer set
        self._every_second = False  # image is left out
        self.tracker = tracker
        self.topic = topic
        self._segmenter = ImageSegmenter(tracker.model)
        self._logger = logger
        self._states = ObjectStates(score_correction(parameters))
        self._late = CatchUp()
        self._reader = PromptReader(self.history, self._late, topic)
        self._steps: deque[int] = deque(maxlen=STEPS_KNOWN)  # stamps of the tracker's steps, ns
        self._taken: Picture | None = None  # not yet processed
        self._newest: Picture | None = None  # processed
        self._one_shots = OneShots(self._segmenter, self.history)
        self._late_is_next = True  # of what is done aside
        self._skipped_last = False
        self._shapes: dict[int, OrientedBox] = {}  # as last measured

    # --- what arrives

    def put_image(self, message: Image | CompressedImage) -> None:
        self.meter.received(time.monotonic())
        self.history.put(message, self.parameters.history_seconds, self.parameters.history_bytes)
        self.mailbox.put_image(message)

    def change(self, parameters: Parameters) -> None:
        """From now on these hold, also for what waits already."""
        self.parameters = parameters
        self.mailbox.notify()

    def leave_out(self, level: Level) -> None:
        """Do less: what concerns the tracker and the images; the pictures are for whoever publishes."""
        self.tracker.recent_frames = half_of_recent_frames(self.tracker.model) if level >= Level.MEMORY else None
        self._every_second = level >= Level.IMAGES

    # --- what there is to do

    def waiting_since(self) -> float | None:
        """When the first thing arrived that has not been looked at, seconds, time.monotonic(); None: nothing."""
        return self.mailbox.waiting_since()

    def seconds_to_deadline(self) -> float | None:
        """Until the first waiting prompt or question has to be refused; None when none waits."""
        received = [moment for moment in (self.mailbox.oldest_prompt(), self._one_shots.oldest_waiting)
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
    def catching_up(self) -> int:
        """Objects on their way from past images."""
        return len(self._late.object_ids)

    def has_work_aside(self) -> bool:
        return bool(self._one_shots) or self._next_late() is not None

    # --- images

    def take(self) -> bool:
        """Take the newest image out of the mailbox; whether there was one that can and is to be used."""
        message = self.mailbox.take_image()
        if message is None:
            return False
        self._skipped_last = self._every_second and not self._skipped_last and not self.mailbox.has_prompts()
        if self._skipped_last:
            self.mailbox.count_dropped()
            return False
        try:
            self._taken = Picture(message.header, to_rgb(message))
            if self.depth is not None:
                self.depth.expect(message.header)
        except ImageError as error:
            self.mailbox.count_dropped()
            self._unusable(error)
        return self._taken is not None

    def image_to_encode(self) -> np.ndarray | None:
        """The image taken, uint8 RGB (H, W, 3), if its features will be needed for sure."""
        return self._taken.image if self._taken is not None and self.tracker.object_ids else None

    def work(self, encoded: EncodedImage | None = None) -> tuple[Frame | None, list[PromptAnswer]]:
        """Process the image taken, apply prompts: the frame, if there was an image, and the answers.

        encoded: the features of ``image_to_encode``, if they have been computed already.
        """
        picture, self._taken = self._taken, None
        requests, one_shots = self.mailbox.take_requests()
        frame = None
        if picture is None:
            reading = self._read(requests, None)
            self._forget(reading.plan.forget)
            answers = reading.answers
        else:
            picture.encoded = encoded
            frame, answers = self._process(picture, requests)
        self._one_shots.add(one_shots, self._newest, self.parameters.prompt_timeout)
        return frame, answers

    def drain(self, reason: str) -> list[PromptAnswer]:
        """Refuse what waits and let objects under way join where they are: nothing is left to do."""
        self.mailbox.take_image()
        self.mailbox.take_dropped()
        self._taken = None
        self._join(self._late.take_arrived(self.history, None))
        requests, one_shots = self.mailbox.take_requests()
        requests = self._cancel_late() + requests
        self._one_shots.add(one_shots, None, self.parameters.prompt_timeout)
        self._one_shots.refuse(reason)
        return [refuse(request, reason) for request in requests]

    def reset(self) -> None:
        """Forget all objects."""
        self.tracker.reset()
        self._states.clear()
        self._shapes.clear()

    def _process(self, picture: Picture, requests: list[PromptRequest]) -> tuple[Frame | None, list[PromptAnswer]]:
        header = picture.header
        answers = self._notice_time_jump(header.stamp)
        joined = set()
        if self._newest is not None:
            joined = self._join(self._late.take_arrived(self.history, to_nanoseconds(self._newest.header.stamp)))
        reading = self._read(requests, picture)
        now, forget = reading.plan.now, reading.plan.forget
        answers += reading.answers
        aside = self.tracker.fork(())
        for object_id in forget:
            aside.adopt(self.tracker, object_id)
        known = set(self.tracker.object_ids)
        try:
            if now.prompts or self.tracker.object_ids:
                picture.encode(self._segmenter)
            result = self.tracker.step(picture.encoded or picture.image, now.all())
        except Exception as error:
            # whoever waits has to be told, the node and its other objects go on
            for object_id in set(self.tracker.object_ids) - known:
                self.tracker.remove(object_id)  # whose prompt is refused
            for object_id in forget & now.prompts.keys():
                self.tracker.adopt(aside, object_id)  # that is not started anew after all
            self._forgotten(forget - now.prompts.keys())
            self.mailbox.count_dropped()
            reason = self._failed(error)
            return None, [refuse(answer.request, reason) if answer.accepted and answer.header is header
                          and answer.request.message.action in NEEDS_IMAGE else answer for answer in answers]
        self._forgotten(forget)
        self._newest = picture
        self._steps.append(to_nanoseconds(header.stamp))
        items = self._measure(picture, self._observe(result, header, now.labels, joined | now.prompts.keys()))
        frame = Frame(header, picture.image, items, self.mailbox.take_dropped(), picture.depth,
                      self._states.take_events())
        found = {item.id: item for item in items}
        return frame, [replace(answer, item=found.get(answer.id)) if answer.accepted else answer for answer in answers]

    def _observe(self, result: FrameResult, header: Header, labels: dict[int, str],
                 prompted: set[int]) -> list[TrackedObject]:
        for object_id, label in labels.items():
            self._states.name(object_id, label, header.stamp)
        items = [self._states.observe(object_id, found, header.stamp, self.parameters, object_id in prompted)
                 for object_id, found in result.objects.items()]
        forgotten = self._states.expire(header.stamp, self.parameters.forget_after, keep=self._late.object_ids)
        for object_id in forgotten:
            self.tracker.remove(object_id)
            self._shapes.pop(object_id, None)
        return [item for item in items if item.id not in forgotten]

    def _measure(self, picture: Picture, items: list[TrackedObject]) -> list[TrackedObject]:
        """The objects with where they are, if the depth of the image has come."""
        if self.depth is None:
            return items
        before = self.depth.report
        picture.depth = self.depth.depth_for(picture.header, picture.image.shape[:2], self.parameters)
        report = self.depth.report
        if report.absent == before.absent or report.used:  # it arrives, or did so before
            self.meter.depth(time.monotonic(), report.reason)
        if picture.depth is None:
            return items
        measured = []
        for item in items:
            shape = None
            if item.box is not None:
                shape = measure(picture.depth, item.mask, item.box, self.parameters.edge_erosion,
                                self._shapes.get(item.id))
            if shape is not None:
                self._shapes[item.id] = shape
            measured.append(replace(item, shape=shape))
        return measured

    # --- objects

    def _read(self, requests: list[PromptRequest], picture: Picture | None) -> Reading:
        reading = self._reader.read(requests, picture, self.newest, self.tracker.object_ids, self.parameters)
        self.mailbox.return_prompts(reading.waiting)
        return reading

    def _forget(self, object_ids: Iterable[int]) -> None:
        for object_id in object_ids:
            self.tracker.remove(object_id)
        self._forgotten(object_ids)

    def _forgotten(self, object_ids: Iterable[int]) -> None:
        """These are no longer tracked."""
        for object_id in object_ids:
            self._states.remove(object_id)
            self._shapes.pop(object_id, None)

    def _join(self, arrived: list[Late]) -> set[int]:
        """Have the live tracker go on with these from its next image on; the objects."""
        for late in arrived:
            started = late.batch.prompts.keys() - late.corrected
            self._forget(started & set(self.tracker.object_ids))
            for object_id in late.batch.prompts:
                self.tracker.adopt(late.tracker, object_id)
            for object_id, label in late.batch.labels.items():
                self._states.name(object_id, label, late.past.message.header.stamp)
        return {object_id for late in arrived for object_id in late.batch.prompts}

    def _cancel_late(self) -> list[PromptRequest]:
        """End what is under way; the requests that have not been answered."""
        return [request for object_id in self._late.object_ids for request in self._late.cancel(object_id)]

    def _notice_time_jump(self, stamp: Time) -> list[PromptAnswer]:
        if self._newest is None:
            return []
        last, now = to_nanoseconds(self._newest.header.stamp), to_nanoseconds(stamp)
        if now > last - TIME_JUMP:
            return []
        reset = self.parameters.on_time_jump == 'reset'
        self._logger.warning(f'{self.topic}: image stamps jumped back by {(last - now) / 1e9:.3f} s; '
                             f'objects are {"forgotten" if reset else "kept"} (on_time_jump)')
        self._join(self._late.take_arrived(self.history, None))
        self._steps.clear()
        taken_back = []
        if reset:
            taken_back = self._cancel_late()
            self.reset()
        self._states.time_jumped(stamp)
        return [refuse(request, 'image stamps jumped back before it was applied, and objects are forgotten then '
                                '(on_time_jump)') for request in taken_back]

    def _unusable(self, error: ImageError) -> None:
        self.meter.skipped(time.monotonic(), str(error))
        self._logger.warning(f'{self.topic}: image skipped: {error}', throttle_duration_sec=WARN_EVERY)

    def _failed(self, error: Exception) -> str:
        self._logger.error(f'{self.topic}: image skipped:\n{traceback.format_exc()}',
                           throttle_duration_sec=WARN_EVERY)
        reason = f'{type(error).__name__}: {error}'
        self.meter.failed(time.monotonic(), reason)
        return f'the model failed on this image: {reason}'

    # --- aside

    def work_aside(self) -> list[PromptAnswer]:
        """A slice of what is to be done besides the images of the stream: late prompts and questions, in turn."""
        late = self._next_late()
        if late is not None and (self._late_is_next or not self._one_shots):
            self._late_is_next = False
            return self._advance_late(*late)
        self._late_is_next = True
        if self._one_shots:
            self._one_shots.advance(self.parameters.edge_erosion)
        return []

    def _next_late(self) -> tuple[Late, Past] | None:
        if self._newest is None:
            return None
        return self._late.next(self.history, to_nanoseconds(self._newest.header.stamp))

    def _advance_late(self, late: Late, past: Past) -> list[PromptAnswer]:
        if late.tracker is None:
            return self._begin_late(late, past)
        try:
            self._late.go_on(late, past)
        except ImageError as error:
            self._unusable(error)
        except Exception as error:
            self._failed(error)  # the objects were accepted: they go on without this image
        return []

    def _begin_late(self, late: Late, past: Past) -> list[PromptAnswer]:
        try:
            frames_back = sum(stamp >= past.stamp for stamp in self._steps)  # as it was before this image
            result = self._late.begin(late, self.tracker, frames_back, self.parameters.catch_up_images)
        except Exception as error:
            requests = [request for requests in late.waiting.values() for request in requests]
            self._late.drop(late)
            reason = self._failed(error)
            return [refuse(request, reason) for request in requests]
        header, answers = past.message.header, []
        for object_id, requests in late.waiting.items():
            found = result.objects[object_id]
            label = late.batch.labels.get(object_id)
            item = sighting(object_id, self._states.label(object_id) if label is None else label, found.mask,
                            unit(found.iou), probability(found.object_score), header.stamp)
            answers += [PromptAnswer(request, object_id, header, item=item) for request in requests]
        late.waiting.clear()
        return answers
