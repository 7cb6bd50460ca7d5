"""Check of the stamps of one camera's images, which distinguishes single outliers from time jumps."""
from __future__ import annotations

import statistics
from collections import deque

TIME_JUMP = 1_000_000_000  # ns; a stamp that goes back, or ahead of the clock, by more is an outlier or a time jump
RECENT = 16  # number of images whose stamps are compared with a new stamp
MOST_SKIPPED = 5  # images in a row that may be skipped; then the stamps of the camera are used as they are


def jumped_back(stamp: int, before: int) -> bool:
    """Return whether the clock has jumped back from ``before`` to ``stamp``, ns."""
    return stamp < before - TIME_JUMP


class StampWatch:
    """Filter that judges stamps in the order of their arrival.

    A stamp is an outlier if it is more than a second behind the previous stamp, or more than a second further ahead
    than the time that has passed since. A pause of the camera is no outlier. Images of a recording that is played
    faster than it was made are always ahead; twice the usual lead is allowed for them. A single outlier is skipped. If
    the next image continues it, the clock has jumped, and the stream continues from there.
    """

    def __init__(self) -> None:
        self._last: int | None = None  # stamp of the last image that was used, ns
        self._offsets: deque[int] = deque(maxlen=RECENT)  # stamps minus times of arrival, ns
        self._leads: deque[int] = deque(maxlen=RECENT)  # by how much each stamp was ahead of those before, ns
        self._odd: tuple[int, int] | None = None  # stamp and arrival of the last image if it was skipped, ns
        self._skipped = 0  # images skipped in a row
        self.jumps = 0  # number of time jumps, ahead or back

    def judge(self, stamp: int, arrived: float) -> str:
        """Return '' if the image is to be used, or else the reason to skip it.

        Args:
            stamp: Stamp of the image in ns.
            arrived: Time of arrival in seconds of any clock.
        """
        now = round(arrived * 1e9)
        if not self._last:  # there is no previous image, or it has no stamp
            return self._use(stamp, now)
        ahead = stamp - now - max(self._offsets)
        allowed = TIME_JUMP + 2 * round(statistics.median(self._leads or (0,)))
        if not jumped_back(stamp, self._last) and ahead <= allowed:
            self._leads.append(max(0, ahead))
            return self._use(stamp, now)
        if self._continues(self._last, stamp, now, allowed) or self._skipped >= MOST_SKIPPED:
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

    def _continues(self, last: int, stamp: int, now: int, allowed: int) -> bool:
        """Return True if the image continues the one that was skipped last."""
        if self._odd is None:
            return False
        step, elapsed, jump = stamp - self._odd[0], now - self._odd[1], self._odd[0] - last
        # images may be far apart and arrive fast: steps that are small compared with the jump are a continuation
        return -TIME_JUMP <= step <= elapsed + allowed + (2 * jump if jump > 0 else -jump // 2)

    def _use(self, stamp: int, now: int) -> str:
        """Record an image that is used and return ''."""
        self._last, self._odd, self._skipped = stamp, None, 0
        self._offsets.append(stamp - now)
        return ''
