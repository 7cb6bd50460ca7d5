"""Measure images per second, latency and drops of the whole node over DDS, between processes.

    python benchmarks/node.py                                            # nano, 1, 2, 4 and 8 objects
    python benchmarks/node.py --model sam2.1_hiera_tiny --image-size 512 --random-weights --rate 15

Three processes run: the camera of the demo with a clip of the tabletop, the node, and this one, which subscribes to
~/instances. For each number of objects, the camera streams at --rate for --seconds; the first images, which fill the
memories, do not count. Latency is the time from the stamp of an image to the publication of its result, as the node
reports it, and to the arrival here. An image is dropped if a newer one arrives before it is processed, and lost if it
never arrives at the node. Before and after each stream, the tracker alone processes the same images in this process.
"""
from __future__ import annotations

import sam2_ros.runtime.threads  # noqa: F401  before torch, as in the node

# isort: split

import argparse
import itertools
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks.lib import plots
from benchmarks.lib.parts import add_model_options, add_output_options, boxes, facts, make_model, random_model
from sam2_core import Prompt, Sam2Model, StreamTracker
from sam2_core.config import VARIANTS
from sam2_core.drawing.video import VideoFile
from sam2_ros.messages.conversions import to_nanoseconds
from sam2_ros.msg import InstanceArray
from sam2_ros.tabletop.scene import TabletopScene
from testing.peer import Peer, running_node

FILLED = 16  # number of images after which memories stop growing
FRAMES = 60  # length of the clip
PATIENCE = 120.0  # seconds; maximum wait for the last images of a slow node


def write_clip(path: Path, images: list[np.ndarray]) -> None:
    """Write a video for the camera of the demo. Rendering the scene would take processor time from the model."""
    with VideoFile(path, 30, ('mp4v',)) as video:
        for image in images:
            video.write(image)


class Subscriber:
    """Subscriber to ~/instances that records stamp, latency, time of arrival (ns) and images dropped before."""

    def __init__(self, peer: Peer) -> None:
        self.arrived: list[tuple[int, float, int, int]] = []
        self._since = 0
        peer.node.create_subscription(InstanceArray, f'{peer.private}/instances', self._keep, 100)

    def _keep(self, message: InstanceArray) -> None:
        now = time.time_ns()
        stamp, latency = to_nanoseconds(message.header.stamp), to_nanoseconds(message.latency) / 1e9
        if stamp > self._since:
            self.arrived.append((stamp, latency, now, message.dropped))

    def restart(self) -> None:
        """Forget all messages so far, and ignore messages about older images from now on."""
        self.arrived.clear()
        self._since = time.time_ns()


def stream(peer: Peer, subscriber: Subscriber, clip: Path, rate: float, seconds: float) -> dict:
    """Run the camera once and return the figures."""
    subscriber.restart()
    environment = {**os.environ, 'ROS_DOMAIN_ID': str(peer.node.context.get_domain_id())}
    command = [sys.executable, '-m', 'sam2_ros.demo.camera', '--ros-args', '-p', f'clip:={clip}', '-p', 'loop:=true',
               '-p', f'rate:={float(rate)}', '-p', 'subscribers:=1']
    camera = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
                              preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler))
    try:
        peer.wait_for(lambda: len(subscriber.arrived) > FILLED, 'memories to be full', PATIENCE)
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            peer.spin(0.05)
    finally:
        camera.send_signal(signal.SIGINT)
    sent = json.loads(camera.communicate(timeout=PATIENCE)[0].splitlines()[-1])['images']
    quiet = time.monotonic()
    last = len(subscriber.arrived)
    while time.monotonic() < quiet + 1.0 + 2 * statistics.median(entry[1] for entry in subscriber.arrived):
        peer.spin(0.05)
        if len(subscriber.arrived) > last:
            quiet, last = time.monotonic(), len(subscriber.arrived)
    return summary(subscriber.arrived, sent)


def summary(arrived: list[tuple[int, float, int, int]], sent: int) -> dict:
    """Return rate and latency of the images after memories were full, and the drops of the whole stream."""
    counted = arrived[FILLED:]
    gaps = [(after[2] - before[2]) / 1e9 for before, after in itertools.pairwise(counted)]
    dropped = sum(entry[3] for entry in arrived)

    def percentiles(values: list[float]) -> dict[str, float]:
        return {f'p{share}': float(np.percentile(values, share)) * 1e3 for share in (50, 95)}
    return {'sent': sent, 'processed': len(arrived), 'dropped': dropped,
            'lost': max(0, sent - len(arrived) - dropped), 'counted': len(counted),
            'frames_per_s': len(gaps) / sum(gaps), 'latency_ms': percentiles([entry[1] for entry in counted]),
            'arrival_ms': percentiles([(entry[2] - entry[0]) / 1e9 for entry in counted])}


