"""Run-length masks of COCO and SA-V: runs of 0 and 1 in turn, column by column."""
from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def decode(counts: str | bytes | Sequence[int], height: int, width: int) -> np.ndarray:
    """Decode runs, given as numbers or as COCO's compressed text, to a bool mask (height, width).

    Raises ValueError for runs that do not fit this size.
    """
    runs = np.asarray(_expand(counts) if isinstance(counts, (str, bytes)) else counts)
    if runs.ndim != 1 or len(runs) and runs.dtype.kind not in 'iu':
        raise ValueError('run lengths must be whole numbers')
    if (runs < 0).any() or runs.sum() != height * width:
        raise ValueError(f'run lengths add up to {runs.sum()}, must be {height} x {width} = {height * width}')
    values = np.arange(len(runs)) % 2 == 1
    return np.repeat(values, runs).reshape(width, height).T


def encode(mask: np.ndarray) -> str:
    """Encode a bool mask (height, width) as COCO's compressed text."""
    pixels = mask.T.reshape(-1)
    ends = np.flatnonzero(np.diff(pixels)) + 1
    borders = np.concatenate(([0], ends, [len(pixels)]))
    runs = np.diff(borders).tolist()
    return _compress([0, *runs] if len(pixels) and pixels[0] else runs)


def _compress(runs: list[int]) -> str:
    """Return the compressed text of runs, see ``_expand``."""
    text = []
    for i, run in enumerate(runs):
        value = run - runs[i - 2] if i > 2 else run
        more = True
        while more:
            code, value = value & 31, value >> 5
            more = value != (-1 if code & 16 else 0)
            text.append(chr(48 + code + 32 * more))
    return ''.join(text)


def _expand(text: str | bytes) -> list[int]:
    """Return the numbers in compressed text.

    A number is stored in groups of five bits from the low end; from the fourth on, as the difference from the number
    two places before.
    """
    runs: list[int] = []
    value = shift = 0
    for byte in text.encode('ascii', 'replace') if isinstance(text, str) else text:
        code = byte - 48
        if not 0 <= code < 64:
            raise ValueError(f'character {chr(byte)!r} does not occur in run-length text')
        value |= (code & 31) << shift
        shift += 5
        if code & 32:  # more groups follow
            continue
        if code & 16:
            value -= 1 << shift
        runs.append(value + runs[-2] if len(runs) > 2 else value)
        value = shift = 0
    if shift:
        raise ValueError('run-length text is cut off')
    return runs
