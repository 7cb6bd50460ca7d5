"""JPEG and PNG data of CompressedImage messages: checked against format and file header, then decoded. Needs no ROS."""
from __future__ import annotations

import re

import cv2
import numpy as np

from sam2_core.image_headers import JPEG_SIGNATURE, PNG_SIGNATURE, DamagedImage, ImageHeader, read_image_header
from sam2_ros.messages.encodings import CHANNELS, ImageError, check_encoding, is_deep

MAX_PIXELS = 160_000_000  # the largest cameras have 150 million; a small file can claim 4 billion
_OTHERS = {b'RIFF': 'WebP', b'II*\0': 'TIFF', b'MM\0*': 'TIFF', b'GIF8': 'GIF', b'BM': 'BMP',
           b'\0\0\0\1': 'H.264 or H.265', b'\0\0\1': 'H.264 or H.265', b'\0\0\0\x0c': 'JPEG 2000 or JPEG XL'}
_DEEP_NAMES = {1: 'mono16', 3: 'rgb16', 4: 'rgba16'}  # of a file with more than 8 bits, by channels
# the start of a format that names pixels, as image_transport writes it: "rgb8; jpeg compressed bgr8"
_PIXELS = re.compile(r'(mono|rgba?|bgra?)\d|bayer_|\d+[USF]C\d?|yuv|yuyv|uyvy|nv\d|i420', re.IGNORECASE)
_STORED = re.compile(r'compressed\s+(\w+)')
_BY_LOWER_NAME = {name.lower(): name for name in CHANNELS}


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


def read_head(data: bytes) -> ImageHeader:
    """Return the header of JPEG or PNG data that are whole. Raises ImageError without decoding any pixel."""
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
                         f'pixels; publish smaller images, or check the camera, if it has fewer')
    behind = data[head.end:head.end + 4096].lstrip(b'\0')
    if behind.startswith((JPEG_SIGNATURE + b'\xff', PNG_SIGNATURE)):
        raise ImageError('several images in one message: publish a message for each')
    return head


def _check(head: ImageHeader, declared: str) -> None:
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


def _stores_rgb(head: ImageHeader, declared: str) -> bool:
    """Return whether red and blue are exchanged in the file: "compressed rgb8" says so (CompressedImage.msg)."""
    stored = _STORED.search(declared)
    return head.channels >= 3 and stored is not None and stored[1].startswith('rgb')


def _decode(data: bytes, head: ImageHeader, swapped: bool) -> np.ndarray:
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8, head.end), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    except cv2.error as error:
        raise ImageError(f'{head.kind} of {len(data)} bytes: {error.err}; send it whole') from None
    if image is None or image.shape != (head.height, head.width, 3):
        raise ImageError(f'{head.kind} of {len(data)} bytes: broken; send it whole')
    return image if swapped else cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
