"""Folders in the layout of DAVIS, which YouTube-VOS and MOSE have too.

    DIR/JPEGImages/[480p/]<clip>/00000.jpg ...
    DIR/Annotations/[480p/]<clip>/00000.png ...     indexed PNG: index = object, 0 = background

Both folders may hold one folder per resolution.
"""
from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from sam2_core.datasets.image_files import read_image, read_labels
from sam2_core.datasets.recordings import BrokenSample, Labelled, SkippedFiles, same_sizes
from sam2_core.files import (
    OrderError,
    by_spelling,
    files_in,
    folders_below,
    frames_in_order,
    not_one_sequence,
    other_spelling,
)

RESOLUTIONS = ('480p', 'Full-Resolution', '1080p')  # the first that exists is read
IMAGES, LABELS = {'.jpg', '.jpeg', '.png'}, {'.png'}
Folder = dict[str, list[Path]]  # relative path of a folder -> its files


def matches(folder: Path) -> bool:
    """Return whether the folder has this layout."""
    return (folder / 'JPEGImages').is_dir() and (folder / 'Annotations').is_dir()


def find(folder: Path, skipped: SkippedFiles) -> list[DavisClip]:
    """Return a clip for every folder of images that has labels. Frames without a label file are not used.

    Images that are not frames of one video become clips of one image each.
    """
    images, labels = folder / 'JPEGImages', folder / 'Annotations'
    stored, drawn = _files(images, IMAGES, skipped), _files(labels, LABELS, skipped)
    _one_resolution(images, stored, drawn, skipped)
    stored_names, drawn_names = by_spelling(stored), by_spelling(drawn)
    clips = []
    for name, files in drawn.items():
        place, beside = labels / name, images / name
        if not stored.get(name):
            if files:
                skipped.skip(place, f'{_count(files, "label file")} without images: no JPEG or PNG in {beside}'
                                    f'{other_spelling(name, stored_names)}')
            continue
        try:
            frames = _pairs(beside, frames_in_order(stored[name]), frames_in_order(files), skipped)
        except OrderError as error:
            skipped.skip(beside, str(error))
            continue
        clips += _clips(beside, name, frames, skipped)
    for name, files in stored.items():
        if not drawn.get(name) and (files or not _has_folders(name, stored)):
            hint = other_spelling(name, drawn_names)
            skipped.skip(images / name, f'{_count(files, "image")} without labels: no PNG in {labels / name}{hint}'
                         if files else 'no JPEG or PNG in it')
    return clips


def _files(folder: Path, suffixes: set[str], skipped: SkippedFiles) -> Folder:
    return {place.relative_to(folder).as_posix(): files_in(place, suffixes)
            for place in folders_below(folder, skipped.skip)}


def _has_folders(name: str, folders: Folder) -> bool:
    return name == '.' or any(other.startswith(f'{name}/') for other in folders)


def _one_resolution(images: Path, stored: Folder, drawn: Folder, skipped: SkippedFiles) -> None:
    """Skip copies of the clips in other resolutions."""
    present = [name for name in RESOLUTIONS if _has_folders(name, stored) and _has_folders(name, drawn)]
    for name in present[1:]:
        skipped.skip(images / name, f'the clips of {present[0]} in another resolution')
        for folders in (stored, drawn):
            for key in [key for key in folders if key == name or key.startswith(f'{name}/')]:
                del folders[key]


def _pairs(folder: Path, images: list[Path], labels: list[Path], skipped: SkippedFiles) -> list[tuple[Path, Path]]:
    """Return image and label file of the labelled frames, in order."""
    by_stem = {path.stem: path for path in images}
    stems = by_spelling(by_stem)
    for path in labels:
        if path.stem not in by_stem:
            skipped.skip(path, f'no image {path.stem}.jpg in {folder}{other_spelling(path.stem, stems)}')
    return [(by_stem[path.stem], path) for path in labels if path.stem in by_stem]


def _clips(folder: Path, name: str, frames: list[tuple[Path, Path]], skipped: SkippedFiles) -> list[DavisClip]:
    """Return one clip, or one for each image where they are not the frames of a video."""
    if not frames:
        return []
    reason = not_one_sequence([image.stem for image, _ in frames])
    if name == '.' or name in RESOLUTIONS:
        reason = 'they are not in a folder of their own'
    if reason is None or len(frames) == 1:
        return [DavisClip(str(folder), frames)]
    skipped.doubt(folder, f'{len(frames)} labelled images are used as single images, not as a video: {reason}; put '
                          f'the frames of one video, numbered alike, into one folder')
    return [DavisClip(str(image), [(image, label)]) for image, label in frames]


def _count(files: list[Path], what: str) -> str:
    return f'{len(files)} {what}{"" if len(files) == 1 else "s"}'


class DavisClip:
    """One clip: image and label file of every labelled frame."""

    def __init__(self, name: str, frames: list[tuple[Path, Path]]) -> None:
        self.name, self.frames = name, frames

    def __len__(self) -> int:
        return len(self.frames)

    def read(self, frames: Sequence[int]) -> Labelled:
        """Return these frames; objects are the ids found in them. Raises BrokenSample."""
        labels = [read_labels(self.frames[i][1]) for i in frames]
        images = [read_image(self.frames[i][0], label.shape) for i, label in zip(frames, labels, strict=True)]
        for i, image, label in zip(frames, images, labels, strict=True):
            if image.shape[:2] != label.shape:
                raise BrokenSample(self.frames[i][1], f'labels of {label.shape[1]}x{label.shape[0]} for an image of '
                                                      f'{image.shape[1]}x{image.shape[0]}')
        ids = np.unique(np.concatenate([np.unique(label) for label in labels]))
        ids = ids[ids > 0]
        masks = [label[None] == ids[:, None, None] for label in labels]
        return same_sizes(self.name, Labelled(images, masks))
