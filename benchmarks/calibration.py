"""Whether the numbers that the node tells can be believed: visibility and score against the truth.

    python benchmarks/calibration.py --clips 24 --json calibration.json --picture calibration.png

Objects are prompted with their exact box in the first frame of the held-out synthetic clips of nano_quality.py and
tracked. `visibility` ought to be the frequency of being visible: of the object-frames in which 0.8 is told, 80 % ought
to show the object. Where an object is told as tracked, `score` ought to be the mean of the true IoU. The expected
calibration error (ECE) is the mean distance from that, over ten bins, weighted by their content.

`--fit` tracks as many clips of another seed as well, and prints the corrections (scale and offset of the logit) that
follow from those alone, and what they would change. The one for the score is kept in
sam2_core/scores.py.
"""
from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from benchmarks.lib.nano import OBJECTS, SEED, held_out_clip
from sam2_core import Prompt, StreamTracker, load_model
from sam2_core.masks import mask_box
from sam2_core.metrics import iou
from sam2_core.scores import Platt, probability, score_correction, unit

FIT_SEED = 9100  # neither trained on nor reported
BINS = 10


class Samples(NamedTuple):
    """One row for each object in each frame."""

    prompted: np.ndarray  # bool (N,): the first frame of a clip
    object_score: np.ndarray  # float (N,), logit
    visible: np.ndarray  # bool (N,), in truth
    iou: np.ndarray  # float (N,), predicted
    true_iou: np.ndarray  # float (N,); 0 where nothing of the object is visible
    tracked: np.ndarray  # bool (N,): told as in sight, so that a score is told


def measure(model, seed: int, clips: int, console: Console) -> Samples:
    """Track ``clips`` clips of a seed."""
    rows: list[tuple] = []
    with Progress(console=console) as progress:
        for number in progress.track(range(clips), description=f'clips of seed {seed}'):
            clip = held_out_clip(number, seed=seed)
            count = min(OBJECTS, clip.masks.shape[1])
            tracker = StreamTracker(model)
            prompts = [Prompt(k + 1, box=mask_box(clip.masks[0, k])) for k in range(count)]
            for t, image in enumerate(clip.frames):
                for object_id, found in tracker.step(image, () if t else prompts).objects.items():
                    truth = clip.masks[t, object_id - 1]
                    rows.append((t == 0, found.object_score, truth.any(), found.iou, iou(found.mask, truth),
                                 found.object_score > 0 and found.box is not None))
    return Samples(*(np.array(column) for column in zip(*rows, strict=True)))


class Reliability(NamedTuple):
    """How often came true what was told, by what was told."""

    count: np.ndarray  # int (BINS,)
    told: np.ndarray  # float (BINS,), mean; NaN where there is nothing
    true: np.ndarray  # float (BINS,), mean

    @property
    def error(self) -> float:
        """Expected calibration error."""
        filled = self.count > 0
        return float(np.average(np.abs(self.told - self.true)[filled], weights=self.count[filled]))


def reliability(told: np.ndarray, true: np.ndarray) -> Reliability:
    """Ten bins of equal width between 0 and 1."""
    bins = np.minimum((told * BINS).astype(int), BINS - 1)
    count = np.bincount(bins, minlength=BINS)
    with np.errstate(invalid='ignore'):
        return Reliability(count, np.bincount(bins, told, BINS) / count, np.bincount(bins, true, BINS) / count)


def fit(told: np.ndarray, true: np.ndarray) -> Platt:
    """Return the scale and offset of the logit with the least cross-entropy to ``true``, 0..1, by Newton's method."""
    value = np.clip(told, 0.001, 0.999)
    features = np.stack((np.log(value / (1 - value)), np.ones(len(value))), axis=1)
    weights = np.array([1.0, 0.0])
    for _ in range(30):
        p = 0.5 + 0.5 * np.tanh(features @ weights / 2)
        weights -= np.linalg.solve((features * (p * (1 - p))[:, None]).T @ features, features.T @ (p - true))
    return Platt(*weights.tolist())


