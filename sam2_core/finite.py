"""Detection of NaN and infinite model results, which damaged weights or a too narrow dtype cause."""
from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor


class NotFiniteError(ArithmeticError):
    """Error for a NaN or infinite model result; the message states the value and the cure."""

    names_cure = True


class Result(Protocol):
    """The fields of an object's result that ``not_finite`` reads."""

    @property
    def logits(self) -> Tensor:
        """Logits of the mask."""

    @property
    def iou(self) -> float:
        """Predicted IoU."""

    @property
    def object_score(self) -> float:
        """Logit of the visibility."""


def not_finite(results: Mapping[int, Result]) -> dict[int, NotFiniteError]:
    """Return an error for each object whose logits, IoU or object score are NaN or infinite."""
    if not results:
        return {}
    # A sum propagates NaN and infinity, so one number per object has to be copied to the host.
    sums = torch.stack([item.logits for item in results.values()]).flatten(1).sum(1).tolist()
    return {object_id: not_finite_error(item.iou, item.object_score)
            for (object_id, item), total in zip(results.items(), sums, strict=True)
            if not all(map(math.isfinite, (item.iou, item.object_score, total)))}


def not_finite_error(iou: float, object_score: float) -> NotFiniteError:
    """Return the error for a result with these scores. If both are finite, the logits are not."""
    finite = math.isfinite(iou) and math.isfinite(object_score)
    values = 'logits of the mask' if finite else f'iou {iou:g}, object score {object_score:g}'
    return NotFiniteError(f"the model's result is not finite ({values}): the weights "
                          f'or the dtype cannot be used; run sam2_check, and use bfloat16 or float32 instead of '
                          f'float16')
