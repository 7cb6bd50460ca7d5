"""Tracked masks of a run as training data: COCO, DAVIS folders or a label bag. ``sam2_train`` reads all three.

    coco     DIR/images/<recording>_00012.jpg     DIR/annotations/instances_<recording>.json
    davis    DIR/JPEGImages/<recording>/00012.jpg     DIR/Annotations/<recording>/00012.png
    bag      DIR/<recording>/ with the images and, on /sam2/instances, the instances

Several recordings can share a folder.
"""
from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from sensor_msgs.msg import CompressedImage, Image

from sam2_core.datasets import run_length
from sam2_core.datasets.coco_annotations import NO_LABEL, annotation
from sam2_core.datasets.image_files import jpeg, label_png
from sam2_ros.drawing.label_images import label_image
from sam2_ros.evaluation.metrics import Exported
from sam2_ros.evaluation.report.processed_frames import Processed, Progress, processed
from sam2_ros.evaluation.results import Run
from sam2_ros.messages.compressed_images import plain_jpeg
from sam2_ros.perception.instance_messages import instance_array
from sam2_ros.recordings.bag_writer import BagWriter
from sam2_ros.recordings.recording import Recording

MIN_SCORE = 0.5
MOSTLY = 0.5  # minimum share of an object's visible images in which its score must reach the threshold
JPEG_QUALITY = 95


def export(kind: str, run: Run, recording: Recording, folder: Path, min_score: float = MIN_SCORE,
           progress: Progress | None = None) -> Exported:
    """Write the tracked masks of a run into a folder, beside those of other recordings.

    Masks are written of objects that are TRACKED with a score (predicted IoU) of at least ``min_score``. Readers of
    clips (davis, bag) take an object without a mask for hidden. For them, objects whose score is too low in most images
    are left out first; then images in which the score of another object is too low are skipped.

    Args:
        kind: Key of WRITERS.
        run: Run to export.
        recording: Recording of the run.
        folder: Output folder, created if necessary.
        min_score: Minimum predicted IoU, 0 to 1.
        progress: Function that is called with the number of images written and the total.

    Returns:
        The counts of images and masks.

    Raises:
        ValueError: ``kind`` is unknown, or ``min_score`` is out of range.
        FileExistsError: The folder already has this recording.
    """
    if kind not in WRITERS:
        raise ValueError(f"export '{kind}': must be one of {', '.join(WRITERS)}")
    if not 0 <= min_score <= 1:
        raise ValueError(f'min_score {min_score:g}: must be 0 to 1')
    chosen = _Chosen(run, recording, min_score, kind != 'coco', progress)
    WRITERS[kind](chosen, folder, recording.name.strip('/').replace('/', '_'), recording)
    return Exported(chosen.images, chosen.masks, chosen.unsure, chosen.empty, chosen.objects_left_out)


class _Chosen:
    """Images to write, each with its objects. Counts the images that are skipped."""

    def __init__(self, run: Run, recording: Recording, min_score: float, clips: bool,
                 progress: Progress | None) -> None:
        """Choose the objects; ``clips``: whether readers take an object without a mask for hidden."""
        self._frames = processed(run, recording, progress)
        self._min_score, self._clips = min_score, clips
        self.objects_left_out = _seldom_sure(run, min_score) if clips else ()
        self.images = self.masks = self.unsure = self.empty = 0

    def __iter__(self) -> Iterator[Processed]:
        for item in self._frames:
            known = [found for found in item.frame.objects if found.id not in self.objects_left_out]
            seen = [found for found in known if found.box is not None]
            sure = [found for found in seen if found.score >= self._min_score]
            if not seen:
                self.empty += 1
            elif not sure or self._clips and len(sure) < len(seen):
                self.unsure += 1
            else:
                self.images += 1
                self.masks += len(sure)
                hidden = [found for found in known if found.box is None]
                yield item._replace(frame=replace(item.frame, objects=sure + hidden))


