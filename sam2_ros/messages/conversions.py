"""Conversion of messages to arrays and back. Malformed messages are refused with the value and the cure."""
from __future__ import annotations

import sys
from array import array

import numpy as np
from builtin_interfaces.msg import Duration, Time
from sensor_msgs.msg import CompressedImage, Image, RegionOfInterest
from std_msgs.msg import Header

from sam2_core.masks import binary_mask
from sam2_ros.messages.bridge import bridge_decoder
from sam2_ros.messages.compressed_images import decompress
from sam2_ros.messages.encodings import ENCODINGS, ImageError, is_number_type
from sam2_ros.messages.intensity import ChooseRange, IntensityRange, range_of
from sam2_ros.messages.pixels import pixel_bytes, raw_to_rgb

_MAX_INT32 = 2**31 - 1


def to_rgb(message: Image | CompressedImage, given: IntensityRange | None = None,
           choose: ChooseRange = range_of) -> np.ndarray:
    """Return the pixels of an image message as uint8 RGB (H, W, 3).

    An rgb8 image without padded rows is returned as a view of the message's bytes, other images as a new array.
    Encodings that are not in ENCODINGS are left to cv_bridge, if it can be imported.

    Args:
        message: The image.
        given: Range of 16-bit values that becomes 0 to 255. None: chosen for grey images, the full range for others.
        choose: Chooses the range of a grey image if none is given; by default from this image alone.

    Raises:
        ImageError: The message is malformed, or its encoding is not supported.
    """
    if isinstance(message, CompressedImage):
        return decompress(message.data.tobytes(), message.format, given, choose)
    if message.encoding not in ENCODINGS and not is_number_type(message.encoding) and (decode := bridge_decoder()):
        return decode(message)
    return raw_to_rgb(message, given, choose)


def to_mask(message: Image) -> np.ndarray:
    """Return a mono8 image of 0 and 1, or of 0 and 255, as bool (H, W).

    Raises:
        ImageError: The message is malformed, or has another encoding or other values.
    """
    if message.encoding not in ('mono8', '8UC1'):
        raise ImageError(f'mask with encoding {message.encoding!r}: must be mono8, 0 and 1, or 0 and 255')
    pixels = pixel_bytes(message, 1)[..., 0]
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


def to_time(nanoseconds: int) -> Time:
    """Return nanoseconds, from 0 to 2^31 seconds, as a stamp."""
    seconds, rest = divmod(nanoseconds, 1_000_000_000)
    return Time(sec=seconds, nanosec=rest)


def to_duration(nanoseconds: int) -> Duration:
    """Return nanoseconds, possibly negative, as a Duration, limited to its range of 68 years."""
    seconds, rest = divmod(nanoseconds, 1_000_000_000)
    return Duration(sec=max(-_MAX_INT32, min(seconds, _MAX_INT32)), nanosec=rest)
