"""Measure what the node adds to the model for each image, from taking the message to publishing the results.

    python benchmarks/node_overhead.py
    python benchmarks/node_overhead.py --encoding bgr8 --size 1920 1080 --objects 4 --rate 20

The node runs in a separate process with a camera in real time and a subscriber: first to the instances, then also to
the label image and the point cloud, with depth, and then also to the overlay. The table shows medians per processed
image in wall-clock time and, in brackets, in processor time of the thread. Camera and subscriber share the machine.
"""
from __future__ import annotations

import argparse
import functools
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:  # imported in each of the two processes when they need it
    from sensor_msgs.msg import Image

    from testing.peer import Peer

WARM_UP = 5  # images
STAGES = {
    'take': 'receive: DDS to a Python message',
    'convert': 'convert: message to RGB',
    'depth': 'depth: message to metres (without waiting), oriented boxes',
    'other': 'prompts, states, history, bookkeeping',
    'publish': 'publish: messages, images, clouds, DDS',
}


# --- the process of the node

def run_node(records: Path, arguments: list[str]) -> int:
    """Run the node with stopwatches.

    Args:
        records: File to which {name: [[start, seconds, processor seconds], ...]} is written at the end.
        arguments: Command line of the node.
    """
    from rclpy.executors import SingleThreadedExecutor
    from sensor_msgs.msg import Image

    from sam2_core import ImageSegmenter, StreamTracker
    from sam2_ros import node
    from sam2_ros.depth import matching
    from sam2_ros.perception import image_intake, tracked_objects, worker
    from sam2_ros.topics import publishers

    measured: dict[str, list[tuple[float, float, float]]] = {}

    def timed(owner: Any, attribute: str, name: str, counts: Callable[..., bool] = lambda *_: True) -> None:
        original = getattr(owner, attribute)
        entries = measured.setdefault(name, [])

        @functools.wraps(original)
        def run(*arguments: Any, **options: Any) -> Any:
            start, cpu = time.monotonic(), time.thread_time()
            result = original(*arguments, **options)
            if counts(*arguments):
                entries.append((start, time.monotonic() - start, time.thread_time() - cpu))
            return result
        setattr(owner, attribute, run)

    timed(SingleThreadedExecutor, '_take_subscription', 'take', lambda _, subscription: subscription.msg_type is Image)
    timed(image_intake, 'to_rgb', 'convert')
    timed(ImageSegmenter, 'encode', 'encode')
    timed(StreamTracker, 'step', 'step')
    timed(matching.DepthMailbox, 'depth_for', 'metres')
    timed(tracked_objects.TrackedObjects, 'locate', 'boxes')
    timed(matching.DepthMailbox, '_wait_for', 'wait')
    timed(publishers.CameraPublishers, 'publish', 'publish', lambda _, frame, *__: frame is not None)
    timed(worker, 'step', 'work')
    try:
        return node.main(arguments)
    finally:
        records.write_text(json.dumps(measured))


# --- the process of camera and subscriber

