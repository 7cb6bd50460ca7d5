"""The synthetic tabletop's objects as its depth camera sees them, and where they truly are.

Used by the accuracy tests, which set the limits, and by benchmarks/depth_accuracy.py, which prints the figures.
"""
from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import NamedTuple

import cv2
import numpy as np

from sam2_core.masks import mask_box
from sam2_ros.depth.surface import Camera, DepthFrame, measure
from sam2_ros.tabletop.depth_noise import worsen
from sam2_ros.tabletop.scene import TabletopScene
from sam2_ros.tabletop.solids import Ball

EDGE = 3  # pixels: an object nearer to the edge of the image is not whole


class Sight(NamedTuple):
    """One object that is seen whole."""

    scene: TabletopScene
    number: int
    object_id: int
    depth: DepthFrame
    mask: np.ndarray


class Error(NamedTuple):
    centre: float  # metres
    size: np.ndarray  # (3,): relative, of the longest side first


def sights(scene: TabletopScene, numbers, noisy: bool) -> Iterator[Sight]:
    """Every object that is neither hidden in part nor cut by the edge of the image."""
    middle = (scene.width - 1) / 2, (scene.height - 1) / 2
    camera = Camera.pinhole(scene.width, scene.height, scene.focal, scene.focal, *middle)
    for number in numbers:
        _, ids, metres = scene.render_depth(number)
        if noisy:
            metres = worsen(metres, np.random.default_rng(number))
        depth = DepthFrame(np.where(metres > 0, metres, np.float32(np.nan)), camera)
        for object_id, item in scene.objects.items():
            mask = ids == object_id
            alone = copy.copy(scene)
            alone.objects = {object_id: item}
            inside = mask[EDGE:-EDGE, EDGE:-EDGE].sum() == mask.sum() > 0
            if inside and mask.sum() == np.count_nonzero(alone.render(number)[1]):
                yield Sight(scene, number, object_id, depth, mask)


def displaced(mask: np.ndarray, pixels: int) -> np.ndarray:
    """A mask whose edge lies outside (or inside, where negative) by so many pixels."""
    kernel = np.ones((3, 3), np.uint8)
    change = cv2.dilate if pixels > 0 else cv2.erode
    return change(mask.astype(np.uint8), kernel, iterations=abs(pixels)) > 0


def truth(sight: Sight) -> tuple[np.ndarray, np.ndarray]:
    """Centre (3,) and size (3,), the longest first, from the scene's geometry alone.

    From above, all sides of a can, cup or box are seen in their full extent: what is seen has the box of the solid. Of
    a ball a cap is seen, as far as rays touch it: the box of that.
    """
    solid = sight.scene.objects[sight.object_id].solid
    centre, _, size = sight.scene.box(sight.object_id, sight.number)
    if isinstance(solid, Ball):
        distance = np.linalg.norm(centre)
        beyond = solid.radius ** 2 / distance  # from the rim of the cap to the middle of the ball
        size = np.array([2 * np.sqrt(solid.radius ** 2 - beyond ** 2)] * 2 + [solid.radius - beyond])
        centre = centre * (1 - (beyond + size[2] / 2) / distance)
    return centre, np.sort(size)[::-1]


def error(sight: Sight, mask: np.ndarray, previous=None, erosion: int = 2) -> tuple[Error, object]:
    """Of the box measured with this mask; and the box."""
    found = measure(sight.depth, mask, mask_box(mask), erosion, previous)
    centre, size = truth(sight)
    return Error(float(np.linalg.norm(found.centre - centre)), np.sort(found.size)[::-1] / size - 1), found
