"""Depth that arrives beside the images: kept until it is asked for, paired by stamp, decoded, and checked."""
from __future__ import annotations

import functools
import threading
import time
from collections import deque
from dataclasses import dataclass, replace

import cv2
import numpy as np
from sensor_msgs.msg import CameraInfo, Image
from std_msgs.msg import Header

from sam2_ros.conversions import ImageError, pixel_bytes, to_nanoseconds
from sam2_ros.parameters import Parameters
from sam2_ros.spatial import Camera, DepthFrame
from sam2_ros.stamps import TIME_JUMP, StampWatch

KEPT_IMAGES = 30
KEPT_TIME = 1_000_000_000  # ns
ARRIVING = 1.0             # seconds without depth after which it does not arrive any more
KNOWN_INFOS = 4            # cameras, by size and frame, whose newest calibration is kept
MILLIMETRES = ('16UC1', 'mono16')
METRES = ('32FC1',)
DISTORTIONS = ('plumb_bob', 'rational_polynomial', 'equidistant')


class DepthError(ValueError):
    """There is no depth for an image; the text names the value and the cure."""


@dataclass(frozen=True)
class DepthReport:
    """What became of the images that depth was asked for."""

    used: int = 0  # images that had depth
    absent: int = 0  # no depth arrived at all
    unmatched: int = 0  # depth arrived, but none with the stamp of the image
    refused: int = 0  # it could not be used
    reason: str = ''  # why the last image had none; empty when it had


@dataclass(eq=False)
class _Arrived:
    stamp: int  # ns
    message: Image
    info: CameraInfo | None = None  # the one of its stamp


