"""JPEG and PNG files as training needs them: whole or not at all, and indexed PNGs as their indices."""
from __future__ import annotations

import struct
import zlib
from pathlib import Path

import cv2
import numpy as np

from sam2_core.training.datasets.recordings import BrokenSample

_PNG = b'\x89PNG\r\n\x1a\n'
_JPEG, _JPEG_END = b'\xff\xd8', b'\xff\xd9'
_PALETTE, _GREY = 3, 0  # colour types
VOID = 255  # of a palette: pixels that belong to nothing, as in DAVIS


def read_image(path: Path) -> np.ndarray:
    """An image file as uint8 RGB (H, W, 3), in its stored orientation. BrokenSample when it is cut off or no image."""
    return decode_image(_bytes(path), path)


def decode_image(data: bytes, name: Path | str) -> np.ndarray:
    """The bytes of an image file as uint8 RGB (H, W, 3)."""
    if data.startswith(_PNG):
        _chunks(data, name)
    elif data.startswith(_JPEG) and _JPEG_END not in data[-64:]:
        raise BrokenSample(name, 'JPEG is cut off')  # OpenCV would fill the rest with grey
    flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
    image = cv2.imdecode(np.frombuffer(data, np.uint8), flags) if data else None
    if image is None:
        raise BrokenSample(name, 'not an image that can be decoded')
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def read_labels(path: Path) -> np.ndarray:
    """A label PNG as integer ids (H, W), 0 for none: the indices of a palette, or grey values of 1 to 16 bits.

    Index 255 of a palette is void, as in DAVIS; in a grey image 255 is an id like others (binary masks of 0 and 255).
    """
    data = _bytes(path)
    if not data.startswith(_PNG):
        raise BrokenSample(path, 'not a PNG; labels are indexed or grey PNGs')
    chunks = _chunks(data, path)
    colour_type = chunks[0][1][9]
    if colour_type == _GREY:
        labels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    elif colour_type == _PALETTE:
        labels = cv2.imdecode(np.frombuffer(_grey_palette(chunks), np.uint8), cv2.IMREAD_COLOR)
        labels = None if labels is None else np.where(labels[..., 0] == VOID, 0, labels[..., 0])
    else:
        raise BrokenSample(path, 'a colour PNG; labels are ids: save it as an indexed (palette) or grey PNG')
    if labels is None:
        raise BrokenSample(path, 'PNG cannot be decoded')
    return labels


def label_png(labels: np.ndarray) -> bytes:
    """Ids (H, W), 0 for none, as a PNG that ``read_labels`` and the tools of DAVIS read: the indices of a palette, or
    16-bit grey values where an id is beyond those (254, as 255 is void)."""
    if labels.max(initial=0) >= VOID:
        return cv2.imencode('.png', labels.astype(np.uint16))[1].tobytes()
    height, width = labels.shape
    lines = np.zeros((height, width + 1), np.uint8)  # each begins with its filter: 0, none
    lines[:, 1:] = labels
    chunks = [(b'IHDR', struct.pack('>IIBBBBB', width, height, 8, _PALETTE, 0, 0, 0)), (b'PLTE', _palette()),
              (b'IDAT', zlib.compress(lines.tobytes())), (b'IEND', b'')]
    return _PNG + b''.join(_chunk(kind, body) for kind, body in chunks)


def _palette() -> bytes:
    """The colours that PASCAL VOC and DAVIS give the indices: bits taken in threes, the low ones first."""
    colours = np.zeros((256, 3), np.uint8)
    index = np.arange(256)
    for bit in range(8):
        colours |= (((index[:, None] >> (3 * bit + np.arange(3))) & 1) << (7 - bit)).astype(np.uint8)
    return colours.tobytes()


def _chunk(kind: bytes, body: bytes) -> bytes:
    return len(body).to_bytes(4, 'big') + kind + body + zlib.crc32(kind + body).to_bytes(4, 'big')


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise BrokenSample(path, error.strerror or type(error).__name__) from error


def _chunks(data: bytes, name: Path | str) -> list[tuple[bytes, bytes]]:
    """The chunks of a PNG, checked (PNG specification, sections 5.3 and 5.4); the first is IHDR."""
    chunks, at = [], len(_PNG)
    while True:
        size, kind = int.from_bytes(data[at:at + 4], 'big'), data[at + 4:at + 8]
        body, check = data[at + 8:at + 8 + size], data[at + 8 + size:at + 12 + size]
        if len(check) < 4:
            raise BrokenSample(name, 'PNG is cut off')
        if zlib.crc32(kind + body) != int.from_bytes(check, 'big'):
            raise BrokenSample(name, f'PNG is damaged: chunk {kind.decode("ascii", "replace")} fails its checksum')
        chunks.append((kind, body))
        at += 12 + size
        if kind == b'IEND':
            return chunks


def _grey_palette(chunks: list[tuple[bytes, bytes]]) -> bytes:
    """The PNG with colour i of its palette replaced by the grey i: OpenCV decodes colours, not indices."""
    parts = [_PNG]
    for kind, body in chunks:
        if kind == b'PLTE':
            body = bytes(i for i in range(len(body) // 3) for _ in range(3))
        elif kind not in (b'IHDR', b'IDAT', b'IEND'):
            continue
        parts.append(_chunk(kind, body))
    return b''.join(parts)
