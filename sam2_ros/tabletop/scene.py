"""Synthetic tabletop seen by a moving RGB-D camera, with exact masks, depth, poses and sizes of its objects.

Coordinates are metres on the table: x to the right, y away from the camera, z up, the table at z = 0. Each object is a
solid (ball, frustum or block) that is ray-cast within its own window of the image. Masks, depth and shading are
therefore exact, and an image takes a few milliseconds. This module does not use ROS.
"""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import cos, pi, sin
from typing import Any

import cv2
import numpy as np

from sam2_ros.tabletop import textures
from sam2_ros.tabletop.solids import Ball, Block, Frustum, Pose
from sam2_ros.tabletop.textures import TABLE_PIXELS

TABLE_METRES = 4.0  # side of the square table texture
LIGHT = np.array([-0.45, -0.35, 0.82])  # unit vector towards the lamp
SHADOW_SCALE = 8  # shadows are soft and are computed at an eighth of the resolution
SHADE_UNIT = 128  # the byte that represents a brightness of 1.0
NEAR = 0.05  # minimum distance at which something is drawn, metres


@dataclass(frozen=True)
class SceneObject:
    """One object on the table."""

    label: str
    solid: Ball | Frustum | Block
    texture: np.ndarray  # uint8 RGB (h, w, 3)
    pose: Callable[[float], Pose]  # as a function of time in seconds


