"""Overlay of tracked objects, with the track state of those that are not visible."""
from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from sam2_core.drawing.overlay import draw_objects
from sam2_ros.msg import Instance

if TYPE_CHECKING:
    from sam2_ros.perception.frame import TrackedObject

STATE_NAMES = {Instance.TRACKED: 'tracked', Instance.OCCLUDED: 'occluded', Instance.LOST: 'lost'}


def draw_overlay(image: np.ndarray, objects: Sequence[TrackedObject], opacity: float) -> np.ndarray:
    """Draw objects on a copy of an image.

    Objects that are not visible are listed in the lower left corner with their state.

    Args:
        image: Image, uint8 RGB (H, W, 3).
        objects: Objects of the image.
        opacity: Opacity of the colours, 0 (outlines only) to 1.

    Returns:
        The picture, uint8 RGB (H, W, 3).
    """
    return draw_objects(image, objects, opacity, lambda item: STATE_NAMES[item.state])