def _seldom_sure(run: Run, min_score: float) -> tuple[int, ...]:
    """Return the objects whose scores are too low in most of the images in which they are visible."""
    scores: dict[int, list[float]] = {}
    for frame in run.frames:
        for object_id, found in frame.objects.items():
            if found.visible:
                scores.setdefault(object_id, []).append(found.score)
    return tuple(sorted(object_id for object_id, values in scores.items()
                        if sum(score >= min_score for score in values) < MOSTLY * len(values)))


def _new(path: Path) -> Path:
    if path.exists():
        raise FileExistsError(f'export {path}: already exists; remove it, or choose another folder')
    return path


def _write_picture(path: Path, message: Image | CompressedImage, rgb: np.ndarray) -> Path:
    """Write an image and return the file: JPEG data as recorded, other images as JPEG of high quality.

    EXIF data are removed: a reader might rotate the image by its EXIF orientation, but not the masks.
    """
    data = plain_jpeg(message.data.tobytes(), message.format) if isinstance(message, CompressedImage) else None
    if data is None:
        data = jpeg(rgb, JPEG_QUALITY)
    path.write_bytes(data)
    return path


# --- COCO

def _write_coco(chosen: _Chosen, folder: Path, name: str, recording: Recording) -> None:
    file = _new(folder / 'annotations' / f'instances_{name}.json')
    file.parent.mkdir(parents=True, exist_ok=True)
    (folder / 'images').mkdir(exist_ok=True)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    categories: dict[str, int] = {}
    for output, message, frame in chosen:
        path = _write_picture(folder / 'images' / f'{name}_{output.index:05}.jpg', message, frame.image)
        height, width = frame.image.shape[:2]
        images.append({'id': output.index + 1, 'file_name': path.name, 'height': height, 'width': width})
        for item in frame.objects:
            if item.box is None or item.mask is None:
                continue
            category = categories.setdefault(item.label or NO_LABEL, len(categories) + 1)
            annotations.append(annotation(len(annotations) + 1, output.index + 1, category, (height, width),
                                          run_length.encode(item.mask), item.box, int(np.count_nonzero(item.mask)),
                                          item.id, item.score))
    file.write_text(json.dumps({
        'images': images, 'annotations': annotations,
        'categories': [{'id': number, 'name': label} for label, number in categories.items()]}))


# --- DAVIS

def _write_davis(chosen: _Chosen, folder: Path, name: str, recording: Recording) -> None:
    """Write a clip, and a new one whenever the images change in size: the images of a clip have one size."""
    pictures, labels = _new_clip(folder, name)
    size, part = None, 1
    for output, message, frame in chosen:
        if frame.image.shape[:2] != size:
            if size is not None:
                part += 1
                pictures, labels = _new_clip(folder, f'{name}_part{part}')
            size = frame.image.shape[:2]
        _write_picture(pictures / f'{output.index:05}.jpg', message, frame.image)
        (labels / f'{output.index:05}.png').write_bytes(label_png(label_image(frame)))


def _new_clip(folder: Path, name: str) -> tuple[Path, Path]:
    """Create the folders of images and labels."""
    pictures, labels = _new(folder / 'JPEGImages' / name), _new(folder / 'Annotations' / name)
    pictures.mkdir(parents=True)
    labels.mkdir(parents=True)
    return pictures, labels


# --- bag

def _write_bag(chosen: _Chosen, folder: Path, name: str, recording: Recording) -> None:
    with BagWriter(_new(folder / name)) as bag:
        for output, message, frame in chosen:
            topic = '/image/compressed' if isinstance(message, CompressedImage) else '/image'
            bag.write(topic, message, recording.arrivals[output.index])
            bag.write('/sam2/instances', instance_array(frame), recording.arrivals[output.index])


WRITERS: dict[str, Callable[[_Chosen, Path, str, Recording], None]] = {
    'coco': _write_coco, 'davis': _write_davis, 'bag': _write_bag}
