"""Segmentation of single images by prompts."""
from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sam2_core.automatic_masks import Filters, FoundMask, Search
from sam2_core.images import EncodedImage, check_encoded, encode_images, mask_to_model, to_image
from sam2_core.inference import inference
from sam2_core.masks import mask_box
from sam2_core.model import Sam2Model
from sam2_core.prompts import Prompt, PromptError

MAX_PROMPT_LOGIT = 32.0  # limit of previous logits that are used as a mask prompt


@dataclass(frozen=True, eq=False)
class Segmentation:
    """Result of one prompt: M masks, 3 with ``multimask`` (whole, part and subpart), else 1."""

    masks: np.ndarray  # bool (M, H, W)
    scores: np.ndarray  # float32 (M,), predicted IoU, 0..1
    logits: Tensor  # float32 (M, image_size / 4, image_size / 4), on the model's device
    object_score: float  # logit; > 0: there is an object at the prompt


class ImageSegmenter:
    """Promptable segmentation of single images (SAM 2, arXiv 2408.00714). It has no state and may share a model."""

    def __init__(self, model: Sam2Model) -> None:
        self.model = model

    def encode(self, image: np.ndarray | Tensor) -> EncodedImage:
        """Encode a uint8 RGB image (H, W, 3); raise TypeError or ValueError for anything else."""
        return encode_images(self.model, [image])[0]

    @inference
    def segment(self, image: EncodedImage, prompt: Prompt, multimask: bool = False,
                previous_logits: Tensor | np.ndarray | None = None) -> Segmentation:
        """Segment an image by one prompt.

        Prompt with points or a box, which the models were trained for. A mask alone, or ``previous_logits`` alone, is
        a hint: published models accept it and often return another object or nothing, nano refuses it. To keep a mask
        as it is and follow it, give it to ``StreamTracker``.

        Args:
            image: An image that this segmenter's model has encoded.
            prompt: The prompt, in pixels of the image.
            multimask: Return three masks instead of one. Use it for a single click, which may mean a part or the whole.
            previous_logits: ``logits[i]`` of an earlier result, (image_size / 4, image_size / 4), to refine.

        Raises:
            PromptError: The prompt does not fit the image, has background points only and no ``previous_logits``, or
                the logits have another shape; or a mask or logits are alone, and the model was not trained for that.
            TypeError: The image is not encoded.
            ValueError: Another model has encoded the image.
        """
        model = self.model
        check_encoded(model, image)
        if previous_logits is not None and prompt.mask is not None:
            raise PromptError('previous_logits and a mask: give one of them')
        mask_logits = None if previous_logits is None else self._previous(previous_logits)
        points = labels = None
        if mask_logits is None or not _is_empty(prompt):
            prompt = prompt.check(image.height, image.width)
            if mask_logits is None:
                prompt.check_starts()
            xy, kinds = prompt.as_points(image.height, image.width, model.image_size)
            if len(xy):
                points = torch.from_numpy(xy)[None].to(model.device)
                labels = torch.from_numpy(kinds)[None].to(model.device)
            if prompt.mask is not None:
                mask_logits = model.mask_prompt_logits(mask_to_model(model, prompt.mask))
        if points is None and not model.config.masks_alone:
            raise PromptError(_alone(prompt, model.name))
        features = image.features_for(model)
        decoded = model.decode_masks(model.without_memory(features), features, points, labels, mask_logits, multimask)
        logits = decoded.logits[0]
        return Segmentation(to_image(logits, image.height, image.width), decoded.iou[0].cpu().numpy(), logits,
                            float(decoded.object_score[0]))

    def segment_all(self, image: np.ndarray | Tensor | EncodedImage, points_per_side: int = 32,
                    filters: Filters | None = None, time_limit: float | None = None,
                    points_per_batch: int = 64) -> list[FoundMask]:
        """Segment everything in an image by a grid of single clicks (SAM, arXiv 2304.02643, appendix B).

        Args:
            image: uint8 RGB (H, W, 3), or an encoded image.
            points_per_side: Clicks per side of the grid, at least 1.
            filters: Rules for the masks to keep; None means ``Filters()``.
            time_limit: Seconds after which no further batch of clicks is started; None means no limit. The clicks up
                to then cover the whole image.
            points_per_batch: Clicks per run of the mask decoder, at least 1.

        Returns:
            The masks, largest first.

        Raises:
            TypeError: The image has another type.
            ValueError: The image has another shape, another model has encoded it, or a number is below 1.
            NotFiniteError: The model returned NaN or infinity.
        """
        encoded = image if isinstance(image, EncodedImage) else self.encode(image)
        search = self.search(encoded, points_per_side, filters, points_per_batch)
        deadline = float('inf') if time_limit is None else time.monotonic() + time_limit
        search.advance()
        while not search.complete and time.monotonic() <= deadline:
            search.advance()
        return search.masks()

    def search(self, image: EncodedImage, points_per_side: int = 32, filters: Filters | None = None,
               points_per_batch: int = 64) -> Search:
        """Return a ``segment_all`` to run in slices.

        Each ``advance()`` of the search runs a batch of clicks, and ``masks()`` returns the masks found so far.
        """
        return Search(self.model, image, points_per_side, filters or Filters(), points_per_batch)

    def _previous(self, logits: Tensor | np.ndarray) -> Tensor:
        side = self.model.image_size // 4
        wanted = f'must be ({side}, {side}), one of the logits of an earlier answer'
        if not isinstance(logits, (Tensor, np.ndarray)):
            raise PromptError(f'previous_logits of type {type(logits).__name__}: {wanted}')
        if tuple(logits.shape) != (side, side):
            raise PromptError(f'previous_logits of shape {tuple(logits.shape)}: {wanted}')
        if not (logits.is_floating_point() if isinstance(logits, Tensor) else logits.dtype.kind == 'f'):
            raise PromptError(f'previous_logits of type {logits.dtype}: {wanted}; a mask is a Prompt(mask=...)')
        logits = torch.as_tensor(logits, dtype=torch.float32, device=self.model.device)
        lowest, highest = torch.stack(logits.aminmax()).tolist()
        if not lowest <= highest:
            raise PromptError(f'previous_logits with NaN: {wanted}')
        if lowest >= 0 and highest <= 1:
            raise PromptError(f'previous_logits of {lowest:.3g} to {highest:.3g}: look like probabilities or a mask; '
                              f'{wanted}')
        return logits.clamp(-MAX_PROMPT_LOGIT, MAX_PROMPT_LOGIT)[None, None]


def _alone(prompt: Prompt, model: str) -> str:
    """Return why a mask without points or a box cannot be used, with the cure."""
    if prompt.mask is None:
        return (f'previous_logits without points or a box: {model} was not trained to segment by them alone; give a '
                f'point or the box of the object too')
    box = ', '.join(f'{side:g}' for side in mask_box(np.asarray(prompt.mask)) or ())
    return (f'mask without points or a box: {model} was not trained to segment by a mask alone; prompt with its box, '
            f'({box}), or give the mask to a tracker, which uses it as it is')


def _is_empty(prompt: Prompt) -> bool:
    return prompt.mask is None and prompt.box is None and (prompt.points is None or not len(prompt.points)) and (
        prompt.labels is None or not len(prompt.labels))
