"""Clips of a run, made or read by worker processes while the device computes.

A source of other data needs ``__getitem__(number)`` alone: it returns a chunk, which is a list of ``Clip`` of equal
length and of the model's size. Equal numbers must give equal clips in every process.
"""
from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterator
from typing import Protocol

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from sam2_core.stopping import obey_main_process_only
from sam2_core.training.clips import Clip, NoUsableData, PackedClips, pack
from sam2_core.training.synthetic.scenes import render
from sam2_core.training.synthetic.sprites import ClutterBank
from sam2_core.training.synthetic.textures import TextureBank

TEXTURES = 600
LARGEST_TRAINING_SEED = 999  # larger ones are for validation and benchmarks


class ClipSource(Protocol):
    """Numbered chunks of clips, packed or not."""

    def __getitem__(self, number: int) -> list[Clip] | PackedClips:
        """Return chunk ``number``. Raises NoUsableData if there is nothing to give."""


class SyntheticClips:
    """Synthetic clips of a seed. Seeds up to LARGEST_TRAINING_SEED are for training."""

    def __init__(self, seed: int, frames: int, size: int, chunk: int = 4, textures: int = TEXTURES) -> None:
        """frames: per clip; size: of their sides, pixels; chunk: clips in a chunk; textures: number of textures."""
        self.seed, self.frames, self.size, self.chunk = seed, frames, size, chunk
        self.clutter = ClutterBank(TextureBank(seed, textures))

    def __getitem__(self, number: int) -> PackedClips:
        rendered = [render((self.seed, number * self.chunk + i), self.clutter, self.frames, self.size)
                    for i in range(self.chunk)]
        frames, objects = (torch.from_numpy(np.stack(part)) for part in list(zip(*rendered, strict=True))[:2])
        return PackedClips(frames, torch.where(objects > 0, 1 << (objects - 1).clamp(max=7), 0).byte())  # 1 -> bit 0


class _Packed(Dataset):
    def __init__(self, source: ClipSource) -> None:
        self.source = source

    def __getitem__(self, number: int) -> PackedClips | NoUsableData:
        try:
            chunk = self.source[number]
        except NoUsableData as error:
            return error  # if a reader raised it, the traceback of its process would be part of the text
        return chunk if isinstance(chunk, PackedClips) else pack(chunk)


class _Numbers:
    """Numbers of the chunks that one process reads, in order, from one on."""

    def __init__(self, first: int, rank: int, world: int) -> None:
        self.first, self.rank, self.world = first, rank, world

    def __iter__(self) -> Iterator[int]:
        number = self.first
        while True:
            yield number * self.world + self.rank
            number += 1


def _start_worker(_: int) -> None:
    torch.set_num_threads(1)
    obey_main_process_only()


def _usable(chunk: PackedClips | NoUsableData) -> PackedClips:
    if isinstance(chunk, NoUsableData):
        raise chunk
    return chunk


def batches(source: ClipSource, chunks: int, first_step: int, workers: int, rank: int = 0, world: int = 1,
            echo: int = 1, pin: bool = False) -> Generator[list[PackedClips], None, None]:
    """Yield the chunks of every step from ``first_step`` on, of which ``chunks / echo`` are new.

    The same numbers give the same data. Raises ValueError unless ``chunks`` is a multiple of ``echo``, and
    NoUsableData when the source has no clip to give.
    """
    if chunks % echo:
        raise ValueError(f'chunks {chunks}: must be a multiple of echo {echo}')
    fresh = chunks // echo
    if workers:  # before the fork: OpenCV's threads do not exist in the child, which would wait for them
        cv2.setNumThreads(1)
    loader = DataLoader(_Packed(source), batch_size=None, sampler=_Numbers(first_step * fresh, rank, world),
                        num_workers=workers, pin_memory=pin, prefetch_factor=4 if workers else None,
                        worker_init_fn=_start_worker, multiprocessing_context='fork' if workers else None)
    stream = iter(loader)
    held = deque((_usable(next(stream)) for _ in range(chunks - fresh)), maxlen=chunks)
    while True:
        held.extend([_usable(next(stream)) for _ in range(fresh)])
        yield list(held)


def as_batch(chunks: list[PackedClips], parts: int, device: torch.device) -> PackedClips:
    """Return the chunks of a step as one batch on the device.

    It splits evenly into ``parts``. Each holds the chunks that one process would read if there were ``parts`` of them.
    """
    ordered = [chunk for part in range(parts) for chunk in chunks[part::parts]]
    return PackedClips(*(torch.cat([tensor.to(device, non_blocking=True) for tensor in tensors])
                         for tensors in zip(*ordered, strict=True)))


class Augmentation:
    """Random changes that cost nothing on the device: order and pace of frames, mirroring, colour channels."""

    def __init__(self, rng: np.random.Generator, length: int, frames: int) -> None:
        """length: frames of the clips that are given; frames: of the clips they are split into afterwards."""
        paces = [pace for pace in (1, 2, 4) if frames * pace <= length and frames > 1] or [1]
        pace = int(rng.choice(paces))
        order = np.arange(length).reshape(-1, frames, pace).transpose(0, 2, 1).reshape(-1)
        if rng.random() < 0.5:
            order = order.reshape(-1, frames)[:, ::-1].reshape(-1)
        self.order = torch.from_numpy(order.copy())
        self.channels = torch.from_numpy(rng.permutation(3) if rng.random() < 0.5 else np.arange(3))
        self.flips = [axis for axis in (2, 3) if rng.random() < 0.5]

    def __call__(self, clips: PackedClips) -> PackedClips:
        """Return the changed clips."""
        device = clips.frames.device
        order, channels = self.order.to(device), self.channels.to(device)
        frames, masks = clips.frames[:, order][..., channels], clips.masks[:, order]
        return PackedClips(frames.flip(self.flips), masks.flip(self.flips))
