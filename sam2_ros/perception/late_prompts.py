"""Objects prompted on an image that is old by now, on their way through the images since to the newest one."""
from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from sam2_core import StreamTracker
from sam2_ros.messages.conversions import to_rgb
from sam2_ros.perception.image_history import ImageHistory, StoredImage
from sam2_ros.perception.object_steps import TrackingStep, take_step
from sam2_ros.perception.prompt_plan import Batch, PromptRequest

MAX_UNDER_WAY = 8  # past images with prompts


@dataclass(eq=False)
class CatchUp:
    """The prompts drawn on one past image, and the tracker of their own in which their objects come to now."""

    past: StoredImage
    image: np.ndarray  # uint8 RGB (H, W, 3)
    batch: Batch = field(default_factory=Batch)
    waiting: dict[int, list[PromptRequest]] = field(default_factory=dict)  # by object; until the prompts are applied
    corrected: set[int] = field(default_factory=set)  # those of the objects that the live tracker has
    tracker: StreamTracker | None = None  # None: not begun
    stamp: int = 0  # ns, of the last image gone through
    images_left: int = 0
    seen: list[int] = field(default_factory=list)  # stamps of the images that the tracker has processed, ns

    def next_image(self, history: ImageHistory, live_stamp: int) -> StoredImage | None:
        """The image to go on with; None when the next live one can follow.

        As many of those up to ``live_stamp`` as are allowed, spread evenly; chosen anew each time, because the stream
        goes on meanwhile.
        """
        rest = history.between(self.stamp, live_stamp) if self.images_left else []
        return rest[math.ceil(len(rest) / self.images_left) - 1] if rest else None


class LatePrompts:
    """What one camera has under way. One image of it at a time, so that live objects wait for no more than that."""

    def __init__(self) -> None:
        self._under_way: list[CatchUp] = []  # who is next comes first

    @property
    def requests(self) -> list[PromptRequest]:
        """The requests that have not been answered."""
        return [request for late in self._under_way for requests in late.waiting.values() for request in requests]

    @property
    def object_ids(self) -> set[int]:
        return {object_id for late in self._under_way for object_id in late.batch.prompts}

    def place(self, past: StoredImage, decode: Callable[[], np.ndarray]) -> CatchUp | None:
        """Where a prompt drawn on this image belongs; None when there is no room for one more image."""
        for late in self._under_way:
            if late.past.stamp == past.stamp and late.tracker is None:
                return late
        return CatchUp(past, decode()) if len(self._under_way) < MAX_UNDER_WAY else None

    def awaits(self, past: StoredImage, object_id: int) -> bool:
        """Whether the object is prompted on this image, and its prompts have not been applied yet."""
        return any(late.past.stamp == past.stamp and late.tracker is None and object_id in late.batch.prompts
                   for late in self._under_way)

    def add(self, late: CatchUp, object_id: int, request: PromptRequest, corrected: bool) -> None:
        """A prompt has been put into the batch of ``late``. ``corrected``: the live tracker has the object."""
        late.waiting.setdefault(object_id, []).append(request)
        if corrected:
            late.corrected.add(object_id)
        if late not in self._under_way:
            self._under_way.append(late)

    def cancel(self, object_id: int) -> list[PromptRequest]:
        """Stop an object; the requests that have not been answered."""
        unanswered = []
        for late in self._under_way:
            if object_id in late.batch.prompts:
                late.batch.drop(object_id)
                late.corrected.discard(object_id)
                unanswered += late.waiting.pop(object_id, [])
                if late.tracker is not None and object_id in late.tracker.object_ids:
                    late.tracker.remove(object_id)
        self._under_way = [late for late in self._under_way if late.batch.prompts]
        return unanswered

    def next(self, history: ImageHistory, live_stamp: int) -> tuple[CatchUp, StoredImage] | None:
        """Whose turn it is, and with which image."""
        for late in self._under_way:
            past = late.past if late.tracker is None else late.next_image(history, live_stamp)
            if past is not None:
                return late, past
        return None

    def begin(self, late: CatchUp, live: StreamTracker, frames_back: int, images: int) -> TrackingStep:
        """Apply the prompts of this one; then it is the turn of the others.

        frames_back: steps of the live tracker from that image on. images: how many to go through until now. What
        fails for all objects is raised.
        """
        self._to_the_end(late)
        late.tracker = live.fork(late.corrected, frames_back)
        late.stamp, late.images_left = late.past.stamp, images
        step = take_step(late.tracker, late.image, late.batch.prompts)
        late.seen.append(late.past.stamp)
        return step

    def go_on(self, late: CatchUp, past: StoredImage) -> TrackingStep:
        """Take this one through an image; then it is the turn of the others.

        What fails for all objects is raised (ImageError for an image that cannot be used), and the image is passed
        over.
        """
        self._to_the_end(late)
        late.images_left -= 1
        late.stamp = past.stamp
        step = take_step(late.tracker, to_rgb(past.message), {})
        late.seen.append(past.stamp)
        return step

    def _to_the_end(self, late: CatchUp) -> None:
        self._under_way.remove(late)
        self._under_way.append(late)

    def drop(self, late: CatchUp) -> None:
        """Give up this one, if it is under way."""
        if late in self._under_way:
            self._under_way.remove(late)

    def take_arrived(self, history: ImageHistory, live_stamp: int | None) -> list[CatchUp]:
        """Those that can join before the next live image; None: all that have begun, wherever they are."""
        arrived = [late for late in self._under_way if late.tracker is not None
                   and (live_stamp is None or late.next_image(history, live_stamp) is None)]
        self._under_way = [late for late in self._under_way if late not in arrived]
        return arrived
