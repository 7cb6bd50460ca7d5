"""Camera calibration: the CameraInfo that belongs to an image, its checks, and the rays of the pixels.

Depth, clicks in metres and sam2_check all use this module, so that they accept and refuse the same calibrations.
"""
from __future__ import annotations

import functools
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from sensor_msgs.msg import CameraInfo

from sam2_ros.depth.lens import OBLIQUE, Lens, PixelRays
from sam2_ros.messages.frame_ids import same_frame

MAX_PIXELS = 1 << 27  # more than any camera has; their rays take 1 GiB
NARROWEST = 1e-5      # minimum width of an image in focal lengths: two arc seconds
MAX_COEFFICIENT = 1e8
MAX_COEFFICIENTS = 1000  # maximum length of D, zeros included
LENGTHS = (4, 5, 8, 12, 14)  # lengths of D that OpenCV defines
MODELS = {'plumb_bob': False, 'rational_polynomial': False, 'thin_prism': False, 'equidistant': True}  # True: fisheye
SPELLINGS = {'plumbbob': 'plumb_bob', 'radtan': 'plumb_bob', 'brown_conrady': 'plumb_bob',
             'rational': 'rational_polynomial', 'thin_prism_model': 'thin_prism', 'rational_thin_prism': 'thin_prism',
             'fisheye': 'equidistant', 'kannala_brandt': 'equidistant', 'kannala_brandt4': 'equidistant',
             'kannalabrandt': 'equidistant', 'equi': 'equidistant'}
ROUND_TRIP = 0.5      # pixels by which a ray may miss its pixel
SAMPLES = 48          # rows and columns that are sampled to find how much of an image the lens model covers
OFF_MIDDLE = 0.2      # share of width and height; principal points farther from the middle are suspicious
ALIKE = 0.1           # maximum difference of the two shares at which the displacement is proportional to the size


class DepthError(ValueError):
    """There is no usable depth for an image; the text names the value and the cure."""


