"""Mask prompts at the model's size: thin parts, which would vanish there, are thickened or rejected.

A model of image_size S represents masks on a grid of S / 4 cells per side. The published conversion, resizing with
antialias, keeps parts that are thicker than a cell; thinner parts fade below the threshold, and an empty mask may
remain. Parts that would vanish are therefore thickened, at the model's size and just enough to survive, as long as
their overlap (IoU) with the original stays at least MIN_OVERLAP: down to about half a cell. Thinner parts are dropped,
as in the published conversion, and a mask of which too little remains is rejected. If no part vanishes, the mask is
resized as published, bit for bit.
"""
from __future__ import annotations

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sam2_core.prompt_arrays import PromptError
from sam2_core.resizing import at_image_size, stretch

MASK_SCALE, MASK_BIAS = 20.0, -10.0  # map a mask of 0..1 to logits of -10..10
MIN_OVERLAP = 1 / 3  # IoU of a mask, or of a thickened part, with its form in the model
CELL = 4  # pixels of the model's image, side of a cell of its mask logits
WORKABLE_LINE, WORKABLE_DOT = 0.6, 1.25  # cells; lines this thick and dots this wide are never rejected
_SURE = 2.5  # logit; lower values may fall between the pixels of an image
_STEPS = 5  # of thickening, a pixel each; enough for a line one pixel thick
_STRAY = 0.02  # share of a part that may be lost if the part counts as kept


def fit_mask(mask: np.ndarray, image_size: int) -> np.ndarray:
    """Resize a mask, bool (H, W) with at least one pixel, to bool (image_size, image_size).

    Raise PromptError for a mask that is too thin for this size.
    """
    with torch.inference_mode():
        cover = stretch(torch.from_numpy(mask).float()[None, None], image_size)[0, 0].numpy()
        square = cover >= 0.5
        lost = _lost(square)
        if square.any() and not lost.any():
            return square
        if lost.any():
            square = _thickened(square, lost, cover)
        taken = _taken(square, *mask.shape)
    overlap = np.count_nonzero(taken & mask) / np.count_nonzero(taken | mask)
    if overlap < MIN_OVERLAP:
        raise PromptError(_too_thin(mask, image_size, overlap))
    return square


def mask_logits(masks_bchw: Tensor) -> Tensor:
    """Convert masks (B, 1, S, S) of 0 and 1 to the model's logits, float32 (B, 1, S / 4, S / 4)."""
    return F.interpolate(masks_bchw.float() * MASK_SCALE + MASK_BIAS, size=(masks_bchw.shape[-1] // CELL,) * 2,
                         mode='bilinear', antialias=True)


def _taken(square: np.ndarray, height: int, width: int, above: float = 0.0) -> np.ndarray:
    """Return the pixels in which the model's logits of a mask exceed a threshold, bool (height, width)."""
    return at_image_size(mask_logits(torch.from_numpy(square)[None, None])[0], height, width, above)[0].numpy()


def _lost(square: np.ndarray) -> np.ndarray:
    """Return the pixels that the model loses: far from the remaining mask, or of an island that is mostly lost."""
    size = square.shape[0]
    sure = _taken(square, size, size, _SURE)
    count, islands = cv2.connectedComponents(square.view(np.uint8), connectivity=8)
    pixels, left = (np.bincount(islands[mask], minlength=count) for mask in (square, sure & square))
    return square & (~_near(sure, CELL) | (left < 0.5 * pixels)[islands])


def _near(mask: np.ndarray, radius: int) -> np.ndarray:
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1,) * 2)
    return cv2.dilate(mask.view(np.uint8), disc).view(bool)


def _thickened(square: np.ndarray, lost: np.ndarray, cover: np.ndarray) -> np.ndarray:
    """Return the mask with its lost parts thickened, except parts that would be lost all the same."""
    size = square.shape[0]
    before = _taken(square, size, size)
    thin = square & ~_taken(square, size, size, _SURE) & _near(lost, CELL + 1)
    count, parts = cv2.connectedComponents(thin.view(np.uint8), connectivity=8)
    pixels = np.bincount(parts.ravel(), minlength=count)
    grown, kept = parts, np.zeros(count, bool)
    for step in range(_STEPS):
        wider = cv2.dilate(grown.astype(np.float32), np.ones((2, 2), np.uint8), anchor=(step % 2,) * 2).astype(np.int32)
        grown = np.where((grown > 0) | kept[wider], grown, wider)
        sure = _near(_taken(square | (grown > 0), size, size, _SURE), CELL // 2)
        stray = np.bincount(parts[~sure], minlength=count)
        kept |= stray <= _STRAY * pixels
        if kept[1:].all():
            break
    kept[0] = False
    around = cv2.dilate(grown.astype(np.float32), np.ones((2 * CELL + 1,) * 2, np.uint8)).astype(np.int32)
    new = _taken(square | (grown > 0), size, size) & ~before
    given = np.where(before, 0, cover)
    both, either = (np.bincount(around.ravel(), how(given, new).ravel(), count) for how in (np.minimum, np.maximum))
    kept &= both >= MIN_OVERLAP * either
    return square | kept[grown]


def _too_thin(mask: np.ndarray, image_size: int, overlap: float) -> str:
    height, width = mask.shape
    x, y, across, down = cv2.boundingRect(mask.view(np.uint8))
    cell = np.array([width, height]) * CELL / image_size
    compact = across < 2 * cell[0] and down < 2 * cell[1]
    wide, high = cell * (WORKABLE_DOT if compact else WORKABLE_LINE)
    fault, everywhere = ('small', '') if compact else ('thin', ' everywhere')
    return (f'mask of {np.count_nonzero(mask)} pixels, {across} x {down} at ({x}, {y}): too {fault} for a model that '
            f'sees the image of {width} x {height} as {image_size} x {image_size} (IoU {overlap:.2f} with the '
            f'remaining mask); it must be at least {wide:.3g} pixels wide and {high:.3g} high{everywhere}: crop the '
            f'image, use a larger image_size, or prompt with a box')
