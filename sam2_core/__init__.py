"""SAM 2 in plain PyTorch: promptable segmentation, and tracking in a live stream with bounded memory.

The names below are imported on first use, so that a program that only measures masks (``sam2_core.metrics``) does not
load PyTorch.
"""
from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # editors and type checkers do not run __getattr__
    from sam2_core.automatic_masks import Filters, FoundMask, Search
    from sam2_core.checkpoint import CheckpointError, load_model
    from sam2_core.config import VARIANTS, Sam2Config
    from sam2_core.images import EncodedImage, encode_images
    from sam2_core.model import Sam2Model
    from sam2_core.offline.prompts import VideoPrompt
    from sam2_core.offline.tracking import track_video
    from sam2_core.prompts import Prompt, PromptError
    from sam2_core.segmenter import ImageSegmenter, Segmentation
    from sam2_core.state_files import load_state, save_state
    from sam2_core.tracker import FrameResult, ObjectResult, StreamTracker
    from sam2_core.tracker_state import TrackerStateError

__version__ = '0.1.0'  # must equal the version in package.xml

__all__ = [
    'CheckpointError',
    'EncodedImage',
    'Filters',
    'FoundMask',
    'FrameResult',
    'ImageSegmenter',
    'ObjectResult',
    'Prompt',
    'PromptError',
    'Sam2Config',
    'Sam2Model',
    'Search',
    'Segmentation',
    'StreamTracker',
    'TrackerStateError',
    'VARIANTS',
    'VideoPrompt',
    'encode_images',
    'load_model',
    'load_state',
    'save_state',
    'track_video',
]
_NAMES = {
    'checkpoint': ('CheckpointError', 'load_model'), 'config': ('VARIANTS', 'Sam2Config'),
    'automatic_masks': ('Filters', 'FoundMask', 'Search'), 'images': ('EncodedImage', 'encode_images'),
    'model': ('Sam2Model',), 'offline.prompts': ('VideoPrompt',), 'offline.tracking': ('track_video',),
    'prompts': ('Prompt', 'PromptError'), 'segmenter': ('ImageSegmenter', 'Segmentation'),
    'state_files': ('load_state', 'save_state'), 'tracker': ('FrameResult', 'ObjectResult', 'StreamTracker'),
    'tracker_state': ('TrackerStateError',),
}


def __getattr__(name: str) -> object:
    for module, names in _NAMES.items():
        if name in names:
            value = globals()[name] = getattr(import_module(f'{__name__}.{module}'), name)
            return value
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
