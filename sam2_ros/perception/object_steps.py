"""Steps of a tracker in which a failing object misses the image, and the others do not."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from sam2_core import EncodedImage, ObjectResult, Prompt, PromptError, StreamTracker, encode_images
from sam2_core.finite import not_finite

Prompts = Mapping[int, Sequence[Prompt]]  # by object
Errors = dict[int, Exception]  # by object
Stepped = dict[int, tuple[ObjectResult, StreamTracker | None]]  # by object; None: the tracker itself has it


@dataclass(eq=False)
class TrackingStep:
    """Outcome of one image. An object is in ``results`` or, if it was known before, in ``missed``."""

    results: dict[int, ObjectResult]
    missed: dict[int, Exception] = field(default_factory=dict)  # known objects whose memory stays as it was
    refused: dict[int, Exception] = field(default_factory=dict)  # objects whose prompts were not applied
    together: Exception | None = None  # the error of the step of all objects together


def take_step(tracker: StreamTracker, image: np.ndarray | EncodedImage, prompts: Prompts) -> TrackingStep:
    """Step all objects through an image; if that fails, step them apart, so that only the failing ones miss it.

    An object whose prompts fail is stepped without them. A result that is not finite counts as a failure, and the
    object's memory is restored, except for the oldest recent frame of an object that was not prompted.

    Args:
        tracker: Tracker of the objects.
        image: uint8 RGB (H, W, 3), or its features.
        prompts: Prompts by object; unknown objects are new.

    Raises:
        Exception: The first error that is not a PromptError, if every object fails. The tracker is then as it was.
    """
    known = tracker.object_ids
    ids = [*dict.fromkeys((*known, *prompts))]
    corrected = [object_id for object_id in known if object_id in prompts]
    before = tracker.fork(corrected) if corrected else None
    together = None
    stepped: Stepped
    errors: Errors
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
        errors = dict(not_finite(results))
        if not errors:
            return TrackingStep(results)
        _restore(tracker, errors, known, before)
        stepped = {object_id: (found, None) for object_id, found in results.items() if object_id not in errors}
    missed: Errors = {}
    for object_id in known:
        if object_id in errors:
            again: Stepped = {}
            failed: Errors = {object_id: errors[object_id]}
            if object_id in prompts:
                image = _encoded(tracker, image)
                again, failed = _step_apart(tracker, [object_id], {}, image)
            stepped |= again
            missed |= failed
    if not stepped:
        for failure in (*missed.values(), *errors.values()):
            if not isinstance(failure, PromptError):
                raise failure
    for object_id, (_, fork) in stepped.items():
        if fork is not None:
            tracker.adopt(fork, object_id)
    return TrackingStep({object_id: stepped[object_id][0] for object_id in ids if object_id in stepped}, missed,
                        {object_id: failure for object_id, failure in errors.items() if object_id in prompts}, together)


def _step_apart(tracker: StreamTracker, ids: list[int], prompts: Prompts,
                image: EncodedImage) -> tuple[Stepped, Errors]:
    """Step copies of these objects, halving a group that fails until the failing objects are alone.

    Returns the result of each object that could be stepped, with the tracker that has it, and the errors by object.
    """
    try:
        fork = tracker.fork([object_id for object_id in ids if object_id in tracker.object_ids])
        results = fork.step(image, _all(prompts, ids)).objects
    except Exception as error:
        if len(ids) == 1:
            return {}, {ids[0]: error}
        stepped: Stepped = {}
        errors: Errors = {}
        for half in (ids[:len(ids) // 2], ids[len(ids) // 2:]):
            found, failed = _step_apart(tracker, half, prompts, image)
            stepped |= found
            errors |= failed
        return stepped, errors
    errors = dict(not_finite(results))
    return {object_id: (found, fork) for object_id, found in results.items() if object_id not in errors}, errors


def _restore(tracker: StreamTracker, errors: Mapping[int, Exception], known: Sequence[int],
             before: StreamTracker | None) -> None:
    """Remove this image from the memory of these objects; ``before`` has those that were corrected in it."""
    for object_id in errors:
        if object_id not in known:
            tracker.remove(object_id)
        else:
            if before is None or object_id not in before.object_ids:
                tracker.adopt(tracker.fork([object_id], 1), object_id)
            else:
                tracker.adopt(before, object_id)


def _encoded(tracker: StreamTracker, image: np.ndarray | EncodedImage) -> EncodedImage:
    return image if isinstance(image, EncodedImage) else encode_images(tracker.model, [image])[0]


def _all(prompts: Prompts, ids: Sequence[int]) -> list[Prompt]:
    return [prompt for object_id in ids for prompt in prompts.get(object_id, ())]
