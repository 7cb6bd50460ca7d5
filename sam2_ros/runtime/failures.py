"""Record of what raised an exception in the node: logged, counted and reported, so that the rest goes on."""
from __future__ import annotations

import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass

LOG_EVERY = 5.0  # seconds between two tracebacks of one step in the log
WINDOW = 10.0  # seconds that a failure stays on /diagnostics
MAX_STEPS = 256  # names that are kept apart
MAX_REASON = 300  # characters


@dataclass(eq=False)
class _Failed:
    when: float  # seconds, time.monotonic(): the last failure
    reason: str  # empty: for the log alone
    logged: float = float('-inf')
    count: int = 0
    last: str = ''


class Failures:
    """Failures of named steps. Any thread may use it.

    A step that raises costs its own result and nothing else: ``run`` logs the traceback, at most every LOG_EVERY
    seconds for each step, keeps the reason for /diagnostics and returns a default.
    """

    def __init__(self, logger, prefix: str = '', usable: Callable[[], bool] = lambda: True) -> None:
        """``prefix`` opens each log line; ``usable`` returns False once ROS has been shut down: nothing is logged."""
        self._logger = logger
        self._prefix = f'{prefix}: ' if prefix else ''
        self._usable = usable
        self._lock = threading.Lock()
        self._steps: dict[str, _Failed] = {}
        self._count = 0

    def run(self, step: str, call: Callable, *arguments, default=None, about: str = ''):
        """Call and return the result, or ``default`` when it raises. ``about`` names the object concerned."""
        try:
            return call(*arguments)
        except Exception as error:
            self.report(step, error, about)
            return default

    def report(self, step: str, error: Exception, about: str = '', keep: bool = True) -> str:
        """Record an exception that was caught; return it in one line. ``keep``: False leaves it to the log alone."""
        now, reason = time.monotonic(), describe(error)
        if about:
            reason = f'{about}: {reason}'
        with self._lock:
            self._count += 1
            failed = self._steps.setdefault(step, _Failed(now, reason))
            failed.when, failed.reason, failed.last = now, reason if keep else '', reason
            failed.count += 1
            to_log = now - failed.logged >= LOG_EVERY and self._usable()
            if to_log:
                failed.logged = now
            while len(self._steps) > MAX_STEPS:
                del self._steps[next(iter(self._steps))]
        if to_log:
            trace = ''.join(traceback.format_exception(error))
            self._logger.error(f'{self._prefix}{step} failed: {reason}\n{trace}')
        return reason

    @property
    def count(self) -> int:
        """Failures since the start."""
        return self._count

    def recent(self, now: float) -> list[str]:
        """Return what failed in the last WINDOW seconds and why, one line for each step, the newest first."""
        with self._lock:
            recent = [(failed.when, f'{step} failed: {failed.reason}') for step, failed in self._steps.items()
                      if failed.reason and now - failed.when < WINDOW]
        return [text for _, text in sorted(recent, reverse=True)]

    def totals(self) -> list[str]:
        """Return how often each step has failed since the start, one line for each."""
        with self._lock:
            return [f'{step} failed {failed.count} times, the last time with {failed.last}'
                    for step, failed in self._steps.items()]


def describe(error: Exception) -> str:
    """Return an exception in one line: its type, unless its text names the cure itself, and its text."""
    text = ' '.join(str(error).split())[:MAX_REASON]
    if getattr(error, 'names_cure', False):
        return text
    return f'{type(error).__name__}: {text}' if text else type(error).__name__
