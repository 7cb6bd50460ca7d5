"""Objects of one camera: their tracker, states and boxes, changed together or not at all."""
from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace

from builtin_interfaces.msg import Time

from sam2_core import ImageSegmenter, ObjectResult, PromptError, StreamTracker
from sam2_ros.depth.surface import OrientedBox, measure
from sam2_ros.msg import Instance
from sam2_ros.perception.camera_image import CameraImage
from sam2_ros.perception.frame import TrackedObject, sighting
from sam2_ros.perception.late_prompts import CatchUp
from sam2_ros.perception.object_states import ObjectStates, probability, unit
from sam2_ros.perception.object_steps import TrackingStep, take_step
from sam2_ros.perception.prompt_plan import Batch
from sam2_ros.runtime.failures import Failures, describe
from sam2_ros.runtime.parameters import Parameters


@dataclass(eq=False)
class Advance:
    """Outcome of one image."""

    results: dict[int, ObjectResult | None]  # by object; None: the model failed for it
    refused: dict[int, str] = field(default_factory=dict)  # why the prompts for an object were not applied


class TrackedObjects:
    """Tracker, states and boxes of one camera's objects."""

    def __init__(self, tracker: StreamTracker, states: ObjectStates, failures: Failures) -> None:
        self.tracker = tracker
        self.states = states
        self._failures = failures
        self._shapes: dict[int, OrientedBox] = {}  # as last measured

    @property
    def ids(self) -> tuple[int, ...]:
        """Objects that the tracker knows."""
        return self.tracker.object_ids

    def advance(self, picture: CameraImage, segmenter: ImageSegmenter, batch: Batch,
                forget: Collection[int]) -> Advance:
        """Forget objects, then take the others and those that are prompted through an image.

        When the model fails for all of them, its error is raised, and the objects are as they were before, but for
        those that were to be forgotten and not started again.
        """
        aside = self.tracker.fork(())
        restarted = [object_id for object_id in forget if object_id in batch.prompts]
        try:
            for object_id in forget:
                aside.adopt(self.tracker, object_id)
            if batch.prompts or self.tracker.object_ids:
                picture.encode(segmenter)
            image = picture.encoded or picture.image
            step = take_step(self.tracker, image, batch.prompts)
            self._go_on_as_before(step, aside, restarted, image)
        except Exception:
            for object_id in restarted:
                if object_id in aside.object_ids:
                    self.tracker.adopt(aside, object_id)
            self.forget(object_id for object_id in forget if object_id not in restarted)
            raise
        self._forgotten(object_id for object_id in forget if object_id not in step.refused)
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
        return Advance({object_id: step.results.get(object_id) for object_id in self.ids}, refused)

    def _go_on_as_before(self, step: TrackingStep, aside: StreamTracker, restarted: Iterable[int], image) -> None:
        """Give objects their place back that could not be started again, and take them through the image."""
        for object_id in restarted:
            if object_id in step.refused:
                alone = aside.fork(())
                alone.adopt(aside, object_id)
                try:
                    step.results |= take_step(alone, image, {}).results
                except Exception as error:
                    step.missed[object_id] = error
                self.tracker.adopt(alone, object_id)

    def observe(self, advance: Advance, stamp: Time, labels: dict[int, str], prompted: Collection[int],
                parameters: Parameters, keep: Collection[int]) -> list[TrackedObject]:
        """Return the objects of an image as they are to be published.

        prompted: objects a prompt was applied to. keep: objects that are not forgotten however long they are hidden.
        """
        run = self._failures.run
        for object_id, label in labels.items():
            if object_id in advance.results and object_id not in advance.refused:
                run('states', self.states.name, object_id, label, stamp)
        items = []
        for object_id, found in advance.results.items():
            about = f'object {object_id}'
            if found is None:
                item = run('states', self.states.miss, object_id, stamp, parameters, about=about)
            else:
                item = run('states', self.states.observe, object_id, found, stamp, parameters,
                           object_id in prompted and object_id not in advance.refused, about=about)
            items.append(item or _without_state(object_id, found, stamp))
        forgotten = run('states', self.states.expire, stamp, parameters.forget_after, keep, default=[])
        for object_id in forgotten:
            if object_id in self.ids:
                self.tracker.remove(object_id)
            self._shapes.pop(object_id, None)
        return [item for item in items if item.id not in forgotten]

    def without_states(self, advance: Advance, stamp: Time) -> list[TrackedObject]:
        """Return the objects as this image alone shows them."""
        return [_without_state(object_id, found, stamp) for object_id, found in advance.results.items()]

    def measure(self, picture: CameraImage, items: list[TrackedObject], edge_erosion: int) -> list[TrackedObject]:
        """Return the objects with their places, where the depth of the image tells them."""
        if picture.depth is None:
            return items
        measured = []
        for item in items:
            shape = None
            if item.box is not None:
                shape = self._failures.run('position', measure, picture.depth, item.mask, item.box, edge_erosion,
                                           self._shapes.get(item.id), about=f'object {item.id}')
            if shape is not None:
                self._shapes[item.id] = shape
            measured.append(replace(item, shape=shape))
        return measured

    def join(self, late: CatchUp, steps: Sequence[int]) -> set[int]:
        """Have the live tracker go on with the objects of a late prompt from its next image on; return them.

        steps: stamps of the images that the live tracker has processed, ns.
        """
        # an image that the live tracker has left out counts as the one before it
        frames_back = [1 + sum(step > stamp for step in steps) for stamp in late.seen]
        started = late.batch.prompts.keys() - late.corrected
        joined = set()
        for object_id in late.batch.prompts:
            if object_id not in late.tracker.object_ids:
                continue
            if object_id in started and object_id in self.ids:
                self.forget([object_id])
            self.tracker.adopt(late.tracker, object_id, frames_back)
            joined.add(object_id)
        for object_id, label in late.batch.labels.items():
            if object_id in joined:
                self.states.name(object_id, label, late.past.message.header.stamp)
        return joined

    def forget(self, object_ids: Iterable[int]) -> None:
        """Forget objects because a user wants it."""
        for object_id in object_ids:
            if object_id in self.ids:
                self.tracker.remove(object_id)
            self._forgotten([object_id])

    def reset(self) -> None:
        """Forget all objects."""
        self.tracker.reset()
        self.states.clear()
        self._shapes.clear()

    def _forgotten(self, object_ids: Iterable[int]) -> None:
        """Drop what else is known of objects that are no longer tracked."""
        for object_id in object_ids:
            self.states.remove(object_id)
            self._shapes.pop(object_id, None)


def _without_state(object_id: int, found: ObjectResult | None, stamp: Time) -> TrackedObject:
    if found is None or not found.object_score > 0:
        return TrackedObject(object_id, '', Instance.OCCLUDED, 0.0, 0.0, Time())
    return sighting(object_id, '', found.mask, unit(found.iou), probability(found.object_score), stamp)
