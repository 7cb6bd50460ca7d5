"""Procedural textures: training on synthetic clips needs no stored images."""
from __future__ import annotations

import functools

import cv2
import numpy as np
from numpy.random import Generator

TEXTURE_SIZE = 256


def fractal(rng: Generator, size: int, coarsest: int = 3, roughness: float = 0.55) -> np.ndarray:
    """Return smooth noise, float32 (size, size) in 0..1: octaves of random grids, each weaker by ``roughness``."""
    total = np.zeros((size, size), np.float32)
    cells, weight = coarsest, 1.0
    while cells < size // 2 and weight > 0.03:
        grid = rng.random((cells, cells), np.float32)
        total += weight * cv2.resize(grid, (size, size), interpolation=cv2.INTER_CUBIC)
        cells, weight = cells * 2, weight * roughness
    low, high = float(total.min()), float(total.max())
    return np.clip((total - low) / (high - low + 1e-6), 0, 1)


def colour(rng: Generator) -> np.ndarray:
    """Return a random colour, float32 (3,) in 0..255, grey or muted as often as bright."""
    hue = rng.random(3)
    grey = rng.random()
    saturation = rng.random() ** 1.3
    return (255 * np.clip(grey * (1 - saturation) + hue * saturation, 0.02, 0.98)).astype(np.float32)


def _palette(rng: Generator, colours: int) -> np.ndarray:
    """Return a ramp through random colours, uint8 (256, 3)."""
    stops = np.stack([colour(rng) for _ in range(colours)])
    x = np.linspace(0, colours - 1, 256)
    return np.stack([np.interp(x, np.arange(colours), stops[:, c]) for c in range(3)], axis=1).astype(np.uint8)


def _paint(rng: Generator, values: np.ndarray, colours: int = 2) -> np.ndarray:
    return _palette(rng, colours)[(np.clip(values, 0, 1) * 255).astype(np.uint8)]


