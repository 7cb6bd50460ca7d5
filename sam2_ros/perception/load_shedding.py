"""Load shedding: do less while results are late, and everything again when there is time for it.

The controller moves between levels. It goes up one level when the target has been missed for some seconds, and back
down when the target has been held with a margin. If a lower level does not last, the wait before the next attempt
doubles, up to a limit, so that the controller settles between a level that is too slow and one with time to spare.
"""
from __future__ import annotations

import math
from collections import deque
from enum import IntEnum

from sam2_core import Sam2Model

WINDOW = 2.0  # seconds of results that are judged together
FEWEST = 3  # results that are judged together where images are slow
MISSED_FOR = 3.0  # seconds; longer than WINDOW, so that a single pause changes nothing
HELD_FOR = 5.0  # seconds before a lower level is tried for the first time
LONGEST_WAIT = 120.0  # seconds
PROVEN = 60.0  # seconds that a level has to last to count as held
MARGIN = 0.8  # of the target: the lower level will cost more
SILENCE = 10.0  # seconds without a result after which earlier results no longer count
PLAUSIBLE = 60.0  # seconds; an older image has another clock, or comes from a bag without use_sim_time


class Level(IntEnum):
    """Level of load shedding. Each level also does what the levels before it do."""

    NOTHING = 0
    PICTURES = 1  # no overlay, points, markers and background
    MEMORY = 2  # attend to half of the recent frames
    IMAGES = 3  # skip every second image

    @property
    def description(self) -> str:
        """What the level leaves out, for logs and diagnostics."""
        return _DESCRIPTIONS[self]


_DESCRIPTIONS = {Level.NOTHING: 'nothing left out', Level.PICTURES: 'no overlay, clouds and markers',
                 Level.MEMORY: 'half of the memory frames as well', Level.IMAGES: 'every second image as well'}


def half_of_recent_frames(model: Sam2Model) -> int:
    """Return the value of ``StreamTracker.recent_frames`` from ``Level.MEMORY`` on."""
    return (model.config.memory_frames - 1) // 2


class LoadShedder:
    """Controller that chooses the level of one camera from the latencies of its results.

    It is deterministic, as time is an argument. One thread calls ``update``; any thread may read the attributes.

    Attributes:
        level: Level to apply now.
        missed: The target has been missed for some time, whatever the level, also while shedding is not allowed.
    """

    def __init__(self) -> None:
        self.level = Level.NOTHING
        self.missed = False
        self._missed_since: float | None = None
        self._held_since: float | None = None
        self._target = 0.0
        self._forget_tries()
        self._observe_anew()
        self._last: float | None = None  # usable result

    def update(self, latency: float, now: float, target: float, allowed: bool) -> Level:
        """Return the level after one more result.

        Args:
            latency: Seconds from the stamp of the image to publication. A value that is not between 0 and a minute is
                ignored: the camera does not stamp its images, or has another clock (see ``why_unusable``).
            now: Seconds of a clock that never goes back.
            target: Latency to hold, seconds; 0 disables load shedding.
            allowed: Whether the level may change; otherwise only ``missed`` is updated.
        """
        usable = not why_unusable(latency)
        if self._last is not None and now - self._last > SILENCE:
            self._observe_anew()
            if not usable:  # nothing justifies the level any more
                self.level = Level.NOTHING
        if target != self._target:  # the waits were learnt for the other target
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
        """Update since when the target has been missed, and since when it has been held with a margin."""
        self._results.append((now, latency))
        while len(self._results) > FEWEST and self._results[0][0] <= now - WINDOW:
            self._results.popleft()
        self._missed_since = _since(self._missed_since, now, self._exceeds(target))
        enough = len(self._results) >= FEWEST
        self._held_since = _since(self._held_since, now, enough and not self._exceeds(MARGIN * target))
        self.missed = self._missed_since is not None and now - self._missed_since >= MISSED_FOR

    def _exceeds(self, limit: float) -> bool:
        """Return whether the 95th percentile exceeds a limit. One slow result alone never does it."""
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
        """Choose the wait before this level is tried again, which has turned out to be too slow."""
        tried = self._tried.pop(self.level, None)
        if tried is not None and now - tried < PROVEN:
            self._waits[self.level] = min(2 * self._waits[self.level], LONGEST_WAIT)
        else:
            self._waits[self.level] = HELD_FOR

    def _forget_tries(self) -> None:
        self._waits: dict[int, float] = dict.fromkeys(Level, HELD_FOR)  # by level: seconds before it is tried again
        self._tried: dict[int, float] = {}  # by level: time of the attempt

    def _observe_anew(self) -> None:
        """Forget the results from before a change."""
        self._results: deque[tuple[float, float]] = deque()  # (now, latency) of the last WINDOW
        self._missed_since = self._held_since = None
        self.missed = False


def _since(since: float | None, now: float, true: bool) -> float | None:
    if not true:
        return None
    return now if since is None else since


def why_unusable(latency: float) -> str:
    """Return why a latency in seconds is implausible, with the cure; empty if it is plausible."""
    if latency == 0 or not math.isfinite(latency):
        return 'images carry no stamp: have the camera stamp them'
    if latency < 0:
        return (f'image stamps are {-latency:.3f} s ahead of the clock of this node: synchronise the clocks '
                f'(chrony, PTP), or set use_sim_time')
    if latency > PLAUSIBLE:
        return (f'image stamps are {latency:.0f} s behind the clock of this node: set use_sim_time when a bag is '
                f'played, or synchronise the clocks (chrony, PTP)')
    return ''
