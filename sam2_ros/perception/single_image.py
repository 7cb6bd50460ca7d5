"""Questions about a single image. They are worked off in slices, between the images of the stream."""
from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import numpy as np
from sensor_msgs.msg import CompressedImage, Image

from sam2_core import ImageSegmenter, PromptError
from sam2_core.automatic_masks import Filters
from sam2_core.finite import not_finite_error
from sam2_ros.depth.surface import DepthFrame, measure
from sam2_ros.messages.conversions import to_nanoseconds, to_rgb
from sam2_ros.perception.camera_image import CameraImage
from sam2_ros.perception.frame import TrackedObject, sighting
from sam2_ros.perception.image_history import ImageHistory, NotStored
from sam2_ros.perception.object_states import probability, unit
from sam2_ros.perception.prompt_plan import check_frame, has_image, to_prompt
from sam2_ros.perception.skipped_images import SkippedImages
from sam2_ros.runtime.failures import Failures
from sam2_ros.srv import SegmentAll, SegmentImage

PROMPTS_PER_SLICE = 4
CLICKS_PER_SLICE = 16
MAX_QUERIES = 10  # that wait, or are being worked on
TOO_MANY = f'{MAX_QUERIES} questions are waiting already: ask more slowly'
MAX_PROMPTS = 256  # of a question: each mask is kept in full until all are done
POINTS_PER_SIDE = 32
MAX_POINTS_PER_SIDE = 128


@dataclass(frozen=True, eq=False)
class QueryResult:
    """The objects of one picture."""

    picture: CameraImage
    objects: list[TrackedObject]
    complete: bool = True


class Unanswerable(ValueError):
    """A question that cannot be answered; the text names the value and the cure."""


class SegmentImageQuery:
    """~/segment_image: what a few prompts mean in one image."""

    def __init__(self, request: SegmentImage.Request, reply: Callable[[QueryResult | str], None]) -> None:
        """``reply`` is given what was found, or the reason why nothing could be."""
        self.received = time.monotonic()
        self.reply = _once(reply)
        self._request = request
        self._objects: list[TrackedObject] = []
        self._done = 0  # prompts

    @property
    def brings_image(self) -> bool:
        """Whether the call has an image of its own."""
        return has_image(self._request.image)

    def find_picture(self, newest: CameraImage | None, history: ImageHistory) -> CameraImage | None:
        """The image that is meant; None: it may still come. Unanswerable when it cannot be used."""
        prompts = self._request.prompts
        if not prompts:
            raise Unanswerable('no prompts: give at least one')
        if len(prompts) > MAX_PROMPTS:
            raise Unanswerable(f'{len(prompts)} prompts: ask at most {MAX_PROMPTS} at a time')
        stamp = to_nanoseconds(prompts[0].header.stamp)
        if self.brings_image:
            return _given(self._request.image)
        for number, prompt in enumerate(prompts[1:], 2):
            other = to_nanoseconds(prompt.header.stamp)
            if other not in (0, stamp):
                raise Unanswerable(f'prompt {number}: has the stamp {other / 1e9:.3f}, and prompt 1 has '
                                   f'{stamp / 1e9:.3f}: must be of one image; ask once for each image')
        if not stamp or newest is None or to_nanoseconds(newest.header.stamp) == stamp:
            return newest
        try:
            return _given(history.at(stamp).message)
        except NotStored as error:
            raise Unanswerable(f'prompt 1: {error}') from None

    def advance(self, picture: CameraImage, segmenter: ImageSegmenter) -> QueryResult | None:
        """A slice of the work; what was found once all is done. Unanswerable for a prompt that cannot be used."""
        encoded = picture.encode(segmenter)
        for message in self._request.prompts[self._done:self._done + PROMPTS_PER_SLICE]:
            self._done += 1
            object_id = message.id or self._done
            try:
                if not self.brings_image:
                    check_frame(message, picture.header)
                found = segmenter.segment(encoded, to_prompt(message, object_id), self._request.multimask)
            except PromptError as error:
                raise Unanswerable(f'prompt {self._done}: {error}') from None
            scores = float(np.sum(found.scores)), found.object_score  # not finite if one of them is not
            if not np.isfinite([*scores, float(found.logits.sum())]).all():
                raise not_finite_error(*scores)
            for index in np.argsort(-found.scores, kind='stable'):
                self._objects.append(sighting(object_id, message.label, found.masks[index], unit(found.scores[index]),
                                           probability(found.object_score), picture.header.stamp))
        return QueryResult(picture, self._objects) if self._done >= len(self._request.prompts) else None


