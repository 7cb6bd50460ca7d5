"""Pixel encodings that are supported in raw and compressed images. Needs no ROS."""
from __future__ import annotations

import re
from typing import NamedTuple

COLOUR, GREY, BAYER, PACKED_YUV, PLANAR_YUV = 'colour', 'grey', 'Bayer', 'packed YUV', 'planar YUV'


class ImageError(ValueError):
    """An image message that cannot be used; the text names the value and the cure."""


class Encoding(NamedTuple):
    """Layout of the pixels of an encoding."""

    name: str  # canonical
    kind: str  # COLOUR, GREY, BAYER, PACKED_YUV or PLANAR_YUV
    order: str  # of channels (rgb), of the first two rows of a mosaic (rggb), or the layout of YUV (uyvy, nv12)
    channels: int  # per pixel; of planar YUV in the first plane
    bits: int  # per channel: 8 or 16

    @property
    def size(self) -> int:
        """Bytes per pixel; of planar YUV in the first plane."""
        return self.channels * self.bits // 8


def _table() -> dict[str, Encoding]:
    found = {}
    for bits in (8, 16):
        for order in ('rgb', 'bgr', 'rgba', 'bgra'):
            found[f'{order}{bits}'] = Encoding(f'{order}{bits}', COLOUR, order, len(order), bits)
        found[f'mono{bits}'] = Encoding(f'mono{bits}', GREY, 'grey', 1, bits)
        for order in ('rggb', 'bggr', 'gbrg', 'grbg'):
            found[f'bayer_{order}{bits}'] = Encoding(f'bayer_{order}{bits}', BAYER, order, 1, bits)
    found['uyvy'] = Encoding('uyvy', PACKED_YUV, 'uyvy', 2, 8)
    found['yuyv'] = Encoding('yuyv', PACKED_YUV, 'yuyv', 2, 8)
    for order in ('nv12', 'nv21', 'i420'):
        found[order] = Encoding(order, PLANAR_YUV, order, 1, 8)
    # The type names of OpenCV do not name an order of colours; every driver that uses them means OpenCV's order.
    same = {'8UC1': 'mono8', '8UC3': 'bgr8', '8UC4': 'bgra8', '16UC1': 'mono16', '16UC3': 'bgr16', '16UC4': 'bgra16',
            'yuv422': 'uyvy', 'yuv422_yuy2': 'yuyv', 'yuv420': 'i420'}
    return found | {name: found[known] for name, known in same.items()}


ENCODINGS = _table()
_BY_LOWER_NAME = {name.lower(): encoding for name, encoding in ENCODINGS.items()}
_OTHER_DEPTH = re.compile(r'(8S|16S|32[SFU]|64F)(C\d*)?$')  # end of the names of signed, wide and floating-point types


def find_encoding(name: str) -> Encoding | None:
    """Return an encoding by its name in upper or lower case, as formats of compressed images spell it, or None."""
    return _BY_LOWER_NAME.get(name.lower())


def is_number_type(name: str) -> bool:
    """Return True for the name of a signed, wide or floating-point type of OpenCV, such as 32FC1."""
    return _OTHER_DEPTH.search(name) is not None


def check_encoding(name: str) -> Encoding:
    """Return the encoding of this name. Raise ImageError if it is not supported."""
    if name in ENCODINGS:
        return ENCODINGS[name]
    cure = '; scale it to 8 or 16 bits, without a sign' if is_number_type(name) else ''
    raise ImageError(f'encoding {name!r}: not supported; publish one of {", ".join(ENCODINGS)}{cure}')
