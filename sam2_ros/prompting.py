"""Prompt messages: what they ask for, whether that is possible, and what the tracker is to be told."""
from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from std_msgs.msg import Header

from sam2_core.prompts import Prompt, PromptError, merge_prompts
from sam2_ros.conversions import ImageError, to_mask
from sam2_ros.msg import Prompt as PromptMessage
from sam2_ros.srv import SetPrompt

MAX_ID = 65535
NEEDS_IMAGE = (PromptMessage.SET, PromptMessage.REFINE)


@dataclass(frozen=True, eq=False)
class PromptRequest:
    """A prompt on its way to the tracker."""

    message: PromptMessage
    received: float  # seconds, time.monotonic()
    reply: Callable[[SetPrompt.Response], None] | None = None  # who waits for the answer, besides ~/prompt_status


@dataclass(frozen=True, eq=False)
class PromptAnswer:
    """What became of a request."""

    request: PromptRequest
    id: int
    header: Header  # accepted: of the image it was applied to; refused: as in the prompt
    reason: str = ''  # why it was refused; empty: accepted

    @property
    def accepted(self) -> bool:
        return not self.reason


def refuse(request: PromptRequest, reason: str) -> PromptAnswer:
    return PromptAnswer(request, request.message.id, request.message.header, reason)


class Plan:
    """What a batch of prompts comes to, each checked as if those before it had been applied already.

    The tracker is first to ``forget`` objects and then to take ``prompts`` together with the image. A prompt that is
    refused leaves the plan as it was.
    """

    def __init__(self, tracked: Iterable[int], max_objects: int) -> None:
        self._tracked = frozenset(tracked)
        self._max_objects = max_objects
        self._prompts: dict[int, list[Prompt]] = {}
        self.known = set(self._tracked)  # once the plan is carried out
        self.forget: set[int] = set()
        self.labels: dict[int, str] = {}

    @property
    def prompts(self) -> list[Prompt]:
        return [prompt for prompts in self._prompts.values() for prompt in prompts]

    def add(self, message: PromptMessage, height: int, width: int) -> int:
        """Take a prompt for an image of this size; the id of its object (0: of all). PromptError if it is refused."""
        if message.action == PromptMessage.SET:
            return self._set(message, height, width)
        if message.action == PromptMessage.REFINE:
            return self._refine(message, height, width)
        if message.action == PromptMessage.REMOVE:
            self.remove(message.id)
            return message.id
        if message.action == PromptMessage.CLEAR:
            self.clear()
            return 0
        names = ('SET', 'REFINE', 'REMOVE', 'CLEAR')
        raise PromptError(f'action {message.action}: must be one of '
                          f'{", ".join(f"{getattr(PromptMessage, name)} ({name})" for name in names)}')

    def remove(self, object_id: int) -> None:
        self._check_known(object_id)
        self._drop(object_id)

    def clear(self) -> None:
        for object_id in tuple(self.known):
            self._drop(object_id)

    def _set(self, message: PromptMessage, height: int, width: int) -> int:
        object_id = message.id or self._free_id()
        if object_id not in self.known and len(self.known) >= self._max_objects:
            raise PromptError(f'{len(self.known)} objects are tracked already and max_objects is {self._max_objects}: '
                              f'remove one first')
        prompt = to_prompt(message, object_id).check(height, width)
        if object_id in self.known:
            self._drop(object_id)
        self.known.add(object_id)
        self._prompts[object_id] = [prompt]
        self.labels[object_id] = message.label
        return object_id

    def _refine(self, message: PromptMessage, height: int, width: int) -> int:
        self._check_known(message.id, ': SET it first')
        prompts = [*self._prompts.get(message.id, ()), to_prompt(message, message.id)]
        merge_prompts(prompts, height, width)
        self._prompts[message.id] = prompts
        if message.label:
            self.labels[message.id] = message.label
        return message.id

    def _check_known(self, object_id: int, cure: str = '') -> None:
        if object_id not in self.known:
            known = ', '.join(map(str, sorted(self.known))) or 'none'
            raise PromptError(f'id {object_id} is not known (known: {known}){cure}')

    def _drop(self, object_id: int) -> None:
        self.known.remove(object_id)
        self._prompts.pop(object_id, None)
        self.labels.pop(object_id, None)
        if object_id in self._tracked:
            self.forget.add(object_id)

    def _free_id(self) -> int:
        return next(candidate for candidate in range(1, MAX_ID + 2) if candidate not in self.known)


def to_prompt(message: PromptMessage, object_id: int) -> Prompt:
    """What the message says, not yet checked against an image. PromptError for a mask that cannot be read."""
    box, mask = message.box, None
    if message.mask.width:
        try:
            mask = to_mask(message.mask)
        except ImageError as error:
            raise PromptError(str(error)) from None
    return Prompt(
        object_id,
        points=[(point.x, point.y) for point in message.points],
        labels=[point.label for point in message.points],
        box=(box.x_offset, box.y_offset, box.x_offset + box.width, box.y_offset + box.height) if box.width else None,
        mask=mask)
