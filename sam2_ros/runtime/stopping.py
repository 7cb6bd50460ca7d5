"""Handling of SIGINT and SIGTERM that ends the process whatever it is doing. Imported first, so it imports little."""
from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopping:
    """Handler of SIGINT and SIGTERM in this process.

    Python runs a signal handler only in the main thread, between two instructions of the interpreter, and loses an
    exception that it raises where the interpreter cannot propagate it. Therefore a separate thread is notified of each
    signal at once and ends the process if the main thread does not do so in time.
    """

    def __init__(self) -> None:
        self.received = 0  # number of the first signal
        self._name = ''  # name of the executable; empty: not installed
        self._exit_code: Callable[[int], int] = lambda number: 128 + number
        self._grace = 0.0
        self._act: Callable[[], object] | None = None
        self._interrupting = self._interrupted = False

    def install(self, name: str, exit_code: Callable[[int], int], grace: float) -> None:
        """Let a signal end the process at once, until ``act_on_signal`` or ``interrupting``. Further calls do nothing.

        Args:
            name: Name of the executable.
            exit_code: Returns the exit code of a process that a signal, given by its number, has ended.
            grace: Seconds between a signal and the end of the process that the main thread has later on.
        """
        if self._name:
            return
        self._name, self._exit_code, self._grace = name, exit_code, grace
        reading, writing = os.pipe()
        os.set_blocking(writing, False)
        signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
        for number in SIGNALS:
            signal.signal(number, self._in_main_thread)
        threading.Thread(target=self._watch, args=(reading,), name='signals', daemon=True).start()

    def act_on_signal(self, act: Callable[[], object]) -> None:
        """Call ``act`` in a separate thread at the first signal. It must make the main thread end. Thread-safe."""
        self._act = act

    @contextlib.contextmanager
    def interrupting(self) -> Iterator[None]:
        """Raise KeyboardInterrupt in the main thread at the first signal, within this context or before it."""
        if self.received:
            raise KeyboardInterrupt
        self._interrupting = True
        try:
            yield
        finally:
            self._interrupting = False

    def finish(self) -> None:
        """Ignore signals from now on: one that arrives while the interpreter shuts down would kill the process."""
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)

    def release(self) -> None:
        """Restore Python's own handling of signals."""
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def _in_main_thread(self, number: int, frame: object) -> None:
        """Handle a signal in the main thread."""
        self.received = self.received or number
        if self._interrupting:
            if not self._interrupted:  # a second signal must not interrupt the shutdown that the first one has begun
                self._interrupted = True
                raise KeyboardInterrupt
        elif self._act is None and not self._interrupted:
            os._exit(self._exit_code(number))

    def _watch(self, reading: int) -> None:
        """Wait for the first signal, then end the process unless the main thread does so in time."""
        number = 0
        while number not in SIGNALS:  # Python reports all signals with handlers
            number = os.read(reading, 1)[0]
        self.received = self.received or number
        if self._act is None and not self._interrupting and not self._interrupted:
            os._exit(self._exit_code(number))
        if self._act is not None:
            self._act()
        time.sleep(self._grace)
        print(f'{self._name}: still busy {self._grace:g} s after {signal.Signals(number).name}: ended without '
              f'finishing', file=sys.stderr, flush=True)
        os._exit(self._exit_code(number))


STOPPING = Stopping()
