"""Decoder of RVL, the lossless run-length code of depth images (Wilson, "Fast Lossless Depth Image Compression", 2017).

A stream of numbers: how many pixels are 0, how many follow that are not, and of each of these the difference to the
last one, zigzag coded; then the next run. A number is written in groups of three bits, the lowest first, each in a
nibble whose highest bit says that another group follows. Nibbles fill words of 32 bits from the top; words are in
little-endian byte order.
"""
from __future__ import annotations

import numpy as np

from sam2_ros.messages.encodings import ImageError

_LONGEST = 11  # nibbles of a number; 33 bits suffice for every count


def decode_rvl(data: bytes | memoryview, count: int) -> np.ndarray:
    """Return ``count`` pixels, uint16 (count,).

    No more memory is taken than the data and the pixels need, and the pixels only after all runs are known to fit.

    Args:
        data: The stream. Data behind the last pixel are ignored.
        count: Number of pixels, which the stream itself does not tell.

    Raises:
        ImageError: The stream ends early, has runs for more pixels, or values that no 16-bit image has.
    """
    numbers = _numbers(data)
    starts = _runs(numbers, count)
    zeros, filled = numbers[starts], numbers[starts + 1]
    stop = int(starts[-1] + 2 + filled[-1])
    differences = np.ones(stop, bool)
    differences[starts] = differences[starts + 1] = False
    coded = numbers[:stop][differences]
    values = np.cumsum((coded >> 1) ^ -(coded & 1))
    if len(values) and (values.min() < 1 or values.max() > 65535):
        raise ImageError('the values leave the range of 1 to 65535: the stream is damaged; send it whole')
    pixels = np.zeros(count, np.uint16)
    before = np.cumsum(filled) - filled  # values before each run
    first = np.cumsum(zeros) + before  # place of the first value of each run
    pixels[np.repeat(first - before, filled) + np.arange(len(values))] = values
    return pixels


def _numbers(data: bytes | memoryview) -> np.ndarray:
    """Return all complete numbers of a stream, int64 (N,)."""
    words = np.frombuffer(data, '<u4', len(data) // 4).astype('>u4').view(np.uint8)
    nibbles = np.empty(2 * len(words), np.uint8)
    nibbles[0::2], nibbles[1::2] = words >> 4, words & 15
    ends = np.flatnonzero(nibbles < 8)
    starts = np.concatenate([[0], ends[:-1] + 1]) if len(ends) else ends
    nibbles &= 7
    numbers = nibbles[starts].astype(np.int64)
    longer, at = np.flatnonzero(ends > starts), 1
    while len(longer):
        if at == _LONGEST:
            raise ImageError(f'a number has more than {_LONGEST} groups of bits: the stream is damaged; send it whole')
        numbers[longer] |= nibbles[starts[longer] + at].astype(np.int64) << 3 * at
        longer = longer[ends[longer] > starts[longer] + at]
        at += 1
    return numbers


def _runs(numbers: np.ndarray, count: int) -> np.ndarray:
    """Return the index of the first number of each run, until ``count`` pixels are complete."""
    found, at, pixels, view = [], 0, 0, memoryview(numbers.data)
    while pixels < count:
        if at + 2 > len(view):
            raise ImageError(f'ends after {pixels} of {count} pixels: cut off; send it whole')
        filled = view[at + 1]
        pixels += view[at] + filled
        found.append(at)
        at += 2 + filled
    if pixels > count:
        raise ImageError(f'runs of {pixels} pixels in an image of {count}: the stream is damaged; send it whole')
    if at > len(view):
        raise ImageError(f'ends {at - len(view)} values before the last pixel: cut off; send it whole')
    return np.array(found, np.int64)
