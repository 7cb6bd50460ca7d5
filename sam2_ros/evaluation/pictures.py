"""What came out drawn over the images of a recording, beside the truth; and a video of it."""
from __future__ import annotations

import bisect
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from builtin_interfaces.msg import Time

from sam2_core.masks import mask_box
from sam2_ros.conversions import ImageError, to_rgb
from sam2_ros.demo_pictures import captioned, open_video
from sam2_ros.evaluation.recording import Recording, RecordingError, truth_masks
from sam2_ros.evaluation.results import FrameOutput, Run
from sam2_ros.frame import TrackedObject
from sam2_ros.overlay import BLACK, WHITE, colour, draw_overlay

OPACITY = 0.4
CODECS = ('mp4v',)  # what every OpenCV has: the search for others writes alarming lines
VIDEO_WIDTH = 1280  # pixels, at most
SLOWEST, FASTEST = 1.0, 60.0  # images per second of a video


def read_image(recording: Recording, index: int) -> np.ndarray | None:
    """uint8 RGB (H, W, 3); None when it cannot be read."""
    try:
        return to_rgb(recording.image(index))
    except (ImageError, RecordingError):
        return None


def read_truth(recording: Recording, index: int) -> dict[int, np.ndarray]:
    """Masks of an image by id, bool (H, W); empty when it is not annotated or cannot be read."""
    try:
        return truth_masks(recording, index) or {}
    except RecordingError:
        return {}


def draw_output(image: np.ndarray, frame: FrameOutput | None, run: Run) -> np.ndarray:
    """The overlay as the node draws it, on a copy of an image of any size. frame: None: nothing is known."""
    height, width = image.shape[:2]
    objects = []
    for number, item in frame.objects.items() if frame is not None else ():
        mask, box = None, None
        if item.box is not None:
            mask = item.mask(run.height, run.width)
            if mask.shape != (height, width):
                mask = cv2.resize(mask.view(np.uint8), (width, height), interpolation=cv2.INTER_NEAREST).view(bool)
            box = mask_box(mask)
        label = run.labels.get(number, '')
        objects.append(TrackedObject(number, label, item.state, item.score, item.visibility,
                                     Time(), box, mask if box is not None else None))
    return draw_overlay(image, objects, OPACITY)


def draw_truth(image: np.ndarray, masks: dict[int, np.ndarray], white: bool = False) -> np.ndarray:
    """The outlines of the truth in the overlay's colours, or white where these are taken; a copy."""
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
    """overlay.mp4: every image of the recording with what was known when it came, the truth as white outlines.

    In lock-step that is the image's own result; otherwise the newest there was, as somebody on the robot would have
    seen it. Where an image cannot be read, the one before it stands. progress: is told the index of each image. False:
    no image can be read, nothing is written. OSError when OpenCV has no codec.
    """
    rate = 1e9 / float(np.median(np.diff(recording.stamps))) if len(recording.stamps) > 1 else 1.0
    own = {frame.index: frame for frame in run.frames}
    available = [frame.available for frame in run.frames]
    writer, picture = None, None
    try:
        for index in range(len(recording.stamps)):
            if run.mode == 'lock-step':
                frame = own.get(index)
            else:
                done = bisect.bisect_right(available, recording.arrivals[index])
                frame = run.frames[done - 1] if done else None
            drawn = _video_frame(run, recording, index, frame)
            if drawn is not None:
                picture = drawn if picture is None else cv2.resize(drawn, picture.shape[1::-1])
            if picture is not None:
                writer = writer or open_video(path, min(FASTEST, max(SLOWEST, rate)), picture.shape[1::-1], CODECS)
                writer.write(picture)
            progress(index)
    finally:
        if writer is not None:
            writer.release()
    return writer is not None


def _video_frame(run: Run, recording: Recording, index: int, frame: FrameOutput | None) -> np.ndarray | None:
    """BGR, of even size."""
    image = read_image(recording, index)
    if image is None:
        return None
    image = draw_truth(draw_output(image, frame, run), read_truth(recording, index), white=True)
    if image.shape[1] > VIDEO_WIDTH:
        image = cv2.resize(image, None, fx=VIDEO_WIDTH / image.shape[1], fy=VIDEO_WIDTH / image.shape[1],
                           interpolation=cv2.INTER_AREA)
    left = f'{(recording.stamps[index] - recording.stamps[0]) / 1e9:7.2f} s'
    right = f'image {index}'
    if frame is None:
        right += ', no result' + (f': {run.unusable[index]}' if index in run.unusable else '')
    elif frame.index != index:
        right += f', result of {(recording.stamps[index] - frame.stamp) / 1e6:.0f} ms before'
    return cv2.cvtColor(captioned(image, left, right), cv2.COLOR_RGB2BGR)
