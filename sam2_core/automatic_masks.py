"""Automatic mask generation: masks from a grid of clicks, filtered (SAM, arXiv 2304.02643, appendix B)."""
from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sam2_core.finite import not_finite_error
from sam2_core.images import EncodedImage, check_encoded
from sam2_core.inference import inference
from sam2_core.masks import mask_box
from sam2_core.metrics import box_iou
from sam2_core.model import Sam2Model
from sam2_core.nn.prompt_encoder import FOREGROUND


@dataclass(frozen=True)
class Filters:
    """Rules for the masks to keep. The defaults are those of the published generator.

    Attributes:
        min_iou: Minimum predicted IoU, 0..1.
        min_stability: Minimum stability, 0..1; see ``stability``.
        stability_offset: Shift of the threshold to both sides, in logits, for the stability.
        max_box_overlap: Maximum IoU of the boxes of two masks; beyond it only the better mask is kept.
        min_area: Smaller islands are dropped and smaller holes filled, in pixels; 0 disables both.
    """

    min_iou: float = 0.8
    min_stability: float = 0.95
    stability_offset: float = 1.0
    max_box_overlap: float = 0.7
    min_area: int = 0


@dataclass(frozen=True, eq=False)
class FoundMask:
    """One mask of an image."""

    mask: np.ndarray  # bool (H, W)
    box: tuple[int, int, int, int]  # (x0, y0, x1, y1), x1 and y1 exclusive
    area: int  # pixels
    iou: float  # predicted, 0..1
    stability: float  # IoU of the masks at a raised and a lowered threshold, 0..1
    point: tuple[float, float]  # the click, pixels


class _Candidate(NamedTuple):
    """A packed mask, since thousands of full masks would not fit into memory."""

    bits: np.ndarray  # mask within its box, packed
    box: tuple[int, int, int, int]
    area: int
    iou: float
    stability: float
    point: tuple[float, float]

    def unpack(self, height: int, width: int) -> FoundMask:
        x0, y0, x1, y1 = self.box
        mask = np.zeros((height, width), bool)
        inside = np.unpackbits(self.bits, count=(y1 - y0) * (x1 - x0))
        mask[y0:y1, x0:x1] = inside.reshape(y1 - y0, x1 - x0)
        return FoundMask(mask, *self[1:])


Boxed = TypeVar('Boxed', FoundMask, _Candidate)


def point_grid(points_per_side: int) -> np.ndarray:
    """Return the centres (N * N, 2) of N x N equal cells of the unit square, row by row."""
    line = (np.arange(points_per_side) + 0.5) / points_per_side
    return np.stack(np.meshgrid(line, line), axis=-1).reshape(-1, 2)


class Search:
    """Search for all masks of an image, one batch of clicks at a time, so that the caller can do other work between."""

    def __init__(self, model: Sam2Model, image: EncodedImage, points_per_side: int, filters: Filters,
                 points_per_batch: int) -> None:
        """Prepare a search; the arguments are those of ``ImageSegmenter.segment_all``."""
        if points_per_side < 1 or points_per_batch < 1:
            raise ValueError(f'points_per_side {points_per_side}, points_per_batch {points_per_batch}: '
                             f'both must be at least 1')
        check_encoded(model, image)
        self.model = model
        self._image = image
        self._filters = filters
        # Random order, so that the points of an unfinished search cover the whole image.
        order = np.random.default_rng(0).permutation(points_per_side ** 2)
        points = point_grid(points_per_side)[order] * (image.width, image.height)
        self._batches = [points[start:start + points_per_batch] for start in range(0, len(points), points_per_batch)]
        self._done = 0
        self._found: list[_Candidate] = []

    @property
    def complete(self) -> bool:
        """True once all clicks have been run."""
        return self._done == len(self._batches)

    @inference
    def advance(self) -> None:
        """Run the next batch of clicks; do nothing once complete. Raise NotFiniteError for NaN or infinity."""
        if not self.complete:
            self._found += _answers(self.model, self._image, self._batches[self._done], self._filters)
            self._done += 1

    def masks(self) -> list[FoundMask]:
        """Return the masks so far without near-duplicates, cleaned by ``min_area``, largest first."""
        overlap, min_area = self._filters.max_box_overlap, self._filters.min_area
        candidates = suppress(sorted(self._found, key=lambda item: -item.iou), overlap)
        found = [candidate.unpack(self._image.height, self._image.width) for candidate in candidates]
        if min_area:
            cleaned = [clean(item, min_area) for item in found]
            touched = [new.area != old.area for new, old in zip(cleaned, found, strict=True)]
            order = sorted(range(len(cleaned)), key=lambda i: touched[i])  # prefer masks that needed no cleaning
            found = suppress([cleaned[i] for i in order], overlap)
        return sorted(found, key=lambda item: -item.area)


