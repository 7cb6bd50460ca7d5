"""Messages to arrays and back. Refuses what is malformed, naming the value and the cure."""
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
    """The picture in a message as uint8 RGB (H, W, 3).

    An rgb8 image is a view of the message's bytes when the rows have no padding, everything else a new array.
    Raises ImageError for what is malformed or not supported.
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
    """Return a mono8 image of 0 and 1, or 0 and 255, as bool (H, W). Raises ImageError."""
    if message.encoding not in ('mono8', '8UC1'):
        raise ImageError(f'mask with encoding {message.encoding!r}: must be mono8, 0 and 1, or 0 and 255')
    pixels = _pixels(message)
    try:
        return binary_mask(pixels)
    except ValueError as error:
        raise ImageError(str(error)) from None


def from_pixels(pixels: np.ndarray, encoding: str, header: Header) -> Image:
    """An Image message of an array (H, W) or (H, W, channels), rows without padding."""
    pixels = np.ascontiguousarray(pixels)
    data = array('B')  # the one type that the setter takes as it is: from a numpy array it copies element by element
    data.frombytes(memoryview(pixels).cast('B') if pixels.size else b'')
    height, width = pixels.shape[:2]
    step = pixels.strides[0] if pixels.size else 0
    return Image(header=header, height=height, width=width, encoding=encoding, step=step,
                 is_bigendian=int(sys.byteorder == 'big'), data=data)


def to_roi(box: tuple[int, int, int, int] | None) -> RegionOfInterest:
    """A pixel box (x0, y0, x1, y1), x1 and y1 exclusive, as a region of interest; None as one of width 0."""
    if box is None:
        return RegionOfInterest()
    x0, y0, x1, y1 = box
    return RegionOfInterest(x_offset=x0, y_offset=y0, width=x1 - x0, height=y1 - y0)


def to_nanoseconds(stamp: Time) -> int:
    return stamp.sec * 1_000_000_000 + stamp.nanosec


def to_duration(nanoseconds: int) -> Duration:
    """Nanoseconds, possibly negative, as a Duration; what exceeds its 68 years is cut off there."""
    seconds, rest = divmod(nanoseconds, 1_000_000_000)
    return Duration(sec=max(-_MAX_INT32, min(seconds, _MAX_INT32)), nanosec=rest)


@functools.cache
def _yuv_decoder() -> Callable[[Image, str], np.ndarray]:
    """cv_bridge's, which ROS 2 brings; with the wheels, or where it was built for another numpy, rosbags-image's."""
    try:
        from cv_bridge import CvBridge
        decode = CvBridge().imgmsg_to_cv2
        decode(from_pixels(np.zeros((1, 2, 2), np.uint8), 'yuv422', Header()), 'rgb8')
        return decode
    except (ImportError, AttributeError):  # AttributeError: how a cv_bridge for numpy 1 fails with numpy 2
        pass
    try:
        from rosbags.image import image_to_cvimage
        return image_to_cvimage
    except ImportError:
        raise ImageError('yuv images need cv_bridge (built for the numpy in use) or rosbags-image: install one, '
                         'or publish rgb8') from None


def _pixels(message: Image) -> np.ndarray:
    """The bytes of a message as uint8 (H, W) or (H, W, channels); a view, or a copy where the rows are padded."""
    check_encoding(message.encoding)
    channels = CHANNELS[message.encoding]
    pixels = pixel_bytes(message, channels)
    return pixels if channels > 1 else pixels[..., 0]


def pixel_bytes(message: Image, size: int) -> np.ndarray:
    """The bytes of a message with ``size`` bytes to the pixel as uint8 (H, W, size); a view, or a copy where the rows
    are padded. Raises ImageError when their number is not what the message says."""
    height, width, step = message.height, message.width, message.step
    if not height or not width:
        raise ImageError(f'image of {width} x {height} pixels: both must be at least 1')
    row = width * size
    if step < row:
        raise ImageError(f'step {step}: a row of {width} pixels {message.encoding} has {row} bytes; set step to {row}, '
                         f'or more where rows are padded')
    expected = step * height
    if len(message.data) not in (expected, expected - (step - row)):  # the last row's padding may be left out
        raise ImageError(f'{len(message.data)} bytes of data: height {height} times step {step} makes {expected}; '
                         f'send the whole image')
    flat = np.frombuffer(message.data, np.uint8)
    pixels = np.lib.stride_tricks.as_strided(flat, (height, width, size), (step, size, 1))
    return np.ascontiguousarray(pixels)
