"""Assignment of prompts to images: the image in work, one of the history, or one that is still to come."""
from __future__ import annotations

import time
import weakref
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import numpy as np
from std_msgs.msg import Header

from sam2_core import PromptError
from sam2_ros.messages.conversions import to_nanoseconds
from sam2_ros.msg import Prompt as PromptMessage
from sam2_ros.perception.camera_image import CameraImage
from sam2_ros.perception.frame import TrackedObject
from sam2_ros.perception.image_history import ImageHistory, NotStored, StoredImage
from sam2_ros.perception.late_prompts import MAX_UNDER_WAY, LatePrompts
from sam2_ros.perception.prompt_plan import NEEDS_IMAGE, Ids, Plan, PromptAnswer, PromptRequest, check_frame, refuse
from sam2_ros.perception.skipped_images import SkippedImages
from sam2_ros.runtime.failures import Failures
from sam2_ros.runtime.parameters import Parameters


class Wait(str):
    """A prompt has to wait. The text is the reason for its refusal, should it wait too long."""


@dataclass(eq=False)
class Routing:
    """Outcome of routing prompts."""

    plan: Plan  # of the image in work
    header: Header  # that prompts are answered with which need no image
    answers: list[PromptAnswer] = field(default_factory=list)
    waiting: dict[PromptRequest, Wait] = field(default_factory=dict)

    def failed(self, reason: str) -> list[PromptAnswer]:
        """Return the answers for the case that the model failed on the image in work."""
        return [refuse(answer.request, reason) if self._concerns_image(answer) else answer for answer in self.answers]

    def applied(self, refused: dict[int, str], items: Iterable[TrackedObject]) -> list[PromptAnswer]:
        """Return the answers with the results of the prompts in the image in work.

        Args:
            refused: Objects whose prompts were not applied, and why.
            items: Objects of the image.
        """
        found = {item.id: item for item in items}
        answers = []
        for answer in self.answers:
            if answer.id in refused and self._concerns_image(answer):
                answer = refuse(answer.request, refused[answer.id])
            elif answer.accepted:
                answer = replace(answer, item=found.get(answer.id))
            answers.append(answer)
        return answers

    def _concerns_image(self, answer: PromptAnswer) -> bool:
        """Return whether the answer accepts a prompt that is drawn on the image in work."""
        return answer.accepted and answer.header is self.header and answer.request.message.action in NEEDS_IMAGE


