"""A made-up confocal stack with known truth: two vessels and a nucleus, dark 12-bit values in a 16-bit TIFF.

    python cell_stack.py                        write cells/stack.tif and cells/truth/*.png
    python cell_stack.py --compare cells/out    compare the masks of sam2_track with the truth

The truth is written as label images: pixel = number of the object, 1 and 2 the vessels, 3 the nucleus.
"""
import argparse
from pathlib import Path

import cv2
import numpy as np

from sam2_core.datasets.image_files import read_labels

SLICES, HEIGHT, WIDTH = 40, 256, 320
VOXEL = 0.5, 0.2, 0.2  # micrometres: distance of two slices, height and width of a pixel
NUCLEUS = range(9, 32)  # the slices that it reaches into
FOLDER = Path('cells')


def truth(number: int) -> np.ndarray:
    """Return the label image of a slice, uint8 (HEIGHT, WIDTH)."""
    z = number / (SLICES - 1)
    labels = np.zeros((HEIGHT, WIDTH), np.uint8)
    for label, (x, y, radius, squeeze) in ((1, (75 + 55 * z, 70 + 25 * np.sin(3 * z), 25 - 6 * z, 0.85)),
                                           (2, (250 - 30 * z, 190 - 60 * z * z, 20 + 8 * np.sin(3.1 * z), 1.0))):
        cv2.ellipse(labels, (round(x), round(y)), (round(radius), round(radius * squeeze)), 40 * z, 0, 360, label, -1)
    height = (number - (NUCLEUS.start + NUCLEUS.stop - 1) / 2) / (len(NUCLEUS) / 2)  # -1 to 1 within the nucleus
    if abs(height) < 1:
        size = 33 * np.sqrt(1 - height ** 2)
        cv2.ellipse(labels, (95, 185), (round(size), round(0.75 * size)), 20, 0, 360, 3, -1)
    return labels


def fluorescence(number: int) -> np.ndarray:
    """Return a slice as a camera of 12 bits records it, uint16 (HEIGHT, WIDTH), mostly below 1000."""
    rng = np.random.default_rng(number)
    tissue = cv2.GaussianBlur(np.random.default_rng(99).normal(size=(SLICES + 20, HEIGHT, WIDTH))[number:number + 20]
                              .mean(0), None, 9)
    light = 110 + 55 * np.abs(tissue / tissue.std())
    labels = truth(number)
    for label, strength in ((1, 420), (2, 520), (3, 340)):
        inside = cv2.GaussianBlur((labels == label).astype(np.float32), None, 1.6)  # the blur of the optics
        light += inside * strength * (1 + 0.1 * np.sin(np.arange(WIDTH) / 6 + label + number / 8))
    photons = rng.poisson(light / 6) * 6  # shot noise
    return np.clip(photons + rng.normal(0, 6, light.shape), 0, 4095).astype(np.uint16)


def write(folder: Path) -> None:
    """Write the stack and its truth."""
    (folder / 'truth').mkdir(parents=True, exist_ok=True)
    cv2.imwritemulti(str(folder / 'stack.tif'), [fluorescence(number) for number in range(SLICES)])
    for number in range(SLICES):
        cv2.imwrite(str(folder / 'truth' / f'{number:05}.png'), truth(number))
    print(f'wrote {folder / "stack.tif"}, {SLICES} slices of {WIDTH} x {HEIGHT} pixels, and {folder / "truth"}')


def compare(folder: Path, output: Path) -> None:
    """Print the overlap of the masks of ``output`` with the truth, and the volumes."""
    names = [f'{number:05}.png' for number in range(SLICES)]
    found = np.stack([read_labels(output / 'Annotations' / 'stack' / name) for name in names])
    expected = np.stack([read_labels(folder / 'truth' / name) for name in names])
    for label, name in ((1, 'vessel'), (2, 'vessel'), (3, 'nucleus')):
        one, other = found == label, expected == label
        print(f'object {label} ({name}): IoU {(one & other).sum() / (one | other).sum():.3f}, volume '
              f'{one.sum() * np.prod(VOXEL):.0f} cubic micrometres, truth {other.sum() * np.prod(VOXEL):.0f}')


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--compare', type=Path, metavar='DIR', help='output folder of sam2_track')
    options = parser.parse_args()
    if options.compare:
        compare(FOLDER, options.compare)
    else:
        write(FOLDER)
