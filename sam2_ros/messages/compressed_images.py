"""JPEG and PNG data of CompressedImage messages: checked against format and file header, then decoded. Needs no ROS."""
from __future__ import annotations

import re
import struct
import zlib
from typing import NamedTuple

import cv2
import numpy as np

from sam2_ros.messages.encodings import CHANNELS, ImageError, check_encoding, is_deep

MAX_PIXELS = 160_000_000  # the largest cameras have 150 million; a small file can claim 4 billion
_PNG = b'\x89PNG\r\n\x1a\n'
_JPEG = b'\xff\xd8'
_OTHERS = {b'RIFF': 'WebP', b'II*\0': 'TIFF', b'MM\0*': 'TIFF', b'GIF8': 'GIF', b'BM': 'BMP',
           b'\0\0\0\1': 'H.264 or H.265', b'\0\0\1': 'H.264 or H.265', b'\0\0\0\x0c': 'JPEG 2000 or JPEG XL'}
# a JPEG marker that is neither a stuffed byte nor a restart inside a scan
_MARKER = re.compile(rb'\xff[\x01-\xcf\xd8-\xfe]')
_ALONE = {0x01, *range(0xd0, 0xd8)}  # markers without a length
_SIZE = {*range(0xc0, 0xd0)} - {0xc4, 0xc8, 0xcc}  # markers of the frame header
_SCAN, _END, _START, _APP1 = 0xda, 0xd9, 0xd8, 0xe1
_PNG_CHANNELS = {0: 1, 2: 3, 3: 3, 4: 1, 6: 4}  # by colour type; alpha of grey is dropped
_DEEP_NAMES = {1: 'mono16', 3: 'rgb16', 4: 'rgba16'}  # of a file with more than 8 bits, by channels
# the start of a format that names pixels, as image_transport writes it: "rgb8; jpeg compressed bgr8"
_PIXELS = re.compile(r'(mono|rgba?|bgra?)\d|bayer_|\d+[USF]C\d?|yuv|yuyv|uyvy|nv\d|i420', re.IGNORECASE)
_STORED = re.compile(r'compressed\s+(\w+)')
_BY_LOWER_NAME = {name.lower(): name for name in CHANNELS}


class Head(NamedTuple):
    """Header of an image file."""

    kind: str  # JPEG or PNG
    height: int
    width: int
    bits: int  # per channel
    channels: int  # grey 1, colour 3, with alpha or CMYK 4
    end: int  # where the file ends; padding may follow
    exif: tuple[slice, ...] = ()  # segments of a JPEG with EXIF data


def decompress(data: bytes, declared: str) -> np.ndarray:
    """Return the pixels of JPEG or PNG data as uint8 RGB (H, W, 3), in the orientation in which they are stored.

    declared: the message's format. The EXIF orientation is ignored, since the calibration and the depth of a camera
    belong to its pixels as they are stored; alpha is dropped, as that of raw images. Data behind the end of the file
    are ignored: cameras pad. Raises ImageError for encodings that are refused in raw images, for files of more than
    8 bits or MAX_PIXELS, and for data that are cut off or damaged.
    """
    try:
        if 'compressedDepth' in declared:
            raise ImageError("a depth image: set the image topic to the camera's colour image")
        head = read_head(data)
        _check(head, declared)
        return _decode(data, head, _stores_rgb(head, declared))
    except ImageError as error:
        raise ImageError(f'format {declared!r}: {error}') from None


def plain_jpeg(data: bytes, declared: str) -> bytes | None:
    """Return a JPEG whose every reader sees the pixels of ``decompress``: without EXIF data and padding.

    None where there is none: for a PNG, and for a JPEG that stores its channels in the order of rgb8.
    """
    head = read_head(data)
    if head.kind != 'JPEG' or _stores_rgb(head, declared):
        return None
    parts, at = [], 0
    for segment in head.exif:
        parts.append(data[at:segment.start])
        at = segment.stop
    return b''.join([*parts, data[at:head.end]])


def read_head(data: bytes) -> Head:
    """Return the header of JPEG or PNG data that are whole. Raises ImageError without decoding any pixel."""
    if data.startswith(_JPEG):
        head = _jpeg_head(data)
    elif data.startswith(_PNG):
        head = _png_head(data)
    elif not data:
        raise ImageError('no data: not supported; publish jpeg or png')
    else:
        name = next((f' ({name})' for magic, name in _OTHERS.items() if data.startswith(magic)), '')
        raise ImageError(f'data starting {data[:4].hex()}{name}: not supported; publish jpeg or png')
    if not head.height or not head.width:
        raise ImageError(f'{head.kind} of {head.width} x {head.height} pixels: both must be at least 1')
    if head.height * head.width > MAX_PIXELS:
        raise ImageError(f'{head.kind} of {head.width} x {head.height} pixels: must have at most {MAX_PIXELS:,} '
                         f'pixels; publish smaller images, or check the camera, if it has fewer')
    behind = data[head.end:head.end + 4096].lstrip(b'\0')
    if behind.startswith((_JPEG + b'\xff', _PNG)):
        raise ImageError('several images in one message: publish a message for each')
    return head


