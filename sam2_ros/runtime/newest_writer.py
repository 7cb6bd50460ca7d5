"""Thread that writes what it is given, and of several contents that wait only the newest."""
from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

Content = TypeVar('Content')


class NewestWriter(Generic[Content]):
    """Background writer with room for one content that waits."""

    def __init__(self, write: Callable[[Content], None], written: Callable[[], None]) -> None:
        """Start the thread.

        Args:
            write: Writes a content. It must not raise.
            written: Called in the thread after each ``write``.
        """
        self._write = write
        self._written = written
        self._changed = threading.Condition()
        self._waiting: list[Content] = []  # at most one
        self._busy = self._closed = False
        self._thread = threading.Thread(target=self._run, name='sam2_kept_objects', daemon=True)
        self._thread.start()

    @property
    def idle(self) -> bool:
        """Return whether everything has been written."""
        with self._changed:
            return not self._waiting and not self._busy

    def put(self, content: Content) -> None:
        """Write a content as soon as possible, instead of one that waits."""
        with self._changed:
            self._waiting = [content]
            self._changed.notify_all()

    def wait(self, seconds: float) -> bool:
        """Wait until everything has been written, at most ``seconds``; return whether it has."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._waiting and not self._busy, seconds)

    def close(self, seconds: float) -> bool:
        """Write what waits and end the thread; wait for that at most ``seconds``, and return whether it has ended."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closed)
                if not self._waiting:
                    return
                content, self._busy = self._waiting.pop(), True
            try:
                self._write(content)
            finally:
                with self._changed:
                    self._busy = False
                    self._changed.notify_all()
            del content
            self._written()
