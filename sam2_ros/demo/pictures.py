"""Video and contact sheet of the demo, drawn from the received images and instances alone."""
from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np

from sam2_core.drawing.video import PAPER, VideoFile, captioned
from sam2_ros.demo.recording import RecordedFrame, resized
from sam2_ros.drawing.overlay import STATE_NAMES, draw_overlay
from sam2_ros.msg import Instance

VIDEO_RATE = 30  # frames per second, at most
TILES = 6
COLUMNS = 3
MARGIN = 8  # pixels between tiles
OPACITY = 0.45


def draw(frame: RecordedFrame) -> np.ndarray:
    """Return the overlay of a frame, uint8 RGB, with each object's score or track state."""
    rgb = cv2.cvtColor(frame.picture(), cv2.COLOR_BGR2RGB)
    array = frame.instances
    scale = rgb.shape[1] / array.width
    return draw_overlay(rgb, [resized(item, array.height, array.width, scale) for item in array.instances], OPACITY)


def write_video(path: Path, frames: Sequence[RecordedFrame], start: int, rate: float,
                progress: Callable[[int, int], None]) -> None:
    """Write frames as a video in real time; the last processed frame stays on screen until the next one.

    Args:
        path: Video file to write.
        frames: Frames in the order of their stamps, at least one.
        start: Stamp at which the video begins, nanoseconds.
        rate: Frames per second of the camera; the video has at most VIDEO_RATE.
        progress: Function that is called with the number of pictures written and the total.

    Raises:
        OSError: OpenCV has no codec for the video.
    """
    rate = min(rate, VIDEO_RATE)
    total = max(1, round((frames[-1].stamp - start) / 1e9 * rate) + 1)
    current, picture = -1, np.empty(0)
    with VideoFile(path, rate) as video:
        for tick in range(total):
            now = start + tick / rate * 1e9
            newest = current
            while newest + 1 < len(frames) and (newest < 0 or frames[newest + 1].stamp <= now):
                newest += 1
            if newest != current:
                current = newest
                picture = _tile(frames[current], start)
            video.write(picture)
            progress(tick + 1, total)


def contact_sheet(frames: Sequence[RecordedFrame], start: int) -> np.ndarray:
    """Return a few moments of the recording side by side, uint8 RGB; ``moments`` chooses them."""
    tiles = [_tile(frames[index], start) for index in moments(frames)]
    height, width = tiles[0].shape[:2]
    rows = -(-len(tiles) // COLUMNS)
    columns = min(COLUMNS, len(tiles))
    sheet = np.empty((rows * (height + MARGIN) + MARGIN, columns * (width + MARGIN) + MARGIN, 3), np.uint8)
    sheet[:] = PAPER
    for number, tile in enumerate(tiles):
        y, x = (MARGIN + number // COLUMNS * (height + MARGIN), MARGIN + number % COLUMNS * (width + MARGIN))
        sheet[y:y + height, x:x + width] = tile
    return sheet


def moments(frames: Sequence[RecordedFrame], count: int = TILES) -> list[int]:
    """Return the indices of up to ``count`` frames worth showing, in order.

    They are the first frame with an object, the last frame, the middle of the longest absence of an object with the
    frames right before and after it, and further frames in the largest gaps between these.
    """
    first = next((index for index, frame in enumerate(frames) if frame.instances.instances), 0)
    chosen = {first, len(frames) - 1}
    gap = longest_absence(frames)
    if gap:
        chosen |= {max(gap[0] - 1, first), (gap[0] + gap[1]) // 2, min(gap[1] + 1, len(frames) - 1)}
    while len(chosen) < min(count, len(frames) - first):
        order = sorted(chosen)
        before, after = max(zip(order, order[1:], strict=False), key=lambda pair: pair[1] - pair[0])
        chosen.add((before + after) // 2)
    return sorted(chosen)[:count]


def longest_absence(frames: Sequence[RecordedFrame]) -> tuple[int, int] | None:
    """Return the first and last index of the longest absence of an object that was visible again afterwards.

    None if no object was absent and came back.
    """
    since: dict[int, int] = {}
    gaps: list[tuple[int, int]] = []
    for index, frame in enumerate(frames):
        for item in frame.instances.instances:
            if item.state != Instance.TRACKED:
                since.setdefault(item.id, index)
            elif item.id in since:
                gaps.append((since.pop(item.id), index - 1))
    return max(gaps, key=lambda gap: gap[1] - gap[0], default=None)


def _tile(frame: RecordedFrame, start: int) -> np.ndarray:
    """Return the overlay of a frame with a caption: time, objects, latency."""
    instances = frame.instances.instances
    absent = [f'{item.label or item.id} {STATE_NAMES[item.state]}' for item in instances
              if item.state != Instance.TRACKED]
    objects = ', '.join([f'{len(instances) - len(absent)} tracked', *absent]) if instances else 'no prompt yet'
    return captioned(draw(frame), f'{(frame.stamp - start) / 1e9:5.1f} s   {objects}',
                     f'{frame.latency * 1e3:.0f} ms')
