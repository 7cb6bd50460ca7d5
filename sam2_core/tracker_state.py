"""Snapshots of a tracker: its objects as two tensors and a dict that JSON can store, and the checks on the way back.

A snapshot may come from a file that is damaged, old or another model's, so nothing in it is believed before it is
checked.
"""
from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from sam2_core.fingerprint import fingerprint
from sam2_core.images import describe
from sam2_core.memory import BankState, MemoryBank, StoredFrame
from sam2_core.memory_policy import MEMORY_POLICIES, NOTES, Kind, MemoryPolicy
from sam2_core.model import Sam2Model
from sam2_core.tensors import MEMORY_DTYPE
from sam2_core.timeline import KNOWN_IMAGES, Timeline

VERSION = 2
_KEYS = ('frames', 'metadata', 'pointers')
_METADATA = ('version', 'model', 'config', 'dtype', 'weights', 'max_conditioning_frames', 'memory_policy',
             'recent_frames', 'images', 'known_moments', 'objects')
_OBJECT = ('id', 'now', 'steps', 'notes', 'frames', 'pointers')
_KINDS = {kind.value: kind for kind in Kind}
_LARGEST = 2 ** 53  # numbers of frames and images: JSON readers keep integers exact up to here
_DAMAGED = 'the state is damaged: use another one'


class TrackerStateError(ValueError):
    """Error for a saved state that a tracker cannot continue from; the message states the value and the cure."""

    names_cure = True


def bytes_per_object(model: Sam2Model, max_conditioning_frames: int) -> int:
    """Return the maximum size of the tensors of one object in a snapshot, whatever its memory policy."""
    return max(MemoryBank(model.config, max_conditioning_frames, torch.device('meta'), model.dtype, policy).nbytes
               for policy in MEMORY_POLICIES.values())


@torch.inference_mode(False)
def to_state(model: Sam2Model, max_conditioning_frames: int, policy: MemoryPolicy, recent_frames: int | None,
             banks: Mapping[int, MemoryBank], timeline: Timeline) -> dict[str, Any]:
    """Return the snapshot of a tracker with these settings and objects."""
    states = {object_id: bank.state() for object_id, bank in banks.items()}
    frames, pointers = _shapes(model)
    return {
        'frames': _together([row for state in states.values() for row in state.frame_rows], frames, MEMORY_DTYPE),
        'pointers': _together([row for state in states.values() for row in state.pointer_rows], pointers, model.dtype),
        'metadata': {
            'version': VERSION,
            'model': model.name, 'config': _config(model), 'dtype': str(model.dtype), 'weights': fingerprint(model),
            'max_conditioning_frames': max_conditioning_frames, 'memory_policy': policy.name,
            'recent_frames': recent_frames, 'images': timeline.images, 'known_moments': len(timeline.moments),
            'objects': [{'id': object_id, 'now': state.now, 'steps': list(state.steps),
                         'notes': [list(note) for note in state.notes],
                         'frames': [[row.frame, row.kind.value, row.foreseen] for row in state.frames],
                         'pointers': [[row.frame, row.kind.value, row.foreseen] for row in state.pointers]}
                        for object_id, state in states.items()]}}


