"""Clips that a model is trained on, and their packed form on the way to the device."""
from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

MAX_OBJECTS = 8  # per clip: a packed clip has one byte per pixel, one bit per object


class NoUsableData(ValueError):
    """Error for data of which nothing can be read, or nothing shows an object."""


class Clip(NamedTuple):
    """T frames of one scene with exact masks of K objects. Masks may overlap."""

    frames: np.ndarray  # uint8 RGB (T, H, W, 3)
    masks: np.ndarray  # bool (T, K, H, W), the visible parts; empty if the object is not visible
    visible: np.ndarray  # bool (T, K)
    kinds: np.ndarray | None = None  # int (K,): equal for objects that look exactly alike; None: unknown


class PackedClips(NamedTuple):
    """N clips of T square frames, packed for the way to the device."""

    frames: Tensor  # uint8 (N, T, S, S, 3)
    masks: Tensor  # uint8 (N, T, S, S): bit k is the mask of object k


def pack(clips: list[Clip]) -> PackedClips:
    """Pack clips of equal length and size. Of each, the first ``MAX_OBJECTS`` objects are kept."""
    frames = np.stack([clip.frames for clip in clips])
    masks = np.zeros(frames.shape[:4], np.uint8)
    for packed, clip in zip(masks, clips, strict=True):
        for k in range(min(clip.masks.shape[1], MAX_OBJECTS)):
            packed |= (clip.masks[:, k] & clip.visible[:, k, None, None]).astype(np.uint8) << k
    return PackedClips(torch.from_numpy(frames), torch.from_numpy(masks))


def split(clips: PackedClips, frames: int) -> PackedClips:
    """Split clips into shorter ones of ``frames`` frames. Raises ValueError unless that divides their length."""
    count, length = clips.masks.shape[:2]
    if length % frames:
        raise ValueError(f'clips of {length} frames do not split into clips of {frames}')
    return PackedClips(*(part.reshape(count * length // frames, frames, *part.shape[2:]) for part in clips))
