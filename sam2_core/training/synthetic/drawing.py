"""Drawing of a thing into a frame: its sprites are warped, bent and blended, and cast a shadow."""
from __future__ import annotations

import cv2
import numpy as np

from sam2_core.training.synthetic.sprites import SPRITE_SIZE, Thing


def move(x: float, y: float) -> np.ndarray:
    """Return a shift as a matrix (3, 3) for pixels (x, y, 1)."""
    return np.array([[1, 0, x], [0, 1, y], [0, 0, 1]], np.float64)


def turn(angle: float, scale_x: float = 1.0, scale_y: float = 1.0) -> np.ndarray:
    """Return a scaling followed by a rotation, as a matrix (3, 3) for pixels (x, y, 1)."""
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[c * scale_x, -s * scale_y, 0], [s * scale_x, c * scale_y, 0], [0, 0, 1]])


def _cut(place: np.ndarray, side: int, width: int, height: int) -> tuple[int, int, int, int] | None:
    """Return the part of the frame, x0, y0, x1, y1, that a square sprite of ``side`` pixels can touch, or None."""
    corners = place @ np.array([[0, side, side, 0], [0, 0, side, side], [1, 1, 1, 1]])
    x0, y0 = np.maximum(np.floor(corners[:2].min(axis=1)).astype(int), 0)
    x1, y1 = np.minimum(np.ceil(corners[:2].max(axis=1)).astype(int) + 1, (width, height))
    return (x0, y0, x1, y1) if x1 > x0 and y1 > y0 else None


def _warp(image: np.ndarray, place: np.ndarray, cut: tuple[int, int, int, int], border: int) -> np.ndarray:
    x0, y0, x1, y1 = cut
    return cv2.warpAffine(image, (move(-x0, -y0) @ place)[:2], (x1 - x0, y1 - y0), flags=cv2.INTER_LINEAR,
                          borderMode=border)


def _level(thing_levels: list, place: np.ndarray) -> tuple[tuple[np.ndarray, np.ndarray], np.ndarray]:
    """Return the copy of a sprite that suits its size in the frame, with the place of that copy."""
    scale = np.sqrt(abs(np.linalg.det(place[:2, :2])))
    level = int(np.clip(np.floor(np.log2(1 / max(scale, 1e-3)) + 0.3), 0, len(thing_levels) - 1))
    return thing_levels[level], place @ turn(0.0, 2 ** level, 2 ** level)


def _posed(thing: Thing, place: np.ndarray, t: float) -> list[np.ndarray]:
    """Return the place of every part of a thing at time ``t``."""
    places = []
    for part in thing.parts:
        if part.parent < 0:
            places.append(place)
            continue
        angle = part.rest + part.swing * np.sin(part.rate * t + part.phase)
        places.append(places[part.parent] @ move(*part.anchor) @ turn(angle, part.stretch, part.stretch)
                      @ move(-part.pivot[0], -part.pivot[1]))
    return places


def _bent(colour: np.ndarray, alpha: np.ndarray, thing: Thing, t: float) -> tuple[np.ndarray, np.ndarray]:
    side = alpha.shape[0]
    waves, rate, phase_x, phase_y = thing.soft_waves
    amplitude = thing.softness * side / SPRITE_SIZE
    line = np.arange(side, dtype=np.float32)
    wave = line * np.float32(2 * np.pi * waves / side)
    map_x = np.repeat(line[None], side, 0) + (amplitude * np.sin(wave + rate * t + phase_x)).astype(np.float32)[:, None]
    map_y = np.repeat(line[:, None], side, 1) + (amplitude * np.sin(wave + rate * 1.3 * t + phase_y)).astype(
        np.float32)[None]
    return (cv2.remap(colour, map_x, map_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT),
            cv2.remap(alpha, map_x, map_y, cv2.INTER_LINEAR))


def draw_thing(frame: np.ndarray, labels: np.ndarray, thing: Thing, place: np.ndarray, t: float, label: int) -> None:
    """Draw a thing at ``place`` into a frame, uint8 (H, W, 3), and its number into the labels, uint8 (H, W)."""
    for part, part_place in zip(thing.parts, _posed(thing, place, t), strict=True):
        (colour, alpha), part_place = _level(part.sprite.levels, part_place)
        cut = _cut(part_place, alpha.shape[0], frame.shape[1], frame.shape[0])
        if cut is None:
            continue
        if thing.softness:
            colour, alpha = _bent(colour, alpha, thing, t)
        cover = _warp(alpha, part_place, cut, cv2.BORDER_CONSTANT)
        paint = _warp(colour, part_place, cut, cv2.BORDER_REPLICATE)
        x0, y0, x1, y1 = cut
        weight = cover.astype(np.float32) * np.float32(1 / 255)
        frame[y0:y1, x0:x1] = cv2.blendLinear(paint, np.ascontiguousarray(frame[y0:y1, x0:x1]), weight, 1 - weight)
        labels[y0:y1, x0:x1][cover > 127] = label


def draw_shadow(frame: np.ndarray, thing: Thing, place: np.ndarray, t: float, strength: float) -> None:
    """Darken a frame by the shadow of a thing at ``place``."""
    part, place = thing.parts[0], _posed(thing, place, t)[0]
    alpha = part.sprite.levels[-1][1]  # the smallest copy, as shadows are soft
    level = 2 ** (len(part.sprite.levels) - 1)
    place = place @ turn(0.0, level, level)
    cut = _cut(place, alpha.shape[0], frame.shape[1], frame.shape[0])
    if cut is None:
        return
    x0, y0, x1, y1 = cut
    light = 1 - _warp(alpha, place, cut, cv2.BORDER_CONSTANT).astype(np.float32) * np.float32(strength / 255)
    region = np.ascontiguousarray(frame[y0:y1, x0:x1])
    frame[y0:y1, x0:x1] = cv2.blendLinear(region, region, light, np.zeros_like(light))
