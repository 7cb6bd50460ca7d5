"""Models with other options than their variant has."""
import copy
from dataclasses import replace

from sam2_core import Sam2Model


def with_masks_alone(model: Sam2Model) -> Sam2Model:
    """Return a model with the same weights that accepts a mask without points or a box, as published models do."""
    other = copy.copy(model)
    other.config = replace(model.config, masks_alone=True)
    return other
