"""Memory policies: which frames of an object are remembered, for how long, and with which time codes.

A policy is one small class without state. What it has to know of an object comes with each call, so that a memory can
be copied, saved and restored whatever its policy. The constants are those of the publications that each class names.
"""
from __future__ import annotations

from collections.abc import Iterator, Sequence
from enum import Enum
from statistics import median
from typing import NamedTuple, Protocol, runtime_checkable

import cv2
import numpy as np

from sam2_core.masks import mask_box
from sam2_core.scores import probability

NOTES = 10  # newest notes to keep of an object; the longest look back of a policy


class Kind(Enum):
    """Kind of a remembered frame, and of its pointer."""

    PROMPT = 'prompt'
    ANCHOR = 'anchor'  # tracked frame that is kept as if it were prompted
    RECENT = 'recent'
    PASSING = 'passing'  # remembered for the next frame only


class Row(NamedTuple):
    """Row of a memory that holds one past frame, or its pointer."""

    slot: int
    frame: int  # number of the frame, counted by the object
    kind: Kind
    foreseen: bool = False  # in a copy of the past: prompted after the moment of the copy


class MemorySizes(NamedTuple):
    """Sizes of a memory, as the model and the tracker set them."""

    prompts: int  # max_conditioning_frames of the tracker
    frames: int  # memory_frames of the configuration: time codes, the last of which is that of conditioning frames
    pointers: int  # object_pointers of the configuration

    def conditioning(self, most: int) -> int:
        """Return the number of conditioning frames among ``frames`` places: ``most``, but one place is for the last."""
        return min(most, max(1, self.frames - 1))


class Past(NamedTuple):
    """Memory of one object before frame number ``now``. Rows and notes go from old to new."""

    now: int
    frames: Sequence[Row]
    pointers: Sequence[Row]
    notes: Sequence[tuple[int, int]]  # number of a frame, and what ``Write.note`` said of it
    sizes: MemorySizes


