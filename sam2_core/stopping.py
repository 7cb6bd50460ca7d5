"""Stopping a run: SIGTERM and Ctrl-C set a flag that is read between two updates."""
from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any

COMPLETE, NO_START, LEFT, DIVERGED, INTERRUPTED = 0, 2, 3, 4, 130  # exit codes of the commands
_NOTICE = b'\nstopping after this step to save; press Ctrl-C again to stop at once without saving\n'
_SHOW_CURSOR = b'\x1b[?25h'  # a progress bar hides it
Handler = Callable[[int, FrameType | None], Any] | int | None  # of a signal


class StopSignals:
    """Flag that SIGTERM and the first Ctrl-C set; a second Ctrl-C ends the process at once."""

    def __init__(self, quiet: bool = False) -> None:
        """quiet: write no notice at the first Ctrl-C, as in all processes but one of several."""
        self.quiet, self._asked, self._process = quiet, False, os.getpid()
        self._previous: dict[int, Handler] = {}

    def __bool__(self) -> bool:
        return self._asked

    def ask(self) -> None:
        """Ask the run to stop, as SIGTERM does."""
        self._asked = True

    def __enter__(self) -> StopSignals:
        self._previous = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
        signal.signal(signal.SIGTERM, self._leave)
        if self._previous[signal.SIGINT] is not signal.SIG_IGN:  # a shell's background job ignores Ctrl-C
            signal.signal(signal.SIGINT, self._leave)
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _leave(self, number: int, frame: object) -> None:
        self._asked = True
        if number != signal.SIGINT or os.getpid() != self._process:  # a reader between its fork and its start
            return
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # the kernel acts on it, even during a long step
        if not self.quiet:  # not by print, which may be what was interrupted
            os.write(2, (_SHOW_CURSOR if os.isatty(2) else b'') + _NOTICE)


def obey_main_process_only() -> None:
    """Ignore signals in a reader unless the main process sends them.

    A terminal or timeout(1) signals all processes of a group, but a reader must work until the main process stops it.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    threading.Thread(target=_wait_for_the_end, args=(os.getppid(),), daemon=True).start()


def _wait_for_the_end(parent: int) -> None:
    while signal.sigwaitinfo([signal.SIGTERM]).si_pid != parent:
        pass
    os._exit(0)
