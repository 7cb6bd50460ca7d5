"""Work of one camera: images and prompts in, frames and answers out."""
from __future__ import annotations

import threading
import time

import numpy as np
from builtin_interfaces.msg import Time
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import Header

from sam2_core import EncodedImage, ImageSegmenter, StreamTracker
from sam2_core.scores import score_correction
from sam2_ros.depth.matching import DepthMailbox
from sam2_ros.messages.conversions import to_nanoseconds
from sam2_ros.perception.camera_clock import CameraClock
from sam2_ros.perception.camera_image import CameraImage
from sam2_ros.perception.frame import Frame
from sam2_ros.perception.image_decoder import ImageDecoder
from sam2_ros.perception.image_depth import ImageDepth, TargetLookup
from sam2_ros.perception.image_history import ImageHistory
from sam2_ros.perception.image_intake import ImageIntake
from sam2_ros.perception.inbox import Inbox
from sam2_ros.perception.late_prompts import LatePrompts
from sam2_ros.perception.load_shedding import Level, LoadShedder, half_of_recent_frames
from sam2_ros.perception.meter import Meter
from sam2_ros.perception.object_states import ObjectStates
from sam2_ros.perception.open_requests import OpenRequests
from sam2_ros.perception.prompt_plan import Ids, Plan, PromptAnswer, PromptRequest, refuse
from sam2_ros.perception.prompt_routing import PromptRouter, Routing
from sam2_ros.perception.single_image import Queries, Query
from sam2_ros.perception.skipped_images import WARN_EVERY, SkippedImages
from sam2_ros.perception.tracked_objects import TrackedObjects
from sam2_ros.runtime.failures import Failures
from sam2_ros.runtime.logger import Logger
from sam2_ros.runtime.parameters import Parameters


