"""Outputs of a run drawn on the images of its recording, beside the truth, and a video of them."""
from __future__ import annotations

import bisect
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from builtin_interfaces.msg import Time

from sam2_core.drawing.overlay import BLACK, WHITE, colour
from sam2_core.drawing.video import VideoFile, captioned
from sam2_ros.drawing.overlay import draw_overlay
from sam2_ros.evaluation.results import FrameOutput, Mode, Run
from sam2_ros.messages.conversions import ImageError, to_rgb
from sam2_ros.perception.frame import TrackedObject
from sam2_ros.recordings.recording import Recording, RecordingError, truth_masks

OPACITY = 0.4
CODECS = ('mp4v',)  # part of every OpenCV; the search for other codecs prints alarming lines
VIDEO_WIDTH = 1280  # pixels, at most
SLOWEST, FASTEST = 1.0, 60.0  # pictures per second of a video


def read_image(run: Run, recording: Recording, index: int) -> np.ndarray | None:
    """Return an image of a run as the model saw it, uint8 RGB (H, W, 3), or None if it cannot be read."""
    try:
        return to_rgb(recording.image(index), run.intensity_of(index))
    except (ImageError, RecordingError):
        return None


def read_truth(recording: Recording, index: int) -> dict[int, np.ndarray]:
    """Return the true masks of an image by id, bool (H, W); empty if it has none or they cannot be read."""
    try:
        return truth_masks(recording, index) or {}
    except RecordingError:
        return {}


def draw_output(image: np.ndarray, frame: FrameOutput | None, run: Run) -> np.ndarray:
    """Draw the overlay as the node does, on a copy of an image of any size.

    Args:
        image: Image, uint8 RGB (H, W, 3).
        frame: Output to draw, scaled to the image; None if there is none.
        run: Run that the output belongs to.
    """
    height, width = image.shape[:2]
    objects = []
    if frame is not None:
        for number, output in frame.objects.items():
            item = output.resized(run.size_of(frame), (height, width))
            objects.append(TrackedObject(number, run.labels.get(number, ''), item.state, item.score, item.visibility,
                                         Time(), item.box, item.mask(height, width) if item.box is not None else None))
    return draw_overlay(image, objects, OPACITY)


def draw_truth(image: np.ndarray, masks: dict[int, np.ndarray], white: bool = False) -> np.ndarray:
    """Draw the truth on a copy of an image.

    Args:
        image: Image, uint8 RGB (H, W, 3).
        masks: Masks by object id, bool (H, W). One of another size is ignored.
        white: True draws white outlines only, for an image that has the colours of the overlay already.
    """
    canvas = image.copy()
    width = max(1, round(canvas.shape[0] / 360))
    for number, mask in masks.items():
        if mask.shape != canvas.shape[:2]:
            continue
        outlines, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
        if not white:
            inside = np.empty_like(canvas)
            inside[:] = colour(number)
            np.copyto(canvas, cv2.addWeighted(canvas, 1 - OPACITY, inside, OPACITY, 0), where=mask[..., None])
            cv2.drawContours(canvas, outlines, -1, BLACK, width + 2, cv2.LINE_AA)
        cv2.drawContours(canvas, outlines, -1, WHITE if white else colour(number), width, cv2.LINE_AA)
    return canvas


def write_video(run: Run, recording: Recording, path: Path,
                progress: Callable[[int], None] = lambda index: None) -> bool:
    """Write every image of a recording with the output that was available when it arrived, and the truth in white.

    In lock-step this is the output of the image itself, otherwise the newest one, as an operator of the robot would
    have seen it. An image that cannot be read repeats the picture before. The video has the size of the first image;
    images of another size are scaled to fit, with black bars.

    Args:
        run: Run to draw.
        recording: Recording of the run.
        path: Video file to write, .mp4.
        progress: Function that is called with the index of each image.

    Returns:
        Whether a video was written: False if no image can be read.

    Raises:
        OSError: OpenCV has no codec.
    """
    rate = 1e9 / float(np.median(np.diff(recording.stamps))) if len(recording.stamps) > 1 else 1.0
    own = {frame.index: frame for frame in run.frames}
    available = [frame.available for frame in run.frames]
    picture: np.ndarray | None = None
    size: tuple[int, int] | None = None
    with VideoFile(path, min(FASTEST, max(SLOWEST, rate)), CODECS) as video:
        for index in range(len(recording.stamps)):
            if run.mode == Mode.LOCK_STEP:
                frame = own.get(index)
            else:
                done = bisect.bisect_right(available, recording.arrivals[index])
                frame = run.frames[done - 1] if done else None
            image = read_image(run, recording, index)
            if image is not None:
                size = size or _video_size(image)
                picture = _picture(run, recording, index, frame, image, size)
            if picture is not None:
                video.write(picture)
            progress(index)
    return video.written


def _video_size(image: np.ndarray) -> tuple[int, int]:
    """Return height and width of images in the video, from the first one."""
    height, width = image.shape[:2]
    scale = min(1.0, VIDEO_WIDTH / width)
    return max(1, round(scale * height)), max(1, round(scale * width))


def _fitted(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Scale an image to fit into height and width, centred between black bars."""
    scale = min(size[0] / image.shape[0], size[1] / image.shape[1])
    height, width = (max(1, min(limit, round(scale * side)))
                     for side, limit in zip(image.shape[:2], size, strict=True))
    if image.shape[:2] != (height, width):
        image = cv2.resize(image, (width, height),
                           interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    if size == (height, width):
        return image
    canvas = np.zeros((*size, 3), np.uint8)
    y, x = (size[0] - height) // 2, (size[1] - width) // 2
    canvas[y:y + height, x:x + width] = image
    return canvas


def _picture(run: Run, recording: Recording, index: int, frame: FrameOutput | None, image: np.ndarray,
             size: tuple[int, int]) -> np.ndarray:
    """Return one picture of the video, uint8 RGB; ``size`` is height and width of the image in it."""
    image = _fitted(draw_truth(draw_output(image, frame, run), read_truth(recording, index), white=True), size)
    left = f'{(recording.stamps[index] - recording.stamps[0]) / 1e9:7.2f} s'
    right = f'image {index}'
    if frame is None:
        right += ', no result' + (f': {run.unusable[index]}' if index in run.unusable else '')
    elif frame.index != index:
        right += f', result is {(recording.stamps[index] - frame.stamp) / 1e6:.0f} ms older'
    return captioned(image, left, right)
