"""Measure the accuracy of late prompts, applied to the image they were drawn on or to the newest image.

    python benchmarks/late_prompts.py
    python benchmarks/late_prompts.py --speed 20 --delays 0.5 1 2 --model sam2.1_hiera_tiny

A textured object crosses the image at a constant speed, and another one moves in the opposite direction. A box is drawn
around the first object in one image, and the prompt arrives after a delay, at 15 images per second. Every image is
processed, with one step of the late prompt after each, as in a node that is always busy. The table shows the IoU with
the truth in the first image that reports the object, and the mean IoU over the second from there on.
"""
from __future__ import annotations

import argparse
import json
import statistics
import threading
import time
from pathlib import Path

import cv2
import numpy as np
import rclpy
from builtin_interfaces.msg import Time
from rich.console import Console
from rich.progress import track
from rich.table import Table
from sensor_msgs.msg import RegionOfInterest
from std_msgs.msg import Header

from sam2_core import Sam2Model, StreamTracker, load_model
from sam2_core.metrics import iou
from sam2_ros.messages.conversions import from_pixels
from sam2_ros.msg import Prompt
from sam2_ros.perception.camera_pipeline import CameraPipeline
from sam2_ros.perception.prompt_plan import PromptRequest
from sam2_ros.runtime.parameters import Parameters
from sam2_ros.tabletop.textures import PALETTES, dotted_box, striped_box, wood

RATE = 15  # images per second
WIDTH, HEIGHT = 640, 480
SIZE = 110  # of an object, pixels
DRAWN_ON = 3  # number of the image on which the prompt is drawn


