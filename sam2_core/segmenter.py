"""One image, any number of prompts."""
from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sam2_core.automatic_masks import Filters, FoundMask, Search
from sam2_core.images import EncodedImage, check_encoded, encode_images, mask_to_model, to_image
from sam2_core.inference import inference
from sam2_core.model import Sam2Model
from sam2_core.prompts import Prompt, PromptError

MAX_PROMPT_LOGIT = 32.0  # previous logits are clamped to this before they are a prompt


@dataclass(frozen=True, eq=False)
class Segmentation:
    """The answer to one prompt: M masks, M = 3 for an ambiguous prompt (whole, part, subpart), else 1."""

    masks: np.ndarray  # bool (M, H, W)
    scores: np.ndarray  # float32 (M,), predicted IoU, 0..1
    logits: Tensor  # float32 (M, image_size / 4, image_size / 4), on the model's device
    object_score: float  # logit; > 0: there is an object where the prompt says


class ImageSegmenter:
    """Promptable segmentation of single images. Keeps no state: several may share a model."""

    def __init__(self, model: Sam2Model) -> None:
        self.model = model

    def encode(self, image: np.ndarray | Tensor) -> EncodedImage:
        """Encode an image, uint8 RGB (H, W, 3). TypeError or ValueError for anything else."""
        return encode_images(self.model, [image])[0]

    @inference
    def segment(self, image: EncodedImage, prompt: Prompt, multimask: bool = False,
                previous_logits: Tensor | np.ndarray | None = None) -> Segmentation:
        """Answer one prompt.

        multimask: three masks instead of one: better for a single click, which may mean a part or the whole.
        previous_logits: ``logits[i]`` of an earlier answer, (image_size / 4, image_size / 4), to refine it.
        PromptError for a prompt that does not fit the image, for clicks off the object alone without previous_logits,
        or logits of another shape. ValueError for an image that another model encoded.
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
        features = image.features_for(model)
        decoded = model.decode_masks(model.without_memory(features), features, points, labels, mask_logits, multimask)
        logits = decoded.logits[0]
        return Segmentation(to_image(logits, image.height, image.width), decoded.iou[0].cpu().numpy(), logits,
                            float(decoded.object_score[0]))

    def segment_all(self, image: np.ndarray | Tensor | EncodedImage, points_per_side: int = 32,
                    filters: Filters | None = None, time_limit: float | None = None,
                    points_per_batch: int = 64) -> list[FoundMask]:
        """Every mask in an image, largest first: what a grid of single clicks finds (SAM, appendix B).

        points_per_side: the grid has its square as clicks. filters: what is kept. time_limit: seconds after which no
        further batch of clicks is begun; the clicks until then lie all over the image.
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
        """``segment_all`` in slices: each ``advance()`` is a batch of clicks, ``masks()`` what was found so far."""
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


def _is_empty(prompt: Prompt) -> bool:
    return prompt.mask is None and prompt.box is None and (prompt.points is None or not len(prompt.points)) and (
        prompt.labels is None or not len(prompt.labels))
