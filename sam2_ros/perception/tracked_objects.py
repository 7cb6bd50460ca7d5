"""Objects of one camera: their tracker, states and boxes, changed together or not at all."""
from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field, replace

import numpy as np
from builtin_interfaces.msg import Time

from sam2_core import EncodedImage, ImageSegmenter, ObjectResult, PromptError, StreamTracker
from sam2_core.scores import probability, unit
from sam2_ros.depth.surface import OrientedBox, measure
from sam2_ros.messages.conversions import to_nanoseconds
from sam2_ros.msg import Instance
from sam2_ros.perception.camera_image import CameraImage
from sam2_ros.perception.catch_up import CatchUp
from sam2_ros.perception.frame import TrackedObject, sighting
from sam2_ros.perception.object_states import ObjectStates
from sam2_ros.perception.object_steps import TrackingStep, take_step
from sam2_ros.perception.prompt_plan import Batch
from sam2_ros.runtime.failures import Failures, describe
from sam2_ros.runtime.parameters import Parameters

STEPS_KNOWN = 64  # stamps of past steps that are stored: more than any object remembers


@dataclass(eq=False)
class StepOutcome:
    """Results of the tracker for one image."""

    results: dict[int, ObjectResult | None]  # by object; None: the model failed for it
    refused: dict[int, str] = field(default_factory=dict)  # objects whose prompts were not applied, and why