class SegmentAllQuery:
    """~/segment_all: everything in one image."""

    def __init__(self, request: SegmentAll.Request, reply: Callable[[QueryResult | str], None],
                 time_limit: float) -> None:
        """``time_limit``: seconds, when the request does not say. ``reply``: as for SegmentImageQuery."""
        self.received = time.monotonic()
        self.reply = _once(reply)
        self._request = request
        self._time_limit = request.time_limit or time_limit
        self._search = None

    @property
    def brings_image(self) -> bool:
        """Whether the call has an image of its own."""
        return has_image(self._request.image)

    def find_picture(self, newest: CameraImage | None, history: ImageHistory) -> CameraImage | None:
        """The image that is meant; None: it may still come. Unanswerable when it, or the request, cannot be used."""
        request = self._request
        if request.points_per_side > MAX_POINTS_PER_SIDE:
            raise Unanswerable(f'points_per_side {request.points_per_side}: must be at most {MAX_POINTS_PER_SIDE}')
        for name in ('min_score', 'min_stability'):
            if not 0 <= getattr(request, name) <= 1:
                raise Unanswerable(f'{name} {getattr(request, name):g}: must lie between 0 and 1')
        if not 0 < self._time_limit < float('inf'):
            raise Unanswerable(f'time_limit {request.time_limit:g}: must be positive')
        return _given(request.image) if self.brings_image else newest

    def advance(self, picture: CameraImage, segmenter: ImageSegmenter) -> QueryResult | None:
        """A slice of the work; what was found once all is done or the time is over."""
        request = self._request
        if self._search is None:
            self._deadline = time.monotonic() + self._time_limit
            filters = Filters(min_area=request.min_area)
            filters = replace(filters, min_iou=request.min_score or filters.min_iou,
                              min_stability=request.min_stability or filters.min_stability)
            self._search = segmenter.search(picture.encode(segmenter), request.points_per_side or POINTS_PER_SIDE,
                                            filters, CLICKS_PER_SLICE)
        self._search.advance()
        if not self._search.complete and time.monotonic() < self._deadline:
            return None
        masks = self._search.masks()[:request.max_masks or None]
        return QueryResult(picture, [
            sighting(number, '', found.mask, unit(found.iou), 1.0, picture.header.stamp)
            for number, found in enumerate(masks, 1)], self._search.complete)


Query = SegmentImageQuery | SegmentAllQuery


def _once(reply: Callable[[QueryResult | str], None]) -> Callable[[QueryResult | str], None]:
    """Return ``reply``, but for the first call only: a question has one answer."""
    waiting = [reply]

    def answer(found: QueryResult | str) -> None:
        if waiting:
            waiting.pop()(found)
    return answer


def _given(message: Image | CompressedImage) -> CameraImage:
    try:
        return CameraImage(message.header, to_rgb(message))
    except Exception as error:  # also what a decoder may raise that is not ours: whoever asks has to be told
        raise Unanswerable(f'image: {error}') from None


class Queries:
    """The questions to one camera that are being worked on, one slice of one of them at a time."""

    def __init__(self, segmenter: ImageSegmenter, history: ImageHistory, failures: Failures, skipped: SkippedImages,
                 find_depth: Callable[[CameraImage], DepthFrame | None]) -> None:
        """``find_depth`` returns the depth of a past image of the camera, if it is still there."""
        self._find_depth = find_depth
        self._segmenter = segmenter
        self._failures = failures
        self._skipped = skipped
        self._history = history
        self._waiting: list[Query] = []  # for an image
        self._open: deque[tuple[Query, CameraImage]] = deque()  # who is next comes first

    def add(self, calls: Iterable[Query], newest: CameraImage | None, timeout: float) -> None:
        """Take new questions, and look whether there is an image for those that wait for one.

        newest: the last image of the camera. timeout: seconds until a question without an image is given up.
        """
        calls, self._waiting = [*self._waiting, *calls], []
        for call in calls:
            if len(self._open) + len(self._waiting) >= MAX_QUERIES:
                call.reply(TOO_MANY)
                continue
            try:
                picture = call.find_picture(newest, self._history)
            except Unanswerable as error:
                call.reply(str(error))
                continue
            except Exception as error:
                call.reply(f'the question cannot be answered: {self._failures.report("question", error)}')
                continue
            if picture is not None:
                if picture.depth is None and not call.brings_image:
                    picture.depth = self._failures.run('depth', self._find_depth, picture)
                self._open.append((call, picture))
            elif call.received + timeout > time.monotonic():
                self._waiting.append(call)
            else:
                call.reply(self._skipped.why_no_image(timeout))

    @property
    def oldest_waiting(self) -> float | None:
        """When the first question was received that waits for an image, seconds, time.monotonic()."""
        return min((call.received for call in self._waiting), default=None)

    def __bool__(self) -> bool:
        """Whether there is something to work on."""
        return bool(self._open)

    def advance(self, edge_erosion: int) -> None:
        """Work on the question whose turn it is."""
        call, picture = self._open.popleft()
        try:
            found = call.advance(picture, self._segmenter)
        except Unanswerable as error:
            call.reply(str(error))
        except Exception as error:
            call.reply(f'the model failed on this image: {self._failures.report("question", error)}')
        else:
            if found is None:
                self._open.append((call, picture))
            else:
                call.reply(self._failures.run('position', _placed, found, edge_erosion, default=found))

    def lose(self, calls: Iterable[Query], reason: str) -> None:
        """Answer those of these that are neither waiting nor being worked on."""
        held = {*self._waiting, *(call for call, _ in self._open)}
        for call in calls:
            if call not in held:
                call.reply(reason)

    def refuse(self, reason: str) -> None:
        """Give up all of them."""
        for call in (*self._waiting, *(call for call, _ in self._open)):
            call.reply(reason)
        self._waiting.clear()
        self._open.clear()


def _placed(found: QueryResult, edge_erosion: int) -> QueryResult:
    """With where the objects are, when the depth of the picture is known."""
    depth = found.picture.depth
    if depth is None:
        return found
    return replace(found, objects=[
        item if item.box is None else replace(item, shape=measure(depth, item.mask, item.box, edge_erosion, None))
        for item in found.objects])
