"""End this process on SIGINT and SIGTERM, whatever it is doing. Imports little, since it is imported first."""
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
    """The SIGINT and SIGTERM of this process.

    Python runs a signal handler in the main thread only, between two steps of the interpreter, and an exception raised
    there is lost where the interpreter cannot pass it on. So a thread of its own learns of each signal at once, and
    ends the process when the main thread has not done so in time.
    """

    def __init__(self) -> None:
        self.received = 0  # the first signal's number
        self._name = ''  # empty: not installed
        self._exit_code: Callable[[int], int] = lambda number: 128 + number
        self._grace = 0.0
        self._act: Callable[[], object] | None = None
        self._interrupting = self._interrupted = False

    def install(self, name: str, exit_code: Callable[[int], int], grace: float) -> None:
        """Let a signal end the process at once, from now until ``act_on_signal`` or ``interrupting``; once is enough.

        name: of the executable. exit_code: of a process that a signal (its number) ended. grace: seconds that the
        main thread has from the signal to the end, later on.
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
        """Run ``act`` in a thread of its own at the first signal; it is to make the main thread end. Thread-safe."""
        self._act = act

    @contextlib.contextmanager
    def interrupting(self) -> Iterator[None]:
        """Raise KeyboardInterrupt in the main thread at the first signal, within this context, or before it."""
        if self.received:
            raise KeyboardInterrupt
        self._interrupting = True
        try:
            yield
        finally:
            self._interrupting = False

    def finish(self) -> None:
        """Ignore signals: the interpreter is about to end by itself, and would let the last ones kill the process."""
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)

    def release(self) -> None:
        """Leave signals to the rest of the program, as Python has them."""
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def _in_main_thread(self, number: int, frame: object) -> None:
        self.received = self.received or number
        if self._interrupting:
            if not self._interrupted:  # a second signal must not disturb the end that the first one brings about
                self._interrupted = True
                raise KeyboardInterrupt
        elif self._act is None and not self._interrupted:
            os._exit(self._exit_code(number))

    def _watch(self, reading: int) -> None:
        number = 0
        while number not in SIGNALS:  # Python reports every signal that has a handler
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