class TabletopScene:
    """Five textured objects on a wooden table, filmed by a slightly moving camera under a drifting light.

    The ball is completely hidden behind the cereal box for about a second every nine seconds. The cup slides into view
    after about two seconds. Frames depend on the arguments alone: frame ``i`` is the same in whatever order frames are
    rendered.

    Attributes:
        objects: The objects by id, named as in ``LABELS``.
    """

    def __init__(self, seed: int = 0, width: int = 640, height: int = 480, fps: float = 15.0,
                 distance: float = 0.82,
                 objects: Callable[[np.random.Generator], dict[int, SceneObject]] | None = None) -> None:
        """Create the scene.

        Args:
            seed: Seed of textures, colours, motions and noise.
            width: Width of the image in pixels, at least 64.
            height: Height of the image in pixels, at least 64.
            fps: Frames per second of scene time; frame i shows second i / fps.
            distance: Distance from the camera to the point it looks at in metres, within 3 %. Below 0.4 the camera is
                among the objects.
            objects: Function that creates other objects than the five, by id, from a generator that depends on
                ``seed``.

        Raises:
            ValueError: A side is below 64 pixels, or ``fps`` or ``distance`` is not positive.
        """
        if min(width, height) < 64:
            raise ValueError(f'image size {width}x{height}: each side must be at least 64')
        if not fps > 0:
            raise ValueError(f'fps {fps}: must be positive')
        if not distance > 0:
            raise ValueError(f'distance {distance}: must be positive')
        self.distance = distance
        self.seed, self.width, self.height, self.fps = seed, width, height, fps
        random = np.random.default_rng(seed)
        self.focal = 1.0 * width
        self._table = textures.wood(random)
        self._phases = random.uniform(0, 2 * np.pi, 8)
        self.objects = (objects or _make_objects)(random)
        x, y = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
        self._rays = np.stack([(x - (width - 1) / 2) / self.focal, (y - (height - 1) / 2) / self.focal,
                               np.ones_like(x)])
        noise = random.normal(0, 3, (height + 64, width + 64, 3)).round()
        self._brighter = np.maximum(noise, 0).astype(np.uint8)
        self._darker = np.maximum(-noise, 0).astype(np.uint8)

    @property
    def intrinsics(self) -> np.ndarray:
        """Pinhole camera matrix (3, 3) in pixels; (0, 0) is the centre of the top-left pixel."""
        return np.array([[self.focal, 0, (self.width - 1) / 2], [0, self.focal, (self.height - 1) / 2], [0, 0, 1]])

    def camera_pose(self, i: int) -> tuple[np.ndarray, np.ndarray]:
        """Return rotation and centre of the camera in frame i, in table coordinates.

        The columns of the rotation (3, 3) are the optical axes right, down and forward; the centre (3,) is in metres.
        """
        t, phase = i / self.fps, self._phases
        azimuth = 0.05 * np.sin(0.5 * t + phase[0]) + 0.012 * np.sin(1.7 * t + phase[1])
        distance = self.distance * (1 + 0.03 * np.sin(0.37 * t + phase[2]))
        target = np.array([0.02 * np.sin(0.6 * t + phase[3]), 0.03 + 0.015 * np.sin(0.8 * t + phase[4]), 0.05])
        elevation = 0.72
        centre = target + distance * np.array([np.cos(elevation) * np.sin(azimuth),
                                               -np.cos(elevation) * np.cos(azimuth), np.sin(elevation)])
        forward = (target - centre) / distance
        right = np.cross(forward, [0, 0, 1])
        right /= np.linalg.norm(right)
        return np.stack([right, np.cross(forward, right), forward], 1), centre

    def pose(self, object_id: int, i: int) -> Pose:
        """Return the pose of an object in frame i.

        Raises:
            KeyError: No object has this id.
        """
        return self.objects[object_id].pose(i / self.fps)

    def box(self, object_id: int, i: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the oriented box of a whole object in frame i, whether it is visible or not.

        Returns:
            Its centre (3,) and its axes as the columns of (3, 3), right-handed, both in the camera's optical frame, and
            its size (3,) along the axes; metres.
        """
        rotation, centre = self.camera_pose(i)
        pose, solid = self.pose(object_id, i), self.objects[object_id].solid
        middle = np.array([pose.x, pose.y, solid.size[2] / 2]) - centre
        axes = np.array([[cos(pose.yaw), -sin(pose.yaw), 0], [sin(pose.yaw), cos(pose.yaw), 0], [0, 0, 1]])
        return rotation.T @ middle, rotation.T @ axes, np.array(solid.size)

    def frame(self, i: int) -> tuple[np.ndarray, dict[int, np.ndarray]]:
        """Return the image of frame i, uint8 RGB (height, width, 3), and the masks of all objects by id.

        A mask, bool (height, width), has the visible pixels of its object; it is empty while the object is hidden or
        outside of the image.
        """
        rgb, ids = self.render(i)
        return rgb, {key: ids == key for key in self.objects}

    def render(self, i: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the image of frame i, uint8 RGB (height, width, 3), and its label image.

        The label image, uint16 (height, width), has the object id of each pixel, 0 for the table.
        """
        rgb, ids, _ = self._cast(i)
        return rgb, ids

    def render_depth(self, i: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return image and label image as ``render`` does, and the depth image of frame i.

        Depth, float32 (height, width), is measured along the optical axis in metres; it is inf beyond the horizon.
        """
        rgb, ids, depth = self._cast(i)
        rotation, centre = self.camera_pose(i)
        downward = -np.tensordot(rotation[2].astype(np.float32), self._rays, 1)
        with np.errstate(divide='ignore'):
            table = np.where(downward > 0, np.float32(centre[2]) / downward, np.float32(np.inf))
        return rgb, ids, np.minimum(depth, table)

    def _cast(self, i: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return image, label image and the depth of the objects (inf where there is none) of frame i."""
        rotation, centre = self.camera_pose(i)
        poses = {key: self.pose(key, i) for key in self.objects}
        rgb = self._draw_table(rotation, centre, poses)
        ids = np.zeros((self.height, self.width), np.uint16)
        nearest = np.full((self.height, self.width), np.inf, np.float32)
        for key, item in self.objects.items():
            self._draw_object(key, item, poses[key], rotation, centre, rgb, ids, nearest)
        return self._expose(rgb, i), ids, nearest

    def _draw_table(self, rotation: np.ndarray, centre: np.ndarray, poses: dict[int, Pose]) -> np.ndarray:
        texels = TABLE_PIXELS / TABLE_METRES
        half = TABLE_METRES / 2
        table_from_texture = np.array([[1 / texels, 0, -half], [0, -1 / texels, half], [0, 0, 1]])
        view = rotation.T @ np.column_stack([np.eye(3)[:, :2], -centre])
        rgb = cv2.warpPerspective(self._table, self.intrinsics @ view @ table_from_texture, (self.width, self.height),
                                  flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
        dx, dy, dz = _rotate(rotation, self._rays[:, ::SHADOW_SCALE, ::SHADOW_SCALE])
        depth = -float(centre[2]) / np.minimum(dz, -1e-3)
        x, y = float(centre[0]) + depth * dx, float(centre[1]) + depth * dy
        light = np.ones(x.shape, np.float32)
        for key, pose in poses.items():
            width, length, height = self.objects[key].solid.size
            along, across = _turn(x - pose.x, y - pose.y, -pose.yaw)
            shift_x, shift_y = (-LIGHT[:2] / LIGHT[2] * height / 2).tolist()
            shift_x, shift_y = _turn(shift_x, shift_y, -pose.yaw)
            contact = (along / width) ** 2 + (across / length) ** 2
            cast = (((along - shift_x) / (width + abs(shift_x))) ** 2
                    + ((across - shift_y) / (length + abs(shift_y))) ** 2)
            light *= (1 - 0.3 * np.exp(-2.5 * contact)) * (1 - 0.2 * np.exp(-3.5 * cast))
        light = cv2.resize(light, (self.width, self.height))
        return cv2.multiply(rgb, cv2.merge([cv2.convertScaleAbs(light, alpha=255)] * 3), scale=1 / 255)

    def _draw_object(self, key: int, item: SceneObject, pose: Pose, rotation: np.ndarray, centre: np.ndarray,
                     rgb: np.ndarray, ids: np.ndarray, nearest: np.ndarray) -> None:
        """Draw an object into the image ``rgb``, the label image ``ids`` and the depth image ``nearest``."""
        window = self._window(item.solid.size, pose, rotation, centre)
        if window is None:
            return
        own_from_table = np.array([[cos(pose.yaw), sin(pose.yaw), 0], [-sin(pose.yaw), cos(pose.yaw), 0], [0, 0, 1]])
        origin = (own_from_table @ (centre - [pose.x, pose.y, 0])).tolist()
        rays = _rotate(own_from_table @ rotation, self._rays[(slice(None), *window)])
        depth, facing, u, v = item.solid.cast(origin, rays, (own_from_table @ LIGHT).tolist(), pose)
        seen = (depth > NEAR) & (depth < nearest[window])
        rows, columns = item.texture.shape[:2]
        colour = cv2.remap(item.texture, u * columns, v * (rows - 1), cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        shade = cv2.convertScaleAbs(0.5 + 0.6 * np.maximum(facing, 0), alpha=SHADE_UNIT)
        shaded = cv2.multiply(colour, cv2.merge([shade] * 3), scale=1 / SHADE_UNIT)
        cv2.copyTo(shaded, seen.view(np.uint8), rgb[window])
        ids[window][seen] = key
        np.copyto(nearest[window], depth, where=seen)

    def _window(self, size: tuple[float, float, float], pose: Pose, rotation: np.ndarray,
                centre: np.ndarray) -> tuple[slice, slice] | None:
        """Return the rows and columns of the image that can show a solid of this size, None if it is outside."""
        width, length, height = size
        along = np.array([-1, 1, -1, 1, -1, 1, -1, 1]) * width / 2
        across = np.array([-1, -1, 1, 1, -1, -1, 1, 1]) * length / 2
        x, y = _turn(along, across, pose.yaw)
        corners = np.stack([x + pose.x, y + pose.y, np.repeat([0, height], 4)], 1)
        seen = (corners - centre) @ rotation
        if seen[:, 2].min() < NEAR:
            return None
        pixels = seen[:, :2] / seen[:, 2:] * self.focal + [(self.width - 1) / 2, (self.height - 1) / 2]
        limit = [self.width, self.height]
        x0, y0 = np.clip(np.floor(pixels.min(0)), 0, limit).astype(int)
        x1, y1 = np.clip(np.ceil(pixels.max(0)) + 1, 0, limit).astype(int)
        return (slice(y0, y1), slice(x0, x1)) if x1 > x0 and y1 > y0 else None

    def _expose(self, rgb: np.ndarray, i: int) -> np.ndarray:
        """Add the effects of a real camera: soft edges, drifting light and white balance, sensor noise."""
        t, phase = i / self.fps, self._phases
        gain = 1 + 0.10 * np.sin(0.45 * t + phase[5]) + 0.03 * np.sin(2.1 * t + phase[6])
        warmth = 0.03 * np.sin(0.3 * t + phase[7])
        levels = np.arange(256)[:, None] * (gain * np.array([1 + warmth, 1, 1 - warmth]))
        rgb = cv2.GaussianBlur(rgb, (3, 3), 0.7)
        rgb = cv2.LUT(rgb, np.clip(levels, 0, 255).astype(np.uint8)[:, None])
        dx, dy = np.random.default_rng((self.seed, i)).integers(0, 64, 2)
        part = np.s_[dy:dy + self.height, dx:dx + self.width]
        return cv2.subtract(cv2.add(rgb, self._brighter[part]), self._darker[part])


def _rotate(matrix: np.ndarray, rays: np.ndarray) -> np.ndarray:
    """Rotate directions (3, h, w)."""
    return np.tensordot(matrix.astype(np.float32), rays, 1)


def _turn(x: Any, y: Any, angle: float) -> tuple[Any, Any]:
    """Rotate x and y, numbers or arrays, about the origin."""
    return cos(angle) * x - sin(angle) * y, sin(angle) * x + cos(angle) * y


def _smooth(t: float, start: float, duration: float) -> float:
    """Return 0 before ``start``, 1 after ``start + duration``, and a smooth step between them."""
    s = min(max((t - start) / duration, 0), 1)
    return s * s * (3 - 2 * s)


OCCLUSION_PERIOD = 9.0  # seconds
LABELS = {1: 'ball', 2: 'can', 3: 'tea box', 4: 'cup', 5: 'cereal'}


def _make_objects(random: np.random.Generator) -> dict[int, SceneObject]:
    """Return the five objects of the default scene."""
    phase = random.uniform(0, 2 * pi, 6).tolist()
    colours = random.permutation(textures.PALETTES)

    def can(t: float) -> Pose:
        return Pose(-0.13 + 0.04 * cos(0.7 * t + phase[0]), 0.24 + 0.04 * sin(0.7 * t + phase[0]), 0.5 * t)

    def ball(t: float) -> Pose:
        return Pose(0.025 * sin(0.8 * t + phase[1]), 0.06 + 0.02 * sin(1.1 * t + phase[2]), 0)

    def tea(t: float) -> Pose:
        return Pose(0.27 + 0.04 * sin(0.6 * t + phase[3]), 0.20 + 0.03 * cos(0.5 * t + phase[3]),
                    0.6 * sin(0.4 * t + phase[4]))

    def cup(t: float) -> Pose:
        return Pose(0.75 - 0.55 * _smooth(t, 1.5, 2.5) + 0.02 * sin(0.5 * max(t - 4, 0)),
                    -0.15 + 0.02 * sin(0.6 * t + phase[5]), 0.3 * t)

    def cereal(t: float) -> Pose:
        s = t % OCCLUSION_PERIOD
        return Pose(-0.32 + 0.32 * (_smooth(s, 4.5, 1.4) - _smooth(s, 6.1, 1.4)), -0.06, 0.12 * sin(0.7 * t))

    return {
        1: SceneObject(LABELS[1], Ball(0.05), textures.beach_ball(random, colours[0]), ball),
        2: SceneObject(LABELS[2], Frustum(0.048, 0.048, 0.13), textures.can(random, colours[1], 'SOUP'), can),
        3: SceneObject(LABELS[3], Block(0.11, 0.08, 0.10), textures.dotted_box(random, colours[2], 'TEA'), tea),
        4: SceneObject(LABELS[4], Frustum(0.037, 0.052, 0.10), textures.zigzag_cup(random, colours[3]), cup),
        5: SceneObject(LABELS[5], Block(0.19, 0.05, 0.22), textures.striped_box(random, colours[4], 'OATS'), cereal),
    }