def _check(head: Head, declared: str) -> None:
    """Refuse the encodings that raw images are refused for, whether the format or the file has them."""
    name = declared.partition(';')[0].strip()
    stored = _STORED.search(declared)
    if _PIXELS.match(name) and name.lower() not in _BY_LOWER_NAME:
        # bayer and yuv images can be converted before they are compressed; of deep ones that loses what is dark
        converted = stored is not None and stored[1] in ('bgr8', 'rgb8') and head.channels == 3
        if not converted or is_deep(name):
            check_encoding(name)
    if head.kind == 'JPEG' and head.channels not in (1, 3):
        cmyk = ' (CMYK)' if head.channels == 4 else ''
        raise ImageError(f'JPEG of {head.channels} channels{cmyk}: not supported; publish a JPEG in grey or colour')
    if head.bits > 8:
        try:
            check_encoding(_DEEP_NAMES[head.channels])
        except ImageError as error:
            raise ImageError(f'{head.kind} of {head.bits} bits per channel, {error}') from None


def _stores_rgb(head: Head, declared: str) -> bool:
    """Return whether red and blue are exchanged in the file: "compressed rgb8" says so (CompressedImage.msg)."""
    stored = _STORED.search(declared)
    return head.channels >= 3 and stored is not None and stored[1].startswith('rgb')


def _decode(data: bytes, head: Head, swapped: bool) -> np.ndarray:
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8, head.end), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    except cv2.error as error:
        raise ImageError(f'{head.kind} of {len(data)} bytes: {error.err}; send it whole') from None
    if image is None or image.shape != (head.height, head.width, 3):
        raise ImageError(f'{head.kind} of {len(data)} bytes: broken; send it whole')
    return image if swapped else cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def _cut_off(kind: str, data: bytes) -> ImageError:
    return ImageError(f'{kind} of {len(data)} bytes: cut off; send it whole (see docs/node.md on transport)')


def _broken(kind: str, data: bytes) -> ImageError:
    return ImageError(f'{kind} of {len(data)} bytes: broken; send it whole')


def _jpeg_head(data: bytes) -> Head:
    """Walk through the segments of a JPEG (ITU-T T.81, annex B) to its end."""
    at, size, scanned, exif = 2, None, False, []
    while found := _MARKER.search(data, at):
        marker, at = data[found.start() + 1], found.end()
        if marker in _ALONE:
            continue
        if marker == _END:
            if not scanned:
                raise _broken('JPEG', data)
            bits, height, width, channels = size
            return Head('JPEG', height, width, bits, channels, at, tuple(exif))
        if marker == _START or len(data) < at + 2:
            break
        length = int.from_bytes(data[at:at + 2], 'big')
        if marker in _SIZE:
            if length < 8 or len(data) < at + 8 or size is not None:
                raise _broken('JPEG', data)
            size = struct.unpack_from('>BHHB', data, at + 2)
        elif marker == _SCAN:
            if size is None:
                raise _broken('JPEG', data)
            scanned = True
        elif marker == _APP1 and data.startswith(b'Exif\0', at + 2):
            exif.append(slice(found.start(), at + length))
        at += length
    # the decoder fills the missing part of a cut JPEG with grey and says nothing
    raise _cut_off('JPEG', data)


def _png_head(data: bytes) -> Head:
    """Walk through the chunks of a PNG (PNG specification, section 5) to its end and check them."""
    at, head = len(_PNG), None
    while at + 12 <= len(data):
        length, kind = int.from_bytes(data[at:at + 4], 'big'), data[at + 4:at + 8]
        stop = at + 12 + length
        if not kind.isalpha():
            raise _broken('PNG', data)
        if stop > len(data):
            break
        if zlib.crc32(memoryview(data)[at + 4:stop - 4]) != int.from_bytes(data[stop - 4:stop], 'big'):
            raise _broken('PNG', data)
        if kind == b'IHDR' and length == 13 and head is None:
            width, height, bits, colour = struct.unpack_from('>IIBB', data, at + 8)
            if colour not in _PNG_CHANNELS or bits not in (1, 2, 4, 8, 16):
                raise _broken('PNG', data)
            head = Head('PNG', height, width, bits, _PNG_CHANNELS[colour], 0)
        elif head is None:
            raise _broken('PNG', data)
        elif kind == b'acTL':
            raise ImageError('several images in one message (an animated PNG): publish a message for each')
        elif kind == b'IEND':
            return head._replace(end=stop)
        at = stop
    raise _cut_off('PNG', data)
