"""Images in, masks out: between a camera's pixels and the model's square."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from sam2_core.inference import own_precision
from sam2_core.mask_prompts import fit_mask
from sam2_core.model import ImageFeatures, Sam2Model
from sam2_core.resizing import at_image_size, stretch
from sam2_core.transfer import to_device, to_host

IMAGE_MEAN = (0.485, 0.456, 0.406)
IMAGE_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True, eq=False)
class EncodedImage:
    """An image's features; as many prompts as you like can be answered from them, and trackers take them as well."""

    features: ImageFeatures  # of one image
    height: int
    width: int

    def features_for(self, model: Sam2Model) -> ImageFeatures:
        """Return the features in the number type that ``model`` computes in now."""
        return ImageFeatures(*(part.to(model.dtype) for part in self.features))


@torch.inference_mode()
def encode_images(model: Sam2Model, images: Sequence[np.ndarray | Tensor]) -> list[EncodedImage]:
    """Encode several images, uint8 RGB (H, W, 3), in one run of the encoder. They may differ in size.

    TypeError or ValueError for anything else, before any is encoded. The features of one image keep those of the
    others in memory.
    """
    sizes = [check_image(image) for image in images]
    if not sizes:
        return []
    with own_precision(model):
        features = model.stages.encode_image(torch.cat([to_model(model, image) for image in images]))
    features = [part.to(model.dtype) for part in features]  # autocast returns its own type
    return [EncodedImage(ImageFeatures(*(part[row:row + 1] for part in features)), height, width)
            for row, (height, width) in enumerate(sizes)]


def check_image(image: np.ndarray | Tensor) -> tuple[int, int]:
    """Height and width of an image, if it is uint8 RGB (H, W, 3); TypeError or ValueError otherwise."""
    if not isinstance(image, (np.ndarray, Tensor)):
        raise TypeError(f'image of type {type(image).__name__}: must be a numpy array or torch tensor, uint8 (H, W, 3)')
    if image.dtype not in (np.uint8, torch.uint8):
        raise TypeError(f'image of dtype {image.dtype}: must be uint8, RGB, 0..255')
    if image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise ValueError(f'image of shape {tuple(image.shape)}: must be (H, W, 3), RGB')
    return int(image.shape[0]), int(image.shape[1])


def to_model(model: Sam2Model, image: np.ndarray | Tensor) -> Tensor:
    """uint8 RGB (H, W, 3) -> float (1, 3, S, S) on the model's device, stretched to the square and normalised.

    Bilinear with antialias, as the published image predictor does; values are scaled afterwards, where they are fewer.
    """
    if isinstance(image, np.ndarray):
        image = torch.from_numpy(image if image.flags.writeable and image.flags.c_contiguous else image.copy())
    pixels = stretch(to_device(image, model.device).permute(2, 0, 1)[None].float(), model.image_size)
    mean, std = _mean_and_deviation(model.device)
    return ((pixels - mean) / std).to(model.dtype)


@lru_cache(maxsize=16)
def _mean_and_deviation(device: torch.device) -> tuple[Tensor, Tensor]:
    with torch.inference_mode(False):
        return tuple(torch.tensor(channels, dtype=torch.float32, device=device)[:, None, None] * 255
                     for channels in (IMAGE_MEAN, IMAGE_STD))


def mask_to_model(model: Sam2Model, mask: np.ndarray) -> Tensor:
    """Return a user's bool mask (H, W) as float32 (1, 1, S, S) of 0 and 1, stretched as the image is.

    On any device it is computed on the CPU, so that every check of a mask comes to the same.
    PromptError for a mask too thin for the model.
    """
    return to_device(fit_mask(mask, model.image_size), model.device)[None, None].float()


def to_image(logits: Tensor, height: int, width: int) -> np.ndarray:
    """Mask logits (B, h, w) -> bool masks (B, height, width) in the image's pixels."""
    return to_host(at_image_size(logits, height, width))[0]
