"""Prompt messages: what they ask for, whether that is possible, and what the tracker is to be told."""
from __future__ import annotations

from collections.abc import Callable, Container, Iterable
from dataclasses import dataclass, field
from itertools import chain

from sensor_msgs.msg import Image
from std_msgs.msg import Header

from sam2_core.prompts import Prompt, PromptError, merge_prompts
from sam2_ros.depth.calibration import same_frame
from sam2_ros.messages.conversions import ImageError, to_mask
from sam2_ros.msg import Prompt as PromptMessage
from sam2_ros.perception.frame import TrackedObject
from sam2_ros.srv import SetPrompt

MAX_ID = 65535
MAX_LABEL = 1000  # characters: a label is in every message about its object
MAX_POINTS = 1000  # of an object in one image: the decoder compares each with all others
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
    item: TrackedObject | None = None  # the object in that image

    @property
    def accepted(self) -> bool:
        return not self.reason


@dataclass(eq=False)
class Batch:
    """Prompts that are to be applied to one image."""

    prompts: dict[int, list[Prompt]] = field(default_factory=dict)  # by object
    labels: dict[int, str] = field(default_factory=dict)  # of the objects that get one

    def all(self) -> list[Prompt]:
        return [prompt for prompts in self.prompts.values() for prompt in prompts]

    def drop(self, object_id: int) -> None:
        self.prompts.pop(object_id, None)
        self.labels.pop(object_id, None)


class Ids:
    """Ids for new objects of one camera: counted up, and given again only when all others have been used.

    So a planner that holds the id of an object that has ended never meets another object under it, but after 65,535
    others. Ids that users choose count as used and do not move the counter.
    """

    def __init__(self) -> None:
        self._used = bytearray(MAX_ID + 1)
        self._last = 0

    def next(self, known: Container[int]) -> int:
        """Return the id for the next object, one that is not ``known``. It stays free until ``use`` is called."""
        for used in (self._used, bytes(MAX_ID + 1)):
            for candidate in chain(range(self._last + 1, MAX_ID + 1), range(1, self._last + 1)):
                if not used[candidate] and candidate not in known:
                    return candidate
        raise PromptError(f'all {MAX_ID} ids are in use: remove objects first')

    def use(self, object_id: int, known: Iterable[int], chosen: bool) -> None:
        """Mark an id as used; ``chosen``: by a user."""
        if not chosen:
            if self._used[object_id]:  # all have been used: a new round begins
                self._used = bytearray(MAX_ID + 1)
                for other in known:
                    self._used[other] = 1
            self._last = object_id
        self._used[object_id] = 1


def refuse(request: PromptRequest, reason: str) -> PromptAnswer:
    return PromptAnswer(request, request.message.id, request.message.header, reason)


class Plan:
    """What prompts that meet one image come to, each checked as if those before it had been applied already.

    The tracker is first to ``forget`` objects and then to take the prompts of ``now`` together with the image. A prompt
    that is refused leaves the plan as it was.
    """

    def __init__(self, tracked: Iterable[int], max_objects: int, late: Iterable[int] = (),
                 cancel: Callable[[int], None] = lambda object_id: None, ids: Ids | None = None,
                 image_size: int | None = None) -> None:
        """``late``: objects on their way from past images, a correction or all of them; ``cancel`` stops one.

        ids: of the camera, for new objects; None: from 1. image_size: of the model, which refuses masks that are too
        thin for it.
        """
        self._ids = ids or Ids()
        self._image_size = image_size
        self._tracked = frozenset(tracked)
        self._late = set(late)
        self._cancel = cancel
        self._max_objects = max_objects
        self.now = Batch()
        self.known = set(self._tracked | self._late)  # once the plan is carried out
        self.forget: set[int] = set()

    def add(self, message: PromptMessage, height: int, width: int, past: Batch | None = None) -> int:
        """Take a prompt for an image of this size; the id of its object (0: of all). PromptError if it is refused.

        past: where a prompt goes that was drawn on a past image.
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
        """Whether the live tracker has the object and keeps it."""
        return object_id in self._tracked and object_id not in self.forget

    def remove(self, object_id: int) -> None:
        self._check_known(object_id)
        self._drop(object_id)

    def clear(self) -> None:
        for object_id in tuple(self.known):
            self._drop(object_id)

    def _set(self, message: PromptMessage, height: int, width: int, past: Batch | None) -> int:
        object_id = message.id or self._ids.next(self.known)
        if object_id not in self.known and len(self.known) >= self._max_objects:
            raise PromptError(f'{len(self.known)} objects are tracked already and max_objects is {self._max_objects}: '
                              f'remove one first')
        prompt = to_prompt(message, object_id).check(height, width, self._image_size)
        prompt.check_starts()
        if object_id in self.known:  # what is to start on a past image takes the place of the live one when it arrives
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
    """Return what the message says, not yet checked against an image.

    Raises PromptError for a mask that cannot be read, and for more points or a longer label than are allowed.
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
    """Return whether an image was given in an optional field, well-formed or not."""
    return bool(message.width or len(message.data))


def check_frame(message: PromptMessage, image: Header) -> None:
    """Raise PromptError for a prompt that was drawn on an image of another camera."""
    if not same_frame(message.header.frame_id, image.frame_id):
        raise PromptError(f"prompt in frame '{message.header.frame_id}': must be '{image.frame_id}', as the image; "
                          f'send it to the camera it was drawn on, or leave frame_id empty')


def _check_count(points: int) -> None:
    if points > MAX_POINTS:
        raise PromptError(f'{points} points: must be at most {MAX_POINTS} for an object in one image; give a mask')
