"""Measure what it costs an image that the objects are kept in a file.

    python benchmarks/kept_objects.py
    python benchmarks/kept_objects.py --objects 4 --model sam2.1_hiera_tiny --images 60

One camera's pipeline processes the same images in four ways, in turn: without a file, with a file that is saved once in
a period, and with a file that is saved after every image, on a fast and on a slow disk. The table shows processor time
of the worker's thread: the median per image until its result can be published, with its ratio to that without a file,
and the mean per snapshot, which is taken after that, with its ratio to an image. The last column is the median
wall-clock time until the next image can begin, which would show a wait for the disk.
"""
from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import threading
import time
from pathlib import Path
from typing import Any
from unittest import mock

import rclpy.logging
from rich.console import Console
from rich.table import Table
from sensor_msgs.msg import RegionOfInterest

from sam2_core import Sam2Model, StreamTracker, load_model, save_state
from sam2_ros.messages.conversions import from_pixels
from sam2_ros.msg import Prompt
from sam2_ros.perception import kept_objects
from sam2_ros.perception.camera_pipeline import CameraPipeline
from sam2_ros.perception.kept_objects import KeptObjects
from sam2_ros.perception.prompt_plan import Ids, PromptRequest
from sam2_ros.runtime.parameters import Parameters
from testing.camera_images import header, picture

WIDTH, HEIGHT = 640, 480
WARM_UP = 20  # images, until the memory of all objects is full
SLOW_DISK = 1.0  # seconds per save
WAYS = ('no file', 'period', 'every image', 'every image, slow disk')


class Way:
    """A camera with objects, and where they are kept."""

    def __init__(self, name: str, model: Sam2Model, objects: int, folder: Path, period: float) -> None:
        self.name = name
        self.published: list[float] = []  # processor seconds per image
        self.snapshots: list[float] = []  # processor seconds each
        self.done: list[float] = []  # wall-clock seconds per image
        logger = rclpy.logging.get_logger('benchmark')
        rclpy.logging.set_logger_level('benchmark', rclpy.logging.LoggingSeverity.WARN)
        ids = Ids()
        parameters = Parameters(max_objects=objects, keep_objects_period=period if name == 'period' else 0.1)
        self._pipeline = CameraPipeline(StreamTracker(model), parameters, threading.Condition(), 'camera', logger,
                                        ids=ids)
        self._kept = None if name == 'no file' else KeptObjects(
            folder / f'{WAYS.index(name)}.safetensors', 'camera', self._pipeline, ids, logger)
        columns = max(1, round(objects ** 0.5 + 0.49))
        self._places = [(70 + 140 * (k % columns), 70 + 130 * (k // columns)) for k in range(objects)]

    def show(self, number: int) -> None:
        """Process one image; the first one starts the objects."""
        discs = [(x + number % 40, y, 45, (60 * k % 256, 200 - 40 * k % 200, 255 - 50 * k % 250))
                 for k, (x, y) in enumerate(self._places)]
        if number == 0:
            for x, y in self._places:
                box = RegionOfInterest(x_offset=x - 45, y_offset=max(0, y - 45), width=90, height=90)
                self._pipeline.inbox.put_prompt(PromptRequest(Prompt(box=box), time.monotonic()))
        self._pipeline.put_image(from_pixels(picture(HEIGHT, WIDTH, *discs), 'rgb8', header(10 + number / 15)))
        kept, start, wall = self._kept, time.thread_time(), time.perf_counter()
        if kept is not None and self.name.startswith('every image'):
            kept._due = 0.0
        self._pipeline.take()
        if kept is not None:
            kept.before_step()
        frame, _ = self._pipeline.work()
        assert frame is not None and len(frame.objects) == len(self._places), 'all objects are tracked'
        if kept is not None:
            kept.before_publish()
        published, before = time.thread_time(), None if kept is None else kept._due
        if kept is not None:
            kept.after_publish()
        if number >= WARM_UP:
            self.published.append(published - start)
            self.done.append(time.perf_counter() - wall)
            if kept is not None and kept._due != before:
                self.snapshots.append(time.thread_time() - published)

    def end(self) -> int:
        """Close the file; return its size in bytes."""
        if self._kept is None:
            return 0
        self._kept.close()
        return self._kept.path.stat().st_size


def slowly(path: Path, state: dict[str, Any], notes: dict[str, str]) -> None:
    """Save a state, on a slow disk if the path is that of one."""
    if path.stem == str(WAYS.index('every image, slow disk')):
        time.sleep(SLOW_DISK)
    save_state(path, state, notes)


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Run all ways in turn, image by image, so that the load of the machine is the same for all."""
    model = load_model(arguments.model, device=arguments.device or None)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder, mock.patch.object(
            kept_objects, 'save_state', slowly):
        ways = [Way(name, model, arguments.objects, Path(folder), arguments.period) for name in WAYS]
        for number in range(WARM_UP + arguments.images):
            for way in ways[number % len(ways):] + ways[:number % len(ways)]:
                way.show(number)
                if arguments.rate:
                    time.sleep(1 / arguments.rate / len(ways))
        rows = [{'way': way.name, 'saves': len(way.snapshots), 'image_ms': 1e3 * statistics.median(way.published),
                 'snapshot_ms': 1e3 * statistics.fmean(way.snapshots or [0.0]),
                 'wall_ms': 1e3 * statistics.median(way.done), 'bytes': way.end()} for way in ways]
    for row in rows:
        row['image_ratio'] = row['image_ms'] / rows[0]['image_ms']
        row['snapshot_ratio'] = row['snapshot_ms'] / rows[0]['image_ms']
    return {'model': arguments.model, 'device': str(model.device), 'objects': arguments.objects,
            'images': arguments.images, 'period': arguments.period, 'rows': rows}


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--model', default='nano', help='variant; default: nano')
    parser.add_argument('--device', default='', help='cpu, cuda or cuda:N; default: cuda if there is a GPU')
    parser.add_argument('--objects', type=int, default=4, help='tracked objects; default: 4')
    parser.add_argument('--images', type=int, default=150, help='images that count, after the first 20; default: 150')
    parser.add_argument('--period', type=float, default=5.0, help='seconds of keep_objects_period; default: 5')
    parser.add_argument('--rate', type=float, default=0.0, help='pause as for this many images/s; default: no pause')
    parser.add_argument('--folder', type=Path, help='folder for the files, which decides on the disk; default: /tmp')
    parser.add_argument('--json', type=Path, help='write the figures to this file')
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """Measure and print the table."""
    chosen = parse(arguments)
    found = measure(chosen)
    table = Table(title=f'{found["model"]} on {found["device"]}, {found["objects"]} objects, {found["images"]} images')
    for title in ('objects kept', 'saves', 'file', 'image', 'ratio', 'snapshot', 'ratio', 'wall clock'):
        table.add_column(title, justify='left' if title == 'objects kept' else 'right')
    for row in found['rows']:
        table.add_row(row['way'], str(row['saves']), f'{row["bytes"] / 1e6:.2f} MB', f'{row["image_ms"]:.1f} ms',
                      f'{row["image_ratio"]:.3f}', f'{row["snapshot_ms"]:.2f} ms', f'{row["snapshot_ratio"]:.3f}',
                      f'{row["wall_ms"]:.0f} ms')
    Console(width=120).print(table)
    if chosen.json:
        chosen.json.write_text(json.dumps(found, indent=1))


if __name__ == '__main__':
    main()
