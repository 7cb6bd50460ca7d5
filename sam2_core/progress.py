"""What a person sees of a long command: lines of text, and on a terminal a progress bar below them."""
from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn


class Move(Protocol):
    """Function that moves a progress bar."""

    def __call__(self, done: float, count: int, note: str = '') -> None:
        """Show a progress of 0..1, a count of units, and a note behind the bar."""


@contextmanager
def progress_bar(unit: str, count: int, shown: bool = True) -> Iterator[tuple[Callable[[str], None], Move]]:
    """Yield two functions: one writes a line, the other moves the bar, where there is a terminal.

    Args:
        unit: What is counted, for example 'step'.
        count: Number of units at which the command begins.
        shown: False shows lines only, as in all processes but one of several.
    """
    console = Console(stderr=True)
    if not shown or not console.is_terminal:
        yield lambda text: print(text, file=sys.stderr, flush=True), lambda done, count, note='': None
        return
    columns = (TextColumn(f'{unit} {{task.fields[count]}}'), BarColumn(), TaskProgressColumn(), TimeRemainingColumn(),
               TextColumn('{task.fields[note]}'))
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(unit, total=1.0, count=count, note='')

        def move(done: float, count: int, note: str = '') -> None:
            progress.update(task, completed=done, count=count, note=note)

        yield lambda text: console.print(text, highlight=False, markup=False), move
