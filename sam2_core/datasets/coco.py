"""Images with COCO instance annotations.

One or more JSON files are in DIR or DIR/annotations, the images in DIR, in DIR/images, or in a folder that a JSON file
is named after (instances_train2017.json -> train2017/).

Polygons, run lengths and compressed run lengths are read. Annotations marked ``iscrowd`` are groups of objects and are
skipped. So are, beside other files, those of a validation or test split, of key points and of stuff.
"""
from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np

from sam2_core.datasets import run_length, sav
from sam2_core.datasets.image_files import read_image
from sam2_core.datasets.recordings import BrokenSample, Labelled, SkippedFiles
from sam2_core.datasets.splits import is_held_out, why_held_out
from sam2_core.files import by_spelling, files_in, in_order, other_spelling

_FINE = 4  # polygons are drawn at this many times the resolution
_SHIFT = 4  # binary digits after the point of their corners
_MASK_BYTES = 1 << 28  # of the masks of one image; an image with more is shrunk, as those of SA-1B with 80 and more
_OTHER_KIND = re.compile(r'^(person_keypoints|stuff)_', re.IGNORECASE)


def matches(folder: Path) -> bool:
    """Return whether the folder has this layout."""
    return not sav.matches(folder) and bool(_files(folder))


def _files(folder: Path) -> list[Path]:
    """Return the JSON files of a folder, or the one that was given instead."""
    if folder.is_file():
        return [folder]
    return in_order(path for place in (folder, folder / 'annotations') if place.is_dir()
                    for path in files_in(place, {'.json'}))


def find(folder: Path, skipped: SkippedFiles) -> list[CocoImage]:
    """Return every image with at least one annotated object, once."""
    files = _files(folder)
    if folder.is_file():
        folder = folder.parent.parent if folder.parent.name == 'annotations' else folder.parent
    held_out = [path for path in files if is_held_out(path.stem)]
    if len(held_out) < len(files):
        files = [path for path in files if path not in held_out]
        for path in held_out:
            skipped.skip(path, why_held_out(path))
    found: list[tuple[Path, list[CocoImage]]] = []
    others = [path for path in files if _OTHER_KIND.search(path.stem)]
    for path in [path for path in files if path not in others]:
        content = _content(path, skipped)
        if content is not None and any('keypoints' in item for item in content['annotations'][:1000]
                                       if isinstance(item, dict)):
            others.append(path)
        elif content is not None:
            found.append((path, _Reader(path, folder, skipped).images(content)))
    alone = not any(images for _, images in found)
    for path in others:
        if not alone:
            skipped.skip(path, 'annotates key points or stuff; other files have masks of objects')
        elif (content := _content(path, skipped)) is not None:
            found.append((path, _Reader(path, folder, skipped).images(content)))
    return _once(found, skipped)


def _content(path: Path, skipped: SkippedFiles) -> dict | None:
    try:
        return _checked(json.loads(path.read_bytes()))
    except (OSError, ValueError) as error:
        skipped.skip(path, f'not a COCO annotation ({type(error).__name__}: {error})')
        return None


def _checked(content: object) -> dict:
    if not isinstance(content, dict) or not all(isinstance(content.get(key), list)
                                                for key in ('images', 'annotations')):
        raise ValueError('it has no lists of images and annotations')
    return content


def _once(files: Iterable[tuple[Path, list[CocoImage]]], skipped: SkippedFiles) -> list[CocoImage]:
    """Return the images of all files. An image in several files is taken from the first."""
    found: dict[Path, CocoImage] = {}
    for path, images in files:
        again = [image for image in images if image.file.resolve() in found]
        if again:
            first = found[again[0].file.resolve()]
            skipped.skip(f'{path}: {len(again)} images', f'listed by {first.source.name} too, such as {again[0].file}')
        for image in images:
            found.setdefault(image.file.resolve(), image)
    return list(found.values())


