"""Run the node under steady load; check that its memory does not grow and that all messages have valid stamps.

    python benchmarks/soak.py
    python benchmarks/soak.py --minutes 60 --objects 8 --model sam2.1_hiera_tiny

There are two RGB-D cameras, eight objects, and subscribers to instances, label image, overlay and clouds. Late prompts
correct objects and start them again all the time, and single images are queried. The resident memory of the node is
recorded every second. Growth is the difference between the medians of the last and the second minute. A message is
wrong if its stamp is not that of an image from its camera, is repeated or out of order, or if its frame_id belongs to
the other camera.
"""
from __future__ import annotations

import argparse
import contextlib
import functools
import json
import statistics
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
from builtin_interfaces.msg import Time
from domain_coordinator import domain_id
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from sensor_msgs.msg import CameraInfo, Image, PointCloud2, RegionOfInterest
from std_msgs.msg import Header

from sam2_ros.msg import InstanceArray, Prompt
from sam2_ros.srv import SegmentAll, SegmentImage
from sam2_ros.tabletop.scene import TabletopScene
from testing.camera_images import image_message, roi
from testing.node_process import NodeProcess
from testing.peer import Peer

WIDTH, HEIGHT = 640, 480
FRAMES = 90  # images of the scene, shown there and back
DISTURB_EVERY = 2.0  # seconds between prompts, and between queries


class CameraSide:
    """One camera and the subscriber to its results."""

    def __init__(self, name: str, seed: int, peer: Peer) -> None:
        """Render the images and create publishers and subscriptions."""
        self.name, self.peer = name, peer
        scene = TabletopScene(seed=seed, width=WIDTH, height=HEIGHT)
        self.matrix = scene.intrinsics.ravel().tolist()
        self.images = []
        for number in range(FRAMES):
            rgb, labels, metres = scene.render_depth(number + 60)
            self.images.append((rgb, labels, (np.minimum(metres, 60) * 1000).astype(np.uint16)))
        node = peer.node
        self.depth = node.create_publisher(Image, f'{name}/depth', 5)
        self.info = node.create_publisher(CameraInfo, f'{name}/camera_info', 5)
        self.sent: dict[tuple[int, int], int] = {}  # stamp -> number of the image
        self.seen: dict[str, list[tuple[int, int]]] = {}  # topic -> stamps of its messages
        self.wrong: Counter[str] = Counter()  # topic -> number of wrong messages
        for kind, topic in ((InstanceArray, 'instances'), (Image, 'label_image'), (Image, 'overlay'),
                            (PointCloud2, 'points')):
            node.create_subscription(kind, f'{peer.private}/{topic}', functools.partial(self._check, topic), 10)

    def _check(self, topic: str, message: InstanceArray | Image | PointCloud2) -> None:
        """Count a message, and whether it is wrong."""
        header = message.header
        stamp, earlier = (header.stamp.sec, header.stamp.nanosec), self.seen.setdefault(topic, [])
        if stamp not in self.sent or header.frame_id != self.name or (earlier and stamp <= earlier[-1]):
            self.wrong[topic] += 1
        earlier.append(stamp)

    def show(self, count: int) -> None:
        """Publish the next image with its depth."""
        number = count % (2 * FRAMES - 2)
        rgb, _, millimetres = self.images[min(number, 2 * FRAMES - 2 - number)]
        header = self.peer.header()
        header.frame_id = self.name
        self.sent[header.stamp.sec, header.stamp.nanosec] = min(number, 2 * FRAMES - 2 - number)
        self.info.publish(CameraInfo(header=header, width=WIDTH, height=HEIGHT, k=self.matrix))
        self.depth.publish(image_message(millimetres, header, '16UC1'))
        self.peer.send(image_message(rgb, header))

    def box(self, stamp: tuple[int, int], label: int) -> RegionOfInterest | None:
        """Return the box of an object in an image that was sent, or None if the object is not in it."""
        rows, columns = np.nonzero(self.images[self.sent[stamp]][1] == label)
        return roi((columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)) if len(rows) > 50 else None

    def prompt(self, object_id: int, action: int, stamp: tuple[int, int]) -> bool:
        """Send a prompt drawn on an image that was sent. Return False if the object is not in it."""
        box = self.box(stamp, (object_id - 1) % 5 + 1)
        if box is not None:
            self.peer.send_prompt(Prompt(id=object_id, action=action, box=box, header=Header(
                stamp=Time(sec=stamp[0], nanosec=stamp[1]), frame_id=self.name)))
        return box is not None


def resident(pid: int) -> float:
    """Return the resident memory of a process in MiB."""
    pages = int(Path(f'/proc/{pid}/statm').read_text().split()[1])
    return pages * 4096 / 2**20


