"""SA-V: videos of 24 frames/s with masks at 6 frames/s.

    DIR/.../sav_000001.mp4   sav_000001_manual.json   sav_000001_auto.json     either or both of the two

In the JSON, ``masklet[frame][object]`` is a run-length mask; frames of the video in between are not labelled.
"""
from __future__ import annotations

import json
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from sam2_core.datasets import run_length
from sam2_core.datasets.recordings import BrokenSample, Labelled, SkippedFiles, same_sizes
from sam2_core.files import files_below, folders_below

_KINDS, VIDEO = ('_manual.json', '_auto.json'), '.mp4'
STEP, RATE = 4, 6  # one of four frames is annotated, six a second


def matches(folder: Path) -> bool:
    """Tell whether the folder has this layout."""
    return any(path.name.lower().endswith(_KINDS) and not path.name.startswith('.')
               for place in folders_below(folder, lambda path, reason: None) for path in place.iterdir())


def find(folder: Path, skipped: SkippedFiles) -> list[SavMasklets]:
    """Return every JSON file with a video beside it."""
    files = files_below(folder, (*_KINDS, VIDEO), skipped.leave_out)
    recordings, used = [], set()
    for path in files:
        if path.name.lower().endswith(VIDEO):
            continue
        try:
            video = video_of(path)
            used.add(video)
            masklets = load_masklets(path, video)
        except BrokenSample as error:
            skipped.add(error)
            continue
        if masklets.doubt:
            skipped.doubt(path, masklets.doubt)
        recordings.append(SavMasklets(path, video, len(masklets.frames)))
    for video in files:
        if video.name.lower().endswith(VIDEO) and video not in used:
            skipped.leave_out(video, f'no {video.stem}{_KINDS[0]} or {video.stem}{_KINDS[1]} beside it')
    return recordings


def video_of(path: Path) -> Path:
    """Return the video beside a JSON file. BrokenSample."""
    stem = path.stem.rsplit('_', 1)[0]
    for suffix in (VIDEO, VIDEO.upper()):
        if (video := path.with_name(stem + suffix)).exists():
            return video
    raise BrokenSample(path, f'no video {stem}{VIDEO} beside it')


class MaskletFrames(NamedTuple):
    """Content of a JSON file."""

    frames: list[list[dict]]  # run lengths [annotated frame][object]
    step: int  # frames of the video from one annotated frame to the next
    doubt: str  # empty, or what does not quite agree

    def size(self) -> tuple[int, int] | None:
        """Height and width of the masks, of the first of them; None where there is no mask."""
        return next(((int(runs['size'][0]), int(runs['size'][1])) for frame in self.frames for runs in frame
                     if runs and 'size' in runs), None)


@lru_cache(maxsize=8)  # a JSON file is some megabytes
def load_masklets(path: Path, video: Path) -> MaskletFrames:
    """Read a JSON file and hold what it says of its video against the video. BrokenSample."""
    try:
        content = json.loads(path.read_bytes())
        frames, claimed = content['masklet'], float(content['video_frame_count'])
        if not isinstance(frames, list) or not all(isinstance(frame, list) for frame in frames) or not frames:
            raise ValueError('masklet is not a list of frames')
        masklets = MaskletFrames(frames, 1, '')
        masklets.size()
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise BrokenSample(path, f'not an SA-V annotation ({type(error).__name__}: {error})') from error
    lengths = {len(frame) for frame in frames} - {0}  # empty: no object is in sight
    if len(lengths) > 1:
        raise BrokenSample(path, f'lists {min(lengths)} masks in one frame and {max(lengths)} in another: which object '
                                 f'has none cannot be known')
    present, rate = frames_and_rate(video)
    try:
        step = annotation_step(len(frames), present)
        if claimed != present and step != annotation_step(len(frames), claimed):
            raise ValueError('the masks would lie on other frames')
    except ValueError as error:
        raise BrokenSample(path, f'{len(frames)} annotated frames of {claimed:g} (video_frame_count), and '
                                 f'{video.name} has {present}: {error}') from None
    doubt = ''
    if claimed != present:
        doubt = (f'video_frame_count is {claimed:g}, {video.name} has {present} frames: if frames are missing at its '
                 f'start, the masks are late by as many')
    elif len(frames) > 1 and rate > 0 and not 0.9 < rate / step / RATE < 1.1:
        doubt = f'one of {step} frames is annotated, {rate / step:.2g} a second of {video.name}; SA-V has {RATE}'
    return MaskletFrames(frames, step, doubt)


