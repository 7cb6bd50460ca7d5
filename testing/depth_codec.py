"""Encoder of compressedDepth, written from the description of the format and the RVL paper, for tests."""
from __future__ import annotations

import struct

import cv2
import numpy as np
from sensor_msgs.msg import CompressedImage
from std_msgs.msg import Header

QUANTIZATION, DEPTH_MAX = 100.0, 10.0  # defaults of compressed_depth_image_transport


def compressed_depth(depth: np.ndarray, header: Header, codec: str = 'png') -> CompressedImage:
    """Return uint16 millimetres or float32 metres (H, W) as compressed_depth_image_transport sends them."""
    parameters = 0.0, 0.0
    encoding, stored = '16UC1', depth
    if depth.dtype == np.float32:
        a = QUANTIZATION * (QUANTIZATION + 1)
        parameters = a, 1 - a / DEPTH_MAX
        encoding, known = '32FC1', (depth > 0) & (depth < DEPTH_MAX)
        stored = np.zeros(depth.shape, np.uint16)
        stored[known] = a / depth[known] + parameters[1]
    height, width = depth.shape
    body = (struct.pack('<II', width, height) + rvl(stored.ravel().tolist()) if codec == 'rvl'
            else cv2.imencode('.png', stored)[1].tobytes())
    return CompressedImage(header=header, format=f'{encoding}; compressedDepth {codec}',
                           data=struct.pack('<iff', 0, *parameters) + body)


def rvl(pixels: list[int]) -> bytes:
    """Return the run-length code of pixels, one nibble after the other."""
    nibbles: list[int] = []

    def write(number: int) -> None:
        while number > 7:
            nibbles.append(8 | number & 7)
            number >>= 3
        nibbles.append(number)
    at = last = 0
    while at < len(pixels):
        zeros = at
        while at < len(pixels) and not pixels[at]:
            at += 1
        write(at - zeros)
        filled = at
        while at < len(pixels) and pixels[at]:
            at += 1
        write(at - filled)
        for value in pixels[filled:at]:
            write(2 * (value - last) if value >= last else 2 * (last - value) - 1)  # zigzag
            last = value
    return words(nibbles)


def words(nibbles: list[int]) -> bytes:
    """Return nibbles as little-endian words of 32 bits, each filled from the top."""
    padded = nibbles + [0] * (-len(nibbles) % 8)
    return b''.join(int(''.join(f'{nibble:x}' for nibble in padded[at:at + 8]), 16).to_bytes(4, 'little')
                    for at in range(0, len(padded), 8))
