"""Stamps of one camera's images: a single outlier is told from a clock that has jumped."""
from __future__ import annotations

import statistics
from collections import deque

TIME_JUMP = 1_000_000_000  # ns that a stamp may go back, or ahead of the clock, before it counts as a jump
RECENT = 16  # images whose stamps are compared with a new one
MOST_SKIPPED = 5  # in a row: then a camera without a sensible clock is taken as it is


class StampWatch:
    """Judges stamps in the order of their arrival.

    A stamp is out of line when it is more than a second behind the one before, or when it has gone ahead by more than
    a second more than the time since: a pause of the camera is none. Images that come faster than they were recorded
    are always ahead; twice the usual lead is allowed for them. One image out of line is skipped. If the next one
    continues it, the clock has jumped, and the stream goes on from there.
    """

    def __init__(self) -> None:
        self._last: int | None = None  # ns, of the last image that was used
        self._offsets: deque[int] = deque(maxlen=RECENT)  # stamp minus arrival, ns
        self._leads: deque[int] = deque(maxlen=RECENT)  # how far each was ahead of those before, ns
        self._odd: tuple[int, int] | None = None  # stamp and arrival of the image that was skipped last
        self._skipped = 0  # in a row
        self.jumps = 0  # of the clock, ahead or back

    def judge(self, stamp: int, arrived: float) -> str:
        """Return '' if the image is to be used, or the reason to skip it. stamp: ns; arrived: seconds of any clock."""
        now = round(arrived * 1e9)
        if not self._last:  # the first, or the one before carried no stamp
            return self._use(stamp, now)
        ahead = stamp - now - max(self._offsets)
        allowed = TIME_JUMP + 2 * round(statistics.median(self._leads or (0,)))
        if stamp >= self._last - TIME_JUMP and ahead <= allowed:
            self._leads.append(max(0, ahead))
            return self._use(stamp, now)
        if self._continues(stamp, now, allowed) or self._skipped >= MOST_SKIPPED:
            if self._odd is not None and stamp > self._odd[0] > self._last:
                self._leads.append(max(0, stamp - self._odd[0] - (now - self._odd[1])))
            self._offsets.clear()
            self.jumps += 1
            return self._use(stamp, now)
        self._odd = stamp, now
        self._skipped += 1
        apart = (f'{(self._last - stamp) / 1e9:.3f} s behind' if stamp < self._last
                 else f'{ahead / 1e9:.3f} s ahead of')
        return (f'stamp {stamp / 1e9:.3f} is {apart} those before it: skipped as a single outlier; have the camera '
                f'stamp its images by one steady clock')

    def _continues(self, stamp: int, now: int, allowed: int) -> bool:
        """Return whether the image goes on from the one that was skipped last."""
        if self._odd is None:
            return False
        step, elapsed, jump = stamp - self._odd[0], now - self._odd[1], self._odd[0] - self._last
        # images may be far apart and come fast: what is near, as far as the jump goes, is a continuation
        return -TIME_JUMP <= step <= elapsed + allowed + (2 * jump if jump > 0 else -jump // 2)

    def _use(self, stamp: int, now: int) -> str:
        self._last, self._odd, self._skipped = stamp, None, 0
        self._offsets.append(stamp - now)
        return ''
