"""Pixels of a detector's input, which may have another size than the camera image."""
from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sam2_ros.runtime.parameters import Parameters

if TYPE_CHECKING:
    from vision_msgs.msg import BoundingBox2D

Box = tuple[float, float, float, float]  # (x0, y0, x1, y1), pixels
OVERHANG, LEAST_OVERHANG = 0.05, 2.0  # part of a side, and pixels, that a box may reach outside
UPRIGHT = 1e-3  # greatest sine of twice the angle of a box that counts as upright


@dataclass(frozen=True)
class ImageFit:
    """Position of a camera image in the pixels of a detector's input."""

    width: int  # of the camera image, pixels
    height: int
    scale: tuple[float, float] = (1.0, 1.0)  # pixels of the detector per pixel of the image, in x and y
    offset: tuple[float, float] = (0.0, 0.0)  # of the image's top left corner, detector pixels
    input: str = ''  # size and fit of the detector's input in words; empty: the image itself

    @classmethod
    def of(cls, parameters: Parameters, height: int, width: int) -> ImageFit:
        """Return the fit that the parameters describe for images of this size (pixels)."""
        inner_width, inner_height = parameters.detections_width, parameters.detections_height
        if not inner_width:
            return cls(width, height)
        ratios = inner_width / width, inner_height / height
        fit = parameters.detections_fit
        scale = ratios if fit == 'stretch' else (max(ratios),) * 2 if fit == 'crop' else (min(ratios),) * 2
        offset = (0.0, 0.0) if fit == 'corner' else ((inner_width - scale[0] * width) / 2,
                                                     (inner_height - scale[1] * height) / 2)
        return cls(width, height, scale, offset, f'{inner_width} x {inner_height} ({fit})')

    def to_image(self, box: Box) -> Box:
        """Return an upright box in pixels of the camera image."""
        (x, y), (across, down) = self.offset, self.scale
        return (box[0] - x) / across, (box[1] - y) / down, (box[2] - x) / across, (box[3] - y) / down

    def covers(self, box: Box) -> bool:
        """Return whether an upright box in detector pixels lies within the camera image, but for a small overhang."""
        x0, y0, x1, y1 = self.to_image(box)
        return all(-room <= low and high <= side + room
                   for low, high, side in ((x0, x1, self.width), (y0, y1, self.height))
                   for room in (max(LEAST_OVERHANG, OVERHANG * side),))

    @property
    def why_not(self) -> str:
        """Return why a box that is not covered cannot be used, with the cure."""
        where = f'the image of {self.width} x {self.height} pixels'
        rule = f'must lie within {where}' + (f' in a detector input of {self.input}' if self.input else '')
        return (f'{rule}; no detection of this message is used, as all are in another pixel scale; set '
                f'detections_width, detections_height and detections_fit to the input of the detector, or have the '
                f'detector scale its boxes to the image')


def upright(box: BoundingBox2D) -> Box:
    """Return the upright box (x0, y0, x1, y1) around a box that may be rotated."""
    cosine, sine = abs(math.cos(box.center.theta)), abs(math.sin(box.center.theta))
    width = box.size_x * cosine + box.size_y * sine
    height = box.size_x * sine + box.size_y * cosine
    x, y = box.center.position.x, box.center.position.y
    return x - width / 2, y - height / 2, x + width / 2, y + height / 2


def anchor(box: BoundingBox2D) -> Box:
    """Return the part of a box that the detector saw: all of an upright box, the centre of a rotated one.

    The corners of a rotated box may lie outside the image although its object is cropped by the edge.
    """
    if abs(math.sin(2 * box.center.theta)) < UPRIGHT:
        return upright(box)
    x, y = box.center.position.x, box.center.position.y
    return x, y, x, y
