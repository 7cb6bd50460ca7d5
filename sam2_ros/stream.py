"""One camera: its newest image, its waiting prompts, its tracker and what is known about its objects."""
from __future__ import annotations

import math
import threading
import time
import traceback
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from builtin_interfaces.msg import Time
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import Header

from sam2_core import ObjectResult, PromptError, StreamTracker
from sam2_ros.conversions import ImageError, to_nanoseconds, to_rgb
from sam2_ros.frame import Frame, TrackedObject
from sam2_ros.msg import Instance
from sam2_ros.msg import Prompt as PromptMessage
from sam2_ros.parameters import Parameters
from sam2_ros.prompting import NEEDS_IMAGE, Plan, PromptAnswer, PromptRequest, refuse

TIME_JUMP = 1_000_000_000  # ns a stamp has to go back to count as one: images may be slightly out of order
WARN_EVERY = 5.0  # seconds


class Mailbox:
    """Where the receiving thread leaves images and prompts for the worker. A newer image replaces an older."""

    PROMPT_LIMIT = 100

    def __init__(self, changed: threading.Condition) -> None:
        """``changed`` is notified of each arrival, and guards the content."""
        self._changed = changed
        self._image: Image | CompressedImage | None = None
        self._dropped = 0
        self._prompts: list[PromptRequest] = []
        self._prompts_are_new = False

    def put_image(self, message: Image | CompressedImage) -> None:
        with self._changed:
            self._dropped += self._image is not None
            self._image = message
            self._changed.notify()

    def put_prompt(self, request: PromptRequest) -> bool:
        """False when too many are waiting already."""
        with self._changed:
            if len(self._prompts) >= self.PROMPT_LIMIT:
                return False
            self._prompts.append(request)
            self._prompts_are_new = True
            self._changed.notify()
            return True

    def has_news(self) -> bool:
        with self._changed:
            return self._image is not None or self._prompts_are_new

    def oldest_prompt(self) -> float | None:
        """When the first waiting prompt was received, seconds, time.monotonic()."""
        with self._changed:
            return min((request.received for request in self._prompts), default=None)

    def take_image(self) -> Image | CompressedImage | None:
        with self._changed:
            message, self._image = self._image, None
            return message

    def take_prompts(self) -> list[PromptRequest]:
        with self._changed:
            requests, self._prompts = self._prompts, []
            self._prompts_are_new = False
            return requests

    def return_prompts(self, requests: list[PromptRequest]) -> None:
        """Put back what has to wait for an image, before what arrived meanwhile."""
        with self._changed:
            self._prompts = requests + self._prompts

    def count_dropped(self) -> None:
        with self._changed:
            self._dropped += 1

    def take_dropped(self) -> int:
        with self._changed:
            dropped, self._dropped = self._dropped, 0
            return dropped


@dataclass(eq=False)
class _Record:
    label: str
    last_seen: Time  # 0: never
    unseen_since: int  # ns; of the last image it was visible in, or of its first prompt


