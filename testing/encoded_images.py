"""Images of a camera in every family of encodings, written from the definitions, for tests."""
from __future__ import annotations

import cv2
import numpy as np
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import Header

from testing.camera_images import image_message


def mosaic_of(rgb: np.ndarray, order: str) -> np.ndarray:
    """Return what a sensor with a colour filter sees; ``order`` names its first two rows, such as rggb."""
    rows, columns = np.indices(rgb.shape[:2])
    channel = np.array(['rgb'.index(letter) for letter in order])[2 * (rows % 2) + columns % 2]
    return np.take_along_axis(rgb, channel[..., None], 2)[..., 0]


def yuv_of(rgb: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return luma and colours by ITU-R BT.601, uint8 (H, W) each."""
    red, green, blue = (rgb[..., channel] / 255 for channel in range(3))
    luma = 0.299 * red + 0.587 * green + 0.114 * blue
    parts = 16 + 219 * luma, 128 + 224 * (blue - luma) / 1.772, 128 + 224 * (red - luma) / 1.402
    return tuple(np.rint(part).astype(np.uint8) for part in parts)


def encoded(rgb: np.ndarray, encoding: str, header: Header, big: bool = False) -> Image:
    """Return an RGB image of even size in an encoding; colour and Bayer of 16 bits span their full range."""
    height, width = rgb.shape[:2]
    if encoding == 'mono16':  # a thermal camera: brightness around 22 000
        return image_message(_ordered(20_000 + 16 * rgb.sum(-1, dtype=np.uint16), big), header, encoding, big)
    deep = np.uint16(257) * rgb
    y, u, v = yuv_of(rgb)
    if encoding in ('nv12', 'nv21', 'yuv420'):
        half = [part[::2, ::2] for part in ((v, u) if encoding == 'nv21' else (u, v))]
        colours = [np.stack(half, -1)] if encoding.startswith('nv') else half
        message = Image(header=header, height=height, width=width, encoding=encoding, step=width)
        message.data.frombytes(b''.join(part.tobytes() for part in (y, *colours)))
        return message
    if encoding in ('uyvy', 'yuyv'):
        colours = u.copy()
        colours[:, 1::2] = v[:, ::2]
        pixels = np.stack((colours, y) if encoding == 'uyvy' else (y, colours), -1)
    elif encoding.startswith('bayer'):
        pixels = mosaic_of(rgb if encoding.endswith('8') else deep, encoding[6:10])
    else:
        pixels = {'rgb8': rgb, 'bgr8': rgb[..., ::-1], 'rgb16': deep, 'bgr16': deep[..., ::-1]}[encoding]
    return image_message(_ordered(pixels, big), header, encoding, big)


def encoded_file(rgb: np.ndarray, encoding: str, header: Header) -> CompressedImage:
    """Return an RGB image in an encoding with 1 or 3 channels as the transport compressed sends it, as PNG."""
    raw = encoded(rgb, encoding, header)
    kind = np.uint16 if encoding.endswith('16') else np.uint8
    pixels = np.frombuffer(raw.data, kind).reshape(raw.height, raw.width, -1)
    colour = pixels.shape[2] == 3
    stored = f'bgr{8 * pixels.itemsize}' if colour else ''
    if colour and encoding.startswith('rgb'):
        pixels = pixels[..., ::-1]
    return CompressedImage(header=header, format=f'{encoding}; png compressed {stored}',
                           data=cv2.imencode('.png', pixels)[1].tobytes())


def _ordered(pixels: np.ndarray, big: bool) -> np.ndarray:
    return np.ascontiguousarray(pixels).astype(pixels.dtype.newbyteorder('>' if big else '<'))
