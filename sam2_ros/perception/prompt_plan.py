"""Checks of prompt messages, and the plan of what the tracker does with them."""
from __future__ import annotations

import base64
import zlib
from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import numpy as np
from sensor_msgs.msg import Image
from std_msgs.msg import Header

from sam2_core.prompts import MAX_ID, Prompt, PromptError, merge_prompts
from sam2_ros.messages.conversions import ImageError, to_mask
from sam2_ros.messages.frame_ids import same_frame
from sam2_ros.msg import Prompt as PromptMessage
from sam2_ros.perception.frame import TrackedObject
from sam2_ros.srv import SetPrompt

MAX_LABEL = 1000  # characters: a label is in every message about its object
MAX_POINTS = 1000  # for one object in one image: the decoder compares each with all others
NEEDS_IMAGE = (PromptMessage.SET, PromptMessage.REFINE)


@dataclass(frozen=True, eq=False)
class PromptRequest:
    """A prompt that has arrived and has not been answered."""

    message: PromptMessage
    received: float  # seconds, time.monotonic()
    reply: Callable[[SetPrompt.Response], None] | None = None  # receives the answer, besides ~/prompt_status
    withdrawn: Callable[[], bool] | None = None  # returns True, in any thread, once the prompt is to be refused
    started_by: PromptRequest | None = None  # REMOVE the object only if this request has started it


@dataclass(frozen=True, eq=False)
class PromptAnswer:
    """Answer to a prompt request."""

    request: PromptRequest
    id: int
    header: Header  # of the image it was applied to; if refused, that of the prompt
    reason: str = ''  # why it was refused; empty if accepted
    item: TrackedObject | None = None  # the object in that image

    @property
    def accepted(self) -> bool:
        """Return whether the prompt was applied."""
        return not self.reason


@dataclass(eq=False)
class Batch:
    """Prompts to apply to one image."""

    prompts: dict[int, list[Prompt]] = field(default_factory=dict)  # by object
    labels: dict[int, str] = field(default_factory=dict)  # new labels, by object

    def all(self) -> list[Prompt]:
        """Return the prompts of all objects."""
        return [prompt for prompts in self.prompts.values() for prompt in prompts]

    def drop(self, object_id: int) -> None:
        """Drop the prompts and the label of an object."""
        self.prompts.pop(object_id, None)
        self.labels.pop(object_id, None)


