"""Videos of SA-V, 24 frames/s with masks at 6 frames/s.

    DIR/.../sav_000001.mp4   sav_000001_manual.json   sav_000001_auto.json     one or both of the JSON files

In the JSON, ``masklet[frame][object]`` is a run-length mask; the frames of the video in between are not labelled.
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
STEP, RATE = 4, 6  # every fourth frame is annotated, six per second


def matches(folder: Path) -> bool:
    """Return whether the folder has this layout."""
    return any(path.name.lower().endswith(_KINDS) and not path.name.startswith('.')
               for place in folders_below(folder, lambda path, reason: None) for path in place.iterdir())


def find(folder: Path, skipped: SkippedFiles) -> list[SavMasklets]:
    """Return a recording for every JSON file with a video beside it."""
    files = files_below(folder, (*_KINDS, VIDEO), skipped.skip)
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
            skipped.skip(video, f'no {video.stem}{_KINDS[0]} or {video.stem}{_KINDS[1]} beside it')
    return recordings


def video_of(path: Path) -> Path:
    """Return the video beside a JSON file. Raises BrokenSample if there is none."""
    stem = path.stem.rsplit('_', 1)[0]
    for suffix in (VIDEO, VIDEO.upper()):
        if (video := path.with_name(stem + suffix)).exists():
            return video
    raise BrokenSample(path, f'no video {stem}{VIDEO} beside it')


class MaskletFrames(NamedTuple):
    """Content of a JSON file."""

    frames: list[list[dict]]  # run lengths [annotated frame][object]
    step: int  # frames of the video per annotated frame
    doubt: str  # disagreement between JSON and video; empty if there is none

    def size(self) -> tuple[int, int] | None:
        """Return the height and width of the first mask, or None if there is no mask."""
        return next(((int(runs['size'][0]), int(runs['size'][1])) for frame in self.frames for runs in frame
                     if runs and 'size' in runs), None)


@lru_cache(maxsize=8)  # a JSON file has some megabytes
def load_masklets(path: Path, video: Path) -> MaskletFrames:
    """Read a JSON file and compare it with its video. Raises BrokenSample if its masks cannot be assigned to frames."""
    try:
        content = json.loads(path.read_bytes())
        frames, claimed = content['masklet'], float(content['video_frame_count'])
        if not isinstance(frames, list) or not all(isinstance(frame, list) for frame in frames) or not frames:
            raise ValueError('masklet is not a list of frames')
        masklets = MaskletFrames(frames, 1, '')
        masklets.size()
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise BrokenSample(path, f'not an SA-V annotation ({type(error).__name__}: {error})') from error
    lengths = {len(frame) for frame in frames} - {0}  # an empty frame shows no object
    if len(lengths) > 1:
        raise BrokenSample(path, f'lists {min(lengths)} masks in one frame and {max(lengths)} in another: which object '
                                 f'has no mask is unknown')
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
    """Return the number of frames of a video per annotated frame, 4 in SA-V. Raises ValueError if none fits.

    The first frame is annotated, and so is every frame after it at this step.
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
    """Masklets of one JSON file with the frames of its video."""

    def __init__(self, path: Path, video: Path, frames: int) -> None:
        self.name, self.path, self.video, self.frames = str(path), path, video, frames

    def __len__(self) -> int:
        return self.frames

    def read(self, frames: Sequence[int]) -> Labelled:
        """Return these annotated frames with the objects of the file. Raises BrokenSample."""
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
    """Return one mask of ``load_masklets``, bool of this size (height, width). Raises BrokenSample."""
    try:
        height, width = (int(side) for side in runs['size'])
        mask = run_length.decode(runs['counts'], height, width)
    except (ValueError, KeyError, TypeError) as error:
        raise BrokenSample(path, f'frame {frame}: {error}') from error
    if mask.shape != size:
        raise BrokenSample(path, f'masks of {width}x{height} for a video of {size[1]}x{size[0]}')
    return mask


def open_video(path: Path, size: tuple[int, int] | None = None) -> cv2.VideoCapture:
    """Open a video whose annotation has this height and width. Raises BrokenSample.

    A video that players rotate, as its container demands, is rotated if the size fits only then.
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
            raise BrokenSample(path, f'players rotate it by {angle} degrees, and whether the masks were drawn on the '
                                     f'rotated video cannot be known from their size: encode it again, rotated')
        video.set(cv2.CAP_PROP_ORIENTATION_AUTO, 1)
    return video


def frames_and_rate(path: Path) -> tuple[int, float]:
    """Return the number of frames of a video and its frames per second, 0 if unknown. Raises BrokenSample."""
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
    """Return frames of these increasing numbers, uint8 RGB, in the orientation of an annotation of this size.

    The video is decoded from its start, since seeking is not exact in every codec. Raises BrokenSample.
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
