"""What training reads: clips, and how they travel."""
from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

MAX_OBJECTS = 8  # a clip travels with one byte per pixel, one bit for each object


class NoUsableData(ValueError):
    """None of the data can be read, or shows an object."""


class Clip(NamedTuple):
    """T frames of one scene with K objects, exactly labelled. Masks may overlap."""

    frames: np.ndarray  # uint8 RGB (T, H, W, 3)
    masks: np.ndarray  # bool (T, K, H, W), the visible part; empty where the object is not visible
    visible: np.ndarray  # bool (T, K)
    kinds: np.ndarray | None = None  # int (K,): objects that look exactly alike are of one kind; None: not known


class PackedClips(NamedTuple):
    """N clips of T frames, square, as they travel to the device."""

    frames: Tensor  # uint8 (N, T, S, S, 3)
    masks: Tensor  # uint8 (N, T, S, S): bit k is the mask of object k


def pack(clips: list[Clip]) -> PackedClips:
    """Clips of equal length and size, with at most ``MAX_OBJECTS`` objects each (more are left out)."""
    frames = np.stack([clip.frames for clip in clips])
    masks = np.zeros(frames.shape[:4], np.uint8)
    for packed, clip in zip(masks, clips, strict=True):
        for k in range(min(clip.masks.shape[1], MAX_OBJECTS)):
            packed |= (clip.masks[:, k] & clip.visible[:, k, None, None]).astype(np.uint8) << k
    return PackedClips(torch.from_numpy(frames), torch.from_numpy(masks))


def split(clips: PackedClips, frames: int) -> PackedClips:
    """The same frames as more, shorter clips of ``frames`` frames; raises ValueError where that does not come out."""
    count, length = clips.masks.shape[:2]
    if length % frames:
        raise ValueError(f'clips of {length} frames do not split into clips of {frames}')
    return PackedClips(*(part.reshape(count * length // frames, frames, *part.shape[2:]) for part in clips))
