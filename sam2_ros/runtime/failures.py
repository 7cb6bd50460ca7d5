"""Record of the exceptions raised in the node. They are logged, counted and reported, and the node continues."""
from __future__ import annotations

import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

LOG_EVERY = 5.0  # minimum seconds between two tracebacks of one step in the log
WINDOW = 10.0  # seconds a failure is reported on /diagnostics
MAX_STEPS = 256  # maximum number of steps that are recorded
MAX_REASON = 300  # maximum number of characters of a reason


@dataclass(eq=False)
class _Failed:
    """Failures of one step."""

    when: float  # time.monotonic() of the last failure, seconds
    reason: str  # for /diagnostics; empty: only logged
    logged: float = float('-inf')  # time.monotonic() of the last traceback, seconds
    count: int = 0
    last: str = ''


class Failures:
    """Failures of named steps. Thread-safe.

    A step that raises an exception loses its own result and nothing else: ``run`` logs the traceback, at most every
    LOG_EVERY seconds for each step, keeps the reason for /diagnostics and returns a default.
    """

    def __init__(self, logger: Any, prefix: str = '', usable: Callable[[], bool] = lambda: True) -> None:
        """Create an empty record.

        Args:
            logger: A logger of rclpy.
            prefix: Prefix of every log line.
            usable: Returns False once ROS has been shut down; nothing is logged from then on.
        """
        self._logger = logger
        self._prefix = f'{prefix}: ' if prefix else ''
        self._usable = usable
        self._lock = threading.Lock()
        self._steps: dict[str, _Failed] = {}
        self._count = 0

    def run(self, step: str, call: Callable[..., Any], *arguments: Any, default: Any = None, about: str = '') -> Any:
        """Return the result of a call, or ``default`` if it raises an exception.

        Args:
            step: Name of the step.
            call: Called with ``arguments``.
            *arguments: Arguments of the call.
            default: Result in case of an exception.
            about: Name of the object concerned.
        """
        try:
            return call(*arguments)
        except Exception as error:
            self.report(step, error, about)
            return default

    def report(self, step: str, error: Exception, about: str = '', keep: bool = True) -> str:
        """Record an exception that was caught and return it as one line.

        Args:
            step: Name of the step.
            error: The exception.
            about: Name of the object concerned.
            keep: False: log the exception, but do not report it on /diagnostics.
        """
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
        """Number of failures since startup."""
        return self._count

    def recent(self, now: float) -> list[str]:
        """Return the failures of the last WINDOW seconds with their reasons, one line per step, the newest first."""
        with self._lock:
            recent = [(failed.when, f'{step} failed: {failed.reason}') for step, failed in self._steps.items()
                      if failed.reason and now - failed.when < WINDOW]
        return [text for _, text in sorted(recent, reverse=True)]

    def totals(self) -> list[str]:
        """Return how often each step has failed since startup, one line per step."""
        with self._lock:
            return [f'{step} failed {failed.count} times, the last time with {failed.last}'
                    for step, failed in self._steps.items()]


def describe(error: Exception) -> str:
    """Return an exception as one line: its type and its text, or only the text if that names the cure."""
    text = ' '.join(str(error).split())[:MAX_REASON]
    if getattr(error, 'names_cure', False):
        return text
    return f'{type(error).__name__}: {text}' if text else type(error).__name__
