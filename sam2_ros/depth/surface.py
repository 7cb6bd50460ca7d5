"""Where an object is: from its mask and registered depth to points, and the oriented box around them. No ROS in here.

Everything is in metres in the camera's optical frame: x right, y down, z forward.
"""
from __future__ import annotations

from dataclasses import dataclass
from math import ceil

import cv2
import numpy as np

from sam2_ros.depth.oriented_box import OrientedBox, oriented_box

MIN_POINTS = 30      # fewer say nothing about a shape
SAMPLES = 1000       # pixels of an object that its box is fitted to, at most
OUTLINE = 120        # and pixels of its outline, at most
KEPT = 0.25          # share of a mask that erosion has to leave; it goes less deep where it would not
STEEPEST = 5.0       # depth per breadth of the steepest surface that is believed: 79 degrees
NOISE = 0.003        # metres at 1 m, growing with the square: differences that say nothing
MIN_GAP = 0.02       # metres
GAP = 0.15           # of the breadth of an object: a gap in depth so wide ends it
SPARSE = 0.003       # share of the points that a slice of depth must have not to be empty
SUPPORT = 3 / 8      # share of a pixel's neighbours that are on one surface with it; along something thin there are
THIN_SUPPORT = 2 / 8  # fewer
MARGIN = 2           # pixels to the farthest neighbours, in rows and in columns


@dataclass(frozen=True, eq=False)
class Camera:
    """Where the pixels of a camera look."""

    x: np.ndarray  # float32 (H, W): x / z of what each pixel sees
    y: np.ndarray
    focal: float  # pixels; pixels are 1 / focal apart
    blind: np.ndarray | None = None  # bool (H, W): pixels without a ray, NaN in x and y; None: all have one

    @classmethod
    def pinhole(cls, width: int, height: int, fx: float, fy: float, cx: float, cy: float) -> Camera:
        """Without distortion; all in pixels, (0, 0) is the centre of the top-left one."""
        x = ((np.arange(width) - cx) / fx).astype(np.float32)
        y = ((np.arange(height) - cy) / fy).astype(np.float32)
        return cls(np.broadcast_to(x, (height, width)), np.broadcast_to(y[:, None], (height, width)), (fx * fy) ** 0.5)


