"""Records of tensors that pass between a model, the memory of its objects and a tracker.

S is ``image_size``, B the number of objects (or images), and all names are those of the SAM 2 paper (arXiv 2408.00714,
section 4).
"""
from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from sam2_core.memory_policy import MemoryPolicy

ABSENT_LOGIT = -1024.0  # mask logits of an object that is not visible
MEMORY_DTYPE = torch.bfloat16  # of stored memory frames, as in the published tracker, whatever the model computes in


class ImageFeatures(NamedTuple):
    """Features of B encoded images, with the decoder's projections of strides 4 and 8 applied."""

    stride16_bchw: Tensor  # (B, d_model, S / 16, S / 16)
    stride8_bchw: Tensor  # (B, d_model / 4, S / 8, S / 8)
    stride4_bchw: Tensor  # (B, d_model / 8, S / 4, S / 4)


class Memory(NamedTuple):
    """Memories of B objects as one batch: F frames and P object pointers each.

    The two masks mark filler rows, which pad shorter memories to the common length. Without them, all rows exist.
    """

    frames: Tensor  # (B, F, tokens, memory_dim)
    time_slots: Tensor  # int64 (B, F): 0 for the last frame, ... memory_frames - 1 for a conditioning frame
    pointers: Tensor  # (B, P, d_model)
    pointer_ages: Tensor  # (B, P), frames, int64 or float32; if integers, at most config.max_pointer_distance
    frames_exist: Tensor | None = None  # bool (B, F), False for filler rows; None if all rows exist
    pointers_exist: Tensor | None = None  # bool (B, P), likewise


class ObjectMasks(NamedTuple):
    """One mask for each of B objects, with the object pointers for their memories."""

    logits: Tensor  # float32 (B, S / 4, S / 4); ABSENT_LOGIT everywhere if the object is not visible
    iou: Tensor  # float32 (B,), predicted, 0..1
    object_score: Tensor  # float32 (B,), logit, > 0: visible
    pointers: Tensor  # (B, d_model)


class Stages(Protocol):
    """Stages of a model that run for every image of a stream."""

    def encode_image(self, images_bchw: Tensor) -> ImageFeatures:
        """Encode normalised images (B, 3, S, S)."""

    def track_objects(self, image: ImageFeatures, memory: Memory) -> tuple[Tensor, ObjectMasks]:
        """Return conditioned features (B, d_model, S / 16, S / 16) and masks of B objects in one image."""

    def track_candidates(self, image: ImageFeatures, memory: Memory) -> tuple[Tensor, ObjectMasks, Tensor]:
        """Track as ``track_objects`` does; return also the logits (B, M, S / 4, S / 4) that the masks are chosen of."""

    def encode_memory(self, image: ImageFeatures, masks: ObjectMasks, prompted: Tensor) -> Tensor:
        """Return one memory frame (B, tokens, memory_dim) for each of B objects; ``prompted``: bool (B,)."""


class StaticStages(Stages, Protocol):
    """Stages that run fast for a few shapes only: trackers pad memories to one of two lengths for them."""

    def warm_up(self, objects: int, max_conditioning_frames: int = 4, recent_frames: Iterable[int | None] = (None,),
                show: Callable[[str], None] = ..., memory_policy: str | MemoryPolicy = ...) -> None:
        """Prepare all shapes that up to ``objects`` objects need."""
