"""Track states of one camera's objects from image to image, and the events of their changes."""
from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass
from typing import Any

from builtin_interfaces.msg import Time

from sam2_core import ObjectResult
from sam2_core.scores import Platt, probability, unit
from sam2_ros.messages.conversions import to_nanoseconds, to_time
from sam2_ros.msg import Instance, InstanceEvent
from sam2_ros.perception.frame import Event, TrackedObject
from sam2_ros.runtime.parameters import Parameters


@dataclass(eq=False)
class _Record:
    label: str
    unseen_since: int  # ns, stamp of the last image in which it was tracked, or of its first prompt
    last_seen: Time  # 0: never
    state: int | None = None  # Instance.TRACKED, OCCLUDED or LOST; None: not yet observed
    images_found: int = 0  # images in a row in which it was found, until it counts as tracked again


class ObjectStates:
    """Track states of one camera's objects. Time is counted by the stamps of the images.

    An object is OCCLUDED in an image in which the model does not see it, or finds no pixel of it. It is LOST after more
    than ``lost_after`` seconds without being seen, until it is TRACKED again. To return to TRACKED, it has to be found
    with a high visibility, in several images in a row, or by a prompt: a single doubtful mask is not published.
    """

    def __init__(self, correction: Platt | None = None) -> None:
        """``correction`` applies to scores in images without a prompt for the object (``score_correction``)."""
        self._correction = correction
        self._records: dict[int, _Record] = {}
        self._events: list[Event] = []

    def name(self, object_id: int, label: str, stamp: Time) -> None:
        """Set the label of an object. A new object counts as hidden since ``stamp`` until it is observed."""
        if object_id in self._records:
            self._records[object_id].label = label
        else:
            self._records[object_id] = _Record(label, to_nanoseconds(stamp), Time())

    def observe(self, object_id: int, found: ObjectResult, stamp: Time, parameters: Parameters,
                prompted: bool) -> TrackedObject:
        """Return an object as it is to be published for the image of this stamp.

        Args:
            object_id: The object.
            found: Result of the model.
            stamp: Stamp of the image.
            parameters: Those of the node.
            prompted: A prompt for the object was applied to this image, or the object has just joined.
        """
        record, visibility = self._record(object_id, stamp), probability(found.object_score)
        before = record.state
        if self._is_tracked(record, found, visibility, parameters, prompted):
            record.state, record.images_found = Instance.TRACKED, 0
            record.last_seen, record.unseen_since = stamp, to_nanoseconds(stamp)
            if before != Instance.TRACKED:
                self._report(object_id, InstanceEvent.ADDED if before is None else InstanceEvent.REAPPEARED)
            score = unit(found.iou) if self._correction is None or prompted else self._correction(found.iou)
            return TrackedObject(object_id, record.label, Instance.TRACKED, score, visibility, stamp, found.box,
                                 found.mask)
        return self._hidden(object_id, record, visibility, stamp, parameters)

    def miss(self, object_id: int, stamp: Time, parameters: Parameters) -> TrackedObject:
        """Return an object as hidden, because the model failed for it in the image of this stamp."""
        record = self._record(object_id, stamp)
        record.images_found = 0
        return self._hidden(object_id, record, 0.0, stamp, parameters)

    def _hidden(self, object_id: int, record: _Record, visibility: float, stamp: Time,
                parameters: Parameters) -> TrackedObject:
        state = record.state
        if state is None:
            self._report(object_id, InstanceEvent.ADDED)
        if state is None or state == Instance.TRACKED:
            state = Instance.OCCLUDED
            self._report(object_id, InstanceEvent.OCCLUDED)
        if state == Instance.OCCLUDED and _seconds_unseen(record, stamp) > parameters.lost_after:
            state = Instance.LOST
            self._report(object_id, InstanceEvent.LOST)
        record.state = state
        return TrackedObject(object_id, record.label, state, 0.0, visibility, record.last_seen,
                             hidden_for=_seconds_unseen(record, stamp))

    def label(self, object_id: int) -> str:
        """Return the label of an object, empty if it has none."""
        record = self._records.get(object_id)
        return '' if record is None else record.label

    def expire(self, stamp: Time, forget_after: float, keep: Container[int] = ()) -> list[int]:
        """Forget the objects that have been hidden for too long; return their ids.

        Args:
            stamp: Stamp of the current image.
            forget_after: Seconds; 0 forgets none.
            keep: Objects that are not forgotten, because a correction of them is under way.
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
        """Forget an object that a user has removed, if it is known."""
        if object_id in self._records:
            self._end(object_id, InstanceEvent.REMOVED)

    def clear(self) -> None:
        """Forget all objects, as a user has asked."""
        for object_id in tuple(self._records):
            self.remove(object_id)

    def records(self) -> dict[int, dict[str, Any]]:
        """Return label, state and times of each object in a form that JSON can store."""
        return {object_id: {'label': record.label, 'state': record.state, 'unseen_since': record.unseen_since,
                            'last_seen': to_nanoseconds(record.last_seen), 'images_found': record.images_found}
                for object_id, record in self._records.items()}

    def identities(self) -> dict[int, object]:
        """Return a token for each object. An object that has ended and one that is new under its id differ in it."""
        return {**self._records}

    def restore(self, records: Mapping[int, Mapping[str, Any]]) -> None:
        """Continue with what ``records`` returned before a restart of the node. No event is published for it."""
        self._records = {object_id: _Record(**{**record, 'last_seen': to_time(record['last_seen'])})
                         for object_id, record in records.items()}

    def time_jumped(self, stamp: Time) -> None:
        """Count the hidden time of every object from this stamp on, to which the clock has jumped."""
        for record in self._records.values():
            record.unseen_since = to_nanoseconds(stamp)

    def take_events(self) -> list[Event]:
        """Return the events since the last call, oldest first."""
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
        if self._records[object_id].state is not None:  # no ADDED event was published: publish no end
            self._report(object_id, kind)
        del self._records[object_id]

    def _report(self, object_id: int, kind: int) -> None:
        record = self._records[object_id]
        self._events.append(Event(object_id, record.label, kind, record.last_seen))


def _seconds_unseen(record: _Record, stamp: Time) -> float:
    return (to_nanoseconds(stamp) - record.unseen_since) / 1e9
