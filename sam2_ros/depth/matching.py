"""Depth that arrives beside the images: kept until it is asked for, paired by stamp, decoded, and checked."""
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

from sam2_ros.depth.calibration import Calibration, DepthError, calibrate, doubt, info_of_image, same_frame
from sam2_ros.depth.calibration import to_camera as to_camera
from sam2_ros.depth.surface import Camera, DepthFrame
from sam2_ros.messages.conversions import ImageError, pixel_bytes, to_nanoseconds
from sam2_ros.messages.stamps import TIME_JUMP, StampWatch
from sam2_ros.runtime.parameters import Parameters

KEPT_IMAGES = 30
KEPT_TIME = 1_000_000_000  # ns
ARRIVING = 1.0             # seconds without depth after which it does not arrive any more
KNOWN_INFOS = 4            # cameras, by size and frame, whose newest calibration is kept
MILLIMETRES = ('16UC1', 'mono16')
METRES = ('32FC1',)
NO_STAMP = 'the image has no stamp: no depth can be found for it; have the camera driver stamp its images'
GLANCE = 32  # rows or columns that are looked at first
MILLIMETRES_LIKELY = 100.0  # whole numbers of so much in the median are no metres


@dataclass(frozen=True)
class DepthReport:
    """What became of the images that depth was asked for."""

    used: int = 0  # images that had depth
    absent: int = 0  # no depth arrived at all
    unmatched: int = 0  # depth arrived, but none with the stamp of the image
    refused: int = 0  # it could not be used
    reason: str = ''  # why the last image had none; empty when it had
    doubt: str = ''  # why the depth of the last image may be wrong


@dataclass(eq=False)
class _Arrived:
    stamp: int  # ns
    message: Image
    info: CameraInfo | None = None  # the one of its stamp


class DepthMailbox:
    """The recent depth images and camera_infos of one camera, as they came, and the depth of an image.

    Any thread may put; the worker asks. Of depth about a second is kept, and what belongs to the image in work; what is
    dropped is handed to ``on_drop``, with its stamp in ns and its size in bytes.
    """

    def __init__(self, changed: threading.Condition, topic: str = 'depth', image_topic: str = '') -> None:
        """``changed`` guards the content and is notified of each depth image; the topics are named in reasons."""
        self._changed = changed
        self._topic = topic
        self._image_topic = image_topic
        self._stamps = StampWatch()
        self._recent: deque[_Arrived] = deque()
        self._infos: dict[tuple, CameraInfo] = {}  # by size and frame, the newest last
        self._expected: int | None = None  # ns: stamp of the image in work
        self._kept: _Arrived | None = None  # the nearest to it of those that were dropped since
        self._last_arrival: float | None = None  # time.monotonic()
        self._report = DepthReport()
        self._camera: tuple[Calibration, Camera] | None = None  # as last used
        self.on_drop: Callable[[int, int, object], None] = lambda stamp, size, depth: None

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
                dropped = self._recent.popleft()
                self._keep_if_expected(dropped)
                self.on_drop(dropped.stamp, len(dropped.message.data), dropped)
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
        return next(iter(self.infos), None)

    @property
    def infos(self) -> list[CameraInfo]:
        """The newest camera_info of each size and frame, the newest of all first."""
        with self._changed:
            return [*reversed(self._infos.values())]

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
        frame, doubtful = None, ''
        if not reason:
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
        """Return the depth of a past image, or None. ``older``: depth that ``on_drop`` was called with."""
        stamp = to_nanoseconds(header.stamp)
        with self._changed:
            arrived = [*self._recent, *([self._kept] if self._kept else []), *([older] if older else [])]
        nearest = min(arrived, key=lambda depth: abs(depth.stamp - stamp), default=None)
        if not stamp or nearest is None or not is_of_one_time(stamp, nearest.stamp, parameters.depth_tolerance):
            return None
        try:
            return self._to_frame(nearest, header, size, parameters)[0]
        except (DepthError, ImageError):
            return None

    def _wait_for(self, stamp: int, parameters: Parameters) -> tuple[_Arrived | None, str]:
        """The depth nearest to a stamp, and why it cannot be the image's; empty when it can."""
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
        if silent is None:
            return None, f'no depth on {self._topic}: remap it to the depth that is aligned to the image'
        if silent > ARRIVING:
            return None, f'no depth on {self._topic} for {silent:.1f} s: is the camera running?'
        apart = (nearest.stamp - stamp) / 1e9
        return nearest, (f'{self._topic}: the nearest depth is {abs(apart):.3f} s {"newer" if apart > 0 else "older"} '
                         f'than the image: must be within {parameters.depth_tolerance:g} s; raise depth_tolerance, '
                         f'depth_wait where depth comes late, or let the camera synchronise the two')

    def _to_frame(self, depth: _Arrived, header: Header, size: tuple[int, int],
                  parameters: Parameters) -> tuple[DepthFrame, str]:
        """Return the depth of an image, and why it may be wrong. Raises DepthError and ImageError."""
        message = depth.message
        check_registered(message, header.frame_id, size)
        info = info_of_image(([depth.info] if depth.info else []) + self.infos,
                             header.frame_id or message.header.frame_id, size)
        calibration = calibrate(info, parameters.rectified)
        metres, raw = usable_metres(message, parameters)
        if self._camera is None or self._camera[0] != calibration:
            self._camera = calibration, calibration.rays()
        return DepthFrame(metres, self._camera[1], raw), doubt(info, parameters.rectified, self._image_topic)

    def _keep_if_expected(self, dropped: _Arrived) -> None:
        if self._expected is None:
            return
        if self._kept is None or abs(dropped.stamp - self._expected) <= abs(self._kept.stamp - self._expected):
            self._kept = dropped