class DepthMailbox:
    """The recent depth images and camera_infos of one camera, as they came, and the depth of an image.

    Any thread may put; the worker asks. Of depth about a second is kept, and what belongs to the image in work.
    """

    def __init__(self, changed: threading.Condition, topic: str = 'depth') -> None:
        """``changed`` guards the content and is notified of each depth image; ``topic`` is named in reasons."""
        self._changed = changed
        self._topic = topic
        self._stamps = StampWatch()
        self._recent: deque[_Arrived] = deque()
        self._infos: dict[tuple, CameraInfo] = {}  # by size and frame, the newest last
        self._expected: int | None = None  # ns: stamp of the image in work
        self._kept: _Arrived | None = None  # the nearest to it of those that were dropped since
        self._last_arrival: float | None = None  # time.monotonic()
        self._report = DepthReport()

    # --- any thread

    def put_depth(self, message: Image, arrived: float | None = None) -> None:
        """Take a depth image, unless its stamp is a single odd one. ``arrived``: as for ``Stream.put_image``."""
        stamp = to_nanoseconds(message.header.stamp)
        with self._changed:
            now = self._last_arrival = time.monotonic()
            if self._stamps.judge(stamp, now if arrived is None else arrived):
                return
            if self._recent and stamp < self._recent[-1].stamp - TIME_JUMP:
                self._recent.clear()
            self._recent.append(_Arrived(stamp, message))
            while len(self._recent) > KEPT_IMAGES or stamp - self._recent[0].stamp > KEPT_TIME:
                self._keep_if_expected(self._recent.popleft())
            self._changed.notify()

    def put_info(self, message: CameraInfo) -> None:
        with self._changed:
            key = (message.width, message.height, message.header.frame_id)
            self._infos.pop(key, None)
            self._infos[key] = message
            if len(self._infos) > KNOWN_INFOS:
                del self._infos[next(iter(self._infos))]

    def put_pair(self, depth: Image, info: CameraInfo) -> None:
        """Tell that these two, which have been put each by itself, have one stamp."""
        with self._changed:
            for arrived in reversed(self._recent):
                if arrived.message is depth:
                    arrived.info = info
                    return

    @property
    def info(self) -> CameraInfo | None:
        """The newest camera_info."""
        with self._changed:
            return next(reversed(self._infos.values()), None)

    @property
    def report(self) -> DepthReport:
        with self._changed:
            return self._report

    # --- the worker

    def expect(self, header: Header) -> None:
        """Keep the depth of this image until the next one is expected, however long the model takes."""
        with self._changed:
            self._expected, self._kept = to_nanoseconds(header.stamp), None

    def depth_for(self, header: Header, size: tuple[int, int], parameters: Parameters) -> DepthFrame | None:
        """The depth of the image with this header and size (height, width), or None; then ``report`` says why.

        Waits up to ``depth_wait`` seconds for depth that may still be under way: while depth arrives at all, and none
        has come that is newer than the image.
        """
        with self._changed:
            report = self._report
            nearest, reason = self._wait_for(to_nanoseconds(header.stamp), parameters)
            infos = [*reversed(self._infos.values())]
        frame = None
        if not reason:
            try:
                frame = _to_frame(nearest, infos, header, size, parameters)
                report = replace(report, used=report.used + 1)
            except (DepthError, ImageError) as error:
                reason, report = f'{self._topic}: {error}', replace(report, refused=report.refused + 1)
        elif nearest is None:
            report = replace(report, absent=report.absent + 1)
        else:
            report = replace(report, unmatched=report.unmatched + 1)
        with self._changed:
            self._report = replace(report, reason=reason)
        return frame

    def _wait_for(self, stamp: int, parameters: Parameters) -> tuple[_Arrived | None, str]:
        """The depth nearest to a stamp, and why it cannot be the image's; empty when it can."""
        tolerance = parameters.depth_tolerance * 1e9
        deadline = time.monotonic() + parameters.depth_wait
        while True:
            arrived = [*self._recent, *([self._kept] if self._kept else [])]
            nearest = min(arrived, key=lambda depth: abs(depth.stamp - stamp), default=None)
            now = time.monotonic()
            silent = None if self._last_arrival is None else now - self._last_arrival
            if nearest is not None and abs(nearest.stamp - stamp) <= tolerance:
                return nearest, '' if stamp else 'the image has no stamp: no depth can be found for it'
            passed = any(depth.stamp > stamp + tolerance for depth in arrived)
            if passed or silent is None or silent > ARRIVING or now >= deadline:
                break
            self._changed.wait(deadline - now)
        if silent is None:
            return None, f'no depth on {self._topic}: remap it to the depth that is aligned to the image'
        if silent > ARRIVING:
            return None, f'no depth on {self._topic} for {silent:.1f} s: is the camera running?'
        apart = (nearest.stamp - stamp) / 1e9
        return nearest, (f'{self._topic}: the nearest depth is {abs(apart):.3f} s {"newer" if apart > 0 else "older"} '
                         f'than the image: must be within {parameters.depth_tolerance:g} s; raise depth_tolerance, '
                         f'depth_wait where depth comes late, or let the camera synchronise the two')

    def _keep_if_expected(self, dropped: _Arrived) -> None:
        if self._expected is None:
            return
        if self._kept is None or abs(dropped.stamp - self._expected) <= abs(self._kept.stamp - self._expected):
            self._kept = dropped


# --- messages to arrays

def _to_frame(depth: _Arrived, infos: list[CameraInfo], header: Header, size: tuple[int, int],
              parameters: Parameters) -> DepthFrame:
    message = depth.message
    height, width = size
    if (message.height, message.width) != size:
        raise DepthError(f'depth of {message.width} x {message.height} pixels: must be {width} x {height}, as the '
                         f'image; use the depth that is aligned to it')
    if not _same_frame(message.header, header):
        raise DepthError(f"depth in frame '{message.header.frame_id}': must be '{header.frame_id}', as the image; use "
                         f'the depth that is aligned to it')
    info = _matching(([depth.info] if depth.info else []) + infos, message)
    metres, raw = to_metres(message, parameters.depth_min, parameters.depth_max)
    return DepthFrame(metres, to_camera(info, parameters.rectified), raw)


def _matching(infos: list[CameraInfo], depth: Image) -> CameraInfo:
    """The first that can be that of the depth image."""
    reasons = []
    for info in infos:
        width, height = _size(info)
        if (height, width) != (depth.height, depth.width):
            reasons.append(f'camera_info of {width} x {height} pixels: must be {depth.width} x {depth.height}, as the '
                           f'depth; use that of the image')
        elif not _same_frame(info.header, depth.header):
            reasons.append(f"camera_info in frame '{info.header.frame_id}': must be '{depth.header.frame_id}', as the "
                           f'depth; use that of the image')
        else:
            return info
    raise DepthError(reasons[0] if reasons else 'no camera_info: publish it beside the depth, or remap camera_info')


