"""Video files written for tests, also with a varying frame rate and with a rotation in their header."""
import struct
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

CONTAINERS = {b'moov', b'trak', b'mdia', b'minf', b'stbl'}


def write_video(path: Path, images: Sequence[np.ndarray], rate: float = 10, codec: str = 'mp4v') -> Path:
    height, width = images[0].shape[:2]
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*codec), rate, (width, height))
    assert writer.isOpened()
    for image in images:
        writer.write(cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    writer.release()
    return path


def decoded(path: Path) -> list[np.ndarray]:
    """Return all frames of a video, decoded in one go, RGB."""
    video, images = cv2.VideoCapture(str(path)), []
    while True:
        ok, image = video.read()
        if not ok:
            return images
        images.append(cv2.cvtColor(image, cv2.COLOR_BGR2RGB))


def vary_rate(path: Path, durations: Sequence[int]) -> None:
    """Give each frame of an MP4 a duration of its own, a multiple of that of all frames before (ISO 14496-12, stts)."""
    def change(kind: bytes, body: bytes) -> bytes:
        if kind != b'stts':
            return body
        count, = struct.unpack_from('>I', body, 4)
        assert count == 1
        frames, step = struct.unpack_from('>II', body, 8)
        assert frames == len(durations)
        return body[:4] + struct.pack('>I', frames) + b''.join(struct.pack('>II', 1, step * n) for n in durations)
    _rewrite(path, change)


def rotate(path: Path) -> None:
    """Have players rotate an MP4 by 90 degrees clockwise (ISO 14496-12, the matrix of tkhd)."""
    def change(kind: bytes, body: bytes) -> bytes:
        if kind != b'tkhd':
            return body
        assert body[0] == 0  # version
        return body[:40] + struct.pack('>9i', 0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30) + body[76:]
    _rewrite(path, change)


def _rewrite(path: Path, change) -> None:
    data = path.read_bytes()
    assert data.index(b'mdat') < data.index(b'moov'), 'places in mdat would move'
    path.write_bytes(_boxes(data, change))


def _boxes(data: bytes, change) -> bytes:
    parts, at = [], 0
    while at < len(data):
        size, kind = struct.unpack_from('>I4s', data, at)
        head = 8
        if size == 1:
            size, head = struct.unpack_from('>Q', data, at + 8)[0], 16
        body = data[at + head:at + size]
        if kind == b'edts':  # which limits the duration to that before the change
            parts.append(struct.pack('>I4s', len(body) + 8, b'free') + body)
        elif kind in CONTAINERS:
            body = _boxes(body, change)
            parts.append(struct.pack('>I4s', len(body) + 8, kind) + body)
        elif (changed := change(kind, body)) != body:
            parts.append(struct.pack('>I4s', len(changed) + 8, kind) + changed)
        else:
            parts.append(data[at:at + size])
        at += size
    return b''.join(parts)