class _Reader:
    """Reader of one JSON file. It counts the entries that are not used."""

    def __init__(self, path: Path, folder: Path, skipped: SkippedFiles) -> None:
        self.path, self.skipped = path, skipped
        self._names: Mapping[tuple[str | int, ...], str] | None = None  # of all files in ``places``
        split = path.stem.rsplit('_', 1)[-1]
        self.places = [folder, folder / 'images', folder / split, folder / 'images' / split]

    def images(self, content: dict) -> list[CocoImage]:
        """Return the images with objects."""
        entries = self._entries(content['images'])
        objects = self._objects(content['annotations'], entries)
        images = [self._image(entries[key], found) for key, found in objects.items()]
        return [image for image in images if image is not None]

    def _skip(self, items: Sequence, what: str, reason: str) -> None:
        if items:
            self.skipped.skip(f'{self.path}: {len(items)} {what}', reason)

    def _entries(self, images: list) -> dict[int | str, dict]:
        """Return the images by id, without those that share an id or are listed twice."""
        valid = [entry for entry in images if isinstance(entry, dict) and isinstance(entry.get('id'), (int, str))
                 and isinstance(entry.get('file_name'), str)]
        self._skip(range(len(images) - len(valid)), 'images', 'have no id or no file_name')
        ids, names = Counter(entry['id'] for entry in valid), Counter(entry['file_name'] for entry in valid)
        same_id = [entry for entry in valid if ids[entry['id']] > 1]
        same_file = [entry for entry in valid if ids[entry['id']] == 1 and names[entry['file_name']] > 1]
        if same_id:
            self._skip(same_id, 'images', f'share an id with another, such as {same_id[0]["file_name"]} '
                                          f'({same_id[0]["id"]!r}): which of them an annotation belongs to is unknown')
        if same_file:
            self._skip(same_file, 'entries', f'list an image twice, such as {same_file[0]["file_name"]}: its objects '
                                            f'may be annotated twice, or half of them in each')
        return {entry['id']: entry for entry in valid if ids[entry['id']] == names[entry['file_name']] == 1}

    def _objects(self, annotations: list, entries: dict[int | str, dict]) -> dict[int | str, list]:
        """Return the segmentations of objects by the id of their image."""
        objects: dict[int | str, list] = defaultdict(list)
        unused: Counter[str] = Counter()
        seen: dict[int | str, dict] = {}
        dangling, twice = [], 0
        for item in annotations:
            if not isinstance(item, dict):
                unused['no JSON objects'] += 1
            elif not isinstance(item.get('image_id'), (int, str)) or item['image_id'] not in entries:
                dangling.append(item.get('image_id'))
            elif item.get('iscrowd'):
                unused['crowds'] += 1
            elif not item.get('segmentation'):
                unused['boxes or key points without a mask'] += 1
            else:
                key = item.get('id')
                first = seen.setdefault(key, item) if isinstance(key, (int, str)) else item
                if first is not item and first == item:
                    unused['annotations that are listed twice'] += 1
                    continue
                twice += first is not item
                objects[item['image_id']].append(item['segmentation'])
        if dangling:
            known = next(iter(entries), None)
            self._skip(dangling, 'annotations', f'name an image_id that no usable image has, such as {dangling[0]!r}'
                       + ('' if known is None else f'; an id of an image is {known!r}'))
        doubts = [f'{count} {what} are not used' for what, count in unused.items()]
        if twice:
            doubts.append(f'{twice} annotations have the id of another')
        if empty := len(entries) - len(objects):
            doubts.append(f'{empty} images have no mask of an object')
        if annotations and not objects:
            self.skipped.skip(self.path, f'none of {len(annotations)} annotations is the mask of an object: '
                                         f'boxes, crowds and key points are not enough')
        elif doubts:
            self.skipped.doubt(self.path, '; '.join(doubts))
        return objects

    def _beside(self) -> Mapping[tuple[str | int, ...], str]:
        if self._names is None:
            self._names = by_spelling(path.name for place in self.places if place.is_dir() for path in place.iterdir())
        return self._names

    def _image(self, entry: dict, objects: list) -> CocoImage | None:
        name = entry['file_name']
        files = {path.resolve(): path for path in (place / name for place in self.places) if path.is_file()}
        if len(files) == 1:
            file, = files.values()
            return CocoImage(file, self.path, objects, (entry.get('width'), entry.get('height')))
        if files:
            reason = (f'named in {self.path.name}, and several files have this name: '
                      f'{", ".join(map(str, files.values()))}')
        else:
            reason = (f'named in {self.path.name}, but not found in {", ".join(str(place) for place in self.places)}'
                      f'{other_spelling(name, self._beside())}')
        self.skipped.skip(name, reason)
        return None


