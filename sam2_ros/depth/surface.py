"""Points and oriented box of an object from its mask and registered depth. Needs no ROS.

All coordinates are in metres in the camera's optical frame: x right, y down, z forward.
"""
from __future__ import annotations

from dataclasses import dataclass
from math import ceil

import cv2
import numpy as np

from sam2_ros.depth.lens import PixelRays
from sam2_ros.depth.oriented_box import OrientedBox, oriented_box

MIN_POINTS = 30      # fewer points do not determine a shape
SAMPLES = 1000       # maximum number of an object's pixels to which its box is fitted
OUTLINE = 120        # maximum number of pixels of its outline to which the box is fitted
KEPT = 0.25          # minimum share of a mask that erosion leaves; it erodes less where it would leave less
STEEPEST = 5.0       # depth per breadth of the steepest surface that counts as one: 79 degrees
NOISE = 0.003        # metres of noise at 1 m; grows with the square of the distance
MIN_GAP = 0.02       # metres; smaller gaps in depth do not end an object
GAP = 0.15           # share of an object's breadth; a wider gap in depth ends it
SPARSE = 0.003       # share of the points below which a slice of depth counts as empty
SUPPORT = 3 / 8      # minimum share of a pixel's neighbours that are on one surface with it
THIN_SUPPORT = 2 / 8  # the same for a mask that is too thin to be eroded
MARGIN = 2           # pixels to the farthest neighbours, in rows and in columns


