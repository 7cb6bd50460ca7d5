"""Run a model for its answers: without gradients, and in its own number type."""
from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from sam2_core.model import Sam2Model


def inference(run: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate a method of an object with a ``model``: run it without gradients, in the model's own number type."""

    @functools.wraps(run)
    def without_gradients(self: Any, *arguments: Any, **options: Any) -> Any:
        with torch.inference_mode(), own_precision(self.model):
            return run(self, *arguments, **options)

    return without_gradients


def own_precision(model: Sam2Model) -> AbstractContextManager:
    """Return a context in which autocast around the caller serves float32 models only.

    A model loaded in half precision computes in that type already: autocast to another one would mix the two.
    """
    kind = model.device.type
    if model.dtype == torch.float32 or not torch.is_autocast_enabled(kind):
        return nullcontext()
    return torch.autocast(kind, enabled=False)
