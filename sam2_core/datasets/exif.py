"""Orientation in which an image file is to be shown (EXIF 2.32, tag 0x0112), read without decoding pixels."""
from __future__ import annotations

import struct

import numpy as np

UPRIGHT = 1
_ORIENTATION, _SHORT, _LONG = 0x0112, 3, 4
_PREFIX = b'Exif\0\0'


def orientation(data: bytes) -> int:
    """Return the orientation 1..8 of a JPEG, PNG, WebP or TIFF file; 1 if it has none, or an invalid one."""
    blob = _tiff_in(data)
    return UPRIGHT if blob is None else _read(blob)


def upright(image: np.ndarray, value: int) -> np.ndarray:
    """Rotate and mirror a stored image (H, W, ...) as viewers show it for the orientation ``value``."""
    if value >= 5:  # rows and columns are exchanged
        image = np.swapaxes(image, 0, 1)
    if value in (3, 4, 7, 8):
        image = image[::-1]
    if value in (2, 3, 6, 7):
        image = image[:, ::-1]
    return np.ascontiguousarray(image)


def _tiff_in(data: bytes) -> bytes | None:
    if data.startswith(b'\xff\xd8'):
        return _in_jpeg(data)
    if data.startswith(b'\x89PNG\r\n\x1a\n'):
        return _in_chunks(data, 8, '>I4s', b'eXIf', 4)
    if data.startswith(b'RIFF') and data[8:12] == b'WEBP':
        return _in_chunks(data, 12, '<4sI', b'EXIF', 0)
    return data if data[:4] in (b'II*\0', b'MM\0*') else None


def _in_jpeg(data: bytes) -> bytes | None:
    at = 2
    while at + 4 <= len(data) and data[at] == 0xff:
        marker = data[at + 1]
        if marker == 0xff:  # padding
            at += 1
            continue
        if marker in (0xd9, 0xda):  # the pixels begin, or the file ends
            return None
        size = int.from_bytes(data[at + 2:at + 4], 'big')
        if marker == 0xe1 and data.startswith(_PREFIX, at + 4):
            return data[at + 4 + len(_PREFIX):at + 2 + size]
        at += 2 + max(2, size)
    return None


def _in_chunks(data: bytes, at: int, head: str, wanted: bytes, check: int) -> bytes | None:
    """Return the body of a chunk of PNG or RIFF, or None. check: number of bytes behind each body."""
    while at + 8 <= len(data):
        one, other = struct.unpack_from(head, data, at)
        size, kind = (one, other) if isinstance(one, int) else (other, one)
        if kind == wanted:
            return data[at + 8:at + 8 + size].removeprefix(_PREFIX)
        at += 8 + size + check + (size & 1 if not check else 0)  # RIFF pads bodies to an even length
    return None


def _read(blob: bytes) -> int:
    """Return the orientation in the first directory of a TIFF structure."""
    order = {b'II*\0': '<', b'MM\0*': '>'}.get(blob[:4])
    if order is None or len(blob) < 8:
        return UPRIGHT
    start, = struct.unpack_from(f'{order}I', blob, 4)
    if start + 2 > len(blob):
        return UPRIGHT
    count, = struct.unpack_from(f'{order}H', blob, start)
    for at in range(start + 2, min(start + 2 + 12 * count, len(blob) - 11), 12):
        tag, kind, length = struct.unpack_from(f'{order}HHI', blob, at)
        if tag == _ORIENTATION:
            value, = struct.unpack_from(order + ('I' if kind == _LONG else 'H'), blob, at + 8)
            return value if kind in (_SHORT, _LONG) and length == 1 and 1 <= value <= 8 else UPRIGHT
    return UPRIGHT
