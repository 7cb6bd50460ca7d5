"""Images with COCO instance annotations: one or more JSON files in DIR or DIR/annotations, the images in DIR, in
DIR/images, or in a folder that the JSON file is named after (instances_train2017.json -> train2017/).

Polygons, run lengths and compressed run lengths are read. Annotations marked ``iscrowd`` are groups, not objects: they
are left out.
"""
from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from sam2_core.training.datasets import run_lengths, sav
from sam2_core.training.datasets.pictures import read_image
from sam2_core.training.datasets.recordings import BrokenSample, Labelled, SkippedFiles

_FINE = 4  # polygons are drawn in pixels this many times finer
_SHIFT = 4  # binary digits below those


def matches(folder: Path) -> bool:
    """Does the folder have this layout?"""
    return not sav.matches(folder) and bool(_files(folder))


def _files(folder: Path) -> list[Path]:
    return sorted([*folder.glob('*.json'), *(folder / 'annotations').glob('*.json')])


def find(folder: Path, skipped: SkippedFiles) -> list[CocoImage]:
    """Every image with at least one annotated object."""
    images = []
    for path in _files(folder):
        try:
            images += _read(path, folder, skipped)
        except (OSError, ValueError, KeyError, TypeError) as error:
            skipped.add(BrokenSample(path, f'not a COCO annotation ({type(error).__name__}: {error})'))
    return images


def _read(path: Path, folder: Path, skipped: SkippedFiles) -> list[CocoImage]:
    content = json.loads(path.read_bytes())
    objects: dict[int, list] = {}
    for annotation in content['annotations']:
        if not annotation.get('iscrowd') and annotation.get('segmentation'):
            objects.setdefault(annotation['image_id'], []).append(annotation['segmentation'])
    if content['annotations'] and not objects:
        skipped.add(BrokenSample(path, f'none of {len(content["annotations"])} annotations is the mask of an object: '
                                       f'boxes, crowds and key points are not enough'))
    split = path.stem.rsplit('_', 1)[-1]
    places = [folder, folder / 'images', folder / split, folder / 'images' / split]
    found = []
    for entry in content['images']:
        if entry['id'] not in objects:
            continue
        file = next((place / entry['file_name'] for place in places if (place / entry['file_name']).exists()), None)
        if file is None:
            skipped.add(BrokenSample(entry['file_name'], f'named in {path.name}, but in none of '
                                                         f'{", ".join(str(place) for place in places)}'))
            continue
        found.append(CocoImage(file, path, objects[entry['id']], (entry.get('width'), entry.get('height'))))
    return found


class CocoImage:
    """One image with its objects; a recording of one frame."""

    def __init__(self, file: Path, source: Path, objects: list, size: tuple[int | None, int | None]) -> None:
        self.name, self.file, self.source, self.objects, self.size = str(file), file, source, objects, size

    def __len__(self) -> int:
        return 1

    def read(self, frames: Sequence[int]) -> Labelled:
        image = read_image(self.file)
        height, width = image.shape[:2]
        if None not in self.size and self.size != (width, height):  # polygons would lie elsewhere
            raise BrokenSample(self.file, f'an image of {width}x{height}, annotated in {self.source.name} as one of '
                                          f'{self.size[0]}x{self.size[1]}')
        try:
            masks = np.stack([segmentation_mask(found, height, width) for found in self.objects])
        except (ValueError, KeyError, TypeError) as error:
            raise BrokenSample(self.file, f'annotation in {self.source.name}: {error}') from error
        return Labelled([image for _ in frames], [masks for _ in frames])


def segmentation_mask(segmentation: list | dict, height: int, width: int) -> np.ndarray:
    """COCO's ``segmentation``, polygons or run lengths -> bool mask (height, width). ValueError when it is wrong."""
    if isinstance(segmentation, dict):
        size = tuple(int(side) for side in segmentation['size'])
        if size != (height, width):
            raise ValueError(f'mask of {size[1]}x{size[0]} for an image of {width}x{height}')
        return run_lengths.decode(segmentation['counts'], height, width)
    mask = np.zeros((height, width), bool)
    for polygon in segmentation:
        corners = np.asarray(polygon, np.float64)
        if corners.ndim != 1 or len(corners) < 6 or len(corners) % 2 or not np.isfinite(corners).all():
            raise ValueError(f'polygon {polygon}: must be x, y of at least three corners')
        mask |= _polygon(corners.reshape(-1, 2), height, width)
    return mask


def _polygon(corners: np.ndarray, height: int, width: int) -> np.ndarray:
    """The pixels of which at least half lies in the polygon, whose (0, 0) is the corner of the first pixel."""
    mask = np.zeros((height, width), bool)
    x0, y0 = np.clip(np.floor(corners.min(axis=0)), 0, (width, height)).astype(int)
    x1, y1 = np.clip(np.ceil(corners.max(axis=0)), 0, (width, height)).astype(int)
    if x1 > x0 and y1 > y0:
        fine = np.zeros(((y1 - y0) * _FINE, (x1 - x0) * _FINE), np.uint8)
        # OpenCV counts centres of pixels
        pixels = np.round(((corners - (x0, y0)) * _FINE - 0.5) * (1 << _SHIFT)).astype(np.int32)
        cv2.fillPoly(fine, [pixels], 255, shift=_SHIFT)
        mask[y0:y1, x0:x1] = cv2.resize(fine, (x1 - x0, y1 - y0), interpolation=cv2.INTER_AREA) >= 128
    return mask
