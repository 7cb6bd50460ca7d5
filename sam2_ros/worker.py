"""The one thread that owns the model: it waits for images and prompts, has them processed and hands the results on."""
from __future__ import annotations

import threading
import traceback

from sam2_ros.outputs import Outputs
from sam2_ros.stream import Stream


class Worker:
    """Runs a stream in a thread of its own between ``start`` and ``stop``."""

    def __init__(self, stream: Stream, outputs: Outputs, changed: threading.Condition, logger) -> None:
        """``changed`` is the one that the stream's mailbox notifies."""
        self._stream = stream
        self._outputs = outputs
        self._changed = changed
        self._logger = logger
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name='sam2_worker', daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Return when the image in work is done and the thread has ended."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        while self._wait():
            try:
                frame, answers = self._stream.work()
                self._outputs.publish(frame, answers)
            except Exception:
                if not self._outputs.usable():  # the process is going down: nobody listens
                    return
                self._logger.error(traceback.format_exc())

    def _wait(self) -> bool:
        """Until there is something to do, or a prompt has waited too long; False when it is time to end."""
        with self._changed:
            self._changed.wait_for(lambda: self._stopping or self._stream.mailbox.has_news(),
                                   self._stream.seconds_to_deadline())
            return not self._stopping