class Stream:
    """Everything about one camera but its topics. Any thread may fill ``mailbox``, the rest is the worker's."""

    def __init__(self, tracker: StreamTracker, parameters: Parameters, mailbox: Mailbox, topic: str, logger) -> None:
        """``topic`` is named where images are found to be wrong or missing."""
        self.mailbox = mailbox
        self.parameters = parameters  # may be replaced at any time by a newer set
        self._tracker = tracker
        self._topic = topic
        self._logger = logger
        self._records: dict[int, _Record] = {}
        self._header = Header()  # of the last image
        self._last_stamp: int | None = None  # ns

    def seconds_to_deadline(self) -> float | None:
        """Until the first waiting prompt has to be refused; None when none waits."""
        received = self.mailbox.oldest_prompt()
        return None if received is None else max(0.0, received + self.parameters.prompt_timeout - time.monotonic())

    def work(self) -> tuple[Frame | None, list[PromptAnswer]]:
        """Do what can be done with what is in the mailbox: the frame, if there was an image, and the answers."""
        message = self.mailbox.take_image()
        image = None if message is None else self._picture(message)
        requests = self.mailbox.take_prompts()
        if image is None:
            return None, self._apply_without_image(requests)
        return self._process(message.header, image, requests)

    def drain(self, reason: str) -> list[PromptAnswer]:
        """Empty the mailbox; the prompts in it are refused."""
        self.mailbox.take_image()
        self.mailbox.take_dropped()
        return [refuse(request, reason) for request in self.mailbox.take_prompts()]

    def reset(self) -> None:
        """Forget all objects."""
        self._tracker.reset()
        self._records.clear()

    def _picture(self, message: Image | CompressedImage) -> np.ndarray | None:
        try:
            return to_rgb(message)
        except ImageError as error:
            self.mailbox.count_dropped()
            self._logger.warning(f'{self._topic}: image skipped: {error}', throttle_duration_sec=WARN_EVERY)
            return None

    def _apply_without_image(self, requests: list[PromptRequest]) -> list[PromptAnswer]:
        """REMOVE and CLEAR need no image and take back what waits for one; SET and REFINE go on waiting, for a time."""
        answers: list[PromptAnswer] = []
        waiting: list[PromptRequest] = []
        for request in requests:
            message = request.message
            if message.action in NEEDS_IMAGE:
                waiting.append(request)
                continue
            taken_back = [other for other in waiting if _takes_back(message, other.message)]
            waiting = [other for other in waiting if other not in taken_back]
            answers += [refuse(other, 'taken back before an image arrived') for other in taken_back]
            plan = Plan(self._records, self.parameters.max_objects)
            try:
                object_id = plan.add(message, 0, 0)
            except PromptError as error:
                answers.append(PromptAnswer(request, message.id, self._header) if taken_back
                               else refuse(request, str(error)))
                continue
            self._forget(plan.forget)
            answers.append(PromptAnswer(request, object_id, self._header))
        expired = time.monotonic() - self.parameters.prompt_timeout
        reason = f'no image on {self._topic} for {self.parameters.prompt_timeout:g} s: is the camera running?'
        answers += [refuse(request, reason) for request in waiting if request.received <= expired]
        self.mailbox.return_prompts([request for request in waiting if request.received > expired])
        return answers

    def _process(self, header: Header, image: np.ndarray,
                 requests: list[PromptRequest]) -> tuple[Frame | None, list[PromptAnswer]]:
        stamp = to_nanoseconds(header.stamp)
        self._notice_time_jump(stamp)
        plan, answers = self._plan(requests, header, image)
        self._forget(plan.forget)
        try:
            result = self._tracker.step(image, plan.prompts)
        except Exception as error:
            # whoever waits has to be told, the node and its other objects go on
            self._logger.error(f'{self._topic}: image skipped:\n{traceback.format_exc()}',
                               throttle_duration_sec=WARN_EVERY)
            self.mailbox.count_dropped()
            reason = f'the model failed on this image: {type(error).__name__}: {error}'
            return None, [refuse(answer.request, reason)
                          if answer.accepted and answer.request.message.action in NEEDS_IMAGE else answer
                          for answer in answers]
        self._header, self._last_stamp = header, stamp
        for object_id, label in plan.labels.items():
            self._records.setdefault(object_id, _Record('', Time(), stamp)).label = label
        objects = [self._observe(object_id, found, header.stamp) for object_id, found in result.objects.items()]
        return Frame(header, image, objects, self.mailbox.take_dropped()), answers

    def _plan(self, requests: Iterable[PromptRequest], header: Header,
              image: np.ndarray) -> tuple[Plan, list[PromptAnswer]]:
        plan = Plan(self._records, self.parameters.max_objects)
        answers = []
        for request in requests:
            try:
                answers.append(PromptAnswer(request, plan.add(request.message, *image.shape[:2]), header))
            except PromptError as error:
                answers.append(refuse(request, str(error)))
        return plan, answers

    def _forget(self, object_ids: Iterable[int]) -> None:
        for object_id in object_ids:
            self._tracker.remove(object_id)
            del self._records[object_id]

    def _observe(self, object_id: int, found: ObjectResult, stamp: Time) -> TrackedObject:
        record = self._records[object_id]
        now = to_nanoseconds(stamp)
        visibility = 0.5 + 0.5 * math.tanh(found.object_score / 2)  # the sigmoid, without overflow
        if found.object_score > 0 and found.box is not None:
            record.last_seen, record.unseen_since = stamp, now
            return TrackedObject(object_id, record.label, Instance.TRACKED, found.iou, visibility, stamp, found.box,
                                 found.mask)
        lost = now - record.unseen_since > self.parameters.lost_after * 1e9
        return TrackedObject(object_id, record.label, Instance.LOST if lost else Instance.OCCLUDED, 0.0, visibility,
                             record.last_seen)

    def _notice_time_jump(self, stamp: int) -> None:
        if self._last_stamp is None or stamp > self._last_stamp - TIME_JUMP:
            return
        reset = self.parameters.on_time_jump == 'reset'
        self._logger.warning(f'{self._topic}: image stamps jumped back by {(self._last_stamp - stamp) / 1e9:.3f} s; '
                             f'objects are {"forgotten" if reset else "kept"} (on_time_jump)')
        if reset:
            self.reset()
        for record in self._records.values():
            record.unseen_since = stamp


def _takes_back(message: PromptMessage, waiting: PromptMessage) -> bool:
    if message.action == PromptMessage.REMOVE:
        return message.id == waiting.id != 0  # 0 asks for any free id: nobody knows yet which
    return message.action == PromptMessage.CLEAR
