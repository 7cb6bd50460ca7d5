"""Load shedding: do less while the results come too late, and everything again when there is time for it.

A controller of steps. It goes down one step when the target has been missed for some seconds, and tries the step
above again when the target has been held with a margin. A try that does not last lengthens the wait before the next
one (exponential back-off, bounded), so that between two steps, one too slow and one with time to spare, it settles.
"""
from __future__ import annotations

import math
from collections import deque
from enum import IntEnum

from sam2_core import Sam2Model

WINDOW = 2.0  # seconds of results that are judged together,
FEWEST = 3  # and at least so many, where images are slow
MISSED_FOR = 3.0  # longer than WINDOW: what lasts less than the difference is an accident and changes nothing
HELD_FOR = 5.0  # the first wait before the step above is tried again
LONGEST_WAIT = 120.0
PROVEN = 60.0  # a try that lasts so long has succeeded
MARGIN = 0.8  # of the target: the step above will cost more
SILENCE = 10.0  # after so long without a result, what was seen before says nothing
PLAUSIBLE = 60.0  # what is older is no latency: another clock, a bag without use_sim_time


class Level(IntEnum):
    """What is left out; each level leaves out what those before it do, too."""

    NOTHING = 0
    PICTURES = 1  # overlay, points, markers, background
    MEMORY = 2  # half of the recent frames that objects remember
    IMAGES = 3  # every second image

    @property
    def description(self) -> str:
        return _DESCRIPTIONS[self]


_DESCRIPTIONS = {Level.NOTHING: 'nothing left out', Level.PICTURES: 'no overlay, clouds and markers',
                 Level.MEMORY: 'half of the memory frames as well', Level.IMAGES: 'every second image as well'}


def half_of_recent_frames(model: Sam2Model) -> int:
    """``StreamTracker.recent_frames`` from ``Level.MEMORY`` on."""
    return (model.config.memory_frames - 1) // 2


class LoadShedder:
    """Chooses the level of one camera from the latencies of its results.

    Deterministic: time comes in with each result. ``update`` is for one thread; the attributes may be read by any.

    ``level``: what to leave out now.
    ``missed``: the target has not been held for some time, whatever the level, also while shedding is not allowed.
    """

    def __init__(self) -> None:
        self.level = Level.NOTHING
        self.missed = False
        self._target = 0.0
        self._forget_tries()
        self._observe_anew()
        self._last: float | None = None  # usable result

    def update(self, latency: float, now: float, target: float, allowed: bool) -> Level:
        """The level after one more result.

        latency: seconds from the stamp of its image to its publication. What is not between 0 and a minute comes from
        cameras that do not stamp or whose clock differs: ignored (``why_unusable`` says why).
        now: seconds, of a clock that never goes back.
        target: seconds; 0: none. allowed: False: the level stays NOTHING and only ``missed`` tells.
        """
        usable = not why_unusable(latency)
        if self._last is not None and now - self._last > SILENCE:
            self._observe_anew()
            if not usable:  # nothing is known any more that would justify leaving something out
                self.level = Level.NOTHING
        if target != self._target:  # what was learnt holds for the other one
            self._target = target
            self._forget_tries()
            self._observe_anew()
        if (target <= 0 or not allowed) and self.level:
            self.level = Level.NOTHING
            self._observe_anew()
        if target > 0 and usable:
            self._last = now
            self._judge(latency, now, target)
            if allowed:
                self._step(now)
        return self.level

    def _judge(self, latency: float, now: float, target: float) -> None:
        """Since when the target has been missed, and since when held with a margin."""
        self._results.append((now, latency))
        while len(self._results) > FEWEST and self._results[0][0] <= now - WINDOW:
            self._results.popleft()
        self._missed_since = _since(self._missed_since, now, self._exceeds(target))
        enough = len(self._results) >= FEWEST
        self._held_since = _since(self._held_since, now, enough and not self._exceeds(MARGIN * target))
        self.missed = self._missed_since is not None and now - self._missed_since >= MISSED_FOR

    def _exceeds(self, limit: float) -> bool:
        """Whether the 95th percentile does; one slow result alone never makes it."""
        slow = sum(latency > limit for _, latency in self._results)
        return slow > max(1, len(self._results) // 20)

    def _step(self, now: float) -> None:
        if self.missed and self.level < Level.IMAGES:
            self._note_try(now)
            self.level = Level(self.level + 1)
            self._observe_anew()
        elif (self.level and self._held_since is not None
              and now - self._held_since >= self._waits[self.level - 1]):
            self.level = Level(self.level - 1)
            self._tried[self.level] = now
            self._observe_anew()

    def _note_try(self, now: float) -> None:
        """This level turns out to be too slow: whether it was tried in vain, or did well until now."""
        tried = self._tried.pop(self.level, None)
        if tried is not None and now - tried < PROVEN:
            self._waits[self.level] = min(2 * self._waits[self.level], LONGEST_WAIT)
        else:
            self._waits[self.level] = HELD_FOR

    def _forget_tries(self) -> None:
        self._waits = dict.fromkeys(Level, HELD_FOR)  # before a level is tried again, seconds
        self._tried: dict[Level, float] = {}  # when

    def _observe_anew(self) -> None:
        """Results from before a change say nothing about what comes after it."""
        self._results: deque[tuple[float, float]] = deque()  # (now, latency) of the last WINDOW
        self._missed_since: float | None = None
        self._held_since: float | None = None
        self.missed = False


def _since(since: float | None, now: float, true: bool) -> float | None:
    if not true:
        return None
    return now if since is None else since


def why_unusable(latency: float) -> str:
    """Why something is no latency, with the cure; empty when it is one. latency: seconds."""
    if latency == 0 or not math.isfinite(latency):
        return 'images carry no stamp: have the camera stamp them'
    if latency < 0:
        return (f'image stamps are {-latency:.3f} s ahead of the clock of this node: synchronise the clocks '
                f'(chrony, PTP), or set use_sim_time')
    if latency > PLAUSIBLE:
        return (f'image stamps are {latency:.0f} s behind the clock of this node: set use_sim_time when a bag is '
                f'played, or synchronise the clocks (chrony, PTP)')
    return ''
