"""How fast recordings are read: images per second of one core, listed, read and decoded, as an evaluation does it.

    python benchmarks/bag_reading.py

Bags of 640 x 480 images are written (JPEG of quality 90, and raw in compressed chunks), then read. Counts the time of
the processor, so that what else the machine does matters little. Prints a table (Markdown).
"""
from __future__ import annotations

import sam2_ros.runtime.threads  # noqa: F401  before torch

# isort: split
import argparse
import sys
import tempfile
import time
from pathlib import Path

import cv2
from std_msgs.msg import Header

from sam2_ros.evaluation.report.results_bag import jpeg_message
from sam2_ros.messages.conversions import from_pixels, to_rgb
from sam2_ros.recordings.bag_recording import BagRecording
from sam2_ros.recordings.bag_writer import BagWriter
from sam2_ros.tabletop.scene import TabletopScene

IMAGES = 300
TRANSPORTS = {'JPEG': lambda rgb, header: jpeg_message(rgb, header, 90),
              'raw': lambda rgb, header: from_pixels(rgb, 'rgb8', header)}


def write(path: Path, message) -> None:
    scene = TabletopScene(0, 640, 480)
    with BagWriter(path) as bag:
        for i in range(IMAGES):
            header = Header(frame_id='camera')
            header.stamp.sec, header.stamp.nanosec = divmod(1_000_000_000 + i * 33_333_333, 1_000_000_000)
            bag.write('/image', message(scene.render(i)[0], header), 1_000_000_000 + i * 33_333_333)


def main() -> int:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    cv2.setNumThreads(1)
    print('| images | listed (ms each) | read (ms each) | decoded (ms each) | images per second |')
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
