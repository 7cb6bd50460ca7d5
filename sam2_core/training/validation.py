"""Validation of a run: figures of the averaged model on clips that are not trained on."""
from __future__ import annotations

from collections.abc import Sequence

import torch

from sam2_core.training.clips import Clip, PackedClips, pack
from sam2_core.training.data import SyntheticClips
from sam2_core.training.learner import Learner
from sam2_core.training.rollout import Knobs, mean_figures

VALIDATION_SEED = 1000


class Validation:
    """Clips that a run is validated on, by default synthetic ones of a seed that no training uses."""

    def __init__(self, learner: Learner, clips: Sequence[Clip]) -> None:
        """Pack the clips. Without any, synthetic ones are made at the first measurement."""
        self._learner = learner
        self._batches = [self._on_device(pack([clip])) for clip in clips]

    @torch.no_grad()
    def measure(self) -> dict[str, float]:
        """Return loss, J and presence of the averaged model, with the same prompts at every call."""
        if not self._batches:
            config = self._learner.config
            source = SyntheticClips(VALIDATION_SEED + config.seed, 8, config.model.image_size, config.validation_clips,
                                    textures=30)
            self._batches = [self._on_device(source[0])]
        torch.manual_seed(VALIDATION_SEED)
        knobs = Knobs.on(self._learner.device)
        found = [self._learner.losses(self._learner.average, clips, knobs)[1] for clips in self._batches]
        return {name: float(value) for name, value in mean_figures(found).items()}

    def _on_device(self, clips: PackedClips) -> PackedClips:
        return PackedClips(*(part.to(self._learner.device) for part in clips))
