"""Measure the cost of depth in the worker: decoding, oriented boxes, and each message made from depth.

    OMP_NUM_THREADS=1 python benchmarks/depth_cost.py

Uses the synthetic tabletop at 1280 x 720 with its true masks. Prints a Markdown table with the median of 100 runs in
milliseconds.
"""
from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable

import cv2
import numpy as np
from builtin_interfaces.msg import Time
from std_msgs.msg import Header

from sam2_core.masks import mask_box
from sam2_ros.depth.lens import PixelRays
from sam2_ros.depth.matching import to_metres
from sam2_ros.depth.surface import DepthFrame, measure
from sam2_ros.messages.conversions import from_pixels
from sam2_ros.msg import Instance
from sam2_ros.perception.frame import Frame, TrackedObject
from sam2_ros.runtime.parameters import Parameters
from sam2_ros.tabletop.scene import TabletopScene
from sam2_ros.topics.clouds import (
    Markers,
    background_depth_message,
    background_points_message,
    object_points_message,
    points_message,
)

WIDTH, HEIGHT = 1280, 720
NUMBER = 60  # an image with all five objects in view, one of them large


def median(run: Callable[[], object], runs: int = 100) -> float:
    """Return the median time of a call in milliseconds, after a warm-up."""
    run()
    seconds = []
    for _ in range(runs):
        started = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - started)
    return 1000 * float(np.median(seconds))


def main() -> int:
    """Measure and print a table."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    cv2.setNumThreads(1)
    scene, chosen = TabletopScene(0, WIDTH, HEIGHT), Parameters()
    rgb, ids, metres = scene.render_depth(NUMBER)
    millimetres = from_pixels((metres * 1000).round().astype(np.uint16), '16UC1', Header())
    floats = from_pixels(metres, '32FC1', Header())
    known, raw = to_metres(millimetres, chosen.depth_min, chosen.depth_max)
    depth = DepthFrame(known, PixelRays.pinhole(WIDTH, HEIGHT, scene.focal, scene.focal, (WIDTH - 1) / 2,
                                                (HEIGHT - 1) / 2), raw)
    seen = [(key, ids == key) for key in scene.objects if (ids == key).any()]
    first = [measure(depth, mask, mask_box(mask), chosen.edge_erosion) for _, mask in seen]
    objects = [TrackedObject(key, scene.objects[key].label, Instance.TRACKED, 0.9, 0.9, Time(), mask_box(mask), mask,
                             shape) for (key, mask), shape in zip(seen, first, strict=True)]
    frame = Frame(Header(), rgb, objects, 0, depth)
    markers = Markers()

    def boxes(known_before: bool) -> None:
        for item in objects:
            measure(depth, item.mask, item.box, chosen.edge_erosion, item.shape if known_before else None)
    print('| step | ms |\n|---|---|')
    count = len(objects)
    points = points_message(frame, chosen).width
    for name, milliseconds in {
            'decode 16UC1': median(lambda: to_metres(millimetres, chosen.depth_min, chosen.depth_max)),
            'decode 32FC1': median(lambda: to_metres(floats, chosen.depth_min, chosen.depth_max)),
            'oriented box of an object': median(lambda: boxes(True)) / count,
            'first oriented box of an object': median(lambda: boxes(False)) / count,
            f'~/points ({count} objects, {points} points)': median(lambda: points_message(frame, chosen)),
            'points of one object': median(lambda: object_points_message(frame, objects[0], chosen)),
            '~/markers': median(lambda: markers.message(frame, chosen)),
            '~/background_depth': median(lambda: background_depth_message(frame, chosen)),
            '~/background_points': median(lambda: background_points_message(frame, chosen))}.items():
        print(f'| {name} | {milliseconds:.1f} |')
    return 0


if __name__ == '__main__':
    sys.exit(main())
