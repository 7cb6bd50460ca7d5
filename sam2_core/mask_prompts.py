"""A user's mask at the model's size: thin parts, which would vanish there, are thickened or refused.

A model of image_size S writes its masks on a grid of S / 4 cells a side. The published way onto it, resizing with
antialias, keeps what is thicker than a cell; thinner parts fade below the threshold, and a mask of which nothing is
left is no mask. So what vanishes is thickened, at the model's size and by just as much as it takes to survive, as long
as the overlap (IoU) with what was given stays at least MIN_OVERLAP: down to about half a cell. Thinner parts of a mask
are left out as published, and a mask of which too little is left is refused. A mask of which nothing vanishes
is resized as published, bit for bit.
"""
from __future__ import annotations

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sam2_core.prompt_arrays import PromptError
from sam2_core.resizing import at_image_size, stretch

MASK_SCALE, MASK_BIAS = 20.0, -10.0  # a mask of 0..1 enters the memory as -10..10, and leaves a mask prompt so
MIN_OVERLAP = 1 / 3  # IoU of a mask, or of its thickened part, and what the model takes it for
CELL = 4  # pixels of the model's image, side of a cell of its mask logits
WORKABLE_LINE, WORKABLE_DOT = 0.6, 1.25  # cells: a line this thick, a dot this wide is never refused
_SURE = 2.5  # logit: less may fall between the pixels of an image
_STEPS = 5  # of thickening, a pixel each: a line a pixel thick is then sure to survive
_STRAY = 0.02  # share of a part that may be lost though the part survives


def fit_mask(mask: np.ndarray, image_size: int) -> np.ndarray:
    """Return a mask, bool (H, W) with at least one pixel, as bool (image_size, image_size).

    PromptError for a mask too thin to be told from nothing at this size.
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
    """Return masks (B, 1, S, S) of 0 and 1 as the logits that stand for them: float32 (B, 1, S / 4, S / 4)."""
    return F.interpolate(masks_bchw.float() * MASK_SCALE + MASK_BIAS, size=(masks_bchw.shape[-1] // CELL,) * 2,
                         mode='bilinear', antialias=True)


def _taken(square: np.ndarray, height: int, width: int, above: float = 0.0) -> np.ndarray:
    """Return where the model's logits of a mask exceed a threshold, bool (height, width)."""
    return at_image_size(mask_logits(torch.from_numpy(square)[None, None])[0], height, width, above)[0].numpy()


def _lost(square: np.ndarray) -> np.ndarray:
    """Return the pixels of a mask that the model loses: far from what remains, or of an island mostly lost."""
    sure = _taken(square, *square.shape, _SURE)
    count, islands = cv2.connectedComponents(square.view(np.uint8), connectivity=8)
    pixels, left = (np.bincount(islands[mask], minlength=count) for mask in (square, sure & square))
    return square & (~_near(sure, CELL) | (left < 0.5 * pixels)[islands])


def _near(mask: np.ndarray, radius: int) -> np.ndarray:
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1,) * 2)
    return cv2.dilate(mask.view(np.uint8), disc).view(bool)


def _thickened(square: np.ndarray, lost: np.ndarray, cover: np.ndarray) -> np.ndarray:
    """Return the mask with its lost parts thickened, except those that thickening does not keep."""
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
            f'sees the image of {width} x {height} as {image_size} x {image_size} (IoU {overlap:.2f} with what is left '
            f'of it); it must be at least {wide:.3g} pixels wide and {high:.3g} high{everywhere}: crop the image, use '
            f'a larger image_size, or prompt with a box')
