"""Prompts from a YAML file, or made from the ground truth.

    - {frame: 0, id: 1, label: cup, box: [310, 200, 420, 330]}
    - {frame: 0, id: 2, mask: masks/plate.png}
    - {stamp: 1700000003.2, id: 1, action: refine, points: [[350, 260, 1], [400, 210, 0]]}
    - {frame: 90, id: 2, action: remove}

docs/reference/evaluation.md describes the keys.
"""
from __future__ import annotations

from collections.abc import Callable
from math import isfinite
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from sensor_msgs.msg import CompressedImage, Image, RegionOfInterest
from std_msgs.msg import Header

from sam2_core import PromptError
from sam2_core.datasets import BrokenSample
from sam2_core.datasets.image_files import read_labels
from sam2_core.masks import binary_mask
from sam2_ros.messages.conversions import ImageError, from_pixels, to_rgb
from sam2_ros.msg import ImagePoint, Prompt
from sam2_ros.perception.prompt_plan import MAX_ID, NEEDS_IMAGE, to_prompt
from sam2_ros.recordings.recording import RecordedPrompt, Recording, RecordingError, truth_masks

ACTIONS = {'set': Prompt.SET, 'refine': Prompt.REFINE, 'remove': Prompt.REMOVE, 'clear': Prompt.CLEAR}
CONTENT = ('points', 'box', 'mask')
KEYS = ('frame', 'stamp', 'action', 'id', 'label', *CONTENT)
NEAR = 1_000_000  # tolerance of a stamp in a file, nanoseconds: people write seconds with few digits


def read_prompts(path: Path | str, recording: Recording) -> list[RecordedPrompt]:
    """Return the prompts of a file in the order of their images, each arriving with its image.

    An entry has ``frame``, the index of an image, or ``stamp``, its stamp in seconds; ``id`` and ``label`` of the
    object; ``points`` [[x, y, label], ...] with label 1 on the object and 0 not on it, ``box`` [x0, y0, x1, y1], or
    ``mask``, a PNG of 0 and 1, or 0 and 255, with a path relative to the file; and ``action``: set (the default),
    refine, remove or clear.

    Args:
        path: YAML file.
        recording: Recording that has the images of the prompts.

    Raises:
        RecordingError: The file or an entry cannot be used; the text names the entry and the cure.
    """
    path = Path(path)
    try:
        entries = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise RecordingError(f'prompts {path}: {getattr(error, "strerror", None) or error}') from None
    if not isinstance(entries, list) or not entries:
        raise RecordingError(f'prompts {path}: must be a list of prompts, as [{{frame: 0, id: 1, box: [x0, y0, x1, '
                             f'y1]}}, ...]')
    found = []
    for number, entry in enumerate(entries, 1):
        try:
            index = _index(entry, recording)
            found.append((index, _message(entry, path.parent, recording.image(index))))
        except (PromptError, BrokenSample, ImageError, RecordingError) as error:
            raise RecordingError(f'prompts {path}, entry {number}: {error}') from None
    found.sort(key=lambda prompt: prompt[0])
    return [RecordedPrompt(recording.arrivals[index], message) for index, message in found]


def first_truth_prompts(recording: Recording,
                        progress: Callable[[int, int], None] | None = None) -> list[RecordedPrompt]:
    """Return the first true mask of each object as a prompt: the semi-supervised protocol of DAVIS.

    If a first mask or its image cannot be used, the next mask of the object counts.

    Args:
        recording: Recording with truth.
        progress: Function that is called with the number of images searched and the total.

    Raises:
        RecordingError: The recording has no truth that can be used.
    """
    prompts: list[RecordedPrompt] = []
    known: set[int] = set()
    failure = ''
    for index, arrival in enumerate(recording.arrivals):
        try:
            masks = {object_id: mask for object_id, mask in sorted((truth_masks(recording, index) or {}).items())
                     if object_id not in known and mask.any()}
            if masks:
                image = recording.image(index)
                size = to_rgb(image).shape[:2]
                masks = {object_id: mask for object_id, mask in masks.items() if mask.shape == size}
        except (RecordingError, ImageError) as error:
            failure = failure or f'; {error}'
            masks = {}
        known |= masks.keys()
        prompts += [RecordedPrompt(arrival, mask_prompt(mask, object_id, recording.labels.get(object_id, ''),
                                                        image.header)) for object_id, mask in masks.items()]
        if progress is not None:
            progress(index + 1, len(recording.arrivals))
    if not prompts:
        raise RecordingError(f'{recording.name}: no ground truth, or no object in it; name the topic or folder that '
                             f'has it, or give prompts in a file{failure}')
    return prompts


