"""SAM 2 in plain PyTorch: promptable segmentation and bounded-memory tracking of a live stream."""
from sam2_core.checkpoint import CheckpointError, load_model
from sam2_core.config import VARIANTS, Sam2Config
from sam2_core.everything import Filters, FoundMask, Search
from sam2_core.images import EncodedImage, encode_images
from sam2_core.model import Sam2Model
from sam2_core.prompts import Prompt, PromptError
from sam2_core.segmenter import ImageSegmenter, Segmentation
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
    'Search',
    'Segmentation',
    'StreamTracker',
    'VARIANTS',
    'encode_images',
    'load_model',
]
