"""Prompts from a YAML or JSON file, or made from the ground truth. docs/reference/evaluation.md describes the keys."""
from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from sensor_msgs.msg import CompressedImage, Image, RegionOfInterest
from std_msgs.msg import Header

from sam2_core import PromptError
from sam2_core.datasets import BrokenSample
from sam2_core.offline.prompt_file import CLEAR, REFINE, REMOVE, SET, PromptEntry, is_number, parse_entry, read_list
from sam2_ros.messages.conversions import ImageError, from_pixels, to_rgb
from sam2_ros.msg import ImagePoint, Prompt
from sam2_ros.perception.prompt_plan import NEEDS_IMAGE, to_prompt
from sam2_ros.recordings.recording import RecordedPrompt, Recording, RecordingError, truth_masks

MESSAGE_ACTIONS = {SET: Prompt.SET, REFINE: Prompt.REFINE, REMOVE: Prompt.REMOVE, CLEAR: Prompt.CLEAR}
NEAR = 1_000_000  # tolerance of a stamp in a file, nanoseconds: people write seconds with few digits


def read_prompts(path: Path | str, recording: Recording) -> list[RecordedPrompt]:
    """Return the prompts of a file in the order of their images, each arriving with its image.

    ``sam2_core.offline.prompt_file`` describes the file.

    Args:
        path: YAML or JSON file.
        recording: Recording that has the images of the prompts.

    Raises:
        RecordingError: The file or an entry cannot be used; the text names the entry and the cure.
    """
    path = Path(path)
    try:
        entries = read_list(path)
    except ValueError as error:
        raise RecordingError(str(error)) from None
    found = []
    for number, content in enumerate(entries, 1):
        try:
            entry = parse_entry(content, path.parent)
            index = _index(entry, recording)
            found.append((index, _message(entry, recording.image(index))))
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

def _index(entry: PromptEntry, recording: Recording) -> int:
    count = len(recording.stamps)
    if 'frame' in entry.where:
        return entry.frame(count, 'the recording')
    stamp = entry.where['stamp']
    if not is_number(stamp):
        raise PromptError(f'stamp {stamp!r}: must be a number of seconds')
    stamps = np.asarray(recording.stamps, np.int64)
    nearest = int(np.argmin(np.abs(stamps - round(stamp * 1e9))))
    if abs(int(stamps[nearest]) - round(stamp * 1e9)) > NEAR:
        raise PromptError(f'stamp {stamp}: no image has it; the nearest has {stamps[nearest] / 1e9:.6f}, '
                          f'frame {nearest}')
    return nearest


def _message(entry: PromptEntry, image: Image | CompressedImage) -> Prompt:
    message = Prompt(header=image.header, action=MESSAGE_ACTIONS[entry.action], id=entry.object_id, label=entry.label)
    if message.action not in NEEDS_IMAGE:
        return message
    message.points = [ImagePoint(x=x, y=y, label=label) for x, y, label in entry.points]
    if entry.box is not None:
        message.box = _whole_pixels(entry.box)
    if entry.mask is not None:
        message.mask = from_pixels(entry.mask.astype(np.uint8) * 255, 'mono8', image.header)
    prompt = to_prompt(message, message.id or 1).check(*to_rgb(image).shape[:2])
    if message.action == Prompt.SET:
        prompt.check_starts()
    return message


def _whole_pixels(box: tuple[float, float, float, float]) -> RegionOfInterest:
    """Return a box rounded to whole pixels, as the message requires."""
    x0, y0, x1, y1 = (max(0, round(side)) for side in box)
    if x1 <= x0 or y1 <= y0:
        raise PromptError(f'box ({", ".join(f"{side:g}" for side in box)}): x1 must exceed x0 and y1 must exceed y0, '
                          f'in whole pixels of the image')
    return RegionOfInterest(x_offset=x0, y_offset=y0, width=x1 - x0, height=y1 - y0)