@dataclass(frozen=True, eq=False)
class DepthFrame:
    """Depth of one image, pixel by pixel."""

    metres: np.ndarray  # float32 (H, W) along the optical axis; NaN: unknown or out of range
    rays: PixelRays
    raw: np.ndarray | None = None  # (H, W) as received: uint16 millimetres or float32 metres. None: as metres

    def __post_init__(self) -> None:
        if self.rays.blind is not None:  # depth without a ray has no position
            object.__setattr__(self, 'metres', np.where(self.rays.blind, np.float32(np.nan), self.metres))

    def points(self, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        """Return the points that these pixels see, float32 (N, 3)."""
        z = self.metres[rows, columns]
        return np.stack([self.rays.x[rows, columns] * z, self.rays.y[rows, columns] * z, z], -1)


def measure(depth: DepthFrame, mask: np.ndarray, box: tuple[int, int, int, int], erosion: int,
            previous: OrientedBox | None = None) -> OrientedBox | None:
    """Return the oriented box of the visible surface of an object, or None if too little of its depth is known.

    The surface is extrapolated over the eroded rim: the box extends to a jump in depth near the edge of the mask, or
    else to that edge.

    Args:
        depth: Depth of the image.
        mask: bool (H, W).
        box: (x0, y0, x1, y1) around the mask in pixels, x1 and y1 exclusive.
        erosion: Pixels to ignore along the edge of the mask, see ``object_pixels``.
        previous: Box of the object in the previous image. The new box keeps its order of axes.
    """
    surface = _Surface(depth, mask, box, erosion)
    points, normals = surface.samples()
    if len(points) < MIN_POINTS:
        return None
    outline = surface.outline_points(points[:, 2].min(), points[:, 2].max())
    return oriented_box(np.concatenate([points, outline]), previous, normals)


def is_beyond_lens(depth: DepthFrame, mask: np.ndarray, box: tuple[int, int, int, int]) -> bool:
    """Return True if most of an object lies where the camera's lens model has no rays."""
    if depth.rays.blind is None:
        return False
    x0, y0, x1, y1 = box
    window = np.s_[y0:y1, x0:x1]
    return bool(2 * np.count_nonzero(depth.rays.blind[window] & mask[window]) > np.count_nonzero(mask[window]))


def object_points(depth: DepthFrame, mask: np.ndarray, box: tuple[int, int, int, int], erosion: int) -> np.ndarray:
    """Return the measured points of an object, float32 (N, 3); see ``object_pixels``."""
    return depth.points(*object_pixels(depth, mask, box, erosion))


def object_pixels(depth: DepthFrame, mask: np.ndarray, box: tuple[int, int, int, int], erosion: int,
                  stride: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows and columns, (N,) each, of an object's pixels with valid depth.

    Ignored are ``erosion`` pixels along the edge of the mask (fewer where little would remain), pixels that are on no
    surface with their neighbours (flying pixels), and pixels that a gap in depth separates from most of the object
    (background that shows through, or a wrong mask). Only rows and columns divisible by ``stride`` are returned.
    """
    return _Surface(depth, mask, box, erosion).pixels(stride)


class _Surface:
    """Visible surface of one object, computed in the window of its mask."""

    def __init__(self, depth: DepthFrame, mask: np.ndarray, box: tuple[int, int, int, int], erosion: int) -> None:
        self._depth = depth
        self._x0, self._y0, x1, y1 = box
        self._mask = np.ascontiguousarray(mask[self._y0:y1, self._x0:x1]).view(np.uint8)
        self._inner, self._erosion = _erode(self._mask, erosion)
        self._area = cv2.countNonZero(self._inner)
        self._window = _with_margin(depth.metres, box)

    def pixels(self, stride: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the rows and columns of the valid pixels, see ``object_pixels``."""
        first_row, first_column = -self._y0 % stride, -self._x0 % stride
        steps, z = self._neighbours(first_row, first_column, stride, 2)
        valid = self._valid(z, self._on_surface(np.abs(steps, out=steps), z), first_row, first_column, stride)
        rows, columns = np.nonzero(valid)
        return self._y0 + first_row + rows * stride, self._x0 + first_column + columns * stride

    def samples(self) -> tuple[np.ndarray, np.ndarray]:
        """Return up to about SAMPLES smoothed points (N, 3) of the surface, and unit normals (M, 3)."""
        stride = max(1, ceil((self._area / SAMPLES) ** 0.5))
        first = stride // 2
        steps, z = self._neighbours(first, first, stride, 1)
        on = self._on_surface(np.abs(steps), z)
        valid = self._valid(z, on, first, first, stride)
        on &= on[::-1]  # averaging opposite neighbours keeps slopes
        smooth = z + (np.where(on, steps, 0).sum(0) / np.maximum(on.sum(0, np.uint8), 1)).reshape(z.shape)
        y, x = self._y0 + first, self._x0 + first
        height, width = self._mask.shape
        where = np.s_[y:self._y0 + height:stride, x:self._x0 + width:stride]
        grid = np.stack([self._depth.rays.x[where] * smooth, self._depth.rays.y[where] * smooth, smooth], -1)
        return grid[valid], _normals(grid, valid)

    def _neighbours(self, first_row: int, first_column: int, stride: int,
                    spacing: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the depth steps from every stride-th pixel to its neighbours, and the depth of these pixels.

        The steps are (neighbours, pixels) with the pixel itself in the middle, the depth is (rows, columns).
        """
        height, width = self._mask.shape
        shape = len(range(first_row, height, stride)), len(range(first_column, width, stride))
        side = 2 * MARGIN // spacing + 1
        row, column = self._window.strides
        around = np.lib.stride_tricks.as_strided(
            self._window[first_row:, first_column:], (side, side, *shape),
            (row * spacing, column * spacing, row * stride, column * stride), writeable=False)
        z = around[side // 2, side // 2]
        return (around - z).reshape(side * side, -1), z

    def _on_surface(self, differences: np.ndarray, z: np.ndarray) -> np.ndarray:
        """Return whether differences in depth to the neighbours are those of a surface; bool, as ``differences``."""
        return differences < (STEEPEST * MARGIN / self._depth.rays.focal * z + NOISE * z * z).ravel()

    def _valid(self, z: np.ndarray, on: np.ndarray, first_row: int, first_column: int, stride: int) -> np.ndarray:
        """Return which of every stride-th pixels are inside, on a surface with their neighbours, and of the object."""
        support = on.sum(0, np.uint8).reshape(z.shape)
        share = SUPPORT if self._erosion else THIN_SUPPORT
        inside = self._inner[first_row::stride, first_column::stride].view(bool)
        valid = inside & (support > share * (len(on) - 1))  # not >=: each pixel is its own neighbour
        found = z[valid]
        if len(found):
            breadth = self._area ** 0.5 * float(np.median(found)) / self._depth.rays.focal
            low, high = _main_span(found, max(MIN_GAP, GAP * breadth))
            valid &= (z >= low) & (z <= high)
        return valid

    def outline_points(self, nearest: float, farthest: float) -> np.ndarray:
        """Return points where the surface ends, float32 (N, 3).

        It ends at a jump in depth within the erosion distance of the edge of the mask, inside or outside, or else at
        that edge. Depth there mixes both sides, so it is extrapolated from inside, linearly in 1 / z, which is exact
        for a plane.

        Args:
            nearest: Minimum depth of the points inside, in metres.
            farthest: Maximum depth of the points inside, in metres.
        """
        inset, base = self._erosion + MARGIN, 2 * self._erosion + 4  # pixels
        focal = self._depth.rays.focal
        x, y, along_x, along_y = _outline(self._mask, 2 * self._erosion + 5)
        inwards = np.stack([along_y, along_x])
        steps = np.arange(-self._erosion - 1, inset + 1)[:, None]  # a jump shows one pixel after the last before it
        way = np.stack([y + steps * along_y, x + steps * along_x]).round().astype(np.intp)  # (2, steps, N), inwards
        deep = (way[:, -1] + base * inwards).round().astype(np.intp)
        z_inner, z_deep = np.split(self._median_depth(np.concatenate([way[:, -1], deep], 1)), 2)
        slope = np.nan_to_num((1 / z_inner - 1 / z_deep) / base)
        noise = NOISE * z_inner * z_inner
        measured = self._at(*way)
        runs_on = np.abs(np.diff(measured, axis=0)) < STEEPEST * 1.5 / focal * z_inner + noise
        unbroken = np.logical_and.accumulate(runs_on[::-1]).sum(0)
        each, deepest = np.arange(len(x)), len(steps) - 1
        last = deepest - unbroken  # the step to which the surface can be followed from inside
        jumps = (last > 0) & np.isfinite(measured[last - 1, each])  # otherwise depth becomes unknown there
        end = np.where(jumps, last, self._erosion + 1)
        # the outline passes through the centres of pixels whose outer half belongs to the object
        outward = deepest - end + 0.5
        steepest = STEEPEST * outward / focal * z_inner
        z = np.clip(1 / (1 / z_inner + outward * slope), z_inner - steepest, z_inner + steepest)
        # a measurement that differs by more than noise shows a curved surface, at most that of a ball of this breadth
        radius = (self._area / np.pi) ** 0.5 + self._erosion
        farthest_bend = z_inner + np.sqrt(2 * radius * outward) / focal * z_inner
        seen = np.minimum(measured[end, each], np.maximum(farthest_bend, z))
        z = np.where((last <= end) & (np.abs(seen - z) > noise), seen, z)
        keep = (z_inner >= nearest - MIN_GAP) & (z_inner <= farthest + MIN_GAP)
        height, width = self._depth.metres.shape
        rows, columns = way[:, end, each]
        rows, columns = (rows + self._y0).clip(0, height - 1), (columns + self._x0).clip(0, width - 1)
        ray_x = self._depth.rays.x[rows, columns] - 0.5 / focal * along_x
        ray_y = self._depth.rays.y[rows, columns] - 0.5 / focal * along_y
        keep &= np.isfinite(ray_x)
        return np.stack([ray_x * z, ray_y * z, z], -1)[keep].astype(np.float32)

    def _at(self, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        """Return the depth at pixels, relative to the window; NaN outside the image."""
        height, width = self._depth.metres.shape
        rows, columns = rows + self._y0, columns + self._x0
        inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
        return np.where(inside, self._depth.metres[rows.clip(0, height - 1), columns.clip(0, width - 1)],
                        np.float32(np.nan))

    def _median_depth(self, pixels: np.ndarray) -> np.ndarray:
        """Return the median depth around pixels (rows, columns) of the window, float32 (N,).

        It is NaN where most of the depth is unknown.
        """
        height, width = self._inner.shape
        rows, columns = pixels
        inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
        rows, columns = np.where(inside, rows, 0), np.where(inside, columns, 0)
        inside &= self._inner[rows, columns] > 0
        around = np.arange(0, 2 * MARGIN + 1, 2)
        patches = self._window[(rows[:, None] + around)[:, :, None], (columns[:, None] + around)[:, None]]
        patches = np.sort(patches.reshape(len(rows), len(around) ** 2), axis=1)  # sorts NaN last
        known = np.isfinite(patches).sum(1)
        middle = patches[np.arange(len(rows)), (np.maximum(known, 1) - 1) // 2]
        return np.where(inside & (2 * known > patches.shape[1]), middle, np.float32(np.nan))


def _erode(mask: np.ndarray, erosion: int) -> tuple[np.ndarray, int]:
    """Return the mask (uint8, of its box) without its rim, and the width of the rim in pixels.

    The rim is narrower than ``erosion`` if little of the mask would remain.
    """
    area = cv2.countNonZero(mask)
    while erosion:
        inner = cv2.erode(mask, np.ones((3, 3), np.uint8), iterations=erosion, borderType=cv2.BORDER_CONSTANT,
                          borderValue=0)
        if cv2.countNonZero(inner) >= KEPT * area:
            return inner, erosion
        erosion //= 2
    return mask, 0


def _with_margin(metres: np.ndarray, box: tuple[int, int, int, int]) -> np.ndarray:
    """Return the window of a box with MARGIN pixels around it, NaN outside the image."""
    x0, y0, x1, y1 = box
    height, width = metres.shape
    left, top = max(0, MARGIN - x0), max(0, MARGIN - y0)
    right, bottom = max(0, x1 + MARGIN - width), max(0, y1 + MARGIN - height)
    window = metres[max(0, y0 - MARGIN):y1 + MARGIN, max(0, x0 - MARGIN):x1 + MARGIN]
    if left or top or right or bottom:
        window = np.pad(window, ((top, bottom), (left, right)), constant_values=np.nan)
    return window


def _main_span(z: np.ndarray, gap: float) -> tuple[float, float]:
    """Return the range that holds most of the depths (N,) without a gap of this width; sparse depths fill no gap."""
    low = float(z.min())
    counts = np.bincount(((z - low) * (2 / gap)).astype(np.intp))
    dense = counts > SPARSE * len(z)
    dense[1:-1] |= dense[:-2] & dense[2:]  # a single slice of half a gap may be empty
    edges = np.flatnonzero(np.diff(np.concatenate([[False], dense, [False]])))
    if not len(edges):  # all slices are sparse
        return low, float(z.max())
    total = np.concatenate([[0], np.cumsum(counts)])
    most = np.argmax(total[edges[1::2]] - total[edges[::2]])
    return low + edges[2 * most] * gap / 2, low + edges[2 * most + 1] * gap / 2


def _outline(mask: np.ndarray, smoothing: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return up to OUTLINE pixels of the outlines of a mask (uint8): x, y, and x and y of the inward unit normal."""
    pad = smoothing // 2 + 2
    padded = cv2.copyMakeBorder(mask, pad, pad, pad, pad, cv2.BORDER_CONSTANT, value=0)
    outlines, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    pixels = np.concatenate(outlines)[:, 0]
    pixels = pixels[::-(-len(pixels) // OUTLINE)]
    soft = cv2.blur(padded * 255, (smoothing, smoothing)).astype(np.int16)
    x, y = pixels.T + pad
    along_x, along_y = (soft[y, x + 2] - soft[y, x - 2]).astype(float), (soft[y + 2, x] - soft[y - 2, x]).astype(float)
    length = np.hypot(along_x, along_y)
    keep = length > 0
    return (x - pad)[keep], (y - pad)[keep], (along_x / length.clip(1))[keep], (along_y / length.clip(1))[keep]


def _normals(grid: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Return unit normals (M, 3) of the surface through a grid of points (rows, columns, 3), where it is known."""
    grid, valid = grid[::2, ::2], valid[::2, ::2]  # noise needs a wide base, and a quarter of the points is enough
    if min(valid.shape) < 3:
        return np.empty((0, 3))
    known = valid[2:, 1:-1] & valid[:-2, 1:-1] & valid[1:-1, 2:] & valid[1:-1, :-2]
    ax, ay, az = (grid[1:-1, 2:] - grid[1:-1, :-2])[known].T
    bx, by, bz = (grid[2:, 1:-1] - grid[:-2, 1:-1])[known].T
    normals = np.array([ay * bz - az * by, az * bx - ax * bz, ax * by - ay * bx])
    return (normals / np.sqrt((normals * normals).sum(0))).T
