"""Detection of training steps that are not finite, before they reach the weights."""
from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor

FAILED, STEP, LOSS, GRADIENT = range(4)  # places in a guard's record
_RUN_AHEAD = 2  # steps that are queued on a GPU


class Diverged(ArithmeticError):
    """A value of the training that is not finite; the text names the step and the values."""

    def __init__(self, step: int, values: Mapping[str, float]) -> None:
        found = ' and '.join(f'the {name} is {spelt(value)}' for name, value in values.items()
                             if not math.isfinite(value))
        super().__init__(f'step {step}: {found}')
        self.step, self.values = step, dict(values)


class UpdateGuard:
    """Check of a run's updates, with its state on the device so that a step needs no synchronisation.

    From the first step whose loss or gradient is not finite, ``failed`` is 1 and the record keeps that step.
    """

    def __init__(self, device: torch.device) -> None:
        self.failed = torch.zeros((), device=device)  # float32: fused optimizers skip an update where it is 1
        self.number = torch.zeros((), dtype=torch.float64, device=device)
        self.record = torch.zeros(4, dtype=torch.float64, device=device)

    @torch.no_grad()
    def judge(self, loss: Tensor, gradient: Tensor) -> None:
        """Record the loss and the gradient norm of step ``number``."""
        bad = ~(torch.isfinite(loss) & torch.isfinite(gradient))
        fresh = torch.stack((bad.double(), self.number, loss.detach().double(), gradient.double()))
        self.record.copy_(torch.where(self.record[FAILED] > 0, self.record, fresh))
        self.failed.copy_(self.record[FAILED])


class RecordReader:
    """Reader of a guard's record. On a GPU it stays two steps behind, so that the host can queue steps ahead."""

    def __init__(self, guard: UpdateGuard) -> None:
        self._guard = guard
        self._on_gpu = guard.record.device.type == 'cuda'
        self._copies = itertools.cycle([torch.zeros(4, dtype=torch.float64, pin_memory=self._on_gpu)
                                        for _ in range(_RUN_AHEAD + 1)])
        self._queued: deque[tuple[torch.cuda.Event, Tensor]] = deque()

    def after_step(self) -> Diverged | None:
        """Return the failed step, if the record of a step shows one that the device has finished."""
        if not self._on_gpu:
            return self.now()
        event, copy = torch.cuda.Event(), next(self._copies)
        copy.copy_(self._guard.record, non_blocking=True)
        event.record()
        self._queued.append((event, copy))
        if len(self._queued) <= _RUN_AHEAD:
            return None
        event, copy = self._queued.popleft()  # each step that is queued holds memory: wait for the oldest
        event.synchronize()
        return divergence(copy)

    def now(self) -> Diverged | None:
        """Wait for the device and return the failed step, if there is one."""
        return divergence(self._guard.record)


def divergence(record: Tensor) -> Diverged | None:
    """Return the failed step that a guard's record holds, or None if all steps were finite."""
    failed, step, loss, gradient = record.tolist()
    return Diverged(int(step), {'loss': loss, 'gradient': gradient}) if failed else None


def report(problem: Diverged, step: int | None, output: Path, cures: str) -> str:
    """Return the last line of a run that diverged. step: of the state in ``output``, None if nothing was saved."""
    kept = 'nothing was saved before' if step is None else f'{output} holds the finite state of step {step}'
    if step == problem.step - 1 and not math.isfinite(problem.values.get('loss', 0.0)):
        kept += ', which gave this loss'
    return f'{problem}: training stopped; {kept}. Start again with another --output and {cures}'


def not_finite(tensors: Iterable[tuple[str, Tensor]]) -> str | None:
    """Return the name of the first tensor with a value that is not finite, or None."""
    return next((name for name, tensor in tensors
                 if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all())), None)


def spelt(value: float) -> str:
    """Return a number that is not finite as a word: strict JSON stores it as a string only."""
    return 'NaN' if math.isnan(value) else 'Infinity' if value > 0 else '-Infinity'
