"""The clips of a run, made or read by worker processes while the device computes.

The seam for other data: anything with ``__getitem__(number)`` that gives a list of ``Clip`` (a chunk of clips, equally
long and of the model's size), where equal numbers give equal clips, whatever process asks.
"""
from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Protocol

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from sam2_core.training.clips import Clip, NoUsableData, PackedClips, pack
from sam2_core.training.stopping import obey_main_process_only
from sam2_core.training.synthetic.scenes import render
from sam2_core.training.synthetic.sprites import ClutterBank
from sam2_core.training.synthetic.textures import TextureBank

TEXTURES = 600
LARGEST_TRAINING_SEED = 999  # those above are for validation and benchmarks


class ClipSource(Protocol):
    """Numbered chunks of clips, packed or not."""

    def __getitem__(self, number: int) -> list[Clip] | PackedClips: ...


class SyntheticClips:
    """Scenes from a seed. Seeds up to LARGEST_TRAINING_SEED are for training."""

    def __init__(self, seed: int, frames: int, size: int, chunk: int = 4, textures: int = TEXTURES) -> None:
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
            return error  # raised by a reader, the traceback of its process would be part of the text
        return chunk if isinstance(chunk, PackedClips) else pack(chunk)


class _Numbers:
    """The chunk numbers one rank reads, in order, from one on."""

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
            echo: int = 1, pin: bool = False) -> Iterator[list[PackedClips]]:
    """For every step from ``first_step`` on its ``chunks`` chunks, of which ``chunks / echo`` are new.

    The same numbers give the same data. ValueError when ``chunks`` is not a multiple of ``echo``, NoUsableData when the
    source has no clip to give.
    """
    if chunks % echo:
        raise ValueError(f'chunks {chunks}: must be a multiple of echo {echo}')
    fresh = chunks // echo
    if workers:  # before they are forked: OpenCV's threads would be missing there, and waited for
        cv2.setNumThreads(1)
    loader = DataLoader(_Packed(source), batch_size=None, sampler=_Numbers(first_step * fresh, rank, world),
                        num_workers=workers, pin_memory=pin, prefetch_factor=4 if workers else None,
                        worker_init_fn=_start_worker, multiprocessing_context='fork' if workers else None)
    stream = iter(loader)
    held = deque((_usable(next(stream)) for _ in range(chunks - fresh)), maxlen=chunks)
    while True:
        held.extend([_usable(next(stream)) for _ in range(fresh)])
        yield list(held)


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
        return PackedClips(frames.flip(self.flips), masks.flip(self.flips))
