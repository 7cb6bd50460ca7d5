"""Our own label topics in bags, as training data: what a fleet recorded, corrected by people, trains the next model.

    DIR/.../<bag>/metadata.yaml or <bag>.mcap, with an image topic (Image or CompressedImage) and a label topic:
    sam2_ros/InstanceArray (``~/instances``), or Image with encoding mono16 (``~/label_image``)

Images and labels are paired by the stamp in their header. Reads bags with rosbags alone: no ROS installation is needed.
"""
from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from rosbags.highlevel import AnyReader
from rosbags.image import message_to_cvimage
from rosbags.interfaces import Connection

from sam2_core.training.datasets import BrokenSample, Format, Labelled, SkippedFiles
from sam2_ros.bag_files import COMPRESSED, IMAGE, by_topic, described, is_camera, open_reader, stamps
from sam2_ros.compressed_images import decompress
from sam2_ros.encodings import ImageError, check_encoding

SEGMENT = 100  # labelled frames: a long bag becomes several recordings, so that some can be held out
_INSTANCES = 'sam2_ros/msg/InstanceArray'


class _Frame(NamedTuple):
    stamp: int  # of the headers, ns
    image_time: int  # of the bag's records, ns
    label_time: int


def bag_format(image_topic: str | None = None, label_topic: str | None = None) -> Format:
    """Bags as a data layout. Topics that are not given are found: the label topic by its type (instances before label
    images), the image topic as the one with the most stamps of the labels."""

    def find(folder: Path, skipped: SkippedFiles) -> list[LabelledBag]:
        segments = []
        for path in _bags(folder):
            try:
                segments += _open(path, image_topic, label_topic)
            except BrokenSample as error:
                skipped.add(error)
            except Exception as error:  # a damaged bag may fail anywhere in its parsers
                skipped.add(BrokenSample(path, f'not a bag that can be read ({type(error).__name__}: {error})'))
        return segments

    return Format(lambda folder: bool(_bags(folder)), find, 'ROS 2 bags with images and instances or label images')


def _bags(folder: Path) -> list[Path]:
    """Bag folders, and files that lie in none."""
    folders = sorted(path.parent for path in folder.rglob('metadata.yaml'))
    return folders + sorted(path for path in folder.rglob('*.mcap') if path.parent not in folders)


def _open(path: Path, image_topic: str | None, label_topic: str | None) -> list[LabelledBag]:
    with open_reader([path]) as reader:
        label = _label_connections(reader, path, label_topic)
        images = _image_connections(reader, path, image_topic, label[0].topic)
        labels = dict(stamps(reader, label))
        best: dict[int, int] = {}
        chosen: list[Connection] = []
        for connections in images:
            times = dict(stamps(reader, connections))
            found = {stamp: time for stamp, time in times.items() if stamp in labels}
            if len(found) > len(best):
                best, chosen = found, connections
    if not best:
        tried = ', '.join(connections[0].topic for connections in images)
        raise BrokenSample(path, f'no stamp of {label[0].topic} is that of an image on {tried}')
    frames = [_Frame(stamp, best[stamp], labels[stamp]) for stamp in sorted(best)]
    return [LabelledBag(path, chosen[0].topic, label[0].topic, start, frames[start:start + SEGMENT])
            for start in range(0, len(frames), SEGMENT)]


def _label_connections(reader: AnyReader, path: Path, wanted: str | None) -> list[Connection]:
    instances = by_topic(reader, [_INSTANCES])
    images = {topic: found for topic, found in by_topic(reader, [IMAGE]).items()
              if topic == wanted or topic.endswith('label_image')}
    topics = instances | images
    if wanted is not None and wanted not in topics:
        raise BrokenSample(path, f'no labels on {wanted}; {described(topics)}')
    if not topics:
        raise BrokenSample(path, f'no label topic: {_INSTANCES}, or {IMAGE} on a topic that ends in label_image')
    return topics[wanted or next(iter(topics))]


def _image_connections(reader: AnyReader, path: Path, wanted: str | None, label: str) -> list[list[Connection]]:
    topics = {topic: found for topic, found in by_topic(reader, [IMAGE, COMPRESSED]).items() if topic != label}
    if wanted is not None:
        if wanted not in topics:
            raise BrokenSample(path, f'no images on {wanted}; {described(topics)}')
        return [topics[wanted]]
    # depth and our own pictures of the masks carry the same stamps
    candidates = {topic: found for topic, found in topics.items() if is_camera(reader, found)}
    if not candidates:
        raise BrokenSample(path, f'no topic of colour images; {described(topics)}')
    return list(candidates.values())