def from_state(state: Mapping[str, Any], model: Sam2Model, max_conditioning_frames: int,
               policy: MemoryPolicy) -> tuple[dict[int, MemoryBank], Timeline, int | None]:
    """Return banks, timeline and ``recent_frames`` of a snapshot. Raise TrackerStateError if it cannot be used."""
    _check_keys('state', state, _KEYS)
    metadata = state['metadata']
    version = metadata.get('version') if isinstance(metadata, Mapping) else None
    if version != VERSION or type(version) is not int:
        raise TrackerStateError(f'state of version {version!r}: must be {VERSION}; save it with this version of '
                                f'sam2_core')
    _check_keys('metadata', metadata, _METADATA)
    _check_model(metadata, model)
    theirs = metadata['max_conditioning_frames']
    if theirs != max_conditioning_frames:
        raise TrackerStateError(f'state with max_conditioning_frames {theirs!r}: must be {max_conditioning_frames} as '
                                f'in this tracker; create the tracker with the same')
    if metadata['memory_policy'] != policy.name:
        named = str(metadata['memory_policy'])[:40]
        raise TrackerStateError(f'state with memory_policy {named!r}: must be {policy.name!r} as in this tracker; '
                                f'give both the same memory_policy')
    recent = metadata['recent_frames']
    if recent is not None:
        _number('recent_frames', recent, least=0)
    images, known = _number('images', metadata['images'], -_LARGEST), _number(
        'known_moments', metadata['known_moments'], least=1, most=KNOWN_IMAGES + 1)
    objects = _objects(metadata['objects'])
    rows = [sum(len(content[key]) for content in objects.values()) for key in ('frames', 'pointers')]
    for name, dtype, shape, count in zip(('frames', 'pointers'), (MEMORY_DTYPE, model.dtype), _shapes(model), rows,
                                         strict=True):
        _check_tensor(name, state[name], (count, *shape), dtype)
    frames, pointers = (iter(state[name].to(model.device)) for name in ('frames', 'pointers'))
    banks = {}
    for object_id, content in objects.items():
        bank = MemoryBank(model.config, max_conditioning_frames, model.device, model.dtype, policy)
        try:
            banks[object_id] = bank.filled(BankState(
                content['now'], content['steps'], content['notes'], content['frames'], content['pointers'],
                [next(frames) for _ in content['frames']], [next(pointers) for _ in content['pointers']]))
        except ValueError as error:
            raise TrackerStateError(f'object {object_id}: {error}; {_DAMAGED}') from None
    return banks, Timeline.continued(images, known), recent


def _shapes(model: Sam2Model) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the shapes of one memory frame and of one object pointer."""
    return (model.config.memory_tokens, model.config.memory_dim), (model.config.d_model,)


def _config(model: Sam2Model) -> dict[str, Any]:
    fields: dict[str, Any] = json.loads(json.dumps(asdict(model.config)))  # lists for tuples, as after a file
    return fields


def _together(rows: Sequence[Tensor], shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Return copies of all rows as one tensor on the CPU."""
    if not rows:
        return torch.empty((0, *shape), dtype=dtype, device='cpu')
    with torch.autocast(rows[0].device.type, enabled=False):  # it would refuse to stack other types than its own
        return torch.stack(tuple(rows)).cpu()


def _check_keys(what: str, given: Any, wanted: Sequence[str]) -> None:
    if not isinstance(given, Mapping):
        raise TrackerStateError(f'{what} of type {type(given).__name__}: must be a dict, as state_dict returns it')
    if problems := ([f'missing {key}' for key in wanted if key not in given]
                    + [f'unexpected {str(key)[:40]}' for key in given if key not in wanted]):
        raise TrackerStateError(f'{what}: {", ".join(problems[:5])}; give the dict that state_dict returned, unchanged')


def _check_model(metadata: Mapping[str, Any], model: Sam2Model) -> None:
    """Raise TrackerStateError unless the state is of a model with the same configuration, type and weights."""
    whose, ours, theirs = f'state of a model {str(metadata["model"])[:40]!r}', _config(model), metadata['config']
    cure = f'load it into a tracker on the model that it was saved with, not on {describe(model)}'
    if theirs != ours:
        theirs = theirs if isinstance(theirs, dict) else {}
        field = next(key for key in [*ours, *theirs, 'config'] if key not in ours or ours[key] != theirs.get(key))
        raise TrackerStateError(f'{whose} with {field} {str(theirs.get(field))[:40]}: must be {ours.get(field)}; '
                                f'{cure}')
    if metadata['dtype'] != str(model.dtype):
        raise TrackerStateError(f'{whose} with dtype {str(metadata["dtype"])[:40]}: must be {model.dtype}; {cure}')
    if metadata['weights'] != fingerprint(model):
        raise TrackerStateError(f'{whose} with other weights (fingerprint {str(metadata["weights"])[:40]}, must be '
                                f'{fingerprint(model)}): {cure}')


