"""Count of a tracker's images, by which its forks and their origin agree on when a frame was."""
from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

KNOWN_IMAGES = 128  # newest images that are remembered; more than any object attends to


class Timeline(NamedTuple):
    """Number of images that one tracker has processed, and marks of its newest moments.

    Moment n lies between image n - 1 and image n. A fork shares the moments of its origin up to that which it begins
    at, and counts on from there.
    """

    images: int = 0
    moments: tuple[object, ...] = ()  # from old to new; the last one is now

    @classmethod
    def begin(cls) -> Timeline:
        """Return the timeline of a tracker that has not seen an image."""
        return cls(0, (object(),))

    def after_image(self) -> Timeline:
        """Return the timeline after one more image."""
        return Timeline(self.images + 1, (*self.moments, object())[-KNOWN_IMAGES - 1:])

    def before(self, step: int) -> Timeline:
        """Return the timeline of a fork that goes on with image number ``step``, at most ``images``."""
        known = max(0, len(self.moments) - (self.images - step))
        return Timeline(step, self.moments[:known] or (object(),))

    def shared(self, other: Timeline) -> int | None:
        """Return the number of images until the two parted; None if they have no known moment in common."""
        theirs = set(other.moments)
        return next((self.images - back for back, moment in enumerate(reversed(self.moments)) if moment in theirs),
                    None)

    def joined(self, other: Timeline) -> Timeline:
        """Return the timeline with the images of a fork that has gone on while this tracker waited."""
        return other if self.shared(other) == self.images else self

    def place(self, other: Timeline, step: int) -> int:
        """Return the number that image number ``step`` of the other tracker has here.

        Images from before the two parted, and from a fork that has gone on while this tracker waited, have the same
        number. If both have processed equally many since, they are the same ones. Otherwise those of the other are
        spread evenly from the first to the newest here. Images of an unrelated tracker count back from the newest.
        """
        shared = self.shared(other)
        if shared is None:
            return step + self.images - other.images
        here, there = self.images - shared, other.images - shared
        if step < shared or here in (0, there):
            return step
        return shared + ((step - shared) * (here - 1) * 2 + there - 1) // (2 * max(1, there - 1))

    def place_exactly(self, other: Timeline, steps: Sequence[int], frames_back: Sequence[int]) -> list[int]:
        """Return the numbers that images of the other tracker have here: its newest ones lie so many images back.

        Numbers of older images are those of ``place``, but none is above them.
        """
        newest = [self.images - back for back in frames_back]
        first = other.images - len(newest)
        return [newest[step - first] if step >= first else min(self.place(other, step), newest[0])
                for step in steps]
