"""Folder in which a run keeps its state, its weights, its log and its curves."""
from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from sam2_core.training import curves, run_state
from sam2_core.training.divergence import Diverged
from sam2_core.training.learner import Learner


@dataclass
class Position:
    """Position of a run, saved with its weights."""

    step: int = 0
    elapsed: float = 0.0  # seconds of training
    stage_frames: int = 0  # frames per clip at the last step


class RunFolder:
    """Output folder of a run. Its files change all at once, whenever the process is killed."""

    def __init__(self, path: Path, learner: Learner) -> None:
        self.path = path
        self.log = path / 'log.jsonl'
        self._state = path / 'checkpoint'
        self._learner = learner

    def resume(self) -> Position:
        """Load the saved state of the run, if there is one, and return the position to go on from.

        Raises ValueError if a saved value is not finite.
        """
        learner = self._learner
        state = run_state.load_state(self._state, learner.saved, learner.optimizer, learner.names)
        if state is None:
            return Position()
        if spoilt := learner.not_finite():
            raise ValueError(f'{self._state}: {spoilt} holds values that are not finite: start again with another '
                             f'--output')
        return Position(state['step'], state['elapsed'], state['stage_frames'])

    def save(self, position: Position) -> None:
        """Write the state to go on from, and the averaged weights as a model file.

        Raises Diverged, and overwrites nothing, if any value is not finite.
        """
        learner = self._learner
        if spoilt := learner.not_finite():
            raise Diverged(position.step, {spoilt: math.nan})
        run_state.save_state(self._state, learner.saved, learner.optimizer, learner.names,
                             {'step': position.step, 'elapsed': position.elapsed,
                              'stage_frames': position.stage_frames})
        run_state.save_weights(self.path / 'weights.safetensors', learner.average, learner.config.weights_dtype)

    def draw_curves(self) -> None:
        """Draw the curves of the log."""
        curves.draw(self.log, self.path / 'curves.png')
