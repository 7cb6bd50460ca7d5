"""Helpers for masks: bounding box, and conversion to bool."""
from __future__ import annotations

import cv2
import numpy as np

_SAMPLE = 100_000  # pixels to search for the values of a rejected mask


def mask_box(mask: np.ndarray) -> tuple[int, int, int, int] | None:
    """Return the box (x0, y0, x1, y1) of a bool mask (H, W), x1 and y1 exclusive, or None if the mask is empty."""
    x, y, width, height = cv2.boundingRect(np.ascontiguousarray(mask).view(np.uint8))
    return (x, y, x + width, y + height) if width else None


def binary_mask(pixels: np.ndarray) -> np.ndarray:
    """Convert a mask of bool, 0 and 1, or 0 and 255, in any numeric type, to bool.

    Raise ValueError for other values: their meaning is ambiguous, and only the caller can choose a threshold.
    """
    if pixels.dtype == bool:
        return pixels
    if pixels.dtype.kind not in 'iuf':
        raise ValueError(f'mask of type {pixels.dtype}: must be bool, 0 and 1, or 0 and 255')
    lowest, highest = (pixels.min(), pixels.max()) if pixels.size else (0, 0)
    if not (np.isfinite(lowest) and np.isfinite(highest)):
        raise ValueError('mask with NaN or infinite values: must be bool, 0 and 1, or 0 and 255')
    on = pixels == highest
    if lowest >= 0 and highest in (0, 1, 255) and (on | (pixels == 0)).all():
        return on if highest else np.zeros(pixels.shape, bool)
    raise ValueError(f'mask with the values {_values(pixels)}: must be bool, 0 and 1, or 0 and 255; '
                     f'{_cure(lowest, highest)}')


def _values(pixels: np.ndarray) -> str:
    """Describe the lowest and highest and a few other values of a mask."""
    stride = -(-pixels.size // _SAMPLE)
    values = np.unique(np.append(pixels.ravel()[::stride], (pixels.min(), pixels.max())))
    shown = list(dict.fromkeys(f'{value:.4g}' for value in values))
    return ', '.join(shown if len(shown) <= 6 else [*shown[:4], '...', shown[-1]])


def _cure(lowest: float, highest: float) -> str:
    if lowest < 0:
        return 'negative values look like logits: pass mask > 0'
    if highest < 1.01:  # resizing overshoots a little
        return 'fractions look like probabilities: pass mask >= 0.5'
    return 'threshold it (mask >= 128 for a grey or lossy picture), or select one object of labels (mask == id)'
