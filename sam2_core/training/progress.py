"""What a person sees of a run: lines, and on a terminal a progress bar below them."""
from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from sam2_core.training.trainer import Trainer


@contextmanager
def progress_bar(trainer: Trainer) -> Iterator[tuple[Callable[[str], None], Callable[[], None]]]:
    """Two functions: one writes a line, one moves the bar, to be called after every step."""
    console = Console(stderr=True)
    if trainer.rank or not console.is_terminal:
        yield lambda text: print(text, file=sys.stderr, flush=True), lambda: None
        return
    columns = TextColumn('step {task.fields[step]}'), BarColumn(), TaskProgressColumn(), TimeRemainingColumn()
    with Progress(*columns, console=console) as progress:
        task = progress.add_task('training', total=1.0, step=trainer.step)

        def bar() -> None:
            progress.update(task, completed=trainer.done, step=trainer.step)

        yield lambda text: console.print(text, highlight=False, markup=False), bar
        bar()
