"""Rays of pixels, and lens models that distort rays into image coordinates and undistort them. Needs no ROS.

A ray is (x / z, y / z) in the camera's optical frame; image coordinates are in focal lengths from the principal point.
The formulas are those of OpenCV, to which sensor_msgs/CameraInfo refers.
"""
from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import cv2
import numpy as np

OBLIQUE = 20.0     # maximum length of a ray: 87 degrees off the optical axis; depth along the axis is useless beyond
GROWTH = 0.1       # minimum image distance per radian off the axis; a slower model is about to fold back
ANGLES = 4097      # samples from the axis to OBLIQUE
DIRECTIONS, RINGS = 24, 128  # polar grid that is searched for folds of an asymmetric lens
CELL = 8           # pixels between the points at which asymmetric distortion is solved; interpolated between them
ITERATIONS = 30
SETTLED = 1e-7     # focal lengths; smaller steps end the iteration
BLOCK = 1 << 14    # pixels processed at a time, so that they stay in the cache


@dataclass(frozen=True, eq=False)
class PixelRays:
    """Rays of all pixels of an image."""

    x: np.ndarray  # float32 (H, W): x / z of each pixel's ray
    y: np.ndarray  # float32 (H, W): y / z
    focal: float  # focal length in pixels; neighbouring rays are about 1 / focal apart
    blind: np.ndarray | None = None  # bool (H, W): pixels without a ray, NaN in x and y. None: every pixel has one

    @classmethod
    def pinhole(cls, width: int, height: int, fx: float, fy: float, cx: float, cy: float) -> PixelRays:
        """Return the rays of a camera without distortion.

        All values are in pixels; (0, 0) is the centre of the top-left pixel.
        """
        x = ((np.arange(width) - cx) / fx).astype(np.float32)
        y = ((np.arange(height) - cy) / fy).astype(np.float32)
        return cls(np.broadcast_to(x, (height, width)), np.broadcast_to(y[:, None], (height, width)), (fx * fy) ** 0.5)


class _Table(NamedTuple):
    """Inverse of the symmetric part of a lens, in the range in which it can be inverted."""

    radii: np.ndarray   # (N,) distances from the principal point in the image, increasing from 0
    ratios: np.ndarray  # (N,) lengths of the rays divided by these distances
    limit: float        # length of the longest ray


