"""Scores for people: what a model predicts of its own masks, as probabilities that can be believed."""
from __future__ import annotations

import math
from collections import deque
from typing import NamedTuple


def unit(value: float) -> float:
    """Return a value clamped to 0..1, and 0 for NaN. The IoU head of some checkpoints is not bounded."""
    return min(1.0, max(0.0, float(value)))


def probability(logit: float) -> float:
    """Return the sigmoid of a logit, without overflow, and 0 for NaN."""
    return unit(0.5 + 0.5 * math.tanh(logit / 2))


class Platt(NamedTuple):
    """Monotone correction of a probability: scale and offset of its logit (Platt, 1999)."""

    scale: float
    offset: float

    def __call__(self, value: float) -> float:
        """Return the corrected probability."""
        value = min(0.999, max(0.001, unit(value)))
        return probability(self.scale * math.log(value / (1 - value)) + self.offset)


# fitted by benchmarks/calibration.py --fit to the packaged weights; the published weights have not been measured
SCORE_CORRECTIONS = {'nano': Platt(0.69, -0.34)}

LOW_SCORE = 0.45  # a mean below it is low; docs/nano.md has how often a warning is right
LOW_FRAMES = 20  # frames of the mean


def score_correction(model: str, checkpoint: object) -> Platt | None:
    """Return the calibration from predicted to expected IoU, or None if the model is not calibrated.

    Args:
        model: Name of the model.
        checkpoint: File of the user's own weights, for which no calibration is known; None or '' for the model's own.
    """
    return None if checkpoint else SCORE_CORRECTIONS.get(model)


class LowScore(NamedTuple):
    """An object whose score has stayed low."""

    object_id: int
    mean: float  # score over the last LOW_FRAMES frames, 0..1
    frame: int  # number of the last of them


class ScoreWatch:
    """Watch on the scores of tracked objects. It reports each object whose score stays low once.

    A score stays low if its mean over ``LOW_FRAMES`` frames in a row with the object in sight is below ``LOW_SCORE``.
    Frames in which the object is hidden do not count, since an object may leave the view, and a prompt starts afresh.
    """

    def __init__(self) -> None:
        self._recent: dict[int, deque[float]] = {}
        self._reported: set[int] = set()

    def add(self, frame: int, object_id: int, score: float, visible: bool, prompted: bool = False) -> LowScore | None:
        """Add an object in a frame; return it if its score has stayed low and it has not been reported.

        Args:
            frame: Number of the frame.
            object_id: The object.
            score: Expected IoU of its mask, 0..1: the predicted one, calibrated if the model is (SCORE_CORRECTIONS).
            visible: The model sees the object in the frame.
            prompted: A prompt for the object was applied to the frame.
        """
        if prompted:
            self._recent.pop(object_id, None)
        if prompted or not visible or object_id in self._reported:
            return None
        recent = self._recent.setdefault(object_id, deque(maxlen=LOW_FRAMES))
        recent.append(unit(score))
        mean = sum(recent) / len(recent)
        if len(recent) < LOW_FRAMES or mean >= LOW_SCORE:
            return None
        self._reported.add(object_id)
        return LowScore(object_id, mean, frame)
