"""Settings of a training run, and the schedule of the values that change while it runs."""
from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import torch

from sam2_core.config import Sam2Config
from sam2_core.training.rollout import Knobs


@dataclass(frozen=True)
class Schedule:
    """Learning rate, clip length and loss settings as functions of the progress 0..1.

    The defaults train a new model. ``balance``, ``true_masks``, ``true_presence`` and ``foreground`` are the first and
    the last value of the knob of that name (see ``rollout.Knobs``), between which it fades linearly.
    """

    stages: tuple[tuple[float, int], ...] = ((0.12, 1), (0.32, 4), (0.85, 8), (1.0, 16))  # (until, frames per clip)
    learning_rate: float = 1.2e-3  # peak
    warm_up: float = 0.02  # share of the run in which the learning rate rises
    balance: tuple[float, float] = (1.0, 0.05)
    balance_fades: tuple[float, float] = (0.05, 0.15)  # progress at which the fade begins and ends
    true_masks: tuple[float, float] = (0.85, 0.0)
    true_presence: tuple[float, float] = (1.0, 0.0)
    foreground: tuple[float, float] = (0.3, 0.02)

    @classmethod
    def going_on(cls, learning_rate: float = 5e-4, stages: tuple[tuple[float, int], ...] = ((1.0, 8),)) -> Schedule:
        """Return a schedule for a model that segments and tracks already."""
        return cls(stages, learning_rate, 0.03, (0.05, 0.05), true_masks=(0.1, 0.0), true_presence=(0.3, 0.0),
                   foreground=(0.05, 0.02))

    def frames(self, progress: float) -> int:
        """Return the number of frames per clip."""
        return next((frames for until, frames in self.stages if progress < until), self.stages[-1][1])

    def rate(self, progress: float) -> float:
        """Return the learning rate, which rises linearly and falls in half a cosine."""
        if progress < self.warm_up:
            return self.learning_rate * (progress + 1e-3) / (self.warm_up + 1e-3)
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))

    def set(self, knobs: Knobs, progress: float) -> None:
        """Write the values at this progress into ``knobs``."""
        memory_starts = next((until for until, frames in self.stages if frames == 1), 0.0)
        since = progress - memory_starts
        knobs.balance.fill_(_fade(progress, *self.balance_fades, *self.balance))
        knobs.true_masks.fill_(_fade(since, 0.02, 0.20, *self.true_masks))
        knobs.true_presence.fill_(_fade(since, 0.05, 0.35, *self.true_presence))
        knobs.foreground.fill_(_fade(progress, 0.1, 0.5, *self.foreground))


def _fade(x: float, start: float, stop: float, first: float, last: float) -> float:
    return first + (last - first) * min(1.0, max(0.0, (x - start) / (stop - start)))


@dataclass(frozen=True)
class TrainConfig:
    """Settings of a training run. Exactly one of ``steps`` and ``minutes`` gives its length."""

    output: Path
    model: Sam2Config
    steps: int | None = None
    minutes: float | None = None
    schedule: Schedule = field(default_factory=Schedule)
    chunks: int = 4  # per step and process
    echo: int = 1  # steps that use a chunk, each with other objects, prompts, order and colours
    clip_frames: int = 16  # length of the clips that are read; they are split to the length of the stage
    objects: int = 3  # per clip
    accumulate: int = 1  # batches per step, computed one after the other as if each were another process's
    augment: bool = True  # on the device; off if the source augments
    foreground: bool = True  # add an auxiliary loss that helps a new model to start
    frozen: tuple[str, ...] = ()  # parts of the model that are not trained
    rates: tuple[tuple[str, float], ...] = ()  # parts with a peak learning rate other than the schedule's
    weight_decay: float = 0.05
    clip_norm: float = 1.0
    ema: float = 0.999  # decay of the weights' moving average; 0 keeps none
    seed: int = 0
    workers: int = 0
    device: str = 'cpu'
    half: bool = False  # bfloat16 autocast
    graph: bool = False  # replay the step as a CUDA graph
    compile: bool = False  # torch.compile
    stop_after: float | None = None  # seconds after which the run saves and ends early; None: no limit
    save_every: float = 120.0  # seconds
    log_every: int = 20  # steps
    validate_every: int = 500  # steps; 0: never
    validation_clips: int = 12  # synthetic clips to validate on if the run is given none
    weights_dtype: torch.dtype = torch.float16

    def __post_init__(self) -> None:
        lengths = [length for length in (self.steps, self.minutes) if length is not None]
        if len(lengths) != 1:
            raise ValueError(f'steps {self.steps} and minutes {self.minutes}: give one of them')
        if lengths[0] <= 0:  # the run would never end
            raise ValueError(f'steps {self.steps}, minutes {self.minutes}: must be above 0')
        if self.chunks % self.accumulate:
            raise ValueError(f'chunks {self.chunks}: must be a multiple of accumulate {self.accumulate}')
        if self.graph and self.accumulate > 1:
            raise ValueError(f'accumulate {self.accumulate}: a CUDA graph holds one batch only; leave graph off')

    def progress(self, step: int, elapsed: float) -> float:
        """Return the progress after ``step`` steps and ``elapsed`` seconds of training; 1 at the end."""
        if self.steps is not None:
            return step / self.steps
        assert self.minutes is not None  # see __post_init__
        return elapsed / (60 * self.minutes)


def part_of(name: str, parts: Iterable[str]) -> str | None:
    """Return the longest of ``parts`` that contains the parameter with this dotted name, or None."""
    inside = [part for part in parts if name == part or name.startswith(part + '.')]
    return max(inside, key=len, default=None)
