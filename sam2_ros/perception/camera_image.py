"""Decoded image of a camera, with what is computed from it."""
from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from std_msgs.msg import Header

from sam2_core import EncodedImage, ImageSegmenter
from sam2_ros.depth.frame_transform import CAMERA_FRAME, FrameTransform
from sam2_ros.depth.surface import DepthFrame


@dataclass(eq=False)
class CameraImage:
    """Decoded image, and its features and depth once they are known."""

    header: Header
    image: np.ndarray  # uint8 RGB (H, W, 3)
    encoded: EncodedImage | None = None
    depth: DepthFrame | None = None
    target: FrameTransform | None = CAMERA_FRAME  # into target_frame; None: there is no transform at the stamp

    def encode(self, segmenter: ImageSegmenter) -> EncodedImage:
        """Return the features; the first call computes them."""
        if self.encoded is None:
            self.encoded = segmenter.encode(self.image)
        return self.encoded
