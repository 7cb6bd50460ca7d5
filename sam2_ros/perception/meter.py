"""Rates, latencies, objects and problems of one camera in the last seconds."""
from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from sam2_ros.msg import Instance
from sam2_ros.perception.frame import TrackedObject

WINDOW = 10.0  # seconds that rates and latencies cover
MOST = 2048  # entries of each kind: enough for 200 images per second


@dataclass(frozen=True)
class Snapshot:
    """Figures of a meter at one moment. Times are in seconds, rates per second."""

    input_rate: float
    processed_rate: float
    silence: float  # since the last image, or since the start if none has arrived
    stalled: float  # that an image has been waiting or in work
    images: int  # received since the start
    latencies: tuple[float, float, float] | None  # p50, p95, p99; None: no frame in the window
    dropped: int  # in the window
    dropped_in_all: int
    tracked: int
    occluded: int
    lost: int
    memory_bytes: int
    catching_up: int
    depth_matched: int  # frames in the window with depth
    depth_missing: int  # frames in the window without depth, although depth arrives or did before
    depth_reason: str  # why depth was missing last; empty if it was not
    depth_doubt: str  # why depth may be wrong or incomplete; empty if there is no doubt
    skipped: str  # why an image could not be used last; empty if all could
    failed: str  # why the model failed last; empty if it did not
    transforms_found: int  # images in the window with a transform into target_frame
    transforms_missing: int  # images in the window without one
    transform_reason: str  # why a transform was missing last; empty if none was


class Meter:
    """Counts of one camera, bounded to WINDOW and to MOST entries of a kind.

    Any thread may call any method. ``now`` is always ``time.monotonic()``.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.start(0.0)

    def start(self, now: float) -> None:
        """Start over when the node is activated. The camera's silence counts from here."""
        with self._lock:
            self._started = now
            self._received: deque[float] = deque(maxlen=MOST)
            self._processed: deque[tuple[float, float]] = deque(maxlen=MOST)  # (when, latency)
            self._dropped: deque[tuple[float, int]] = deque(maxlen=MOST)
            self._depth: deque[tuple[float, bool]] = deque(maxlen=MOST)  # (when, matched)
            self._transforms: deque[tuple[float, bool]] = deque(maxlen=MOST)  # (when, found)
            self._images = self._dropped_in_all = 0
            self._last_received: float | None = None
            self._waiting_since: float | None = None  # first image without a result
            self._states: tuple[int, ...] = ()
            self._memory_bytes = self._catching_up = 0
            self._depth_reason = self._depth_doubt = self._skipped = self._failed = (-WINDOW, '')
            self._transform_reason = (-WINDOW, '')

    def received(self, now: float) -> None:
        """Count an image that has just arrived."""
        with self._lock:
            self._received.append(now)
            self._images += 1
            self._last_received = now
            if self._waiting_since is None:
                self._waiting_since = now

    def processed(self, now: float, latency: float, objects: Iterable[TrackedObject], *, dropped: int = 0,
                  memory_bytes: int = 0, catching_up: int = 0) -> None:
        """Count a frame whose instances have just been published.

        Args:
            now: Seconds, time.monotonic().
            latency: Seconds from the stamp of the image to now; 0 if it has none.
            objects: Those of the frame.
            dropped: Images dropped since the previous frame.
            memory_bytes: Size of the tracker's memory.
            catching_up: Number of objects of late prompts on their way to the live images.
        """
        with self._lock:
            self._processed.append((now, latency))
            self._waiting_since = None
            self._states = tuple(item.state for item in objects)
            self._memory_bytes, self._catching_up = memory_bytes, catching_up
            if dropped:
                self._dropped.append((now, dropped))
                self._dropped_in_all += dropped

    def skipped(self, now: float, reason: str) -> None:
        """Note why an image could not be used. The next frame counts it as dropped."""
        with self._lock:
            self._waiting_since = None
            self._skipped = (now, reason)

    def failed(self, now: float, reason: str) -> None:
        """Note why the model failed on an image. The next frame counts it as dropped."""
        with self._lock:
            self._waiting_since = None
            self._failed = (now, reason)

    def depth(self, now: float, missing: str = '') -> None:
        """Count a frame with depth, or note why its depth is ``missing`` although depth arrives."""
        with self._lock:
            self._depth.append((now, not missing))
            if missing:
                self._depth_reason = (now, missing)

    def transform(self, now: float, missing: str = '') -> None:
        """Count an image with a transform into target_frame, or note why it is ``missing``."""
        with self._lock:
            self._transforms.append((now, not missing))
            if missing:
                self._transform_reason = (now, missing)

    def depth_doubt(self, now: float, text: str) -> None:
        """Note why the depth of a frame may be wrong; an empty text is ignored."""
        if text:
            with self._lock:
                self._depth_doubt = (now, text)

    def snapshot(self, now: float) -> Snapshot:
        """Return the figures of the last seconds."""
        with self._lock:
            self._forget(now - WINDOW)
            latencies = [latency for _, latency in self._processed]
            matched = sum(matched for _, matched in self._depth)
            found = sum(found for _, found in self._transforms)
            last_received = self._started if self._last_received is None else self._last_received
            return Snapshot(
                input_rate=self._rate(len(self._received), now, min(self._received, default=now)),
                processed_rate=self._rate(len(latencies), now, min((when for when, _ in self._processed), default=now)),
                silence=now - last_received,
                stalled=0.0 if self._waiting_since is None else now - self._waiting_since,
                images=self._images,
                latencies=percentiles(latencies) if latencies else None,
                dropped=sum(count for _, count in self._dropped),
                dropped_in_all=self._dropped_in_all,
                tracked=self._states.count(Instance.TRACKED),
                occluded=self._states.count(Instance.OCCLUDED),
                lost=self._states.count(Instance.LOST),
                memory_bytes=self._memory_bytes,
                catching_up=self._catching_up,
                depth_matched=matched,
                depth_missing=len(self._depth) - matched,
                depth_reason=_recent(self._depth_reason, now),
                depth_doubt=_recent(self._depth_doubt, now),
                skipped=_recent(self._skipped, now),
                failed=_recent(self._failed, now),
                transforms_found=found,
                transforms_missing=len(self._transforms) - found,
                transform_reason=_recent(self._transform_reason, now))

    def _forget(self, until: float) -> None:
        while self._received and self._received[0] <= until:
            self._received.popleft()
        for entries in (self._processed, self._dropped, self._depth, self._transforms):
            while entries and entries[0][0] <= until:
                entries.popleft()

    def _rate(self, count: int, now: float, oldest: float) -> float:
        """Return a rate per second over the window, or over the part of it that there are entries for."""
        seconds = min(WINDOW, now - self._started) if count < MOST else now - oldest
        return count / max(seconds, 1.0)


def percentiles(values: list[float]) -> tuple[float, float, float]:
    """Return the 50th, 95th and 99th percentile, each one of the values (``inverted_cdf``)."""
    p50, p95, p99 = np.percentile(values, [50, 95, 99], method='inverted_cdf')
    return float(p50), float(p95), float(p99)


def _recent(entry: tuple[float, str], now: float) -> str:
    when, reason = entry
    return reason if now - when < WINDOW else ''
