"""Which image each prompt belongs to: the one at hand, a past one, or one that is still to come."""
from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, field

from std_msgs.msg import Header

from sam2_core import PromptError
from sam2_ros.catch_up import CatchUp
from sam2_ros.conversions import to_nanoseconds, to_rgb
from sam2_ros.history import History, NotKept, Past
from sam2_ros.msg import Prompt as PromptMessage
from sam2_ros.one_shot import Picture
from sam2_ros.parameters import Parameters
from sam2_ros.prompting import NEEDS_IMAGE, Plan, PromptAnswer, PromptRequest, refuse

NOW = object()


@dataclass(eq=False)
class Reading:
    """What a number of prompts come to."""

    plan: Plan
    header: Header  # of the image that prompts are answered with that need none
    answers: list[PromptAnswer] = field(default_factory=list)
    waiting: list[PromptRequest] = field(default_factory=list)


class PromptReader:
    """Reads the prompts of one camera. Those for a past image go to ``late``, where they are answered later."""

    def __init__(self, history: History, late: CatchUp, topic: str) -> None:
        self._history = history
        self._late = late
        self._topic = topic

    def read(self, requests: Iterable[PromptRequest], picture: Picture | None, newest: Header | None,
             tracked: Iterable[int], parameters: Parameters) -> Reading:
        """What these come to together with ``picture``, the image at hand, or with none.

        newest: of the last image that was processed. tracked: the objects of the live tracker.
        """
        def cancel(object_id: int) -> None:
            reading.answers += [refuse(request, 'taken back before it was applied')
                                for request in self._late.cancel(object_id)]
        plan = Plan(tracked, parameters.max_objects, self._late.object_ids, cancel)
        reading = Reading(plan, picture.header if picture else newest or Header())
        for request in requests:
            taken_back = [other for other in reading.waiting if _takes_back(request.message, other.message)]
            reading.waiting = [other for other in reading.waiting if other not in taken_back]
            reading.answers += [refuse(other, 'taken back before an image arrived') for other in taken_back]
            try:
                self._read(request, reading, picture, newest)
            except PromptError as error:
                reading.answers.append(PromptAnswer(request, request.message.id, reading.header) if taken_back
                                       else refuse(request, str(error)))
        self._expire(reading, picture, newest, parameters.prompt_timeout)
        return reading

    def _read(self, request: PromptRequest, reading: Reading, picture: Picture | None, newest: Header | None) -> None:
        message, plan = request.message, reading.plan
        if message.action not in NEEDS_IMAGE:
            reading.answers.append(PromptAnswer(request, plan.add(message, 0, 0), reading.header))
            return
        target = self._target(message, reading, picture, newest)
        if target is NOW:
            object_id = plan.add(message, *picture.image.shape[:2])
            reading.answers.append(PromptAnswer(request, object_id, picture.header))
            return
        late = None if target is None else self._late.place(target, lambda: _decode(target))
        if late is None:  # no image yet, or too many are under way
            reading.waiting.append(request)
            return
        corrected = message.action == PromptMessage.REFINE and plan.tracks(message.id) and (
            message.id not in late.batch.prompts or message.id in late.corrected)
        object_id = plan.add(message, *late.image.shape[:2], late.batch)
        self._late.add(late, object_id, request, corrected)

    def _target(self, message: PromptMessage, reading: Reading, picture: Picture | None,
                newest: Header | None) -> Past | object | None:
        """NOW, a past image, or None: the prompt has to wait. PromptError when its image is gone."""
        if message.id and any(other.message.id == message.id for other in reading.waiting):
            return None  # prompts for one object keep their order
        drawn = to_nanoseconds(message.header.stamp)
        if picture is not None:
            stamp = to_nanoseconds(picture.header.stamp)
        elif newest is not None and drawn:
            stamp = to_nanoseconds(newest.stamp)
        else:
            return None
        if drawn > stamp:
            return None
        target = NOW if drawn in (0, stamp) and picture is not None else self._past(drawn)
        if target is not NOW and target.stamp >= stamp and picture is not None:
            target = NOW
        if message.action == PromptMessage.REFINE and message.id in self._late.object_ids and (
                target is NOW or not self._late.awaits(target, message.id)):
            return None  # the object is on its way: it can be corrected when it has arrived
        if target is not NOW and message.id in reading.plan.now.prompts:
            return None
        return target

    def _past(self, drawn: int) -> Past:
        try:
            return self._history.at(drawn)
        except NotKept as error:
            raise PromptError(str(error)) from None

    def _expire(self, reading: Reading, picture: Picture | None, newest: Header | None, timeout: float) -> None:
        limit = time.monotonic() - timeout
        for request in [request for request in reading.waiting if request.received <= limit]:
            reading.waiting.remove(request)
            drawn = to_nanoseconds(request.message.header.stamp)
            if picture is None and not drawn or newest is None:
                reason = f'no image on {self._topic} for {timeout:g} s: is the camera running?'
            elif drawn > to_nanoseconds(newest.stamp):
                reason = (f'no image with its stamp {drawn / 1e9:.3f} or a later one on {self._topic} within '
                          f'{timeout:g} s; the newest has {to_nanoseconds(newest.stamp) / 1e9:.3f}: is the camera '
                          f'running, and does the prompt have the header of an image of this camera?')
            else:
                reason = (f'earlier prompts for past images were still being worked on after {timeout:g} s: '
                          f'send fewer, or raise prompt_timeout')
            reading.answers.append(refuse(request, reason))


def _decode(past: Past):
    try:
        return to_rgb(past.message)
    except Exception as error:  # also what a decoder may raise that is not ours: whoever waits has to be told
        raise PromptError(f'its image cannot be used: {error}') from None


def _takes_back(message: PromptMessage, waiting: PromptMessage) -> bool:
    if message.action == PromptMessage.REMOVE:
        return message.id == waiting.id != 0  # 0 asks for any free id: nobody knows yet which
    return message.action == PromptMessage.CLEAR
