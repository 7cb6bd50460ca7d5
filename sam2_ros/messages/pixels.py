"""Pixels of raw images in every supported encoding as 8-bit RGB. Needs no ROS."""
from __future__ import annotations

from typing import Any, Protocol

import cv2
import numpy as np

from sam2_ros.messages.encodings import BAYER, GREY, PACKED_YUV, PLANAR_YUV, Encoding, ImageError, check_encoding
from sam2_ros.messages.intensity import FULL_RANGE, ChooseRange, IntensityRange, range_of, to_8_bits

# OpenCV names a mosaic by the second and third pixel of its second row.
_TO_RGB = {'bgr': cv2.COLOR_BGR2RGB, 'rgba': cv2.COLOR_RGBA2RGB, 'bgra': cv2.COLOR_BGRA2RGB, 'grey': cv2.COLOR_GRAY2RGB,
           'rggb': cv2.COLOR_BayerBG2RGB, 'bggr': cv2.COLOR_BayerRG2RGB, 'gbrg': cv2.COLOR_BayerGR2RGB,
           'grbg': cv2.COLOR_BayerGB2RGB, 'uyvy': cv2.COLOR_YUV2RGB_UYVY, 'yuyv': cv2.COLOR_YUV2RGB_YUY2,
           'nv12': cv2.COLOR_YUV2RGB_NV12, 'nv21': cv2.COLOR_YUV2RGB_NV21, 'i420': cv2.COLOR_YUV2RGB_I420}


class RawImage(Protocol):
    """Fields of sensor_msgs/Image, from rclpy or from rosbags."""

    height: int
    width: int
    encoding: str
    is_bigendian: Any
    step: int
    data: Any  # array of uint8


def raw_to_rgb(message: RawImage, given: IntensityRange | None = None,
               choose: ChooseRange = range_of) -> np.ndarray:
    """Return the pixels of a raw image as uint8 RGB (H, W, 3).

    An rgb8 image without padded rows is returned as a view of the message's bytes, other images as a new array.

    Args:
        message: The image.
        given: Range of 16-bit values that becomes 0 to 255. None: chosen for grey images, the full range for others.
        choose: Chooses the range of a grey image if none is given.

    Raises:
        ImageError: The message is malformed, or its encoding is not supported.
    """
    encoding = check_encoding(message.encoding)
    if encoding.kind == PLANAR_YUV:
        return cv2.cvtColor(_planes(message, encoding), _TO_RGB[encoding.order])
    pixels = pixel_bytes(message, encoding.size)
    if encoding.bits == 16:
        pixels = pixels.view('>u2' if message.is_bigendian else '<u2').astype(np.uint16, copy=False)
    return pixels_to_rgb(pixels if encoding.channels > 1 else pixels[..., 0], encoding, given, choose)


def pixels_to_rgb(pixels: np.ndarray, encoding: Encoding, given: IntensityRange | None = None,
                  choose: ChooseRange = range_of) -> np.ndarray:
    """Return pixels, uint8 or uint16 (H, W) or (H, W, channels), as uint8 RGB (H, W, 3).

    The encoding is not planar. The other arguments are those of ``raw_to_rgb``.

    Raises:
        ImageError: The encoding does not permit the size.
    """
    height, width = pixels.shape[:2]
    if encoding.bits == 16:
        values = given or (choose(pixels) if encoding.kind == GREY else FULL_RANGE)
        pixels = to_8_bits(pixels, values)
    if encoding.order == 'rgb':
        return pixels
    if encoding.kind == PACKED_YUV and width % 2:
        raise ImageError(f'width {width} with encoding {encoding.name!r}: must be even, two pixels share a colour; '
                         f'crop or pad a column')
    if encoding.kind != BAYER:
        return cv2.cvtColor(pixels, _TO_RGB[encoding.order])
    if height < 2 or width < 2:
        raise ImageError(f'image of {width} x {height} pixels with encoding {encoding.name!r}: must have at least '
                         f'2 x 2 pixels, which share their colours')
    # Two pixels of mirrored border continue the mosaic, so that the pixels at the edges have all their neighbours.
    bordered = cv2.copyMakeBorder(pixels, 2, 2, 2, 2, cv2.BORDER_REFLECT_101)
    return np.ascontiguousarray(cv2.cvtColor(bordered, _TO_RGB[encoding.order])[2:-2, 2:-2])


def pixel_bytes(message: RawImage, size: int) -> np.ndarray:
    """Return the bytes of a message as uint8 (H, W, size): a view, or a copy if rows are padded.

    Args:
        message: The image.
        size: Bytes per pixel.

    Raises:
        ImageError: The number of bytes contradicts height, width and step.
    """
    height, width, step = message.height, message.width, message.step
    row = _check_rows(message, size)
    expected = step * height
    if len(message.data) not in (expected, expected - (step - row)):  # the padding of the last row is optional
        raise ImageError(f'{len(message.data)} bytes of data: height {height} times step {step} makes {expected}; '
                         f'send the whole image')
    flat = np.frombuffer(message.data, np.uint8)
    pixels = np.lib.stride_tricks.as_strided(flat, (height, width, size), (step, size, 1))
    return np.ascontiguousarray(pixels)


def _check_rows(message: RawImage, size: int) -> int:
    """Return the bytes of a row without padding. Raise ImageError if the image is empty or the step too short."""
    height, width, step = message.height, message.width, message.step
    if not height or not width:
        raise ImageError(f'image of {width} x {height} pixels: both must be at least 1')
    row = width * size
    if step < row:
        raise ImageError(f'step {step}: a row of {width} pixels {message.encoding} has {row} bytes; set step to {row}, '
                         f'or more if rows are padded')
    return row


def _planes(message: RawImage, encoding: Encoding) -> np.ndarray:
    """Return the planes of a YUV 4:2:0 image below each other, uint8 (H * 3 / 2, W), without padding.

    The rows of the interleaved colour plane of nv12 and nv21 have ``step`` bytes, those of the two of i420 half of it.
    """
    height, width, step = message.height, message.width, message.step
    _check_rows(message, 1)
    if height % 2 or width % 2:
        raise ImageError(f'image of {width} x {height} pixels with encoding {message.encoding!r}: both must be even, '
                         f'2 x 2 pixels share a colour; crop or pad a row or column')
    separate = encoding.order == 'i420'
    if separate and step % 2:
        raise ImageError(f'step {step} with encoding {message.encoding!r}: must be even, rows of colour have half of '
                         f'it; set step to {width}, or more if rows are padded')
    expected, padding = step * height * 3 // 2, step - width
    if len(message.data) not in (expected, expected - (padding // 2 if separate else padding)):
        raise ImageError(f'{len(message.data)} bytes of data: height {height} times step {step}, and half of it for '
                         f'the colours, makes {expected}; send the whole image, and set height to that of the picture')
    flat = np.frombuffer(message.data, np.uint8)
    strided = np.lib.stride_tricks.as_strided
    if not separate:
        return np.ascontiguousarray(strided(flat, (height * 3 // 2, width), (step, 1)))
    luma = strided(flat, (height, width), (step, 1))
    colours = strided(flat[step * height:], (height, width // 2), (step // 2, 1))
    return np.concatenate([luma.ravel(), colours.ravel()]).reshape(height * 3 // 2, width)