# --- messages to arrays

def is_of_one_time(image: int, depth: int, tolerance: float) -> bool:
    """Return whether an image and a depth with these stamps, ns, belong together; tolerance: seconds."""
    return abs(image - depth) <= tolerance * 1e9


def check_registered(depth: Image, frame_id: str, size: tuple[int, int]) -> None:
    """Raise DepthError unless depth fits an image of this frame and size (height, width), pixel for pixel."""
    if (depth.height, depth.width) != size:
        raise DepthError(f'depth of {depth.width} x {depth.height} pixels: must be {size[1]} x {size[0]}, as the '
                         f'image; use the depth that is aligned to it (RealSense: align_depth.enable:=true)')
    if not same_frame(depth.header.frame_id, frame_id):
        raise DepthError(f"depth in frame '{depth.header.frame_id}': must be '{frame_id}', as the image; use the depth "
                         f'that is aligned to it (RealSense: align_depth.enable:=true)')


def usable_metres(message: Image, parameters: Parameters) -> tuple[np.ndarray, np.ndarray]:
    """Return ``to_metres`` of depth within the parameters' range. Raises DepthError where no pixel says anything, or in
    another unit, and ImageError."""
    metres, raw = to_metres(message, parameters.depth_min, parameters.depth_max)
    glance = _glance(metres)
    if not len(glance) and not np.isfinite(metres).any():
        raise DepthError(f'no pixel between {parameters.depth_min:g} and {parameters.depth_max:g} m: '
                         f'{_why_nothing(raw, message, parameters)}')
    if message.encoding in METRES and len(glance):
        median = float(np.median(glance))
        if median >= MILLIMETRES_LIKELY and (glance == np.round(glance)).all():
            raise DepthError(f'depth with encoding 32FC1 of whole numbers, {median:g} in the median: must be metres '
                             f'and seems to be millimetres; publish 16UC1, or divide by 1000')
    return metres, raw


def _glance(metres: np.ndarray) -> np.ndarray:
    """Return what is known in some rows and columns, (N,)."""
    step = max(1, min(metres.shape) // GLANCE)
    some = metres[::step, ::step]
    return some[np.isfinite(some)]


def _why_nothing(raw: np.ndarray, message: Image, parameters: Parameters) -> str:
    largest = float(np.max(raw, initial=0, where=np.isfinite(raw))) / (1000 if message.encoding in MILLIMETRES else 1)
    if largest <= 0:
        return 'all are 0 or not finite; is the lens covered, the scene too near or too far?'
    if largest > parameters.depth_max:
        return (f'the largest is {largest:g} m: are they in another unit? 16UC1 are millimetres, 32FC1 metres; else '
                f'raise depth_max')
    return f'the largest is {largest:g} m; is the scene too near? Else lower depth_min'


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
