"""Objects of the synthetic tabletop as its depth camera sees them, with their true boxes.

The accuracy tests set limits for the errors, and benchmarks/depth_accuracy.py prints them.
"""
from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import cv2
import numpy as np

from sam2_core.masks import mask_box
from sam2_ros.depth.lens import PixelRays
from sam2_ros.depth.oriented_box import OrientedBox
from sam2_ros.depth.surface import DepthFrame, measure
from sam2_ros.tabletop.depth_noise import worsen
from sam2_ros.tabletop.scene import TabletopScene
from sam2_ros.tabletop.solids import Ball

EDGE = 3  # pixels; an object nearer to the edge of the image counts as cut off


class Sight(NamedTuple):
    """An object that is completely visible in one image."""

    scene: TabletopScene
    number: int
    object_id: int
    depth: DepthFrame
    mask: np.ndarray


class Error(NamedTuple):
    """Error of a box."""

    centre: float  # distance of the centres in metres
    size: np.ndarray  # (3,): relative errors of the sides, the longest first


def sights(scene: TabletopScene, numbers: Iterable[int], noisy: bool) -> Iterator[Sight]:
    """Yield every object of these images that is neither partly hidden nor cut off by the edge of the image."""
    middle = (scene.width - 1) / 2, (scene.height - 1) / 2
    rays = PixelRays.pinhole(scene.width, scene.height, scene.focal, scene.focal, *middle)
    for number in numbers:
        _, ids, metres = scene.render_depth(number)
        if noisy:
            metres = worsen(metres, np.random.default_rng(number))
        depth = DepthFrame(np.where(metres > 0, metres, np.float32(np.nan)), rays)
        for object_id, item in scene.objects.items():
            mask = ids == object_id
            alone = copy.copy(scene)
            alone.objects = {object_id: item}
            inside = mask[EDGE:-EDGE, EDGE:-EDGE].sum() == mask.sum() > 0
            if inside and mask.sum() == np.count_nonzero(alone.render(number)[1]):
                yield Sight(scene, number, object_id, depth, mask)


def displaced(mask: np.ndarray, pixels: int) -> np.ndarray:
    """Return a mask grown by a number of pixels, or shrunk if the number is negative."""
    kernel = np.ones((3, 3), np.uint8)
    change = cv2.dilate if pixels > 0 else cv2.erode
    return change(mask.astype(np.uint8), kernel, iterations=abs(pixels)) > 0


def truth(sight: Sight) -> tuple[np.ndarray, np.ndarray]:
    """Return the true centre (3,) and side lengths (3,), the longest first, from the geometry of the scene.

    From above, all sides of a can, cup or box are visible in their full extent, so the visible surface has the box of
    the solid. Of a ball, only the cap inside the tangent rays is visible, which has a smaller box.
    """
    solid = sight.scene.objects[sight.object_id].solid
    centre, _, size = sight.scene.box(sight.object_id, sight.number)
    if isinstance(solid, Ball):
        distance = np.linalg.norm(centre)
        beyond = solid.radius ** 2 / distance  # from the rim of the cap to the centre of the ball
        size = np.array([2 * np.sqrt(solid.radius ** 2 - beyond ** 2)] * 2 + [solid.radius - beyond])
        centre = centre * (1 - (beyond + size[2] / 2) / distance)
    return centre, np.sort(size)[::-1]


def truth_in_table(scene: TabletopScene, object_id: int, i: int = 0) -> np.ndarray:
    """Return the centre (3,) of an upright can, cup or box in table coordinates, whatever the camera does."""
    pose, solid = scene.pose(object_id, i), scene.objects[object_id].solid
    return np.array([pose.x, pose.y, solid.size[2] / 2])


def error(sight: Sight, mask: np.ndarray, previous: OrientedBox | None = None,
          erosion: int = 2) -> tuple[Error, OrientedBox]:
    """Return the error of the box that is measured with a mask, and the box."""
    box = mask_box(mask)
    assert box is not None, 'the mask is empty'
    found = measure(sight.depth, mask, box, erosion, previous)
    assert found is not None, 'too little depth'
    centre, size = truth(sight)
    return Error(float(np.linalg.norm(found.centre - centre)), np.sort(found.size)[::-1] / size - 1), found
