"""What a person sees of a run of ``sam2_track``: a bar on a terminal, else a line from time to time."""
from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping

from sam2_core.offline.resume import BACKWARD, FILES, FORWARD
from sam2_core.progress import Move

COSTS = {BACKWARD: 1.0, FORWARD: 1.0, FILES: 0.1}  # of a frame of each phase, relative to each other
_NAMES = {BACKWARD: 'backwards', FORWARD: 'forwards', FILES: 'overlay'}
_SPAN = 10.0  # seconds over which the rate is measured
_LINES = 30.0  # seconds between two lines where there is no terminal


class TrackDisplay:
    """Progress of a run over all its phases."""

    def __init__(self, lengths: Mapping[str, int], write: Callable[[str], object], move: Move, terminal: bool,
                 clock: Callable[[], float] = time.monotonic) -> None:
        """Describe the run.

        Args:
            lengths: Number of frames by phase.
            write: Function that writes a line.
            move: Function that moves the bar.
            terminal: A bar is shown, so no lines are needed.
            clock: Seconds.
        """
        self._lengths, self._write, self._move, self._terminal, self._clock = lengths, write, move, terminal, clock
        self._total = sum(COSTS[phase] * length for phase, length in lengths.items())
        self._recent: deque[tuple[float, str, int]] = deque()
        self._written = clock()

    def moved(self, phase: str, frame: int, done: int, length: int) -> None:
        """Show that ``done`` of ``length`` frames of a phase are done, the last one being ``frame``."""
        now = self._clock()
        rate = self._rate(now, phase, done)
        before = 0.0
        for name, count in self._lengths.items():
            if name == phase:
                break
            before += COSTS[name] * count
        share = (before + COSTS[phase] * done) / max(1.0, self._total)
        speed = f', {rate:.3g} frames/s' if rate else ''
        self._move(share, frame, f'{_NAMES[phase]}{speed}')
        if not self._terminal and now - self._written >= _LINES:
            self._written = now
            left = (1 - share) * self._total / COSTS[phase] / rate if rate else 0
            remaining = f', {_duration(left)} left' if rate else ''
            self._write(f'frame {frame} {_NAMES[phase]}, {100 * share:.0f} %{speed}{remaining}')

    def _rate(self, now: float, phase: str, done: int) -> float:
        """Return the frames per second of the last seconds, 0 if unknown."""
        if self._recent and self._recent[-1][1] != phase:
            self._recent.clear()
        self._recent.append((now, phase, done))
        while len(self._recent) > 2 and now - self._recent[1][0] > _SPAN:
            self._recent.popleft()
        since, _, count = self._recent[0]
        return (done - count) / (now - since) if now > since else 0.0


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f'{seconds:.0f} s'
    return f'{seconds / 60:.0f} min' if seconds < 5400 else f'{seconds / 3600:.1f} h'
