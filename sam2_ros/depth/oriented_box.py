"""Oriented box around points."""
from __future__ import annotations

from dataclasses import dataclass
from itertools import permutations, product

import numpy as np

MIN_POINTS = 30
SEARCHED = 160       # points with which orientations are compared
VOTES = 80           # normals that vote for the faces
FACE = 15.0          # degrees; normals of one face differ by less
BEYOND = 4           # points that may be beyond each face, of 400 or more, so that noise does not set the size
THINNEST = 0.05      # share of the largest side; thinner sides count as this thin when orientations are compared
CLOSENESS = 2.0      # weight of the distance to the nearest face, relative to the volume
GRID = (-36, -18, 0, 18, 36)  # degrees about each axis: given the symmetry of a box, every orientation is near one
REFINED = 4          # number of the best orientations that are refined
FINE = (9.0, 9.0, 4.5, 4.5, 2.2, 2.2, 1.1, 0.5)  # degrees; steps of the refinement
FOLLOWED = (4.0, 2.0, 1.0)  # degrees; steps from image to image
BETTER = 0.1         # cost by which another orientation must be better than the principal or the previous one
STEADY = 0.015       # cost by which a small rotation must be better


@dataclass(frozen=True, eq=False)
class OrientedBox:
    """Box in the camera's optical frame, in metres."""

    centre: np.ndarray  # float64 (3,)
    axes: np.ndarray  # float64 (3, 3): unit vectors as columns, right-handed
    size: np.ndarray  # float64 (3,): side lengths along the axes

    @property
    def quaternion(self) -> tuple[float, float, float, float]:
        """Rotation from the camera's axes to those of the box: (x, y, z, w) with w >= 0."""
        m = self.axes
        # each row is the quaternion times four times one of its components; the largest row is the most exact
        candidates = np.array([
            [1 + m[0, 0] - m[1, 1] - m[2, 2], m[1, 0] + m[0, 1], m[2, 0] + m[0, 2], m[2, 1] - m[1, 2]],
            [m[1, 0] + m[0, 1], 1 - m[0, 0] + m[1, 1] - m[2, 2], m[2, 1] + m[1, 2], m[0, 2] - m[2, 0]],
            [m[2, 0] + m[0, 2], m[2, 1] + m[1, 2], 1 - m[0, 0] - m[1, 1] + m[2, 2], m[1, 0] - m[0, 1]],
            [m[2, 1] - m[1, 2], m[0, 2] - m[2, 0], m[1, 0] - m[0, 1], 1 + m[0, 0] + m[1, 1] + m[2, 2]]])
        chosen = candidates[np.argmax(np.diag(candidates))]
        x, y, z, w = (chosen / np.linalg.norm(chosen) * (1 if chosen[3] >= 0 else -1)).tolist()
        return x, y, z, w