def _check_tensor(name: str, tensor: Any, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    if not isinstance(tensor, Tensor):
        raise TrackerStateError(f'{name} of type {type(tensor).__name__}: must be a tensor; {_DAMAGED}')
    if tuple(tensor.shape) != shape or tensor.dtype != dtype:
        raise TrackerStateError(f'{name} {tuple(tensor.shape)} of {tensor.dtype}: must be {shape} of {dtype}; '
                                f'{_DAMAGED}')
    if not bool(torch.isfinite(tensor).all()):
        raise TrackerStateError(f'{name}: {int((~torch.isfinite(tensor)).sum())} of {tensor.numel()} values are NaN '
                                f'or infinite; {_DAMAGED}')


def _objects(given: Any) -> dict[int, dict[str, Any]]:
    """Return the content of each object by id. Raise TrackerStateError for anything that is none."""
    if not isinstance(given, list):
        raise TrackerStateError(f'objects of type {type(given).__name__}: must be a list; {_DAMAGED}')
    objects: dict[int, dict[str, Any]] = {}
    for one in given:
        _check_keys('object', one, _OBJECT)
        object_id = _number('object id', one['id'], least=1, most=None)
        if object_id in objects:
            raise TrackerStateError(f'object {object_id} is there twice; {_DAMAGED}')
        steps = one['steps']
        if not isinstance(steps, list) or not 1 <= len(steps) <= KNOWN_IMAGES:
            raise TrackerStateError(f'steps of object {object_id}: must be a list of 1 to {KNOWN_IMAGES} numbers; '
                                    f'{_DAMAGED}')
        numbers = tuple(_number('steps', step, -_LARGEST) for step in steps)
        if any(later < earlier for earlier, later in zip(numbers, numbers[1:], strict=False)):
            raise TrackerStateError(f'steps of object {object_id}: must not decrease; {_DAMAGED}')
        now = _number('now', one['now'], -_LARGEST)
        objects[object_id] = {'now': now, 'steps': numbers, 'notes': _notes(one['notes'], now),
                              'frames': _stored(one['frames']), 'pointers': _stored(one['pointers'])}
    return objects


def _notes(given: Any, now: int) -> tuple[tuple[int, int], ...]:
    if not isinstance(given, list) or len(given) > NOTES or not all(
            isinstance(note, (list, tuple)) and len(note) == 2 for note in given):
        raise TrackerStateError(f'notes {str(given)[:60]}: must be a list of at most {NOTES} pairs; {_DAMAGED}')
    notes = tuple((_number('frame', frame, -_LARGEST, now - 1), _number('note', value, least=0))
                  for frame, value in given)
    if any(later <= earlier for (earlier, _), (later, _) in pairwise(notes)):
        raise TrackerStateError(f'notes {str(given)[:60]}: their frames must increase; {_DAMAGED}')
    return notes


def _stored(given: Any) -> list[StoredFrame]:
    if not isinstance(given, list):
        raise TrackerStateError(f'frames of type {type(given).__name__}: must be a list; {_DAMAGED}')
    found = []
    for row in given:
        if (not isinstance(row, (list, tuple)) or len(row) != 3 or not isinstance(row[1], str)
                or row[1] not in _KINDS or type(row[2]) is not bool):
            raise TrackerStateError(f'frame {str(row)[:60]}: must be a number, one of {", ".join(_KINDS)} and a '
                                    f'boolean; {_DAMAGED}')
        found.append(StoredFrame(_number('frame', row[0], -_LARGEST), _KINDS[row[1]], row[2]))
    return found


def _number(name: str, value: Any, least: int, most: int | None = _LARGEST) -> int:
    if type(value) is not int or value < least or (most is not None and value > most):
        limit = f'at least {least}' if most is None else f'between {least} and {most}'
        raise TrackerStateError(f'{name} {str(value)[:40]}: must be an integer {limit}; {_DAMAGED}')
    return value
