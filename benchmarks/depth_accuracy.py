"""Measure the accuracy of oriented boxes against the truth of the synthetic tabletop.

    python benchmarks/depth_accuracy.py

All objects that are completely visible are measured, in images of 640 x 480 and 1280 x 720 at several distances. Masks
are true, or 2 pixels too large or too small. Depth is exact, or has the noise, flying pixels and holes of a structured-
light camera. Prints a Markdown table: mean and maximum error of the centre, and range of the errors of the size.
"""
from __future__ import annotations

import argparse
import sys

import numpy as np

from sam2_ros.tabletop.scene import TabletopScene
from testing.depth_truth import displaced, error, sights

SIZES = ((640, 480), (1280, 720))
DISTANCES = (0.5, 0.75, 1.0, 1.25, 1.5)
MASKS = {'true': 0, '2 px too large': 2, '2 px too small': -2}  # name -> pixels by which the edge is displaced


def main() -> int:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--seeds', type=int, default=2, help='number of scenes at each distance (default: 2)')
    parser.add_argument('--frames', type=int, nargs='+', default=[5, 60, 100, 150],
                        help='numbers of the images of a scene (default: 5 60 100 150)')
    options = parser.parse_args()
    print('| image | depth | mask | boxes | centre, mean (mm) | centre, maximum (mm) | size (%) |')
    print('|---|---|---|---|---|---|---|')
    for width, height in SIZES:
        scenes = [TabletopScene(seed, width, height, fps=10, distance=distance)
                  for seed in range(options.seeds) for distance in DISTANCES]
        for noisy in (False, True):
            seen = [sight for scene in scenes for sight in sights(scene, options.frames, noisy)]
            for name, pixels in MASKS.items():
                errors = [error(sight, displaced(sight.mask, pixels))[0] for sight in seen]
                centres = 1000 * np.array([item.centre for item in errors])
                sizes = 100 * np.concatenate([item.size for item in errors])
                print(f'| {width} x {height} | {"noisy" if noisy else "exact"} | {name} | {len(errors)} | '
                      f'{centres.mean():.1f} | {centres.max():.1f} | {sizes.min():+.0f} to {sizes.max():+.0f} |',
                      flush=True)
    return 0


if __name__ == '__main__':
    sys.exit(main())
