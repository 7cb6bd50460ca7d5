"""What is known about each object from image to image: whether it is in sight, since when, and what happened to it."""
from __future__ import annotations

import math
from collections.abc import Container
from dataclasses import dataclass
from typing import NamedTuple

from builtin_interfaces.msg import Time

from sam2_core import ObjectResult
from sam2_ros.messages.conversions import to_nanoseconds
from sam2_ros.msg import Instance, InstanceEvent
from sam2_ros.perception.frame import Event, TrackedObject
from sam2_ros.runtime.parameters import Parameters


def unit(value: float) -> float:
    """The value cut to 0..1, NaN as 0: the IoU head of some checkpoints is not bounded."""
    return min(1.0, max(0.0, float(value)))


def probability(logit: float) -> float:
    """The sigmoid, without overflow; NaN as 0."""
    return unit(0.5 + 0.5 * math.tanh(logit / 2))


class Platt(NamedTuple):
    """A monotone correction of a probability: scale and offset of its logit (Platt, 1999)."""

    scale: float
    offset: float

    def __call__(self, value: float) -> float:
        value = min(0.999, max(0.001, unit(value)))
        return probability(self.scale * math.log(value / (1 - value)) + self.offset)


# what benchmarks/calibration.py --fit says of the packaged weights; the published ones have not been measured
SCORE_CORRECTIONS = {'nano': Platt(0.69, -0.34)}


def score_correction(parameters: Parameters) -> Platt | None:
    """What makes of the predicted IoU of a tracked object the IoU to be expected; None: it is told as predicted."""
    return None if parameters.checkpoint else SCORE_CORRECTIONS.get(parameters.model)


@dataclass(eq=False)
class _Record:
    label: str
    unseen_since: int  # ns; of the last image it was tracked in, or of its first prompt
    last_seen: Time  # 0: never
    state: int | None = None  # of Instance; None: not yet observed
    images_found: int = 0  # in a row, while it is not yet called tracked again


class ObjectStates:
    """The states of one camera's objects, by stamps of its images.

    An object that the model does not see, or sees without a pixel, is OCCLUDED in that very image, and LOST once it has
    been out of sight for more than ``lost_after`` seconds; LOST lasts until it is TRACKED again. On the way back it has
    to be found surely, in several images in a row, or by a prompt: a single doubtful mask is not passed on.
    """

    def __init__(self, correction: Platt | None = None) -> None:
        """``correction``: of scores in images without a prompt for the object, see ``score_correction``."""
        self._correction = correction
        self._records: dict[int, _Record] = {}
        self._events: list[Event] = []

    def name(self, object_id: int, label: str, stamp: Time) -> None:
        """An object is called so. A new one counts as out of sight since ``stamp``, until it is observed."""
        if object_id in self._records:
            self._records[object_id].label = label
        else:
            self._records[object_id] = _Record(label, to_nanoseconds(stamp), Time())

    def observe(self, object_id: int, found: ObjectResult, stamp: Time, parameters: Parameters,
                prompted: bool) -> TrackedObject:
        """What the model says of an object in the image of this stamp, as it is to be told.

        prompted: a prompt for the object was applied to this image, or to an earlier one that it has just come from.
        """
        record, visibility = self._record(object_id, stamp), probability(found.object_score)
        before = record.state
        if self._is_tracked(record, found, visibility, parameters, prompted):
            record.state, record.images_found = Instance.TRACKED, 0
            record.last_seen, record.unseen_since = stamp, to_nanoseconds(stamp)
            if before != Instance.TRACKED:
                self._tell(object_id, InstanceEvent.ADDED if before is None else InstanceEvent.REAPPEARED)
            corrected = self._correction is not None and not prompted
            score = self._correction(found.iou) if corrected else unit(found.iou)
            return TrackedObject(object_id, record.label, Instance.TRACKED, score, visibility, stamp, found.box,
                                 found.mask)
        return self._out_of_sight(object_id, record, visibility, stamp, parameters)

    def miss(self, object_id: int, stamp: Time, parameters: Parameters) -> TrackedObject:
        """Return an object that the model failed for in the image of this stamp: out of sight, and no nearer to being
        found again."""
        record = self._record(object_id, stamp)
        record.images_found = 0
        return self._out_of_sight(object_id, record, 0.0, stamp, parameters)

    def _out_of_sight(self, object_id: int, record: _Record, visibility: float, stamp: Time,
                      parameters: Parameters) -> TrackedObject:
        before = record.state
        if before is None:
            self._tell(object_id, InstanceEvent.ADDED)
        if before in (None, Instance.TRACKED):
            record.state = Instance.OCCLUDED
            self._tell(object_id, InstanceEvent.OCCLUDED)
        if record.state == Instance.OCCLUDED and _seconds_unseen(record, stamp) > parameters.lost_after:
            record.state = Instance.LOST
            self._tell(object_id, InstanceEvent.LOST)
        return TrackedObject(object_id, record.label, record.state, 0.0, visibility, record.last_seen)

    def label(self, object_id: int) -> str:
        """Return the label of an object; empty when it has none."""
        record = self._records.get(object_id)
        return '' if record is None else record.label

    def expire(self, stamp: Time, forget_after: float, keep: Container[int] = ()) -> list[int]:
        """Forget the objects that have been out of sight for more than so many seconds (0: none); their ids.

        keep: objects that are not forgotten, because a correction of them is under way.
        """
        if not forget_after:
            return []
        expired = [object_id for object_id, record in self._records.items()
                   if record.state in (Instance.OCCLUDED, Instance.LOST) and object_id not in keep
                   and _seconds_unseen(record, stamp) > forget_after]
        for object_id in expired:
            self._end(object_id, InstanceEvent.FORGOTTEN)
        return expired

    def remove(self, object_id: int) -> None:
        """Forget an object, if it is known, because a user wants it."""
        if object_id in self._records:
            self._end(object_id, InstanceEvent.REMOVED)

    def clear(self) -> None:
        """Forget all objects because a user wants it."""
        for object_id in tuple(self._records):
            self.remove(object_id)

    def time_jumped(self, stamp: Time) -> None:
        """Count the time out of sight of every object from this stamp on: the clock has jumped here."""
        for record in self._records.values():
            record.unseen_since = to_nanoseconds(stamp)

    def take_events(self) -> list[Event]:
        """What has happened since the last call, in its order."""
        events, self._events = self._events, []
        return events

    @staticmethod
    def _is_tracked(record: _Record, found: ObjectResult, visibility: float, parameters: Parameters,
                    prompted: bool) -> bool:
        if found.box is None or not found.object_score > 0:
            record.images_found = 0
            return False
        if record.state in (None, Instance.TRACKED) or prompted:
            return True
        record.images_found += 1
        return visibility >= parameters.reappear_visibility or record.images_found >= parameters.reappear_images

    def _record(self, object_id: int, stamp: Time) -> _Record:
        if object_id not in self._records:
            self.name(object_id, '', stamp)
        return self._records[object_id]

    def _end(self, object_id: int, kind: int) -> None:
        if self._records[object_id].state is not None:  # who has not been told of an object need not hear of its end
            self._tell(object_id, kind)
        del self._records[object_id]

    def _tell(self, object_id: int, kind: int) -> None:
        record = self._records[object_id]
        self._events.append(Event(object_id, record.label, kind, record.last_seen))


def _seconds_unseen(record: _Record, stamp: Time) -> float:
    return (to_nanoseconds(stamp) - record.unseen_since) / 1e9