class TrackedObjects:
    """Tracker, states and boxes of one camera's objects.

    An image takes three calls: ``step`` tracks, ``observe`` follows the states, ``locate`` measures by depth.
    """

    def __init__(self, tracker: StreamTracker, states: ObjectStates, failures: Failures) -> None:
        self.tracker = tracker
        self.states = states
        self.changes = 0  # times that objects were prompted, joined, or ended
        self._failures = failures
        self._shapes: dict[int, OrientedBox] = {}  # as last measured
        self.resets = 0  # how often all objects have been forgotten by ``reset``
        self._steps: deque[int] = deque(maxlen=STEPS_KNOWN)  # stamps of the images that the tracker has processed, ns

    @property
    def ids(self) -> tuple[int, ...]:
        """Objects that the tracker knows."""
        return self.tracker.object_ids

    # --- one image

    def step(self, image: CameraImage, segmenter: ImageSegmenter, batch: Batch, forget: Collection[int]) -> StepOutcome:
        """Forget objects, then track the others and the prompted ones in an image.

        If the model fails for all of them, its error is raised and the objects are as they were before, except those
        that were to be forgotten and not started again.
        """
        aside = self.tracker.fork(())
        self.changes += bool(batch.prompts)
        restarted = [object_id for object_id in forget if object_id in batch.prompts]
        try:
            for object_id in forget:
                aside.adopt(self.tracker, object_id)
            if batch.prompts or self.tracker.object_ids:
                image.encode(segmenter)
            pixels = image.encoded or image.image
            step = take_step(self.tracker, pixels, batch.prompts)
            self._restore_refused(step, aside, restarted, pixels)
        except Exception:
            for object_id in restarted:
                if object_id in aside.object_ids:
                    self.tracker.adopt(aside, object_id)
            self.forget(object_id for object_id in forget if object_id not in restarted)
            raise
        self._forgotten(object_id for object_id in forget if object_id not in step.refused)
        self._steps.append(to_nanoseconds(image.header.stamp))
        return StepOutcome({object_id: step.results.get(object_id) for object_id in self.ids},
                           self._refusals(step, batch))

    def _restore_refused(self, step: TrackingStep, aside: StreamTracker, restarted: Iterable[int],
                         pixels: np.ndarray | EncodedImage) -> None:
        """Put objects back that could not be started again, and track them in the image as they were."""
        for object_id in restarted:
            if object_id in step.refused:
                alone = aside.fork(())
                alone.adopt(aside, object_id)
                try:
                    step.results |= take_step(alone, pixels, {}).results
                except Exception as error:
                    step.missed[object_id] = error
                self.tracker.adopt(alone, object_id)

    def _refusals(self, step: TrackingStep, batch: Batch) -> dict[int, str]:
        """Report what failed in a step; return the objects whose prompts were not applied, and why."""
        refused = {}
        if step.together is not None:
            self._failures.report('tracking of all objects together', step.together)
        for errors in (step.refused, step.missed):
            for object_id, error in errors.items():
                reason = describe(error)
                if not isinstance(error, PromptError):
                    self._failures.report('tracking', error, f'object {object_id}')
                    reason = f'the model failed for this object: {reason}'
                if object_id in batch.prompts:
                    refused[object_id] = reason
        return refused

    def observe(self, outcome: StepOutcome, stamp: Time, labels: dict[int, str], prompted: Collection[int],
                parameters: Parameters, keep: Collection[int]) -> list[TrackedObject]:
        """Return the objects of an image as they are to be published, and forget those hidden for too long.

        Args:
            outcome: What ``step`` returned for the image.
            stamp: Stamp of the image.
            labels: New labels by object.
            prompted: Objects that a prompt was applied to in this image, or that have just joined.
            parameters: Those of the node.
            keep: Objects that are not forgotten however long they are hidden.
        """
        run = self._failures.run
        for object_id, label in labels.items():
            if object_id in outcome.results and object_id not in outcome.refused:
                run('states', self.states.name, object_id, label, stamp)
        items = []
        for object_id, found in outcome.results.items():
            about = f'object {object_id}'
            if found is None:
                item = run('states', self.states.miss, object_id, stamp, parameters, about=about)
            else:
                item = run('states', self.states.observe, object_id, found, stamp, parameters,
                           object_id in prompted and object_id not in outcome.refused, about=about)
            items.append(item or _without_state(object_id, found, stamp))
        forgotten = self.expire(stamp, parameters.forget_after, keep)
        return [item for item in items if item.id not in forgotten]

    def without_states(self, outcome: StepOutcome, stamp: Time) -> list[TrackedObject]:
        """Return the objects as this image alone shows them."""
        return [_without_state(object_id, found, stamp) for object_id, found in outcome.results.items()]

    def locate(self, image: CameraImage, items: list[TrackedObject], edge_erosion: int) -> list[TrackedObject]:
        """Return the objects of an image with their oriented boxes where its depth allows it."""
        depth = image.depth
        if depth is None:
            return items
        located = []
        for item in items:
            shape = None
            if item.region is not None:
                box, mask = item.region
                shape = self._failures.run('position', measure, depth, mask, box, edge_erosion,
                                           self._shapes.get(item.id), about=f'object {item.id}')
            if shape is not None:
                self._shapes[item.id] = shape
            located.append(replace(item, shape=shape, target=image.target))
        return located

    # --- past images

    def fork(self, object_ids: Iterable[int], stamp: int) -> StreamTracker:
        """Return a tracker with these objects as they were before the live image of this stamp (ns), or the next."""
        return self.tracker.fork(object_ids, sum(step >= stamp for step in self._steps))

    def join(self, late: CatchUp) -> set[int]:
        """Take over the objects of a catch-up; return their ids. The live tracker has them from its next image on."""
        assert late.tracker is not None, 'not begun'
        # an image that the live tracker has skipped counts as the one before it
        frames_back = [1 + sum(step > stamp for step in self._steps) for stamp in late.seen]
        started = late.batch.prompts.keys() - late.corrected
        joined = set()
        for object_id in late.batch.prompts:
            if object_id not in late.tracker.object_ids:
                continue
            if object_id in started and object_id in self.ids:
                self.forget([object_id])
            self.tracker.adopt(late.tracker, object_id, frames_back)
            joined.add(object_id)
        self.changes += bool(joined)
        for object_id, label in late.batch.labels.items():
            if object_id in joined:
                self.states.name(object_id, label, late.past.message.header.stamp)
        return joined

    # --- the end of objects, and of time

    def forget(self, object_ids: Iterable[int]) -> None:
        """Forget objects that a user has removed."""
        for object_id in object_ids:
            if object_id in self.ids:
                self.tracker.remove(object_id)
            self._forgotten([object_id])

    def expire(self, stamp: Time, forget_after: float, keep: Collection[int]) -> list[int]:
        """Forget objects that have been hidden for more than ``forget_after`` seconds (0: none); return their ids."""
        forgotten = self._failures.run('states', self.states.expire, stamp, forget_after, keep, default=[])
        for object_id in forgotten:
            if object_id in self.ids:
                self.tracker.remove(object_id)
            self._shapes.pop(object_id, None)
        self.changes += bool(forgotten)
        return forgotten

    def reset(self) -> None:
        """Forget all objects."""
        self.resets += 1
        self.changes += 1
        self.tracker.reset()
        self.states.clear()
        self._shapes.clear()

    def time_jumped(self, stamp: Time, back: bool) -> None:
        """Count on from this stamp, to which the camera's clock has jumped."""
        if back:
            self._steps.clear()
        self.states.time_jumped(stamp)

    def _forgotten(self, object_ids: Iterable[int]) -> None:
        """Drop the states and boxes of objects that are no longer tracked."""
        for object_id in object_ids:
            self.changes += 1
            self.states.remove(object_id)
            self._shapes.pop(object_id, None)


def _without_state(object_id: int, found: ObjectResult | None, stamp: Time) -> TrackedObject:
    if found is None or not found.object_score > 0:
        return TrackedObject(object_id, '', Instance.OCCLUDED, 0.0, 0.0, Time())
    return sighting(object_id, '', found.mask, unit(found.iou), probability(found.object_score), stamp)
