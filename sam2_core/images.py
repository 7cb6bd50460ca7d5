"""Images in, masks out: between a camera's pixels and the model's square."""
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
    """The model that encoded an image, in the state in which it did. Keeps neither the model nor its weights alive."""

    def __init__(self, model: Sam2Model) -> None:
        self._model: Callable[[], Sam2Model | None] = weakref.ref(model)
        self._state = _state(model)

    def check(self, model: Sam2Model) -> None:
        """Raise ValueError unless ``model`` is the one, and has not changed since."""
        if self._model() is not model:
            raise ValueError(f'image encoded by another model, or in another process: encode it with the model that is '
                             f'to use it, {describe(model)}')
        if self._state != _state(model):
            raise ValueError(f'image encoded before {describe(model)} got other weights or another '
                             f'image_size: encode it again')

    def __deepcopy__(self, memo: dict) -> Maker:
        return self

    def __reduce__(self) -> tuple:
        return _maker_elsewhere, ()  # which model it was cannot be told in another process


def _maker_elsewhere() -> Maker:
    maker = Maker.__new__(Maker)
    maker._model, maker._state = _no_model, None
    return maker


def _no_model() -> None:
    """Stand for a model in another process."""


@dataclass(frozen=True, eq=False)
class EncodedImage:
    """An image's features; as many prompts as you like can be answered from them, and trackers take them as well.

    Only the model that encoded an image takes it, as long as its weights stay.
    maker: that model; None for features put together by hand: their shapes are checked, and the caller answers for
    the rest.
    """

    features: ImageFeatures  # of one image
    height: int
    width: int
    maker: Maker | None = field(default=None, repr=False)

    def features_for(self, model: Sam2Model) -> ImageFeatures:
        """Return the features on the device and in the number type that ``model`` computes in now."""
        return ImageFeatures(*(part.to(model.device, model.dtype) for part in self.features))


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
    maker = Maker(model)
    return [EncodedImage(ImageFeatures(*(part[row:row + 1] for part in features)), height, width, maker)
            for row, (height, width) in enumerate(sizes)]


def check_encoded(model: Sam2Model, image: EncodedImage) -> tuple[int, int]:
    """Return height and width; raise ValueError for an image of another model, TypeError for one not encoded."""
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
    """Return name, image size, type and device of a model, for errors."""
    return f'{model.name} ({model.image_size} pixels, {model.dtype}, {model.device})'


def _state(model: Sam2Model) -> tuple:
    """Return what changes with the weights: one changed in place has a new version. A move or another type keeps it."""
    weights = _weights(model)
    try:
        versions = tuple([weight._version for weight in weights])
    except RuntimeError:  # made in inference mode: not counted
        versions = ()
    return model.image_size, hash((versions, tuple(map(id, weights))))


def _weights(model: Sam2Model) -> list[Tensor]:
    """Return the weights that features depend on. Listing them takes ten times as long as looking at them."""
    encoder = model.image_encoder
    kept = _WEIGHTS.get(encoder)
    if kept is None or kept[0] is not next(encoder.parameters()):
        parts = encoder, model.sam_mask_decoder.conv_s0, model.sam_mask_decoder.conv_s1
        kept = _WEIGHTS[encoder] = [weight for part in parts for weight in part.parameters()]
    return kept


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
