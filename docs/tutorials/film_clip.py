"""A made-up film clip with known truth: a camera follows a balloon over hills, and it passes behind a tower.

    python film_clip.py                        write film/clip.mp4 and film/truth/*.png
    python film_clip.py --compare film/out     compare the masks of sam2_track with the truth

The truth is written as mattes: 255 where the balloon is in sight, 0 elsewhere.
"""
import argparse
from pathlib import Path

import cv2
import numpy as np

from sam2_core.datasets.image_files import read_labels

FRAMES, HEIGHT, WIDTH, RATE = 84, 270, 480, 24
FOLDER = Path('film')


def hills() -> np.ndarray:
    """Return the landscape, uint8 BGR, wider than the picture."""
    rng = np.random.default_rng(3)
    width = 2 * WIDTH
    picture = np.zeros((HEIGHT, width, 3), np.float32)
    picture[:] = np.linspace((215, 170, 120), (235, 215, 190), HEIGHT)[:, None]  # the sky
    for base, colour in ((150, (120, 130, 105)), (190, (75, 110, 80)), (225, (50, 80, 60))):
        ridge = base + sum(20 / k * np.sin(np.arange(width) / width * 6.28 * k * 2 + rng.uniform(0, 6.28))
                           for k in range(1, 6))
        below = np.arange(HEIGHT)[:, None] > ridge
        texture = cv2.GaussianBlur(rng.normal(size=(HEIGHT, width)).astype(np.float32), None, 2.5) * 60
        picture = np.where(below[..., None], np.array(colour, np.float32) + texture[..., None], picture)
    return np.clip(picture, 0, 255).astype(np.uint8)


LANDSCAPE = hills()


def balloon(picture: np.ndarray, mask: np.ndarray, x: float, y: float, size: float, colours: tuple) -> None:
    """Draw a balloon of vertical stripes with a basket."""
    shape = np.zeros(picture.shape[:2], np.uint8)
    centre = (round(x), round(y))
    cv2.ellipse(shape, centre, (round(size), round(1.1 * size)), 0, 0, 360, 255, -1)
    skirt = np.array([(x - 0.75 * size, y + 0.7 * size), (x + 0.75 * size, y + 0.7 * size),
                      (x + 0.2 * size, y + 1.5 * size), (x - 0.2 * size, y + 1.5 * size)])
    cv2.fillConvexPoly(shape, skirt.astype(np.int32), 255)
    inside = shape > 0
    columns = np.arange(picture.shape[1])
    stripe = (np.arcsin(np.clip((columns - x) / size, -1, 1)) * 4).astype(int) % 2
    shade = 1.1 - 0.5 * np.clip((columns - x + size) / (2 * size), 0, 1)  # the sun is on the left
    cloth = np.array(colours, np.float32)[stripe] * shade[:, None]
    picture[inside] = np.clip(np.broadcast_to(cloth, picture.shape)[inside], 0, 255)
    mask[inside] = 255


def frame(number: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the picture, uint8 BGR, and the truth, 255 on the balloon."""
    t = number / 72
    pan = 300 * t + 6 * np.sin(9 * t)
    left = int(pan)
    picture = LANDSCAPE[:, left:left + WIDTH].copy()
    truth, other = np.zeros((HEIGHT, WIDTH), np.uint8), np.zeros((HEIGHT, WIDTH), np.uint8)
    balloon(picture, other, 690 - pan, 60, 24, ((60, 150, 215), (200, 205, 210)))
    balloon(picture, truth, 150 + 150 * t, 125 - 25 * np.sin(4 * t), 36 + 8 * t, ((40, 40, 200), (45, 75, 225)))
    tower = round(520 - 1.6 * pan)  # in the foreground
    for layer, colour in ((picture, (62, 70, 80)), (truth, 0)):
        cv2.rectangle(layer, (tower, 20), (tower + 150, HEIGHT), colour, -1)
    picture = cv2.GaussianBlur(picture, None, 0.7)
    grain = np.random.default_rng(number).normal(0, 4, picture.shape)
    return np.clip(picture + grain, 0, 255).astype(np.uint8), truth


def write(folder: Path) -> None:
    """Write the clip and its truth."""
    (folder / 'truth').mkdir(parents=True, exist_ok=True)
    video = cv2.VideoWriter(str(folder / 'clip.mp4'), cv2.VideoWriter.fourcc(*'mp4v'), RATE, (WIDTH, HEIGHT))
    for number in range(FRAMES):
        picture, truth = frame(number)
        video.write(picture)
        cv2.imwrite(str(folder / 'truth' / f'{number:05}.png'), truth)
    video.release()
    print(f'wrote {folder / "clip.mp4"}, {FRAMES} frames of {WIDTH} x {HEIGHT} pixels, and {folder / "truth"}')


def compare(folder: Path, output: Path) -> None:
    """Print the overlap of the masks of ``output`` with the truth, where the balloon is in sight."""
    overlap = {}
    for number in range(FRAMES):
        found = read_labels(output / 'Objects' / 'clip' / '1' / f'{number:05}.png') > 0
        expected = read_labels(folder / 'truth' / f'{number:05}.png') > 0
        if expected.any():
            overlap[number] = (found & expected).sum() / (found | expected).sum()
    lost = [number for number, value in overlap.items() if value < 0.5]
    print(f'IoU {np.mean([*overlap.values()]):.3f} on average of {len(overlap)} frames; below 0.5 in {len(lost)}'
          + (f', from frame {lost[0]} to {lost[-1]}' if lost else ''))


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--compare', type=Path, metavar='DIR', help='output folder of sam2_track')
    options = parser.parse_args()
    if options.compare:
        compare(FOLDER, options.compare)
    else:
        write(FOLDER)
