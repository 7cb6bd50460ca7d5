"""Views of a clip: crop, mirroring, rotation, motion and light.

A view consists of one affine map per frame, from the image to the model's square, and one map of colours. All are drawn
from a seed.
"""
from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from sam2_core.datasets.recordings import VISIBLE_PIXELS, Labelled
from sam2_core.training.clips import MAX_OBJECTS, Clip

_BORDER = (124, 116, 104)  # mean colour, for a crop that leaves the image
_LUMINANCE = np.array([0.299, 0.587, 0.114])


@dataclass(frozen=True)
class ClipView:
    """Maps that turn the frames of a recording into the frames of a clip."""

    maps: np.ndarray  # float64 (T, 2, 3): pixel of the image -> pixel of the square
    colours: np.ndarray  # float64 (3, 4): RGB1 -> RGB
    ranks: np.ndarray  # (K,): of too many objects, those with the lowest ranks are kept

    def clip(self, labelled: Labelled, size: int) -> Clip:
        """Return the clip of ``size`` x ``size`` pixels.

        It has at most ``MAX_OBJECTS`` objects: those of the first frame come first, and none that is never visible.
        """
        frames = np.stack([self._light(_warp(image, matrix, size, _BORDER))
                           for image, matrix in zip(labelled.images, self.maps, strict=True)])
        first: list[tuple[np.ndarray, np.ndarray]] = []  # masks and visibility of objects, visible in the first frame
        later: list[tuple[np.ndarray, np.ndarray]] = []  # or only in others
        for k in np.argsort(self.ranks, kind='stable'):
            masks, visible = self._object(labelled, int(k), size)
            if visible[0]:
                first.append((masks, visible))
            elif visible.any() and len(later) < MAX_OBJECTS:
                later.append((masks, visible))
            if len(first) == MAX_OBJECTS:
                break
        chosen = [*first, *later][:MAX_OBJECTS]
        masks = np.zeros((len(frames), len(chosen), size, size), bool)
        visible = np.zeros((len(frames), len(chosen)), bool)
        for place, (found, seen) in enumerate(chosen):
            masks[:, place], visible[:, place] = found & seen[:, None, None], seen
        return Clip(frames, masks, visible)

    def _object(self, labelled: Labelled, k: int, size: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the masks of one object, bool (T, size, size), and the frames in which it is visible, bool (T,)."""
        masks = np.zeros((len(self.maps), size, size), bool)
        for t, (found, matrix) in enumerate(zip(labelled.masks, self.maps, strict=True)):
            if found[k].any():
                masks[t] = _warp(found[k].astype(np.uint8) * 255, matrix, size, 0) >= 128
        return masks, masks.sum(axis=(1, 2)) >= VISIBLE_PIXELS

    def _light(self, frame: np.ndarray) -> np.ndarray:
        return frame if np.array_equal(self.colours, np.eye(3, 4)) else cv2.transform(frame, self.colours)


def plain_view(labelled: Labelled, size: int) -> ClipView:
    """Return a view of the whole image, stretched to the square as by the tracker."""
    height, width = labelled.images[0].shape[:2]
    maps = np.repeat(_crop((0, 0, width, height), size)[None, :2], len(labelled.images), axis=0)
    return ClipView(maps, np.eye(3, 4), np.arange(len(labelled.masks[0])))


def random_view(labelled: Labelled, size: int, rng: np.random.Generator, still: bool) -> ClipView:
    """Return a random view: a crop around an object of the first frame, perhaps mirrored, in another light.

    still: the frames are one image, over which the view moves.
    """
    height, width = labelled.images[0].shape[:2]
    square = _crop(_window(labelled, rng), size)
    if rng.random() < 0.5:
        square = np.array([[-1, 0, size], [0, 1, 0], [0, 0, 1]]) @ square
    moves = _motion(len(labelled.images), size, rng) if still else [np.eye(3)] * len(labelled.images)
    return ClipView(np.stack([(move @ square)[:2] for move in moves]), _colours(rng),
                rng.permutation(len(labelled.masks[0])))


def _crop(window: tuple[float, float, float, float], size: int) -> np.ndarray:
    x0, y0, x1, y1 = window
    return np.array([[size / (x1 - x0), 0, -x0 * size / (x1 - x0)], [0, size / (y1 - y0), -y0 * size / (y1 - y0)],
                     [0, 0, 1]])


def _window(labelled: Labelled, rng: np.random.Generator) -> tuple[float, float, float, float]:
    """Draw a part of the image, x0, y0, x1, y1: half to all of each side, with one whole object if it fits."""
    height, width = labelled.images[0].shape[:2]
    if rng.random() < 0.2:
        return 0, 0, width, height
    first = labelled.masks[0]
    object_id = rng.choice(np.flatnonzero(first.any(axis=(1, 2))))
    scale, sides = rng.uniform(0.5, 1.0), []
    for axis, extent in ((0, width), (1, height)):  # columns, then rows
        occupied = np.flatnonzero(first[object_id].any(axis=axis))
        low, high = occupied[0], occupied[-1] + 1
        side = max(extent * min(1.0, scale * rng.uniform(0.85, 1.18)), high - low)
        start = rng.uniform(max(0, high - side), max(0, min(low, extent - side)) + 1e-6)
        sides.append((min(start, extent - side), side))
    (x0, w), (y0, h) = sides
    return x0, y0, x0 + w, y0 + h


def _motion(count: int, size: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Draw the motion of a hand-held camera as maps of the square: drift, rotation, zoom and a little shake."""
    turn, zoom = rng.normal(0, 0.10), rng.normal(0, 0.10)
    drift, centre = rng.normal(0, 0.10, 2) * size, size / 2
    maps = []
    for progress in np.linspace(0, 1, count):
        angle = turn * progress
        scale = np.exp(zoom * progress)
        shake = rng.normal(0, 0.004 * size, 2)
        cos, sin = scale * np.cos(angle), scale * np.sin(angle)
        x, y = drift * progress + shake + centre
        maps.append(np.array([[cos, -sin, x - centre * (cos - sin)], [sin, cos, y - centre * (sin + cos)], [0, 0, 1]]))
    return maps


def _colours(rng: np.random.Generator) -> np.ndarray:
    """Draw brightness, contrast, saturation and white balance as one map of colours."""
    saturation = 0.0 if rng.random() < 0.05 else rng.uniform(0.6, 1.4)
    gain = rng.uniform(0.8, 1.25) * rng.uniform(0.92, 1.08, 3)
    mix = saturation * np.eye(3) + (1 - saturation) * _LUMINANCE
    contrast = rng.uniform(0.8, 1.25)
    return np.column_stack((gain[:, None] * mix * contrast, np.full(3, 128 * (1 - contrast) + rng.uniform(-16, 16))))


def _warp(image: np.ndarray, matrix: np.ndarray, size: int, border: tuple[int, int, int] | int) -> np.ndarray:
    """Warp an image, shrinking it by averaging first if it would be sampled too sparsely.

    The matrix counts pixel edges (0 is the left edge of the first pixel), OpenCV counts centres.
    """
    height, width = image.shape[:2]
    fine = np.hypot(*matrix[:, :2])  # pixels of the square per pixel of the image, along x and y
    small = max(1, round(width * min(1.0, fine[0]))), max(1, round(height * min(1.0, fine[1])))
    if small != (width, height):
        image = cv2.resize(image, small, interpolation=cv2.INTER_AREA)
    whole = np.vstack((matrix, (0, 0, 1))) @ np.diag((width / small[0], height / small[1], 1.0))
    half = np.array([[1, 0, 0.5], [0, 1, 0.5], [0, 0, 1.0]])
    centres = np.linalg.inv(half) @ whole @ half
    if np.allclose(centres, np.eye(3), atol=1e-3) and small == (size, size):
        return image
    return cv2.warpAffine(image, centres[:2], (size, size), flags=cv2.INTER_LINEAR, borderValue=border)
