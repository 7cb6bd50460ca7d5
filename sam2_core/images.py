"""Conversion of images and masks between camera pixels and the square input of the model."""
from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn

from sam2_core.inference import own_precision
from sam2_core.mask_prompts import fit_mask
from sam2_core.model import Sam2Model
from sam2_core.resizing import at_image_size, stretch
from sam2_core.tensors import ImageFeatures
from sam2_core.transfer import to_device, to_host

IMAGE_MEAN = (0.485, 0.456, 0.406)
IMAGE_STD = (0.229, 0.224, 0.225)
_WEIGHTS: WeakKeyDictionary[nn.Module, list[Tensor]] = WeakKeyDictionary()  # by image encoder


class Maker:
    """Reference to the model that encoded an image, and to its state at that time.

    It keeps neither the model nor its weights alive.
    """

    def __init__(self, model: Sam2Model) -> None:
        self._model: Callable[[], Sam2Model | None] = weakref.ref(model)
        self._state: tuple[object, ...] | None = _state(model)

    def check(self, model: Sam2Model) -> None:
        """Raise ValueError unless ``model`` encoded the image and has not changed since."""
        if self._model() is not model:
            raise ValueError(f'image encoded by another model, or in another process: encode it with the model that '
                             f'will use it, {describe(model)}')
        if self._state != _state(model):
            raise ValueError(f'image encoded before {describe(model)} got other weights or another '
                             f'image_size: encode it again')

    def __deepcopy__(self, memo: dict[int, object]) -> Maker:
        return self

    def __reduce__(self) -> tuple[Callable[[], Maker], tuple[()]]:
        return _maker_elsewhere, ()  # another process cannot identify the model


def _maker_elsewhere() -> Maker:
    maker = Maker.__new__(Maker)
    maker._model, maker._state = _no_model, None
    return maker


def _no_model() -> None:
    """Represent a model of another process."""


@dataclass(frozen=True, eq=False)
class EncodedImage:
    """Features of an image, for any number of prompts, and for trackers.

    Only the model that encoded the image accepts it, and only while its weights are unchanged.

    Attributes:
        features: Features of one image.
        height: Height of the image in pixels.
        width: Width of the image in pixels.
        maker: The model. None for features that the caller has assembled; then only their shapes are checked.
    """

    features: ImageFeatures
    height: int
    width: int
    maker: Maker | None = field(default=None, repr=False)

    def features_for(self, model: Sam2Model) -> ImageFeatures:
        """Return the features on the present device, and in the present type, of ``model``."""
        return ImageFeatures(*(part.to(model.device, model.dtype) for part in self.features))


@torch.inference_mode()
def encode_images(model: Sam2Model, images: Sequence[np.ndarray | Tensor]) -> list[EncodedImage]:
    """Encode several images in one run of the encoder.

    The features of all images share memory, which is freed with the last of them.

    Args:
        model: The model to run.
        images: uint8 RGB (H, W, 3); sizes may differ.

    Raises:
        TypeError: An image has another type.
        ValueError: An image has another shape.
    """
    sizes = [check_image(image) for image in images]
    if not sizes:
        return []
    with own_precision(model):
        encoded = model.stages.encode_image(torch.cat([to_model(model, image) for image in images]))
    features = [part.to(model.dtype) for part in encoded]  # autocast returns its own type
    maker = Maker(model)
    return [EncodedImage(ImageFeatures(*(part[row:row + 1] for part in features)), height, width, maker)
            for row, (height, width) in enumerate(sizes)]


