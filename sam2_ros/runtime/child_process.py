"""Child process with its output in a log file."""
from __future__ import annotations

import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

LOG_LINES = 20


class ChildProcess:
    """Process that this process starts, watches and stops."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], log: Path, *, piped: bool = False,
                 detached: bool = False) -> None:
        """Start the process.

        Args:
            command: Program and arguments.
            environment: All environment variables of the process.
            log: File for its output; an existing file is overwritten.
            piped: True makes standard output readable at ``output`` instead of writing it to the log.
            detached: True starts a session of its own, so that Ctrl-C in the terminal does not reach the process, and
                restores the default action of SIGINT, which shells ignore in background jobs.

        Raises:
            OSError: The log cannot be written, or the program cannot be started.
        """
        self._log = log
        with log.open('w') as file:
            self._process = subprocess.Popen(
                command, env=environment, text=True, stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE if piped else file, stderr=file if piped else subprocess.STDOUT,
                start_new_session=detached, preexec_fn=_restore_sigint if detached else None)

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """Exit code, the negative number of the signal that killed the process, or None while it runs."""
        return self._process.poll()

    @property
    def running(self) -> bool:
        """True until the process ends."""
        return self.exit_code is None

    @property
    def output(self) -> IO[str]:
        """Standard output of a piped process."""
        if self._process.stdout is None:
            raise ValueError('output: the process writes to its log; start it with piped=True')
        return self._process.stdout

    @property
    def log(self) -> str:
        """Everything in the log so far."""
        return self._log.read_text(errors='replace')

    def log_tail(self, lines: int = LOG_LINES) -> str:
        """Return the last lines of the log."""
        return '\n'.join(self.log.splitlines()[-lines:])

    def send_signal(self, number: int) -> None:
        """Send a signal; a process that has ended gets none."""
        self._process.send_signal(number)

    def wait(self, patience: float) -> int:
        """Wait for the process to end by itself; return its exit code.

        Raises:
            TimeoutError: The process is still running after ``patience`` seconds.
        """
        try:
            return self._process.wait(patience)
        except subprocess.TimeoutExpired:
            raise TimeoutError(f'still running after {patience:g} s') from None

    def kill(self) -> None:
        """Kill the process, if it is running, and wait for its end."""
        self._process.kill()
        self._process.wait()

    def stop(self, number: int = signal.SIGINT, patience: float = 5.0) -> None:
        """Send a signal, wait for the end of the process, and kill it after ``patience`` seconds."""
        if self.running:
            self.send_signal(number)
            try:
                self._process.wait(patience)
            except subprocess.TimeoutExpired:
                self.kill()


def _restore_sigint() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
