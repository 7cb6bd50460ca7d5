"""Overlay for people: each object in its own colour, with an outline and its name."""
from __future__ import annotations

import colorsys
from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

import cv2
import numpy as np

FONT = cv2.FONT_HERSHEY_SIMPLEX
BLACK, WHITE = (0, 0, 0), (255, 255, 255)
Box = tuple[int, int, int, int]


class Drawable(Protocol):
    """One object of a picture."""

    @property
    def id(self) -> int:
        """Id of the object, which selects its colour."""

    @property
    def label(self) -> str:
        """Name of the object; empty if it has none."""

    @property
    def score(self) -> float:
        """Predicted IoU, 0..1."""

    @property
    def box(self) -> Box | None:
        """Box (x0, y0, x1, y1) of the mask in pixels, x1 and y1 exclusive; None if the object is not visible."""

    @property
    def mask(self) -> np.ndarray | None:
        """Mask, bool (H, W); None if the object is not visible."""


Object = TypeVar('Object', bound=Drawable)


def colour(object_id: int) -> tuple[int, int, int]:
    """Return the colour of an object id, RGB. It never changes; neighbouring ids have very different hues."""
    hue = object_id * 0.618034 % 1  # steps of the golden ratio
    red, green, blue = (round(255 * value) for value in colorsys.hsv_to_rgb(hue, 0.85, 1.0))
    return red, green, blue


def draw_objects(image: np.ndarray, objects: Sequence[Object], opacity: float,
                 absence: Callable[[Object], str]) -> np.ndarray:
    """Draw objects on a copy of an image.

    Objects that are not visible are listed in the lower left corner.

    Args:
        image: Image, uint8 RGB (H, W, 3).
        objects: Objects of the image.
        opacity: Opacity of the colours, 0 (outlines only) to 1.
        absence: Function that returns what to write beside the name of an object that is not visible.

    Returns:
        The picture, uint8 RGB (H, W, 3).
    """
    canvas = image.copy()
    visible = sorted(((item, item.box, item.mask) for item in objects if item.box is not None
                      and item.mask is not None), key=lambda each: each[0].score)
    for item, box, mask in visible:
        _draw_mask(canvas, box, mask, colour(item.id), opacity)
    scale = max(0.4, image.shape[0] / 1000)
    for item, (x0, y0, _, _), _ in visible:
        _draw_text(canvas, f'{_name(item)} {item.score:.2f}', (x0, y0), colour(item.id), scale)
    bottom = image.shape[0]
    for item in objects:
        if item.box is None:
            bottom = _draw_text(canvas, f'{_name(item)} {absence(item)}', (0, bottom), colour(item.id), scale)
    return canvas


def _name(item: Drawable) -> str:
    return f'{item.id} {item.label}'.strip()


def _draw_mask(canvas: np.ndarray, box: tuple[int, int, int, int], mask: np.ndarray, shade: tuple[int, int, int],
               opacity: float) -> None:
    x0, y0, x1, y1 = box
    crop, visible = canvas[y0:y1, x0:x1], mask[y0:y1, x0:x1].astype(np.uint8)
    if opacity:
        tint = np.empty_like(crop)
        tint[:] = shade
        np.copyto(crop, cv2.addWeighted(crop, 1 - opacity, tint, opacity, 0), where=visible[..., None].view(bool))
    outlines, _ = cv2.findContours(visible, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE, offset=(x0, y0))
    width = max(1, round(canvas.shape[0] / 360))
    cv2.drawContours(canvas, outlines, -1, BLACK, width + 2, cv2.LINE_AA)
    cv2.drawContours(canvas, outlines, -1, shade, width, cv2.LINE_AA)


def _draw_text(canvas: np.ndarray, text: str, corner: tuple[int, int], background: tuple[int, int, int],
               scale: float) -> int:
    """Write text on a plate and return the upper edge of the plate.

    The lower left corner of the plate is ``corner``, moved so that the plate lies inside the image.
    """
    text = text.encode('ascii', 'replace').decode()  # the font has nothing else; OpenCV crashes on lone surrogates
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
