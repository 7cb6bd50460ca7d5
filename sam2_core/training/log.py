"""The log of a run, ``log.jsonl``: one JSON object for each line."""
from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

from sam2_core.training.divergence import spelt
from sam2_core.training.rollout import may_lack


class TrainingLog:
    """Lines of a run, written to a file and shown."""

    def __init__(self, path: Path, show: Callable[[dict], None]) -> None:
        self.path, self.show = path, show

    def forget_after(self, step: int) -> None:
        """Drop the lines of steps that will be done again, and one that a kill cut off."""
        if self.path.exists():
            whole = [line for line in self.path.read_text().splitlines() if line.endswith('}')]
            lines = [line for line in whole if json.loads(line)['step'] <= step]
            self.path.write_text(''.join(line + '\n' for line in lines))

    def write(self, line: dict) -> None:
        """Write a line of strict JSON: a loss that is not finite becomes the string "NaN", "Infinity" or "-Infinity".

        A share of nothing, such as the J of objects when none was visible, is left out.
        """
        line = {name: value for name, value in line.items() if _finite(value) or not may_lack(name)}
        text = json.dumps({name: value if _finite(value) else spelt(value) for name, value in line.items()},
                          allow_nan=False)
        with self.path.open('a') as file:
            file.write(text + '\n')
        self.show(line)


def _finite(value: object) -> bool:
    return not isinstance(value, float) or math.isfinite(value)
