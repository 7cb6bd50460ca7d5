"""Running a model for inference: without gradients, and in its own floating-point type."""
from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Concatenate, ParamSpec, Protocol, TypeVar

import torch

if TYPE_CHECKING:
    from sam2_core.model import Sam2Model


class _HasModel(Protocol):
    model: Sam2Model


Owner = TypeVar('Owner', bound=_HasModel)
P = ParamSpec('P')
R = TypeVar('R')


def inference(run: Callable[Concatenate[Owner, P], R]) -> Callable[Concatenate[Owner, P], R]:
    """Decorate a method of an object with a ``model``: run it without gradients, in the model's own type."""

    @functools.wraps(run)
    def without_gradients(self: Owner, /, *arguments: P.args, **options: P.kwargs) -> R:
        with torch.inference_mode(), own_precision(self.model):
            return run(self, *arguments, **options)

    return without_gradients


def own_precision(model: Sam2Model) -> AbstractContextManager[object]:
    """Return a context that disables an active autocast, unless the model is float32.

    A model in half precision computes in its own type already; autocast to another type would mix the two.
    """
    kind = model.device.type
    if model.dtype == torch.float32 or not torch.is_autocast_enabled(kind):
        return nullcontext()
    return torch.autocast(kind, enabled=False)
