"""Where the receiving thread leaves images, prompts and questions for the worker."""
from __future__ import annotations

import threading
import time

from sensor_msgs.msg import CompressedImage, Image

from sam2_ros.perception.prompt_plan import PromptRequest
from sam2_ros.perception.single_image import MAX_QUERIES, Query


class Inbox:
    """The newest image, and what waits in order. A newer image replaces an older, which is counted as dropped."""

    PROMPT_LIMIT = 100

    def __init__(self, changed: threading.Condition) -> None:
        """``changed`` is notified of each arrival, and guards the content."""
        self._changed = changed
        self._image: Image | CompressedImage | None = None
        self._since: float | None = None  # seconds, time.monotonic(): from when on something has been waiting
        self._dropped = 0
        self._prompts: list[PromptRequest] = []
        self._queries: list[Query] = []
        self._news = False

    def put_image(self, message: Image | CompressedImage) -> None:
        with self._changed:
            self._dropped += self._image is not None
            self._image = message
            self._arrived()

    def put_prompt(self, request: PromptRequest) -> bool:
        """False when too many are waiting already."""
        with self._changed:
            if len(self._prompts) >= self.PROMPT_LIMIT:
                return False
            self._prompts.append(request)
            self._news = True
            self._arrived()
            return True

    def put_query(self, query: Query) -> bool:
        """False when too many are waiting already."""
        with self._changed:
            if len(self._queries) >= MAX_QUERIES:
                return False
            self._queries.append(query)
            self._news = True
            self._arrived()
            return True

    def notify(self) -> None:
        """Have the worker look: something has come that is kept elsewhere."""
        with self._changed:
            self._news = True
            self._arrived()

    def _arrived(self) -> None:
        if self._since is None:
            self._since = time.monotonic()
        self._changed.notify()

    @property
    def prompts(self) -> list[PromptRequest]:
        """The prompts that wait."""
        with self._changed:
            return list(self._prompts)

    def waiting_since(self) -> float | None:
        """When the first thing arrived that the worker has not looked at, seconds, time.monotonic(); None: nothing."""
        with self._changed:
            return self._since if self._image is not None or self._news else None

    def oldest_prompt(self) -> float | None:
        """When the first waiting prompt was received, seconds, time.monotonic()."""
        with self._changed:
            return min((request.received for request in self._prompts), default=None)

    def take_image(self) -> Image | CompressedImage | None:
        with self._changed:
            message, self._image = self._image, None
            self._since = time.monotonic() if self._news else None
            return message

    def take_requests(self) -> tuple[list[PromptRequest], list[Query]]:
        """The prompts and the questions that wait."""
        with self._changed:
            taken = self._prompts, self._queries
            self._prompts, self._queries, self._news = [], [], False
            if self._image is None:
                self._since = None
            return taken

    def return_prompts(self, requests: list[PromptRequest]) -> None:
        """Put back what has to wait for an image, before what arrived meanwhile."""
        with self._changed:
            self._prompts = requests + self._prompts

    def count_dropped(self) -> None:
        with self._changed:
            self._dropped += 1

    def take_dropped(self) -> int:
        with self._changed:
            dropped, self._dropped = self._dropped, 0
            return dropped
