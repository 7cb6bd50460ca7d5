"""How often the warning of a score that stays low is right: `ScoreWatch` on nano's tracks of held-out synthetic clips.

    python benchmarks/low_scores.py --clips 60

Objects are prompted with their exact box in the first frame and tracked. An object fails if its true IoU, over any 20
visible frames in a row, is below 0.5 on average. Printed are the shares of the failing and of the other objects that
are warned of, and the share of the warnings at whose time the true IoU of the last 20 frames was below 0.5.
"""
from __future__ import annotations

import argparse
from typing import NamedTuple

import numpy as np
from rich.console import Console
from rich.progress import Progress

from benchmarks.lib.nano import OBJECTS, SEED, held_out_clip
from sam2_core import Prompt, StreamTracker, load_model
from sam2_core.masks import mask_box
from sam2_core.metrics import iou
from sam2_core.scores import LOW_FRAMES, SCORE_CORRECTIONS, ScoreWatch

FAILING = 0.5  # a lower mean of the true IoU is a failure


class Verdict(NamedTuple):
    """What became of one object."""

    fails: bool
    warned: bool
    right_then: bool  # the mask was bad when the warning came


def judge(model, number: int, seed: int) -> list[Verdict]:
    """Track the objects of a clip that are visible for at least LOW_FRAMES frames."""
    clip = held_out_clip(number, seed=seed)
    count = min(OBJECTS, clip.masks.shape[1])
    tracker, watch, correction = StreamTracker(model), ScoreWatch(), SCORE_CORRECTIONS['nano']
    prompts = [Prompt(k + 1, box=mask_box(clip.masks[0, k])) for k in range(count)]
    true: dict[int, list[float]] = {k + 1: [] for k in range(count)}  # where the object is visible
    seen: dict[int, list[float]] = {k + 1: [] for k in range(count)}  # where the model sees it
    warned: dict[int, bool] = {}
    for t, image in enumerate(clip.frames):
        for object_id, found in tracker.step(image, () if t else prompts).objects.items():
            truth, visible = clip.masks[t, object_id - 1], found.object_score > 0 and found.box is not None
            low = watch.add(t, object_id, correction(found.iou), visible, prompted=t == 0)
            overlap = iou(found.mask, truth)
            if t and truth.any():
                true[object_id].append(overlap)
            if t and visible:
                seen[object_id].append(overlap)
            if low is not None:
                warned[object_id] = float(np.mean(seen[object_id][-LOW_FRAMES:])) < FAILING
    return [Verdict(_worst(overlaps) < FAILING, object_id in warned, warned.get(object_id, False))
            for object_id, overlaps in true.items() if len(overlaps) >= LOW_FRAMES]


def _worst(overlaps: list[float]) -> float:
    return min(float(np.mean(overlaps[at:at + LOW_FRAMES])) for at in range(len(overlaps) - LOW_FRAMES + 1))


def main() -> None:
    """Measure and print the shares."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--clips', type=int, default=60)
    parser.add_argument('--seed', type=int, default=SEED)
    options = parser.parse_args()
    model, verdicts = load_model('nano', device='cpu'), []
    with Progress(console=Console(stderr=True)) as progress:
        for number in progress.track(range(options.clips), description='clips'):
            verdicts += judge(model, number, options.seed)
    failing, others = ([each for each in verdicts if each.fails is fails] for fails in (True, False))
    warned = [each for each in verdicts if each.warned]
    for what, every, hits in (('failing objects warned of', failing, sum(each.warned for each in failing)),
                              ('other objects warned of', others, sum(each.warned for each in others)),
                              ('warnings that were right at their time', warned,
                               sum(each.right_then for each in warned))):
        print(f'{what}: {hits} of {len(every)}, {hits / max(1, len(every)):.0%}')


if __name__ == '__main__':
    main()
