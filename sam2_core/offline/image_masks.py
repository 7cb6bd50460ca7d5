"""Masks of single images: found by prompts or by a grid of clicks, and written as files."""
from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sam2_core.automatic_masks import Filters
from sam2_core.datasets import run_length
from sam2_core.datasets.image_files import jpeg, mask_png
from sam2_core.drawing.overlay import draw_objects
from sam2_core.files import replacing
from sam2_core.finite import not_finite_error
from sam2_core.masks import mask_box
from sam2_core.model import Sam2Model
from sam2_core.offline.prompts import VideoPrompt
from sam2_core.prompts import errors_of, merge_prompts
from sam2_core.scores import unit
from sam2_core.segmenter import ImageSegmenter

GENERATOR = 'sam2_segment'
OVERLAY = 'overlay.jpg'
OPACITY = 0.45
JPEG_QUALITY = 92


@dataclass(frozen=True, eq=False)
class ImageMask:
    """One mask of an image."""

    id: int  # of the object
    label: str
    mask: np.ndarray  # bool (H, W)
    box: tuple[int, int, int, int] | None  # (x0, y0, x1, y1), x1 and y1 exclusive; None if the mask is empty
    score: float  # predicted IoU, 0..1
    candidate: int | None = None  # 1 to 3 of the masks of one prompt; None if there is one
    object_score: float | None = None  # logit, > 0: there is an object at the prompt; None without a prompt
    stability: float | None = None  # 0..1, of a mask that was found without a prompt
    point: tuple[float, float] | None = None  # the click that found it

    @property
    def file(self) -> str:
        """Name of the mask's file."""
        return f'{self.id}.png' if self.candidate is None else f'{self.id}_{self.candidate}.png'


def find_objects(segmenter: ImageSegmenter, image: np.ndarray, prompts: Iterable[VideoPrompt],
                 multimask: bool = False) -> list[ImageMask]:
    """Segment an image by prompts; those with one id are merged.

    Args:
        segmenter: Segmenter to use.
        image: uint8 RGB (H, W, 3).
        prompts: Prompts for the image; their frame does not matter.
        multimask: Return three masks per object, best first, instead of one.

    Raises:
        NotFiniteError: The model returned NaN or infinity.
        PromptError: A prompt does not fit the image. Nothing has been segmented then.
    """
    prompts = list(prompts)
    labels = {item.prompt.object_id: item.label for item in prompts if item.label}
    height, width = image.shape[:2]
    merged = merge_prompts([item.prompt for item in prompts], height, width)
    for object_id, prompt in merged.items():
        with errors_of(object_id):
            prompt.check_starts()
            prompt.check(height, width, segmenter.model.image_size)
    encoded = segmenter.encode(image)
    found = []
    for object_id, prompt in merged.items():
        result = segmenter.segment(encoded, prompt, multimask)
        total, presence = float(result.scores.sum()), result.object_score
        if not math.isfinite(total) or not math.isfinite(presence):
            raise not_finite_error(total, presence)
        order = np.argsort(-result.scores, kind='stable')
        found += [ImageMask(object_id, labels.get(object_id, ''), result.masks[index], mask_box(result.masks[index]),
                            unit(result.scores[index]), place if multimask else None, presence)
                  for place, index in enumerate(order, 1)]
    return found


def find_everything(segmenter: ImageSegmenter, image: np.ndarray, points_per_side: int = 32,
                    filters: Filters | None = None) -> list[ImageMask]:
    """Segment everything in an image, uint8 RGB (H, W, 3), by a grid of clicks: see ``ImageSegmenter.segment_all``."""
    found = segmenter.segment_all(image, points_per_side, filters)
    return [ImageMask(number, '', item.mask, item.box, unit(item.iou), stability=item.stability, point=item.point)
            for number, item in enumerate(found, 1)]


def write_masks(output: Path, name: str, source: Path, image: np.ndarray, masks: Sequence[ImageMask],
                model: Sam2Model, files: bool = True, overlay: bool = True) -> None:
    """Write the masks of an image in place of those that an earlier call has written for it.

    The folder ``output`` gets ``NAME.json`` in the layout of SA-1B, with masks as COCO's run lengths, and the folder
    ``NAME`` with a PNG of 0 and 255 for each mask and ``overlay.jpg``. The JSON is written last.

    Args:
        output: Folder for results.
        name: Name of the image.
        source: File of the image.
        image: uint8 RGB (H, W, 3).
        masks: Masks to write.
        model: The model that found them.
        files: Write PNG files.
        overlay: Write the overlay.

    Raises:
        OSError: A file cannot be written, or NAME.json was not written by this function.
    """
    description, folder = output / f'{name}.json', output / name
    for path in _old_files(description):
        path.unlink(missing_ok=True)
    if overlay or files and masks:
        folder.mkdir(exist_ok=True)
    if files:
        for item in masks:
            (folder / item.file).write_bytes(mask_png(item.mask))
    if overlay:
        drawn = draw_objects(image, [item for item in masks if item.candidate in (None, 1)], OPACITY,
                             lambda item: 'not found')
        (folder / OVERLAY).write_bytes(jpeg(drawn, JPEG_QUALITY))
    height, width = image.shape[:2]
    content = {'generator': GENERATOR, 'image': {'file_name': source.name, 'height': height, 'width': width},
               'model': {'name': model.name, 'image_size': model.image_size},
               'annotations': [_annotation(number, item, name if files else None)
                               for number, item in enumerate(masks, 1)]}
    with replacing(description) as part:
        part.write_text(json.dumps(content, allow_nan=False))


def _annotation(number: int, item: ImageMask, folder: str | None) -> dict[str, Any]:
    height, width = item.mask.shape
    x0, y0, x1, y1 = item.box or (0, 0, 0, 0)
    content = {'id': number, 'object_id': item.id, 'label': item.label, 'candidate': item.candidate,
               'bbox': [x0, y0, x1 - x0, y1 - y0], 'area': int(np.count_nonzero(item.mask)),
               'segmentation': {'size': [height, width], 'counts': run_length.encode(item.mask)},
               'predicted_iou': item.score, 'object_score': item.object_score, 'stability_score': item.stability,
               'point_coords': None if item.point is None else [list(item.point)],
               'mask': None if folder is None else f'{folder}/{item.file}'}
    return {key: value for key, value in content.items() if value is not None and value != ''}


def _old_files(description: Path) -> list[Path]:
    """Return the files of an earlier result. Raises OSError for a JSON that is not one: it is the user's."""
    name = description.name.removesuffix('.json')
    try:
        content = json.loads(description.read_bytes())
        if content['generator'] != GENERATOR:
            raise ValueError
        masks = [Path(item['mask']) for item in content['annotations'] if 'mask' in item]
        if any(path.parts != (name, path.name) for path in masks):
            raise ValueError
    except FileNotFoundError:
        return []
    except (ValueError, TypeError, KeyError):
        raise OSError(f'{description}: exists, and is no result of {GENERATOR}; choose another output folder') from None
    folder = description.parent / name
    return [description, folder / OVERLAY, *(folder / path.name for path in masks)]
