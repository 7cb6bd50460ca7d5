"""The clips of a run, made or read by worker processes while the device computes.

The seam for other data: anything with ``__getitem__(number) -> list[Clip]`` (a chunk of clips, equally long and of the
model's size) where equal numbers give equal clips, whatever process asks.
"""
from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from sam2_core.training.clips import Clip, PackedClips, pack
from sam2_core.training.scenes import make_clip
from sam2_core.training.textures import TextureBank

TEXTURES = 1500


class ClipSource(Protocol):
    """Numbered chunks of clips."""

    def __getitem__(self, number: int) -> list[Clip]: ...


class SyntheticClips:
    """Scenes from a seed. Seeds below 1000 are for training, those above for validation and benchmarks."""

    def __init__(self, seed: int, frames: int, size: int, chunk: int = 4, textures: int = TEXTURES) -> None:
        self.seed, self.frames, self.size, self.chunk = seed, frames, size, chunk
        self.bank = TextureBank(seed, textures)

    def __getitem__(self, number: int) -> list[Clip]:
        return [make_clip((self.seed, number * self.chunk + i), self.bank, self.frames, self.size)
                for i in range(self.chunk)]


class _Packed(Dataset):
    def __init__(self, source: ClipSource) -> None:
        self.source = source

    def __getitem__(self, number: int) -> PackedClips:
        return pack(self.source[number])


class _Numbers:
    """The chunk numbers one rank reads, in order, from a step on."""

    def __init__(self, first_step: int, chunks: int, rank: int, world: int) -> None:
        self.first_step, self.chunks, self.rank, self.world = first_step, chunks, rank, world

    def __iter__(self) -> Iterator[int]:
        step = self.first_step
        while True:
            first = (step * self.world + self.rank) * self.chunks
            yield from range(first, first + self.chunks)
            step += 1


def _start_worker(_: int) -> None:
    cv2.setNumThreads(1)
    torch.set_num_threads(1)


def batches(source: ClipSource, chunks: int, first_step: int, workers: int, rank: int = 0, world: int = 1,
            pin: bool = False) -> Iterator[list[PackedClips]]:
    """For every step from ``first_step`` on its ``chunks`` chunks. The same numbers give the same data."""
    loader = DataLoader(_Packed(source), batch_size=None, sampler=_Numbers(first_step, chunks, rank, world),
                        num_workers=workers, pin_memory=pin, prefetch_factor=4 if workers else None,
                        worker_init_fn=_start_worker, multiprocessing_context='fork' if workers else None)
    stream = iter(loader)
    while True:
        yield [next(stream) for _ in range(chunks)]


class Augmentation:
    """What can be changed on the device for nothing: order and pace of frames, mirroring, colour channels."""

    def __init__(self, rng: np.random.Generator, length: int, frames: int) -> None:
        paces = [pace for pace in (1, 2, 4) if frames * pace <= length and frames > 1] or [1]
        pace = int(rng.choice(paces))
        order = np.arange(length).reshape(-1, frames, pace).transpose(0, 2, 1).reshape(-1)
        if rng.random() < 0.5:
            order = order.reshape(-1, frames)[:, ::-1].reshape(-1)
        self.order = torch.from_numpy(order.copy())
        self.channels = torch.from_numpy(rng.permutation(3) if rng.random() < 0.5 else np.arange(3))
        self.flips = [axis for axis in (2, 3) if rng.random() < 0.5]

    def __call__(self, clips: PackedClips) -> PackedClips:
        device = clips.frames.device
        order, channels = self.order.to(device), self.channels.to(device)
        frames, masks = clips.frames[:, order][..., channels], clips.masks[:, order]
        return PackedClips(frames.flip(self.flips), masks.flip(self.flips)) if self.flips else PackedClips(frames, masks)
