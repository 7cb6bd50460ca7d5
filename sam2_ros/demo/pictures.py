"""The demo's pictures: a video and a contact sheet, drawn from images and instances alone."""
from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np

from sam2_ros.demo.recording import Shot, resized
from sam2_ros.drawing.overlay import STATE_NAMES, draw_overlay
from sam2_ros.msg import Instance

# H.264 where OpenCV was built with it (not in its wheels), else MPEG-4 part 2, which players show and browsers do not
CODECS = ('avc1', 'mp4v')
VIDEO_RATE = 30      # at most, frames per second
TILES = 6
COLUMNS = 3
MARGIN = 8           # pixels between tiles
CAPTION = 26         # pixels
PAPER, INK, FAINT = (24, 26, 30), (235, 236, 240), (150, 155, 165)
OPACITY = 0.45
FONT = cv2.FONT_HERSHEY_SIMPLEX


def draw(shot: Shot) -> np.ndarray:
    """The overlay of one processed image, RGB uint8, its objects named with score or state."""
    rgb = cv2.cvtColor(cv2.imdecode(shot.jpeg, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
    found = shot.instances
    scale = rgb.shape[1] / found.width
    return draw_overlay(rgb, [resized(item, found.height, found.width, scale) for item in found.instances], OPACITY)


def write_video(path: Path, shots: Sequence[Shot], start: int, rate: float,
                progress: Callable[[int, int], None]) -> None:
    """Write what was processed as a video in real time: between two processed images the older one stands still.

    :param start: stamp of the first second, nanoseconds
    :param rate: frames per second of the camera; the video has at most VIDEO_RATE
    :param progress: called with the number of frames done and the number of all
    :raises OSError: no codec can be opened
    """
    rate = min(rate, VIDEO_RATE)
    total = max(1, round((shots[-1].stamp - start) / 1e9 * rate) + 1)
    writer, current, frame = None, -1, None
    for tick in range(total):
        now = start + tick / rate * 1e9
        newest = current
        while newest + 1 < len(shots) and (newest < 0 or shots[newest + 1].stamp <= now):
            newest += 1
        if newest != current:
            current = newest
            frame = cv2.cvtColor(captioned(draw(shots[current]), *_caption(shots[current], start)), cv2.COLOR_RGB2BGR)
        writer = writer or open_video(path, rate, frame.shape[1::-1])
        writer.write(frame)
        progress(tick + 1, total)
    writer.release()


def open_video(path: Path, rate: float, size: tuple[int, int], codecs: Sequence[str] = CODECS) -> cv2.VideoWriter:
    """A video of so many frames per second, of width and height in pixels. OSError: no codec can be opened."""
    for codec in codecs:
        writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*codec), rate, size)
        if writer.isOpened():
            return writer
    raise OSError(f'{path}: OpenCV can write none of {", ".join(codecs)}')


def contact_sheet(shots: Sequence[Shot], start: int) -> np.ndarray:
    """A few moments side by side, RGB uint8: those in which something happened, and some between."""
    chosen = moments(shots)
    tiles = [captioned(draw(shots[index]), *_caption(shots[index], start)) for index in chosen]
    height, width = tiles[0].shape[:2]
    rows = -(-len(tiles) // COLUMNS)
    columns = min(COLUMNS, len(tiles))
    sheet = np.empty((rows * (height + MARGIN) + MARGIN, columns * (width + MARGIN) + MARGIN, 3), np.uint8)
    sheet[:] = PAPER
    for number, tile in enumerate(tiles):
        y, x = (MARGIN + number // COLUMNS * (height + MARGIN), MARGIN + number % COLUMNS * (width + MARGIN))
        sheet[y:y + height, x:x + width] = tile
    return sheet


def moments(shots: Sequence[Shot], count: int = TILES) -> list[int]:
    """Indices of up to ``count`` shots, in order: the first with an object, the middle of the longest time that an
    object was out of sight, the images right before and after it, and otherwise spread evenly."""
    first = next((index for index, shot in enumerate(shots) if shot.instances.instances), 0)
    chosen = {first, len(shots) - 1}
    gap = longest_absence(shots)
    if gap:
        chosen |= {max(gap[0] - 1, first), (gap[0] + gap[1]) // 2, min(gap[1] + 1, len(shots) - 1)}
    while len(chosen) < min(count, len(shots) - first):
        order = sorted(chosen)
        before, after = max(zip(order, order[1:], strict=False), key=lambda pair: pair[1] - pair[0])
        chosen.add((before + after) // 2)
    return sorted(chosen)[:count]


def longest_absence(shots: Sequence[Shot]) -> tuple[int, int] | None:
    """First and last index of the longest run of shots in which one object was out of sight and after which it was
    seen again; None when there is none."""
    since: dict[int, int] = {}
    gaps: list[tuple[int, int]] = []
    for index, shot in enumerate(shots):
        for item in shot.instances.instances:
            if item.state != Instance.TRACKED:
                since.setdefault(item.id, index)
            elif item.id in since:
                gaps.append((since.pop(item.id), index - 1))
    return max(gaps, key=lambda gap: gap[1] - gap[0], default=None)


def _caption(shot: Shot, start: int) -> tuple[str, str]:
    absent = [f'{item.label or item.id} {STATE_NAMES[item.state]}' for item in shot.instances.instances
              if item.state != Instance.TRACKED]
    visible = len(shot.instances.instances) - len(absent)
    objects = ', '.join([f'{visible} tracked', *absent]) if shot.instances.instances else 'no prompt yet'
    return f'{(shot.stamp - start) / 1e9:5.1f} s   {objects}', f'{shot.latency * 1e3:.0f} ms'


def captioned(image: np.ndarray, left: str, right: str) -> np.ndarray:
    """The image with a line of text under it; the size stays even, as video codecs want it."""
    height, width = image.shape[:2]
    canvas = np.empty(((height + CAPTION + 1) // 2 * 2, width // 2 * 2, 3), np.uint8)
    canvas[:] = PAPER
    canvas[:height] = image[:, :canvas.shape[1]]
    line = height + CAPTION - 8
    cv2.putText(canvas, left, (6, line), FONT, 0.5, INK, 1, cv2.LINE_AA)
    (text_width, _), _ = cv2.getTextSize(right, FONT, 0.5, 1)
    cv2.putText(canvas, right, (canvas.shape[1] - text_width - 6, line), FONT, 0.5, FAINT, 1, cv2.LINE_AA)
    return canvas