def check_encoded(model: Sam2Model, image: EncodedImage) -> tuple[int, int]:
    """Return height and width of an encoded image.

    Raise TypeError for any other object, ValueError for an image that another model has encoded.
    """
    if not isinstance(image, EncodedImage):
        raise TypeError(f'image of type {type(image).__name__}: must be an EncodedImage; encode it first')
    if image.maker is not None:
        image.maker.check(model)
        return image.height, image.width
    size, dim = model.image_size, model.config.d_model
    wanted = [(1, dim // share, size // stride, size // stride) for share, stride in ((1, 16), (4, 8), (8, 4))]
    shapes = [tuple(part.shape) for part in image.features]
    if shapes != wanted:
        raise ValueError(f'features of shapes {shapes}: must be {wanted} for {describe(model)}; encode the image with '
                         f'this model')
    return image.height, image.width


def describe(model: Sam2Model) -> str:
    """Return name, image size, type and device of a model for error messages."""
    return f'{model.name} ({model.image_size} pixels, {model.dtype}, {model.device})'


def _state(model: Sam2Model) -> tuple[object, ...]:
    """Return a value that changes with the weights, also if they change in place, but not with device or type."""
    weights = _weights(model)
    try:
        versions = tuple([weight._version for weight in weights])
    except RuntimeError:  # tensors made in inference mode have no version
        versions = ()
    return model.image_size, hash((versions, tuple(map(id, weights))))


def _weights(model: Sam2Model) -> list[Tensor]:
    """Return the weights that features depend on, cached: listing them takes ten times as long as the check."""
    encoder = model.image_encoder
    kept = _WEIGHTS.get(encoder)
    if kept is None or kept[0] is not next(encoder.parameters()):
        parts = encoder, model.sam_mask_decoder.conv_s0, model.sam_mask_decoder.conv_s1
        kept = _WEIGHTS[encoder] = [weight for part in parts for weight in part.parameters()]
    return kept


def check_image(image: np.ndarray | Tensor) -> tuple[int, int]:
    """Return height and width of a uint8 RGB image (H, W, 3); raise TypeError or ValueError for anything else."""
    if not isinstance(image, (np.ndarray, Tensor)):
        raise TypeError(f'image of type {type(image).__name__}: must be a numpy array or torch tensor, uint8 (H, W, 3)')
    if image.dtype not in (np.uint8, torch.uint8):
        raise TypeError(f'image of dtype {image.dtype}: must be uint8, RGB, 0..255')
    if image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise ValueError(f'image of shape {tuple(image.shape)}: must be (H, W, 3), RGB')
    return int(image.shape[0]), int(image.shape[1])


def to_model(model: Sam2Model, image: np.ndarray | Tensor) -> Tensor:
    """Stretch a uint8 RGB image (H, W, 3) to the square input (1, 3, S, S) of the model, and normalise it.

    Resizing is bilinear with antialias, as in the published image predictor. Normalising follows, on fewer pixels.
    """
    if isinstance(image, np.ndarray):
        image = torch.from_numpy(image if image.flags.writeable and image.flags.c_contiguous else image.copy())
    pixels = stretch(to_device(image, model.device).permute(2, 0, 1)[None].float(), model.image_size)
    mean, std = _mean_and_deviation(model.device)
    return ((pixels - mean) / std).to(model.dtype)


@lru_cache(maxsize=16)
def _mean_and_deviation(device: torch.device) -> tuple[Tensor, Tensor]:
    with torch.inference_mode(False):
        mean, std = (torch.tensor(channels, dtype=torch.float32, device=device)[:, None, None] * 255
                     for channels in (IMAGE_MEAN, IMAGE_STD))
        return mean, std


def mask_to_model(model: Sam2Model, mask: np.ndarray) -> Tensor:
    """Stretch a mask prompt, bool (H, W), to the square input of the model: float32 (1, 1, S, S) of 0 and 1.

    It is computed on the CPU whatever the model's device, so that every check of a mask gives the same result. Raise
    PromptError for a mask that is too thin for the model.
    """
    return to_device(fit_mask(mask, model.image_size), model.device)[None, None].float()


def to_image(logits: Tensor, height: int, width: int) -> np.ndarray:
    """Convert mask logits (B, h, w) to masks in pixels of the image, bool (B, height, width)."""
    return to_host(at_image_size(logits, height, width))[0]
