"""Images of one camera that gave no frame, and the reasons that prompts and queries without an image are given."""
from __future__ import annotations

import time

from sam2_ros.perception.meter import Meter
from sam2_ros.runtime.failures import Failures
from sam2_ros.runtime.logger import Logger

WARN_EVERY = 5.0  # seconds


class SkippedImages:
    """Record of the last skipped image of one camera. Any thread may use it."""

    def __init__(self, topic: str, meter: Meter, failures: Failures, logger: Logger) -> None:
        self._topic = topic
        self._meter = meter
        self._failures = failures
        self._logger = logger
        self._last: tuple[float, str] | None = None  # seconds, time.monotonic(); reason

    def skip(self, reason: str) -> None:
        """Record and log that an image has just been skipped because it cannot be used."""
        self._note(reason)
        self._failures.run('meter', self._meter.skipped, time.monotonic(), reason)
        self._logger.warning(f'{self._topic}: image skipped: {reason}', throttle_duration_sec=WARN_EVERY)

    def fail(self, error: Exception) -> str:
        """Record and log that the model has just failed on an image; return the reason for those who wait."""
        reason = self._failures.report('model', error, keep=False)
        self._failures.run('meter', self._meter.failed, time.monotonic(), reason)
        reason = f'the model failed on this image: {reason}'
        self._note(reason)
        return reason

    def clear(self) -> None:
        """Record that an image has been processed."""
        self._last = None

    def _note(self, reason: str) -> None:
        self._last = (time.monotonic(), reason)

    @property
    def reason(self) -> str:
        """The reason why the last image was skipped; empty if it was processed."""
        return '' if self._last is None else self._last[1]

    def why_none_yet(self) -> str:
        """Return the reason why there has been no image so far."""
        if self._last is None:
            return f'no image yet on {self._topic}: is the camera running?'
        return f'no image on {self._topic} could be used so far{self.hint()}'

    def why_no_image(self, seconds: float) -> str:
        """Return the reason why there has been no image for this long."""
        last = self._last
        if last is None:
            return f'no image on {self._topic} for {seconds:g} s: is the camera running?'
        age = time.monotonic() - last[0]
        if age > seconds:
            return (f'no image on {self._topic} for {age:.1f} s: is the camera running? The last one was skipped: '
                    f'{last[1]}')
        return (f'no image on {self._topic} could be used for {seconds:g} s; the last one was skipped {age:.1f} s ago: '
                f'{last[1]}')

    def hint(self) -> str:
        """Return a clause to append to another reason if the last image was skipped; empty if it was processed."""
        last = self._last
        return '' if last is None else f'; the last image was skipped {time.monotonic() - last[0]:.1f} s ago: {last[1]}'
