"""Depth of one camera: stored as it arrives, matched to an image by stamp, then checked and decoded."""
from __future__ import annotations

import functools
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from sensor_msgs.msg import CameraInfo, Image
from std_msgs.msg import Header

from sam2_ros.depth.calibration import Calibration, DepthError, calibrate, doubt, info_of_image
from sam2_ros.depth.depth_messages import DepthHead, DepthMessage, depth_head
from sam2_ros.depth.lens import PixelRays
from sam2_ros.depth.surface import DepthFrame
from sam2_ros.messages.conversions import ImageError, pixel_bytes, to_nanoseconds
from sam2_ros.messages.frame_ids import same_frame
from sam2_ros.messages.stamps import StampWatch, jumped_back
from sam2_ros.runtime.parameters import Parameters

KEPT_IMAGES = 30           # maximum number of depth images that are stored
KEPT_TIME = 1_000_000_000  # ns of depth that are stored
ARRIVING = 1.0             # seconds without depth after which it counts as absent
KNOWN_INFOS = 4            # number of calibrations that are stored, the newest of each size and frame
MILLIMETRES = ('16UC1', 'mono16')
METRES = ('32FC1',)
NO_STAMP = 'the image has no stamp: no depth can be found for it; have the camera driver stamp its images'
GLANCE = 32  # rows or columns that are checked first
MILLIMETRES_LIKELY = 100.0  # whole numbers with at least this median are millimetres, not metres


@dataclass(frozen=True)
class DepthReport:
    """Counts of images for which depth was requested, by outcome, and the reasons for the last one."""

    used: int = 0  # had depth
    absent: int = 0  # no depth arrived at all
    unmatched: int = 0  # depth arrived, but none with the stamp of the image
    refused: int = 0  # the depth could not be used
    reason: str = ''  # why the last image had no depth; empty if it had
    doubt: str = ''  # why the depth of the last image may be wrong


@dataclass(eq=False)
class _Arrived:
    stamp: int  # ns
    message: DepthMessage
    info: CameraInfo | None = None  # the camera_info with the same stamp