def mask_prompt(mask: np.ndarray, object_id: int, label: str, header: Header) -> Prompt:
    """Return a prompt with a mask, bool (H, W), for the image with this header."""
    return Prompt(header=header, id=object_id, label=label,
                  mask=from_pixels(mask.astype(np.uint8) * 255, 'mono8', header))


# --- entries

def _index(entry: Any, recording: Recording) -> int:
    if not isinstance(entry, dict):
        raise PromptError(f'{entry!r}: must have the form {{frame: 0, id: 1, box: [x0, y0, x1, y1]}}')
    for key in entry:
        if key not in KEYS:
            raise PromptError(f'{key!r} is not known: must be one of {", ".join(KEYS)}')
    if ('frame' in entry) == ('stamp' in entry):
        raise PromptError('must have either frame or stamp, of the image it was drawn on')
    count = len(recording.stamps)
    if 'frame' in entry:
        frame = entry['frame']
        if not _is_integer(frame) or not 0 <= frame < count:
            raise PromptError(f'frame {frame!r}: must be 0 to {count - 1}, the recording has {count} images')
        return frame
    stamp = entry['stamp']
    if not _is_number(stamp):
        raise PromptError(f'stamp {stamp!r}: must be a number of seconds')
    stamps = np.asarray(recording.stamps, np.int64)
    nearest = int(np.argmin(np.abs(stamps - round(stamp * 1e9))))
    if abs(int(stamps[nearest]) - round(stamp * 1e9)) > NEAR:
        raise PromptError(f'stamp {stamp}: no image has it; the nearest has {stamps[nearest] / 1e9:.6f}, '
                          f'frame {nearest}')
    return nearest


def _message(entry: dict, folder: Path, image: Image | CompressedImage) -> Prompt:
    name = entry.get('action', 'set')
    if name not in ACTIONS:
        raise PromptError(f'action {name!r}: must be one of {", ".join(ACTIONS)}')
    message = Prompt(header=image.header, action=ACTIONS[name], id=_id(entry, name), label=_label(entry))
    content = [key for key in CONTENT if key in entry]
    if message.action not in NEEDS_IMAGE:
        if content:
            raise PromptError(f'action {name} with {content[0]}: leave {content[0]} out')
        return message
    if 'points' in entry:
        message.points = [_point(point) for point in _list(entry, 'points')]
    if 'box' in entry:
        message.box = _box(entry['box'])
    if 'mask' in entry:
        message.mask = from_pixels(_mask(folder / str(entry['mask'])).astype(np.uint8) * 255, 'mono8', image.header)
    prompt = to_prompt(message, message.id or 1).check(*to_rgb(image).shape[:2])
    if message.action == Prompt.SET:
        prompt.check_starts()
    return message


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
    if not number and action in ('refine', 'remove'):
        raise PromptError(f'action {action} without id: give the id of the object')
    return number


def _label(entry: dict) -> str:
    label = entry.get('label', '')
    if not isinstance(label, str):
        raise PromptError(f'label {label!r}: must be text; write it in quotes')
    return label


def _list(entry: dict, key: str) -> list:
    if not isinstance(entry[key], list):
        raise PromptError(f'{key} {entry[key]!r}: must be a list')
    return entry[key]


def _point(point: Any) -> ImagePoint:
    if not isinstance(point, list) or len(point) != 3 or not all(map(_is_number, point)) or point[2] not in (0, 1):
        raise PromptError(f'point {point!r}: must be [x, y, 1] on the object, or [x, y, 0] not on it')
    return ImagePoint(x=float(point[0]), y=float(point[1]), label=int(point[2]))


def _box(box: Any) -> RegionOfInterest:
    """Return a box rounded to whole pixels, as the message requires."""
    if not isinstance(box, list) or len(box) != 4 or not all(map(_is_number, box)):
        raise PromptError(f'box {box!r}: must be [x0, y0, x1, y1]')
    x0, y0, x1, y1 = (max(0, round(side)) for side in box)
    if x1 <= x0 or y1 <= y0:
        raise PromptError(f'box {box}: x1 must exceed x0 and y1 must exceed y0, in whole pixels of the image')
    return RegionOfInterest(x_offset=x0, y_offset=y0, width=x1 - x0, height=y1 - y0)


def _is_integer(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and isfinite(value)
