"""SAM 2 in plain PyTorch: promptable segmentation and bounded-memory tracking of a live stream."""
from sam2_core.checkpoint import CheckpointError, load_model
from sam2_core.config import VARIANTS, Sam2Config
from sam2_core.everything import Filters, FoundMask
from sam2_core.model import Sam2Model
from sam2_core.prompts import Prompt, PromptError
from sam2_core.segmenter import EncodedImage, ImageSegmenter, Segmentation
from sam2_core.tracker import FrameResult, ObjectResult, StreamTracker

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
    'Segmentation',
    'StreamTracker',
    'VARIANTS',
    'load_model',
]
