"""Folders in the layout of DAVIS, which YouTube-VOS and MOSE have too, as recordings.

    DIR/JPEGImages/[480p/]<clip>/00000.jpg     DIR/Annotations/[480p/]<clip>/00000.png     DIR/ImageSets/[2017/]val.txt

The text files list clips by name.
"""
from __future__ import annotations

from pathlib import Path

from sam2_core.datasets.davis import RESOLUTIONS
from sam2_core.files import files_below, files_in, folders_below, natural_key
from sam2_ros.recordings.dataset_clips import RATE, DatasetClip
from sam2_ros.recordings.folder_clips import IMAGE_FORMATS, LABEL_SUFFIXES, folder_clip, label_files, names_in_split
from sam2_ros.recordings.recording import RecordingError


class DavisFolder:
    """A folder in the layout of DAVIS. Of several resolutions 480p is read.

    names: names of the clips; problems: clips and files that are not evaluated, with reasons.
    """

    def __init__(self, folder: Path | str, split: str = '') -> None:
        """List the clips. Raises RecordingError for a folder of another layout.

        split: read only the clips that ImageSets/.../SPLIT.txt lists: ``val``, or ``2017/val`` if there are several.
        """
        folder = Path(folder)
        images, labels = folder / 'JPEGImages', folder / 'Annotations'
        for needed in (images, labels):
            if not needed.is_dir():
                raise RecordingError(f'data {folder}: no folder {needed.name}: give the one that has JPEGImages and '
                                     f'Annotations')
        resolution = next((name for name in RESOLUTIONS if (images / name).is_dir()), '')
        self._images, self._labels = images / resolution, labels / resolution
        self.problems: list[str] = []
        found = self._folders_with(self._labels, LABEL_SUFFIXES)
        if '.' in found:
            raise RecordingError(f'data {self._labels}: PNG files that lie in no folder of a clip: put the frames of '
                                 f'each video into a folder of its own, here and in {self._images}')
        lists = files_below(folder / 'ImageSets', ('.txt',), lambda path, reason: None)  # a list is missed by its name
        listed = names_in_split(lists, folder, split)
        self.names = listed or sorted(found, key=natural_key)
        bare = sorted(self._folders_with(self._images, set(IMAGE_FORMATS)) - found, key=natural_key)
        if bare and not listed:
            self.problems.append(f'{len(bare)} clips of {self._images} have no annotation: {", ".join(bare[:5])}')
        if not self.names:
            raise RecordingError(f'data {self._labels}: no PNG files in it: there is nothing to compare with')

    def clip(self, name: str, rate: float = RATE) -> DatasetClip:
        """Return one of ``names``. Raises RecordingError if its files cannot be used."""
        labels = self._labels / name
        files = {path.stem: {0: path} for path in label_files(labels)}
        return folder_clip(name, self._images / name, labels, files, rate)

    def _folders_with(self, folder: Path, suffixes: set[str]) -> set[str]:
        """Return the relative paths of the folders below one that have files with these suffixes."""
        if not folder.is_dir():
            return set()
        places = folders_below(folder, lambda path, reason: self.problems.append(f'{path}: {reason}'))
        return {str(place.relative_to(folder)) for place in places if files_in(place, suffixes)}
