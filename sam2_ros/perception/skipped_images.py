"""Reason why a prompt or a question finds no image: none arrives, or those that do cannot be used."""
from __future__ import annotations

import time


class SkippedImages:
    """The last image of one camera that could not be used. Any thread may use it."""

    def __init__(self, topic: str) -> None:
        self._topic = topic
        self._last: tuple[float, str] | None = None  # seconds, time.monotonic(); reason

    def note(self, reason: str) -> None:
        """Record that an image has just been skipped."""
        self._last = (time.monotonic(), reason)

    def clear(self) -> None:
        """Record that an image could be used."""
        self._last = None

    @property
    def reason(self) -> str:
        """The reason why the last image was skipped; empty when it was used."""
        return '' if self._last is None else self._last[1]

    def why_none_yet(self) -> str:
        """Return the reason why there has been no image so far."""
        if self._last is None:
            return f'no image yet on {self._topic}: is the camera running?'
        return f'no image on {self._topic} could be used so far{self.hint()}'

    def why_no_image(self, seconds: float) -> str:
        """Return the reason why there has been no image for so many seconds."""
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
        """Return what to add to another reason: that the last image was skipped; empty when it was not."""
        last = self._last
        return '' if last is None else f'; the last image was skipped {time.monotonic() - last[0]:.1f} s ago: {last[1]}'