class Show:
    """Camera, with depth if ``with_depth`` is set."""

    def __init__(self, peer: Peer, images: list[np.ndarray], encoding: str) -> None:
        from sensor_msgs.msg import CameraInfo, Image

        from testing.camera_images import image_message
        self._peer = peer
        self._messages = [image_message(image, peer.header(), encoding) for image in images]
        height, width = images[0].shape[:2]
        rows, columns = np.mgrid[:height, :width]
        self._depth = image_message((900 + rows // 2 + columns // 8).astype(np.uint16), peer.header(), '16UC1')
        self._info = CameraInfo(width=width, height=height, k=[width, 0.0, width / 2, 0.0, width, height / 2, 0.0, 0.0,
                                                               1.0])
        self._info.k = np.array(self._info.k, float)
        self._depths = peer.node.create_publisher(Image, 'depth', 5)
        self._infos = peer.node.create_publisher(CameraInfo, 'camera_info', 5)
        self.with_depth = False

    def run(self, count: int, rate: float) -> tuple[float, float]:
        """Publish a number of images at a rate, and return the start and the end (time.monotonic)."""
        for number in range(WARM_UP):
            self._peer.process_image(self._next(number))
        start = time.monotonic()
        for number in range(count):
            self._peer.send(message := self._next(number))
            while time.monotonic() < start + (number + 1) / rate:
                self._peer.spin(max(0.0, start + (number + 1) / rate - time.monotonic()))
        self._peer.wait_for(lambda: self._peer.instances_at(message.header.stamp), 'the last image')
        return start, time.monotonic()

    def _next(self, number: int) -> Image:
        """Return an image with the current stamp, after publishing its depth."""
        message = self._messages[number % len(self._messages)]
        message.header = self._peer.header()
        if self.with_depth:
            self._depth.header = self._info.header = message.header
            self._infos.publish(self._info)
            self._depths.publish(self._depth)
        return message


def summary(measured: dict, window: tuple[float, float]) -> dict[str, Any]:
    """Return the median milliseconds per image in a window of time, by wall clock and by processor time."""
    def entries(name: str, column: int) -> np.ndarray:
        return np.array([entry[column] for entry in measured[name] if window[0] <= entry[0] <= window[1]]) * 1e3

    count = len(entries('publish', 1))
    figures: dict[str, Any] = {'images': count}
    for kind, column in (('wall', 1), ('cpu', 2)):
        sums = {name: entries(name, column)[:count]
                for name in ('convert', 'encode', 'step', 'metres', 'boxes', 'publish')}
        waits = entries('wait', column)[:count]
        sums['depth'] = sums.pop('metres') + sums.pop('boxes') - (waits if len(waits) == count else 0)
        work = entries('work', column)[:count] - (waits if len(waits) == count else 0)
        stages = {name: statistics.median(values) for name, values in sums.items()}
        stages['take'] = statistics.median(entries('take', column))
        stages['other'] = statistics.median(work - sum(values for name, values in sums.items() if name != 'convert'))
        stages['model'] = stages.pop('encode') + stages.pop('step')
        stages['total'] = sum(stages[name] for name in STAGES)
        figures[kind] = stages
    return figures


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--size', nargs=2, type=int, default=[1280, 720], metavar=('WIDTH', 'HEIGHT'),
                        help='size of the images in pixels (default: 1280 720)')
    parser.add_argument('--encoding', default='rgb8', choices=['rgb8', 'bgr8'],
                        help='encoding of the images (default: rgb8)')
    parser.add_argument('--objects', type=int, default=2, choices=[1, 2], help='number of objects (default: 2)')
    parser.add_argument('--rate', type=float, default=8.0, help='images per second of the camera (default: 8)')
    parser.add_argument('--images', type=int, default=60, help='number of images for each set of topics (default: 60)')
    parser.add_argument('--json', type=Path, metavar='FILE', help='write the results to this file, too')
    parser.add_argument('--node', type=Path, help=argparse.SUPPRESS)
    arguments, others = parser.parse_known_args()
    if arguments.node:
        sys.exit(run_node(arguments.node, others))

    from sensor_msgs.msg import PointCloud2

    from testing.peer import Scene, running_node
    scene = Scene(*arguments.size)
    with tempfile.TemporaryDirectory() as folder:
        records = Path(folder) / 'records.json'
        with running_node(Path(folder), command=(sys.executable, __file__, '--node', str(records))) as peer:
            order = slice(None, None, 1 if arguments.encoding == 'rgb8' else -1)
            show = Show(peer, [scene.image(number)[..., order] for number in range(10)], arguments.encoding)
            for object_id in range(1, arguments.objects + 1):
                peer.start_object(object_id, scene.box(0, object_id), scene.image(0))
            windows = {'instances': show.run(arguments.images, arguments.rate)}
            show.with_depth = True
            peer.subscribe(PointCloud2, 'points')
            peer.subscribe_pictures('label_image')
            windows['with depth: + label image, points'] = show.run(arguments.images, arguments.rate)
            peer.subscribe_pictures('overlay')
            windows['+ overlay'] = show.run(arguments.images, arguments.rate)
            peer.process.stop()
        measured = json.loads(records.read_text())
    rows = {name: summary(measured, window) for name, window in windows.items()}

    width, height = arguments.size
    table = Table(title=f'milliseconds per {width}x{height} {arguments.encoding} image, {arguments.objects} objects '
                        f'(processor time)', title_justify='left')
    table.add_column('')
    for name in rows:
        table.add_column(name, justify='right')

    def line(title: str, stage: str) -> None:
        table.add_row(title, *(f'{row["wall"][stage]:.2f} ({row["cpu"][stage]:.2f})' for row in rows.values()))
    for stage, title in STAGES.items():
        line(title, stage)
    table.add_section()
    line('added by the node', 'total')
    line('model, nano', 'model')
    Console(width=130).print(table)
    if arguments.json:
        arguments.json.write_text(json.dumps({'size': arguments.size, 'encoding': arguments.encoding,
                                              'objects': arguments.objects, 'rows': rows}, indent=2))


if __name__ == '__main__':
    main()