class DepthMailbox:
    """Recent depth images and camera_infos of one camera, from which the depth of an image is computed.

    Any thread may put messages; only the worker requests depth. About a second of depth is stored, and the depth that
    belongs to the image in work. ``on_drop`` receives each depth image that is dropped, with its stamp in ns and its
    size in bytes.
    """

    def __init__(self, changed: threading.Condition, topic: str = 'depth', image_topic: str = '') -> None:
        """Create an empty mailbox.

        Args:
            changed: Guards the content and is notified of each depth image.
            topic: Topic of the depth, to be named in reasons.
            image_topic: Topic of the images, to be named in reasons.
        """
        self._changed = changed
        self._topic = topic
        self._image_topic = image_topic
        self._stamps = StampWatch()
        self._recent: deque[_Arrived] = deque()
        self._infos: dict[tuple, CameraInfo] = {}  # by size and frame, the newest last
        self._expected: int | None = None  # stamp of the image in work, ns
        self._kept: _Arrived | None = None  # among the depth images dropped since, the nearest to that stamp
        self._last_arrival: float | None = None  # time.monotonic()
        self._report = DepthReport()
        self._rays: tuple[Calibration, PixelRays] | None = None  # those of the last image with depth
        self.on_drop: Callable[[int, int, object], None] = lambda stamp, size, depth: None

    # --- any thread

    def put_depth(self, message: DepthMessage, arrived: float | None = None) -> None:
        """Store a depth image unless its stamp is an outlier.

        Args:
            message: The depth image, raw or compressed.
            arrived: Time of arrival in seconds of any clock. None: now.
        """
        stamp = to_nanoseconds(message.header.stamp)
        with self._changed:
            now = self._last_arrival = time.monotonic()
            if self._stamps.judge(stamp, now if arrived is None else arrived):
                return
            if self._recent and jumped_back(stamp, self._recent[-1].stamp):
                self._recent.clear()
            self._recent.append(_Arrived(stamp, message))
            while len(self._recent) > KEPT_IMAGES or stamp - self._recent[0].stamp > KEPT_TIME:
                dropped = self._recent.popleft()
                self._keep_if_expected(dropped)
                self.on_drop(dropped.stamp, len(dropped.message.data), dropped)
            self._changed.notify()

    def put_info(self, message: CameraInfo) -> None:
        """Store a calibration in place of the last one of its size and frame."""
        with self._changed:
            key = (message.width, message.height, message.header.frame_id)
            self._infos.pop(key, None)
            self._infos[key] = message
            if len(self._infos) > KNOWN_INFOS:
                del self._infos[next(iter(self._infos))]

    def put_pair(self, depth: DepthMessage, info: CameraInfo) -> None:
        """Record that a depth image and a camera_info, both stored already, have the same stamp."""
        with self._changed:
            for arrived in reversed(self._recent):
                if arrived.message is depth:
                    arrived.info = info
                    return

    @property
    def info(self) -> CameraInfo | None:
        """Return the newest camera_info, or None."""
        return next(iter(self.infos), None)

    @property
    def infos(self) -> list[CameraInfo]:
        """Return the newest camera_info of each size and frame, the newest of all first."""
        with self._changed:
            return [*reversed(self._infos.values())]

    @property
    def report(self) -> DepthReport:
        """Counts and reasons so far."""
        with self._changed:
            return self._report

    # --- the worker

    def expect(self, header: Header) -> None:
        """Keep the depth of this image until the next call, however long the model takes."""
        with self._changed:
            self._expected, self._kept = to_nanoseconds(header.stamp), None

    def depth_for(self, header: Header, size: tuple[int, int], parameters: Parameters) -> DepthFrame | None:
        """Return the depth of an image, or None; ``report`` gives the reason then.

        Wait up to ``depth_wait`` seconds for depth that may still arrive: while depth arrives at all and none is newer
        than the image.

        Args:
            header: Header of the image.
            size: (height, width) of the image in pixels.
            parameters: The current parameters.
        """
        with self._changed:
            report = self._report
            nearest, reason = self._wait_for(to_nanoseconds(header.stamp), parameters)
        frame, doubtful = None, ''
        if nearest is not None and not reason:
            try:
                frame, doubtful = self._to_frame(nearest, header, size, parameters)
                report = replace(report, used=report.used + 1)
            except (DepthError, ImageError) as error:
                reason, report = f'{self._topic}: {error}', replace(report, refused=report.refused + 1)
        elif nearest is None:
            report = replace(report, absent=report.absent + 1)
        else:
            report = replace(report, unmatched=report.unmatched + 1)
        with self._changed:
            self._report = replace(report, reason=reason, doubt=doubtful)
        return frame

    def past(self, header: Header, size: tuple[int, int], parameters: Parameters,
             older: object | None = None) -> DepthFrame | None:
        """Return the depth of an image of the history, or None.

        Args:
            header: Header of the image.
            size: (height, width) of the image in pixels.
            parameters: The current parameters.
            older: A depth image that ``on_drop`` received, to be considered too.
        """
        stamp = to_nanoseconds(header.stamp)
        with self._changed:
            arrived = [*self._recent, *([self._kept] if self._kept else []),
                       *([older] if isinstance(older, _Arrived) else [])]
        nearest = min(arrived, key=lambda depth: abs(depth.stamp - stamp), default=None)
        if not stamp or nearest is None or not is_of_one_time(stamp, nearest.stamp, parameters.depth_tolerance):
            return None
        try:
            return self._to_frame(nearest, header, size, parameters)[0]
        except (DepthError, ImageError):
            return None

    def _wait_for(self, stamp: int, parameters: Parameters) -> tuple[_Arrived | None, str]:
        """Return the depth nearest to a stamp, and why it is not the depth of the image, or '' if it is."""
        tolerance = parameters.depth_tolerance * 1e9
        deadline = time.monotonic() + parameters.depth_wait
        while True:
            arrived = [*self._recent, *([self._kept] if self._kept else [])]
            nearest = min(arrived, key=lambda depth: abs(depth.stamp - stamp), default=None)
            now = time.monotonic()
            silent = None if self._last_arrival is None else now - self._last_arrival
            if nearest is not None and is_of_one_time(stamp, nearest.stamp, parameters.depth_tolerance):
                return nearest, '' if stamp else NO_STAMP
            passed = any(depth.stamp > stamp + tolerance for depth in arrived)
            if passed or silent is None or silent > ARRIVING or now >= deadline:
                break
            self._changed.wait(deadline - now)
        if silent is None or nearest is None:
            return None, f'no depth on {self._topic}: remap it to the depth that is aligned to the image'
        if silent > ARRIVING:
            return None, f'no depth on {self._topic} for {silent:.1f} s: is the camera running?'
        apart = (nearest.stamp - stamp) / 1e9
        return nearest, (f'{self._topic}: the nearest depth is {abs(apart):.3f} s {"newer" if apart > 0 else "older"} '
                         f'than the image: must be within {parameters.depth_tolerance:g} s; raise depth_tolerance '
                         f'or depth_wait if depth arrives late, or let the camera synchronise the two')

    def _to_frame(self, depth: _Arrived, header: Header, size: tuple[int, int],
                  parameters: Parameters) -> tuple[DepthFrame, str]:
        """Return the depth of an image, and why it may be wrong. Raise DepthError or ImageError."""
        head = depth_head(depth.message)
        check_registered(head, header.frame_id, size)
        info = info_of_image(([depth.info] if depth.info else []) + self.infos,
                             header.frame_id or head.header.frame_id, size)
        calibration = calibrate(info, parameters.rectified)
        metres, raw = usable_metres(head.image(), parameters)
        if self._rays is None or self._rays[0] != calibration:
            self._rays = calibration, calibration.rays()
        return DepthFrame(metres, self._rays[1], raw), doubt(info, parameters.rectified, self._image_topic)

    def _keep_if_expected(self, dropped: _Arrived) -> None:
        if self._expected is None:
            return
        if self._kept is None or abs(dropped.stamp - self._expected) <= abs(self._kept.stamp - self._expected):
            self._kept = dropped