@dataclass(frozen=True)
class Lens:
    """Distortion model with its coefficients.

    A fisheye has k1 k2 k3 k4 of the angle off the axis, other lenses k1 k2 p1 p2 k3 k4 k5 k6 s1 s2 s3 s4 tx ty, in
    OpenCV's order.
    """

    fisheye: bool
    coefficients: tuple[float, ...]

    @property
    def limit(self) -> float:
        """Length of the longest ray that the model covers, or 0 if it covers none."""
        return self._table.limit

    def distort(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the image coordinates of rays. They are meaningless for rays longer than ``limit``."""
        with np.errstate(all='ignore'):
            radius = np.hypot(x, y)
            scale = np.where(radius > 0, self._image_radius(radius) / np.where(radius > 0, radius, 1), 1.0)
            x_image, y_image = x * scale, y * scale
            if self._asymmetric:
                shift_x, shift_y = self._shift(x, y)
                x_image, y_image = x_image + shift_x, y_image + shift_y
            if self._tilt is not None:
                x_image, y_image = _transform(self._tilt, x_image, y_image)
            return x_image, y_image

    def undistort(self, x_image: np.ndarray, y_image: np.ndarray,
                  tolerance: float) -> tuple[np.ndarray, np.ndarray]:
        """Return the rays of image coordinates, or NaN where no ray distorts back to them within the tolerance."""
        with np.errstate(all='ignore'):
            shift = self._solve(*self._level(x_image, y_image)) if self._asymmetric else None
            return self._invert(x_image, y_image, shift, tolerance)

    def undistort_grid(self, x_image: np.ndarray, y_image: np.ndarray,
                       tolerance: float) -> tuple[np.ndarray, np.ndarray]:
        """Return the rays of a grid, float32 (H, W), as ``undistort`` does.

        Args:
            x_image: Evenly spaced image coordinates of the columns, (W,).
            y_image: Evenly spaced image coordinates of the rows, (H,).
            tolerance: Maximum distance, in focal lengths, at which a ray may distort back.
        """
        width, height = len(x_image), len(y_image)
        x, y = np.empty((height, width), np.float32), np.empty((height, width), np.float32)
        rows = max(1, BLOCK // width)
        with np.errstate(all='ignore'):
            shifts = self._shift_grid(x_image, y_image) if self._asymmetric else None
            for top in range(0, height, rows):
                block = np.s_[top:top + rows]
                shift = None if shifts is None else (shifts[0][block], shifts[1][block])
                x[block], y[block] = self._invert(x_image[None], y_image[block, None], shift, tolerance)
        return x, y

    # --- the symmetric part

    def _image_radius(self, radius: np.ndarray) -> np.ndarray:
        """Return the distance from the principal point in the image for rays of a length, without asymmetry."""
        c = self.coefficients
        if self.fisheye:
            angle = np.arctan(radius)
            a2 = angle * angle
            return angle * (1 + a2 * (c[0] + a2 * (c[1] + a2 * (c[2] + a2 * c[3]))))
        r2 = radius * radius
        k1, k2, k3, k4, k5, k6 = c[0], c[1], *c[4:8]
        scale = 1 + r2 * (k1 + r2 * (k2 + r2 * k3))
        if k4 or k5 or k6:
            scale = scale / (1 + r2 * (k4 + r2 * (k5 + r2 * k6)))
        return radius * scale

    @cached_property
    def _table(self) -> _Table:
        """Inverse over the longest range from the axis on in which the image distance grows with the angle."""
        angles = np.linspace(0, np.arctan(OBLIQUE), ANGLES)
        rays = np.tan(angles)
        with np.errstate(all='ignore'):
            radii = self._image_radius(rays)
            grows = np.diff(radii) >= GROWTH * np.diff(angles)  # False for NaN
        grows &= np.isfinite(radii[1:])
        last = len(grows) if grows.all() else int(np.argmin(grows))
        if last and self._asymmetric:
            last = self._unfolded(rays, last)
        radii, rays = radii[:last + 1], rays[:last + 1]
        ratios = np.concatenate([[1.0], rays[1:] / radii[1:]])
        return _Table(radii, ratios, float(rays[-1]))

    def _invert(self, x_image: np.ndarray, y_image: np.ndarray, shift: tuple[np.ndarray, np.ndarray] | None,
                tolerance: float) -> tuple[np.ndarray, np.ndarray]:
        """Return the rays, given by how much the asymmetric part shifts them in the image (None: it does not)."""
        across, down = self._level(x_image, y_image)
        if shift is not None:
            across, down = across - shift[0], down - shift[1]
        table = self._table
        ratio = np.interp(np.sqrt(across * across + down * down), table.radii, table.ratios, right=np.nan)
        x, y = across * ratio, down * ratio
        if shift is None:
            return x, y
        if self._tilt is None:  # the symmetric part is inverted exactly
            found = self._shift(x, y)
            missed = np.abs(found[0] - shift[0]) + np.abs(found[1] - shift[1])
        else:
            found = self.distort(x, y)
            missed = np.abs(found[0] - x_image) + np.abs(found[1] - y_image)
        x[~(missed < tolerance)] = np.nan
        y[np.isnan(x)] = np.nan
        return x, y

    # --- the asymmetric part: tangential and thin prism distortion, a tilted sensor

    @cached_property
    def _asymmetric(self) -> bool:
        return not self.fisheye and (any(self.coefficients[2:4]) or any(self.coefficients[8:]))

    @cached_property
    def _tilt(self) -> np.ndarray | None:
        """Homography of a tilted sensor, or None if the sensor is not tilted."""
        if self.fisheye or not any(self.coefficients[12:]):
            return None
        (sin_x, sin_y), (cos_x, cos_y) = np.sin(self.coefficients[12:]), np.cos(self.coefficients[12:])
        about_x = np.array([[1, 0, 0], [0, cos_x, sin_x], [0, -sin_x, cos_x]])
        about_y = np.array([[cos_y, 0, -sin_y], [0, 1, 0], [sin_y, 0, cos_y]])
        rotation = about_y @ about_x
        (a, b), c = rotation[:2, 2], rotation[2, 2]
        return np.array([[c, 0, -a], [0, c, -b], [0, 0, 1]]) @ rotation

    def _level(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the image coordinates on a sensor that is not tilted."""
        return (x, y) if self._tilt is None else _transform(np.linalg.inv(self._tilt), x, y)

    def _shift(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the shift by tangential and thin prism distortion."""
        p1, p2 = self.coefficients[2:4]
        s1, s2, s3, s4 = self.coefficients[8:12]
        xx, yy, xy = x * x, y * y, 2 * x * y
        r2 = xx + yy
        shift_x, shift_y = p1 * xy + p2 * (r2 + 2 * xx), p1 * (r2 + 2 * yy) + p2 * xy
        if s1 or s2 or s3 or s4:
            shift_x, shift_y = shift_x + r2 * (s1 + r2 * s2), shift_y + r2 * (s3 + r2 * s4)
        return shift_x, shift_y

    def _unfolded(self, rays: np.ndarray, last: int) -> int:
        """Return how many of the rays' lengths are covered in every direction.

        The image of a polar grid must not fold over within them.
        """
        rings = np.unique(np.linspace(0, last, RINGS).round().astype(int))
        around = np.linspace(0, 2 * np.pi, DIRECTIONS + 1)
        x, y = self.distort(np.outer(rays[rings], np.cos(around)), np.outer(rays[rings], np.sin(around)))
        with np.errstate(all='ignore'):
            out = np.stack([np.diff(x, axis=0), np.diff(y, axis=0)])[:, :, :-1]
            on = np.stack([np.diff(x, axis=1), np.diff(y, axis=1)])[:, 1:]
            whole = (out[0] * on[1] > out[1] * on[0]).all(1)
        return int(rings[-1] if whole.all() else rings[np.argmin(whole)])

    def _solve(self, x_image: np.ndarray, y_image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the shift by the asymmetric part at image coordinates, or a guess where no ray meets them."""
        table = self._table
        end = table.radii[-1]
        x, y = self._clipped(x_image, y_image, end)
        for _ in range(ITERATIONS):
            shift = self._shift(x, y)
            before = x, y
            x, y = self._clipped(x_image - shift[0], y_image - shift[1], end)
            if not max(np.abs(x - before[0]).max(initial=0), np.abs(y - before[1]).max(initial=0)) > SETTLED:
                break
        return self._shift(x, y)

    def _clipped(self, x_image: np.ndarray, y_image: np.ndarray, end: float) -> tuple[np.ndarray, np.ndarray]:
        """Return the rays by the symmetric part alone; those beyond its range get the length of the longest."""
        radius = np.hypot(x_image, y_image)
        within = np.minimum(radius, end)
        ratio = np.interp(within, self._table.radii, self._table.ratios) * (within / np.where(radius > 0, radius, 1))
        ratio = np.where(radius > 0, ratio, 1.0)
        return x_image * ratio, y_image * ratio

    def _shift_grid(self, x_image: np.ndarray, y_image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Solve the shift on a coarse grid and interpolate it. Both results are (H, W)."""
        x, y = self._level(*np.meshgrid(_coarse(x_image), _coarse(y_image)))
        size = CELL * x.shape[1], CELL * x.shape[0]
        inside = np.s_[CELL:CELL + len(y_image), CELL:CELL + len(x_image)]
        first, second = (cv2.resize(np.nan_to_num(shift), size, interpolation=cv2.INTER_CUBIC)[inside]
                         for shift in self._solve(x, y))
        return first, second


def _coarse(values: np.ndarray) -> np.ndarray:
    """Return the centres of cells of evenly spaced values, with an additional cell at either end."""
    spacing = (values[-1] - values[0]) / max(1, len(values) - 1)
    cells = -(-len(values) // CELL)
    return values[0] + ((np.arange(-1, cells + 1) + 0.5) * CELL - 0.5) * spacing


def _transform(homography: np.ndarray, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return points transformed by a homography, NaN for those beyond its horizon."""
    (a, b, c), (d, e, f), (g, h, i) = homography
    scale = g * x + h * y + i
    scale = np.where(scale > 0, scale, np.nan)
    return (a * x + b * y + c) / scale, (d * x + e * y + f) / scale
