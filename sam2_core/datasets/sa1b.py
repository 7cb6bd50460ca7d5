"""Pictures with one JSON file each, as SA-1B and the SAM 2 export of Roboflow have them.

    DIR/.../sa_1.jpg   sa_1.json             the JSON beside its picture, in any folders below
    DIR/.../images/sa_1.jpg   DIR/.../annotations/sa_1.json

A JSON holds ``image`` (file_name, width, height) and ``annotations``, each with a ``segmentation``: run lengths as text
or numbers, or polygons. Folders of a validation or test split are skipped beside others.
"""
from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from sam2_core.datasets.coco import CocoImage
from sam2_core.datasets.recordings import BrokenSample, Labelled, SkippedFiles
from sam2_core.datasets.splits import is_held_out, why_held_out
from sam2_core.files import Notice, by_spelling, files_in, folders_below, in_order, other_spelling

SUFFIXES = ('.jpg', '.jpeg', '.png', '.bmp', '.webp', '.tif', '.tiff')
_OPENED = 20  # files that are opened to recognise the layout
_IMAGES, _ANNOTATIONS = 'images', 'annotations'  # folders side by side


class PictureAnnotation(NamedTuple):
    """Content of one JSON file."""

    file_name: str | None  # of the picture
    size: tuple[int | None, int | None]  # width and height
    objects: list  # segmentations
    unused: str  # annotations that are no mask of an object, in words; empty if there is none


def matches(folder: Path) -> bool:
    """Return whether the folder has this layout: the first JSON files with a picture of their name decide."""
    pairs = ((path, pictures) for path, pictures in _pairs(folder, lambda path, reason: None) if pictures)
    for path, _ in islice(pairs, _OPENED):
        try:
            content = json.loads(path.read_bytes())
        except (OSError, ValueError):
            continue
        if isinstance(content, dict) and isinstance(content.get('image'), dict) and 'annotations' in content:
            return True
    return False


def find(folder: Path, skipped: SkippedFiles) -> list[AnnotatedPicture]:
    """Return a recording of one frame for every JSON file with its picture. The files are read when they are used."""
    pairs = list(_pairs(folder, skipped.skip, skipped))
    used = [(path, pictures) for path, pictures in pairs if _split(path, folder) is None]
    if used:
        for split in dict.fromkeys(split for path, _ in pairs if (split := _split(path, folder)) is not None):
            skipped.skip(split, why_held_out(split))
    found = []
    for path, pictures in used or pairs:
        if pictures:
            found.append(AnnotatedPicture(path, pictures, skipped))
        else:
            skipped.skip(path, f'no picture {path.stem}{SUFFIXES[0]} beside it{_near(path)}')
    return found


def _split(path: Path, folder: Path) -> Path | None:
    """Return the folder below ``folder`` that holds a file and is a validation or test split, or None."""
    above = [place for place in path.parents if place != folder and place.is_relative_to(folder)]
    return next((place for place in reversed(above) if is_held_out(place.name)), None)


def _pairs(folder: Path, notice: Notice, skipped: SkippedFiles | None = None) -> Iterator[tuple[Path, list[Path]]]:
    """Yield the JSON files below a folder in natural order, each with the pictures of its name.

    skipped: takes the pictures without a JSON file in folders that have such files.
    """
    for place in folders_below(folder, notice):
        files = in_order(files_in(place, {'.json'}))
        if not files:
            continue
        homes = [place, place.parent / _IMAGES] if place.name == _ANNOTATIONS else [place]
        by_stem: dict[str, list[Path]] = {}
        for picture in (picture for home in homes if home.is_dir() for picture in files_in(home, SUFFIXES)):
            by_stem.setdefault(picture.stem, []).append(picture)
        yield from ((path, in_order(by_stem.get(path.stem, []))) for path in files)
        stems = {path.stem for path in files}
        alone = in_order(found[0] for stem, found in by_stem.items() if stem not in stems)
        if alone and skipped is not None:
            skipped.skip(f'{place}: {len(alone)} pictures', f'have no JSON file of their name, such as {alone[0].name}')


def _near(path: Path) -> str:
    names = by_spelling(picture.stem for picture in files_in(path.parent, SUFFIXES))
    return other_spelling(path.stem, names)


class AnnotatedPicture:
    """One picture with the objects of its JSON file, a recording of one frame."""

    def __init__(self, path: Path, pictures: Sequence[Path], skipped: SkippedFiles) -> None:
        """path: of the JSON; pictures: those of its name; skipped: takes what is not used of it."""
        self.path, self.pictures, self.skipped = path, pictures, skipped
        self.name = str(pictures[0])

    def __len__(self) -> int:
        return 1

    def read(self, frames: Sequence[int]) -> Labelled:
        """Return the picture with its annotated objects, once per number. Raises BrokenSample."""
        annotation = read_annotation(self.path)
        picture = self._picture(annotation.file_name)
        if annotation.unused:
            self.skipped.doubt(self.path, annotation.unused)
        return CocoImage(picture, self.path, annotation.objects, annotation.size).read(frames)

    def _picture(self, file_name: str | None) -> Path:
        """Return the picture that the JSON belongs to. Raises BrokenSample if that is uncertain."""
        named = [picture for picture in self.pictures if picture.name == file_name]
        if len(self.pictures) > 1 and len(named) != 1:
            raise BrokenSample(self.path, f'{" and ".join(picture.name for picture in self.pictures)} have its name, '
                                          f'and file_name is {file_name!r}: remove one of them')
        picture, = named or self.pictures
        other = picture.with_name(file_name) if file_name else picture
        if not named and other.is_file():  # one of the two files was renamed, and another has its old name
            raise BrokenSample(self.path, f'file_name is {file_name}, which is there beside {picture.name}: which of '
                                          f'them was annotated is unknown; correct file_name')
        return picture


def read_annotation(path: Path) -> PictureAnnotation:
    """Read the JSON file of one picture. Raises BrokenSample if it has no mask or cannot be read."""
    try:
        content = json.loads(path.read_bytes())
        image, annotations = content['image'], content['annotations']
        if not isinstance(image, dict) or not isinstance(annotations, list):
            raise ValueError('image is no object or annotations is no list')
        file_name = image.get('file_name')
        if file_name is not None and not isinstance(file_name, str):
            raise ValueError(f'file_name {file_name!r} is no text')
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BrokenSample(path, f'not an annotation of one picture ({type(error).__name__}: {error})') from error
    masks = [item for item in annotations if isinstance(item, dict) and item.get('segmentation')]
    objects = [item['segmentation'] for item in masks if not item.get('iscrowd')]
    distinct = [item for i, item in enumerate(objects) if item not in objects[:i]]
    counts = {'without a mask': len(annotations) - len(masks), 'of crowds': len(masks) - len(objects),
              'listed twice': len(objects) - len(distinct)}
    unused = '; '.join(f'{count} of {len(annotations)} annotations {what} are not used'
                       for what, count in counts.items() if count)
    if not distinct:
        raise BrokenSample(path, f'no mask of an object{f": {unused}" if unused else ""}')
    file = None if file_name is None else Path(file_name).name
    return PictureAnnotation(file, (image.get('width'), image.get('height')), distinct, unused)
