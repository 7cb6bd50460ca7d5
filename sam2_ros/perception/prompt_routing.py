"""Which image each prompt belongs to: the one at hand, a past one, or one that is still to come."""
from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, field

from std_msgs.msg import Header

from sam2_core import PromptError
from sam2_ros.messages.conversions import to_nanoseconds, to_rgb
from sam2_ros.msg import Prompt as PromptMessage
from sam2_ros.perception.camera_image import CameraImage
from sam2_ros.perception.image_history import ImageHistory, NotStored, StoredImage
from sam2_ros.perception.late_prompts import MAX_UNDER_WAY, LatePrompts
from sam2_ros.perception.prompt_plan import NEEDS_IMAGE, Ids, Plan, PromptAnswer, PromptRequest, check_frame, refuse
from sam2_ros.perception.skipped_images import SkippedImages
from sam2_ros.runtime.failures import Failures
from sam2_ros.runtime.parameters import Parameters

NOW = object()


class Wait(str):
    """A prompt has to wait; the text is the reason, should it have waited too long."""


@dataclass(eq=False)
class Routing:
    """What a number of prompts come to."""

    plan: Plan
    header: Header  # of the image that prompts are answered with that need none
    answers: list[PromptAnswer] = field(default_factory=list)
    waiting: dict[PromptRequest, Wait] = field(default_factory=dict)


class PromptRouter:
    """Reads the prompts of one camera. Those for a past image go to ``late``, where they are answered later."""

    def __init__(self, history: ImageHistory, late: LatePrompts, topic: str, ids: Ids, failures: Failures,
                 skipped: SkippedImages, image_size: int) -> None:
        """``image_size``: of the model."""
        self._history = history
        self._late = late
        self._topic = topic
        self._ids = ids
        self._failures = failures
        self._skipped = skipped
        self._image_size = image_size

    def read(self, requests: Iterable[PromptRequest], picture: CameraImage | None, newest: Header | None,
             tracked: Iterable[int], parameters: Parameters) -> Routing:
        """What these come to together with ``picture``, the image at hand, or with none.

        newest: of the last image that was processed. tracked: the objects of the live tracker.
        """
        def cancel(object_id: int) -> None:
            reading.answers += [refuse(request, 'taken back before it was applied')
                                for request in self._late.cancel(object_id)]
        plan = Plan(tracked, parameters.max_objects, self._late.object_ids, cancel, self._ids, self._image_size)
        reading = Routing(plan, picture.header if picture else newest or Header())
        for request in requests:
            taken_back = [other for other in reading.waiting if _takes_back(request.message, other.message)]
            for other in taken_back:
                del reading.waiting[other]
            reading.answers += [refuse(other, 'taken back before an image arrived') for other in taken_back]
            try:
                self._read(request, reading, picture, newest, parameters.prompt_timeout)
            except PromptError as error:
                reading.answers.append(PromptAnswer(request, request.message.id, reading.header) if taken_back
                                       else refuse(request, str(error)))
            except Exception as error:
                reading.answers.append(refuse(request, f'the prompt cannot be read: '
                                                       f'{self._failures.report("prompt", error)}'))
        self._expire(reading, parameters.prompt_timeout)
        return reading

    def _read(self, request: PromptRequest, reading: Routing, picture: CameraImage | None, newest: Header | None,
              timeout: float) -> None:
        message, plan = request.message, reading.plan
        if message.action not in NEEDS_IMAGE:
            reading.answers.append(PromptAnswer(request, plan.add(message, 0, 0), reading.header))
            return
        target = self._target(message, reading, picture, newest, timeout)
        if not isinstance(target, Wait):
            check_frame(message, picture.header if target is NOW else target.message.header)
        if target is NOW:
            object_id = plan.add(message, *picture.image.shape[:2])
            reading.answers.append(PromptAnswer(request, object_id, picture.header))
            return
        late = None if isinstance(target, Wait) else self._late.place(target, lambda: _decode(target))
        if late is None:
            reading.waiting[request] = target if isinstance(target, Wait) else Wait(
                f'prompts for {MAX_UNDER_WAY} past images were still being worked on after {timeout:g} s: send fewer, '
                f'or raise prompt_timeout')
            return
        corrected = message.action == PromptMessage.REFINE and plan.tracks(message.id) and (
            message.id not in late.batch.prompts or message.id in late.corrected)
        object_id = plan.add(message, *late.image.shape[:2], late.batch)
        self._late.add(late, object_id, request, corrected)

    def _target(self, message: PromptMessage, reading: Routing, picture: CameraImage | None,
                newest: Header | None, timeout: float) -> StoredImage | object | Wait:
        """Return NOW, a past image, or Wait. PromptError when its image is gone."""
        if message.id:
            for other, reason in reading.waiting.items():
                if other.message.id == message.id:  # prompts for one object keep their order
                    return Wait(f'an earlier prompt for object {message.id} waits: {reason}')
        drawn = to_nanoseconds(message.header.stamp)
        if picture is not None:
            stamp = to_nanoseconds(picture.header.stamp)
        elif newest is not None and drawn:
            stamp = to_nanoseconds(newest.stamp)
        else:
            return Wait()
        if drawn > stamp:
            return Wait(f'no image with its stamp {drawn / 1e9:.3f} or a later one on {self._topic} within '
                        f'{timeout:g} s; the newest has {stamp / 1e9:.3f}: is the camera running, and does the prompt '
                        f'have the header of an image of this camera?')
        target = NOW if drawn in (0, stamp) and picture is not None else self._past(drawn)
        if target is not NOW and target.stamp >= stamp and picture is not None:
            target = NOW
        if message.action == PromptMessage.REFINE and message.id in self._late.object_ids and (
                target is NOW or not self._late.awaits(target, message.id)):
            return Wait(f'object {message.id} was still on its way from a past image after {timeout:g} s: send '
                        f'corrections of it later, or raise prompt_timeout')
        if target is not NOW and message.id in reading.plan.now.prompts:
            return Wait(f'an earlier prompt for object {message.id} was applied to a newer image: send prompts in the '
                        f'order of their images')
        return target

    def _past(self, drawn: int) -> StoredImage:
        try:
            return self._history.at(drawn)
        except NotStored as error:
            raise PromptError(str(error)) from None

    def _expire(self, reading: Routing, timeout: float) -> None:
        limit = time.monotonic() - timeout
        for request, reason in [*reading.waiting.items()]:
            if request.received <= limit:
                del reading.waiting[request]
                reason = reason + self._skipped.hint() if reason else self._skipped.why_no_image(timeout)
                reading.answers.append(refuse(request, reason))


def _decode(past: StoredImage):
    try:
        return to_rgb(past.message)
    except Exception as error:  # also what a decoder may raise that is not ours: whoever waits has to be told
        raise PromptError(f'its image cannot be used: {error}') from None


def _takes_back(message: PromptMessage, waiting: PromptMessage) -> bool:
    if message.action == PromptMessage.REMOVE:
        return message.id == waiting.id != 0  # 0 asks for any free id: nobody knows yet which
    return message.action == PromptMessage.CLEAR
