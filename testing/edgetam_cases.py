"""Inputs that tools/edgetam_fixture.py runs with the official EdgeTAM, and test_edgetam.py with sam2_core."""
from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from testing import reference
from testing.comparisons import STREAM, Given

FIXTURE = Path(__file__).parents[1] / 'test' / 'core' / 'parity' / 'edgetam.safetensors'
IMAGE_SIZE = reference.IMAGE_SIZE
FRAMES = 10
ABSENT_FRAMES = range(2, 4)
ABSENT = 'absent'  # name of the stream whose object is invisible in ABSENT_FRAMES
_SAMPLES = {'stream': 1024}  # values stored of a tensor, by the first word of its name; others: _MOST
_MOST = 4096


class AttentionInputs(NamedTuple):
    """Inputs of memory attention for one object: features, memory frames and pointers."""

    features_chw: Tensor
    frames: Tensor  # (F, 512, 64), bfloat16 numbers in float32
    slots: list[int]  # time slot of each frame, 0 for the last frame, 6 for a conditioning frame
    pointers: Tensor  # (P, 256)


def streams() -> dict[str, Mapping[int, Given]]:
    """Return the prompts of one object by frame, by the name of the stream."""
    return {**{str(object_id): given for object_id, given in STREAM.items()}, ABSENT: STREAM[1]}


def scene() -> list[np.ndarray]:
    """Return the frames of all streams."""
    return reference.moving_scene(FRAMES, IMAGE_SIZE, texture=reference.exact_texture)


def memory_map(side: int) -> Tensor:
    """Return output of a memory encoder to compress, (1, 64, side, side)."""
    return _noise(side, 1, 64, side, side)


def attention_inputs() -> AttentionInputs:
    """Return inputs of memory attention: a conditioning frame, two recent frames and three pointers."""
    side = IMAGE_SIZE // 16
    return AttentionInputs(_noise(1, 256, side, side), _noise(2, 3, 512, 64).bfloat16().float(), [6, 1, 0],
                           _noise(3, 3, 256))


def _noise(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def sample(name: str, values: Tensor) -> Tensor:
    """Return the values of a tensor to store: evenly spread, at an odd distance to meet all rows and columns."""
    flat = values.detach().float().flatten()
    return flat[::max(1, flat.numel() // _SAMPLES.get(name.split('.')[0], _MOST)) | 1].contiguous()