def annotation_step(annotated: int, frames: float) -> int:
    """Return how many frames of a video lie from one annotated frame to the next: 4 in SA-V. ValueError.

    The first frame is annotated, and none is left at the end that could be.
    """
    if annotated == 1 and frames >= 1:
        return 1
    if not (frames >= annotated and frames == int(frames)):
        raise ValueError('no even step fits')
    low, high = -(-int(frames) // annotated), (int(frames) - 1) // (annotated - 1)
    if low <= STEP <= high:
        return STEP
    if low != high:
        raise ValueError('no even step fits' if low > high else f'any step from {low} to {high} fits')
    return low


class SavMasklets:
    """The masklets of one JSON file over its video."""

    def __init__(self, path: Path, video: Path, frames: int) -> None:
        self.name, self.path, self.video, self.frames = str(path), path, video, frames

    def __len__(self) -> int:
        return self.frames

    def read(self, frames: Sequence[int]) -> Labelled:
        """Objects are those of the file."""
        masklets = load_masklets(self.path, self.video)
        images = read_video(self.video, [i * masklets.step for i in frames], masklets.size())
        objects = max(len(masklets.frames[i]) for i in frames)
        masks = []
        for i, image in zip(frames, images, strict=True):
            found = np.zeros((objects, *image.shape[:2]), bool)
            for k, runs in enumerate(masklets.frames[i]):
                if runs and runs.get('counts'):
                    found[k] = masklet_mask(runs, self.path, i, image.shape[:2])
            masks.append(found)
        return same_sizes(self.path, Labelled(images, masks))


def masklet_mask(runs: dict, path: Path, frame: int, size: tuple[int, int]) -> np.ndarray:
    """One mask of ``load_masklets``, bool of this size (height, width). BrokenSample."""
    try:
        height, width = (int(side) for side in runs['size'])
        mask = run_length.decode(runs['counts'], height, width)
    except (ValueError, KeyError, TypeError) as error:
        raise BrokenSample(path, f'frame {frame}: {error}') from error
    if mask.shape != size:
        raise BrokenSample(path, f'masks of {width}x{height} for a video of {size[1]}x{size[0]}')
    return mask


def open_video(path: Path, size: tuple[int, int] | None = None) -> cv2.VideoCapture:
    """Open a video whose annotation has this height and width. BrokenSample.

    A video that players rotate, as its container says, is rotated where the size fits only so.
    """
    video = cv2.VideoCapture(str(path))
    if not video.isOpened():
        raise BrokenSample(path, 'not a video that can be decoded')
    video.set(cv2.CAP_PROP_ORIENTATION_AUTO, 0)
    angle = round(video.get(cv2.CAP_PROP_ORIENTATION_META)) % 360
    stored = round(video.get(cv2.CAP_PROP_FRAME_HEIGHT)), round(video.get(cv2.CAP_PROP_FRAME_WIDTH))
    shown = stored[::-1] if angle % 180 else stored
    if angle and size == shown:
        if size == stored:
            raise BrokenSample(path, f'players rotate it by {angle} degrees, and whether the masks were drawn on what '
                                     f'they show cannot be known from their size: encode it again, rotated')
        video.set(cv2.CAP_PROP_ORIENTATION_AUTO, 1)
    return video


def frames_and_rate(path: Path) -> tuple[int, float]:
    """Return the number of frames of a video and how many a second has, as far as its container tells. BrokenSample."""
    video = open_video(path)
    try:
        count = round(video.get(cv2.CAP_PROP_FRAME_COUNT))
        if count <= 0:
            count = 0
            while video.grab():
                count += 1
        return count, video.get(cv2.CAP_PROP_FPS)
    finally:
        video.release()


def read_video(path: Path, numbers: Sequence[int], size: tuple[int, int] | None) -> list[np.ndarray]:
    """Return frames of these increasing numbers, uint8 RGB, as the annotation of this height and width was drawn.

    Decoded from the start: seeking is not exact in every codec. BrokenSample.
    """
    video = open_video(path, size)
    try:
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