def run(arguments: argparse.Namespace, process: NodeProcess, sides: list[CameraSide]) -> list[tuple[float, float]]:
    """Run the load. Return times in seconds with the memory of the node in MiB."""
    start = time.monotonic()
    memory: list[tuple[float, float]] = []
    queries = []
    count, disturbed = 0, 0
    random = np.random.default_rng(0)
    with Progress(console=Console(width=100)) as progress:
        task = progress.add_task('soak', total=60 * arguments.minutes)
        while (now := time.monotonic() - start) < 60 * arguments.minutes:
            for side in sides:
                side.show(count)
            count += 1
            if now >= len(memory):
                memory.append((now, resident(process.pid)))
                progress.update(task, completed=now)
            side = sides[disturbed % 2]
            if now > 5 + DISTURB_EVERY * disturbed and len(side.sent) > 20:
                disturbed += 1
                stamp = list(side.sent)[-int(random.integers(1, 15))]
                action = Prompt.REFINE if disturbed % 4 < 2 else Prompt.SET
                side.prompt(int(random.integers(1, arguments.objects + 1)), action, stamp)
                if disturbed % 3 == 0:
                    queries.append(side.peer.call(SegmentAll, 'segment_all', SegmentAll.Request(
                        points_per_side=6, time_limit=1.0)))
                elif box := side.box(stamp, 3):
                    queries.append(side.peer.call(SegmentImage, 'segment_image', SegmentImage.Request(
                        prompts=[Prompt(box=box)])))
            for other in sides:
                while time.monotonic() < start + (count - (0.5 if other is sides[0] else 0)) / arguments.rate:
                    other.peer.spin(0.01)
    assert all(query.done() for query in queries[:-3]), 'queries were not answered'
    return memory


def main() -> None:
    """Run the load and print a table. The exit code is 1 if a message is wrong or the node has logged an error."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--minutes', type=float, default=5.0, help='duration in minutes (default: 5)')
    parser.add_argument('--objects', type=int, default=4, help='number of objects of each camera (default: 4)')
    parser.add_argument('--rate', type=float, default=8.0, help='images per second of each camera (default: 8)')
    parser.add_argument('--model', default='nano', help='model variant (default: nano)')
    parser.add_argument('--json', type=Path, metavar='FILE', help='write the results to this file, too')
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, domain_id() as domain, contextlib.ExitStack() as stack:
        process = NodeProcess(domain, Path(folder) / 'node.log', {'cameras': '[left,right]', 'model': arguments.model})
        stack.callback(process.kill)
        sides = []
        for seed, name in enumerate(('left', 'right')):
            peer = stack.enter_context(contextlib.closing(Peer(domain, process, camera=name)))
            peer.wait_until_active(np.zeros((HEIGHT, WIDTH, 3), np.uint8))
            sides.append(CameraSide(name, seed, peer))
        for side in sides:
            for object_id in range(1, arguments.objects + 1):
                first = side.images[0][1]
                rows, columns = np.nonzero(first == (object_id - 1) % 5 + 1)
                side.peer.send_prompt(Prompt(id=object_id, box=roi((columns.min(), rows.min(), columns.max() + 1,
                                                                    rows.max() + 1))))
        memory = run(arguments, process, sides)
        process.stop()
        log = process.log

    def median(begin: float, end: float) -> float:
        return statistics.median(value for second, value in memory if begin <= second < end)
    whole = 60 * arguments.minutes
    second, last = median(60, 120) if whole >= 120 else median(whole / 5, 2 * whole / 5), median(max(0, whole - 60),
                                                                                                whole)
    growth = last - second
    table = Table(title=f'{arguments.model}, two cameras, {arguments.objects} objects each, {arguments.minutes:g} min',
                  title_justify='left')
    for title in ('camera', 'images sent', 'instances', 'label images', 'overlays', 'clouds', 'wrong'):
        table.add_column(title, justify='right')
    for side in sides:
        table.add_row(side.name, str(len(side.sent)), *(str(len(side.seen.get(topic, []))) for topic in (
            'instances', 'label_image', 'overlay', 'points')), str(sum(side.wrong.values())))
    console = Console(width=110)
    console.print(table)
    console.print(f'resident memory: {second:.1f} MiB in the second minute, {last:.1f} in the last: {growth:+.1f} MiB '
                  f'({100 * growth / second:+.2f} %); maximum {max(value for _, value in memory):.1f}')
    console.print(f'warnings and errors in the log: {log.count("[WARN]")}, {log.count("[ERROR]")}')
    if arguments.json:
        arguments.json.write_text(json.dumps({'memory': memory, 'wrong': [side.wrong for side in sides],
                                              'second': second, 'last': last}, indent=2))
    if '[ERROR]' in log:
        console.print(log[-3000:])
    sys.exit(any(side.wrong for side in sides) or '[ERROR]' in log)


if __name__ == '__main__':
    main()
