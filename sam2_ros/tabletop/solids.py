"""The solids on the demo's table, each cast ray by ray in a frame of its own."""
from dataclasses import dataclass
from math import cos, pi, sin

import numpy as np


@dataclass(frozen=True)
class Pose:
    """Where an object stands: the centre of its base on the table, in metres, and its heading in radians."""
    x: float
    y: float
    yaw: float


@dataclass(frozen=True)
class Ball:
    """Sphere of ``radius`` metres that rests on the table and rolls with its position."""
    radius: float

    @property
    def size(self) -> tuple[float, float, float]:
        return (2 * self.radius,) * 3

    def cast(self, origin, rays, light, pose):
        """See ``Frustum.cast``."""
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
    """Upright can or cup: radius ``bottom`` on the table, ``top`` at ``height`` (metres), closed by a flat lid."""
    bottom: float
    top: float
    height: float

    @property
    def size(self) -> tuple[float, float, float]:
        return (2 * max(self.bottom, self.top),) * 2 + (self.height,)

    def cast(self, origin, rays, light, pose):
        """Nearest hit of each ray; all arrays float32, everything in the object's own frame.

        :param origin: camera centre, three floats, metres
        :param rays: directions (3, h, w), scaled to 1 along the optical axis, so that lengths are depths
        :param light: unit vector towards the lamp, three floats
        :param pose: the object's pose, for solids that move against their own frame
        :return: depth along the optical axis in metres, inf for a miss; cosine between surface normal and light;
            texture coordinates u, v in 0..1; each (h, w), the last three without meaning where the ray misses
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
        # the upper tenth of the texture is the lid, from its centre to its rim
        v = np.where(on_side, 1 - z * (0.9 / self.height), reach * (0.1 / self.top))
        return np.where(hit, depth, np.inf), facing, u, v


@dataclass(frozen=True)
class Block:
    """Upright box, metres: ``width`` along its own x, ``length`` along y, ``height``."""
    width: float
    length: float
    height: float

    @property
    def size(self) -> tuple[float, float, float]:
        return (self.width, self.length, self.height)

    def cast(self, origin, rays, light, pose):
        """See ``Frustum.cast``."""
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
        # texts read from left to right on every side
        u = np.where(on_x, y if origin[0] > 0 else 1 - y, x if origin[1] < 0 else 1 - x)
        return np.where(hit, depth, np.inf), facing, u, 1 - np.where(on_top, y, z)


def _rolling(pose: Pose, radius: float) -> list[list[float]]:
    """Rows of the rotation from table axes to those of a ball that rolled from the origin to ``pose``."""
    a, b = pose.x / radius, -pose.y / radius
    about_y = np.array([[cos(a), 0, sin(a)], [0, 1, 0], [-sin(a), 0, cos(a)]])
    about_x = np.array([[1, 0, 0], [0, cos(b), -sin(b)], [0, sin(b), cos(b)]])
    return (about_y @ about_x).T.tolist()
