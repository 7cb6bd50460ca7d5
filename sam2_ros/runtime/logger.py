"""Type of what the parts log to."""
from __future__ import annotations

from collections.abc import Callable
from typing import Protocol


class Logger(Protocol):
    """Logger of a node, or a replacement for it."""

    @property
    def info(self) -> Callable[..., object]:
        """Method that logs a text for information."""

    @property
    def warning(self) -> Callable[..., object]:
        """Method that logs a text as a warning."""

    @property
    def error(self) -> Callable[..., object]:
        """Method that logs a text as an error."""