class PromptRouter:
    """Router of one camera's prompts. Those for a past image become late prompts, which are answered later."""

    def __init__(self, history: ImageHistory, late: LatePrompts, topic: str, ids: Ids, failures: Failures,
                 skipped: SkippedImages, image_size: int) -> None:
        """``topic`` is that of the images, ``image_size`` that of the model."""
        self._history = history
        self._late = late
        self._topic = topic
        self._ids = ids
        self._failures = failures
        self._skipped = skipped
        self._image_size = image_size
        # the request that last started each object, while its sender holds it
        self._starts: weakref.WeakValueDictionary[int, PromptRequest] = weakref.WeakValueDictionary()

    def route(self, requests: Iterable[PromptRequest], image: CameraImage | None, newest: Header | None,
              tracked: Iterable[int], parameters: Parameters) -> Routing:
        """Plan the prompts for an image and answer those that need none.

        Args:
            requests: All that wait, in their order.
            image: Image in work, or None.
            newest: Header of the last processed image.
            tracked: Objects of the live tracker.
            parameters: Those of the node.
        """
        def cancel(object_id: int) -> None:
            routing.answers += [refuse(request, 'taken back before it was applied')
                                for request in self._late.cancel(object_id)]
        plan = Plan(tracked, parameters.max_objects, self._late.object_ids, cancel, self._ids, self._image_size)
        routing = Routing(plan, image.header if image else newest or Header())
        for request in requests:
            if reason := self._outdated(request):
                routing.answers.append(refuse(request, reason))
                continue
            taken_back = [other for other in routing.waiting if _takes_back(request, other.message)]
            for other in taken_back:
                del routing.waiting[other]
            routing.answers += [refuse(other, 'taken back before an image arrived') for other in taken_back]
            try:
                self._route(request, routing, image, newest, parameters.prompt_timeout)
            except PromptError as error:
                routing.answers.append(PromptAnswer(request, request.message.id, routing.header) if taken_back
                                       else refuse(request, str(error)))
            except Exception as error:
                routing.answers.append(refuse(request, f'the prompt cannot be read: '
                                                       f'{self._failures.report("prompt", error)}'))
        self._expire(routing, parameters.prompt_timeout)
        return routing

    def _route(self, request: PromptRequest, routing: Routing, image: CameraImage | None, newest: Header | None,
               timeout: float) -> None:
        message, plan = request.message, routing.plan
        if message.action not in NEEDS_IMAGE:
            routing.answers.append(PromptAnswer(request, plan.add(message, 0, 0), routing.header))
            return
        target = self._target(message, routing, image, newest, timeout)
        if isinstance(target, Wait):
            routing.waiting[request] = target
            return
        if isinstance(target, CameraImage):
            check_frame(message, target.header)
            height, width = target.image.shape[:2]
            routing.answers.append(PromptAnswer(request, plan.add(message, height, width), target.header))
            self._note_start(request, routing.answers[-1].id)
            return
        check_frame(message, target.message.header)
        late = self._late.place(target, lambda: _decode(target))
        if late is None:
            routing.waiting[request] = Wait(
                f'prompts for {MAX_UNDER_WAY} past images were still being worked on after {timeout:g} s: send fewer, '
                f'or raise prompt_timeout')
            return
        corrected = message.action == PromptMessage.REFINE and plan.tracks(message.id) and (
            message.id not in late.batch.prompts or message.id in late.corrected)
        height, width = late.image.shape[:2]
        object_id = plan.add(message, height, width, late.batch)
        self._late.add(late, object_id, request, corrected)
        self._note_start(request, object_id)

    def _note_start(self, request: PromptRequest, object_id: int) -> None:
        if request.message.action == PromptMessage.SET:
            self._starts[object_id] = request

    def _outdated(self, request: PromptRequest) -> str:
        """Return the reason why a request is no longer to be applied, or ''."""
        if request.withdrawn is not None and request.withdrawn():
            return 'taken back before it was applied'
        if request.started_by is not None and self._starts.get(request.message.id) is not request.started_by:
            return f'object {request.message.id} has been started again by another prompt'
        return ''

    def _target(self, message: PromptMessage, routing: Routing, image: CameraImage | None,
                newest: Header | None, timeout: float) -> CameraImage | StoredImage | Wait:
        """Return the image that a prompt belongs to, or Wait. Raises PromptError if that image is gone."""
        if message.id:
            for other, reason in routing.waiting.items():
                if other.message.id == message.id:  # prompts for one object keep their order
                    return Wait(f'an earlier prompt for object {message.id} waits: {reason}')
        drawn = to_nanoseconds(message.header.stamp)
        if image is not None:
            stamp = to_nanoseconds(image.header.stamp)
        elif newest is not None and drawn:
            stamp = to_nanoseconds(newest.stamp)
        else:
            return Wait()
        if drawn > stamp:
            return Wait(f'no image with its stamp {drawn / 1e9:.3f} or a later one on {self._topic} within '
                        f'{timeout:g} s; the newest has {stamp / 1e9:.3f}: is the camera running, and does the prompt '
                        f'have the header of an image of this camera?')
        target: CameraImage | StoredImage
        if image is not None and drawn in (0, stamp):
            target = image
        else:
            stored = self._stored(drawn)
            target = image if image is not None and stored.stamp >= stamp else stored
        if message.action == PromptMessage.REFINE and message.id in self._late.object_ids and (
                isinstance(target, CameraImage) or not self._late.awaits(target, message.id)):
            return Wait(f'object {message.id} was still on its way from a past image after {timeout:g} s: send '
                        f'corrections of it later, or raise prompt_timeout')
        if isinstance(target, StoredImage) and message.id in routing.plan.now.prompts:
            return Wait(f'an earlier prompt for object {message.id} was applied to a newer image: send prompts in the '
                        f'order of their images')
        return target

    def _stored(self, drawn: int) -> StoredImage:
        try:
            return self._history.at(drawn)
        except NotStored as error:
            raise PromptError(str(error)) from None

    def _expire(self, routing: Routing, timeout: float) -> None:
        """Refuse the prompts that have waited too long."""
        limit = time.monotonic() - timeout
        for request, wait in [*routing.waiting.items()]:
            if request.received <= limit:
                del routing.waiting[request]
                reason = wait + self._skipped.hint() if wait else self._skipped.why_no_image(timeout)
                routing.answers.append(refuse(request, reason))


def _decode(stored: StoredImage) -> np.ndarray:
    try:
        return stored.rgb()
    except Exception as error:  # also from a decoder that is not ours: the prompt has to be answered
        raise PromptError(f'its image cannot be used: {error}') from None


def _takes_back(request: PromptRequest, waiting: PromptMessage) -> bool:
    message = request.message
    if message.action == PromptMessage.REMOVE:
        if request.started_by is not None and waiting.action == PromptMessage.SET:
            return False
        return message.id == waiting.id != 0  # 0 asks for any free id, which nobody knows yet
    return message.action == PromptMessage.CLEAR
