"""Where a run is at its worst: the moments to look at."""
from __future__ import annotations

from dataclasses import dataclass

from sam2_ros.evaluation.results import Run

COUNT = 8
APART = 20  # moments of one object lie at least a so-many-th of the recording apart


@dataclass(frozen=True)
class Moment:
    """An object in an image."""

    object_id: int
    index: int  # of the image
    value: float  # J&F, or the score where there is no truth
    judged: bool  # by truth


def moments(run: Run, scores: dict, count: int = COUNT) -> list[Moment]:
    """The worst first, at most ``count``: lowest J&F of prompted objects; without truth, the lowest predicted IoU.

    What is right or sure (1) is no bad moment. Only processed images.
    """
    processed = {frame.index for frame in run.frames}
    found = [Moment(int(number), index, (j + f) / 2, True)
             for number, item in scores.get('objects', {}).items() if item.get('prompted', True)
             for index, j, f in zip(*(item['frames'][name] for name in ('index', 'J', 'F')), strict=True)
             if index in processed]
    if not scores.get('mean'):
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
