"""What the node adds to the model for each image: from taking the message off DDS to publishing what was found.

    python benchmarks/node_overhead.py
    python benchmarks/node_overhead.py --encoding bgr8 --size 1920 1080 --objects 4 --rate 20

The node runs in a process of its own, with a camera at its real rate and a subscriber: to the instances alone first,
then to the label image and the overlay as well. Medians for each processed image: by the clock, and the processor time
of the thread at work in brackets (camera and subscriber share the machine).
"""
from __future__ import annotations

import argparse
import functools
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / 'test' / 'system'))

WARM_UP = 5  # images
STAGES = {
    'take': 'receive: DDS to a Python message',
    'convert': 'convert: message to RGB',
    'other': 'prompts, states, bookkeeping',
    'publish': 'publish: messages, pictures, DDS',
}


# --- the node's side

def run_node(records: Path) -> int:
    """The node with a stopwatch in it; at the end it writes {name: [[start, seconds, processor seconds], ...]}."""
    from rclpy.executors import SingleThreadedExecutor
    from sensor_msgs.msg import Image

    from sam2_core import StreamTracker
    from sam2_ros import node, outputs, stream

    measured: dict[str, list[tuple[float, float, float]]] = {}

    def timed(owner, attribute: str, name: str, counts=lambda *_: True) -> None:
        original = getattr(owner, attribute)
        entries = measured.setdefault(name, [])

        @functools.wraps(original)
        def run(*arguments):
            start, cpu = time.monotonic(), time.thread_time()
            result = original(*arguments)
            if counts(*arguments):
                entries.append((start, time.monotonic() - start, time.thread_time() - cpu))
            return result
        setattr(owner, attribute, run)

    timed(SingleThreadedExecutor, '_take_subscription', 'take', lambda _, subscription: subscription.msg_type is Image)
    timed(stream, 'to_rgb', 'convert')
    timed(StreamTracker, 'step', 'step')
    timed(stream.Stream, 'work', 'work')
    timed(outputs.Outputs, 'publish', 'publish', lambda _, frame, __: frame is not None)
    try:
        return node.main()
    finally:
        records.write_text(json.dumps(measured))


# --- the other side

def show(peer, messages, count: int, rate: float) -> tuple[float, float]:
    """Show so many images at this rate; from when till when (time.monotonic)."""
    for number in range(WARM_UP):
        peer.process_image(stamped(messages[number % len(messages)], peer))
    start = time.monotonic()
    for number in range(count):
        peer.send(message := stamped(messages[number % len(messages)], peer))
        while time.monotonic() < start + (number + 1) / rate:
            peer.spin(max(0.0, start + (number + 1) / rate - time.monotonic()))
    peer.wait_for(lambda: peer.instances_at(message.header.stamp), 'the last image')
    return start, time.monotonic()


def stamped(message, peer):
    message.header = peer.header()
    return message


def summary(measured: dict, window: tuple[float, float]) -> dict:
    """Milliseconds per image in this time, median by the clock and of processor time."""
    def entries(name: str, column: int) -> np.ndarray:
        return np.array([entry[column] for entry in measured[name] if window[0] <= entry[0] <= window[1]]) * 1e3

    figures = {'images': len(entries('step', 1))}
    for kind, column in (('wall', 1), ('cpu', 2)):
        stages = {name: statistics.median(entries(name, column)) for name in ('take', 'convert', 'step', 'publish')}
        stages['other'] = statistics.median(entries('work', column)[:figures['images']]
                                            - entries('convert', column)[:figures['images']]
                                            - entries('step', column))
        stages['total'] = sum(stages[name] for name in STAGES)
        figures[kind] = stages
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--size', nargs=2, type=int, default=[1280, 720], metavar=('WIDTH', 'HEIGHT'))
    parser.add_argument('--encoding', default='rgb8', choices=['rgb8', 'bgr8'])
    parser.add_argument('--objects', type=int, default=2, choices=[1, 2])
    parser.add_argument('--rate', type=float, default=8.0, help='images per second')
    parser.add_argument('--images', type=int, default=60, help='for each of the two rows')
    parser.add_argument('--json', type=Path, help='write the figures here too')
    parser.add_argument('--node', type=Path, help=argparse.SUPPRESS)
    arguments, _ = parser.parse_known_args()
    if arguments.node:
        sys.exit(run_node(arguments.node))

    from harness import Scene, image_message, running_node
    scene = Scene(*arguments.size)
    with tempfile.TemporaryDirectory() as folder:
        records = Path(folder) / 'records.json'
        with running_node(Path(folder), command=(sys.executable, __file__, '--node', str(records))) as peer:
            order = slice(None, None, 1 if arguments.encoding == 'rgb8' else -1)
            messages = [image_message(scene.image(number)[..., order], peer.header(), arguments.encoding)
                        for number in range(10)]
            for object_id in range(1, arguments.objects + 1):
                peer.start_object(object_id, scene.box(0, object_id), scene.image(0))
            windows = {'instances': show(peer, messages, arguments.images, arguments.rate)}
            for name in ('label_image', 'overlay'):
                peer.subscribe_pictures(name)
            windows['instances, label image, overlay'] = show(peer, messages, arguments.images, arguments.rate)
            peer.process.stop()
        measured = json.loads(records.read_text())
    rows = {name: summary(measured, window) for name, window in windows.items()}

    width, height = arguments.size
    table = Table(title=f'milliseconds per {width}x{height} {arguments.encoding} image, {arguments.objects} objects; '
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
    line('the model, nano', 'step')
    Console(width=110).print(table)
    if arguments.json:
        arguments.json.write_text(json.dumps({'size': arguments.size, 'encoding': arguments.encoding,
                                              'objects': arguments.objects, 'rows': rows}, indent=2))


if __name__ == '__main__':
    main()
