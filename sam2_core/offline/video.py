"""Frames of a video file, exact in number and order, forwards and backwards.

The number of frames in the header of a file is an estimate, and seeking by number is not exact where the frame rate
varies. So the video is decoded once to count its frames, with the time and a checksum of each. Reading backwards seeks
to a time, identifies the frame that it meets by time and checksum, and decodes on from there.
"""
from __future__ import annotations

import math
import zlib
from bisect import bisect_left
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from sam2_core.offline.frames import BLOCK_BYTES, FrameError, Notice, Progress, UnreadableFrame, blocks, numbered

_SPARSE = 16  # every 16th line of a frame enters its checksum
_EARLIER = (0.0, 1000.0, 10_000.0)  # milliseconds to seek before a frame, in turn, until the seek lands before it
_CONVERT = 'convert it, for example with ffmpeg -i VIDEO -c:v libx264 converted.mp4'


class VideoIndex(NamedTuple):
    """Frames of a video, as decoded from start to end."""

    times: np.ndarray  # float64 (N,), milliseconds, as OpenCV reports them
    sums: np.ndarray  # uint32 (N,), checksums

    @property
    def seekable(self) -> bool:
        """Return whether the time identifies a frame."""
        return bool(np.all(np.diff(self.times) > 0))

    @property
    def rate(self) -> float:
        """Return the mean number of frames per second; 30 if the times tell none."""
        seconds = (self.times[-1] - self.times[0]) / 1000
        rate = (len(self.times) - 1) / seconds if seconds > 0 else math.nan
        return rate if 0.1 <= rate <= 1000 else 30.0


class VideoFrames:
    """Frames of a video file, rotated as players show them."""

    def __init__(self, path: Path, index: VideoIndex | None = None, notice: Notice = lambda text: None,
                 progress: Progress = lambda done, total: None) -> None:
        """Open a video and count its frames.

        Args:
            path: The file.
            index: Result of an earlier count of the same file; None means to count now.
            notice: Function for lines about what was found.
            progress: Function that is called while frames are counted.

        Raises:
            FrameError: The file cannot be decoded.
        """
        self.path, self.name, self._notice = path, path.stem, notice
        self.index = self._count(progress) if index is None else index
        self._seek = self.index.seekable

    @property
    def rate(self) -> float:
        """Return the mean number of frames per second."""
        return self.index.rate

    def __len__(self) -> int:
        return len(self.index.times)

    def frame_name(self, frame: int) -> str:
        """Return the number of a frame."""
        return numbered(frame, len(self))

    def read(self, frames: range) -> Iterator[tuple[int, np.ndarray | UnreadableFrame]]:
        """Yield these frames in this order; backwards, a block of at most BLOCK_BYTES is decoded at a time."""
        if frames.step > 0:
            yield from self._decode(frames)
            return
        size = 0
        for frame, image in self._decode(range(frames[0], frames[0] + 1)) if frames else ():
            size = image.nbytes if isinstance(image, np.ndarray) else 0
            yield frame, image
        for block in blocks(frames[1:], BLOCK_BYTES // max(1, size)):
            yield from reversed(list(self._decode(block)))

    def _count(self, progress: Progress) -> VideoIndex:
        video = self._open()
        claimed = round(video.get(cv2.CAP_PROP_FRAME_COUNT))
        times, sums = [], []
        try:
            while video.grab():
                times.append(video.get(cv2.CAP_PROP_POS_MSEC))
                ok, image = video.retrieve()
                sums.append(_checksum(image) if ok else 0)
                progress(len(times), max(claimed, len(times)))
        finally:
            video.release()
        if not times:
            raise FrameError(f'{self.path}: not a single frame can be decoded; {_CONVERT}')
        if claimed > len(times):
            self._notice(f'{self.path.name}: {len(times)} frames can be decoded, its header says {claimed}; if the '
                         f'video is incomplete, copy it again')
        return VideoIndex(np.array(times, np.float64), np.array(sums, np.uint32))

    def _open(self) -> cv2.VideoCapture:
        video = cv2.VideoCapture(str(self.path))
        if not video.isOpened():
            raise FrameError(f'{self.path}: not a video that OpenCV can decode; {_CONVERT}')
        return video

    def _decode(self, frames: range) -> Iterator[tuple[int, np.ndarray | UnreadableFrame]]:
        """Yield frames of increasing numbers."""
        if not frames:
            return
        video = self._at(frames[0])
        try:
            for frame in frames:
                if frame > frames[0] and not video.grab():
                    yield frame, UnreadableFrame(frame, f'{self.path.name} was decoded up to {len(self)} frames before '
                                                        f'and ends here now; has the file changed?')
                    continue
                ok, bgr = video.retrieve()
                if not ok or _checksum(bgr) != self.index.sums[frame]:
                    reason = 'cannot be decoded' if not ok else 'is decoded differently from before'
                    yield frame, UnreadableFrame(frame, f'{self.path.name}: {reason}; {_CONVERT}')
                    continue
                yield frame, cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB)
        finally:
            video.release()

    def _at(self, frame: int) -> cv2.VideoCapture:
        """Return the open video with this frame grabbed."""
        video = self._open()
        if self._seek and frame > 0:
            for earlier in _EARLIER:
                if self._seek_to(video, frame, earlier):
                    return video
            self._seek = False
            self._notice(f'{self.path.name}: seeking in it is not exact; it is decoded from its start instead, which '
                         f'takes longer backwards')
            video.release()
            video = self._open()
        for at in range(frame + 1):
            if not video.grab():
                raise FrameError(f'{self.path}: ends after {at} frames, {len(self)} were counted; has the file '
                                 f'changed?')
        return video

    def _seek_to(self, video: cv2.VideoCapture, frame: int, earlier: float) -> bool:
        """Grab a frame after a seek to ``earlier`` milliseconds before it; return False if that cannot be proved."""
        times = self.index.times
        if not video.set(cv2.CAP_PROP_POS_MSEC, max(times[0], times[frame] - earlier)) or not video.grab():
            return False
        time = video.get(cv2.CAP_PROP_POS_MSEC)
        at = bisect_left(times, time)
        if at > frame or times[at] != time:
            return False
        ok, image = video.retrieve()
        if not ok or _checksum(image) != self.index.sums[at]:
            return False
        for _ in range(frame - at):
            if not video.grab():
                return False
        ok, image = video.retrieve()
        return bool(ok and _checksum(image) == self.index.sums[frame])


def _checksum(image: np.ndarray) -> int:
    return zlib.crc32(np.ascontiguousarray(image[::_SPARSE]).data)
