"""The picture for people: every object in a colour of its own, outlined and named."""
from __future__ import annotations

import colorsys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import cv2
import numpy as np

from sam2_ros.msg import Instance

if TYPE_CHECKING:
    from sam2_ros.perception.frame import TrackedObject

FONT = cv2.FONT_HERSHEY_SIMPLEX
STATE_NAMES = {Instance.TRACKED: 'tracked', Instance.OCCLUDED: 'occluded', Instance.LOST: 'lost'}
BLACK, WHITE = (0, 0, 0), (255, 255, 255)


def colour(object_id: int) -> tuple[int, int, int]:
    """RGB of an object, the same for an id for ever; neighbouring ids are far apart on the colour circle."""
    hue = object_id * 0.618034 % 1  # steps of the golden ratio
    return tuple(round(255 * value) for value in colorsys.hsv_to_rgb(hue, 0.85, 1.0))


def draw_overlay(image: np.ndarray, objects: Sequence[TrackedObject], opacity: float) -> np.ndarray:
    """A copy of ``image``, uint8 RGB (H, W, 3), with the visible objects coloured and all of them named.

    opacity: 0 (outline only) to 1. Objects out of sight are listed in the lower left corner.
    """
    canvas = image.copy()
    visible = sorted((item for item in objects if item.box is not None), key=lambda item: item.score)
    for item in visible:
        _draw_mask(canvas, item, opacity)
    scale = max(0.4, image.shape[0] / 1000)
    for item in visible:
        x0, y0, _, _ = item.box
        _draw_text(canvas, f'{_name(item)} {item.score:.2f}', (x0, y0), colour(item.id), scale)
    bottom = image.shape[0]
    for item in objects:
        if item.box is None:
            bottom = _draw_text(canvas, f'{_name(item)} {STATE_NAMES[item.state]}', (0, bottom), colour(item.id), scale)
    return canvas


def _name(item: TrackedObject) -> str:
    return f'{item.id} {item.label}'.strip()


def _draw_mask(canvas: np.ndarray, item: TrackedObject, opacity: float) -> None:
    x0, y0, x1, y1 = item.box
    crop, mask = canvas[y0:y1, x0:x1], item.mask[y0:y1, x0:x1].astype(np.uint8)
    if opacity:
        tint = np.empty_like(crop)
        tint[:] = colour(item.id)
        np.copyto(crop, cv2.addWeighted(crop, 1 - opacity, tint, opacity, 0), where=mask[..., None].view(bool))
    outlines, _ = cv2.findContours(mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE, offset=(x0, y0))
    width = max(1, round(canvas.shape[0] / 360))
    cv2.drawContours(canvas, outlines, -1, BLACK, width + 2, cv2.LINE_AA)
    cv2.drawContours(canvas, outlines, -1, colour(item.id), width, cv2.LINE_AA)


def _draw_text(canvas: np.ndarray, text: str, corner: tuple[int, int], background: tuple[int, int, int],
               scale: float) -> int:
    """Write on a plate whose lower left corner is ``corner``, moved so that it is inside the image; its upper edge."""
    text = text.encode('ascii', 'replace').decode()  # the font has no more, and half a character makes OpenCV crash
    thickness = max(1, round(scale * 1.6))
    (width, height), baseline = cv2.getTextSize(text, FONT, scale, thickness)
    pad = round(4 * scale)
    plate_width, plate_height = width + 2 * pad, height + baseline + 2 * pad
    left = max(0, min(corner[0], canvas.shape[1] - plate_width))
    top = max(0, min(corner[1], canvas.shape[0]) - plate_height)
    cv2.rectangle(canvas, (left, top), (left + plate_width, top + plate_height), background, cv2.FILLED)
    red, green, blue = background
    ink = BLACK if 0.299 * red + 0.587 * green + 0.114 * blue > 110 else WHITE
    cv2.putText(canvas, text, (left + pad, top + pad + height), FONT, scale, ink, thickness, cv2.LINE_AA)
    return top
