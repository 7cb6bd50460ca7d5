"""The model for a user who names none, and the lines that say which model ran and which one is better."""
from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import torch

from sam2_core.checkpoint import OFFICIAL, CheckpointError, cached_weights, checked_device, verify
from sam2_core.config import variant
from sam2_core.scores import LowScore

PACKAGED = 'nano'
# The published models by rising accuracy and cost; of two releases of the same size, the better one first.
RANKS = (('edgetam',), *((f'sam2.1_hiera_{size}', f'sam2_hiera_{size}')
                         for size in ('tiny', 'small', 'base_plus', 'large')))
_AFTER_NANO = {'cpu': 'edgetam', 'cuda': 'sam2.1_hiera_base_plus'}


class ModelChoice(NamedTuple):
    """The model to load, and why."""

    name: str | None  # None: the variant is recognised from the checkpoint
    checkpoint: Path | None
    device: torch.device
    named: bool  # by the user
    passed_over: tuple[str, ...] = ()  # cached files that cannot be used, with the reason


def choose_model(name: str | None = None, checkpoint: str | Path | None = None,
                 device: str | torch.device | None = None) -> ModelChoice:
    """Return the model that the user names, or else a cached published model, or else nano. Nothing is downloaded.

    Among cached models, a GPU gets the largest, whose masks are best. A CPU gets the cheapest: edgetam and tiny
    already take seconds per image there. SAM 2.1 comes before SAM 2 of the same size. A cached file that differs from
    the published one is passed over.

    Args:
        name: Model that the user names; None means no model.
        checkpoint: Local file that the user names; None means no file.
        device: 'cpu', 'cuda', 'cuda:1', ...; None means CUDA if there is a GPU, else the CPU.

    Raises:
        ValueError: There is no such model, or this machine does not have the device.
    """
    device = checked_device(device)
    if name is not None:
        variant(name)
    path = None if checkpoint is None else Path(checkpoint)
    if name is not None or path is not None:
        return ModelChoice(name, path, device, named=True)
    passed_over: list[str] = []
    for candidate in _order(device):
        try:
            cached = cached_weights(candidate)
            if cached is not None:
                verify(cached, OFFICIAL[candidate])
                return ModelChoice(candidate, None, device, named=False, passed_over=tuple(passed_over))
        except ImportError:  # without huggingface_hub there is no cache
            break
        except (CheckpointError, OSError) as error:
            passed_over.append(f'{candidate} is cached but cannot be used: {error}')
    return ModelChoice(PACKAGED, None, device, named=False, passed_over=tuple(passed_over))


def better_model(choice: ModelChoice) -> str | None:
    """Return a published model with better masks than a chosen one, or None if none is known.

    A larger model that is cached comes first, then the next rank. After nano, that is edgetam on a CPU and base_plus
    on a GPU.
    """
    if choice.checkpoint is not None or choice.name is None:
        return None  # weights of the user's own
    if choice.name == PACKAGED:
        first = _rank(_AFTER_NANO[choice.device.type])
    else:
        rank = _rank(choice.name)
        first = rank + (choice.name == RANKS[rank][0])
    names = [names[0] for names in RANKS[first:]]
    return next((name for name in names if _is_cached(name)), names[0] if names else None)


def option(name: str) -> str:
    """Return the option that runs a published model, with its price."""
    price = []
    if not _is_cached(name):
        size = OFFICIAL[name].size
        price.append(f'downloads {size / 1e6:.0f} MB once' if size else 'downloads it once')
        if find_spec('huggingface_hub') is None:
            price.append('needs pip install huggingface_hub')
    return f'--model {name} ({", ".join(price) or "cached"})'


def model_lines(choice: ModelChoice) -> tuple[str, ...]:
    """Return the lines to print before a model runs: cached files that were passed over, and which model runs."""
    return *choice.passed_over, model_line(choice)


def model_line(choice: ModelChoice) -> str:
    """Return which model runs and, in the same line, the option that runs a better one."""
    if choice.checkpoint is not None:
        return f'model: {choice.checkpoint} on {choice.device}'
    kind = 'packaged, small, made for tests' if choice.name == PACKAGED else (
        'as asked' if choice.named else 'cached')
    line = f'model: {choice.name} ({kind}) on {choice.device}'
    if choice.device.type == 'cpu' and choice.name != PACKAGED:
        line += ', which takes seconds per image'
    better = better_model(choice)
    return line if better is None else f'{line}; better masks: {option(better)}'


def cure(choice: ModelChoice) -> str:
    """Return what to do about masks with a low score, as orders."""
    better = better_model(choice)
    if better is None:
        return 'correct the object with a prompt'
    return f'run a better model, {option(better)}, or correct the object with a prompt'


def low_score_warning(low: LowScore, choice: ModelChoice, label: str = '') -> str:
    """Return the warning about an object whose score has stayed low, with the cures."""
    return (f'object {low.object_id}{f" ({label})" if label else ""}: the score stays low, {low.mean:.2f} on average '
            f'in the frames up to {low.frame}, and its mask may be wrong: {cure(choice)}')


def _order(device: torch.device) -> list[str]:
    return [name for names in (RANKS if device.type == 'cpu' else RANKS[::-1]) for name in names]


def _rank(name: str) -> int:
    return next(rank for rank, names in enumerate(RANKS) if name in names)


def _is_cached(name: str) -> bool:
    try:
        return cached_weights(name) is not None
    except ImportError:
        return False
