"""Images in which a run is worst, to look at."""
from __future__ import annotations

from dataclasses import dataclass

from sam2_ros.evaluation.metrics import Metrics
from sam2_ros.evaluation.results import Run

COUNT = 8
APART = 20  # moments of one object are at least 1 / APART of the recording apart


@dataclass(frozen=True)
class Moment:
    """An object in an image."""

    object_id: int
    index: int  # of the image
    value: float  # J&F, or the predicted IoU if there is no truth
    judged: bool  # whether there is truth


def moments(run: Run, metrics: Metrics, count: int = COUNT) -> list[Moment]:
    """Return up to ``count`` moments, the worst first.

    These are the processed images with the lowest J&F of a prompted object or, without truth, with the lowest predicted
    IoU. A value of 1 is never a bad moment.
    """
    processed = {frame.index for frame in run.frames}
    found = [Moment(number, index, (j + f) / 2, True)
             for number, item in metrics.objects.items() if item.prompted
             for index, j, f in zip(item.frames.index, item.frames.j, item.frames.f, strict=True)
             if index in processed]
    if metrics.mean is None:
        found = [Moment(number, frame.index, item.score, False) for frame in run.frames
                 for number, item in frame.objects.items() if item.box is not None]
    chosen: list[Moment] = []
    for moment in sorted(found, key=lambda item: (item.value, item.index, item.object_id)):
        near = max(1, run.images // APART)
        if moment.value < 1 and not any(other.index == moment.index or other.object_id == moment.object_id
                                        and abs(other.index - moment.index) < near for other in chosen):
            chosen.append(moment)
            if len(chosen) == count:
                break
    return chosen