def _answers(model: Sam2Model, image: EncodedImage, points: np.ndarray, filters: Filters) -> Iterator[_Candidate]:
    scale = np.array([model.image_size / image.width, model.image_size / image.height])
    clicks = torch.from_numpy((points * scale).astype(np.float32))[:, None].to(model.device)
    labels = torch.full(clicks.shape[:2], FOREGROUND, dtype=torch.int64, device=model.device)
    encoded = image.features_for(model)
    features = model.without_memory(encoded).expand(len(points), -1, -1, -1)
    decoded = model.decode_masks(features, encoded, clicks, labels, multimask=True)
    # A sum propagates NaN and infinity.
    total, total_iou, total_score = (float(part.sum(dtype=torch.float32))
                                     for part in (decoded.logits, decoded.iou, decoded.object_score))
    if not np.isfinite([total, total_iou]).all():
        raise not_finite_error(total_iou, total_score)
    promising = decoded.iou > filters.min_iou
    logits, iou = decoded.logits[promising], decoded.iou[promising].tolist()
    sources = torch.nonzero(promising)[:, 0].tolist()
    for row, source in enumerate(sources):  # one by one, because all full-size logits would not fit into memory
        full = F.interpolate(logits[row, None, None], size=(image.height, image.width), mode='bilinear')[0, 0]
        score = stability(full, filters.stability_offset)
        if score < filters.min_stability:
            continue
        mask = (full > 0).cpu().numpy()
        box = mask_box(mask)
        if box is not None:
            x0, y0, x1, y1 = box
            yield _Candidate(np.packbits(mask[y0:y1, x0:x1]), box, int(mask.sum()), iou[row], score,
                             tuple(points[source].tolist()))


def stability(logits: Tensor, offset: float) -> float:
    """Return the stability of mask logits, 0..1: pixels above ``offset`` divided by pixels above ``-offset``."""
    outer = int((logits > -offset).sum())
    return int((logits > offset).sum()) / outer if outer else 1.0


def suppress(found: list[Boxed], max_overlap: float) -> list[Boxed]:
    """Drop masks whose box overlaps that of an earlier one by more than ``max_overlap`` (IoU)."""
    boxes = np.array([item.box for item in found], np.float64).reshape(-1, 4)
    alive = np.ones(len(found), bool)
    for i in range(len(found)):
        if alive[i]:
            alive[i + 1:] &= box_iou(boxes[i], boxes[i + 1:]) <= max_overlap
    return [item for item, stays in zip(found, alive, strict=True) if stays]


def clean(item: FoundMask, min_area: int) -> FoundMask:
    """Fill holes and drop islands of fewer than ``min_area`` pixels; always keep the largest island."""
    mask = ~_without_small(~item.mask, min_area, keep_largest=False)
    mask = _without_small(mask, min_area, keep_largest=True)
    box = mask_box(mask)
    assert box is not None  # the largest island is kept
    return FoundMask(mask, box, int(mask.sum()), item.iou, item.stability, item.point)


def _without_small(mask: np.ndarray, min_area: int, keep_largest: bool) -> np.ndarray:
    _, labels, statistics, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    areas = statistics[:, cv2.CC_STAT_AREA].copy()
    areas[0] = 0  # label 0 is the background
    large = areas >= min_area
    if keep_largest:
        large[areas.argmax()] = True
    large[0] = False
    kept: np.ndarray = large[labels]
    return kept
