"""Decoder of compressed depth images: those of compressed_depth_image_transport, and PNG files. Needs no ROS.

``compressedDepth`` puts 12 bytes in front of the file: int32 format and two float32 parameters, all little-endian. A
file of a 16UC1 image holds its values. That of a 32FC1 image holds ``A / metres + B``, rounded down, with the
parameters A and B, and 0 where there is no depth. The file is a PNG, or width and height (uint32 each) and an RVL
stream.
"""
from __future__ import annotations

import functools
import math
import struct
from typing import NamedTuple

import cv2
import numpy as np

from sam2_core.image_headers import PNG_SIGNATURE
from sam2_ros.messages.compressed_images import DEPTH_TRANSPORT, MAX_PIXELS, read_head
from sam2_ros.messages.encodings import ImageError
from sam2_ros.messages.rvl import decode_rvl

_HEADER, _RVL_SIZE = struct.Struct('<iff'), struct.Struct('<II')
_ENCODINGS = {'16UC1': '16UC1', 'mono16': '16UC1', '32FC1': '32FC1'}


class DepthFile(NamedTuple):
    """A compressed depth image whose header has been read and checked."""

    encoding: str  # of the decoded image: 16UC1 or 32FC1
    height: int
    width: int
    codec: str  # png or rvl
    data: memoryview  # PNG file or RVL stream
    a: float  # parameters of 32FC1
    b: float


def read_depth_file(data: bytes, declared: str) -> DepthFile:
    """Return a compressed depth image without decoding its pixels.

    Args:
        data: Content of the message.
        declared: ``format`` of the message: "16UC1; compressedDepth png", "32FC1; compressedDepth rvl", or
            "16UC1; png compressed".

    Raises:
        ImageError: The format is another one, or the header is wrong.
    """
    try:
        return _read(data, declared)
    except ImageError as error:
        raise ImageError(f'depth with format {declared!r}: {error}') from None


def decode_depth_file(file: DepthFile) -> np.ndarray:
    """Return uint16 millimetres or float32 metres (H, W); metres without depth are NaN.

    Raises:
        ImageError: The data are cut off or damaged.
    """
    if file.codec == 'rvl':
        try:
            pixels = decode_rvl(file.data, file.height * file.width).reshape(file.height, file.width)
        except ImageError as error:
            raise ImageError(f'depth in RVL of {file.width} x {file.height} pixels: {error}') from None
    else:
        try:
            found = cv2.imdecode(np.frombuffer(file.data, np.uint8), cv2.IMREAD_UNCHANGED)
        except cv2.error as error:
            raise ImageError(f'depth in a PNG of {len(file.data)} bytes: {error.err}; send it whole') from None
        if found is None or found.dtype != np.uint16 or found.shape != (file.height, file.width):
            raise ImageError(f'depth in a PNG of {len(file.data)} bytes: broken; send it whole')
        pixels = found
    return pixels if file.encoding == '16UC1' else np.take(_metres(file.a, file.b), pixels)


def _read(data: bytes, declared: str) -> DepthFile:
    name, _, rest = (part.strip() for part in declared.partition(';'))
    if name not in _ENCODINGS:
        raise ImageError(f'encoding {name!r}: must be 16UC1 (millimetres) or 32FC1 (metres)')
    encoding = _ENCODINGS[name]
    if rest and DEPTH_TRANSPORT not in rest:
        if encoding != '16UC1':
            raise ImageError('32FC1 in a file without parameters: set the transport of the depth to compressedDepth')
        return _png(data, data, encoding, 0.0, 0.0)
    codec = rest.partition(DEPTH_TRANSPORT)[2].strip() or 'png'  # older publishers do not name it
    if codec not in ('png', 'rvl'):
        raise ImageError(f'codec {codec!r}: must be png or rvl')
    if data.startswith(PNG_SIGNATURE):
        raise ImageError('starts with a PNG: the 12 bytes of the header of compressedDepth are missing; add them, or '
                         'publish "16UC1; png compressed"')
    if len(data) < _HEADER.size:
        raise ImageError(f'{len(data)} bytes: cut off; send it whole')
    _, a, b = _HEADER.unpack_from(data)
    if encoding == '32FC1' and not (math.isfinite(a) and math.isfinite(b) and a > 0):
        raise ImageError(f'parameters {a:g} and {b:g}: the first must be positive and both finite; let '
                         f'compressed_depth_image_transport write them')
    body = data[_HEADER.size:]
    if codec == 'png':
        return _png(data, body, encoding, a, b)
    if len(body) < _RVL_SIZE.size:
        raise ImageError(f'{len(data)} bytes: cut off; send it whole')
    width, height = _RVL_SIZE.unpack_from(body)
    if not 0 < height * width <= MAX_PIXELS:
        raise ImageError(f'RVL of {width} x {height} pixels: must have 1 to {MAX_PIXELS:,} pixels; is it damaged?')
    return DepthFile(encoding, height, width, codec, memoryview(body)[_RVL_SIZE.size:], a, b)


def _png(data: bytes, body: bytes, encoding: str, a: float, b: float) -> DepthFile:
    head = read_head(body)
    if head.kind != 'PNG' or head.bits != 16 or head.channels != 1:
        raise ImageError(f'{head.kind} with {head.bits} bits and {head.channels} channels: must be a grey PNG with 16 '
                         f'bits; JPEG and 8 bits lose depth')
    return DepthFile(encoding, head.height, head.width, 'png', memoryview(body)[:head.end], a, b)


@functools.lru_cache(maxsize=8)
def _metres(a: float, b: float) -> np.ndarray:
    """Return the metres of each of the 65536 values, float32; NaN for 0 and where the formula has no answer."""
    values = np.arange(65536, dtype=np.float64)
    with np.errstate(divide='ignore'):
        metres = a / (values - b)
    metres[(values == 0) | ~np.isfinite(metres) | (metres <= 0)] = np.nan
    with np.errstate(over='ignore'):
        return metres.astype(np.float32)