@dataclass(frozen=True)
class Calibration:
    """Checked numbers of a CameraInfo, in pixels of the image to which it belongs."""

    width: int
    height: int
    fx: float
    fy: float
    cx: float
    cy: float
    lens: Lens | None = None  # None: no distortion

    @property
    def focal(self) -> float:
        """Mean focal length in pixels."""
        return (self.fx * self.fy) ** 0.5

    def rays(self) -> PixelRays:
        """Return the rays of all pixels."""
        if self.lens is None:
            return PixelRays.pinhole(self.width, self.height, self.fx, self.fy, self.cx, self.cy)
        columns, rows = np.arange(self.width, dtype=float), np.arange(self.height, dtype=float)
        x, y = self.lens.undistort_grid(*self.to_focal_lengths(columns, rows), ROUND_TRIP / self.focal)
        blind = np.isnan(x)
        return PixelRays(x, y, self.focal, blind if blind.any() else None)

    def pixel(self, x: float, y: float) -> tuple[float, float] | None:
        """Return the pixel of the ray (x, y, 1), or None if the lens model does not cover the ray."""
        if self.lens is not None:
            if not math.hypot(x, y) <= self.lens.limit:
                return None
            x, y = (float(value) for value in self.lens.distort(np.asarray(x), np.asarray(y)))
        column, row = self.fx * x + self.cx, self.fy * y + self.cy
        return (column, row) if math.isfinite(column) and math.isfinite(row) else None

    def coverage(self) -> float:
        """Return the share of the image that has rays, 0 to 1, estimated from a grid of pixels."""
        return 1.0 if self.lens is None else _coverage(self, self.lens)

    def to_focal_lengths(self, columns: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return pixel coordinates in focal lengths from the principal point."""
        return (columns - self.cx) / self.fx, (rows - self.cy) / self.fy


@functools.lru_cache(maxsize=16)
def _coverage(calibration: Calibration, lens: Lens) -> float:
    columns = np.linspace(0, calibration.width - 1, min(calibration.width, SAMPLES))
    rows = np.linspace(0, calibration.height - 1, min(calibration.height, SAMPLES))
    x_image, y_image = np.meshgrid(*calibration.to_focal_lengths(columns, rows))
    x, _ = lens.undistort(x_image, y_image, ROUND_TRIP / calibration.focal)
    return float(np.isfinite(x).mean())


# --- the CameraInfo that belongs to an image

def info_of_image(infos: Iterable[CameraInfo], frame_id: str, size: tuple[int, int]) -> CameraInfo:
    """Return the first CameraInfo that fits an image.

    One that names the frame is preferred to one without a frame.

    Args:
        infos: The candidates.
        frame_id: Frame of the image.
        size: (height, width) of the image in pixels.

    Raises:
        DepthError: None fits.
    """
    infos, fitting, reasons = list(infos), [], []
    for info in infos:
        try:
            width, height = image_size(info)
        except DepthError as error:
            reasons.append(str(error))
            continue
        if (height, width) != size:
            reasons.append(f'camera_info of {width} x {height} pixels: must be {size[1]} x {size[0]}, as the image; '
                           f'{_why_another_size(info, size)}')
        elif not same_frame(info.header.frame_id, frame_id):
            reasons.append(f"camera_info in frame '{info.header.frame_id}': must be '{frame_id}', as the image; use "
                           f'the camera_info of the image')
        else:
            fitting.append(info)
    if not fitting:
        raise DepthError(reasons[0] if reasons else
                         'no camera_info: publish it with the depth, or remap camera_info')
    named = [info for info in fitting if info.header.frame_id.lstrip('/')]
    frames = sorted({info.header.frame_id.lstrip('/') for info in named})
    if len(frames) > 1:  # the image has no frame; otherwise they could not all agree with it
        raise DepthError(f"camera_infos in the frames '{frames[0]}' and '{frames[1]}', and the image names none: have "
                         f'the camera driver set frame_id')
    return (named or fitting)[0]


def image_size(info: CameraInfo) -> tuple[int, int]:
    """Return width and height, in pixels, of the images to which a CameraInfo belongs.

    Raises:
        DepthError: Its size, region of interest and binning contradict each other.
    """
    if not info.width or not info.height:
        raise DepthError(f'camera_info of {info.width} x {info.height} pixels: must be the size of the calibrated '
                         f'image; calibrate the camera, or let its driver publish its calibration')
    roi, (across, down) = info.roi, _binning(info)
    if bool(roi.width) != bool(roi.height) or (not roi.width and (roi.x_offset or roi.y_offset)):
        raise DepthError(f'camera_info with roi of {roi.width} x {roi.height} pixels at ({roi.x_offset}, '
                         f'{roi.y_offset}): must have a width and a height; let the driver set both, or '
                         f'none of the four for the whole image')
    if roi.x_offset + roi.width > info.width or roi.y_offset + roi.height > info.height:
        raise DepthError(f'camera_info with roi of {roi.width} x {roi.height} pixels at ({roi.x_offset}, '
                         f'{roi.y_offset}): must lie inside {info.width} x {info.height}; let the driver give it in '
                         f'pixels of the full image')
    width, height = (roi.width or info.width) // across, (roi.height or info.height) // down
    if not width or not height:
        raise DepthError(f'camera_info with binning {across} x {down}: must not exceed the image of '
                         f'{roi.width or info.width} x {roi.height or info.height} pixels; set it to 0 where the '
                         f'camera does not bin')
    if width * height > MAX_PIXELS:
        raise DepthError(f'camera_info of {width} x {height} pixels: must be at most {MAX_PIXELS} in all; let the '
                         f'driver publish the size of the image')
    return width, height


def _binning(info: CameraInfo) -> tuple[int, int]:
    return info.binning_x or 1, info.binning_y or 1


def _why_another_size(info: CameraInfo, size: tuple[int, int]) -> str:
    across, down = _binning(info)
    if (info.height, info.width) == size and (across, down) != (1, 1):
        return (f'with binning {across} x {down} its width and height must be those of the full image, and they seem '
                f'to be binned already: set binning to 1, or correct the driver')
    return 'use the camera_info of the image'


# --- the numbers of a CameraInfo

def calibrate(info: CameraInfo, rectified: bool = False) -> Calibration:
    """Return the checked calibration of the image to which a CameraInfo belongs.

    K and D describe the raw image, P the rectified one; image_proc publishes the same camera_info for both. The offset
    of roi applies to both; do_rectify concerns image_proc only.

    Args:
        info: The message, with any content.
        rectified: True for the rectified image.

    Raises:
        DepthError: The calibration cannot be used. No other error is raised.
    """
    width, height = image_size(info)
    matrix = _matrix(info, rectified)
    across, down = _binning(info)
    _check_binning(info, matrix, width, height)
    (fx, _, cx), (_, fy, cy), _ = matrix.tolist()
    if len(info.d) > MAX_COEFFICIENTS:
        raise DepthError(f'camera_info with {len(info.d)} coefficients in D: must be at most {MAX_COEFFICIENTS}, zeros '
                         f'included; correct the calibration')
    calibration = Calibration(width, height, fx / across, fy / down, (cx - info.roi.x_offset) / across,
                              (cy - info.roi.y_offset) / down,
                              None if rectified else _lens(info.distortion_model, tuple(info.d)))
    _check_view(calibration, 'P' if rectified else 'K')
    return calibration


def to_rays(info: CameraInfo, rectified: bool = False) -> PixelRays:
    """Return the rays of all pixels. Raise DepthError as ``calibrate`` does."""
    return calibrate(info, rectified).rays()


def _matrix(info: CameraInfo, rectified: bool) -> np.ndarray:
    """Return the camera matrix (3, 3) that applies to the image."""
    name, rows = ('P', np.reshape(info.p, (3, 4))) if rectified else ('K', np.reshape(info.k, (3, 3)))
    matrix = rows[:, :3]
    fx, fy = matrix[0, 0], matrix[1, 1]
    if not (np.isfinite(matrix).all() and fx > 0 and fy > 0):
        raise DepthError(f'camera_info not calibrated: fx {fx:g} and fy {fy:g} must be positive and all of {name} '
                         f'finite; calibrate the camera, or let its driver publish its calibration')
    if matrix[1, 0] or tuple(matrix[2]) != (0, 0, 1):
        raise DepthError(f'camera_info with {name} = {matrix.ravel().tolist()}: must be fx 0 cx, 0 fy cy, 0 0 1, row '
                         f'by row; correct the calibration')
    if abs(matrix[0, 1]) > 0.1:
        raise DepthError(f'camera_info with a skew of {matrix[0, 1]:g} in {name}: must be 0; calibrate without skew')
    return matrix


def _check_binning(info: CameraInfo, matrix: np.ndarray, width: int, height: int) -> None:
    """Refuse a matrix of the binned image, which some drivers publish: all lengths would be wrong.

    A principal point is near the middle of its image. A matrix is refused if its principal point is nearer to the
    middle of the binned image than to that of the full image.
    """
    binning = _binning(info)
    binned = [axis for axis in (0, 1) if binning[axis] > 1]
    shares = [matrix[axis, 2] / (info.width, info.height)[axis] for axis in (0, 1)]
    if binned and all(abs(shares[axis] * binning[axis] - 0.5) < abs(shares[axis] - 0.5) for axis in binned):
        raise DepthError(f'camera_info with binning {binning[0]} x {binning[1]} and principal point '
                         f'({matrix[0, 2]:g}, {matrix[1, 2]:g}): must be that of the full {info.width} x {info.height} '
                         f'pixels, and seems to be of the binned image already; let the driver publish the matrix of '
                         f'the full image, or {width} x {height} with binning 1')


def _check_view(calibration: Calibration, name: str) -> None:
    """Refuse focal lengths and principal points that no real camera has."""
    for axis, size, focal, middle in (('x', calibration.width, calibration.fx, calibration.cx),
                                      ('y', calibration.height, calibration.fy, calibration.cy)):
        if not NARROWEST * focal <= size or not max(abs(middle), abs(size - 1 - middle)) <= OBLIQUE * focal:
            raise DepthError(f'camera_info with f{axis} {focal:g} and c{axis} {middle:g} for {size} pixels: no camera '
                             f'has this view; {name} must be in pixels of the image; calibrate the camera')
    if calibration.lens is not None and not calibration.coverage():
        raise DepthError(f'camera_info with D = {[*calibration.lens.coefficients]}: the lens model covers no pixel; '
                         f'calibrate the camera')


@functools.lru_cache(maxsize=16)
def _lens(name: str, given: tuple[float, ...]) -> Lens | None:
    """Return the lens of a distortion model and its coefficients, or None if there is no distortion."""
    d = [*given]
    model = _model(name)
    if not any(d) and (model != 'equidistant'):
        return None
    if model is None:
        raise DepthError(f'camera_info with distortion_model {name!r}: must be one of {", ".join(MODELS)}; set '
                         f'the parameter rectified if the image is rectified')
    if not all(abs(value) <= MAX_COEFFICIENT for value in d):
        raise DepthError(f'camera_info with D = {d}: must be finite, and at most {MAX_COEFFICIENT:g}; calibrate the '
                         f'camera')
    used = len(d)
    while used and not d[used - 1]:
        used -= 1
    if MODELS[model]:
        if not d or used > 4:
            raise DepthError(f'camera_info with {len(d)} coefficients in D: {name!r} must have 4; correct the '
                             f'calibration')
        return Lens(True, tuple((d + 4 * [0.0])[:4]))
    # k1 k2 may stand alone; a third coefficient is p1 only in a list of a known length
    complete = used <= 2 or any(used <= length <= len(d) for length in LENGTHS)
    if not complete or (model == 'thin_prism' and len(d) < 12):
        raise DepthError(f'camera_info with {len(d)} coefficients in D: {name!r} must have '
                         f'{"12 or 14" if model == "thin_prism" else ", ".join(map(str, LENGTHS))} (zeros at the end '
                         f'may follow); correct the calibration')
    return Lens(False, tuple((d + 14 * [0.0])[:14]))


def _model(name: str) -> str | None:
    """Return the canonical name of a distortion model, or None if it is unknown."""
    plain = name.strip().lower().replace('-', '_').replace(' ', '_')
    plain = SPELLINGS.get(plain, plain)
    return plain if plain in MODELS else None


# --- calibrations that may be wrong

def doubt(info: CameraInfo, rectified: bool, image_topic: str = '') -> str:
    """Return why lengths may be wrong with a usable calibration, or '' if there is no sign of that."""
    straight = re.search(r'(^|[/_])(rect|rectified)([/_]|$)', image_topic)
    if any(info.d) and straight and not rectified:
        return (f'{image_topic} seems to be rectified, but camera_info has distortion: set the parameter rectified '
                f'if the image is rectified')
    if rectified and any(info.d) and re.search(r'[/_]raw([/_]|$)', image_topic) and not straight:
        return (f'{image_topic} seems not to be rectified, but the parameter rectified is set: subscribe to the '
                f'rectified image, or set it to false')
    matrix = _matrix(info, rectified)
    shares = matrix[0, 2] / info.width, matrix[1, 2] / info.height
    if min(abs(share - 0.5) for share in shares) > OFF_MIDDLE and abs(shares[0] - shares[1]) < ALIKE:
        return (f'camera_info has its principal point at ({matrix[0, 2]:g}, {matrix[1, 2]:g}) of {info.width} x '
                f'{info.height} pixels, far from the middle: if the matrix belongs to another resolution, all '
                f'lengths are wrong; compare it with the calibration')
    return ''
