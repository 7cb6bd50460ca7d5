"""Measure the conversion of every encoding to the RGB that the model sees, and of compressed depth to metres.

    OMP_NUM_THREADS=1 python benchmarks/encodings.py

Processor time of one core for 1280 x 720 pixels, the median of several calls, and its ratio to bgr8 or raw depth in the
same run. An rgb8 image is not copied. Prints Markdown tables.
"""
from __future__ import annotations

import sam2_ros.runtime.threads  # noqa: F401  before torch

# isort: split
import argparse
import sys
import time
from collections.abc import Callable

import cv2
import numpy as np
from sensor_msgs.msg import Image
from std_msgs.msg import Header

from sam2_ros.depth.depth_messages import depth_head
from sam2_ros.depth.matching import to_metres
from sam2_ros.messages.conversions import from_pixels, to_rgb
from sam2_ros.messages.encodings import ENCODINGS, PLANAR_YUV
from sam2_ros.messages.intensity import FollowedRange
from sam2_ros.tabletop.scene import TabletopScene
from testing.depth_codec import compressed_depth

HEIGHT, WIDTH = 720, 1280
CALLS = 15


def milliseconds(work: Callable[[], object]) -> float:
    """Return the median processor time of a call in milliseconds, after a first one."""
    work()
    times = []
    for _ in range(CALLS):
        start = time.process_time_ns()
        work()
        times.append((time.process_time_ns() - start) / 1e6)
    return float(np.median(times))


def noise(encoding: str) -> Image:
    """Return an image of random bytes, which take the longest."""
    found = ENCODINGS[encoding]
    rows = HEIGHT * 3 // 2 if found.kind == PLANAR_YUV else HEIGHT
    data = np.random.default_rng(0).integers(0, 256, (rows, WIDTH * found.size), np.uint8)
    message = Image(height=HEIGHT, width=WIDTH, encoding=encoding, step=WIDTH * found.size)
    message.data.frombytes(data.tobytes())
    return message


def depths() -> dict[str, np.ndarray]:
    """Return smooth depth, noisy depth with holes, and depth of which every second pixel is a hole, millimetres."""
    metres = TabletopScene(0, WIDTH, HEIGHT).render_depth(10)[2]
    smooth = (1000 * np.nan_to_num(metres)).astype(np.uint16)
    random = np.random.default_rng(0)
    noisy = (smooth + random.integers(-3, 4, smooth.shape)).astype(np.uint16)
    noisy[random.random(smooth.shape) < 0.02] = 0
    holes = noisy.copy()
    holes[:, ::2] = 0
    return {'smooth': smooth, 'noisy': noisy, 'every second pixel': holes}


def main() -> int:
    """Measure and print the tables."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    cv2.setNumThreads(1)
    message = noise('bgr8')
    base = milliseconds(lambda: to_rgb(message))
    print('| encoding | ms | of bgr8 |\n|---|---|---|')
    for name in ENCODINGS:
        message, followed = noise(name), FollowedRange()
        spent = milliseconds(lambda message=message, followed=followed: to_rgb(
            message, None, lambda pixels: followed.follow(pixels, 0)))
        print(f'| {name} | {spent:.2f} | {spent / base:.1f} |', flush=True)
    print('\n| depth | transport | kilobytes | ms | of raw |\n|---|---|---|---|---|')
    for name, depth in depths().items():
        raw = from_pixels(depth, '16UC1', Header())
        plain = milliseconds(lambda raw=raw: to_metres(depth_head(raw).image(), 0.1, 10.0))
        print(f'| {name} | raw | {len(raw.data) / 1e3:.0f} | {plain:.2f} | 1.0 |')
        for kind, pixels in (('16UC1', depth), ('32FC1', depth.astype(np.float32) / 1000)):
            for codec in ('png', 'rvl'):
                packed = compressed_depth(pixels, Header(), codec)
                spent = milliseconds(lambda packed=packed: to_metres(depth_head(packed).image(), 0.1, 10.0))
                print(f'| {name} | {kind} {codec} | {len(packed.data) / 1e3:.0f} | {spent:.1f} | {spent / plain:.0f} |',
                      flush=True)
    return 0


if __name__ == '__main__':
    sys.exit(main())