class Ids:
    """Source of ids for new objects of one camera. An id is reused only after all others have been used.

    A planner that holds the id of a removed object therefore meets no other object under it before 65,535 others have
    been created. Ids that users choose count as used and do not move the counter.
    """

    def __init__(self) -> None:
        self._used = bytearray(MAX_ID + 1)
        self._last = 0

    def next(self, known: Container[int]) -> int:
        """Return the id for the next object, one that is not ``known``. It stays free until ``use`` is called.

        Raises PromptError if all ids are in use.
        """
        for used in (self._used, bytes(MAX_ID + 1)):
            for candidate in chain(range(self._last + 1, MAX_ID + 1), range(1, self._last + 1)):
                if not used[candidate] and candidate not in known:
                    return candidate
        raise PromptError(f'all {MAX_ID} ids are in use: remove objects first')

    def use(self, object_id: int, known: Iterable[int], chosen: bool) -> None:
        """Mark an id as used.

        Args:
            object_id: The id.
            known: Ids of all objects.
            chosen: A user has chosen the id.
        """
        if not chosen:
            if self._used[object_id]:  # all have been used: start over
                self._used = bytearray(MAX_ID + 1)
                for other in known:
                    self._used[other] = 1
            self._last = object_id
        self._used[object_id] = 1

    def state(self) -> dict[str, Any]:
        """Return the ids used so far in a form that JSON can store."""
        bits = np.packbits(np.frombuffer(self._used, np.uint8)).tobytes()
        return {'last': self._last, 'used': base64.b64encode(zlib.compress(bits)).decode()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Count the ids as used that ``state`` returned before a restart of the node, too.

        Raise ValueError or another error for a state that cannot be read; nothing changes then.
        """
        unpacked = zlib.decompressobj().decompress(base64.b64decode(state['used'], validate=True), MAX_ID // 8 + 1)
        used = np.unpackbits(np.frombuffer(unpacked, np.uint8))
        last = state['last']
        if len(used) != MAX_ID + 1 or type(last) is not int or not 0 <= last <= MAX_ID:
            raise ValueError(f'{len(used)} ids, the last {str(last)[:20]}: must be {MAX_ID + 1}')
        self._used = bytearray(np.frombuffer(self._used, np.uint8) | used)
        self._last = self._last or last


def refuse(request: PromptRequest, reason: str) -> PromptAnswer:
    """Return the refusal of a request."""
    return PromptAnswer(request, request.message.id, request.message.header, reason)


class Plan:
    """Changes that prompts make to the objects at one image. Each is checked as if those before it had been applied.

    The tracker first has to ``forget`` objects, then to step with the image and the prompts of ``now``. A prompt that
    is refused leaves the plan as it was.
    """

    def __init__(self, tracked: Iterable[int], max_objects: int, late: Iterable[int] = (),
                 cancel: Callable[[int], None] = lambda object_id: None, ids: Ids | None = None,
                 image_size: int | None = None) -> None:
        """Create an empty plan.

        Args:
            tracked: Objects of the live tracker.
            max_objects: Limit for the number of objects.
            late: Objects of late prompts, new ones and corrections.
            cancel: Stops a late prompt.
            ids: Source of ids for new objects; None starts from 1.
            image_size: That of the model, which cannot see masks that are too thin; None does not check it.
        """
        self._ids = ids or Ids()
        self._image_size = image_size
        self._tracked = frozenset(tracked)
        self._late = set(late)
        self._cancel = cancel
        self._max_objects = max_objects
        self.now = Batch()
        self.known = set(self._tracked | self._late)  # after the plan has been carried out
        self.forget: set[int] = set()

    def add(self, message: PromptMessage, height: int, width: int, past: Batch | None = None) -> int:
        """Add a prompt for an image of this size; return the id of its object, 0 for all objects.

        Args:
            message: The prompt.
            height: Of the image, pixels.
            width: Of the image, pixels.
            past: Batch of the past image that a late prompt was drawn on.

        Raises:
            PromptError: The prompt is refused. The text names the value, the rule and the cure.
        """
        if message.action == PromptMessage.SET:
            return self._set(message, height, width, past)
        if message.action == PromptMessage.REFINE:
            return self._refine(message, height, width, past)
        if message.action == PromptMessage.REMOVE:
            self.remove(message.id)
            return message.id
        if message.action == PromptMessage.CLEAR:
            self.clear()
            return 0
        names = ('SET', 'REFINE', 'REMOVE', 'CLEAR')
        raise PromptError(f'action {message.action}: must be one of '
                          f'{", ".join(f"{getattr(PromptMessage, name)} ({name})" for name in names)}')

    def tracks(self, object_id: int) -> bool:
        """Return whether the live tracker has the object and keeps it."""
        return object_id in self._tracked and object_id not in self.forget

    def remove(self, object_id: int) -> None:
        """Remove an object. Raises PromptError if it is not known."""
        self._check_known(object_id)
        self._drop(object_id)

    def clear(self) -> None:
        """Remove all objects."""
        for object_id in tuple(self.known):
            self._drop(object_id)

    def _set(self, message: PromptMessage, height: int, width: int, past: Batch | None) -> int:
        object_id = message.id or self._ids.next(self.known)
        if object_id not in self.known and len(self.known) >= self._max_objects:
            raise PromptError(f'{len(self.known)} objects are tracked already and max_objects is {self._max_objects}: '
                              f'remove one first')
        prompt = to_prompt(message, object_id).check(height, width, self._image_size)
        prompt.check_starts()
        if object_id in self.known:  # a late prompt replaces the live object only when it joins
            self._drop(object_id, forget=past is None)
        self.known.add(object_id)
        self._ids.use(object_id, self.known, chosen=bool(message.id))
        self._put(object_id, [prompt], message.label, past)
        return object_id

    def _refine(self, message: PromptMessage, height: int, width: int, past: Batch | None) -> int:
        self._check_known(message.id, ': SET it first')
        prompt = to_prompt(message, message.id).check(height, width, self._image_size)
        prompts = [*(past or self.now).prompts.get(message.id, ()), prompt]
        _check_count(sum(len(one.points) for one in prompts))
        merge_prompts(prompts, height, width)
        self._put(message.id, prompts, message.label or None, past)
        return message.id

    def _put(self, object_id: int, prompts: list[Prompt], label: str | None, past: Batch | None) -> None:
        batch = past or self.now
        batch.prompts[object_id] = prompts
        if label is not None:
            batch.labels[object_id] = label
        if past is not None:
            self._late.add(object_id)

    def _check_known(self, object_id: int, cure: str = '') -> None:
        if object_id not in self.known:
            known = ', '.join(map(str, sorted(self.known))) or 'none'
            raise PromptError(f'id {object_id} is not known (known: {known}){cure}')

    def _drop(self, object_id: int, forget: bool = True) -> None:
        self.known.remove(object_id)
        self.now.drop(object_id)
        if forget and object_id in self._tracked:
            self.forget.add(object_id)
        if object_id in self._late:
            self._late.remove(object_id)
            self._cancel(object_id)


def to_prompt(message: PromptMessage, object_id: int) -> Prompt:
    """Convert a message, without checking it against an image.

    Raises PromptError if the mask cannot be read, or if there are too many points or the label is too long.
    """
    box, mask = message.box, None
    _check_count(len(message.points))
    if len(message.label) > MAX_LABEL:
        raise PromptError(f"label of {len(message.label)} characters, '{message.label[:20]}...': must have at most "
                          f'{MAX_LABEL}')
    if has_image(message.mask):
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


def has_image(message: Image) -> bool:
    """Return whether an optional field has an image, well-formed or not."""
    return bool(message.width or len(message.data))


def check_frame(message: PromptMessage, image: Header) -> None:
    """Check that a prompt was drawn on an image of this camera. Raises PromptError otherwise."""
    if not same_frame(message.header.frame_id, image.frame_id):
        raise PromptError(f"prompt in frame '{message.header.frame_id}': must be '{image.frame_id}', as the image; "
                          f'send it to the camera it was drawn on, or leave frame_id empty')


def _check_count(points: int) -> None:
    if points > MAX_POINTS:
        raise PromptError(f'{points} points: must be at most {MAX_POINTS} for an object in one image; give a mask')