def oriented_box(points: np.ndarray, previous: OrientedBox | None = None,
                 normals: np.ndarray | None = None) -> OrientedBox | None:
    """Return the oriented box of points, or None if there are fewer than MIN_POINTS.

    The search starts from the principal axes and looks for the orientation that makes the box small and puts the points
    on its faces: the principal axes of the visible part of a box are not those of the box. A few points may be beyond
    each face.

    Args:
        points: (N, 3).
        previous: Box of the object in the previous image. If given, the axes are those that rotate least from the
            previous ones, and the orientation stays unless another one fits clearly better. Otherwise x is the longest
            axis and points right, and z is the shortest and points towards the camera.
        normals: Unit normals (M, 3) of some points of the surface, by which flat faces are found sooner.
    """
    if len(points) < MIN_POINTS:
        return None
    points = np.asarray(points, np.float64)
    middle = points.mean(0)
    centred = points - middle
    cost = _Cost(centred[::-(-len(centred) // SEARCHED)])
    starts = _starts(centred, normals)
    if previous is None:
        (axes,), (value,) = _descend(cost, starts[:1], FINE[2:], 0.0)
    else:
        (axes,), (value,) = _descend(cost, previous.axes[None], FOLLOWED, STEADY)
    if previous is None or cost(starts).min() < value - BETTER:
        found, found_value = _search(cost, starts)
        axes = found if found_value < value - BETTER else axes
    low, high = _extent((centred @ axes).T)
    axes, size, offset = _arrange(axes, high - low, axes @ (low + high) / 2, middle, previous)
    return OrientedBox(middle + offset, axes, size)


class _Cost:
    """Cost of the axes of a box around given points."""

    def __init__(self, points: np.ndarray) -> None:
        self._points = np.ascontiguousarray(points.T, np.float32)
        self._scale = float(np.median(np.linalg.norm(points, axis=1))) + 1e-9

    def __call__(self, axes: np.ndarray) -> np.ndarray:
        """Return the costs (K,) of axes (K, 3, 3), which are columns."""
        along = axes.transpose(0, 2, 1).astype(np.float32) @ self._points
        low, high = along.min(-1), along.max(-1)
        size = high - low
        size = np.maximum(size, THINNEST * size.max(1, keepdims=True)) + 1e-9
        inside = np.minimum(along - low[..., None], high[..., None] - along)
        closeness = np.minimum(np.minimum(inside[:, 0], inside[:, 1]), inside[:, 2]).sum(1)
        return np.log(size).sum(1) / 3 + CLOSENESS / (self._scale * along.shape[2]) * closeness


def _starts(centred: np.ndarray, normals: np.ndarray | None) -> np.ndarray:
    """Return the initial orientations (K, 3, 3): the principal one and, if normals are given, that of flat faces."""
    _, principal = np.linalg.eigh(centred.T @ centred)
    principal = principal * [1, 1, np.sign(np.linalg.det(principal))]
    if normals is None or not len(normals):
        return principal[None]
    normals = normals[::-(-len(normals) // VOTES)]
    cosines = np.abs(normals @ normals.T)
    votes = (cosines > np.cos(np.radians(FACE))).sum(1)
    most = np.argmax(votes)
    upright = cosines[most] < np.sin(np.radians(FACE))
    first = normals[most]
    # if only one face is visible, the points determine its rotation
    second = normals[np.argmax(votes * upright)] if upright.any() else principal[:, np.abs(first @ principal).argmin()]
    second = second - first * (first @ second)
    second /= (second @ second) ** 0.5
    (a, b, c), (d, e, f) = first.tolist(), second.tolist()
    return np.array([principal, np.array([[a, b, c], [d, e, f], [b * f - c * e, c * d - a * f, a * e - b * d]]).T])


def _search(cost: _Cost, starts: np.ndarray) -> tuple[np.ndarray, float]:
    """Return the best axes (3, 3) among all orientations, and their cost."""
    everywhere = np.concatenate([starts, starts[0] @ _GRID])
    best = np.argpartition(cost(everywhere), REFINED)[:REFINED]
    found, values = _descend(cost, everywhere[best], FINE, 0.0)
    return found[np.argmin(values)], values.min()


def _descend(cost: _Cost, axes: np.ndarray, degrees: tuple, least: float) -> tuple[np.ndarray, np.ndarray]:
    """Rotate orientations (K, 3, 3) about one axis at a time where that lowers the cost by more than ``least``.

    Return them and their costs (K,).
    """
    values = cost(axes)
    for step in degrees:
        rotated = axes[:, None] @ _ROTATIONS[step]
        costs = cost(rotated.reshape(-1, 3, 3)).reshape(len(axes), -1)
        best = costs.argmin(1)
        lower = costs.min(1)
        better = lower < values - least
        axes = np.where(better[:, None, None], rotated[np.arange(len(axes)), best], axes)
        values = np.where(better, lower, values)
    return axes, values


def _rotation(axis: int, degrees: float) -> np.ndarray:
    """Return the rotation (3, 3) about a coordinate axis."""
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    i, j = (axis + 1) % 3, (axis + 2) % 3
    matrix = np.eye(3)
    matrix[i, i], matrix[i, j], matrix[j, i], matrix[j, j] = c, -s, s, c
    return matrix


_ROTATIONS = {step: np.stack([_rotation(axis, sign * step) for axis in range(3) for sign in (-1, 1)])
              for step in {*FINE, *FOLLOWED}}
_GRID = np.stack([_rotation(0, x) @ _rotation(1, y) @ _rotation(2, z) for x, y, z in product(GRID, repeat=3)])
# the 24 right-handed orders of the axes of a box
_NAMINGS = np.array([matrix for order in permutations(range(3)) for signs in product((-1, 1), repeat=3)
                     if np.linalg.det(matrix := np.eye(3)[:, order] * signs) > 0])


def _extent(along: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the minimum and maximum along the last axis, ignoring up to BEYOND values on either side."""
    beyond = min(BEYOND, along.shape[-1] // 100)
    ranked = np.partition(along, (beyond, along.shape[-1] - 1 - beyond), axis=-1)
    return ranked[..., beyond], ranked[..., -1 - beyond]


def _arrange(axes: np.ndarray, size: np.ndarray, offset: np.ndarray, middle: np.ndarray,
             previous: OrientedBox | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return axes, size and offset with the axes in the order that ``oriented_box`` describes."""
    if previous is not None:
        named = axes @ _NAMINGS
        naming = _NAMINGS[np.argmax(np.einsum('kij,ij->k', named, previous.axes))]
    else:
        order = np.argsort(-size, kind='stable')
        naming = np.eye(3)[:, order]
        along = axes @ naming
        naming = naming * [1 if along[np.argmax(np.abs(along[:2, 0])), 0] >= 0 else -1, 1,
                           1 if along[:, 2] @ middle <= 0 else -1]
        naming[:, 1] *= np.sign(np.linalg.det(naming))
    return axes @ naming, np.abs(size @ naming), offset
