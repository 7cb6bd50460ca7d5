"""Conditions under which the distractor-aware memory policy makes a frame an anchor, counted on clips of twins."""
from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from rich.table import Table

from benchmarks.lib.nano import on_another
from benchmarks.lib.twins import FOUND
from sam2_core import Prompt, Sam2Model, StreamTracker
from sam2_core.masks import mask_box
from sam2_core.memory_policy import DistractorAware, Kind, Past, Seen, Write
from sam2_core.metrics import iou
from sam2_core.training.clips import Clip


class Conditions(NamedTuple):
    """Conditions of an anchor in one frame, and what the mask lies on."""

    predicted_iou: bool
    area: bool
    distance: bool
    distractor: bool
    anchor: bool  # all hold
    j: float  # true IoU of the mask
    on_twin: bool


class Watched(DistractorAware):
    """Distractor-aware policy that notes which conditions of an anchor hold in each frame with a mask."""

    name = 'distractor_aware, watched'

    def __init__(self) -> None:
        self.seen: dict[int, tuple[bool, ...]] = {}  # by frame: the fields of Conditions up to ``anchor``

    def write(self, past: Past, seen: Seen) -> Write:
        """Decide as the policy does."""
        decided = super().write(past, seen)
        if decided.kind is not None:
            self.seen[past.now] = *(bool(holds) for _, holds in self.conditions(past, seen)), (
                decided.kind is Kind.ANCHOR)
        return decided


def conditions(model: Sam2Model, clip: Clip) -> list[Conditions]:
    """Track object 0 of a clip; return the conditions of an anchor in each frame with a mask."""
    policy, found = Watched(), []
    tracker = StreamTracker(model, memory_policy=policy)
    for t, image in enumerate(clip.frames):
        mask = tracker.step(image, [] if t else [Prompt(1, box=mask_box(clip.masks[0, 0]))]).objects[1].mask
        if t in policy.seen:
            j = iou(mask, clip.masks[t, 0])
            found.append(Conditions(*policy.seen[t], j, on_another(mask, j, clip.masks[t, 1:])))
    return found


def conditions_table(by_clip: Sequence[Sequence[Conditions]]) -> Table:
    """Return how often each condition of an anchor holds, and what the masks of anchors lie on."""
    every = [one for found in by_clip for one in found]
    anchors = [one for one in every if one.anchor]
    with_one = sum(any(one.anchor for one in found) for found in by_clip)
    table = Table('condition of an anchor', 'holds', 'the only one that does not', caption=(
        f'{len(every)} frames with a mask, {len(anchors)} anchors in {with_one} of {len(by_clip)} clips; on the target '
        f'(IoU above {FOUND}) {sum(one.j > FOUND for one in anchors)}, on a twin '
        f'{sum(one.on_twin for one in anchors)}'))
    names = Conditions._fields[:4]
    for name in names:
        holds = np.mean([getattr(one, name) for one in every])
        alone = np.mean([not getattr(one, name) and all(getattr(one, other) for other in names if other != name)
                         for one in every])
        table.add_row(name, f'{holds:.1%}', f'{alone:.1%}')
    table.add_row('all of them', f'{len(anchors) / len(every):.1%}', '')
    return table
