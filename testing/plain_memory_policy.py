"""Plain implementation of the distractor-aware rule for one object, with lists of frame numbers."""
from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

PROMPT, ANCHOR, RECENT = 'prompt', 'anchor', 'recent'


@dataclass
class PlainDistractorAware:
    """Distractor-aware memory of one object, for models of 7 memory frames and 16 pointers."""

    prompts: int  # max_conditioning_frames
    now: int = 0
    bank: list[tuple[int, str]] = field(default_factory=list)  # number and kind of each remembered frame, old to new
    pointers: list[tuple[int, str]] = field(default_factory=list)
    next_anchor: bool = False  # the newest frame becomes an anchor when the next has been tracked
    areas: list[tuple[int, int]] = field(default_factory=list)

    def prompt(self) -> None:
        self._promote()
        self._leave([one for one in self.bank if one[1] == PROMPT], min(self.prompts, 4) - 1)
        anchors = [one for one in self.bank if one[1] == ANCHOR]
        self._leave(anchors, 3 - sum(kind == PROMPT for _, kind in self.bank))
        self.pointers = [one for one in self.pointers if one[1] != PROMPT or one in self.bank]
        self._append((self.now, PROMPT))
        self.now += 1

    def track(self, area: int, iou: float, overlap: float) -> None:
        """Remember a tracked frame; ``overlap``: IoU of the boxes without and with the piece that is not chosen."""
        self._promote()
        if area:
            recent = [one for one in self.bank if one[1] == RECENT]
            if recent and recent[-1][0] % 5:
                self.bank.remove(recent[-1])
            anchors = [number for number, kind in self.bank if kind == ANCHOR]
            self._append((self.now, RECENT))
            self.areas.append((self.now, area))
            middle = np.median([one for _, one in self.areas[-10:]])
            self.next_anchor = bool(
                sum(kind == PROMPT for _, kind in self.bank) < 4 and iou > 0.8 and len(self.areas) > 1
                and 0.8 <= area / middle <= 1.2 and (not anchors or self.now - anchors[-1] > 5) and overlap <= 0.7)
        self.now += 1

    def _promote(self) -> None:
        if self.next_anchor:
            self.bank[-1] = (self.bank[-1][0], ANCHOR)
            anchors = [one for one in self.bank if one[1] == ANCHOR]
            self._leave(anchors, 4 - sum(kind == PROMPT for _, kind in self.bank))
        self.next_anchor = False

    def _append(self, one: tuple[int, str]) -> None:
        self.bank.append(one)
        self.pointers.append(one)
        self._leave([other for other in self.bank if other[1] == RECENT],
                    7 - sum(kind != RECENT for _, kind in self.bank))
        while len(self.pointers) > 16:
            self.pointers.remove(next(other for other in self.pointers if other[1] != PROMPT))

    def _leave(self, ones: list[tuple[int, str]], room: int) -> None:
        """Remove the oldest of these frames until at most ``room`` of them are in the bank."""
        for one in ones[:max(0, len(ones) - room)]:
            self.bank.remove(one)

    def frames(self) -> dict[int, int]:
        """Return the time slot of each remembered frame."""
        return {number: min(rank, 5) if kind == RECENT else 6
                for rank, (number, kind) in enumerate(reversed(self.bank))}

    def ages(self) -> dict[int, float]:
        """Return the age of each pointer, not clamped."""
        highest = max(1, len(self.pointers) - 1)
        return {number: (self.now - number if kind == PROMPT else min(rank, highest)) * 15 / highest
                for rank, (number, kind) in enumerate(reversed(self.pointers), start=1)}

    def copy(self) -> PlainDistractorAware:
        return replace(self, bank=[*self.bank], pointers=[*self.pointers], areas=[*self.areas])


def plain_overlap(chosen: np.ndarray, others: np.ndarray) -> float:
    """Return the smallest IoU of the box of the chosen mask and of its union with the largest piece of another mask."""
    found = [1.0]
    for other in others:
        outside = pieces(other & ~chosen)
        if outside:
            united = chosen.copy()
            united[tuple(zip(*max(outside, key=len), strict=True))] = True
            found.append(_box_area(chosen) / _box_area(united))
    return min(found)


def pieces(mask: np.ndarray) -> list[list[tuple[int, int]]]:
    """Return the pixels of each 8-connected piece."""
    left, found = {(int(y), int(x)): None for y, x in np.argwhere(mask)}, []
    while left:
        piece = [next(iter(left))]
        del left[piece[0]]
        for y, x in piece:  # grows meanwhile
            near = [(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1) if (y + dy, x + dx) in left]
            piece += near
            for pixel in near:
                del left[pixel]
        found.append(piece)
    return found


def _box_area(mask: np.ndarray) -> int:
    rows, columns = np.nonzero(mask)
    return int((rows.max() - rows.min() + 1) * (columns.max() - columns.min() + 1))
