"""What a person sees of a run: lines of text, and on a terminal a progress bar below them."""
from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn


@contextmanager
def progress_bar(step: int, shown: bool = True) -> Iterator[tuple[Callable[[str], None], Callable[[float, int], None]]]:
    """Yield two functions: one writes a line, the other moves the bar to a progress of 0..1 and a step.

    step: step at which the run begins; shown: False shows lines only, as in all processes but one of several.
    """
    console = Console(stderr=True)
    if not shown or not console.is_terminal:
        yield lambda text: print(text, file=sys.stderr, flush=True), lambda done, step: None
        return
    columns = TextColumn('step {task.fields[step]}'), BarColumn(), TaskProgressColumn(), TimeRemainingColumn()
    with Progress(*columns, console=console) as progress:
        task = progress.add_task('training', total=1.0, step=step)
        yield (lambda text: console.print(text, highlight=False, markup=False),
               lambda done, step: progress.update(task, completed=done, step=step))