class LabelledBag:
    """A part of a bag: frames with their labels."""

    def __init__(self, path: Path, image_topic: str, label_topic: str, start: int, frames: list[_Frame]) -> None:
        self.name = f'{path}[{start}:{start + len(frames)}]'
        self.path, self.image_topic, self.label_topic, self.frames = path, image_topic, label_topic, frames

    def __len__(self) -> int:
        return len(self.frames)

    def read(self, frames: Sequence[int]) -> Labelled:
        """Objects are the ids found in these frames."""
        wanted = [self.frames[i] for i in frames]
        try:
            with open_reader([self.path]) as reader:
                images = [_image(message) for message in self._messages(reader, self.image_topic, [
                    (frame.stamp, frame.image_time) for frame in wanted])]
                labels = [_labels(message) for message in self._messages(reader, self.label_topic, [
                    (frame.stamp, frame.label_time) for frame in wanted])]
        except (BrokenSample, ImageError) as error:
            raise BrokenSample(self.name, getattr(error, 'reason', str(error))) from error
        except Exception as error:  # see bag_format
            raise BrokenSample(self.name, f'{type(error).__name__}: {error}') from error
        ids = sorted(set().union(*labels))
        masks = []
        for frame, image, found in zip(wanted, images, labels, strict=True):
            sizes = {mask.shape for mask in found.values()} - {image.shape[:2]}
            if sizes:
                height, width = sizes.pop()
                raise BrokenSample(self.name, f'stamp {frame.stamp}: labels of {width}x{height} for an image of '
                                              f'{image.shape[1]}x{image.shape[0]}')
            empty = np.zeros(image.shape[:2], bool)
            masks.append(np.stack([found.get(number, empty) for number in ids] or [empty]))
        if len({image.shape for image in images}) > 1:
            raise BrokenSample(self.name, 'images change in size')
        return Labelled(images, masks)

    @staticmethod
    def _messages(reader: AnyReader, topic: str, wanted: Sequence[tuple[int, int]]) -> list:
        """The messages of these stamps (and bag times), in that order."""
        connections = [connection for connection in reader.connections if connection.topic == topic]
        times, stamps = {time for _, time in wanted}, {stamp for stamp, _ in wanted}
        found = {}
        for connection, time, raw in reader.messages(connections, start=min(times), stop=max(times) + 1):
            if time in times:
                message = reader.deserialize(raw, connection.msgtype)
                stamp = message.header.stamp.sec * 1_000_000_000 + message.header.stamp.nanosec
                if stamp in stamps:
                    found[stamp] = message
        return [found[stamp] for stamp, _ in wanted]


def _image(message) -> np.ndarray:
    """Return the pixels that the node takes from a message. Raises ImageError for what it refuses."""
    if message.__msgtype__ == COMPRESSED:
        return decompress(message.data.tobytes(), message.format)
    message.encoding = check_encoding(message.encoding)
    return np.ascontiguousarray(message_to_cvimage(message, 'rgb8'))


def _labels(message) -> dict[int, np.ndarray]:
    """Id -> bool mask of the whole image; an instance that is not visible has an empty one."""
    if message.__msgtype__ == _INSTANCES:
        return {instance.id: _instance_mask(instance, message.height, message.width) for instance in message.instances}
    if message.encoding not in ('mono16', '16UC1'):
        raise BrokenSample('label image', f'label image with encoding {message.encoding}: must be mono16')
    ids = message_to_cvimage(message)
    return {int(number): ids == number for number in np.unique(ids) if number}


def _instance_mask(instance, height: int, width: int) -> np.ndarray:
    mask = np.zeros((height, width), bool)
    roi = instance.roi
    if roi.width and roi.height:
        crop = message_to_cvimage(instance.mask) != 0
        if crop.shape != (roi.height, roi.width) or roi.y_offset + roi.height > height \
                or roi.x_offset + roi.width > width:
            raise BrokenSample('instances', f'instance {instance.id}: mask of {crop.shape[1]}x{crop.shape[0]} in a box '
                                            f'of {roi.width}x{roi.height} in an image of {width}x{height}')
        mask[roi.y_offset:roi.y_offset + roi.height, roi.x_offset:roi.x_offset + roi.width] = crop
    return mask
