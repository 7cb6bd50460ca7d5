"""Pairs of masks, drawn from seeds, whose J and F by the published tools are known (published_metrics.py)."""
from __future__ import annotations

import hashlib

import numpy as np

SIZES = ((480, 854), (120, 160), (97, 61), (8, 200))
EDGES = ('empty', 'full', 'pixel', 'corner', 'border', 'frame', 'line', 'hole', 'blobs', 'noise')
SEQUENCES = (1, 2, 3)
FRAMES = 7


def edge_mask(kind: str, size: tuple[int, int], seed: int) -> np.ndarray:
    """Return one of the EDGES as a mask, bool (H, W), at a random place."""
    height, width = size
    rng = np.random.default_rng([seed, height, width, EDGES.index(kind)])
    mask = np.zeros(size, bool)
    y, x = int(rng.integers(height)), int(rng.integers(width))
    if kind == 'full':
        mask[:] = True
    elif kind == 'pixel':
        mask[y, x] = True
    elif kind == 'corner':
        mask[[0, 0, -1, -1], [0, -1, 0, -1]] = rng.permutation([True, True, True, False])
    elif kind == 'border':
        mask[height - 1 - y // 3:, x // 2:] = True
    elif kind == 'frame':
        mask[[0, -1]] = mask[:, [0, -1]] = True
    elif kind == 'line':
        mask[y] = True
    elif kind == 'hole':
        mask[:] = True
        mask[y // 2:y // 2 + 5, x // 2:x // 2 + 5] = False
    elif kind == 'blobs':
        mask = blobs(rng, size, 3)
    elif kind == 'noise':
        mask = rng.random(size) < 0.3
    return mask


def ellipse(size: tuple[int, int], centre: tuple[float, float], axes: tuple[float, float]) -> np.ndarray:
    """Return a filled ellipse; centre and axes are (y, x) in pixels."""
    y, x = np.ogrid[:size[0], :size[1]]
    return ((y - centre[0]) / axes[0]) ** 2 + ((x - centre[1]) / axes[1]) ** 2 <= 1


def blobs(rng: np.random.Generator, size: tuple[int, int], count: int) -> np.ndarray:
    """Return a mask of ellipses, some of which touch the borders of the image."""
    mask = np.zeros(size, bool)
    for _ in range(count):
        mask |= ellipse(size, rng.uniform(-0.1, 1.1, 2) * size, rng.uniform(1, 2 + min(size) / 3, 2))
    return mask


def pairs() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return pairs of predicted and true masks by name: all pairs of edge cases, and shapes that nearly agree."""
    result = {}
    for size in SIZES[1:]:
        for kind in EDGES:
            for other in EDGES:
                result[f'{kind}, {other}, {size[1]} x {size[0]}'] = edge_mask(kind, size, 1), edge_mask(other, size, 2)
    for seed in range(12):
        rng = np.random.default_rng(seed)
        size = SIZES[seed % len(SIZES)]
        true = blobs(rng, size, 1 + seed % 4)
        shift = [int(value) for value in rng.integers(-4, 5, 2)]
        predicted = np.roll(true, shift, (0, 1)) ^ (rng.random(size) < 0.001)
        result[f'nearly equal, seed {seed}'] = predicted, true
    return result


def sequence(seed: int, size: tuple[int, int] = (120, 160)) -> tuple[np.ndarray, np.ndarray]:
    """Return predicted and true labels, uint8 (FRAMES, H, W); objects move, disappear, return and are missed."""
    rng = np.random.default_rng([seed, 77])
    count = 3 * seed
    labels = np.zeros((2, FRAMES, *size), np.uint8)
    for number in range(1, count + 1):
        centre, speed, axes = rng.uniform(0, size), rng.uniform(-6, 6, 2), rng.uniform(3, 18, 2)
        hidden, lost = rng.random(FRAMES) < 0.25, rng.random(FRAMES) < 0.15
        hidden[0] = False
        if number == 1:  # DAVIS counts a frame without the object as correct, SA-V skips it
            hidden[1] = lost[1] = True
        for frame in range(FRAMES):
            place, wrong = centre + frame * speed, rng.uniform(-3, 3, 2)
            if not hidden[frame]:
                labels[1, frame][ellipse(size, place, axes)] = number
            if not lost[frame]:
                labels[0, frame][ellipse(size, place + wrong, axes)] = number
    for number in range(1, count + 1):  # every object is present in the first frame, which holds its prompt
        if not (labels[1, 0] == number).any():
            labels[1, 0, :6, 8 * number:8 * number + 6] = number
    labels[0, 0] = labels[1, 0]
    return labels[0], labels[1]


def digest() -> str:
    """Return a digest of all masks, which shows whether the expected values belong to them."""
    parts = [mask for pair in pairs().values() for mask in pair]
    parts += [labels for seed in SEQUENCES for labels in sequence(seed)]
    return hashlib.sha256(b''.join(np.ascontiguousarray(part).tobytes() for part in parts)).hexdigest()