class Seen(Protocol):
    """Tracked object in a new frame. Its properties are copied from the model's device when a policy reads them."""

    @property
    def iou(self) -> float:
        """Predicted IoU of the chosen mask, 0..1."""

    @property
    def object_score(self) -> float:
        """Logit; > 0: the object is visible."""

    @property
    def area(self) -> int:
        """Pixels of the chosen mask at the model's resolution, S / 4."""

    def masks(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the chosen mask, bool (S / 4, S / 4), and all that the model had to choose from, bool (M, ...)."""


class Write(NamedTuple):
    """Decision about a new frame."""

    kind: Kind | None  # None: neither the frame nor its pointer is written
    note: int | None = None  # number that the policy wants to see again in ``Past.notes``


class Kept(NamedTuple):
    """Row that stays, and how the next frame attends to it."""

    slot: int
    conditioning: bool
    code: float  # of a frame: its time slot, an integer; of a pointer: its age in frames


class Attended(NamedTuple):
    """Rows that stay, of frames and of pointers: conditioning rows first, each group from old to new."""

    frames: list[Kept]
    pointers: list[Kept]


@runtime_checkable
class MemoryPolicy(Protocol):
    """Rule of what an object remembers. All memories start with a prompted frame, which is always written.

    Attributes:
        name: Name, which saved states carry.
        candidates: ``write`` reads ``Seen.masks``; the model hands out the masks that it did not choose.
        conditioning_frames: Prompts and anchors share the ``MemorySizes.frames`` places with all other frames, and
            take this many at most; None: prompts come on top of ``MemorySizes.frames - 1`` others, as in the published
            tracker.
        fractional_ages: Ages of pointers are floats.
    """

    name: str
    candidates: bool
    conditioning_frames: int | None
    fractional_ages: bool

    def write(self, past: Past, seen: Seen) -> Write:
        """Decide what of frame ``past.now``, in which the object was tracked, is written, and as what."""

    def keep(self, past: Past) -> Attended:
        """Return the rows that frame ``past.now`` attends to; all other rows are dropped for good.

        Called for each frame, whether or not something was written. Rows that stay must stay if asked again. At most
        ``MemorySizes.frames`` frames and ``MemorySizes.pointers`` pointers may stay; without ``conditioning_frames``,
        ``MemorySizes.prompts`` - 1 more of each.
        """


class Published:
    """Published rule: the newest prompted frames, and all frames within reach (SAM 2, arXiv 2408.00714, section 4).

    A prompted frame that is no longer among the newest counts as an ordinary one while it is within reach, as with
    ``max_cond_frames_in_attn``. A foreseen frame is not one of the past frames of its copy, so it is dropped at once.
    """

    name = 'published'
    candidates = False
    conditioning_frames: int | None = None
    fractional_ages = False

    def write(self, past: Past, seen: Seen) -> Write:
        """Write every frame."""
        return Write(Kind.RECENT)

    def keep(self, past: Past) -> Attended:
        """Return the newest prompted frames, and the others of the last 6 frames (pointers: of the last 15)."""
        now, (most, frames, pointers) = past.now, past.sizes
        prompts, others = _split(past.frames, most)
        remembered = [*(Kept(row.slot, True, frames - 1) for row in prompts),
                      *(Kept(row.slot, False, now - row.frame - 1) for row in others if now - row.frame < frames)]
        prompts, others = _split(past.pointers, most)
        return Attended(remembered, [
            *(Kept(row.slot, True, now - row.frame) for row in prompts),
            *(Kept(row.slot, False, now - row.frame) for row in others if now - row.frame < pointers)])


class IouGated:
    """Rule of the SAM 3 tracker: frames that it is sure of stay until newer ones replace them.

    A frame counts if its predicted IoU times the certainty that the object is visible exceeds ``USABLE``. The newest
    frames that count, and in any case the last one, are attended to, by rank instead of age. So an object that is
    hidden for long is still known by how it looked before.
    """

    USABLE = 0.01  # mf_threshold of the SAM 3 tracker

    name = 'iou_gated'
    candidates = False
    conditioning_frames: int | None = None
    fractional_ages = False

    def write(self, past: Past, seen: Seen) -> Write:
        """Write every frame; one that does not count only until the next."""
        certainty = max(0.0, 2 * probability(seen.object_score) - 1)
        return Write(Kind.RECENT if certainty * seen.iou > self.USABLE else Kind.PASSING)

    def keep(self, past: Past) -> Attended:
        """Return the newest prompted frames, and the newest 6 others that count (pointers: 15)."""
        most, frames, pointers = past.sizes
        return Attended(
            [Kept(row.slot, rank is None, frames - 1 if rank is None else rank)
             for row, rank in self._ranked(past.frames, past.now, most, frames - 1)],
            [Kept(row.slot, rank is None, past.now - row.frame if rank is None else rank + 1)
             for row, rank in self._ranked(past.pointers, past.now, most, pointers - 1)])

    @staticmethod
    def _ranked(rows: Sequence[Row], now: int, most: int, places: int) -> list[tuple[Row, int | None]]:
        """Return prompted rows with None, then the others that stay with their rank; 0 is the newest.

        A prompted last frame has a rank too, which no other frame gets.
        """
        prompts, others = _split(rows, most)
        newest = [*(row for row in others if row.kind is Kind.RECENT or row.frame == now - 1),
                  *(row for row in prompts if row.frame == now - 1 and not row.foreseen)]
        ranked = [(row, len(newest) - 1 - place) for place, row in enumerate(newest)]
        return [*((row, None) for row in prompts),
                *((row, rank) for row, rank in ranked if rank < places and row.kind is not Kind.PROMPT)]


class DistractorAware:
    """Distractor-aware rule: frames in which a look-alike was told from the object stay as anchors.

    "A Distractor-Aware Memory for Visual Object Tracking with SAM2" (arXiv 2411.17576), with the bank of its successor
    for several objects (arXiv 2509.13864). At most ``MemorySizes.frames`` (7) frames in all:

    - Prompted frames: the newest ``max_conditioning_frames``, at most 4. They are certain, so they outrank anchors.
    - Anchors: at most 3, and at most 4 with the prompted ones. A further one pushes out the oldest.
    - Recent frames: the last one and every fifth, in all places that are left. The oldest leaves first.

    A frame with an empty mask is not written, and neither is its pointer. An anchor is the last of the recent frames
    for the next frame, and an anchor from the one after that on.
    """

    CONDITIONING = 4  # frames: one prompt and three anchors
    RECENT_EVERY = 5  # frames
    ANCHOR_EVERY = 5  # frames, exceeded between two anchors
    ANCHOR_IOU = 0.8  # predicted, exceeded
    ANCHOR_AREA = (0.8, 1.2)  # times the median of the newest NOTES areas
    DISTRACTOR_IOU = 0.7  # of boxes, not exceeded

    name = 'distractor_aware'
    candidates = True
    conditioning_frames: int | None = CONDITIONING
    fractional_ages = True

    def write(self, past: Past, seen: Seen) -> Write:
        """Write frames with a visible object, and note its area."""
        if seen.area == 0:
            return Write(None)
        return Write(Kind.ANCHOR if self._is_anchor(past, seen) else Kind.RECENT, seen.area)

    def keep(self, past: Past) -> Attended:
        """Return prompted frames, anchors and recent frames, and the newest 16 pointers, prompted ones first."""
        most = min(past.sizes.prompts, past.sizes.conditioning(self.CONDITIONING))
        return Attended(self._frames(past, most), self._pointers(past, most))

    def _frames(self, past: Past, most: int) -> list[Kept]:
        prompts, others = _split(past.frames, most)
        free = past.sizes.conditioning(self.CONDITIONING) - len(prompts)
        anchors = _newest([row for row in others if row.kind is Kind.ANCHOR and row.frame < past.now - 1], free)
        recent = [row for row in others if row.kind is Kind.RECENT or (row.kind is Kind.ANCHOR
                                                                       and row.frame == past.now - 1)]
        recent = _newest([row for row in recent if row is recent[-1] or row.frame % self.RECENT_EVERY == 0],
                         past.sizes.frames - len(prompts) - len(anchors))
        conditioning, ranks = sorted([*prompts, *anchors], key=_age), _ranks([*prompts, *anchors, *recent])
        last = past.sizes.frames - 1
        return [*(Kept(row.slot, True, last) for row in conditioning),
                *(Kept(row.slot, False, min(ranks[row.slot], last - 1)) for row in recent)]

    def _pointers(self, past: Past, most: int) -> list[Kept]:
        """Return pointers with ages that give the time code of rank / (n - 1) of n pointers, the newest being 1.

        The model divides ages by ``MemorySizes.pointers - 1`` (15), so the age is rank * 15 / (n - 1). For a prompted
        pointer, the number of frames since then takes the place of the rank.
        """
        prompts, others = _split(past.pointers, most)
        others = _newest([row for row in others if row.kind is not Kind.PROMPT], past.sizes.pointers - len(prompts))
        ranks = _ranks([*prompts, *others])
        highest = max(1, len(ranks) - 1)
        unit = (past.sizes.pointers - 1) / highest
        return [*(Kept(row.slot, True, (past.now - row.frame) * unit) for row in prompts),
                *(Kept(row.slot, False, min(ranks[row.slot] + 1, highest) * unit) for row in others)]

    def _is_anchor(self, past: Past, seen: Seen) -> bool:
        """Return whether an anchor would find a place, and all conditions hold."""
        prompts = sum(row.kind is Kind.PROMPT for row in past.frames)
        return (prompts < past.sizes.conditioning(self.CONDITIONING)
                and all(holds for _, holds in self.conditions(past, seen)))

    def conditions(self, past: Past, seen: Seen) -> Iterator[tuple[str, bool]]:
        """Yield each condition of an anchor and whether it holds; the last one seeks the components of masks."""
        areas = [*(area for _, area in past.notes), seen.area][-NOTES:]
        lowest, highest = self.ANCHOR_AREA
        last = max((row.frame for row in past.frames if row.kind is Kind.ANCHOR), default=None)
        yield 'predicted_iou', seen.iou > self.ANCHOR_IOU
        yield 'area', len(areas) > 1 and lowest <= seen.area / max(1, median(areas)) <= highest
        yield 'distance', last is None or past.now - last > self.ANCHOR_EVERY
        yield 'distractor', distractor_overlap(*seen.masks()) <= self.DISTRACTOR_IOU


def distractor_overlap(chosen: np.ndarray, candidates: np.ndarray) -> float:
    """Return how little a candidate's mask would change the box of the chosen mask; 1 if not at all.

    Of each candidate, the largest 8-connected piece outside of the chosen mask is united with the chosen mask. The
    result is the smallest IoU of the box of such a union with the box of the chosen mask.

    Args:
        chosen: bool (H, W), not empty.
        candidates: bool (M, H, W); the chosen mask may be among them.
    """
    box = mask_box(chosen)
    assert box is not None
    x0, y0, x1, y1 = box
    smallest = 1.0
    for candidate in candidates:
        count, _, stats, _ = cv2.connectedComponentsWithStats((candidate & ~chosen).astype(np.uint8), connectivity=8)
        if count > 1:  # the first component is the background
            left, top, width, height, _ = (int(n) for n in stats[1 + stats[1:, cv2.CC_STAT_AREA].argmax()])
            union = (max(x1, left + width) - min(x0, left)) * (max(y1, top + height) - min(y0, top))
            smallest = min(smallest, (x1 - x0) * (y1 - y0) / union)
    return smallest


def _split(rows: Sequence[Row], most: int) -> tuple[list[Row], list[Row]]:
    """Return the newest ``most`` prompted rows, and all other rows that were not foreseen."""
    prompts = [row for row in rows if row.kind is Kind.PROMPT][-most:]
    slots = {row.slot for row in prompts}
    return prompts, [row for row in rows if row.slot not in slots and not row.foreseen]


def _newest(rows: list[Row], count: int) -> list[Row]:
    return rows[-count:] if count > 0 else []


def _age(row: Row) -> tuple[int, bool]:
    return row.frame, row.foreseen


def _ranks(rows: list[Row]) -> dict[int, int]:
    """Return the rank of each row by slot, 0 for the newest. Foreseen rows are not of the past, and have none."""
    ordered = sorted((row for row in rows if not row.foreseen), key=_age)
    return {row.slot: len(ordered) - 1 - place for place, row in enumerate(ordered)}


PUBLISHED = Published()
MEMORY_POLICIES: dict[str, MemoryPolicy] = {
    policy.name: policy for policy in (PUBLISHED, DistractorAware(), IouGated())}
"""Policies of this package, by name."""


def memory_policy_of(given: str | MemoryPolicy) -> MemoryPolicy:
    """Return the policy that is called ``given``, or ``given`` itself if it is one.

    Raise ValueError for an unknown name, TypeError for an object that is no policy.
    """
    if isinstance(given, str):
        if given not in MEMORY_POLICIES:
            raise ValueError(f'memory_policy {given!r}: must be one of {", ".join(MEMORY_POLICIES)}, or an object with '
                             f'the methods of MemoryPolicy')
        return MEMORY_POLICIES[given]
    if not isinstance(given, MemoryPolicy) or isinstance(given, type):
        raise TypeError(f'memory_policy {given!r}: must be one of {", ".join(MEMORY_POLICIES)}, or an object with the '
                        f'methods of MemoryPolicy')
    known = MEMORY_POLICIES.get(given.name)
    if known is not None and type(given) is not type(known):
        raise ValueError(f'memory_policy {given!r} with the name {given.name!r}: saved states with that name are of '
                         f'another policy; choose another name')
    return given


def same_policy(one: MemoryPolicy, other: MemoryPolicy) -> bool:
    """Return whether two policies have the same rule, so that a memory of one fits the other."""
    return type(one) is type(other) and one.name == other.name