def _coordinates(rng: Generator, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return rotated pixel coordinates, sometimes slightly warped."""
    angle = rng.uniform(0, np.pi) if rng.random() < 0.6 else 0.0
    y, x = np.mgrid[:size, :size].astype(np.float32)
    u, v = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    if rng.random() < 0.4:
        warp = rng.uniform(4, 30)
        u, v = u + warp * fractal(rng, size), v + warp * fractal(rng, size)
    return u, v


def _flat(rng: Generator, size: int) -> np.ndarray:
    return np.broadcast_to(colour(rng).astype(np.uint8), (size, size, 3)).copy()


def _gradient(rng: Generator, size: int) -> np.ndarray:
    u, _ = _coordinates(rng, size)
    return _paint(rng, (u - u.min()) / (np.ptp(u) + 1e-6))


def _clouds(rng: Generator, size: int) -> np.ndarray:
    return _paint(rng, fractal(rng, size, int(rng.integers(2, 9)), rng.uniform(0.4, 0.8)), int(rng.integers(2, 6)))


def _stripes(rng: Generator, size: int) -> np.ndarray:
    u, _ = _coordinates(rng, size)
    wave = 0.5 + 0.5 * np.sin(u * (2 * np.pi / rng.uniform(6, 60)))
    sharp = rng.choice([1.0, 4.0, 30.0])
    return _paint(rng, 0.5 + (wave - rng.uniform(0.3, 0.7)) * sharp, int(rng.integers(2, 4)))


def _checker(rng: Generator, size: int) -> np.ndarray:
    u, v = _coordinates(rng, size)
    side = rng.uniform(8, 50)
    return _paint(rng, (np.floor(u / side) + np.floor(v / side)) % 2)


def _lines(rng: Generator, size: int) -> np.ndarray:
    """Draw a grid of thin lines, like a cutting mat or tiles."""
    u, v = _coordinates(rng, size)
    side, width = rng.uniform(8, 48), rng.uniform(1, 4)
    return _paint(rng, ((u % side < width) | (v % side < width)).astype(np.float32))


def _bricks(rng: Generator, size: int) -> np.ndarray:
    u, v = _coordinates(rng, size)
    height = rng.uniform(8, 30)
    width, joint = height * rng.uniform(1.5, 3), rng.uniform(1, 4)
    row = np.floor(v / height)
    shifted = u + (row % 2) * width / 2
    tone = np.sin(row * 12.9 + np.floor(shifted / width) * 78.2) * 0.25 + 0.75
    return _paint(rng, np.where((v % height < joint) | (shifted % width < joint), 0.0, tone), 3)


def _blotches(rng: Generator, size: int) -> np.ndarray:
    return _paint(rng, (fractal(rng, size, int(rng.integers(3, 14))) > rng.uniform(0.35, 0.65)).astype(np.float32))


def _dots(rng: Generator, size: int) -> np.ndarray:
    u, v = _coordinates(rng, size)
    side = rng.uniform(8, 40)
    distance = np.hypot(u % side - side / 2, v % side - side / 2)
    return _paint(rng, (distance < side * rng.uniform(0.15, 0.4)).astype(np.float32))


def _cells(rng: Generator, size: int) -> np.ndarray:
    """Draw irregular cells: every pixel has the colour of the nearest of some random points."""
    seeds = np.ones((size, size), np.uint8)
    seeds.reshape(-1)[rng.integers(0, size * size, int(rng.integers(10, 150)))] = 0
    _, labels = cv2.distanceTransformWithLabels(seeds, cv2.DIST_L2, 3, labelType=cv2.DIST_LABEL_PIXEL)
    tones = rng.random(int(labels.max()) + 1)
    return _paint(rng, tones[labels], int(rng.integers(2, 5)))


def _scribbles(rng: Generator, size: int) -> np.ndarray:
    """Draw strokes, boxes and letters, as on labels, cables, prints and distant clutter."""
    image = _flat(rng, size)
    for _ in range(int(rng.integers(5, 40))):
        ink = colour(rng).tolist()
        a, b = (tuple(int(c) for c in rng.integers(0, size, 2)) for _ in range(2))
        thickness = int(rng.integers(1, 8))
        kind = rng.random()
        if kind < 0.4:
            cv2.line(image, a, b, ink, thickness, cv2.LINE_AA)
        elif kind < 0.6:
            reach = int(rng.integers(6, 60))
            cv2.rectangle(image, a, (a[0] + reach, a[1] + int(reach * rng.uniform(0.3, 1.5))), ink,
                          -1 if rng.random() < 0.6 else thickness)
        elif kind < 0.75:
            cv2.circle(image, a, int(rng.integers(3, 40)), ink, -1 if rng.random() < 0.6 else thickness, cv2.LINE_AA)
        else:
            text = ''.join(chr(c) for c in rng.integers(48, 91, int(rng.integers(1, 7))))
            cv2.putText(image, text, a, int(rng.integers(0, 5)), rng.uniform(0.4, 3), ink, min(thickness, 4),
                        cv2.LINE_AA)
    return image


_FAMILIES = (_flat, _gradient, _clouds, _clouds, _stripes, _checker, _lines, _bricks, _blotches, _dots, _cells,
             _scribbles, _scribbles)


def make_texture(rng: Generator, size: int = TEXTURE_SIZE) -> np.ndarray:
    """Return a texture of a random family with dirt and grain, uint8 (size, size, 3)."""
    image = _FAMILIES[int(rng.integers(len(_FAMILIES)))](rng, size)
    if rng.random() < 0.7:
        dirt = 1 - rng.uniform(0.05, 0.5) * fractal(rng, size, int(rng.integers(2, 8)), rng.uniform(0.4, 0.8))
        image = (image * dirt[..., None]).astype(np.uint8)
    if rng.random() < 0.5:
        image = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.4, 1.5))
    if rng.random() < 0.5:
        grain = rng.integers(0, int(rng.integers(4, 40)), (size, size, 1), dtype=np.uint8)
        image = cv2.subtract(image, np.repeat(grain, 3, axis=2))
    return np.ascontiguousarray(image)


class TextureBank:
    """``count`` textures. Each follows from ``seed`` and its number alone, and is made on first use."""

    def __init__(self, seed: int, count: int) -> None:
        self.seed, self.count = seed, count
        self._texture = functools.lru_cache(maxsize=None)(self._make)

    def _make(self, index: int) -> np.ndarray:
        return make_texture(np.random.default_rng((self.seed, index)))

    def draw(self, rng: Generator) -> np.ndarray:
        """Return one of the textures, mirrored and recoloured at random, uint8 (256, 256, 3)."""
        image = self._texture(int(rng.integers(self.count)))
        kind = rng.random()
        if kind < 0.5:
            image = image[:, ::-1] if kind < 0.25 else image[::-1]
        if rng.random() < 0.6:
            mix = np.eye(3)[rng.permutation(3)] + rng.normal(0, 0.15, (3, 3))
            gain = rng.uniform(0.5, 1.4)
            image = cv2.transform(np.ascontiguousarray(image), mix * gain / mix.sum(axis=1, keepdims=True))
        return np.ascontiguousarray(image)
