"""Depth messages, raw or compressed: size and frame before their pixels are decoded."""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import Header

from sam2_ros.messages.compressed_depth import DepthFile, decode_depth_file, read_depth_file
from sam2_ros.messages.conversions import from_pixels

DepthMessage: TypeAlias = Image | CompressedImage


@dataclass(frozen=True, eq=False)
class DepthHead:
    """What a depth message says about its pixels."""

    header: Header
    encoding: str
    height: int
    width: int
    image: Callable[[], Image]  # returns the raw image; raises ImageError if the data are damaged


def depth_head(message: DepthMessage) -> DepthHead:
    """Return the head of a depth message.

    A compressed message is small even if it claims a huge image. Compare the size before decoding it.

    Raises:
        ImageError: A compressed message has another format, or a wrong header.
    """
    if isinstance(message, Image):
        return DepthHead(message.header, message.encoding, message.height, message.width, lambda: message)
    file = read_depth_file(message.data.tobytes(), message.format)
    return DepthHead(message.header, file.encoding, file.height, file.width, lambda: _decoded(file, message.header))


def _decoded(file: DepthFile, header: Header) -> Image:
    return from_pixels(decode_depth_file(file), file.encoding, header)
