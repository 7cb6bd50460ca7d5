"""Outputs of a run paired with the truth that they are compared with, object by object."""
from __future__ import annotations

import bisect
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from sam2_core.metrics import boundary_f, iou
from sam2_ros.evaluation.results import FrameOutput, Mode, ObjectOutput, Run
from sam2_ros.recordings.recording import Recording, RecordingError, truth_masks

# Views: which output is compared with which truth.
AT_STAMP = 'at stamp'  # each output with the truth of its own image
WHEN_AVAILABLE = 'when available'  # each output with the truth of the newest image at the time it was available
AS_SEEN = 'as seen'  # the truth of each image with the newest output that was available when the image arrived
ON_ANOTHER = 0.5  # IoU with another object's truth above which a mask belongs to that object


@dataclass(frozen=True)
class Sample:
    """One object in one annotated image."""

    index: int  # of the image
    j: float
    f: float
    in_truth: bool  # the truth has a pixel of the object
    in_output: bool  # the mask has a pixel
    called_visible: bool  # the node reported the object as visible
    on_another: bool  # the mask belongs to another object


@dataclass(eq=False)
class Judged:
    """Samples of a run."""

    samples: dict[str, dict[int, list[Sample]]]  # by view, then by object of the truth; in the order of the images
    asked: dict[int, list[range]]  # by object: the images in which it was to be tracked
    annotated: int = 0  # images with truth
    problems: list[str] = field(default_factory=list)  # truth that could not be used


def judge(run: Run, recording: Recording, progress: Callable[[int], None] = lambda index: None) -> Judged:
    """Compare the masks of a run with the truth of its recording.

    An object is compared from the first image that shows it in the truth, in the images in which it was to be tracked;
    in all of them if it was never prompted. An output of an image of another size is scaled to the truth.

    Args:
        run: Run to judge.
        recording: Recording of the run.
        progress: Function that is called with the index of each image.
    """
    views = (AT_STAMP,) if run.mode == Mode.LOCK_STEP else (AT_STAMP, WHEN_AVAILABLE, AS_SEEN)
    judged = Judged({view: defaultdict(list) for view in views}, asked_for(run, recording))
    pairs = _pairs(run, recording, views)
    known: set[int] = set()
    for index in range(run.images):
        truth, size = _truth(run, recording, index, pairs.get(index, ()), judged)
        progress(index)
        if truth is None:
            continue
        known |= truth.keys()
        wanted = [number for number in known if number not in judged.asked
                  or any(index in images for images in judged.asked[number])]
        compared: dict[int | None, dict[int, Sample]] = {}
        for view, frame in pairs.get(index, ()):
            key = None if frame is None else frame.index
            if key not in compared:
                objects = {} if frame is None else {number: item.resized(run.size_of(frame), size)
                                                    for number, item in frame.objects.items() if number in wanted}
                compared[key] = {number: _compare(objects.get(number), number, truth, size, index)
                                 for number in wanted}
            for number in wanted:
                judged.samples[view][number].append(compared[key][number])
    return judged


def asked_for(run: Run, recording: Recording) -> dict[int, list[range]]:
    """Return, by object, the images in which it was to be tracked according to the accepted prompts.

    In lock-step they begin with the image that the prompt was drawn on, otherwise with the first one that arrived after
    the prompt.
    """
    since: dict[int, int] = {}
    asked: dict[int, list[range]] = defaultdict(list)
    for answer in run.answers:
        if not answer.accepted:
            continue
        if run.mode == Mode.LOCK_STEP and answer.applied is not None:
            index = bisect.bisect_left(recording.stamps, answer.applied)
        else:
            index = next((index for index, arrival in enumerate(recording.arrivals) if arrival >= answer.arrival),
                         run.images)
        if answer.action == 'SET':
            since.setdefault(answer.id, index)
        elif answer.action in ('REMOVE', 'CLEAR'):
            for number in [answer.id] if answer.action == 'REMOVE' else list(since):
                if number in since:
                    asked[number].append(range(since.pop(number), index))
    for number, index in since.items():
        asked[number].append(range(index, run.images))
    return dict(asked)


def _pairs(run: Run, recording: Recording, views: tuple[str, ...]) -> dict[int, list[tuple[str, FrameOutput | None]]]:
    """Return, by image, the outputs that its truth is compared with, each with its view."""
    pairs: dict[int, list[tuple[str, FrameOutput | None]]] = defaultdict(list)
    for frame in run.frames:
        pairs[frame.index].append((AT_STAMP, frame))
    if WHEN_AVAILABLE in views:
        arrivals = np.maximum.accumulate(np.asarray(recording.arrivals, np.int64))
        for frame in run.frames:
            newest = int(np.searchsorted(arrivals, frame.available, 'right')) - 1
            pairs[newest].append((WHEN_AVAILABLE, frame))
        available = [frame.available for frame in run.frames]
        for index, arrival in enumerate(recording.arrivals):
            done = bisect.bisect_right(available, arrival)
            pairs[index].append((AS_SEEN, run.frames[done - 1] if done else None))
    return pairs


def _truth(run: Run, recording: Recording, index: int, pairs: Sequence[tuple[str, FrameOutput | None]],
           judged: Judged) -> tuple[dict[int, np.ndarray] | None, tuple[int, int]]:
    """Return the true masks of the visible objects of an image, bool (H, W), and their size.

    The masks are None if the image has no truth, or none that can be used.
    """
    own = next((run.size_of(frame) for _, frame in pairs if frame is not None and frame.index == index), None)
    try:
        masks = truth_masks(recording, index)
    except RecordingError as error:
        judged.problems.append(str(error))
        return None, (0, 0)
    if masks is None:
        return None, (0, 0)
    judged.annotated += 1
    size = own or next((mask.shape for mask in masks.values()), (run.height, run.width))
    for mask in masks.values():
        if mask.shape != size:
            judged.problems.append(f'truth of image {index} has {mask.shape[1]} x {mask.shape[0]} pixels: must be '
                                   f'{size[1]} x {size[0]}, as the image')
            return None, size
    return {number: mask for number, mask in masks.items() if mask.any()}, size


def _compare(item: ObjectOutput | None, number: int, truth: dict[int, np.ndarray], size: tuple[int, int],
             index: int) -> Sample:
    true = truth.get(number)
    if item is None or item.box is None:
        agrees = float(true is None)
        f = agrees if true is None else boundary_f(np.zeros_like(true), true)
        return Sample(index, agrees, f, true is not None, False, item is not None and item.visible, False)
    mask = item.mask(*size)
    whole = np.zeros(size, bool) if true is None else true
    j = iou(mask, whole)
    return Sample(index, j, boundary_f(mask, whole), true is not None, True, item.visible,
                  _on_another(item.box, item.crop(), number, truth, j))


def _on_another(box: tuple[int, int, int, int], crop: np.ndarray, number: int, truth: dict[int, np.ndarray],
                own: float) -> bool:
    """Return whether the mask of object ``number``, cropped to its box, belongs to another object.

    ``own`` is its IoU with the truth of its own object.
    """
    x0, y0, x1, y1 = box
    area = np.count_nonzero(crop)
    for other, mask in truth.items():
        shared = np.count_nonzero(mask[y0:y1, x0:x1] & crop)
        if other != number and shared > max(own, ON_ANOTHER) * (area + np.count_nonzero(mask) - shared):
            return True
    return False
