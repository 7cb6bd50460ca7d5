"""Solids on the table, each ray-cast in its own coordinate frame."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import cos, pi, sin

import numpy as np

Hits = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]  # depth, facing, u, v; see Frustum.cast


@dataclass(frozen=True)
class Pose:
    """Pose of an object: the centre of its base on the table in metres, its heading in radians."""

    x: float
    y: float
    yaw: float


@dataclass(frozen=True)
class Ball:
    """Sphere that rests on the table and rolls as its position changes."""

    radius: float  # metres

    @property
    def size(self) -> tuple[float, float, float]:
        """Extent along the solid's own x, y and z, metres."""
        return 2 * self.radius, 2 * self.radius, 2 * self.radius

    def cast(self, origin: Sequence[float], rays: np.ndarray, light: Sequence[float], pose: Pose) -> Hits:
        """Return the nearest hit of each ray; see ``Frustum.cast``."""
        dx, dy, dz = rays
        ox, oy, oz = origin[0], origin[1], origin[2] - self.radius
        a = dx * dx + dy * dy + dz * dz
        b = dx * ox + dy * oy + dz * oz
        root = b * b - a * (ox * ox + oy * oy + oz * oz - self.radius ** 2)
        hit = root > 0
        depth = (-b - np.sqrt(np.maximum(root, 0))) / a
        x, y, z = ((o + depth * d) / self.radius for o, d in zip((ox, oy, oz), rays, strict=True))
        turned = _rolling(pose, self.radius)
        u = np.arctan2(*(row[0] * x + row[1] * y + row[2] * z for row in (turned[1], turned[0])))
        up = turned[2][0] * x + turned[2][1] * y + turned[2][2] * z
        v = np.arccos(np.clip(up, -1, 1))
        facing = light[0] * x + light[1] * y + light[2] * z
        return np.where(hit, depth, np.inf), facing, u / (2 * pi) + 0.5, v / pi


@dataclass(frozen=True)
class Frustum:
    """Upright can or cup, closed by a flat lid."""

    bottom: float  # radius on the table, metres
    top: float  # radius of the lid, metres
    height: float  # metres

    @property
    def size(self) -> tuple[float, float, float]:
        """Extent along the solid's own x, y and z, metres."""
        widest = 2 * max(self.bottom, self.top)
        return widest, widest, self.height

    def cast(self, origin: Sequence[float], rays: np.ndarray, light: Sequence[float], pose: Pose) -> Hits:
        """Return the nearest hit of each ray.

        All arrays are float32; all coordinates are in the solid's own frame.

        Args:
            origin: Camera centre, x, y, z in metres.
            rays: Directions (3, h, w), scaled to 1 along the optical axis, so that their lengths are depths.
            light: Unit vector towards the lamp.
            pose: Pose of the object, for solids that move within their own frame.

        Returns:
            Depth along the optical axis in metres, inf for a miss; cosine of the angle between surface normal and
            light; texture coordinates u and v, 0 to 1. Each is (h, w); all but the depth are undefined for a miss.
        """
        slope = (self.top - self.bottom) / self.height
        dx, dy, dz = rays
        ox, oy, oz = origin
        radius, step = self.bottom + slope * oz, slope * dz
        a = dx * dx + dy * dy - step * step
        b = dx * ox + dy * oy - step * radius
        root = b * b - a * (ox * ox + oy * oy - radius * radius)
        side = (-b - np.sqrt(np.maximum(root, 0))) / a
        z = oz + side * dz
        on_side = (root > 0) & (z >= 0) & (z <= self.height)
        lid = (self.height - oz) / dz
        depth = np.where(on_side, side, lid)
        x, y = ox + depth * dx, oy + depth * dy
        reach = np.sqrt(x * x + y * y) + 1e-6
        hit = on_side | (reach <= self.top)
        facing = np.where(on_side, (light[0] * x + light[1] * y) / reach - slope * light[2], light[2])
        u = np.arctan2(y, x) / (2 * pi) + 0.5
        # The upper tenth of the texture is the lid, from its centre to its rim.
        v = np.where(on_side, 1 - z * (0.9 / self.height), reach * (0.1 / self.top))
        return np.where(hit, depth, np.inf), facing, u, v


@dataclass(frozen=True)
class Block:
    """Upright box."""

    width: float  # along its own x, metres
    length: float  # along its own y, metres
    height: float  # metres

    @property
    def size(self) -> tuple[float, float, float]:
        """Extent along the solid's own x, y and z, metres."""
        return self.width, self.length, self.height

    def cast(self, origin: Sequence[float], rays: np.ndarray, light: Sequence[float], pose: Pose) -> Hits:
        """Return the nearest hit of each ray; see ``Frustum.cast``."""
        spans = (-self.width / 2, self.width / 2), (-self.length / 2, self.length / 2), (0, self.height)
        enter, leave = [], []
        for (low, high), o, d in zip(spans, origin, rays, strict=True):
            inverse = 1 / np.where(np.abs(d) < 1e-6, np.float32(1e-6), d)
            one, two = (low - o) * inverse, (high - o) * inverse
            enter.append(np.minimum(one, two))
            leave.append(np.maximum(one, two))
        depth = np.maximum(np.maximum(enter[0], enter[1]), enter[2])
        hit = depth <= np.minimum(np.minimum(leave[0], leave[1]), leave[2])
        on_x, on_top = enter[0] == depth, enter[2] == depth
        lit = [np.copysign(part, part * o) for part, o in zip(light, origin, strict=True)]
        facing = np.where(on_x, lit[0], np.where(on_top, lit[2], lit[1]))
        x, y, z = ((o + depth * d - low) / (high - low)
                   for (low, high), o, d in zip(spans, origin, rays, strict=True))
        # The print reads from left to right on every side.
        u = np.where(on_x, y if origin[0] > 0 else 1 - y, x if origin[1] < 0 else 1 - x)
        return np.where(hit, depth, np.inf), facing, u, 1 - np.where(on_top, y, z)


def _rolling(pose: Pose, radius: float) -> list[list[float]]:
    """Return the rows of the rotation from table axes to those of a ball that rolled from the origin to ``pose``."""
    a, b = pose.x / radius, -pose.y / radius
    about_y = np.array([[cos(a), 0, sin(a)], [0, 1, 0], [-sin(a), 0, cos(a)]])
    about_x = np.array([[1, 0, 0], [0, cos(b), -sin(b)], [0, sin(b), cos(b)]])
    return (about_y @ about_x).T.tolist()
