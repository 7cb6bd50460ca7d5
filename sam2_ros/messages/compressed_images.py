"""Decoder of the JPEG and PNG data in CompressedImage messages, with checks of format and header. Needs no ROS."""
from __future__ import annotations

import re

import cv2
import numpy as np

from sam2_core.image_headers import JPEG_SIGNATURE, PNG_SIGNATURE, DamagedImage, ImageHeader, read_image_header
from sam2_ros.messages.encodings import (
    BAYER,
    COLOUR,
    ENCODINGS,
    PLANAR_YUV,
    Encoding,
    ImageError,
    check_encoding,
    find_encoding,
)
from sam2_ros.messages.intensity import ChooseRange, IntensityRange, range_of
from sam2_ros.messages.pixels import pixels_to_rgb

MAX_PIXELS = 160_000_000  # the largest cameras have 150 million; the header of a small file can claim 4 billion
_OTHERS = {b'RIFF': 'WebP', b'II*\0': 'TIFF', b'MM\0*': 'TIFF', b'GIF8': 'GIF', b'BM': 'BMP',
           b'\0\0\0\1': 'H.264 or H.265', b'\0\0\1': 'H.264 or H.265', b'\0\0\0\x0c': 'JPEG 2000 or JPEG XL'}
# start of a format that names an encoding, as image_transport writes it: "rgb8; jpeg compressed bgr8"
_PIXELS = re.compile(r'(mono|rgba?|bgra?)\d|bayer_|\d+[USF]C\d?|yuv|yuyv|uyvy|nv\d|i420', re.IGNORECASE)
_STORED = re.compile(r'compressed\s+(\w+)')
DEPTH_TRANSPORT = 'compressedDepth'  # in the format of depth images with a header of their own


def decompress(data: bytes, declared: str, given: IntensityRange | None = None,
               choose: ChooseRange = range_of) -> np.ndarray:
    """Return the pixels of JPEG or PNG data as uint8 RGB (H, W, 3), in the orientation in which they are stored.

    The EXIF orientation is ignored, since calibration and depth of a camera belong to its pixels as they are stored.
    Alpha is dropped, as that of raw images. Data after the end of the file are ignored, since cameras pad.

    Args:
        data: Content of the file.
        declared: ``format`` of the message.
        given: Range of 16-bit values that becomes 0 to 255. None: chosen for grey images, the full range for others.
        choose: Chooses the range of a grey image if none is given.

    Raises:
        ImageError: The encoding is refused in raw images too, the format contradicts the file, the file has more than
            MAX_PIXELS, or the data are cut off or damaged.
    """
    try:
        if DEPTH_TRANSPORT in declared:
            raise ImageError("a depth image: set the image topic to the camera's colour image")
        head = read_head(data)
        encoding = _stored_encoding(head, declared)
        return pixels_to_rgb(_decode(data, head, encoding), encoding, given, choose)
    except ImageError as error:
        raise ImageError(f'format {declared!r}: {error}') from None


def plain_jpeg(data: bytes, declared: str) -> bytes | None:
    """Return a JPEG without EXIF data and padding, in which every reader sees the pixels of ``decompress``.

    Return None for a PNG, for a mosaic, and for a JPEG that stores its channels in the order of rgb8.
    """
    head = read_head(data)
    if head.kind != 'JPEG' or _stored_encoding(head, declared).name not in ('mono8', 'bgr8'):
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


def _stored_encoding(head: ImageHeader, declared: str) -> Encoding:
    """Return the encoding of the pixels in the file. Raise ImageError if the format contradicts it.

    Bayer and YUV images may be converted to colour before compression, and so may 16-bit colour, by its full range.
    Grey images of 16 bits in a file of 8 bits have lost their dark or bright areas.
    """
    name = declared.partition(';')[0].strip()
    named = find_encoding(name)
    if named is None and _PIXELS.match(name):
        check_encoding(name)
    if head.kind == 'JPEG' and head.channels not in (1, 3):
        cmyk = ' (CMYK)' if head.channels == 4 else ''
        raise ImageError(f'JPEG of {head.channels} channels{cmyk}: not supported; publish a JPEG in grey or colour')
    if head.kind == 'JPEG' and head.bits > 8:
        raise ImageError(f'JPEG of {head.bits} bits per channel: not supported; publish png for more than 8 bits')
    found = _STORED.search(declared)
    stored = found[1] if found else ''
    deep, colour = head.bits > 8, head.channels >= 3
    what = f'{head.kind} of {head.channels} channel{"s" if colour else ""} with {head.bits} bits'
    if named is not None:
        converted = colour and not deep and stored in ('bgr8', 'rgb8')
        mosaic = named.kind == BAYER and not colour and stored in ('', 'mono8', 'mono16', named.name)
        if named.kind in (BAYER, PLANAR_YUV) and not converted and not mosaic:
            raise ImageError(f'{what}: does not hold {name}, neither as it is nor converted to colour; publish the '
                             f'image raw, or convert it to bgr8 before compression')
        if deep and named.bits == 8:
            raise ImageError(f'{what}: contradicts {name}, which has 8; name the encoding of the pixels in the format')
        if named.bits == 16 and not deep and not (converted and named.kind in (BAYER, COLOUR)):
            raise ImageError(f'{what}: {name} was reduced to 8 bits before compression, which loses dark or bright '
                             f'areas; publish png')
        if mosaic:
            return named
    if not colour:
        return ENCODINGS['mono16' if deep else 'mono8']
    swapped = stored.startswith('rgb')  # red and blue are exchanged in the file, as CompressedImage.msg says
    return ENCODINGS[f'{"rgb" if swapped else "bgr"}{16 if deep else 8}']


def _decode(data: bytes, head: ImageHeader, encoding: Encoding) -> np.ndarray:
    """Return the pixels as the file stores them, uint8 or uint16, (H, W) or (H, W, 3), without alpha."""
    how = cv2.IMREAD_COLOR if encoding.channels > 1 else cv2.IMREAD_GRAYSCALE
    deep = cv2.IMREAD_ANYDEPTH if encoding.bits > 8 else 0
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8, head.end), how | deep | cv2.IMREAD_IGNORE_ORIENTATION)
    except cv2.error as error:
        raise ImageError(f'{head.kind} of {len(data)} bytes: {error.err}; send it whole') from None
    shape = (head.height, head.width, 3)[:2 + (encoding.channels > 1)]
    if image is None or image.shape != shape or image.itemsize * 8 != encoding.bits:
        raise ImageError(f'{head.kind} of {len(data)} bytes: broken; send it whole')
    return image
