"""Objects of one camera in the form of a file: the tracker's state, and the camera's own data beside it."""
from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sam2_core import TrackerStateError, load_state
from sam2_core.state_files import ForeignFileError
from sam2_core.tracker_state import bytes_per_object
from sam2_ros.msg import Instance
from sam2_ros.perception.camera_pipeline import CameraPipeline
from sam2_ros.perception.prompt_plan import MAX_ID, MAX_LABEL, Ids

NOTES = 'sam2_ros_camera'  # name of the camera's data among the notes of a state file
VERSION = 1
TEXT_PER_OBJECT = 32_768  # bytes, more than frame numbers and a label of MAX_LABEL characters take
TEXT = 1_048_576  # bytes, more than everything else takes
_KEYS = ('version', 'series', 'number', 'camera', 'frame_id', 'height', 'width', 'stamp', 'ids', 'objects')
_RECORD = ('label', 'state', 'unseen_since', 'last_seen', 'images_found')
_STATES = (None, Instance.TRACKED, Instance.OCCLUDED, Instance.LOST)
_STAMPS = 2**31 * 10**9  # ns, exclusive limit of a stamp


@dataclass(frozen=True)
class View:
    """What the images of a camera show it by: the same objects are sought only in the same view."""

    frame_id: str
    height: int
    width: int


@dataclass(frozen=True, eq=False)
class CameraSnapshot:
    """Objects of one camera at one moment."""

    tracker: dict[str, Any]  # what StreamTracker.state_dict returned
    records: dict[int, dict[str, Any]]  # what ObjectStates.records returned, of the tracker's objects
    ids: dict[str, Any]  # what Ids.state returned
    camera: str  # full name of the image topic
    view: View
    stamp: int | None  # of the newest processed image, ns
    series: str  # random name of the series of snapshots
    number: int  # of the snapshot in its series; later ones have higher numbers

    @classmethod
    def of(cls, pipeline: CameraPipeline, ids: Ids, camera: str, view: View, series: str,
           number: int) -> CameraSnapshot:
        """Return the present objects of a pipeline. Call it in the worker's thread, or after the worker has ended."""
        objects = pipeline.objects
        records = objects.states.records()
        return cls(objects.tracker.state_dict(), {object_id: records[object_id] for object_id in objects.ids
                                                  if object_id in records},
                   ids.state(), camera, view, pipeline.clock.newest, series, number)

    def notes(self) -> dict[str, str]:
        """Return the texts to store beside the tracker's state."""
        return {NOTES: json.dumps({
            'version': VERSION, 'series': self.series, 'number': self.number, 'camera': self.camera,
            **vars(self.view), 'stamp': self.stamp, 'ids': self.ids,
            'objects': [{'id': object_id, **record} for object_id, record in self.records.items()]})}

    def apply(self, pipeline: CameraPipeline, ids: Ids, ended: Collection[int]) -> None:
        """Let a pipeline without objects continue with these.

        Args:
            pipeline: The pipeline.
            ids: Source of ids for new objects.
            ended: Objects that have ended since the snapshot was taken.

        Raises:
            TrackerStateError: They do not fit the model or the parameters. The pipeline has no objects then.
        """
        limit = pipeline.parameters.max_objects
        if len(self.records) > limit:
            raise TrackerStateError(f'{len(self.records)} objects: must be at most {limit}; raise max_objects')
        tracker = pipeline.objects.tracker
        tracker.load_state_dict(self.tracker)
        try:
            if not {*self.records} <= {*tracker.object_ids} or max(tracker.object_ids, default=0) > MAX_ID:
                raise _damaged('objects', [*tracker.object_ids], f'up to {MAX_ID}, and include {[*self.records]}')
            ids.restore(self.ids)
        except Exception as error:
            tracker.reset()
            if isinstance(error, TrackerStateError):
                raise
            raise _damaged('ids', error, 'readable') from error
        for object_id in {*ended} & {*tracker.object_ids}:
            tracker.remove(object_id)
        pipeline.objects.states.restore({object_id: record for object_id, record in self.records.items()
                                         if object_id not in ended})
        pipeline.clock.newest = self.stamp
        pipeline.apply_level(pipeline.shedder.level)  # how much memory is attended to is not an object's matter