class Bare:
    """The tracker without the node, with full memories."""

    def __init__(self, model: Sam2Model, images: list[np.ndarray], objects: int) -> None:
        height, width = images[0].shape[:2]
        self._tracker, self._images = StreamTracker(model), itertools.cycle(images)
        self._tracker.step(images[0], [Prompt(i + 1, box=box) for i, box in enumerate(boxes(objects, width, height))])
        for _ in range(FILLED):
            self._tracker.step(next(self._images))

    def times(self, runs: int) -> list[float]:
        """Return the seconds of each of a number of steps. They end with masks on the CPU."""
        seconds = []
        for _ in range(runs):
            start = time.perf_counter()
            self._tracker.step(next(self._images))
            seconds.append(time.perf_counter() - start)
        return seconds


def measure(options: argparse.Namespace, folder: Path) -> list[dict]:
    """Return the figures for each number of objects."""
    scene = TabletopScene(seed=0, width=options.size[0], height=options.size[1])
    images = [scene.render(number + 60)[0] for number in range(FRAMES)]
    images += images[-2:0:-1]  # and back, so that the clip loops without a jump
    clip = folder / 'clip.mp4'
    write_clip(clip, images)
    parameters = {'model': options.model, 'image_size': options.image_size or 0, 'device': options.device,
                  'use_depth': False, 'dtype': options.dtype}
    dtype = getattr(torch, options.dtype)
    if options.random_weights:
        parameters['checkpoint'] = folder / 'weights.pt'
        torch.save({'model': random_model(options.model, None).state_dict()}, parameters['checkpoint'])
    model = make_model(options.model, options.image_size, options.device, options.random_weights)
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    rows = []
    with running_node(folder, parameters) as peer:
        subscriber, known = Subscriber(peer), 0
        for count in track(options.objects, description='objects', console=Console(stderr=True)):
            for number, box in enumerate(boxes(count, *options.size)[known:], start=known + 1):
                peer.start_object(number, box, images[0])
            known = count
            bare = Bare(model, images, count)
            seconds = bare.times(options.runs)
            peer.process_image(images[0])  # its result reports the images dropped so far
            row = stream(peer, subscriber, clip, options.rate, options.seconds)
            seconds += bare.times(options.runs)
            alone = 1 / statistics.median(seconds)
            rows.append({'objects': count, 'camera_rate': options.rate} | row | {
                'tracker_frames_per_s': alone, 'of_tracker': row['frames_per_s'] / min(alone, options.rate)})
        peer.process.stop()
    return rows


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_model_options(parser)
    parser.add_argument('--dtype', default='float32', choices=['float32', 'bfloat16', 'float16'],
                        help='floating-point type of the model (default: float32)')
    parser.add_argument('--objects', nargs='+', type=int, default=[1, 2, 4, 8],
                        help='numbers of objects, in ascending order (default: 1 2 4 8)')
    parser.add_argument('--size', nargs=2, type=int, default=[640, 480], metavar=('WIDTH', 'HEIGHT'),
                        help='size of the images in pixels (default: 640 480)')
    parser.add_argument('--rate', type=float, default=30.0, help='images per second of the camera (default: 30)')
    parser.add_argument('--seconds', type=float, default=10.0,
                        help='duration of each stream once memories are full (default: 10)')
    parser.add_argument('--runs', type=int, default=10,
                        help='steps of the tracker alone, before and after each stream (default: 10)')
    add_output_options(parser)
    options = parser.parse_args()
    if sorted(set(options.objects)) != options.objects or options.objects[0] < 1:
        parser.error(f'--objects {options.objects}: must ascend from at least 1')
    known = facts(torch.device(options.device))
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(options, Path(folder))
    title = (f'{options.model} {options.image_size or VARIANTS[options.model].image_size} px, {options.dtype}, '
             f'{options.size[0]}x{options.size[1]} at {options.rate:g}/s, {known["hardware"]}, {known["threads"]} CPU '
             f'threads, {known["date"]}')
    table = Table(title=title, title_justify='left')
    for column in ('objects', 'images/s', 'tracker only', 'latency p50 / p95, ms', 'to arrival', 'sent',
                   'processed', 'dropped', 'lost'):
        table.add_column(column, justify='right')
    for row in rows:
        table.add_row(str(row['objects']), f'{row["frames_per_s"]:.1f}', f'{row["tracker_frames_per_s"]:.1f}',
                      *(f'{row[name]["p50"]:.0f} / {row[name]["p95"]:.0f}' for name in ('latency_ms', 'arrival_ms')),
                      *(str(row[name]) for name in ('sent', 'processed', 'dropped', 'lost')))
    Console(width=130).print(table)
    if options.json:
        options.json.write_text(json.dumps(known | {
            'model': options.model, 'image_size': options.image_size or VARIANTS[options.model].image_size,
            'device': options.device, 'dtype': options.dtype, 'size': options.size, 'rows': rows}, indent=2) + '\n')
    if options.plot:
        plots.write(options.plot, title, [
            plots.bars('images per second', {f'{row["objects"]} objects': {
                'node': row['frames_per_s'], 'tracker only': row['tracker_frames_per_s']} for row in rows}),
            plots.bars('latency, milliseconds', {f'{row["objects"]} objects': row['latency_ms'] for row in rows})])


if __name__ == '__main__':
    main()
