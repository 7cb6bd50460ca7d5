"""Tensors that follow from weights alone."""
from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class _Made(NamedTuple):
    sources: list[Tensor]  # they keep their memory: no other weights can come to lie where these did
    versions: list[int]
    arguments: tuple
    value: Tensor


class Derived:
    """A tensor made of a module's weights, and made again only when they have changed.

    Weights are unchanged while they are the same memory in the same version: every change in place counts the version
    up (an optimiser's step, a loaded checkpoint), and a move to another device or type is other memory. What writes
    through ``parameter.data`` is not seen, nor is a CUDA graph that trains: so only inference mode keeps anything, and
    training, its validation, autocast and what is compiled make it each time.
    """

    def __init__(self) -> None:
        self._made: _Made | None = None

    def get(self, sources: Sequence[Tensor], make: Callable[..., Tensor], *arguments: int) -> Tensor:
        """``make(*arguments)``, which follows from ``sources`` and ``arguments`` alone, or what it gave last time."""
        keeps = torch.is_inference_mode_enabled() and not torch.compiler.is_compiling() and not any(
            s.is_inference() or torch.is_autocast_enabled(s.device.type) for s in sources)
        if not keeps:
            return make(*arguments)
        made = self._made
        if made is None or made.arguments != arguments or not _same(made, sources):
            with torch.inference_mode(False), torch.no_grad():  # an ordinary tensor: it may outlive this mode
                self._made = made = _Made([s.detach() for s in sources], [s._version for s in sources], arguments,
                                          make(*arguments))
        return made.value

    def __reduce__(self) -> tuple:
        return Derived, ()  # a copy's weights are others


def _same(made: _Made, sources: Sequence[Tensor]) -> bool:
    return all(old.data_ptr() == new.data_ptr() and old.dtype == new.dtype and version == new._version
               for old, new, version in zip(made.sources, sources, made.versions, strict=True))
