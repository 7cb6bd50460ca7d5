"""How nano follows one thing in real videos: a sheet of pictures for each, a row for each of the weights.

    python benchmarks/nano_clips.py cups.mp4 blocks.mp4 robotarm.mp4 --weights packaged new.safetensors
    python benchmarks/nano_clips.py mine.mp4 --box mine=100,80,260,240

The videos are not part of this repository: they are in the folder examples/ of facebookresearch/EdgeTAM (Apache-2.0).
The object is prompted with a box in the first frame, followed for a hundred, and shown in six of them. There is no
truth to compare with: people look.
"""
from __future__ import annotations

import argparse
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch
from builtin_interfaces.msg import Time
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from benchmarks.lib.nano import PACKAGED, nano, short
from sam2_core import Prompt, StreamTracker
from sam2_core.drawing.overlay import BLACK, FONT, WHITE
from sam2_core.drawing.video import INK, PAPER, captioned
from sam2_core.model import Sam2Model
from sam2_ros.demo.pictures import MARGIN, OPACITY
from sam2_ros.drawing.overlay import draw_overlay
from sam2_ros.perception.frame import TrackedObject, sighting

BOXES = {'cups': (568, 291, 740, 546),  # the cup in the middle
         'blocks': (489, 126, 579, 228),  # the K
         'robotarm': (275, 125, 797, 443)}  # the arm without its gripper
FRAMES = 100
SHOWN = (0, 20, 40, 60, 80, 99)
WIDTH = 400  # of a picture, pixels
TITLE = 26

Box = tuple[int, int, int, int]


class Row(NamedTuple):
    """What one set of weights made of one video."""

    pictures: list[np.ndarray]  # uint8 RGB (H, W, 3), of the frames SHOWN
    area: list[float]  # of the mask in each frame, over that in the first; 0: called absent


def frames_of(video: Path, count: int = FRAMES) -> list[np.ndarray]:
    """Return the first frames, uint8 RGB (H, W, 3). ValueError when the file is no video or too short."""
    capture = cv2.VideoCapture(str(video))
    images = []
    while len(images) < count:
        more, image = capture.read()
        if not more:
            raise ValueError(f'{video}: {len(images)} frames can be read, {count} are needed')
        images.append(cv2.cvtColor(image, cv2.COLOR_BGR2RGB))
    return images


def picture(image: np.ndarray, item: TrackedObject, frame: int, prompt: Box | None) -> np.ndarray:
    """One frame with the mask, its box, and the prompt where there was one; under it what is said of the object."""
    shown = draw_overlay(image, [item], OPACITY)
    width = max(1, round(image.shape[0] / 240))
    for box, colour in ((item.box, WHITE), (prompt, BLACK)):
        if box is not None:
            cv2.rectangle(shown, box[:2], box[2:], colour, width)
    shown = cv2.resize(shown, (WIDTH, round(WIDTH * image.shape[0] / image.shape[1])), interpolation=cv2.INTER_AREA)
    said = 'ABSENT' if item.box is None else f'IoU {item.score:.2f}'
    return captioned(shown, f'frame {frame}{", prompted (black)" if prompt else ""}', said)


def follow(model: Sam2Model, images: list[np.ndarray], box: Box) -> Row:
    """Track from a box in the first frame."""
    tracker = StreamTracker(model)
    pictures, areas = [], []
    with torch.inference_mode():
        for t, image in enumerate(images):
            found = tracker.step(image, [] if t else [Prompt(1, box=box)]).objects[1]
            mask = found.mask & (found.object_score > 0)
            areas.append(float(mask.sum()))
            if t in SHOWN:
                item = sighting(1, '', mask, found.iou, float(1 / (1 + np.exp(-found.object_score))), Time())
                pictures.append(picture(image, item, t, None if t else box))
    return Row(pictures, [area / max(areas[0], 1.0) for area in areas])


def sheet(rows: dict[str, Row]) -> np.ndarray:
    """Return the rows below each other, each under the name of its weights, uint8 RGB."""
    height, width = next(iter(rows.values())).pictures[0].shape[:2]
    high, wide = height + TITLE + MARGIN, width + MARGIN
    canvas = np.empty((len(rows) * high + MARGIN, len(SHOWN) * wide + MARGIN, 3), np.uint8)
    canvas[:] = PAPER
    for number, (name, row) in enumerate(rows.items()):
        top = number * high + MARGIN
        cv2.putText(canvas, name, (MARGIN, top + TITLE - 8), FONT, 0.6, INK, 1, cv2.LINE_AA)
        for column, tile in enumerate(row.pictures):
            left = column * wide + MARGIN
            canvas[top + TITLE:top + TITLE + height, left:left + width] = tile
    return canvas


def boxes_of(given: list[str]) -> dict[str, Box]:
    """``NAME=X0,Y0,X1,Y1`` added to the boxes that are known. ValueError for anything else."""
    boxes = dict(BOXES)
    for text in given:
        name, _, numbers = text.partition('=')
        values = numbers.split(',')
        if len(values) != 4 or not all(value.strip().isdigit() for value in values):
            raise ValueError(f'box {text}: must be NAME=X0,Y0,X1,Y1 in pixels')
        boxes[name] = tuple(int(value) for value in values)
    return boxes


def main() -> None:
    """Follow, draw, and print for how long something was followed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('videos', type=Path, nargs='+')
    parser.add_argument('--box', action='append', default=[], metavar='NAME=X0,Y0,X1,Y1',
                        help='in the first frame of the video NAME.*; may be repeated')
    parser.add_argument('--weights', nargs='+', default=[PACKAGED], metavar='FILE',
                        help=f'safetensors, or "{PACKAGED}" (default)')
    parser.add_argument('--device', default='cpu')
    parser.add_argument('--output', type=Path, default=Path('runs/nano_clips'), help='folder for the sheets')
    options = parser.parse_args()
    try:
        boxes = boxes_of(options.box)
        unknown = [video.stem for video in options.videos if video.stem not in boxes]
        if unknown:
            raise ValueError(f'no box for {", ".join(unknown)}: say --box {unknown[0]}=X0,Y0,X1,Y1')
        images = {video.stem: frames_of(video) for video in options.videos}
    except ValueError as error:
        parser.error(str(error))
    options.output.mkdir(parents=True, exist_ok=True)
    table = Table(title=f'{FRAMES} frames from a box on the first')
    for column in ('', '', 'called absent, frames', 'area at the end / first'):
        table.add_column(column)
    with Progress(console=Console(stderr=True)) as progress:
        task = progress.add_task('videos x weights', total=len(images) * len(options.weights))
        for name, frames in images.items():
            rows = {}
            for weights in options.weights:
                rows[short(weights)] = row = follow(nano(weights, options.device), frames, boxes[name])
                table.add_row(name, short(weights), str(sum(area == 0 for area in row.area)), f'{row.area[-1]:.2f}')
                progress.advance(task)
            path = options.output / f'{name}.jpg'
            cv2.imwrite(str(path), sheet(rows)[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 85])
            print(path)
    Console(width=None if Console().is_terminal else 120).print(table)


if __name__ == '__main__':
    main()