def judge(samples: Samples, correction: Platt | None) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return the reported and the true values of each reported number."""
    later, first = ~samples.prompted & samples.tracked, samples.prompted & samples.tracked
    predicted = np.array([unit(value) for value in samples.iou])
    visibility = np.array([probability(value) for value in samples.object_score])
    numbers = {
        'visibility, tracked': (visibility[~samples.prompted], samples.visible[~samples.prompted].astype(float)),
        'score, prompted': (predicted[first], samples.true_iou[first]),
        'score, tracked, as predicted': (predicted[later], samples.true_iou[later])}
    if correction is not None:
        told = np.array([correction(value) for value in predicted[later]])
        numbers['score, tracked, corrected'] = told, samples.true_iou[later]
    return numbers


def draw(curves: dict[str, Reliability], picture: Path) -> None:
    """Draw the reliability diagram: reported against true values; grey bars show how often a value is reported."""
    side, margin = 260, 36
    panels = []
    for name, curve in curves.items():
        panel = np.full((side + 2 * margin, side + 2 * margin, 3), 255, np.uint8)

        def pixel(x: float, y: float) -> tuple[int, int]:
            return round(margin + x * side), round(margin + (1 - y) * side)

        for index, share in enumerate(curve.count / curve.count.sum()):
            cv2.rectangle(panel, pixel(index / BINS, share), pixel((index + 1) / BINS, 0), (225, 225, 225), cv2.FILLED)
        cv2.rectangle(panel, pixel(0, 1), pixel(1, 0), (120, 120, 120), 1)
        cv2.line(panel, pixel(0, 0), pixel(1, 1), (160, 160, 160), 1, cv2.LINE_AA)
        points = [pixel(x, y) for x, y in zip(curve.told, curve.true, strict=True) if np.isfinite(x)]
        cv2.polylines(panel, [np.array(points)], False, (31, 119, 180), 2, cv2.LINE_AA)
        for point in points:
            cv2.circle(panel, point, 4, (31, 119, 180), cv2.FILLED, cv2.LINE_AA)
        for text, where in ((name, (margin, 16)), (f'ECE {curve.error:.3f}', (margin, 31)), ('0', (24, margin + side)),
                            ('1', (24, margin + 10)), ('told', (margin + side // 2 - 12, 2 * margin + side - 20)),
                            ('true', (2, margin + side // 2)), ('1', (margin + side - 4, margin + side + 14))):
            cv2.putText(panel, text, where, cv2.FONT_HERSHEY_SIMPLEX, 0.42, (40, 40, 40), 1, cv2.LINE_AA)
        panels.append(panel)
    picture.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(picture), np.concatenate(panels, axis=1)[..., ::-1])


def table(numbers: dict[str, tuple[np.ndarray, np.ndarray]], curves: dict[str, Reliability]) -> Table:
    """Print reported against true values, and the error."""
    result = Table('', 'count', 'mean told', 'mean true', 'ECE', 'squared error')
    for name, (told, true) in numbers.items():
        result.add_row(name, str(len(told)), f'{told.mean():.3f}', f'{true.mean():.3f}', f'{curves[name].error:.3f}',
                       f'{((told - true) ** 2).mean():.3f}')
    return result


def main() -> int:
    """Measure, print, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--model', default='nano')
    parser.add_argument('--checkpoint', default='', help='weights of the model from this file')
    parser.add_argument('--device', default='cpu')
    parser.add_argument('--clips', type=int, default=12)
    parser.add_argument('--fit', action='store_true', help='also fit a correction, on other clips')
    parser.add_argument('--json', type=Path, help='write the figures here')
    parser.add_argument('--picture', type=Path, help='draw the reliability diagram here (.png)')
    options = parser.parse_args()
    cv2.setNumThreads(1)
    console = Console()
    model = load_model(options.model, checkpoint=options.checkpoint or None, device=options.device)
    correction = score_correction(options.model, options.checkpoint)
    figures: dict = {'model': options.model, 'checkpoint': options.checkpoint, 'clips': options.clips}
    fitted: dict[str, Platt] = {}
    if options.fit:
        numbers = judge(measure(model, FIT_SEED, options.clips, console), None)
        fitted = {name: fit(*numbers[name]) for name in ('visibility, tracked', 'score, tracked, as predicted')}
    numbers = judge(measure(model, SEED, options.clips, console), correction)
    drawn = tuple(numbers)
    for name, platt in fitted.items():
        console.print(f'{name}: scale {platt.scale:.3f}, offset {platt.offset:.3f}, from seed {FIT_SEED} alone')
        told, true = numbers[name]
        numbers[f'{name}: fitted'] = np.array([platt(value) for value in told]), true
        figures[f'fit: {name}'] = platt._asdict()
    curves = {name: reliability(*pair) for name, pair in numbers.items()}
    console.print(table(numbers, curves))
    for name, curve in curves.items():
        figures[name] = {
            'ECE': curve.error, 'mean squared error': float(((numbers[name][0] - numbers[name][1]) ** 2).mean()),
            'bins': [{'count': int(count), 'told': told, 'true': true}
                     for count, told, true in zip(curve.count, curve.told, curve.true, strict=True) if count]}
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1))
    if options.picture:
        draw({name: curves[name] for name in drawn}, options.picture)
    return 0


if __name__ == '__main__':
    sys.exit(main())