@dataclass(frozen=True, eq=False)
class DepthFrame:
    """The depth of one image, pixel by pixel."""

    metres: np.ndarray  # float32 (H, W), along the optical axis; NaN: not known, or not believed
    camera: Camera
    raw: np.ndarray | None = None  # (H, W) as it came: uint16 millimetres or float32 metres; None: as metres

    def __post_init__(self) -> None:
        if self.camera.blind is not None:  # depth that nobody can place
            object.__setattr__(self, 'metres', np.where(self.camera.blind, np.float32(np.nan), self.metres))

    def points(self, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        """What these pixels see: float32 (N, 3)."""
        z = self.metres[rows, columns]
        return np.stack([self.camera.x[rows, columns] * z, self.camera.y[rows, columns] * z, z], -1)


def measure(depth: DepthFrame, mask: np.ndarray, box: tuple[int, int, int, int], erosion: int,
            previous: OrientedBox | None = None) -> OrientedBox | None:
    """The oriented box of what is seen of an object; None when too little of its depth is known.

    mask: bool (H, W); box: (x0, y0, x1, y1) around it, x1 and y1 exclusive; erosion: see ``object_pixels``;
    previous: the object's box in the image before, whose axes are kept up.

    The surface is continued over the eroded rim: the box reaches to a jump in depth near the edge of the mask, or else
    to that edge.
    """
    surface = _Surface(depth, mask, box, erosion)
    points, normals = surface.samples()
    if len(points) < MIN_POINTS:
        return None
    outline = surface.outline_points(points[:, 2].min(), points[:, 2].max())
    return oriented_box(np.concatenate([points, outline]), previous, normals)


def is_beyond_lens(depth: DepthFrame, mask: np.ndarray, box: tuple[int, int, int, int]) -> bool:
    """Return whether most of an object lies where the camera's lens model has no rays."""
    if depth.camera.blind is None:
        return False
    x0, y0, x1, y1 = box
    window = np.s_[y0:y1, x0:x1]
    return 2 * np.count_nonzero(depth.camera.blind[window] & mask[window]) > np.count_nonzero(mask[window])


def object_points(depth: DepthFrame, mask: np.ndarray, box: tuple[int, int, int, int], erosion: int) -> np.ndarray:
    """The points of an object, float32 (N, 3), as measured; see ``object_pixels``."""
    return depth.points(*object_pixels(depth, mask, box, erosion))


def object_pixels(depth: DepthFrame, mask: np.ndarray, box: tuple[int, int, int, int], erosion: int,
                  stride: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of an object's pixels whose depth can be believed; each (N,).

    Left out are ``erosion`` pixels along the edge of the mask (fewer where little would be left), pixels that lie on no
    surface together with their neighbours (flying pixels), and what a gap in depth separates from most of the object
    (the background that shows through, or where the mask is wrong). Only rows and columns divisible by ``stride``.
    """
    return _Surface(depth, mask, box, erosion).pixels(stride)


class _Surface:
    """What is seen of one object, worked out in the window of its mask."""

    def __init__(self, depth: DepthFrame, mask: np.ndarray, box: tuple[int, int, int, int], erosion: int) -> None:
        self._depth = depth
        self._x0, self._y0, x1, y1 = box
        self._mask = np.ascontiguousarray(mask[self._y0:y1, self._x0:x1]).view(np.uint8)
        self._inner, self._erosion = _erode(self._mask, erosion)
        self._area = cv2.countNonZero(self._inner)
        self._window = _with_margin(depth.metres, box)

    def pixels(self, stride: int) -> tuple[np.ndarray, np.ndarray]:
        first_row, first_column = -self._y0 % stride, -self._x0 % stride
        steps, z = self._neighbours(first_row, first_column, stride, 2)
        believed = self._believe(z, self._on_surface(np.abs(steps, out=steps), z), first_row, first_column, stride)
        rows, columns = np.nonzero(believed)
        return self._y0 + first_row + rows * stride, self._x0 + first_column + columns * stride

    def samples(self) -> tuple[np.ndarray, np.ndarray]:
        """Up to about SAMPLES points (N, 3) of the surface, smoothed, and unit normals (M, 3)."""
        stride = max(1, ceil((self._area / SAMPLES) ** 0.5))
        first = stride // 2
        steps, z = self._neighbours(first, first, stride, 1)
        on = self._on_surface(np.abs(steps), z)
        believed = self._believe(z, on, first, first, stride)
        on &= on[::-1]  # opposite neighbours together leave a slope as it is
        smooth = z + (np.where(on, steps, 0).sum(0) / np.maximum(on.sum(0, np.uint8), 1)).reshape(z.shape)
        y, x = self._y0 + first, self._x0 + first
        height, width = self._mask.shape
        where = np.s_[y:self._y0 + height:stride, x:self._x0 + width:stride]
        grid = np.stack([self._depth.camera.x[where] * smooth, self._depth.camera.y[where] * smooth, smooth], -1)
        return grid[believed], _normals(grid, believed)

    def _neighbours(self, first_row: int, first_column: int, stride: int, spacing: int):
        """The depth from every stride-th pixel to its neighbours, and its own: (neighbours, pixels) with the pixel
        itself in the middle, and (rows, columns)."""
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
        """Whether the differences of depth to the neighbours are those of a surface; bool, as ``differences``."""
        return differences < (STEEPEST * MARGIN / self._depth.camera.focal * z + NOISE * z * z).ravel()

    def _believe(self, z: np.ndarray, on: np.ndarray, first_row: int, first_column: int, stride: int) -> np.ndarray:
        """Which of every stride-th pixel is inside, on a surface with its neighbours, and of the object; bool."""
        support = on.sum(0, np.uint8).reshape(z.shape)
        share = SUPPORT if self._erosion else THIN_SUPPORT
        inside = self._inner[first_row::stride, first_column::stride].view(bool)
        believed = inside & (support > share * (len(on) - 1))  # more: it is its own neighbour
        found = z[believed]
        if len(found):
            breadth = self._area ** 0.5 * float(np.median(found)) / self._depth.camera.focal
            low, high = _main_span(found, max(MIN_GAP, GAP * breadth))
            believed &= (z >= low) & (z <= high)
        return believed

    def outline_points(self, nearest: float, farthest: float) -> np.ndarray:
        """Where the surface ends: float32 (N, 3).

        That is at a jump in depth not farther from the edge of the mask than is eroded, inside or outside, or else at
        that edge. Depth there is that of neither side: it is continued from inside, linearly in 1 / z, which is exact
        for a plane. ``nearest`` and ``farthest`` are of the points inside.
        """
        inset, base = self._erosion + MARGIN, 2 * self._erosion + 4  # pixels
        focal = self._depth.camera.focal
        x, y, along_x, along_y = _outline(self._mask, 2 * self._erosion + 5)
        inwards = np.stack([along_y, along_x])
        steps = np.arange(-self._erosion - 1, inset + 1)[:, None]  # a jump shows beyond the last pixel before it
        way = np.stack([y + steps * along_y, x + steps * along_x]).round().astype(np.intp)  # (2, steps, N), inwards
        deep = (way[:, -1] + base * inwards).round().astype(np.intp)
        z_inner, z_deep = np.split(self._median_depth(np.concatenate([way[:, -1], deep], 1)), 2)
        slope = np.nan_to_num((1 / z_inner - 1 / z_deep) / base)
        noise = NOISE * z_inner * z_inner
        measured = self._at(*way)
        runs_on = np.abs(np.diff(measured, axis=0)) < STEEPEST * 1.5 / focal * z_inner + noise
        unbroken = np.logical_and.accumulate(runs_on[::-1]).sum(0)
        each, deepest = np.arange(len(x)), len(steps) - 1
        last = deepest - unbroken  # where the surface can be followed to
        jumps = (last > 0) & np.isfinite(measured[last - 1, each])  # or depth is not known any more
        end = np.where(jumps, last, self._erosion + 1)
        # the outline runs through the centres of pixels, whose outer half belongs to the object
        outward = deepest - end + 0.5
        steepest = STEEPEST * outward / focal * z_inner
        z = np.clip(1 / (1 / z_inner + outward * slope), z_inner - steepest, z_inner + steepest)
        # what is far from that, not by noise, bends away, though no more than a ball of this breadth does
        radius = (self._area / np.pi) ** 0.5 + self._erosion
        farthest_bend = z_inner + np.sqrt(2 * radius * outward) / focal * z_inner
        seen = np.minimum(measured[end, each], np.maximum(farthest_bend, z))
        z = np.where((last <= end) & (np.abs(seen - z) > noise), seen, z)
        keep = (z_inner >= nearest - MIN_GAP) & (z_inner <= farthest + MIN_GAP)
        height, width = self._depth.metres.shape
        rows, columns = way[:, end, each]
        rows, columns = (rows + self._y0).clip(0, height - 1), (columns + self._x0).clip(0, width - 1)
        ray_x = self._depth.camera.x[rows, columns] - 0.5 / focal * along_x
        ray_y = self._depth.camera.y[rows, columns] - 0.5 / focal * along_y
        keep &= np.isfinite(ray_x)
        return np.stack([ray_x * z, ray_y * z, z], -1)[keep].astype(np.float32)

    def _at(self, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        """Depth at pixels of the window, or near it; NaN outside the image."""
        height, width = self._depth.metres.shape
        rows, columns = rows + self._y0, columns + self._x0
        inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
        return np.where(inside, self._depth.metres[rows.clip(0, height - 1), columns.clip(0, width - 1)],
                        np.float32(np.nan))

    def _median_depth(self, pixels: np.ndarray) -> np.ndarray:
        """Depth around pixels (rows, columns) of the window, float32 (N,); NaN where most of it is not known."""
        height, width = self._inner.shape
        rows, columns = pixels
        inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
        rows, columns = np.where(inside, rows, 0), np.where(inside, columns, 0)
        inside &= self._inner[rows, columns] > 0
        around = np.arange(0, 2 * MARGIN + 1, 2)
        patches = self._window[(rows[:, None] + around)[:, :, None], (columns[:, None] + around)[:, None]]
        patches = np.sort(patches.reshape(len(rows), len(around) ** 2), axis=1)  # NaN last
        known = np.isfinite(patches).sum(1)
        middle = patches[np.arange(len(rows)), (np.maximum(known, 1) - 1) // 2]
        return np.where(inside & (2 * known > patches.shape[1]), middle, np.float32(np.nan))


def _erode(mask: np.ndarray, erosion: int) -> tuple[np.ndarray, int]:
    """The mask (uint8, of its box) without its rim, and how many pixels that is: fewer when little would be left."""
    area = cv2.countNonZero(mask)
    while erosion:
        inner = cv2.erode(mask, np.ones((3, 3), np.uint8), iterations=erosion, borderType=cv2.BORDER_CONSTANT,
                          borderValue=0)
        if cv2.countNonZero(inner) >= KEPT * area:
            return inner, erosion
        erosion //= 2
    return mask, 0


def _with_margin(metres: np.ndarray, box: tuple[int, int, int, int]) -> np.ndarray:
    """The window of a box with MARGIN pixels around it; NaN outside the image."""
    x0, y0, x1, y1 = box
    height, width = metres.shape
    left, top = max(0, MARGIN - x0), max(0, MARGIN - y0)
    right, bottom = max(0, x1 + MARGIN - width), max(0, y1 + MARGIN - height)
    window = metres[max(0, y0 - MARGIN):y1 + MARGIN, max(0, x0 - MARGIN):x1 + MARGIN]
    if left or top or right or bottom:
        window = np.pad(window, ((top, bottom), (left, right)), constant_values=np.nan)
    return window


def _main_span(z: np.ndarray, gap: float) -> tuple[float, float]:
    """From where to where most of the depths (N,) reach without a gap so wide; what is sparse fills no gap."""
    low = float(z.min())
    counts = np.bincount(((z - low) * (2 / gap)).astype(np.intp))
    dense = counts > SPARSE * len(z)
    dense[1:-1] |= dense[:-2] & dense[2:]  # one slice of half a gap may be empty
    edges = np.flatnonzero(np.diff(np.concatenate([[False], dense, [False]])))
    if not len(edges):  # as sparse everywhere
        return low, float(z.max())
    total = np.concatenate([[0], np.cumsum(counts)])
    most = np.argmax(total[edges[1::2]] - total[edges[::2]])
    return low + edges[2 * most] * gap / 2, low + edges[2 * most + 1] * gap / 2


def _outline(mask: np.ndarray, smoothing: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Up to OUTLINE pixels along the outlines of a mask (uint8): x, y, and the unit vector that points inside."""
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


def _normals(grid: np.ndarray, believed: np.ndarray) -> np.ndarray:
    """Unit normals (M, 3) of the surface through a grid of points (rows, columns, 3), where it is known around them."""
    grid, believed = grid[::2, ::2], believed[::2, ::2]  # noise needs a wide base, and a quarter is enough
    if min(believed.shape) < 3:
        return np.empty((0, 3))
    known = believed[2:, 1:-1] & believed[:-2, 1:-1] & believed[1:-1, 2:] & believed[1:-1, :-2]
    ax, ay, az = (grid[1:-1, 2:] - grid[1:-1, :-2])[known].T
    bx, by, bz = (grid[2:, 1:-1] - grid[:-2, 1:-1])[known].T
    normals = np.array([ay * bz - az * by, az * bx - ax * bz, ax * by - ay * bx])
    return (normals / np.sqrt((normals * normals).sum(0))).T