def _same_frame(one: Header, other: Header) -> bool:
    """Or one of them does not say."""
    a, b = one.frame_id.lstrip('/'), other.frame_id.lstrip('/')
    return a == b or not a or not b


def _size(info: CameraInfo) -> tuple[int, int]:
    """Width and height of the images it belongs to."""
    return (info.roi.width or info.width) // (info.binning_x or 1), (info.roi.height or info.height) // (
        info.binning_y or 1)


def to_metres(message: Image, nearest: float, farthest: float) -> tuple[np.ndarray, np.ndarray]:
    """Depth as float32 metres (H, W), NaN where it is 0, not finite or not in nearest..farthest, and as it came: uint16
    millimetres or float32 metres (H, W). Raises ImageError for what is malformed or of another encoding."""
    order = '>' if message.is_bigendian else '<'
    if message.encoding in MILLIMETRES:
        raw = pixel_bytes(message, 2).view(f'{order}u2')[..., 0].astype(np.uint16, copy=False)
        return np.take(_metres_of_millimetres(nearest, farthest), raw), raw
    if message.encoding in METRES:
        raw = pixel_bytes(message, 4).view(f'{order}f4')[..., 0].astype(np.float32, copy=False)
        believed = (raw >= max(nearest, 1e-6)) & (raw <= farthest) & np.isfinite(raw)
        return np.where(believed, raw, np.float32(np.nan)), raw
    raise ImageError(f'depth with encoding {message.encoding!r}: must be 16UC1 (millimetres) or 32FC1 (metres)')


@functools.lru_cache(maxsize=2)
def _metres_of_millimetres(nearest: float, farthest: float) -> np.ndarray:
    """For each of the 65536 values; looking it up is the fastest way through a whole image."""
    metres = np.arange(65536) / 1000
    metres[(metres < nearest) | (metres > farthest) | (metres == 0)] = np.nan
    return metres.astype(np.float32)


def to_camera(info: CameraInfo, rectified: bool = False) -> Camera:
    """Where the pixels look, with binning and roi where they are set. Raises DepthError.

    By K and D, which are about the image as the camera made it; by P if the image is ``rectified``: image_proc hands
    the camera_info of both on as it is.
    """
    matrix, distortion = (np.reshape(info.p, (3, 4))[:, :3].ravel(), ()) if rectified else (info.k, info.d)
    return _camera(*_size(info), tuple(matrix), tuple(distortion), info.distortion_model,
                   (info.roi.x_offset, info.roi.y_offset), (info.binning_x or 1, info.binning_y or 1))


@functools.lru_cache(maxsize=KNOWN_INFOS)
def _camera(width: int, height: int, k: tuple, d: tuple, model: str, offset: tuple, binning: tuple) -> Camera:
    fx, fy, cx, cy = k[0], k[4], k[2], k[5]
    if not (np.isfinite([*k, *d]).all() and fx > 0 and fy > 0):
        raise DepthError(f'camera_info not calibrated: fx {fx:g} and fy {fy:g} must be positive and finite; calibrate '
                         f'the camera, or let its driver publish its calibration')
    fx, fy = fx / binning[0], fy / binning[1]
    cx, cy = (cx - offset[0]) / binning[0], (cy - offset[1]) / binning[1]
    if not any(d):
        return Camera.pinhole(width, height, fx, fy, cx, cy)
    if model not in DISTORTIONS:
        raise DepthError(f'camera_info with distortion_model {model!r}: must be {", ".join(DISTORTIONS)}; or set the '
                         f'parameter rectified, if the image is')
    pixels = np.stack(np.meshgrid(np.arange(width, dtype=float), np.arange(height, dtype=float)), -1)
    matrix = np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]])
    undistort = cv2.fisheye.undistortPoints if model == 'equidistant' else cv2.undistortPoints
    rays = undistort(pixels.reshape(-1, 1, 2), matrix, np.array(d[:4] if model == 'equidistant' else d))
    rays = rays.reshape(height, width, 2).astype(np.float32)
    return Camera(np.ascontiguousarray(rays[..., 0]), np.ascontiguousarray(rays[..., 1]), (fx * fy) ** 0.5)
