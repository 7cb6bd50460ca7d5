"""Results of the model that are NaN or infinite, as those of damaged weights or of too narrow a dtype."""
from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor


class NotFiniteError(ArithmeticError):
    """A result of the model is NaN or infinite; the text names the value and the cure."""

    names_cure = True


class Result(Protocol):
    """What ``not_finite`` looks at in the result of one object."""

    logits: Tensor
    iou: float
    object_score: float


def not_finite(results: Mapping[int, Result]) -> dict[int, NotFiniteError]:
    """Return an error for each object whose logits, IoU or object score are NaN or infinite."""
    if not results:
        return {}
    # NaN and infinity pass through a sum: one copy of one number per object to the host is enough
    sums = torch.stack([item.logits for item in results.values()]).flatten(1).sum(1).tolist()
    return {object_id: not_finite_error(item.iou, item.object_score)
            for (object_id, item), total in zip(results.items(), sums, strict=True)
            if not all(map(math.isfinite, (item.iou, item.object_score, total)))}


def not_finite_error(iou: float, object_score: float) -> NotFiniteError:
    """Return the error for a result with these scores; if both are finite, its logits are not."""
    finite = math.isfinite(iou) and math.isfinite(object_score)
    values = 'logits of the mask' if finite else f'iou {iou:g}, object score {object_score:g}'
    return NotFiniteError(f"the model's result is not finite ({values}): the weights "
                          f'or the dtype cannot be used; run sam2_check, and with dtype float16 take bfloat16 or '
                          f'float32')
