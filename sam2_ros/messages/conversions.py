"""Conversion of messages to arrays and back. Malformed messages are refused with the value and the cure."""
from __future__ import annotations

import functools
import sys
from array import array
from collections.abc import Callable

import cv2
import numpy as np
from builtin_interfaces.msg import Duration, Time
from sensor_msgs.msg import CompressedImage, Image, RegionOfInterest
from std_msgs.msg import Header

from sam2_core.masks import binary_mask
from sam2_ros.messages.compressed_images import decompress
from sam2_ros.messages.encodings import CHANNELS, ImageError, check_encoding

_TO_RGB = {'bgr8': cv2.COLOR_BGR2RGB, 'rgba8': cv2.COLOR_RGBA2RGB, 'bgra8': cv2.COLOR_BGRA2RGB,
           'mono8': cv2.COLOR_GRAY2RGB}
_MAX_INT32 = 2**31 - 1


def to_rgb(message: Image | CompressedImage) -> np.ndarray:
    """Return the pixels of an image message as uint8 RGB (H, W, 3).

    An rgb8 image without padded rows is returned as a view of the message's bytes, other images as a new array.

    Raises:
        ImageError: The message is malformed, or its encoding is not supported.
    """
    if isinstance(message, CompressedImage):
        return decompress(message.data.tobytes(), message.format)
    encoding = check_encoding(message.encoding)
    pixels = _pixels(message)
    if encoding == 'rgb8':
        return pixels
    if encoding in _TO_RGB:
        return cv2.cvtColor(pixels, _TO_RGB[encoding])
    if message.width % 2:
        raise ImageError(f'width {message.width} with encoding {encoding!r}: must be even, two pixels share a colour')
    return _yuv_decoder()(from_pixels(pixels, encoding, message.header), 'rgb8')


def to_mask(message: Image) -> np.ndarray:
    """Return a mono8 image of 0 and 1, or of 0 and 255, as bool (H, W).

    Raises:
        ImageError: The message is malformed, or has another encoding or other values.
    """
    if message.encoding not in ('mono8', '8UC1'):
        raise ImageError(f'mask with encoding {message.encoding!r}: must be mono8, 0 and 1, or 0 and 255')
    pixels = _pixels(message)
    try:
        return binary_mask(pixels)
    except ValueError as error:
        raise ImageError(str(error)) from None


def from_pixels(pixels: np.ndarray, encoding: str, header: Header) -> Image:
    """Return the Image message of an array (H, W) or (H, W, channels), without padded rows."""
    pixels = np.ascontiguousarray(pixels)
    data = array('B')  # the only type the setter takes as it is; it copies a numpy array element by element
    data.frombytes(pixels.data.cast('B') if pixels.size else b'')
    height, width = pixels.shape[:2]
    step = pixels.strides[0] if pixels.size else 0
    return Image(header=header, height=height, width=width, encoding=encoding, step=step,
                 is_bigendian=int(sys.byteorder == 'big'), data=data)


def to_roi(box: tuple[int, int, int, int] | None) -> RegionOfInterest:
    """Return the region of interest of a pixel box (x0, y0, x1, y1), x1 and y1 exclusive. None has width 0."""
    if box is None:
        return RegionOfInterest()
    x0, y0, x1, y1 = box
    return RegionOfInterest(x_offset=x0, y_offset=y0, width=x1 - x0, height=y1 - y0)


def to_nanoseconds(stamp: Time) -> int:
    """Return a stamp or a duration in nanoseconds."""
    return stamp.sec * 1_000_000_000 + stamp.nanosec


def to_duration(nanoseconds: int) -> Duration:
    """Return nanoseconds, possibly negative, as a Duration, limited to its range of 68 years."""
    seconds, rest = divmod(nanoseconds, 1_000_000_000)
    return Duration(sec=max(-_MAX_INT32, min(seconds, _MAX_INT32)), nanosec=rest)


@functools.cache
def _yuv_decoder() -> Callable[[Image, str], np.ndarray]:
    """Return the decoder of cv_bridge, which comes with ROS 2, or else that of rosbags-image.

    The wheels have no cv_bridge, and one that was built for another numpy fails.
    """
    try:
        from cv_bridge import CvBridge
        decode = CvBridge().imgmsg_to_cv2
        decode(from_pixels(np.zeros((1, 2, 2), np.uint8), 'yuv422', Header()), 'rgb8')
        return decode
    except (ImportError, AttributeError):  # AttributeError: a cv_bridge built for numpy 1, used with numpy 2
        pass
    try:
        from rosbags.image import image_to_cvimage
        return image_to_cvimage
    except ImportError:
        raise ImageError('yuv images need cv_bridge (built for the numpy in use) or rosbags-image: install one, '
                         'or publish rgb8') from None


def _pixels(message: Image) -> np.ndarray:
    """Return the bytes of a message as uint8 (H, W) or (H, W, channels): a view, or a copy if rows are padded."""
    check_encoding(message.encoding)
    channels = CHANNELS[message.encoding]
    pixels = pixel_bytes(message, channels)
    return pixels if channels > 1 else pixels[..., 0]


def pixel_bytes(message: Image, size: int) -> np.ndarray:
    """Return the bytes of a message as uint8 (H, W, size): a view, or a copy if rows are padded.

    Args:
        message: The image.
        size: Bytes per pixel.

    Raises:
        ImageError: The number of bytes contradicts height, width and step.
    """
    height, width, step = message.height, message.width, message.step
    if not height or not width:
        raise ImageError(f'image of {width} x {height} pixels: both must be at least 1')
    row = width * size
    if step < row:
        raise ImageError(f'step {step}: a row of {width} pixels {message.encoding} has {row} bytes; set step to {row}, '
                         f'or more if rows are padded')
    expected = step * height
    if len(message.data) not in (expected, expected - (step - row)):  # the padding of the last row is optional
        raise ImageError(f'{len(message.data)} bytes of data: height {height} times step {step} makes {expected}; '
                         f'send the whole image')
    flat = np.frombuffer(message.data, np.uint8)
    pixels = np.lib.stride_tricks.as_strided(flat, (height, width, size), (step, size, 1))
    return np.ascontiguousarray(pixels)
