"""Steps of a tracker in which an object that fails costs itself, not the image."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from sam2_core import EncodedImage, ObjectResult, Prompt, PromptError, StreamTracker, encode_images
from sam2_core.finite import not_finite

Prompts = Mapping[int, Sequence[Prompt]]  # by object


@dataclass(eq=False)
class TrackingStep:
    """Outcome of one image. An object is in ``results`` or, if it was known before, in ``missed``."""

    results: dict[int, ObjectResult]
    missed: dict[int, Exception] = field(default_factory=dict)  # known objects whose memory stays as it was
    refused: dict[int, Exception] = field(default_factory=dict)  # objects whose prompts were not applied
    together: Exception | None = None  # the error of the step of all objects, which they were stepped apart for


def take_step(tracker: StreamTracker, image: np.ndarray | EncodedImage, prompts: Prompts) -> TrackingStep:
    """Step all objects through an image; if that fails, step them apart, so that only the failing ones miss it.

    An object whose prompts fail is stepped without them. A result that is not finite counts as a failure, and the
    object's memory is restored: all of it, but for the oldest recent frame of an object that was not prompted.
    When every object fails, the first error that is not a PromptError is raised and the tracker is as it was before.
    """
    known = tracker.object_ids
    ids = [*dict.fromkeys((*known, *prompts))]
    corrected = [object_id for object_id in known if object_id in prompts]
    before = tracker.fork(corrected) if corrected else None
    together = None
    try:
        results = tracker.step(image, _all(prompts, ids)).objects
    except Exception as error:
        if not ids:
            raise
        together = error
        for object_id in set(tracker.object_ids) - set(known):
            tracker.remove(object_id)
        image = _encoded(tracker, image)
        stepped, errors = _step_apart(tracker, ids, prompts, image) if len(ids) > 1 else ({}, {ids[0]: error})
    else:
        errors = not_finite(results)
        if not errors:
            return TrackingStep(results)
        _restore(tracker, errors, known, before)
        stepped = {object_id: (found, None) for object_id, found in results.items() if object_id not in errors}
    missed = {}
    for object_id in known:
        if object_id in errors:
            again, failed = {}, {object_id: errors[object_id]}
            if object_id in prompts:
                image = _encoded(tracker, image)
                again, failed = _step_apart(tracker, [object_id], {}, image)
            stepped |= again
            missed |= failed
    if not stepped:
        for error in (*missed.values(), *errors.values()):
            if not isinstance(error, PromptError):
                raise error
    for object_id, (_, fork) in stepped.items():
        if fork is not None:
            tracker.adopt(fork, object_id)
    return TrackingStep({object_id: stepped[object_id][0] for object_id in ids if object_id in stepped}, missed,
                {object_id: error for object_id, error in errors.items() if object_id in prompts}, together)


def _step_apart(tracker: StreamTracker, ids: list[int], prompts: Prompts, image: EncodedImage) -> tuple[
        dict[int, tuple[ObjectResult, StreamTracker]], dict[int, Exception]]:
    """Step copies of these objects; halve a group that fails until the failing objects are alone.

    Returns the result of each object that could be stepped, with the tracker that has it, and the errors.
    """
    try:
        fork = tracker.fork([object_id for object_id in ids if object_id in tracker.object_ids])
        results = fork.step(image, _all(prompts, ids)).objects
    except Exception as error:
        if len(ids) == 1:
            return {}, {ids[0]: error}
        stepped, errors = {}, {}
        for half in (ids[:len(ids) // 2], ids[len(ids) // 2:]):
            found, failed = _step_apart(tracker, half, prompts, image)
            stepped |= found
            errors |= failed
        return stepped, errors
    errors = not_finite(results)
    return {object_id: (found, fork) for object_id, found in results.items() if object_id not in errors}, errors


def _restore(tracker: StreamTracker, errors: Mapping[int, Exception], known: Sequence[int],
             before: StreamTracker | None) -> None:
    """Take this image out of the memory of these objects. ``before`` has those that were corrected in it."""
    for object_id in errors:
        if object_id not in known:
            tracker.remove(object_id)
        else:
            corrected = before is not None and object_id in before.object_ids
            tracker.adopt(before if corrected else tracker.fork([object_id], 1), object_id)


def _encoded(tracker: StreamTracker, image: np.ndarray | EncodedImage) -> EncodedImage:
    return image if isinstance(image, EncodedImage) else encode_images(tracker.model, [image])[0]


def _all(prompts: Prompts, ids: Sequence[int]) -> list[Prompt]:
    return [prompt for object_id in ids for prompt in prompts.get(object_id, ())]
