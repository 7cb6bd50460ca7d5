"""Tensors that follow from weights alone."""
from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class _Made(NamedTuple):
    sources: list[Tensor]  # copies
    arguments: tuple
    value: Tensor


class Derived:
    """A tensor made of a few of a module's weights, and made again only when they have changed.

    Weights are compared by value: an optimiser's step and a loaded checkpoint count, and so does what writes through
    ``parameter.data``, as averaged weights and merged adapters do. On a GPU a comparison would wait for the device. So
    only inference on a CPU keeps anything; a GPU, training, its validation, autocast and compiled code make the tensor
    each time.
    """

    def __init__(self) -> None:
        self._made: _Made | None = None

    def get(self, sources: Sequence[Tensor], make: Callable[..., Tensor], *arguments: int) -> Tensor:
        """Return ``make(*arguments)``, which follows from ``sources`` and ``arguments`` alone, or its last result."""
        keeps = (torch.is_inference_mode_enabled() and not torch.compiler.is_compiling()
                 and not torch.is_autocast_enabled('cpu') and all(s.device.type == 'cpu' for s in sources))
        if not keeps:
            return make(*arguments)
        made = self._made
        if made is None or made.arguments != arguments or not _same(made.sources, sources):
            with torch.inference_mode(False), torch.no_grad():  # an ordinary tensor: it may outlive this mode
                self._made = made = _Made([s.detach().clone() for s in sources], arguments, make(*arguments))
        return made.value

    def __reduce__(self) -> tuple:
        return Derived, ()  # a copy's weights are others


def _same(before: Sequence[Tensor], now: Sequence[Tensor]) -> bool:
    return all(old.dtype == new.dtype and torch.equal(old, new) for old, new in zip(before, now, strict=True))
