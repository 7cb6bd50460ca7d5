"""What the work on each image costs: seconds by stage, and memory."""
from __future__ import annotations

import contextlib
import resource
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from sam2_core import Sam2Model

_MODEL_STAGES = {'encode_image': 'encode', 'attend_memory': 'attend', 'decode_masks': 'decode mask',
                 'encode_memory': 'memory'}


class Stopwatch:
    """Adds up seconds by stage. On a GPU it waits at the ends of a stage for what is under way."""

    def __init__(self, model: Sam2Model, timer: Callable[[], float] = time.perf_counter) -> None:
        """timer: seconds."""
        self._model = model
        self._timer = timer
        self._seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def watch_model(self) -> Iterator[None]:
        """While it is open, the four functions of the model are stages."""
        replaced = {name: vars(self._model).get(name) for name in _MODEL_STAGES}
        for name, stage in _MODEL_STAGES.items():
            setattr(self._model, name, self._watched(getattr(self._model, name), stage))
        try:
            yield
        finally:
            for name, before in replaced.items():
                if before is None:
                    delattr(self._model, name)
                else:
                    setattr(self._model, name, before)

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        started = self._now()
        try:
            yield
        finally:
            self._seconds[name] = self._seconds.get(name, 0.0) + self._now() - started

    def take(self) -> dict[str, float]:
        """Seconds of each stage since the last call."""
        seconds, self._seconds = self._seconds, {}
        return seconds

    def _watched(self, function: Callable, stage: str) -> Callable:
        def run(*arguments, **options):
            with self.stage(stage):
                return function(*arguments, **options)
        return run

    def _now(self) -> float:
        if self._model.device.type == 'cuda':
            torch.cuda.synchronize(self._model.device)
        return self._timer()


class PeakMemory:
    """The most memory that was held since it was made, bytes."""

    def __init__(self, model: Sam2Model) -> None:
        self._device = model.device if model.device.type == 'cuda' else None
        if self._device is not None:
            torch.cuda.reset_peak_memory_stats(self._device)
        with contextlib.suppress(OSError):  # not on Linux, or not allowed: then it counts from the process's start
            Path('/proc/self/clear_refs').write_text('5')

    @property
    def gpu(self) -> int:
        """Allocated by PyTorch; 0 without a GPU."""
        return 0 if self._device is None else torch.cuda.max_memory_allocated(self._device)

    @property
    def process(self) -> int:
        """Resident, of this process."""
        try:
            status = Path('/proc/self/status').read_text()
        except OSError:
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith('VmHWM:'))
