"""The oriented box around points."""
from __future__ import annotations

from dataclasses import dataclass
from itertools import permutations, product

import numpy as np

MIN_POINTS = 30
SEARCHED = 200       # points that orientations are compared with
VOTES = 150          # normals that are asked for the faces
TRIM = 0.005         # share of the points beyond each face: noise must not decide how large a thing is
THINNEST = 0.05      # of the largest side: what is thinner counts as this thin when orientations are compared
CLOSENESS = 2.0      # weight of the distance to the nearest face, beside the volume
COARSE, FINE = (45.0, 30.0, 15.0), (7.5, 3.75, 1.9, 0.95)  # degrees
FACE = 15.0          # degrees between normals of one face
BETTER = 0.05        # of the cost: by so much another orientation must fit better to give up the previous one
STEADY = 0.002       # and by so much a small turn


@dataclass(frozen=True, eq=False)
class OrientedBox:
    """A box in the camera's optical frame, metres."""

    centre: np.ndarray  # float64 (3,)
    axes: np.ndarray  # float64 (3, 3): unit vectors as columns, right-handed
    size: np.ndarray  # float64 (3,): along the axes

    @property
    def quaternion(self) -> tuple[float, float, float, float]:
        """(x, y, z, w), w >= 0: turns the camera's axes into those of the box."""
        m = self.axes
        # each row is the quaternion times four times one of its parts: the largest is the most exact
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
    """The oriented box of points (N, 3); None when there are fewer than MIN_POINTS.

    normals: unit (M, 3), of the surface somewhere, where they are known: flat faces are found sooner.

    Principal component analysis, then the orientation nearby that makes the box small and leaves the points on its
    faces: the principal axes of what is seen of a box are not those of the box. Half a percent of the points may lie
    beyond each face.

    Without ``previous`` x is the longest axis and points right, z the shortest and towards the camera. With it the axes
    are those that turn least from the previous ones, and the orientation stays unless another fits clearly better.
    """
    if len(points) < MIN_POINTS:
        return None
    points = np.asarray(points, np.float64)
    middle = points.mean(0)
    centred = points - middle
    searched = centred[::-(-len(points) // SEARCHED)]
    _, principal = np.linalg.eigh(centred.T @ centred)
    cost = _Cost(searched)
    starts = _starts(_right_handed(principal), normals)
    if previous is None:
        axes = _search(cost, starts)
    else:
        axes, value = _descend(cost, previous.axes, FINE[2:], STEADY)
        if cost(starts[:2]).min() < value - BETTER:
            axes = _search(cost, starts)
    low, high = _extent((centred @ axes).T)
    axes, size, offset = _arrange(axes, high - low, axes @ (low + high) / 2, middle, previous)
    return OrientedBox(middle + offset, axes, size)


class _Cost:
    """How badly the axes of a box suit some points."""

    def __init__(self, points: np.ndarray) -> None:
        self._points = np.ascontiguousarray(points.T, np.float32)
        self._scale = float(np.median(np.linalg.norm(points, axis=1))) + 1e-9

    def __call__(self, axes: np.ndarray) -> np.ndarray:
        """axes (K, 3, 3) as columns -> (K,)"""
        along = axes.transpose(0, 2, 1).astype(np.float32) @ self._points
        low, high = along.min(-1), along.max(-1)
        size = high - low
        size = np.maximum(size, THINNEST * size.max(1, keepdims=True)) + 1e-9
        along -= ((low + high) / 2)[..., None]
        inside = ((high - low) / 2)[..., None] - np.abs(along)
        closeness = np.abs(inside).min(1).mean(1) / self._scale
        return np.log(size).mean(1) + CLOSENESS * closeness


def _starts(principal: np.ndarray, normals: np.ndarray | None) -> np.ndarray:
    """Orientations to begin with (K, 3, 3): along the principal axes, along the flat faces, and turned from these."""
    starts = [principal[None]]
    if normals is not None and len(normals):
        normals = normals[::-(-len(normals) // VOTES)]
        alike = np.abs(normals @ normals.T) > np.cos(np.radians(FACE))
        first = normals[np.argmax(alike.sum(1))]
        upright = np.abs(normals @ first) < np.sin(np.radians(FACE))
        second = normals[np.argmax((alike & upright).sum(1) * upright)] if upright.any() else principal[:, 2]
        second = second - first * (first @ second)
        if np.linalg.norm(second) < 0.1:
            second = np.cross(first, principal[:, 1])
        second /= np.linalg.norm(second)
        faces = np.column_stack([first, second, np.cross(first, second)])
        starts += [faces[None], faces @ _TURNS[COARSE][:6]]
    return np.concatenate([*starts, principal @ _TURNS[COARSE]])


def _search(cost: _Cost, starts: np.ndarray) -> np.ndarray:
    best = starts[np.argmin(cost(starts))]
    return _descend(cost, best, FINE, 0.0)[0]


def _descend(cost: _Cost, axes: np.ndarray, degrees, least: float) -> tuple[np.ndarray, float]:
    """Turn the axes about one of themselves at a time as long as that helps, in ever smaller steps."""
    value = float(cost(axes[None])[0])
    for step in degrees:
        turned = axes @ _TURNS[step]
        values = cost(turned)
        best = int(np.argmin(values))
        if values[best] < value - least:
            axes, value = turned[best], float(values[best])
    return axes, value


def _turns(degrees) -> np.ndarray:
    """Rotations (K, 3, 3) about each of the three axes, both ways."""
    turns = []
    for axis, angle, sign in product(range(3), np.atleast_1d(degrees), (-1, 1)):
        c, s = np.cos(np.radians(angle)), sign * np.sin(np.radians(angle))
        turn = np.eye(3)
        i, j = (axis + 1) % 3, (axis + 2) % 3
        turn[i, i] = turn[j, j] = c
        turn[i, j], turn[j, i] = -s, s
        turns.append(turn)
    return np.array(turns)


_TURNS = {step: _turns(step) for step in (COARSE, *FINE)}
# the 24 ways to name the axes of a box that leave them right-handed
_NAMINGS = np.array([matrix for order in permutations(range(3)) for signs in product((-1, 1), repeat=3)
                     if np.linalg.det(matrix := np.eye(3)[:, order] * signs) > 0])


def _extent(along: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Lowest and highest of (..., N) but for a share TRIM on either side."""
    beyond = int(TRIM * along.shape[-1])
    ranked = np.partition(along, (beyond, along.shape[-1] - 1 - beyond), axis=-1)
    return ranked[..., beyond], ranked[..., -1 - beyond]


def _right_handed(axes: np.ndarray) -> np.ndarray:
    return axes * [1, 1, np.sign(np.linalg.det(axes))]


def _arrange(axes, size, offset, middle, previous):
    """Name the axes."""
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
