"""Decoder of the JPEG and PNG data in CompressedImage messages, with checks of format and header. Needs no ROS."""
from __future__ import annotations

import re

import cv2
import numpy as np

from sam2_core.image_headers import JPEG_SIGNATURE, PNG_SIGNATURE, DamagedImage, ImageHeader, read_image_header
from sam2_ros.messages.encodings import CHANNELS, ImageError, check_encoding, is_deep

MAX_PIXELS = 160_000_000  # the largest cameras have 150 million; the header of a small file can claim 4 billion
_OTHERS = {b'RIFF': 'WebP', b'II*\0': 'TIFF', b'MM\0*': 'TIFF', b'GIF8': 'GIF', b'BM': 'BMP',
           b'\0\0\0\1': 'H.264 or H.265', b'\0\0\1': 'H.264 or H.265', b'\0\0\0\x0c': 'JPEG 2000 or JPEG XL'}
_DEEP_NAMES = {1: 'mono16', 3: 'rgb16', 4: 'rgba16'}  # encoding of a file with more than 8 bits, by channels
# start of a format that names an encoding, as image_transport writes it: "rgb8; jpeg compressed bgr8"
_PIXELS = re.compile(r'(mono|rgba?|bgra?)\d|bayer_|\d+[USF]C\d?|yuv|yuyv|uyvy|nv\d|i420', re.IGNORECASE)
_STORED = re.compile(r'compressed\s+(\w+)')
_BY_LOWER_NAME = {name.lower(): name for name in CHANNELS}


def decompress(data: bytes, declared: str) -> np.ndarray:
    """Return the pixels of JPEG or PNG data as uint8 RGB (H, W, 3), in the orientation in which they are stored.

    The EXIF orientation is ignored, since calibration and depth of a camera belong to its pixels as they are stored.
    Alpha is dropped, as that of raw images. Data after the end of the file are ignored, since cameras pad.

    Args:
        data: Content of the file.
        declared: ``format`` of the message.

    Raises:
        ImageError: The encoding is refused in raw images too, the file has more than 8 bits per channel or more than
            MAX_PIXELS, or the data are cut off or damaged.
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
    """Return a JPEG without EXIF data and padding, in which every reader sees the pixels of ``decompress``.

    Return None for a PNG, and for a JPEG that stores its channels in the order of rgb8.
    """
    head = read_head(data)
    if head.kind != 'JPEG' or _stores_rgb(head, declared):
        return None
    parts, at = [], 0
    for segment in head.exif:
        parts.append(data[at:segment.start])
        at = segment.stop
    return b''.join([*parts, data[at:head.end]])


def read_head(data: bytes) -> ImageHeader:
    """Return the header of complete JPEG or PNG data. Decode no pixel.

    Raises:
        ImageError: The data are of another format, incomplete or damaged.
    """
    try:
        head = read_image_header(data)
    except DamagedImage as error:
        how = 'cut off; send it whole (see docs/install.md on Fast DDS)' if error.cut_off else 'broken; send it whole'
        raise ImageError(f'{error.kind} of {len(data)} bytes: {how}') from None
    if head is None:
        if not data:
            raise ImageError('no data: not supported; publish jpeg or png')
        name = next((f' ({name})' for magic, name in _OTHERS.items() if data.startswith(magic)), '')
        raise ImageError(f'data starting {data[:4].hex()}{name}: not supported; publish jpeg or png')
    if any(kind == b'acTL' for kind, _ in head.chunks):
        raise ImageError('several images in one message (an animated PNG): publish a message for each')
    if not head.height or not head.width:
        raise ImageError(f'{head.kind} of {head.width} x {head.height} pixels: both must be at least 1')
    if head.height * head.width > MAX_PIXELS:
        raise ImageError(f'{head.kind} of {head.width} x {head.height} pixels: must have at most {MAX_PIXELS:,} '
                         f'pixels; publish smaller images, or check the camera if it has fewer pixels')
    rest = data[head.end:head.end + 4096].lstrip(b'\0')
    if rest.startswith((JPEG_SIGNATURE + b'\xff', PNG_SIGNATURE)):
        raise ImageError('several images in one message: publish a message for each')
    return head


def _check(head: ImageHeader, declared: str) -> None:
    """Refuse the encodings that are refused in raw images, whether the format or the file names them."""
    name = declared.partition(';')[0].strip()
    stored = _STORED.search(declared)
    if _PIXELS.match(name) and name.lower() not in _BY_LOWER_NAME:
        # bayer and yuv images may be converted before compression; for more than 8 bits that loses dark areas
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


def _stores_rgb(head: ImageHeader, declared: str) -> bool:
    """Return True if red and blue are exchanged in the file: "compressed rgb8" means that (CompressedImage.msg)."""
    stored = _STORED.search(declared)
    return head.channels >= 3 and stored is not None and stored[1].startswith('rgb')


def _decode(data: bytes, head: ImageHeader, swapped: bool) -> np.ndarray:
    """Return the pixels as RGB. ``swapped``: red and blue are exchanged in the file."""
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8, head.end), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    except cv2.error as error:
        raise ImageError(f'{head.kind} of {len(data)} bytes: {error.err}; send it whole') from None
    if image is None or image.shape != (head.height, head.width, 3):
        raise ImageError(f'{head.kind} of {len(data)} bytes: broken; send it whole')
    return image if swapped else cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
