"""Textures of the table and of the objects on it, drawn from a random generator."""
from __future__ import annotations

import cv2
import numpy as np

TABLE_PIXELS = 2048  # side of the square table texture

# Colours of one object: its main colour, a lighter shade for patterns, its print. None resembles the wood of the table.
PALETTES = np.array([
    [(190, 40, 45), (228, 98, 90), (250, 240, 230)],
    [(40, 85, 185), (92, 142, 228), (240, 240, 250)],
    [(35, 125, 75), (98, 178, 112), (240, 245, 230)],
    [(195, 60, 150), (228, 125, 195), (250, 240, 250)],
    [(222, 224, 230), (182, 188, 205), (60, 70, 110)],
])


def _cloud(random: np.random.Generator, rows: int, columns: int, coarse_rows: int, coarse_columns: int,
           octaves: int = 4) -> np.ndarray:
    """Return fractal noise from 0 to 1, float32 (rows, columns); its coarsest cells are rows / coarse_rows pixels."""
    total = np.zeros((rows, columns), np.float32)
    for octave in range(octaves):
        cells = random.random((min(coarse_rows << octave, rows), min(coarse_columns << octave, columns)), np.float32)
        total += cv2.resize(cells, (columns, rows), interpolation=cv2.INTER_CUBIC) / 2 ** octave
    total -= total.min()
    return total / total.max()


def _grain(random: np.random.Generator, image: np.ndarray, amount: float = 0.25) -> np.ndarray:
    """Make a painted texture, uint8 RGB, look worn: multiply it with fractal noise."""
    rows, columns = image.shape[:2]
    noise = _cloud(random, rows, columns, 8, 8)
    return np.clip(image * (1 - amount / 2 + amount * (noise - 0.5))[..., None], 0, 255).astype(np.uint8)


def wood(random: np.random.Generator) -> np.ndarray:
    """Return boards of wood, uint8 RGB, TABLE_PIXELS wide and high."""
    side = TABLE_PIXELS
    fibres = _cloud(random, side, side, 128, 6)
    blotches = _cloud(random, side, side, 6, 6)
    board = np.arange(side) * 14 // side
    tone = 0.85 + 0.15 * random.random(14, np.float32)[board][:, None]
    colour = np.array([176, 146, 112], np.float32) * (tone * (0.8 + 0.22 * fibres + 0.14 * blotches))[..., None]
    colour[np.convolve(np.diff(board, prepend=0) > 0, np.ones(5), 'same') > 0] *= 0.75
    return np.clip(colour, 0, 255).astype(np.uint8)


def _canvas(colour: np.ndarray, rows: int = 256, columns: int = 512) -> np.ndarray:
    return np.full((rows, columns, 3), colour, np.uint8)


def _write(image: np.ndarray, text: str, colour: np.ndarray, scale: float, origin: tuple[int, int]) -> None:
    cv2.putText(image, text, origin, cv2.FONT_HERSHEY_DUPLEX, scale, colour.tolist(), int(scale * 4), cv2.LINE_AA)


def beach_ball(random: np.random.Generator, colours: np.ndarray) -> np.ndarray:
    """Return a ball in two colours, uint8 RGB (256, 512, 3)."""
    image = _canvas(colours[0])
    image[:, (np.arange(512) * 6 // 512) % 2 == 1] = colours[1]
    return _grain(random, image)


def can(random: np.random.Generator, colours: np.ndarray, text: str) -> np.ndarray:
    """Return a can with a text on it, uint8 RGB (256, 512, 3)."""
    image = _canvas(colours[0])
    image[32:60] = image[228:] = colours[1]
    for x in (20, 276):
        _write(image, text, colours[2], 1.8, (x + 25, 165))
    image[:26] = colours[1]
    image[20:26] = colours[0]
    return _grain(random, image)


def dotted_box(random: np.random.Generator, colours: np.ndarray, text: str) -> np.ndarray:
    """Return a box with dots and a text on it, uint8 RGB (256, 256, 3)."""
    image = _canvas(colours[0], 256, 256)
    for row in range(5):
        for column in range(5):
            cv2.circle(image, (26 + column * 51, 26 + row * 51), 13, colours[1].tolist(), -1, cv2.LINE_AA)
    _write(image, text, colours[2], 1.8, (75, 150))
    return _grain(random, image)


def zigzag_cup(random: np.random.Generator, colours: np.ndarray) -> np.ndarray:
    """Return a cup with zigzag lines, uint8 RGB (256, 512, 3)."""
    image = _canvas(colours[0])
    x = np.arange(0, 513, 32)
    for offset in (100, 165):
        points = np.stack([x, offset + 28 * (np.arange(len(x)) % 2)], 1).astype(np.int32)
        cv2.polylines(image, [points], False, colours[1].tolist(), 22, cv2.LINE_AA)
    image[:22] = colours[0] // 2
    return _grain(random, image)


def striped_box(random: np.random.Generator, colours: np.ndarray, text: str) -> np.ndarray:
    """Return a box with stripes and a text on it, uint8 RGB (320, 256, 3)."""
    image = _canvas(colours[0], 320, 256)
    for x in range(-320, 256, 64):
        cv2.line(image, (x, 320), (x + 320, 0), colours[1].tolist(), 18, cv2.LINE_AA)
    _write(image, text, colours[2], 2.2, (40, 120))
    return _grain(random, image)
