"""Cached values that depend on weights only."""
from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

T = TypeVar('T')


class _Made(NamedTuple):
    sources: list[Tensor]  # copies
    arguments: tuple[int, ...]
    value: Any


class Derived:
    """Cache of a tensor, or of several, computed from a few of a module's weights, and again when these change.

    Weights are compared by value. This notices an optimiser's step, a loaded checkpoint, and writes to
    ``parameter.data``, as by averaged weights and merged adapters. On a GPU, the comparison would synchronise the
    device. Therefore only inference on a CPU uses the cache. On a GPU, in training and its validation, under autocast
    and in compiled code, the value is computed each time.
    """

    def __init__(self) -> None:
        self._made: _Made | None = None

    def get(self, sources: Sequence[Tensor], make: Callable[..., T], *arguments: int) -> T:
        """Return ``make(*arguments)`` or its cached result; it must depend on ``sources`` and ``arguments`` only."""
        # The compiler is checked first: Dynamo cannot trace is_inference_mode_enabled(), and would split the graph.
        keeps = (not torch.compiler.is_compiling() and torch.is_inference_mode_enabled()
                 and not torch.is_autocast_enabled('cpu') and all(s.device.type == 'cpu' for s in sources))
        if not keeps:
            return make(*arguments)
        made = self._made
        if made is None or made.arguments != arguments or not _same(made.sources, sources):
            with torch.inference_mode(False), torch.no_grad():  # an ordinary tensor: it may outlive this mode
                self._made = made = _Made([s.detach().clone() for s in sources], arguments, make(*arguments))
        value: T = made.value
        return value

    def __reduce__(self) -> tuple[type[Derived], tuple[()]]:
        return Derived, ()  # a copy has weights of its own


def _same(before: Sequence[Tensor], now: Sequence[Tensor]) -> bool:
    return all(old.dtype == new.dtype and torch.equal(old, new) for old, new in zip(before, now, strict=True))
