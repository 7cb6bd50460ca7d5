"""Late prompts of one camera, processed in slices between its live images."""
from __future__ import annotations

from collections.abc import Callable

import numpy as np

from sam2_core import ObjectResult, PromptError
from sam2_core.scores import probability, unit
from sam2_ros.messages.conversions import ImageError
from sam2_ros.perception.catch_up import CatchUp
from sam2_ros.perception.frame import sighting
from sam2_ros.perception.image_history import ImageHistory, StoredImage
from sam2_ros.perception.prompt_plan import PromptAnswer, PromptRequest, refuse
from sam2_ros.perception.skipped_images import SkippedImages
from sam2_ros.perception.tracked_objects import TrackedObjects
from sam2_ros.runtime.failures import Failures, describe

MAX_UNDER_WAY = 8  # past images with prompts


class LatePrompts:
    """The catch-ups of one camera. A slice of work is one image, so that live objects wait for no more than that."""

    def __init__(self, history: ImageHistory, objects: TrackedObjects, failures: Failures,
                 skipped: SkippedImages) -> None:
        """``objects`` are the live objects, which those of late prompts join in the end."""
        self._history = history
        self._objects = objects
        self._failures = failures
        self._skipped = skipped
        self._under_way: list[CatchUp] = []  # the next one to work on comes first

    @property
    def requests(self) -> list[PromptRequest]:
        """Requests that have not been answered."""
        return [request for one in self._under_way for requests in one.waiting.values() for request in requests]

    @property
    def object_ids(self) -> set[int]:
        """Objects on their way to the live images."""
        return {object_id for one in self._under_way for object_id in one.batch.prompts}

    @property
    def starting(self) -> set[int]:
        """Objects on their way to the live images that the live tracker does not have, or has under another prompt."""
        return {object_id for one in self._under_way for object_id in one.batch.prompts
                if object_id not in one.corrected}

    # --- prompts

    def place(self, stored: StoredImage, decode: Callable[[], np.ndarray]) -> CatchUp | None:
        """Return the catch-up for a prompt drawn on this image, or None if too many are under way for a new one."""
        for one in self._under_way:
            if one.past.stamp == stored.stamp and one.tracker is None:
                return one
        return CatchUp(stored, decode()) if len(self._under_way) < MAX_UNDER_WAY else None

    def awaits(self, stored: StoredImage, object_id: int) -> bool:
        """Return whether prompts for this object on this image are still to be applied."""
        return any(one.past.stamp == stored.stamp and one.tracker is None and object_id in one.batch.prompts
                   for one in self._under_way)

    def add(self, one: CatchUp, object_id: int, request: PromptRequest, corrected: bool) -> None:
        """Register a prompt that has been put into the batch of a catch-up.

        corrected: The live tracker has the object, which the prompt corrects.
        """
        one.waiting.setdefault(object_id, []).append(request)
        if corrected:
            one.corrected.add(object_id)
        if one not in self._under_way:
            self._under_way.append(one)

    def cancel(self, object_id: int) -> list[PromptRequest]:
        """Stop an object; return its requests that have not been answered."""
        unanswered = [request for one in self._under_way for request in one.cancel(object_id)]
        self._under_way = [one for one in self._under_way if one.batch.prompts]
        return unanswered

    def cancel_all(self) -> list[PromptRequest]:
        """Stop all objects; return the requests that have not been answered."""
        return [request for object_id in self.object_ids for request in self.cancel(object_id)]

    # --- slices

    def next(self, live_stamp: int) -> tuple[CatchUp, StoredImage] | None:
        """Return the next slice: a catch-up and the image to process. None if nothing is left to do."""
        for one in self._under_way:
            stored = one.past if one.tracker is None else one.next_image(self._history, live_stamp)
            if stored is not None:
                return one, stored
        return None

    def advance(self, one: CatchUp, stored: StoredImage, images: int) -> list[PromptAnswer]:
        """Process a slice and put its catch-up at the end of the queue; return the answers to its prompts.

        images: Number of images that a catch-up may replay.
        """
        self._under_way.remove(one)
        self._under_way.append(one)
        if one.tracker is None:
            return self._begin(one, images)
        try:
            step = one.go_on(stored)
        except ImageError as error:
            self._skipped.skip(str(error))
        except Exception as error:
            self._skipped.fail(error)  # the objects were accepted: they go on without this image
        else:
            for object_id, missed in step.missed.items():
                self._failures.report('late prompt', missed, f'object {object_id}')
        return []

    def _begin(self, one: CatchUp, images: int) -> list[PromptAnswer]:
        requests = [(object_id, request) for object_id, requests in one.waiting.items() for request in requests]
        try:
            step = one.begin(self._objects.fork(one.corrected, one.past.stamp), images)
            answers = self._answers(one, requests, step.results, {
                object_id: self._reason(object_id, error) for object_id, error in step.refused.items()})
        except Exception as error:
            if one in self._under_way:
                self._under_way.remove(one)
            reason = self._skipped.fail(error)
            return [refuse(request, reason) for _, request in requests]
        one.waiting.clear()
        for object_id in step.refused:
            self.cancel(object_id)
        return answers

    def _answers(self, one: CatchUp, requests: list[tuple[int, PromptRequest]], results: dict[int, ObjectResult],
                 refused: dict[int, str]) -> list[PromptAnswer]:
        header, answers = one.past.message.header, []
        for object_id, request in requests:
            if object_id in refused:
                answers.append(refuse(request, refused[object_id]))
                continue
            found = results[object_id]
            label = one.batch.labels.get(object_id)
            item = sighting(object_id, self._objects.states.label(object_id) if label is None else label, found.mask,
                            unit(found.iou), probability(found.object_score), header.stamp)
            answers.append(PromptAnswer(request, object_id, header, item=item))
        return answers

    def _reason(self, object_id: int, error: Exception) -> str:
        if isinstance(error, PromptError):
            return str(error)
        self._failures.report('late prompt', error, f'object {object_id}')
        return f'the model failed for this object: {describe(error)}'

    # --- the end of the way

    def join(self, live_stamp: int | None) -> set[int]:
        """Let objects that have reached the live images join them; return their ids.

        live_stamp: Stamp of the last live image, ns. None lets all join that have begun, wherever they are.
        """
        run = self._failures.run
        arrived = run('late prompts', self.take_arrived, live_stamp, default=[])
        return {object_id for one in arrived for object_id in run('late prompts', self._objects.join, one, default=())}

    def take_arrived(self, live_stamp: int | None) -> list[CatchUp]:
        """Take out the catch-ups that have reached the live images, as for ``join``."""
        arrived = [one for one in self._under_way if one.tracker is not None
                   and (live_stamp is None or one.next_image(self._history, live_stamp) is None)]
        self._under_way = [one for one in self._under_way if one not in arrived]
        return arrived