def read_snapshot(path: Path, pipeline: CameraPipeline) -> CameraSnapshot:
    """Return the snapshot in a file.

    Raises:
        ForeignFileError: The file is not one of a camera's objects.
        OSError: The file cannot be read.
        TrackerStateError: The file is damaged, or larger than any that the pipeline's camera could have.
    """
    tracker = pipeline.objects.tracker
    each = bytes_per_object(tracker.model, tracker.max_conditioning_frames) + TEXT_PER_OBJECT
    state, notes = load_state(path, pipeline.parameters.max_objects * each + TEXT)
    if NOTES not in notes:
        raise ForeignFileError(f"{path}: the state of a tracker, but not of a camera's: give another path")
    try:
        content = json.loads(notes[NOTES])
    except (ValueError, TypeError, RecursionError) as error:
        raise _damaged('notes', error, 'JSON') from error
    return _parsed(state, content)


def _parsed(state: dict[str, Any], content: Any) -> CameraSnapshot:
    if not isinstance(content, dict) or content.get('version') != VERSION:
        found = content.get('version') if isinstance(content, dict) else None
        raise TrackerStateError(f'objects in version {str(found)[:20]} of the format: must be {VERSION}; they are of '
                                f'another version of sam2_ros')
    _check_keys(content, _KEYS)
    texts = [content['camera'], content['frame_id'], content['series']]
    sizes = [content['height'], content['width'], content['number']]
    if not all(isinstance(text, str) for text in texts) or not all(_is_number(size, 0, 2**32) for size in sizes):
        raise _damaged('camera', [*texts, *sizes], 'three texts and three numbers')
    if content['stamp'] is not None and not _is_number(content['stamp'], 0, _STAMPS):
        raise _damaged('stamp', content['stamp'], 'nanoseconds')
    if not isinstance(content['objects'], list) or not isinstance(content['ids'], dict):
        raise _damaged('objects', content['objects'], 'a list')
    records = {}
    for one in content['objects']:
        _check_keys(one, ('id', *_RECORD))
        if not _is_number(one['id'], 1, MAX_ID + 1) or one['id'] in records:
            raise _damaged('id', one['id'], f'between 1 and {MAX_ID}, and there once')
        records[one['id']] = _record(one)
    return CameraSnapshot(state, records, content['ids'], texts[0], View(texts[1], *sizes[:2]), content['stamp'],
                          texts[2], sizes[2])


def _record(one: Mapping[str, Any]) -> dict[str, Any]:
    """Return the data of one object that ``ObjectStates.restore`` takes."""
    if not isinstance(one['label'], str) or len(one['label']) > MAX_LABEL:
        raise _damaged('label', one['label'], f'a text of at most {MAX_LABEL} characters')
    if one['state'] not in _STATES or isinstance(one['state'], (bool, float)):
        raise _damaged('state', one['state'], f'one of {_STATES}')
    for name, least, limit in (('unseen_since', -_STAMPS, _STAMPS), ('last_seen', 0, _STAMPS),
                               ('images_found', 0, 2**31)):
        if not _is_number(one[name], least, limit):
            raise _damaged(name, one[name], f'at least {least} and below {limit}')
    return {name: one[name] for name in _RECORD}


def _check_keys(found: Any, wanted: tuple[str, ...]) -> None:
    if not isinstance(found, dict) or {*found} != {*wanted}:
        raise _damaged('fields', [*found] if isinstance(found, dict) else found, ', '.join(wanted))


def _is_number(value: Any, least: int, limit: int) -> bool:
    return type(value) is int and least <= value < limit


def _damaged(name: str, value: object, rule: str) -> TrackerStateError:
    return TrackerStateError(f'{name} {str(value)[:80]}: must be {rule}; the file is damaged')