class CameraPipeline:
    """Steps of one camera, without its topics.

    An image passes from top to bottom:

    1. ``put_image`` receives it, in any thread.
    2. ``take`` chooses the newest image and decodes it.
    3. ``work`` routes the prompts, steps the objects, locates them by depth and returns the frame and the answers.
    4. ``finish`` counts the published frame and sheds load.

    All but the first step belong to the worker. Between images it calls ``work_aside`` for a slice of late prompts and
    queries. None of these raises: a step that fails costs its own result (``failures``), and every prompt in the inbox
    is answered once.
    """

    def __init__(self, tracker: StreamTracker, parameters: Parameters, changed: threading.Condition, topic: str,
                 logger: Logger, depth: DepthMailbox | None = None, failures: Failures | None = None,
                 ids: Ids | None = None, target: TargetLookup | None = None) -> None:
        """Create a pipeline without objects.

        Args:
            tracker: Tracker of the live objects.
            parameters: Those of the node; ``change`` replaces them.
            changed: Notified of everything that arrives.
            topic: Topic of the images, named in logs and reasons.
            logger: Receives warnings.
            depth: Depth of the camera; None tracks without depth.
            failures: Record of failed steps; None creates one.
            ids: Source of ids for new objects; None starts from 1.
            target: Finds transforms into target_frame; None: positions stay in the camera's frame.
        """
        self.topic = topic
        self.parameters = parameters  # may be replaced at any time by a newer set
        self.depth = depth
        self.failures = failures or Failures(logger, topic)
        self.inbox = Inbox(changed)
        self.decoder = ImageDecoder(topic, logger)
        self.history = ImageHistory(self.decoder.past)
        self.meter = Meter()
        self.shedder = LoadShedder()
        self.skipped = SkippedImages(topic, self.meter, self.failures, logger)
        self._logger = logger
        self._segmenter = ImageSegmenter(tracker.model)
        self._intake = ImageIntake(self.inbox, self.history, self.meter, self.failures, self.skipped, self.decoder)
        self._depth = ImageDepth(depth, self.history, self.meter, self.failures, target, logger)
        states = ObjectStates(score_correction(parameters.model, parameters.checkpoint))
        self.objects = TrackedObjects(tracker, states, self.failures)
        self.late = LatePrompts(self.history, self.objects, self.failures, self.skipped)
        self._router = PromptRouter(self.history, self.late, topic, ids or Ids(), self.failures, self.skipped,
                                    tracker.model.image_size)
        self._requests = OpenRequests(self.inbox, self.late, self.failures)
        self._queries = Queries(self._segmenter, self.history, self.failures, self.skipped,
                                lambda image: self._depth.past(image, self.parameters), self.decoder)
        self._taken: CameraImage | None = None  # not yet processed
        self._newest: CameraImage | None = None  # processed
        self._late_is_next = True  # of the work aside
        self.clock = CameraClock()

    # --- any thread

    def put_image(self, message: Image | CompressedImage, arrived: float | None = None) -> bool:
        """Receive an image; return False if its stamp rules it out.

        arrived: Seconds of any clock that advances while images arrive; None reads the clock of this machine.
        """
        return self._intake.put(message, arrived, self.parameters)

    def change(self, parameters: Parameters) -> None:
        """Replace the parameters, also for prompts that wait already."""
        self.parameters = parameters
        self.inbox.notify()

    @property
    def newest_view(self) -> tuple[Header | None, tuple[int, int]]:
        """Header and size (height, width) of the last processed image; (None, (0, 0)) before the first."""
        return _view(self._newest)

    @property
    def taken_view(self) -> tuple[Header | None, tuple[int, int]]:
        """Header and size of the image that ``take`` has chosen; (None, (0, 0)) without one."""
        return _view(self._taken)

    # --- what there is to do

    def seconds_to_deadline(self) -> float | None:
        """Return the seconds until the first waiting prompt or query has to be refused; None if none waits."""
        received = [moment for moment in (self.inbox.oldest_prompt(), self._queries.oldest_waiting)
                    if moment is not None]
        return max(0.0, min(received) + self.parameters.prompt_timeout - time.monotonic()) if received else None

    def has_work_aside(self) -> bool:
        """Return whether a late prompt or a query can be worked on."""
        return bool(self._queries) or (self._newest is not None and self.late.next(_stamp(self._newest)) is not None)

    # --- the way of an image

    def take(self) -> bool:
        """Choose and decode the newest image; return False if there is none to process."""
        image = self._intake.take(self.parameters)
        if image is None:
            return False
        self._taken = image
        self._depth.expect(image.header)
        return True

    def image_to_encode(self) -> np.ndarray | None:
        """Return the image taken, uint8 RGB (H, W, 3), if its features are sure to be needed."""
        return self._taken.image if self._taken is not None and self.objects.ids else None

    def work(self, encoded: EncodedImage | None = None) -> tuple[Frame | None, list[PromptAnswer]]:
        """Process the image taken and the prompts; return the frame, None without an image, and the answers.

        encoded: Features of ``image_to_encode``, if they have been computed already.
        """
        image, self._taken = self._taken, None
        queries: list[Query] = []
        frame, answers, reason = None, [], ''
        try:
            requests, queries = self.inbox.look()
            self._requests.begin(requests)
            if image is None:
                routing = self._route(requests, None)
                self.objects.forget(routing.plan.forget)
                answers = routing.answers
            else:
                image.encoded = encoded
                frame, answers = self._process(image, requests)
        except Exception as error:
            reason = self.failures.report('image', error)
            if image is not None:
                self.inbox.count_dropped()
        self._queries.submit(queries, self._newest, self.parameters.prompt_timeout)
        return frame, self._requests.settle(answers, reason)

    def _process(self, image: CameraImage, requests: list[PromptRequest]) -> tuple[Frame | None, list[PromptAnswer]]:
        header, run = image.header, self.failures.run
        refusals = run('time jump', self._follow_clock, header.stamp, default=[])
        joined = set() if self._newest is None else self.late.join(_stamp(self._newest))
        routing = run('prompts', self._route, requests, image) or Routing(Plan(self.objects.ids, 0), header)
        prompted = routing.plan.now
        try:
            outcome = self.objects.step(image, self._segmenter, prompted, routing.plan.forget)
        except Exception as error:
            self.inbox.count_dropped()
            return None, refusals + routing.failed(self.skipped.fail(error))
        self._newest, self.clock.newest = image, _stamp(image)
        self.skipped.clear()
        items = run('states', self.objects.observe, outcome, header.stamp, prompted.labels,
                    joined | prompted.prompts.keys(), self.parameters, self.late.object_ids)
        if items is None:
            items = self.objects.without_states(outcome, header.stamp)
        items = self._depth.locate(image, items, self.objects, self.parameters)
        frame = Frame(header, image.image, items, run('meter', self.inbox.take_dropped, default=0), image.depth,
                      run('events', self.objects.states.take_events, default=[]), image.target)
        return frame, refusals + routing.applied(outcome.refused, items)

    def _route(self, requests: list[PromptRequest], image: CameraImage | None) -> Routing:
        routing = self._router.route(requests, image, self.newest_view[0], self.objects.ids, self.parameters)
        self._requests.routed(routing.waiting)
        return routing

    def _follow_clock(self, stamp: Time) -> list[PromptAnswer]:
        """Follow a jump of the camera's clock to this stamp; return refusals of the prompts that it cancels."""
        jump = self.clock.jump(to_nanoseconds(stamp), self._intake.clock_jumps)
        if jump == 0:
            return []
        if jump > 0:  # no object has been hidden for as long as the stamps say
            self.objects.time_jumped(stamp, back=False)
            return []
        reset = self.parameters.on_time_jump == 'reset'
        self._logger.warning(f'{self.topic}: image stamps jumped back by {-jump / 1e9:.3f} s; '
                             f'objects are {"forgotten" if reset else "kept"} (on_time_jump)',
                             throttle_duration_sec=WARN_EVERY)
        self.late.join(None)
        self.objects.time_jumped(stamp, back=True)
        if not reset:
            return []
        taken_back = self.late.cancel_all()
        self.objects.reset()
        return [refuse(request, 'image stamps jumped back before it was applied, and objects are forgotten then '
                                '(on_time_jump)') for request in taken_back]

    def finish(self, frame: Frame, latency: float, now: float) -> None:
        """Count a published frame, and shed load if frames are late.

        Args:
            frame: What ``work`` returned.
            latency: Seconds from the stamp of the image to publication; 0 if it has none.
            now: Seconds, time.monotonic() or a simulated clock.
        """
        self.failures.run('meter', lambda: self.meter.processed(
            now, latency, frame.objects, dropped=frame.dropped, memory_bytes=self.objects.tracker.memory_bytes,
            catching_up=len(self.late.object_ids)))
        self.failures.run('load shedding', self._shed, latency, now)

    def _shed(self, latency: float, now: float) -> None:
        chosen, before = self.parameters, self.shedder.level
        level = self.shedder.update(latency, now, chosen.latency_target, chosen.shed_load)
        if level != before:
            self._logger.warning(f'{self.topic}: load shedding level {int(level)}: {level.description} '
                                 f'(latency_target {chosen.latency_target:g} s)')
        self.apply_level(level)

    def apply_level(self, level: Level) -> None:
        """Apply a load-shedding level to tracking and to the choice of images; publishers apply the rest."""
        tracker = self.objects.tracker
        tracker.recent_frames = half_of_recent_frames(tracker.model) if level >= Level.MEMORY else None
        self._intake.every_second = level >= Level.IMAGES

    # --- aside

    def work_aside(self) -> list[PromptAnswer]:
        """Work on a slice of the late prompts or of the queries, in turn; return the answers to prompts."""
        late = None if self._newest is None else self.late.next(_stamp(self._newest))
        if late is not None and (self._late_is_next or not self._queries):
            self._late_is_next = False
            return self._requests.settle(self.failures.run('late prompt', self.late.advance, *late,
                                                           self.parameters.catch_up_images, default=[]))
        self._late_is_next = True
        if self._queries:
            self.failures.run('query', self._queries.advance, self.parameters.edge_erosion)
        return []

    # --- the end

    def drain(self, reason: str) -> list[PromptAnswer]:
        """Refuse everything that waits and let objects under way join where they are. The worker must have ended."""
        self.inbox.take_image()
        self.inbox.take_dropped()
        self._taken = None
        self.late.join(None)
        requests, queries = self.inbox.look()
        self._requests.begin(requests)
        self.late.cancel_all()
        self._queries.submit(queries, self._newest, self.parameters.prompt_timeout)
        self._queries.refuse(reason)
        return self._requests.refuse_all(reason)

    def abandon(self, reason: str) -> list[PromptAnswer]:
        """Refuse what is in the inbox while a worker that did not end may still be busy with the rest."""
        requests, queries = self.inbox.look()
        self.inbox.remove(requests)
        for query in queries:
            query.reply(reason)
        return [refuse(request, reason) for request in requests]


def _view(image: CameraImage | None) -> tuple[Header | None, tuple[int, int]]:
    return (None, (0, 0)) if image is None else (image.header, image.image.shape[:2])


def _stamp(image: CameraImage) -> int:
    """Return the stamp of an image, ns."""
    return to_nanoseconds(image.header.stamp)
