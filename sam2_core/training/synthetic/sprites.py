"""Movable things: cut-out shapes with a texture and shading, rigid, jointed or soft."""
from __future__ import annotations

import functools
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.random import Generator

from sam2_core.training.synthetic.textures import TextureBank

SPRITE_SIZE = 160
REACH = SPRITE_SIZE * 0.46  # largest distance of a shape's points from the centre, pixels


@dataclass(eq=False)
class Sprite:
    """Cut-out shape: colour uint8 (S, S, 3) and alpha uint8 (S, S), with copies of half the size each."""

    levels: list[tuple[np.ndarray, np.ndarray]]

    @classmethod
    def of(cls, colour: np.ndarray, alpha: np.ndarray) -> Sprite:
        """Return a sprite with its smaller copies."""
        levels = [(colour, alpha)]
        while levels[-1][1].shape[0] >= 40:
            colour, alpha = (cv2.resize(part, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
                             for part in levels[-1])
            levels.append((colour, alpha))
        return cls(levels)


@dataclass(eq=False)
class Part:
    """One sprite of a thing. It rotates about ``pivot`` (its own pixels), which sits at ``anchor`` (its parent's).

    The angle at time t is ``rest + swing * sin(rate * t + phase)``, in radians.
    """

    sprite: Sprite
    parent: int = -1
    anchor: tuple[float, float] = (0.0, 0.0)
    pivot: tuple[float, float] = (0.0, 0.0)
    stretch: float = 1.0
    rest: float = 0.0
    swing: float = 0.0
    rate: float = 0.0
    phase: float = 0.0


@dataclass(eq=False)
class Thing:
    """Movable object of a scene. softness: amplitude of its deformation in sprite pixels, 0 for a rigid one."""

    parts: list[Part]
    softness: float = 0.0
    soft_waves: tuple[float, float, float, float] = (1.0, 1.0, 0.0, 0.0)
    aspect: float = 1.0


def filled(points: np.ndarray) -> np.ndarray:
    """Return the alpha of a polygon, given its corners relative to the centre."""
    alpha = np.zeros((SPRITE_SIZE, SPRITE_SIZE), np.uint8)
    shifted = np.round((points + SPRITE_SIZE / 2) * 16).astype(np.int32)
    cv2.fillPoly(alpha, [shifted], 255, cv2.LINE_AA, 4)
    return alpha


def _turned(points: np.ndarray, angle: float) -> np.ndarray:
    c, s = np.cos(angle), np.sin(angle)
    return points @ np.array([[c, s], [-s, c]])


def _blob(rng: Generator) -> np.ndarray:
    theta = np.linspace(0, 2 * np.pi, 90, endpoint=False)
    radius = np.ones_like(theta)
    for k in range(2, int(rng.integers(3, 8))):
        radius += rng.uniform(-0.45, 0.45) / k * 1.6 * np.cos(k * theta + rng.uniform(0, 2 * np.pi))
    radius = np.clip(radius, 0.25, None)
    points = np.stack((np.cos(theta), np.sin(theta)), axis=1) * (radius / radius.max())[:, None] * REACH
    return filled(points * [1, rng.uniform(0.45, 1)])


def _polygon(rng: Generator) -> np.ndarray:
    corners = int(rng.integers(3, 9))
    theta = np.sort(rng.uniform(0, 2 * np.pi, corners)) if rng.random() < 0.5 else (
        np.linspace(0, 2 * np.pi, corners, endpoint=False))
    radius = rng.uniform(0.55, 1, corners) if rng.random() < 0.6 else np.ones(corners)
    return filled(np.stack((np.cos(theta), np.sin(theta)), axis=1) * radius[:, None] * REACH)


def _star(rng: Generator) -> np.ndarray:
    corners = int(rng.integers(4, 9))
    theta = np.linspace(0, 2 * np.pi, corners * 2, endpoint=False)
    radius = np.where(np.arange(corners * 2) % 2, rng.uniform(0.35, 0.75), 1.0)
    return filled(np.stack((np.cos(theta), np.sin(theta)), axis=1) * radius[:, None] * REACH)


def _box(rng: Generator) -> np.ndarray:
    half = np.array([1.0, rng.uniform(0.2, 1)]) * REACH * 0.8
    taper = rng.uniform(0.6, 1) if rng.random() < 0.4 else 1.0
    return filled(np.array([[-half[0], -half[1]], [half[0], -half[1] * taper], [half[0], half[1] * taper],
                             [-half[0], half[1]]]))


def _rounded(rng: Generator) -> np.ndarray:
    power = rng.uniform(2, 6)  # a superellipse
    theta = np.linspace(0, 2 * np.pi, 80, endpoint=False)
    c, s = np.cos(theta), np.sin(theta)
    points = np.stack((np.sign(c) * np.abs(c) ** (2 / power), np.sign(s) * np.abs(s) ** (2 / power)), axis=1)
    return filled(points * REACH * 0.85 * [1, rng.uniform(0.25, 1)])


def _ring(rng: Generator) -> np.ndarray:
    alpha = _blob(rng) if rng.random() < 0.3 else _rounded(rng)
    hole = cv2.resize(alpha, None, fx=(f := rng.uniform(0.35, 0.7)), fy=f, interpolation=cv2.INTER_AREA)
    room = SPRITE_SIZE - hole.shape[0]
    x, y = (int(np.clip(room / 2 + rng.normal(0, 8), 0, room)) for _ in range(2))
    alpha[y:y + hole.shape[0], x:x + hole.shape[1]] = cv2.subtract(
        alpha[y:y + hole.shape[0], x:x + hole.shape[1]], hole)
    return alpha


def _glyph(rng: Generator) -> np.ndarray:
    alpha = np.zeros((SPRITE_SIZE, SPRITE_SIZE), np.uint8)
    letter = chr(int(rng.integers(65, 91)))
    thickness = int(rng.integers(8, 26))
    (width, height), _ = cv2.getTextSize(letter, 0, 4.0, thickness)
    cv2.putText(alpha, letter, ((SPRITE_SIZE - width) // 2, (SPRITE_SIZE + height) // 2), 0, 4.0, 255, thickness,
                cv2.LINE_AA)
    return alpha


def _joined(rng: Generator) -> np.ndarray:
    """Draw two or three simple shapes grown together: mugs, tools, toys."""
    alpha = np.zeros((SPRITE_SIZE, SPRITE_SIZE), np.uint8)
    for _ in range(int(rng.integers(2, 4))):
        piece = (_box, _rounded, _polygon, _blob, _ring)[int(rng.integers(5))](rng)
        scale = rng.uniform(0.35, 0.75)
        move: np.ndarray = cv2.getRotationMatrix2D((SPRITE_SIZE / 2,) * 2, rng.uniform(0, 360), scale)
        move[:, 2] += rng.uniform(-1, 1, 2) * SPRITE_SIZE * 0.22
        alpha = np.maximum(alpha, cv2.warpAffine(piece, move, (SPRITE_SIZE,) * 2))
    return alpha


def _thin(rng: Generator) -> np.ndarray:
    alpha = np.zeros((SPRITE_SIZE, SPRITE_SIZE), np.uint8)
    x = np.linspace(-1, 1, 40)
    y = rng.uniform(0, 0.7) * np.sin(x * rng.uniform(0.5, 4) + rng.uniform(0, 6))
    points = _turned(np.stack((x, y), axis=1) * REACH * 0.9, rng.uniform(0, np.pi)) + SPRITE_SIZE / 2
    cv2.polylines(alpha, [np.round(points).astype(np.int32)], False, 255, int(rng.integers(5, 16)), cv2.LINE_AA)
    if rng.random() < 0.4:
        cv2.circle(alpha, tuple(int(c) for c in points[-1]), int(rng.integers(8, 20)), 255, -1, cv2.LINE_AA)
    return alpha


_SHAPES = (_blob, _blob, _polygon, _star, _box, _box, _rounded, _rounded, _ring, _glyph, _joined, _joined, _joined,
           _thin)


def _limb(rng: Generator, tapered: bool = True) -> np.ndarray:
    width = rng.uniform(0.12, 0.3)
    end = width * (rng.uniform(0.5, 1) if tapered else 1.0)
    alpha = filled(np.array([[-0.85, -width], [0.85, -end], [0.85, end], [-0.85, width]]) * REACH)
    for x, radius in ((-0.85, width), (0.85, end)):
        cv2.circle(alpha, (round(SPRITE_SIZE / 2 + x * REACH), SPRITE_SIZE // 2), round(radius * REACH), 255, -1,
                   cv2.LINE_AA)
    return alpha


def _shade(rng: Generator, colour: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Add light from one side, and edges that turn away from it."""
    size = alpha.shape[0]
    angle = rng.uniform(0, 2 * np.pi)
    ramp = np.linspace(-1, 1, size, dtype=np.float32)
    light = 1 + rng.uniform(0, 0.45) * (ramp[None] * np.cos(angle) + ramp[:, None] * np.sin(angle))
    if rng.random() < 0.6:
        depth = cv2.distanceTransform((alpha > 127).astype(np.uint8), cv2.DIST_L2, 3)
        light *= 1 - rng.uniform(0.1, 0.5) * np.exp(-depth / rng.uniform(2, 14))
    if rng.random() < 0.25:
        x, y = rng.uniform(0.3, 0.7, 2) * size
        yy, xx = np.ogrid[:size, :size]
        light += rng.uniform(0.2, 0.9) * np.exp(-((xx - x) ** 2 + (yy - y) ** 2) / (2 * rng.uniform(5, 25) ** 2))
    return np.clip(colour * light[..., None], 0, 255).astype(np.uint8)


def random_surface(rng: Generator, bank: TextureBank) -> np.ndarray:
    """Return a piece of a texture, coarse or fine, as large as a sprite."""
    texture = bank.draw(rng)
    side = int(rng.integers(60, texture.shape[0]))
    x, y = rng.integers(0, texture.shape[0] - side + 1, 2)
    return cv2.resize(texture[y:y + side, x:x + side], (SPRITE_SIZE,) * 2, interpolation=cv2.INTER_LINEAR)


def textured_sprite(rng: Generator, bank: TextureBank, alpha: np.ndarray, surface: np.ndarray | None = None) -> Sprite:
    """Return a sprite of this shape with a random texture, or ``surface``, and shading."""
    surface = random_surface(rng, bank) if surface is None else surface
    if rng.random() < 0.3:  # a second material on a part of it
        patch = cv2.warpAffine(_SHAPES[int(rng.integers(len(_SHAPES)))](rng), cv2.getRotationMatrix2D(
            (SPRITE_SIZE / 2,) * 2, rng.uniform(0, 360), rng.uniform(0.3, 0.9)), (SPRITE_SIZE,) * 2) > 127
        surface = np.where(patch[..., None], random_surface(rng, bank), surface)
    return Sprite.of(_shade(rng, surface, alpha), alpha)


def rigid(rng: Generator, bank: TextureBank, surface: np.ndarray | None = None) -> Thing:
    """Return a rigid thing of a random shape."""
    alpha = _SHAPES[int(rng.integers(len(_SHAPES)))](rng)
    return Thing([Part(textured_sprite(rng, bank, alpha, surface))], aspect=float(np.exp(rng.normal(0, 0.2))))


def soft(rng: Generator, bank: TextureBank) -> Thing:
    """Return a thing that bends and swells."""
    thing = rigid(rng, bank)
    thing.softness = rng.uniform(3, 11)
    thing.soft_waves = (rng.uniform(0.6, 2.2), rng.uniform(0.1, 0.7), rng.uniform(0, 6), rng.uniform(0, 6))
    return thing


def jointed(rng: Generator, bank: TextureBank) -> Thing:
    """Return a body with limbs, or a chain of links like a robot arm."""
    surface = random_surface(rng, bank) if rng.random() < 0.6 else None
    chain = rng.random() < 0.4
    end, half = 0.85 * REACH, SPRITE_SIZE / 2
    body = _limb(rng) if chain else (_blob, _rounded, _box)[int(rng.integers(3))](rng)
    parts = [Part(textured_sprite(rng, bank, body, surface), stretch=0.6)]
    for i in range(int(rng.integers(1, 4))):
        parent = i if chain else 0
        anchor = (half + end, half) if chain else tuple(half + rng.uniform(-0.5, 0.5, 2) * REACH)
        parts.append(Part(textured_sprite(rng, bank, _limb(rng), surface), parent, anchor, (half - end, half),
                          rng.uniform(0.6, 0.95), rng.uniform(0, 2 * np.pi) if not chain else rng.normal(0, 0.7),
                          rng.uniform(0.1, 1.0), rng.uniform(0.05, 0.6), rng.uniform(0, 6)))
    return Thing(parts)


def hand(rng: Generator, bank: TextureBank) -> Thing:
    """Return a forearm with a hand that reaches to the right, to cover and move things."""
    tone = np.array([rng.uniform(90, 235)] * 3) * [1, rng.uniform(0.65, 0.85), rng.uniform(0.5, 0.75)]
    half = SPRITE_SIZE / 2
    alpha = filled(np.array([[-1.08, -0.3], [0.2, -0.2], [0.2, 0.2], [-1.08, 0.3]]) * REACH)
    cv2.ellipse(alpha, (round(half + 0.35 * REACH), round(half)), (round(0.35 * REACH), round(0.3 * REACH)), 0, 0,
                360, 255, -1, cv2.LINE_AA)
    curl = rng.uniform(0.3, 1.0)
    for finger in range(5):
        root = np.array([0.45, -0.22 + finger * 0.11]) * REACH + half
        tip = root + np.array([0.55 * curl, (finger - 2) * rng.uniform(0.02, 0.12)]) * REACH
        cv2.line(alpha, tuple(int(c) for c in root), tuple(int(c) for c in tip), 255, int(rng.integers(7, 11)),
                 cv2.LINE_AA)
    surface = np.full((SPRITE_SIZE, SPRITE_SIZE, 3), tone) * rng.uniform(0.9, 1.1, (SPRITE_SIZE, SPRITE_SIZE, 1))
    if rng.random() < 0.6:  # a sleeve
        cuff = int(half - rng.uniform(-0.1, 0.6) * REACH)
        surface[:, :cuff] = random_surface(rng, bank)[:, :cuff]
    return Thing([Part(Sprite.of(_shade(rng, np.clip(surface, 0, 255), alpha), alpha))])


def thing(rng: Generator, bank: TextureBank) -> Thing:
    """Return a thing of a random kind."""
    kind = rng.random()
    return rigid(rng, bank) if kind < 0.6 else soft(rng, bank) if kind < 0.78 else jointed(rng, bank)


class ClutterBank:
    """Rigid things for backgrounds. Each follows from the texture bank and its number, and is made on first use."""

    def __init__(self, bank: TextureBank, count: int = 200) -> None:
        self.bank, self.count = bank, count
        self._thing = functools.lru_cache(maxsize=None)(self._make)

    def _make(self, index: int) -> Thing:
        return rigid(np.random.default_rng((self.bank.seed, 1, index)), self.bank)

    def draw(self, rng: Generator) -> Thing:
        """Return one of the things."""
        return self._thing(int(rng.integers(self.count)))
