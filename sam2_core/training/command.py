"""Common frame of the training commands: interrupts, the progress bar, the exit code and the last line."""
from __future__ import annotations

import sys
from collections.abc import Callable
from typing import NamedTuple

import torch.distributed as dist

from sam2_core.progress import progress_bar
from sam2_core.stopping import COMPLETE, DIVERGED, INTERRUPTED, LEFT
from sam2_core.training.clips import NoUsableData
from sam2_core.training.divergence import Diverged, report
from sam2_core.training.log import LogLine
from sam2_core.training.run_state import saved_step
from sam2_core.training.trainer import Trainer

Write = Callable[[str], None]  # writes a line for a person
Show = Callable[[LogLine], None]  # shows a line of the log


class RunOutcome(NamedTuple):
    """Exit code of a run, and the error that stopped it, if one did."""

    code: int
    problem: Diverged | NoUsableData | None = None


def run_command(name: str, work: Callable[[], int]) -> int:
    """Call ``work``, leave the other processes afterwards, and return the exit code.

    name: of the command, for the line that is written at a Ctrl-C before the first step.
    """
    try:
        return work()
    except KeyboardInterrupt:
        print(f'{name}: interrupted before the first step', file=sys.stderr)
        return INTERRUPTED
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def train(trainer: Trainer, show: Callable[[Write], Show]) -> RunOutcome:
    """Train to the end or until the run is stopped, with a progress bar on a terminal.

    show: is given a function that writes a line above the bar, and returns one that shows a line of the log.
    """
    with progress_bar('step', trainer.step, shown=trainer.rank == 0) as (write, move):
        def moved() -> None:
            move(trainer.done, trainer.step)

        try:
            outcome = RunOutcome(COMPLETE if trainer.run(show(write), moved) else LEFT)
        except Diverged as error:
            outcome = RunOutcome(DIVERGED, error)
        except NoUsableData as error:
            outcome = RunOutcome(LEFT, error)
        moved()
    return outcome


def ending(name: str, trainer: Trainer, outcome: RunOutcome, success: str, cures: str) -> str:
    """Return the last line of a run for a person.

    success: how to use the weights of a complete run; cures: changes to make after one that diverged.
    """
    if outcome.code == COMPLETE:
        return f'done: {success}'
    if isinstance(outcome.problem, Diverged):
        output = trainer.config.output
        return f'{name}: {report(outcome.problem, saved_step(output / "checkpoint"), output, cures)}'
    reason = '' if outcome.problem is None else f'{name}: {outcome.problem}. '
    return f'{reason}stopped at step {trainer.step}: run the same command again to continue'