class Crossing:
    """Scene of two textured squares with round corners that cross a wooden table, with their true masks."""

    def __init__(self, seed: int, speed: float) -> None:
        """``speed``: pixels per image."""
        random = np.random.default_rng(seed)
        self._speed = speed
        left, top = random.integers(0, 2048 - WIDTH), random.integers(0, 2048 - HEIGHT)
        self._table = wood(random)[top:top + HEIGHT, left:left + WIDTH]
        colours = random.permutation(PALETTES)
        self._textures = [cv2.resize(texture, (SIZE, SIZE)) for texture in (
            dotted_box(random, colours[0], 'TEA'), striped_box(random, colours[1], 'OATS'))]
        self._shape = np.zeros((SIZE, SIZE), np.uint8)
        cv2.circle(self._shape, (SIZE // 2, SIZE // 2), int(SIZE * 0.55), 1, -1)

    def _corner(self, number: int, which: int) -> tuple[int, int]:
        """Return the top left corner of an object, 0 or 1, in an image."""
        way = WIDTH - SIZE - 20
        place = self._speed * number % (2 * way)  # there and back
        x = 10 + (place if place < way else 2 * way - place)
        return round(x if which == 0 else WIDTH - SIZE - x), 70 + 220 * which

    def truth(self, number: int) -> np.ndarray:
        """Return the true mask of the first object in an image, bool (H, W)."""
        mask = np.zeros((HEIGHT, WIDTH), bool)
        x, y = self._corner(number, 0)
        mask[y:y + SIZE, x:x + SIZE] = self._shape > 0
        return mask

    def image(self, number: int) -> np.ndarray:
        """Return an image, uint8 RGB (H, W, 3)."""
        image = self._table.copy()
        for which, texture in enumerate(self._textures):
            x, y = self._corner(number, which)
            cv2.copyTo(texture, self._shape, image[y:y + SIZE, x:x + SIZE])
        noise = np.random.default_rng(number).normal(0, 3, image.shape)
        return np.clip(cv2.GaussianBlur(image, (3, 3), 0.7) + noise, 0, 255).astype(np.uint8)


def header(number: int) -> Header:
    """Return the header of an image."""
    seconds, rest = divmod(number, RATE)
    return Header(stamp=Time(sec=1000 + seconds, nanosec=rest * 10**9 // RATE))


def follow(model: Sam2Model, scene: Crossing, delay: float, aligned: bool,
           parameters: Parameters) -> tuple[float, float, int]:
    """Return the IoU in the first image that reports the object, the mean IoU over a second, and the images until then.

    Args:
        model: The model.
        scene: The scene.
        delay: Delay of the prompt in seconds.
        aligned: True: apply the prompt to the image it was drawn on. False: apply it to the newest image.
        parameters: Parameters of the pipeline.
    """
    pipeline = CameraPipeline(StreamTracker(model), parameters, threading.Condition(), 'image',
                              rclpy.logging.get_logger('late'))
    x, y, width, height = cv2.boundingRect(scene.truth(DRAWN_ON).astype(np.uint8))
    prompt = Prompt(id=1, header=header(DRAWN_ON) if aligned else Header(),
                    box=RegionOfInterest(x_offset=x, y_offset=y, width=width, height=height))
    arrival = DRAWN_ON + round(delay * RATE)
    values: list[float] = []
    first: int | None = None
    for number in range(arrival + 10 * RATE):
        if number == arrival:
            pipeline.inbox.put_prompt(PromptRequest(prompt, time.monotonic()))
        pipeline.put_image(from_pixels(scene.image(number), 'rgb8', header(number)))
        pipeline.take()
        frame, answers = pipeline.work()
        answers += pipeline.work_aside() if pipeline.has_work_aside() else []
        assert all(answer.accepted for answer in answers), answers[0].reason
        if frame is not None and frame.objects:
            first = number if first is None else first
            mask = frame.objects[0].mask
            values.append(0.0 if mask is None else iou(mask, scene.truth(number)))
        if first is not None and len(values) == RATE:
            return values[0], statistics.mean(values), first - arrival
    raise RuntimeError('the object never joined the live stream')


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--model', default='nano', help='model variant (default: nano)')
    parser.add_argument('--device', default='cpu', help='device of the model (default: cpu)')
    parser.add_argument('--speed', type=float, default=10.0, help='speed in pixels per image (default: 10)')
    parser.add_argument('--delays', nargs='+', type=float, default=[0.0, 0.5, 1.5],
                        help='delays of the prompt in seconds (default: 0 0.5 1.5)')
    parser.add_argument('--images', nargs='+', type=int, default=[0, 4, 8, 16],
                        help='values of the parameter catch_up_images (default: 0 4 8 16)')
    parser.add_argument('--scenes', type=int, default=8, help='number of scenes (default: 8)')
    parser.add_argument('--json', type=Path, metavar='FILE', help='write the results to this file, too')
    arguments = parser.parse_args()
    model = load_model(arguments.model, device=arguments.device)
    scenes = [Crossing(seed, arguments.speed) for seed in range(arguments.scenes)]
    ways = [('the newest image', False, 0), *((f'its own image, catch_up_images {count}', True, count)
                                              for count in arguments.images)]
    runs = [(delay, way) for delay in arguments.delays for way in ways]
    rows = []
    for delay, (name, aligned, count) in track(runs, 'late prompts'):
        parameters = Parameters(catch_up_images=count, history_seconds=60.0, history_bytes=2**32)
        results = [follow(model, scene, delay, aligned, parameters) for scene in scenes]
        first, second, images = (statistics.mean(column) for column in zip(*results, strict=True))
        rows.append({'delay': delay, 'applied to': name, 'first': first, 'second': second, 'images': images})
    table = Table(title=f'{arguments.model}, {arguments.speed:g} pixels per image, {RATE} images/s, mean of '
                        f'{arguments.scenes} scenes', title_justify='left')
    for title in ('delay', 'applied to', 'IoU, first image', 'IoU, first second', 'images until reported'):
        table.add_column(title, justify='left' if title == 'applied to' else 'right')
    for row in rows:
        table.add_row(f'{row["delay"]:g} s', row['applied to'], f'{row["first"]:.3f}', f'{row["second"]:.3f}',
                      f'{row["images"]:.1f}')
    Console(width=110).print(table)
    if arguments.json:
        arguments.json.write_text(json.dumps({'model': arguments.model, 'speed': arguments.speed, 'rows': rows},
                                             indent=2))


if __name__ == '__main__':
    main()
