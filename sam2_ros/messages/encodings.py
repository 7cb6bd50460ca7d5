"""Pixel encodings that are supported in raw and compressed images. Needs no ROS."""
from __future__ import annotations

import re

# encoding -> bytes per pixel; yuv422 is UYVY in ROS
CHANNELS = {
    'rgb8': 3, 'bgr8': 3, 'rgba8': 4, 'bgra8': 4, 'mono8': 1, '8UC1': 1, '8UC3': 3, '8UC4': 4,
    'yuv422': 2, 'uyvy': 2, 'yuv422_yuy2': 2, 'yuyv': 2,
}
# The type names of OpenCV do not name an order of colours; every driver that uses them means OpenCV's order. Some
# releases of cv_bridge do not know the names uyvy and yuyv.
SAME_AS = {'8UC1': 'mono8', '8UC3': 'bgr8', '8UC4': 'bgra8', 'uyvy': 'yuv422', 'yuyv': 'yuv422_yuy2'}
_DEEP = re.compile(r'(16|32|64)([USF]C\d*)?$')  # end of the names of encodings with more than 8 bits


class ImageError(ValueError):
    """An image message that cannot be used; the text names the value and the cure."""


def is_deep(encoding: str) -> bool:
    """Return True if a channel of this encoding has more than 8 bits."""
    return _DEEP.search(encoding) is not None


def check_encoding(encoding: str) -> str:
    """Return an encoding by its canonical name, see ``SAME_AS``. Raise ImageError if it is not supported."""
    if encoding in CHANNELS:
        return SAME_AS.get(encoding, encoding)
    cure = ''
    if is_deep(encoding):
        cure = '; scale it to 8 bits'
    elif encoding.startswith('bayer'):
        cure = '; debayer it with image_proc'
    raise ImageError(f'encoding {encoding!r}: not supported; publish one of {", ".join(CHANNELS)}{cure}')
