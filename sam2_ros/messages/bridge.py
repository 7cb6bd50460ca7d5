"""Decoder of cv_bridge, which comes with ROS 2, for encodings that this package does not know itself."""
from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
from sensor_msgs.msg import Image

from sam2_ros.messages.encodings import ImageError


@functools.cache
def bridge_decoder() -> Callable[[Image], np.ndarray] | None:
    """Return the decoder to uint8 RGB (H, W, 3), or None where cv_bridge is missing or was built for another numpy."""
    try:
        from cv_bridge import CvBridge
        bridge = CvBridge()
        bridge.imgmsg_to_cv2(Image(height=1, width=1, encoding='mono8', step=1, data=[0]), 'rgb8')
    except (ImportError, AttributeError):  # AttributeError: a cv_bridge built for numpy 1, used with numpy 2
        return None

    def decode(message: Image) -> np.ndarray:
        try:
            pixels = np.ascontiguousarray(bridge.imgmsg_to_cv2(message, 'rgb8'))
        except Exception as error:  # CvBridgeError, or an error of OpenCV or numpy for malformed messages
            raise ImageError(f'encoding {message.encoding!r}: cv_bridge cannot convert it to rgb8 ({error}); publish '
                             f'another encoding') from None
        if pixels.dtype != np.uint8 or pixels.shape != (message.height, message.width, 3):
            raise ImageError(f'encoding {message.encoding!r}: cv_bridge returns {pixels.dtype} of shape {pixels.shape} '
                             f'for {message.width} x {message.height} pixels; publish another encoding')
        return pixels
    return decode
