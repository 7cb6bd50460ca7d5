"""Queries: ``segment_image`` and ``segment_all``, processed in slices between the live images."""
from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import numpy as np
from sensor_msgs.msg import CompressedImage, Image

from sam2_core import ImageSegmenter, PromptError
from sam2_core.automatic_masks import Filters, Search
from sam2_core.finite import not_finite_error
from sam2_core.scores import probability, unit
from sam2_ros.depth.surface import DepthFrame, measure
from sam2_ros.messages.conversions import to_nanoseconds
from sam2_ros.perception.camera_image import CameraImage
from sam2_ros.perception.frame import TrackedObject, sighting
from sam2_ros.perception.image_decoder import ImageDecoder
from sam2_ros.perception.image_history import ImageHistory, NotStored
from sam2_ros.perception.prompt_plan import check_frame, has_image, to_prompt
from sam2_ros.perception.skipped_images import SkippedImages
from sam2_ros.runtime.failures import Failures
from sam2_ros.srv import SegmentAll, SegmentImage

PROMPTS_PER_SLICE = 4
CLICKS_PER_SLICE = 16
MAX_QUERIES = 10  # waiting or being worked on
TOO_MANY = f'{MAX_QUERIES} queries are waiting already: send them more slowly'
MAX_PROMPTS = 256  # of one query: each mask is stored in full until all are done
POINTS_PER_SIDE = 32
MAX_POINTS_PER_SIDE = 128


@dataclass(frozen=True, eq=False)
class QueryResult:
    """Objects found in one image."""

    image: CameraImage
    objects: list[TrackedObject]
    complete: bool = True  # False: the time limit was reached first


class Unanswerable(ValueError):
    """A query that cannot be answered. The text names the value and the cure."""


Reply = Callable[[QueryResult | str], None]


class SegmentImageQuery:
    """Call of ``~/segment_image``: prompts for one image, without tracking."""

    def __init__(self, request: SegmentImage.Request, reply: Reply) -> None:
        """``reply`` is called once, with the result or with the reason why there is none."""
        self.received = time.monotonic()
        self.reply = _once(reply)
        self._request = request
        self._objects: list[TrackedObject] = []
        self._done = 0  # prompts

    @property
    def brings_image(self) -> bool:
        """Return whether the call has an image of its own."""
        return has_image(self._request.image)

    def find_image(self, newest: CameraImage | None, history: ImageHistory,
                   decoder: ImageDecoder) -> CameraImage | None:
        """Return the image of the query, or None if it may still arrive. Raises Unanswerable if it cannot be used."""
        prompts = self._request.prompts
        if not prompts:
            raise Unanswerable('no prompts: give at least one')
        if len(prompts) > MAX_PROMPTS:
            raise Unanswerable(f'{len(prompts)} prompts: ask at most {MAX_PROMPTS} at a time')
        stamp = to_nanoseconds(prompts[0].header.stamp)
        if self.brings_image:
            return _decoded(self._request.image, decoder.other)
        for number, prompt in enumerate(prompts[1:], 2):
            other = to_nanoseconds(prompt.header.stamp)
            if other not in (0, stamp):
                raise Unanswerable(f'prompt {number}: has the stamp {other / 1e9:.3f}, and prompt 1 has '
                                   f'{stamp / 1e9:.3f}: must be of one image; ask once for each image')
        if not stamp or newest is None or to_nanoseconds(newest.header.stamp) == stamp:
            return newest
        try:
            stored = history.at(stamp)
            return _decoded(stored.message, stored.decode)
        except NotStored as error:
            raise Unanswerable(f'prompt 1: {error}') from None

    def advance(self, image: CameraImage, segmenter: ImageSegmenter) -> QueryResult | None:
        """Work on a slice; return the result once all is done. Raises Unanswerable if a prompt cannot be used."""
        encoded = image.encode(segmenter)
        for message in self._request.prompts[self._done:self._done + PROMPTS_PER_SLICE]:
            self._done += 1
            object_id = message.id or self._done
            try:
                if not self.brings_image:
                    check_frame(message, image.header)
                found = segmenter.segment(encoded, to_prompt(message, object_id), self._request.multimask)
            except PromptError as error:
                raise Unanswerable(f'prompt {self._done}: {error}') from None
            scores = float(np.sum(found.scores)), found.object_score  # not finite if one of them is not
            if not np.isfinite([*scores, float(found.logits.sum())]).all():
                raise not_finite_error(*scores)
            for index in np.argsort(-found.scores, kind='stable'):
                self._objects.append(sighting(object_id, message.label, found.masks[index], unit(found.scores[index]),
                                              probability(found.object_score), image.header.stamp))
        return QueryResult(image, self._objects) if self._done >= len(self._request.prompts) else None


