"""Prompt files: a list of prompts in YAML or JSON, for ``sam2_track`` and ``sam2_evaluate``.

    - {frame: 0, id: 1, label: cup, box: [310, 200, 420, 330]}
    - {frame: 0, id: 2, mask: masks/plate.png}
    - {frame: 60, id: 1, action: refine, points: [[350, 260, 1], [400, 210, 0]]}
    - {frame: 90, id: 2, action: remove}

JSON is read always, YAML where PyYAML is installed.
"""
from __future__ import annotations

import json
from dataclasses import dataclass
from math import isfinite
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import numpy as np

from sam2_core.datasets.image_files import read_labels
from sam2_core.datasets.recordings import BrokenSample
from sam2_core.masks import binary_mask
from sam2_core.prompts import MAX_ID, PromptError

SET, REFINE, REMOVE, CLEAR = ACTIONS = 'set', 'refine', 'remove', 'clear'
CONTENT = ('points', 'box', 'mask')
KEYS = ('frame', 'stamp', 'action', 'id', 'label', *CONTENT)


@dataclass(frozen=True, eq=False)
class PromptEntry:
    """One entry of a prompt file. Coordinates are not yet compared with an image."""

    where: dict[str, Any]  # frame or stamp, as written
    action: str  # one of ACTIONS
    object_id: int  # 0 for a free one, and for all objects
    label: str
    points: list[tuple[float, float, int]]  # x, y and 1 (on the object) or 0
    box: tuple[float, float, float, float] | None  # x0, y0, x1, y1
    mask: np.ndarray | None  # bool (H, W)

    def frame(self, count: int, what: str) -> int:
        """Return the frame, which must be 0 to ``count`` - 1; ``what``: who has the frames. Raises PromptError."""
        frame = self.where['frame']
        if not _is_integer(frame) or not 0 <= frame < count:
            raise PromptError(f'frame {frame!r}: must be 0 to {count - 1}, {what} has {count} images')
        return int(frame)


def read_list(path: Path) -> list[Any]:
    """Return the entries of a file, unchecked. Raises ValueError, which names the file and the cure."""
    try:
        content = _parse(path)
    except OSError as error:
        raise ValueError(f'prompts {path}: {error.strerror or error}') from None
    except ValueError as error:
        raise ValueError(f'prompts {path}: {error}') from None
    if not isinstance(content, list) or not content:
        raise ValueError(f'prompts {path}: must be a list of prompts, as [{{frame: 0, id: 1, box: [x0, y0, x1, y1]}}, '
                         f'...]')
    return content


def _parse(path: Path) -> Any:
    text = path.read_text()
    if path.suffix.lower() == '.json':
        return json.loads(text)
    try:
        import yaml
    except ImportError:
        try:
            return json.loads(text)
        except ValueError:
            raise ValueError('not JSON, and PyYAML, which reads YAML, is not installed: pip install pyyaml, or write '
                             'JSON') from None
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from None


def parse_entry(entry: Any, folder: Path) -> PromptEntry:
    """Check one entry of a file in ``folder``.

    An entry has ``frame``, the index of an image, or ``stamp``, its stamp in seconds; ``id`` and ``label`` of the
    object; ``points`` [[x, y, label], ...] with label 1 on the object and 0 not on it, ``box`` [x0, y0, x1, y1], or
    ``mask``, a PNG of 0 and 1, or 0 and 255, with a path relative to the file; and ``action``: set (the default),
    refine, remove or clear.

    Raises:
        BrokenSample: A mask file cannot be read.
        PromptError: The entry cannot be used.
    """
    if not isinstance(entry, dict):
        raise PromptError(f'{entry!r}: must have the form {{frame: 0, id: 1, box: [x0, y0, x1, y1]}}')
    for key in entry:
        if key not in KEYS:
            raise PromptError(f'{key!r} is not known: must be one of {", ".join(KEYS)}')
    if ('frame' in entry) == ('stamp' in entry):
        raise PromptError('must have either frame or stamp, of the image it was drawn on')
    action = entry.get('action', SET)
    if action not in ACTIONS:
        raise PromptError(f'action {action!r}: must be one of {", ".join(ACTIONS)}')
    object_id, label = _id(entry, action), _label(entry)
    content = [key for key in CONTENT if key in entry]
    if content and action in (REMOVE, CLEAR):
        raise PromptError(f'action {action} with {content[0]}: leave {content[0]} out')
    points = [_point(point) for point in _list(entry, 'points')] if 'points' in entry else []
    box = _box(entry['box']) if 'box' in entry else None
    mask = _mask(folder / str(entry['mask'])) if 'mask' in entry else None
    where = {key: entry[key] for key in ('frame', 'stamp') if key in entry}
    return PromptEntry(where, action, object_id, label, points, box, mask)


def _mask(path: Path) -> np.ndarray:
    try:
        return binary_mask(read_labels(path))
    except BrokenSample:
        raise
    except ValueError as error:
        raise PromptError(f'{path.name}: {error}') from None


def _id(entry: dict, action: str) -> int:
    number = entry.get('id', 0)
    if not _is_integer(number) or not 0 <= number <= MAX_ID:
        raise PromptError(f'id {number!r}: must be an integer from 1 to {MAX_ID}, or omitted for a free one')
    if not number and action in (REFINE, REMOVE):
        raise PromptError(f'action {action} without id: give the id of the object')
    return int(number)


def _label(entry: dict) -> str:
    label = entry.get('label', '')
    if not isinstance(label, str):
        raise PromptError(f'label {label!r}: must be text; write it in quotes')
    return label


def _list(entry: dict, key: str) -> list:
    if not isinstance(entry[key], list):
        raise PromptError(f'{key} {entry[key]!r}: must be a list')
    return entry[key]


def _point(point: Any) -> tuple[float, float, int]:
    if not isinstance(point, list) or len(point) != 3 or not all(map(is_number, point)) or point[2] not in (0, 1):
        raise PromptError(f'point {point!r}: must be [x, y, 1] on the object, or [x, y, 0] not on it')
    return float(point[0]), float(point[1]), int(point[2])


def _box(box: Any) -> tuple[float, float, float, float]:
    if not isinstance(box, list) or len(box) != 4 or not all(map(is_number, box)):
        raise PromptError(f'box {box!r}: must be [x0, y0, x1, y1]')
    x0, y0, x1, y1 = map(float, box)
    return x0, y0, x1, y1


def _is_integer(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    """Return whether a value of a file is a finite number."""
    return isinstance(value, Real) and not isinstance(value, bool) and isfinite(value)
