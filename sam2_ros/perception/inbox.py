"""Images, prompts and queries that the receiving thread leaves for the worker."""
from __future__ import annotations

import threading
import time
from collections.abc import Collection

from sensor_msgs.msg import CompressedImage, Image

from sam2_ros.perception.prompt_plan import PromptRequest
from sam2_ros.perception.single_image import MAX_QUERIES, Query


class Inbox:
    """Newest image of one camera, and its prompts and queries in order. Any thread may use it.

    A newer image replaces an older one, which is counted as dropped. Prompts stay until the worker removes them: one
    that has to wait for an image keeps its place.
    """

    PROMPT_LIMIT = 100

    def __init__(self, changed: threading.Condition) -> None:
        """Create an empty inbox; ``changed`` is notified of each arrival, and guards the content."""
        self._changed = changed
        self._image: Image | CompressedImage | None = None
        self._since: float | None = None  # seconds, time.monotonic(): first arrival that the worker has not seen
        self._dropped = 0
        self._prompts: list[PromptRequest] = []
        self._queries: list[Query] = []
        self._news = False  # something other than an image has arrived since the worker looked

    def put_image(self, message: Image | CompressedImage) -> None:
        """Store an image in the place of the one before."""
        with self._changed:
            self._dropped += self._image is not None
            self._image = message
            self._arrived()

    def put_prompt(self, request: PromptRequest) -> bool:
        """Append a prompt; return False if too many are waiting already."""
        with self._changed:
            if len(self._prompts) >= self.PROMPT_LIMIT:
                return False
            self._prompts.append(request)
            self._news = True
            self._arrived()
            return True

    def put_query(self, query: Query) -> bool:
        """Append a query; return False if too many are waiting already."""
        with self._changed:
            if len(self._queries) >= MAX_QUERIES:
                return False
            self._queries.append(query)
            self._news = True
            self._arrived()
            return True

    def notify(self) -> None:
        """Wake the worker for something that has arrived elsewhere."""
        with self._changed:
            self._news = True
            self._arrived()

    def _arrived(self) -> None:
        if self._since is None:
            self._since = time.monotonic()
        self._changed.notify()

    @property
    def prompts(self) -> list[PromptRequest]:
        """The prompts in the inbox."""
        with self._changed:
            return list(self._prompts)

    def waiting_since(self) -> float | None:
        """Return the time of the first arrival that the worker has not seen, seconds of time.monotonic(), or None."""
        with self._changed:
            return self._since if self._image is not None or self._news else None

    def oldest_prompt(self) -> float | None:
        """Return the time at which the first of the prompts was received, seconds of time.monotonic(), or None."""
        with self._changed:
            return min((request.received for request in self._prompts), default=None)

    def take_image(self) -> Image | CompressedImage | None:
        """Take the image out; None if there is none."""
        with self._changed:
            message, self._image = self._image, None
            self._since = time.monotonic() if self._news else None
            return message

    def look(self) -> tuple[list[PromptRequest], list[Query]]:
        """Return the prompts, which stay in the inbox, and take the queries out."""
        with self._changed:
            queries, self._queries, self._news = self._queries, [], False
            if self._image is None:
                self._since = None
            return list(self._prompts), queries

    def remove(self, requests: Collection[PromptRequest]) -> None:
        """Take these prompts out."""
        with self._changed:
            self._prompts = [request for request in self._prompts if request not in requests]

    def count_dropped(self) -> None:
        """Count one more dropped image."""
        with self._changed:
            self._dropped += 1

    def take_dropped(self) -> int:
        """Return the number of images dropped since the last call."""
        with self._changed:
            dropped, self._dropped = self._dropped, 0
            return dropped