class SegmentAllQuery:
    """Call of ``~/segment_all``: every mask in one image."""

    def __init__(self, request: SegmentAll.Request, reply: Reply, time_limit: float) -> None:
        """``reply`` is called once; ``time_limit`` in seconds holds unless the request has its own."""
        self.received = time.monotonic()
        self.reply = _once(reply)
        self._request = request
        self._time_limit = request.time_limit or time_limit
        self._search: Search | None = None  # None: not begun
        self._deadline = 0.0  # seconds, time.monotonic()

    @property
    def brings_image(self) -> bool:
        """Return whether the call has an image of its own."""
        return has_image(self._request.image)

    def find_image(self, newest: CameraImage | None, history: ImageHistory,
                   decoder: ImageDecoder) -> CameraImage | None:
        """Return the image of the query, or None if it may still arrive.

        Raises Unanswerable if the image or the request cannot be used.
        """
        request = self._request
        if request.points_per_side > MAX_POINTS_PER_SIDE:
            raise Unanswerable(f'points_per_side {request.points_per_side}: must be at most {MAX_POINTS_PER_SIDE}')
        for name in ('min_score', 'min_stability'):
            if not 0 <= getattr(request, name) <= 1:
                raise Unanswerable(f'{name} {getattr(request, name):g}: must lie between 0 and 1')
        if not 0 < self._time_limit < float('inf'):
            raise Unanswerable(f'time_limit {request.time_limit:g}: must be positive')
        return _decoded(request.image, decoder.other) if self.brings_image else newest

    def advance(self, image: CameraImage, segmenter: ImageSegmenter) -> QueryResult | None:
        """Work on a slice; return the result once all is done or the time is over."""
        request = self._request
        if self._search is None:
            self._deadline = time.monotonic() + self._time_limit
            filters = Filters(min_area=request.min_area)
            filters = replace(filters, min_iou=request.min_score or filters.min_iou,
                              min_stability=request.min_stability or filters.min_stability)
            self._search = segmenter.search(image.encode(segmenter), request.points_per_side or POINTS_PER_SIDE,
                                            filters, CLICKS_PER_SLICE)
        self._search.advance()
        if not self._search.complete and time.monotonic() < self._deadline:
            return None
        masks = self._search.masks()[:request.max_masks or None]
        return QueryResult(image, [
            sighting(number, '', found.mask, unit(found.iou), 1.0, image.header.stamp)
            for number, found in enumerate(masks, 1)], self._search.complete)


Query = SegmentImageQuery | SegmentAllQuery


def _once(reply: Reply) -> Reply:
    """Return a function that passes on its first call only: a query has one answer."""
    waiting = [reply]

    def answer(result: QueryResult | str) -> None:
        if waiting:
            waiting.pop()(result)
    return answer


def _decoded(message: Image | CompressedImage,
             decode: Callable[[Image | CompressedImage], np.ndarray]) -> CameraImage:
    try:
        return CameraImage(message.header, decode(message))
    except Exception as error:  # also from a decoder that is not ours: the query has to be answered
        raise Unanswerable(f'image: {error}') from None


class Queries:
    """Queries to one camera that the worker has taken. A slice of work belongs to one of them; they take turns."""

    def __init__(self, segmenter: ImageSegmenter, history: ImageHistory, failures: Failures, skipped: SkippedImages,
                 find_depth: Callable[[CameraImage], DepthFrame | None], decoder: ImageDecoder) -> None:
        """``find_depth`` returns the depth of an image of the history, or None if it is no longer stored."""
        self._find_depth = find_depth
        self._decoder = decoder
        self._segmenter = segmenter
        self._failures = failures
        self._skipped = skipped
        self._history = history
        self._waiting: list[Query] = []  # for an image
        self._open: deque[tuple[Query, CameraImage]] = deque()  # the next one to work on comes first

    def __bool__(self) -> bool:
        """Return whether a query can be worked on."""
        return bool(self._open)

    @property
    def oldest_waiting(self) -> float | None:
        """Time at which the first query that waits for an image was received, seconds of time.monotonic(), or None."""
        return min((query.received for query in self._waiting), default=None)

    def submit(self, queries: list[Query], newest: CameraImage | None, timeout: float) -> None:
        """Add queries; if that fails, answer those that have been lost."""
        try:
            self.add(queries, newest, timeout)
        except Exception as error:
            reason = f'the query cannot be answered: {self._failures.report("query", error)}'
            held = {*self._waiting, *(query for query, _ in self._open)}
            for query in queries:
                if query not in held:
                    query.reply(reason)

    def add(self, queries: Iterable[Query], newest: CameraImage | None, timeout: float) -> None:
        """Find the image of new queries, and of those that still wait for theirs.

        Args:
            queries: New queries.
            newest: Last processed image of the camera.
            timeout: Seconds until a query without an image is refused.
        """
        queries, self._waiting = [*self._waiting, *queries], []
        for query in queries:
            if len(self._open) + len(self._waiting) >= MAX_QUERIES:
                query.reply(TOO_MANY)
                continue
            try:
                image = query.find_image(newest, self._history, self._decoder)
            except Unanswerable as error:
                query.reply(str(error))
                continue
            except Exception as error:
                query.reply(f'the query cannot be answered: {self._failures.report("query", error)}')
                continue
            if image is not None:
                if image.depth is None and not query.brings_image:
                    image.depth = self._failures.run('depth', self._find_depth, image)
                self._open.append((query, image))
            elif query.received + timeout > time.monotonic():
                self._waiting.append(query)
            else:
                query.reply(self._skipped.why_no_image(timeout))

    def advance(self, edge_erosion: int) -> None:
        """Work on a slice of the next query."""
        query, image = self._open.popleft()
        try:
            result = query.advance(image, self._segmenter)
        except Unanswerable as error:
            query.reply(str(error))
        except Exception as error:
            query.reply(f'the model failed on this image: {self._failures.report("query", error)}')
        else:
            if result is None:
                self._open.append((query, image))
            else:
                query.reply(self._failures.run('position', _located, result, edge_erosion, default=result))

    def refuse(self, reason: str) -> None:
        """Refuse all queries."""
        for query in (*self._waiting, *(query for query, _ in self._open)):
            query.reply(reason)
        self._waiting.clear()
        self._open.clear()


def _located(result: QueryResult, edge_erosion: int) -> QueryResult:
    """Return a result with the oriented boxes of its objects, if its image has depth."""
    depth = result.image.depth
    if depth is None:
        return result
    objects = []
    for item in result.objects:
        if item.region is not None:
            box, mask = item.region
            item = replace(item, shape=measure(depth, mask, box, edge_erosion, None), target=result.image.target)
        objects.append(item)
    return replace(result, objects=objects)
