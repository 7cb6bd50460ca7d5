"""SA-V: videos of 24 frames/s with masks at 6 frames/s.

    DIR/.../sav_000001.mp4   sav_000001_manual.json   sav_000001_auto.json     either or both of the two

In the JSON, ``masklet[frame][object]`` is a run-length mask; frames of the video in between are not labelled.
"""
from __future__ import annotations

import json
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np

from sam2_core.training.datasets import run_lengths
from sam2_core.training.datasets.recordings import BrokenSample, Labelled, SkippedFiles, same_sizes

_KINDS = ('_manual', '_auto')


def matches(folder: Path) -> bool:
    """Does the folder have this layout?"""
    return any(next(folder.rglob(f'*{kind}.json'), None) for kind in _KINDS)


def find(folder: Path, skipped: SkippedFiles) -> list[SavMasklets]:
    """Every JSON file with a video beside it."""
    recordings = []
    for path in sorted(path for kind in _KINDS for path in folder.rglob(f'*{kind}.json')):
        video = path.with_name(path.stem.rsplit('_', 1)[0] + '.mp4')
        if not video.exists():
            skipped.add(BrokenSample(path, f'no video {video.name} beside it'))
            continue
        try:
            masklets, _ = load_masklets(path)
        except BrokenSample as error:
            skipped.add(error)
            continue
        recordings.append(SavMasklets(path, video, len(masklets)))
    return recordings


@lru_cache(maxsize=8)  # a JSON file is some megabytes
def load_masklets(path: Path) -> tuple[list[list[dict]], int]:
    """Run lengths [frame][object], and how many frames of the video one step is. BrokenSample."""
    try:
        content = json.loads(path.read_bytes())
        masklets = content['masklet']
        step = max(1, round((float(content['video_frame_count']) - 1) / max(1, len(masklets) - 1)))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BrokenSample(path, f'not an SA-V annotation ({type(error).__name__}: {error})') from error
    if not isinstance(masklets, list) or not all(isinstance(frame, list) for frame in masklets):
        raise BrokenSample(path, 'not an SA-V annotation: masklet is not a list of frames')
    return masklets, step


class SavMasklets:
    """The masklets of one JSON file over its video."""

    def __init__(self, path: Path, video: Path, frames: int) -> None:
        self.name, self.path, self.video, self.frames = str(path), path, video, frames

    def __len__(self) -> int:
        return self.frames

    def read(self, frames: Sequence[int]) -> Labelled:
        masklets, step = load_masklets(self.path)
        images = read_video(self.video, [i * step for i in frames])
        objects = max(len(masklets[i]) for i in frames)
        masks = []
        for i, image in zip(frames, images, strict=True):
            found = np.zeros((objects, *image.shape[:2]), bool)
            for k, runs in enumerate(masklets[i]):
                if runs and runs.get('counts'):
                    found[k] = masklet_mask(runs, self.path, i, image.shape[:2])
            masks.append(found)
        return same_sizes(self.path, Labelled(images, masks))


def masklet_mask(runs: dict, path: Path, frame: int, size: tuple[int, int]) -> np.ndarray:
    """One mask of ``load_masklets``, bool of this size (height, width). BrokenSample."""
    try:
        height, width = (int(side) for side in runs['size'])
        mask = run_lengths.decode(runs['counts'], height, width)
    except (ValueError, KeyError, TypeError) as error:
        raise BrokenSample(path, f'frame {frame}: {error}') from error
    if mask.shape != size:
        raise BrokenSample(path, f'masks of {width}x{height} for a video of {size[1]}x{size[0]}')
    return mask


def read_video(path: Path, numbers: Sequence[int]) -> list[np.ndarray]:
    """Frames of these increasing numbers, uint8 RGB. Decoded from the start: seeking is not exact in every codec."""
    video = cv2.VideoCapture(str(path))
    try:
        if not video.isOpened():
            raise BrokenSample(path, 'not a video that can be decoded')
        images, wanted, at = [], list(numbers), 0
        while wanted:
            if not video.grab():
                raise BrokenSample(path, f'video ends after {at} frames, frame {wanted[0]} is labelled')
            if at == wanted[0]:
                ok, image = video.retrieve()
                if not ok:
                    raise BrokenSample(path, f'frame {at} cannot be decoded')
                images.append(cv2.cvtColor(image, cv2.COLOR_BGR2RGB))
                wanted.pop(0)
            at += 1
        return images
    finally:
        video.release()
