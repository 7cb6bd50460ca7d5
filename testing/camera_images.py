"""Images of a camera for tests: headers, messages and pictures."""
from __future__ import annotations

import cv2
import numpy as np
from builtin_interfaces.msg import Time
from sensor_msgs.msg import CompressedImage, Image, RegionOfInterest
from std_msgs.msg import Header

from sam2_ros.msg import ImagePoint

RED, BLUE = (230, 60, 40), (40, 90, 225)
Disc = tuple[float, float, float, tuple[int, int, int]]  # x, y and radius in pixels, RGB


# --- messages

def header(seconds: float = 0.0, *, nanoseconds: int = 0, frame_id: str = 'camera') -> Header:
    """Return the header of an image with the stamp ``seconds`` plus ``nanoseconds``."""
    whole, rest = divmod(round(seconds * 1e9) + nanoseconds, 10**9)
    return Header(stamp=Time(sec=whole, nanosec=rest), frame_id=frame_id)


def image_message(pixels: np.ndarray, header: Header, encoding: str = 'rgb8', big: bool = False) -> Image:
    """Return an image message, built without the code under test."""
    height, width = pixels.shape[:2]
    message = Image(header=header, height=height, width=width, encoding=encoding, step=pixels[0].nbytes,
                    is_bigendian=int(big))
    message.data.frombytes(pixels.tobytes())
    return message


def compressed_message(pixels: np.ndarray, header: Header, kind: str) -> CompressedImage:
    """Return an RGB image as jpeg or png (``kind``)."""
    done, data = cv2.imencode(f'.{kind}', cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR))
    assert done
    message = CompressedImage(header=header, format=f'rgb8; {kind} compressed bgr8')
    message.data.frombytes(data.tobytes())
    return message


def roi(box) -> RegionOfInterest:
    """Return the region of a box (x0, y0, x1, y1), x1 and y1 exclusive."""
    x0, y0, x1, y1 = (int(value) for value in box)
    return RegionOfInterest(x_offset=x0, y_offset=y0, width=x1 - x0, height=y1 - y0)


def point(x: float, y: float, label: int = ImagePoint.FOREGROUND) -> ImagePoint:
    return ImagePoint(x=float(x), y=float(y), label=label)


# --- pictures

def picture(height: int, width: int, *discs: Disc, background: int = 80) -> np.ndarray:
    """Return discs on a grey background, uint8 RGB (height, width, 3)."""
    rows, columns = np.mgrid[:height, :width]
    image = np.full((height, width, 3), background, np.uint8)
    for x, y, radius, colour in discs:
        image[np.hypot(columns - x, rows - y) < radius] = colour
    return image
