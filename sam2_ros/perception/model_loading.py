"""Loading and warm-up of the model that the parameters name."""
from __future__ import annotations

import numpy as np
import torch

from sam2_core import CheckpointError, Prompt, Sam2Model, StreamTracker, load_model
from sam2_ros.perception.load_shedding import half_of_recent_frames
from sam2_ros.runtime.parameters import Parameters

# OSError: no such file, no connection; RuntimeError: the device, often out of memory
LOAD_ERRORS = (CheckpointError, OSError, ValueError, RuntimeError)
MOST_WARMED = 32  # largest batch of objects that is compiled before the first image


def load(chosen: Parameters) -> Sam2Model:
    """Load the model, compile it and fill its caches. Raises one of LOAD_ERRORS."""
    model = load_model(chosen.model or None, chosen.checkpoint or None, chosen.device or None,
                       getattr(torch, chosen.dtype), chosen.image_size or None, compile=chosen.compile,
                       memory_pooling=chosen.memory_pooling, int8_encoder=chosen.int8_encoder)
    if model.compiled:
        model.compiled.warm_up(min(chosen.max_objects, MOST_WARMED),
                               recent_frames=(None, half_of_recent_frames(model)),
                               memory_policy=chosen.memory_policy)
    _warm_up(model, chosen.memory_policy)
    return model


def _warm_up(model: Sam2Model, memory_policy: str) -> None:
    """Run one prompted and one tracked step."""
    size = model.image_size
    image = np.zeros((size, size, 3), np.uint8)
    tracker = StreamTracker(model, memory_policy=memory_policy)
    tracker.step(image, [Prompt(1, box=(size / 4, size / 4, size / 2, size / 2))])
    tracker.step(image)
