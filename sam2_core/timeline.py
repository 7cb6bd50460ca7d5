"""Image counts of trackers, by which a fork and its origin agree on the time of a frame."""
from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

KNOWN_IMAGES = 128  # newest images to keep numbers of, more than any object attends to


class Timeline(NamedTuple):
    """Number of images that a tracker has processed, with markers of its newest moments.

    Moment n lies between image n - 1 and image n. A fork shares the moments of its origin up to the moment of the
    fork, and continues the count from there.
    """

    images: int = 0
    moments: tuple[object, ...] = ()  # from old to new; the last one is the present

    @classmethod
    def begin(cls) -> Timeline:
        """Return the timeline of a tracker that has not processed any image."""
        return cls(0, (object(),))

    @classmethod
    def continued(cls, images: int, known: int) -> Timeline:
        """Return the timeline of a tracker that has processed ``images`` images and knows ``known`` moments.

        It shares no moment with another timeline; forks from now on do.
        """
        return cls(images, tuple(object() for _ in range(known)))

    def after_image(self) -> Timeline:
        """Return the timeline after one more image."""
        return Timeline(self.images + 1, (*self.moments, object())[-KNOWN_IMAGES - 1:])

    def before(self, step: int) -> Timeline:
        """Return the timeline of a fork whose next image has number ``step``, at most ``images``."""
        known = max(0, len(self.moments) - (self.images - step))
        return Timeline(step, self.moments[:known] or (object(),))

    def shared(self, other: Timeline) -> int | None:
        """Return the number of images before the two timelines parted, or None if they share no known moment."""
        theirs = set(other.moments)
        return next((self.images - back for back, moment in enumerate(reversed(self.moments)) if moment in theirs),
                    None)

    def joined(self, other: Timeline) -> Timeline:
        """Return the timeline of a fork if this tracker has processed no image since the fork, else this timeline."""
        return other if self.shared(other) == self.images else self

    def place(self, other: Timeline, step: int) -> int:
        """Convert image number ``step`` of the other timeline to a number of this one.

        Images before the two parted have the same number in both, and so have all images if only one of the two has
        continued, or if both have processed the same number since. Otherwise the images of the other are spread evenly
        from the first image since then to the newest. Images of an unrelated timeline count back from the newest.
        """
        shared = self.shared(other)
        if shared is None:
            return step + self.images - other.images
        here, there = self.images - shared, other.images - shared
        if step < shared or here in (0, there):
            return step
        return shared + ((step - shared) * (here - 1) * 2 + there - 1) // (2 * max(1, there - 1))

    def place_exactly(self, other: Timeline, steps: Sequence[int], frames_back: Sequence[int]) -> list[int]:
        """Convert image numbers of the other timeline, whose newest images lie ``frames_back`` images back in this one.

        Older images are converted as by ``place``, but never placed after the given ones.
        """
        newest = [self.images - back for back in frames_back]
        first = other.images - len(newest)
        return [newest[step - first] if step >= first else min(self.place(other, step), newest[0])
                for step in steps]