# --- messages to arrays

def is_of_one_time(image: int, depth: int, tolerance: float) -> bool:
    """Return True if an image and a depth image with these stamps (ns) belong together. ``tolerance``: seconds."""
    return abs(image - depth) <= tolerance * 1e9


def check_registered(depth: DepthHead, frame_id: str, size: tuple[int, int]) -> None:
    """Raise DepthError unless depth is registered to an image of this frame and size (height, width)."""
    if (depth.height, depth.width) != size:
        raise DepthError(f'depth of {depth.width} x {depth.height} pixels: must be {size[1]} x {size[0]}, as the '
                         f'image; use the depth that is aligned to it (RealSense: align_depth.enable:=true)')
    if not same_frame(depth.header.frame_id, frame_id):
        raise DepthError(f"depth in frame '{depth.header.frame_id}': must be '{frame_id}', as the image; use the depth "
                         f'that is aligned to it (RealSense: align_depth.enable:=true)')


def usable_metres(message: Image, parameters: Parameters) -> tuple[np.ndarray, np.ndarray]:
    """Return ``to_metres`` of a depth image, for the range that the parameters give.

    Raises:
        DepthError: No pixel is in range, or the unit is wrong.
        ImageError: The message is malformed or has another encoding.
    """
    metres, raw = to_metres(message, parameters.depth_min, parameters.depth_max)
    glance = _glance(metres)
    if not len(glance) and not np.isfinite(metres).any():
        raise DepthError(f'no pixel between {parameters.depth_min:g} and {parameters.depth_max:g} m: '
                         f'{_why_nothing(raw, message, parameters)}')
    if message.encoding in METRES and len(glance):
        median = float(np.median(glance))
        if median >= MILLIMETRES_LIKELY and (glance == np.round(glance)).all():
            raise DepthError(f'depth with encoding 32FC1 with whole numbers, median {median:g}: must be in metres '
                             f'and seems to be in millimetres; publish 16UC1, or divide by 1000')
    return metres, raw


def _glance(metres: np.ndarray) -> np.ndarray:
    """Return the valid depth in some rows and columns, (N,)."""
    step = max(1, min(metres.shape) // GLANCE)
    some = metres[::step, ::step]
    return some[np.isfinite(some)]


def _why_nothing(raw: np.ndarray, message: Image, parameters: Parameters) -> str:
    """Return the probable reason why no pixel is in range, with its cure."""
    largest = float(np.max(raw, initial=0, where=np.isfinite(raw))) / (1000 if message.encoding in MILLIMETRES else 1)
    if largest <= 0:
        return 'all are 0 or not finite; is the lens covered, or the scene too near or too far?'
    if largest > parameters.depth_max:
        return (f'the largest is {largest:g} m: is the unit wrong? 16UC1 is in millimetres, 32FC1 in metres; otherwise '
                f'raise depth_max')
    return f'the largest is {largest:g} m; is the scene too near? Otherwise lower depth_min'


def to_metres(message: Image, nearest: float, farthest: float) -> tuple[np.ndarray, np.ndarray]:
    """Return depth as float32 metres (H, W), and as received: uint16 millimetres or float32 metres (H, W).

    The metres are NaN where depth is 0, not finite or outside nearest..farthest.

    Raises:
        ImageError: The message is malformed or has another encoding.
    """
    order = '>' if message.is_bigendian else '<'
    if message.encoding in MILLIMETRES:
        raw = pixel_bytes(message, 2).view(f'{order}u2')[..., 0].astype(np.uint16, copy=False)
        return np.take(_metres_of_millimetres(nearest, farthest), raw), raw
    if message.encoding in METRES:
        raw = pixel_bytes(message, 4).view(f'{order}f4')[..., 0].astype(np.float32, copy=False)
        valid = (raw >= max(nearest, 1e-6)) & (raw <= farthest) & np.isfinite(raw)
        return np.where(valid, raw, np.float32(np.nan)), raw
    raise ImageError(f'depth with encoding {message.encoding!r}: must be 16UC1 (millimetres) or 32FC1 (metres)')


@functools.lru_cache(maxsize=2)
def _metres_of_millimetres(nearest: float, farthest: float) -> np.ndarray:
    """Return the metres of each of the 65536 values; a lookup table is the fastest way to convert an image."""
    metres = np.arange(65536) / 1000
    metres[(metres < nearest) | (metres > farthest) | (metres == 0)] = np.nan
    return metres.astype(np.float32)
