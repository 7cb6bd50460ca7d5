"""Files of results: label PNGs as in DAVIS, a PNG per object, COCO run lengths, frames, and an overlay video.

davis      DIR/Annotations/<clip>/00012.png: indexed PNG, index = object; the higher score where masks overlap
objects    DIR/Objects/<clip>/<id>/00012.png: 0 and 255, with overlaps
images     DIR/JPEGImages/<clip>/00012.jpg
coco       DIR/masks.json: run lengths of every object, with overlaps, and scores
video      DIR/overlay.mp4
"""
from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from sam2_core.datasets.coco_annotations import NO_LABEL, annotation
from sam2_core.datasets.image_files import VOID, jpeg, label_png, mask_png
from sam2_core.drawing.label_images import Layer, paint
from sam2_core.drawing.overlay import draw_objects
from sam2_core.drawing.video import VideoFile, captioned
from sam2_core.files import replacing
from sam2_core.offline.frames import FrameSource, UnreadableFrame
from sam2_core.offline.pictures import PictureFrames
from sam2_core.offline.store import FrameRecord, FrameStore

DAVIS, OBJECTS, IMAGES, COCO, VIDEO = KINDS = 'davis', 'objects', 'images', 'coco', 'video'
DEFAULT = (DAVIS, COCO, VIDEO)
JPEG_QUALITY = 95
OPACITY = 0.45
HIDDEN = 'not visible'
OUTPUTS = ('Annotations', 'Objects', 'JPEGImages', 'masks.json', 'overlay.mp4')  # in the folder


class DrawnObject(NamedTuple):
    """One object of an overlay."""

    id: int
    label: str
    score: float
    box: tuple[int, int, int, int] | None
    mask: np.ndarray | None


class ResultFiles:
    """Writer of the files that are chosen, of one clip."""

    def __init__(self, folder: Path, source: FrameSource, labels: Mapping[int, str], kinds: Iterable[str],
                 score: Callable[[float], float]) -> None:
        """Describe the files.

        Args:
            folder: Output folder.
            source: The frames.
            labels: Names of all objects, by id.
            kinds: Which of KINDS to write.
            score: Function from the predicted to the expected IoU.
        """
        self.folder, self._source, self._labels, self._kinds = folder, source, labels, tuple(kinds)
        self._score = score
        self._deep = max(labels) >= VOID
        self._clip = source.name

    def write_frame(self, frame: int, image: np.ndarray, record: FrameRecord) -> None:
        """Write the pictures of one frame."""
        name = self._source.frame_name(frame)
        size = record.height, record.width
        masks = {object_id: item.mask(*size) for object_id, item in record.objects.items() if item.box is not None}
        if DAVIS in self._kinds:
            layers = [Layer(self._score(item.iou), item.box, masks[object_id], object_id)
                      for object_id, item in record.objects.items() if item.box is not None]
            _write(self.folder / 'Annotations' / self._clip / f'{name}.png',
                   label_png(paint(size, layers, np.uint16), self._deep))
        if OBJECTS in self._kinds:
            for object_id in record.objects:
                mask = masks.get(object_id, np.zeros(size, bool))
                _write(self.folder / 'Objects' / self._clip / str(object_id) / f'{name}.png',
                       mask_png(mask))
        if IMAGES in self._kinds:
            _write(self.folder / 'JPEGImages' / self._clip / f'{name}.jpg', jpeg(image, JPEG_QUALITY))

    def finish(self, store: FrameStore, frames: range, caption: str) -> Iterator[int]:
        """Write the files that need all frames; yield after each frame of the video, so that the caller can stop."""
        if COCO in self._kinds:
            with replacing(self.folder / 'masks.json') as part:
                self._write_coco(part, store, frames)
        if VIDEO in self._kinds:
            part = self.folder / '.overlay.mp4'  # OpenCV chooses the container by the suffix
            with VideoFile(part, self._source.rate) as video:
                yield from self._write_video(video, store, frames, caption)
            part.replace(self.folder / 'overlay.mp4')

    def _write_coco(self, path: Path, store: FrameStore, frames: range) -> None:
        """Write the frames one by one: JSON of an hour of video has gigabytes."""
        names = sorted({label or NO_LABEL for label in self._labels.values()})
        categories = {name: number for number, name in enumerate(names, 1)}
        with path.open('w') as file:
            file.write('{"categories": ' + json.dumps([{'id': number, 'name': name}
                                                       for name, number in categories.items()]))
            file.write(',\n"images": [')
            between = ''
            for frame, record in _records(store, frames):
                file.write(between + json.dumps({'id': frame + 1, 'file_name': self._file_name(frame),
                                                 'height': record.height, 'width': record.width}))
                between = ',\n'
            file.write('],\n"annotations": [')
            number, between = 0, ''
            for frame, record in _records(store, frames):
                for object_id, item in record.objects.items():
                    if item.box is None:
                        continue
                    number += 1
                    category = categories[self._labels[object_id] or NO_LABEL]
                    file.write(between + json.dumps(annotation(
                        number, frame + 1, category, (record.height, record.width), item.counts, item.box, item.area,
                        object_id, self._score(item.iou))))
                    between = ',\n'
            file.write(']}\n')

    def _file_name(self, frame: int) -> str:
        if IMAGES in self._kinds:
            return f'JPEGImages/{self._clip}/{self._source.frame_name(frame)}.jpg'
        if isinstance(self._source, PictureFrames):
            return self._source.file_name(frame)
        return f'{self._source.frame_name(frame)}.jpg'

    def _write_video(self, video: VideoFile, store: FrameStore, frames: range, caption: str) -> Iterator[int]:
        size = None
        for frame, image in self._source.read(frames):
            record = store.read(frame)
            text = f'frame {frame}'
            if isinstance(image, UnreadableFrame) or record is None or record.unreadable:
                if size is None:
                    size = _first_size(store, frames)
                picture, text = np.zeros((*size, 3), np.uint8), f'frame {frame}: cannot be read'
            else:
                size = size or image.shape[:2]
                objects = [DrawnObject(object_id, self._labels[object_id], self._score(item.iou), item.box,
                                       None if item.box is None else item.mask(record.height, record.width))
                           for object_id, item in record.objects.items()]
                picture = fit_picture(draw_objects(image, objects, OPACITY, lambda item: HIDDEN), size)
            video.write(captioned(picture, text, caption))
            yield frame


def fit_picture(picture: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return a picture (H, W, 3) scaled to fit into this height and width, centred on black: videos have one size."""
    height, width = picture.shape[:2]
    if (height, width) == size:
        return picture
    scale = min(size[0] / height, size[1] / width)
    inner = max(1, round(height * scale)), max(1, round(width * scale))
    canvas = np.zeros((*size, 3), np.uint8)
    top, left = (size[0] - inner[0]) // 2, (size[1] - inner[1]) // 2
    canvas[top:top + inner[0], left:left + inner[1]] = cv2.resize(picture, inner[::-1], interpolation=cv2.INTER_AREA)
    return canvas


def _records(store: FrameStore, frames: range) -> Iterator[tuple[int, FrameRecord]]:
    for frame in frames:
        record = store.read(frame)
        if record is not None and not record.unreadable:
            yield frame, record


def _first_size(store: FrameStore, frames: range) -> tuple[int, int]:
    return next(((record.height, record.width) for _, record in _records(store, frames)), (360, 480))


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
