"""What a training run is told: its settings, and what changes while it goes on."""
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
    """What changes during training, as functions of the progress 0..1."""

    stages: tuple[tuple[float, int], ...] = ((0.12, 1), (0.32, 4), (0.85, 8), (1.0, 16))  # (until, frames per clip)
    learning_rate: float = 1.2e-3
    warm_up: float = 0.02
    balance: tuple[float, float] = (1.0, 0.05)
    balance_fades: tuple[float, float] = (0.05, 0.15)
    true_masks: tuple[float, float] = (0.85, 0.0)
    true_presence: tuple[float, float] = (1.0, 0.0)
    foreground: tuple[float, float] = (0.3, 0.02)

    @classmethod
    def going_on(cls, learning_rate: float = 5e-4, stages: tuple[tuple[float, int], ...] = ((1.0, 8),)) -> Schedule:
        """For a model that segments and tracks already."""
        return cls(stages, learning_rate, 0.03, (0.05, 0.05), true_masks=(0.1, 0.0), true_presence=(0.3, 0.0),
                   foreground=(0.05, 0.02))

    def frames(self, progress: float) -> int:
        """Frames per clip."""
        return next((frames for until, frames in self.stages if progress < until), self.stages[-1][1])

    def rate(self, progress: float) -> float:
        """Learning rate: up in a line, down in half a cosine."""
        if progress < self.warm_up:
            return self.learning_rate * (progress + 1e-3) / (self.warm_up + 1e-3)
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))

    def set(self, knobs: Knobs, progress: float) -> None:
        """Write the present values into ``knobs``."""
        memory = next((until for until, frames in self.stages if frames == 1), 0.0)  # here memory begins
        since = progress - memory
        knobs.balance.fill_(_fade(progress, *self.balance_fades, *self.balance))
        knobs.true_masks.fill_(_fade(since, 0.02, 0.20, *self.true_masks))
        knobs.true_presence.fill_(_fade(since, 0.05, 0.35, *self.true_presence))
        knobs.foreground.fill_(_fade(progress, 0.1, 0.5, *self.foreground))


def _fade(x: float, start: float, stop: float, first: float, last: float) -> float:
    return first + (last - first) * min(1.0, max(0.0, (x - start) / (stop - start)))


@dataclass(frozen=True)
class TrainConfig:
    """A training run."""

    output: Path
    model: Sam2Config
    steps: int | None = None  # one of steps and minutes
    minutes: float | None = None
    schedule: Schedule = field(default_factory=Schedule)
    chunks: int = 4  # per step and process
    echo: int = 1  # each chunk serves this many steps, each time with other objects, prompts, order and colours
    clip_frames: int = 16  # of the clips that are read; they are cut to what the stage wants
    objects: int = 3
    accumulate: int = 1  # the chunks of a step are done in this many parts, as if each were another process's
    augment: bool = True  # on the device; off where the source has done it
    foreground: bool = True  # an auxiliary loss that helps a new model to start
    frozen: tuple[str, ...] = ()  # parts of the model that are not trained
    rates: tuple[tuple[str, float], ...] = ()  # parts with a learning rate of their own, instead of the schedule's
    weight_decay: float = 0.05
    clip_norm: float = 1.0
    ema: float = 0.999  # 0: no average is kept
    seed: int = 0
    workers: int = 0
    device: str = 'cpu'
    half: bool = False  # bfloat16 autocast
    graph: bool = False  # replay the step as a CUDA graph
    compile: bool = False  # torch.compile
    stop_after: float | None = None  # seconds; save and leave
    save_every: float = 120.0  # seconds
    log_every: int = 20
    validate_every: int = 500
    validation_clips: int = 12
    weights_dtype: torch.dtype = torch.float16

    def __post_init__(self) -> None:
        if (self.steps is None) == (self.minutes is None):
            raise ValueError(f'steps {self.steps} and minutes {self.minutes}: give one of them')
        if self.chunks % self.accumulate:
            raise ValueError(f'chunks {self.chunks}: must be a multiple of accumulate {self.accumulate}')
        if self.graph and self.accumulate > 1:
            raise ValueError(f'accumulate {self.accumulate}: a CUDA graph holds one part only; leave graph off')


def part_of(name: str, parts: Iterable[str]) -> str | None:
    """The longest of ``parts`` that a parameter's dotted name lies in; None when it lies in none."""
    inside = [part for part in parts if name == part or name.startswith(part + '.')]
    return max(inside, key=len, default=None)