class CocoImage:
    """One image with its objects, a recording of one frame."""

    def __init__(self, file: Path, source: Path, objects: list, size: tuple[int | None, int | None]) -> None:
        self.name, self.file, self.source, self.objects, self.size = str(file), file, source, objects, size

    def __len__(self) -> int:
        return 1

    def read(self, frames: Sequence[int]) -> Labelled:
        """Return the image with its annotated objects, once per number. Raises BrokenSample."""
        size = self._annotated_size()
        image = read_image(self.file, size)
        height, width = image.shape[:2]
        if size not in (None, (height, width)):  # polygons would not fit
            raise BrokenSample(self.file, f'an image of {width}x{height}, annotated in {self.source.name} as one of '
                                          f'{size[1]}x{size[0]}')
        shrunk = _shrunk_size(len(self.objects), height, width)
        masks = np.empty((len(self.objects), *shrunk), bool)
        try:
            for k, found in enumerate(self.objects):
                masks[k] = _shrink(segmentation_mask(found, height, width), shrunk)
        except (ValueError, KeyError, TypeError) as error:
            raise BrokenSample(self.file, f'annotation in {self.source.name}: {error}') from error
        if shrunk != (height, width):
            image = cv2.resize(image, shrunk[::-1], interpolation=cv2.INTER_AREA)
        return Labelled([image for _ in frames], [masks for _ in frames])

    def _annotated_size(self) -> tuple[int, int] | None:
        """Return height and width from the image's entry or its run lengths, None if unknown. Raises BrokenSample."""
        width, height = self.size
        if width is None or height is None:
            sizes = [found['size'] for found in self.objects if isinstance(found, dict) and 'size' in found]
            if not sizes:
                return None
            height, width = sizes[0] if isinstance(sizes[0], (list, tuple)) and len(sizes[0]) == 2 else (0, 0)
        for side in (height, width):
            if not isinstance(side, (int, float)) or side != int(side) or side < 1:
                raise BrokenSample(self.file, f'width {width!r} and height {height!r} in {self.source.name}: must be '
                                              f'whole numbers')
        return int(height), int(width)


def _shrunk_size(count: int, height: int, width: int) -> tuple[int, int]:
    """Return height and width at which this number of masks takes at most ``_MASK_BYTES``."""
    scale = min(1.0, (_MASK_BYTES / max(1, count * height * width)) ** 0.5)
    return max(1, int(height * scale)), max(1, int(width * scale))


def _shrink(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return a bool mask at a smaller size (height, width): the pixels that the object covers at least half."""
    if mask.shape == size:
        return mask
    return cv2.resize(mask.astype(np.uint8) * 255, size[::-1], interpolation=cv2.INTER_AREA) >= 128


def segmentation_mask(segmentation: list | dict, height: int, width: int) -> np.ndarray:
    """Decode a COCO ``segmentation``, polygons or run lengths, to a bool mask (height, width). Raises ValueError."""
    if isinstance(segmentation, dict):
        size = tuple(int(side) for side in segmentation['size'])
        if size != (height, width):
            raise ValueError(f'mask of {size[1]}x{size[0]} for an image of {width}x{height}')
        return run_length.decode(segmentation['counts'], height, width)
    mask = np.zeros((height, width), bool)
    for polygon in segmentation:
        corners = np.asarray(polygon, np.float64)
        if corners.ndim != 1 or len(corners) < 6 or len(corners) % 2 or not np.isfinite(corners).all():
            raise ValueError(f'polygon {polygon}: must hold x and y of at least three corners')
        if corners.max() <= 1 < min(height, width):
            raise ValueError(f'polygon {polygon}: lies in one pixel; give corners in pixels, not as parts of the image')
        if corners[::2].min() >= width or corners[1::2].min() >= height or corners.min() < 0 and (
                corners[::2].max() <= 0 or corners[1::2].max() <= 0):
            raise ValueError(f'polygon {polygon}: lies outside the image of {width}x{height}')
        mask |= _polygon(corners.reshape(-1, 2), height, width)
    return mask


def _polygon(corners: np.ndarray, height: int, width: int) -> np.ndarray:
    """Return the pixels that lie at least half in the polygon; (0, 0) is the corner of the first pixel."""
    mask = np.zeros((height, width), bool)
    x0, y0 = np.clip(np.floor(corners.min(axis=0)), 0, (width, height)).astype(int)
    x1, y1 = np.clip(np.ceil(corners.max(axis=0)), 0, (width, height)).astype(int)
    if x1 > x0 and y1 > y0:
        fine = np.zeros(((y1 - y0) * _FINE, (x1 - x0) * _FINE), np.uint8)
        # OpenCV counts pixel centres.
        pixels = np.round(((corners - (x0, y0)) * _FINE - 0.5) * (1 << _SHIFT)).astype(np.int32)
        cv2.fillPoly(fine, [pixels], 255, shift=_SHIFT)
        mask[y0:y1, x0:x1] = cv2.resize(fine, (x1 - x0, y1 - y0), interpolation=cv2.INTER_AREA) >= 128
    return mask
