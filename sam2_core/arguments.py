"""Types for argparse that check a value: argparse names the option, the error names the value and its bounds."""
from __future__ import annotations

import math
from argparse import ArgumentTypeError
from collections.abc import Callable

import torch


def whole(least: int, most: int | None = None) -> Callable[[str], int]:
    """Return a type for whole numbers of at least ``least`` and at most ``most``."""
    bounds = f'a whole number of at least {least}' if most is None else f'a whole number from {least} to {most}'

    def read(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise ArgumentTypeError(f'{text}: must be {bounds}') from None
        if value < least or (most is not None and value > most):
            raise ArgumentTypeError(f'{text}: must be {bounds}')
        return value
    return read


def number(least: float = -math.inf, above: float = -math.inf, below: float = math.inf) -> Callable[[str], float]:
    """Return a type for finite numbers within these bounds."""
    bounds = ' and '.join(f'{words} {bound:g}' for words, bound in (
        ('at least', least), ('above', above), ('below', below)) if math.isfinite(bound))

    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not (math.isfinite(value) and value >= least and above < value < below):
            raise ArgumentTypeError(f'{text}: must be a number {bounds}'.rstrip())
        return value
    return read


def rate(text: str) -> tuple[str | None, float]:
    """Read ``RATE`` or ``PART=RATE``: return the part, None for all parts, and the learning rate."""
    part, _, value = text.rpartition('=')
    try:
        return part or None, number(least=0)(value)
    except ArgumentTypeError:
        raise ArgumentTypeError(f'{text}: must be RATE or PART=RATE, such as 1e-5 or image_encoder=3e-6') from None


def device(text: str) -> str:
    """Read the name of a device that this machine has: cpu, cuda or cuda:N."""
    known = ['cpu', *(f'cuda:{i}' for i in range(torch.cuda.device_count()))]
    refusal = ArgumentTypeError(f'{text}: this machine has {", ".join(known)}')
    try:
        wanted = torch.device(text)
    except RuntimeError:
        raise refusal from None
    if wanted.type == 'cuda' and f'cuda:{wanted.index or 0}' not in known:
        raise refusal
    return text
