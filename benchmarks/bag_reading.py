"""Measure how fast one core reads recordings: list, read and decode images as sam2_evaluate does.

    python benchmarks/bag_reading.py

Two bags of 640 x 480 images are written, as JPEG of quality 90 and raw in compressed chunks, then read. Processor time
is measured, so that other work on the machine matters little. Prints a Markdown table.
"""
from __future__ import annotations

import sam2_ros.runtime.threads  # noqa: F401  before torch

# isort: split
import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from std_msgs.msg import Header

from sam2_ros.evaluation.report.results_bag import jpeg_message
from sam2_ros.messages.conversions import from_pixels, to_rgb
from sam2_ros.recordings.bag_recording import BagRecording
from sam2_ros.recordings.bag_writer import BagWriter
from sam2_ros.tabletop.scene import TabletopScene

IMAGES = 300
TRANSPORTS = {'JPEG': lambda rgb, header: jpeg_message(rgb, header, 90),
              'raw': lambda rgb, header: from_pixels(rgb, 'rgb8', header)}


def write(path: Path, message: Callable[[np.ndarray, Header], Any]) -> None:
    """Write a bag of IMAGES images. ``message`` makes a message of an image and a header."""
    scene = TabletopScene(0, 640, 480)
    with BagWriter(path) as bag:
        for i in range(IMAGES):
            header = Header(frame_id='camera')
            header.stamp.sec, header.stamp.nanosec = divmod(1_000_000_000 + i * 33_333_333, 1_000_000_000)
            bag.write('/image', message(scene.render(i)[0], header), 1_000_000_000 + i * 33_333_333)


def main() -> int:
    """Measure and print a table."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    cv2.setNumThreads(1)
    print('| images | list (ms each) | read (ms each) | decode (ms each) | images per second |')
    print('|---|---|---|---|---|')
    for name, message in TRANSPORTS.items():
        with tempfile.TemporaryDirectory() as folder:
            write(Path(folder) / 'bag', message)
            moments = [time.process_time()]
            with BagRecording(Path(folder) / 'bag') as recording:
                moments.append(time.process_time())
                for index in range(IMAGES):
                    recording.image(index)
                moments.append(time.process_time())
                for index in range(IMAGES):
                    to_rgb(recording.image(index))
                moments.append(time.process_time())
        listed, read, both = (1e3 * (end - start) / IMAGES for start, end in zip(moments, moments[1:], strict=False))
        print(f'| {name} | {listed:.2f} | {read:.2f} | {both - read:.2f} | {1e3 / (listed + both):.0f} |', flush=True)
    return 0


if __name__ == '__main__':
    sys.exit(main())
