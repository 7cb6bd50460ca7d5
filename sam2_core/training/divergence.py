"""Notice a training step that is not finite, before it reaches the weights."""
from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor

FAILED, STEP, LOSS, GRADIENT = range(4)  # places in a guard's record


class Diverged(ArithmeticError):
    """Training met a value that is not finite; the text names the step and the values."""

    def __init__(self, step: int, values: Mapping[str, float]) -> None:
        found = ' and '.join(f'the {name} is {spelt(value)}' for name, value in values.items()
                             if not math.isfinite(value))
        super().__init__(f'step {step}: {found}')
        self.step, self.values = step, dict(values)


class UpdateGuard:
    """Judge of the updates of a run, kept on the device so that a step needs no synchronisation.

    From the first step whose loss or gradient is not finite, ``failed`` is 1 and the record stays as it is.
    """

    def __init__(self, device: torch.device) -> None:
        self.failed = torch.zeros((), device=device)  # float32: fused optimizers skip an update where it is 1
        self.number = torch.zeros((), dtype=torch.float64, device=device)
        self.record = torch.zeros(4, dtype=torch.float64, device=device)

    @torch.no_grad()
    def judge(self, loss: Tensor, gradient: Tensor) -> None:
        """Record the loss and the norm of the gradient of step ``number``."""
        bad = ~(torch.isfinite(loss) & torch.isfinite(gradient))
        fresh = torch.stack((bad.double(), self.number, loss.detach().double(), gradient.double()))
        self.record.copy_(torch.where(self.record[FAILED] > 0, self.record, fresh))
        self.failed.copy_(self.record[FAILED])


def divergence(record: Tensor) -> Diverged | None:
    """Return what a guard's record says of a failed step, or None if all steps were finite."""
    failed, step, loss, gradient = record.tolist()
    return Diverged(int(step), {'loss': loss, 'gradient': gradient}) if failed else None


def report(problem: Diverged, step: int | None, output: Path, cures: str) -> str:
    """Return the last line of a run that diverged. step: of the state in ``output``, None if nothing was saved."""
    kept = 'nothing was saved before' if step is None else f'{output} holds the finite state of step {step}'
    if step == problem.step - 1 and not math.isfinite(problem.values.get('loss', 0.0)):
        kept += ', which gave this loss'
    return f'{problem}: training stopped; {kept}. Start again with another --output and {cures}'


def not_finite(tensors: Iterable[tuple[str, Tensor]]) -> str | None:
    """Return the name of the first tensor with a value that is not finite."""
    return next((name for name, tensor in tensors
                 if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all())), None)


def spelt(value: float) -> str:
    """Return a number that is not finite in words that strict JSON can hold as a string."""
    return 'NaN' if math.isnan(value) else 'Infinity' if value > 0 else '-Infinity'
