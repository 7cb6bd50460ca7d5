"""The DAVIS folder layout, also that of YouTube-VOS and MOSE:

    DIR/JPEGImages/[480p/]<clip>/00000.jpg ...
    DIR/Annotations/[480p/]<clip>/00000.png ...     indexed PNG, the index is the object, 0 the background
"""
from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from sam2_core.training.datasets.pictures import read_image, read_labels
from sam2_core.training.datasets.recordings import BrokenSample, Labelled, SkippedFiles, same_sizes

_IMAGES = {'.jpg', '.jpeg', '.png'}


def matches(folder: Path) -> bool:
    """Does the folder have this layout?"""
    return (folder / 'JPEGImages').is_dir() and (folder / 'Annotations').is_dir()


def find(folder: Path, skipped: SkippedFiles) -> list[DavisClip]:
    """Every folder of images that has labels. Frames without a label file are left out; they are not labelled."""
    clips = []
    for labels in sorted({path.parent for path in (folder / 'Annotations').rglob('*.png')}):
        images = folder / 'JPEGImages' / labels.relative_to(folder / 'Annotations')
        stored = {path.stem: path for path in sorted(images.glob('*')) if path.suffix.lower() in _IMAGES}
        frames = []
        for label in sorted(labels.glob('*.png')):
            if label.stem in stored:
                frames.append((stored[label.stem], label))
            else:
                skipped.add(BrokenSample(label, f'no image {label.stem}.jpg in {images}'))
        if frames:
            clips.append(DavisClip(str(images), frames))
    return clips


class DavisClip:
    """One clip: image and label file of every labelled frame."""

    def __init__(self, name: str, frames: list[tuple[Path, Path]]) -> None:
        self.name, self.frames = name, frames

    def __len__(self) -> int:
        return len(self.frames)

    def read(self, frames: Sequence[int]) -> Labelled:
        """Objects are the ids found in these frames."""
        images = [read_image(self.frames[i][0]) for i in frames]
        labels = [read_labels(self.frames[i][1]) for i in frames]
        for i, image, label in zip(frames, images, labels, strict=True):
            if image.shape[:2] != label.shape:
                raise BrokenSample(self.frames[i][1], f'labels of {label.shape[1]}x{label.shape[0]} for an image of '
                                                      f'{image.shape[1]}x{image.shape[0]}')
        ids = np.unique(np.concatenate([np.unique(label) for label in labels]))
        ids = ids[ids > 0]
        masks = [label[None] == ids[:, None, None] for label in labels]
        return same_sizes(self.name, Labelled(images, masks))
