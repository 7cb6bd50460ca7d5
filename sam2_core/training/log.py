"""The log of a run, ``log.jsonl``: one JSON object per line."""
from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sam2_core.training.divergence import spelt
from sam2_core.training.rollout import may_lack

LogLine = dict[str, Any]


class TrainingLog:
    """Lines of a run, written to a file and passed to ``show``."""

    def __init__(self, path: Path, show: Callable[[LogLine], None]) -> None:
        self.path, self.show = path, show

    def forget_after(self, step: int) -> None:
        """Drop the lines of steps that will be done again, and a line that a kill cut off."""
        if self.path.exists():
            whole = [line for line in self.path.read_text().splitlines() if line.endswith('}')]
            lines = [line for line in whole if json.loads(line)['step'] <= step]
            self.path.write_text(''.join(line + '\n' for line in lines))

    def write(self, line: LogLine) -> None:
        """Write a line of strict JSON: a loss that is not finite becomes the string "NaN", "Infinity" or "-Infinity".

        A share of nothing is dropped, such as the J of objects when none was visible.
        """
        line = {name: value for name, value in line.items() if _finite(value) or not may_lack(name)}
        text = json.dumps({name: value if _finite(value) else spelt(value) for name, value in line.items()},
                          allow_nan=False)
        with self.path.open('a') as file:
            file.write(text + '\n')
        self.show(line)


class Throughput:
    """Images trained on and time spent waiting for data since the last line of the log."""

    def __init__(self, now: float) -> None:
        """now: seconds of a monotonic clock."""
        self._since, self._images, self._waited = now, 0, 0.0

    def add(self, images: int) -> None:
        """Count images of a step."""
        self._images += images

    def wait(self, seconds: float) -> None:
        """Count time in which no data was ready."""
        self._waited += seconds

    def figures(self, now: float) -> dict[str, float]:
        """Return images per second and the share of time spent waiting, and begin anew."""
        span = now - self._since
        found = {'images_per_s': round(self._images / span, 1), 'data_wait': round(self._waited / span, 3)}
        self._since, self._images, self._waited = now, 0, 0.0
        return found


def _finite(value: object) -> bool:
    return not isinstance(value, float) or math.isfinite(value)
