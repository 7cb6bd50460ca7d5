"""Label topics of the node in bags, as training data.

    DIR/.../<bag>/metadata.yaml or <bag>.mcap, with an image topic (Image or CompressedImage) and a label topic:
    sam2_ros/InstanceArray (``~/instances``), or Image with encoding mono16 (``~/label_image``)

Images and labels are paired by the stamp in their header. Needs no ROS: messages are decoded by rosbags.
"""
from __future__ import annotations

from collections.abc import Container, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rosbags.image import message_to_cvimage
from rosbags.typesys import Stores, get_types_from_idl, get_types_from_msg, get_typestore
from rosbags.typesys.store import Typestore

from sam2_core.datasets import BrokenSample, Format, Labelled, SkippedFiles
from sam2_core.files import Notice, folders_below, in_order
from sam2_core.masks import binary_mask
from sam2_ros.messages.compressed_images import decompress
from sam2_ros.messages.encodings import ImageError
from sam2_ros.messages.pixels import raw_to_rgb
from sam2_ros.recordings.bag_files import COMPRESSED, IMAGE, described, header_stamp, image_head, is_camera, is_infrared
from sam2_ros.recordings.bag_reader import SUFFIXES, BagReader
from sam2_ros.recordings.bag_storage import BagError, Channel

SEGMENT = 100  # labelled frames per recording: of a long bag, some recordings can be held out
_INSTANCES = 'sam2_ros/msg/InstanceArray'


class _Frame(NamedTuple):
    stamp: int  # of image and label, ns
    image_time: int  # recording time, ns
    label_time: int


def bag_format(image_topic: str | None = None, label_topic: str | None = None) -> Format:
    """Return the layout of bags with these topics.

    If a topic is None, it is found: the label topic by its type (instances before label images), the image topic as the
    one with the most stamps of the labels.
    """

    def find(folder: Path, skipped: SkippedFiles) -> list[LabelledBag]:
        segments = []
        for path in _bags(folder, skipped.skip):
            try:
                segments += _open(path, image_topic, label_topic, skipped)
            except BrokenSample as error:
                skipped.add(error)
            except BagError as error:
                skipped.add(BrokenSample(path, str(error)))
            except Exception as error:  # a parser may fail anywhere in a damaged bag
                skipped.add(BrokenSample(path, f'not a bag that can be read ({type(error).__name__}: {error})'))
        return segments

    return Format(lambda folder: bool(_bags(folder)), find, 'ROS 2 bags with images and instances or label images')


def _bags(folder: Path, notice: Notice = lambda path, reason: None) -> list[Path]:
    """Return bag folders, and bag files in folders without metadata.yaml. Links to folders are followed."""
    folders, files = [], []
    for path in folders_below(folder, notice):
        if (path / 'metadata.yaml').exists():
            folders.append(path)
        else:
            files += [file for file in in_order(path.iterdir()) if file.name.endswith(SUFFIXES) and file.is_file()]
    return folders + files


def _open(path: Path, image_topic: str | None, label_topic: str | None, skipped: SkippedFiles) -> list[LabelledBag]:
    """Return the parts of a bag, each with images of one size. Raises BrokenSample or BagError."""
    with BagReader(path) as reader:
        label = _label_connections(reader, path, label_topic)
        images = _image_connections(reader, path, image_topic, label[0].topic)
        labelled = [(header_stamp(raw), time) for _, time, raw in reader.messages(label)]
        labels = {stamp: time for stamp, time in labelled if stamp}
        best: dict[int, tuple[int, tuple[int, int]]] = {}
        chosen: list[Channel] = []
        doubts: list[str] = []
        equal: list[str] = []  # other cameras with as many stamps
        for connections in images:
            found, more = _listed(reader, connections, labels)
            if len(found) > len(best):
                best, chosen, doubts, equal = found, connections, more, []
            elif best and len(found) == len(best) and _camera(connections) != _camera(chosen):
                equal.append(connections[0].topic)
        if reader.problems:
            skipped.add(BrokenSample(f'{path} (in part)', '; '.join(reader.problems)))
    if not best:
        tried = ', '.join(connections[0].topic for connections in images)
        raise BrokenSample(path, f'no stamp of {label[0].topic} is that of an image on {tried}')
    if equal:
        raise BrokenSample(path, f'{chosen[0].topic} and {", ".join(equal)} have the stamps of {label[0].topic}: which '
                                 f'of them was labelled is unknown; name it with --image-topic')
    if unset := sum(not stamp for stamp, _ in labelled):
        doubts.append(f'{unset} labels without a stamp are not used')
    if lost := len(labels) - len(best):
        doubts.append(f'{lost} of {len(labels)} labels have the stamp of no usable image')
    if twice := len(labelled) - unset - len(labels):
        doubts.append(f'{twice} labels are followed by one of the same stamp, which is used')
    if doubts:
        skipped.doubt(path, f'{label[0].topic}: {"; ".join(doubts)}')
    bags, start = [], 0
    stamps = sorted(best)
    for stop in range(1, len(stamps) + 1):
        ends = stop == len(stamps) or stop - start == SEGMENT
        if ends or best[stamps[stop]][1] != best[stamps[start]][1]:  # a recording has frames of one size
            frames = [_Frame(stamp, best[stamp][0], labels[stamp]) for stamp in stamps[start:stop]]
            bags.append(LabelledBag(path, chosen[0], label[0], start, frames))
            start = stop
    return bags


def _listed(reader: BagReader, connections: list[Channel],
            labels: Container[int]) -> tuple[dict[int, tuple[int, tuple[int, int]]], list[str]]:
    """Return recording time, height and width of the whole images with labelled stamps, and doubts.

    The images are given by stamp.
    """
    found: dict[int, tuple[int, tuple[int, int]]] = {}
    repeated: set[int] = set()
    for _, time, raw in reader.messages(connections):
        try:
            head = image_head(raw, connections[0].msgtype)
        except ValueError:  # an image that is cut off cannot be trained on
            continue
        if head.stamp in labels:
            if head.stamp in found:
                repeated.add(head.stamp)
            found[head.stamp] = (time, (head.height, head.width))
    for stamp in repeated:  # which of the images was labelled is unknown
        del found[stamp]
    return found, [f'{len(repeated)} stamps are of several images, which are not used'] if repeated else []


def _camera(connections: list[Channel]) -> str:
    """Return the name of a camera's topic, the same for raw and compressed images."""
    return connections[0].topic.removesuffix('/compressed')


def _label_connections(reader: BagReader, path: Path, wanted: str | None) -> list[Channel]:
    """Return the channels of the label topic. Raises BrokenSample unless there is exactly one."""
    instances = reader.by_topic([_INSTANCES])
    images = {topic: found for topic, found in reader.by_topic([IMAGE]).items()
              if topic == wanted or topic.endswith('label_image')}
    topics = instances | images
    if wanted is not None and wanted not in topics:
        raise BrokenSample(path, f'no labels on {wanted}; {described(topics)}')
    if not topics:
        raise BrokenSample(path, f'no label topic: {_INSTANCES}, or {IMAGE} on a topic that ends in label_image')
    same_kind = list(instances or images)
    if wanted is None and len(same_kind) > 1:
        raise BrokenSample(path, f'labels on {" and ".join(same_kind)}: name one with --label-topic')
    return topics[wanted or next(iter(topics))]


def _image_connections(reader: BagReader, path: Path, wanted: str | None, label: str) -> list[list[Channel]]:
    """Return the channels of each topic that may hold the labelled images. Raises BrokenSample if there is none."""
    topics = {topic: found for topic, found in reader.by_topic([IMAGE, COMPRESSED]).items() if topic != label}
    if wanted is not None:
        if wanted not in topics:
            raise BrokenSample(path, f'no images on {wanted}; {described(topics)}')
        return [topics[wanted]]
    # Depth, and images that the node drew from masks, carry the same stamps.
    candidates = {topic: found for topic, found in topics.items() if is_camera(reader, found)} or {
        topic: found for topic, found in topics.items() if is_infrared(reader, found)}
    if not candidates:
        raise BrokenSample(path, f'no topic of colour images; {described(topics)}')
    return list(candidates.values())


class LabelledBag:
    """Part of a bag: frames with their labels."""

    def __init__(self, path: Path, image: Channel, label: Channel, start: int, frames: list[_Frame]) -> None:
        """image, label: any channel of each topic."""
        self.name = f'{path}[{start}:{start + len(frames)}]'
        self.path, self.frames = path, frames
        self.image_topic, self.label_topic = image.topic, label.topic
        self._types = {image.topic: image.msgtype, label.topic: label.msgtype}

    def __len__(self) -> int:
        return len(self.frames)

    def read(self, frames: Sequence[int]) -> Labelled:
        """Return these frames; objects are the ids found in them. Raises BrokenSample."""
        wanted = [self.frames[i] for i in frames]
        try:
            with BagReader(self.path) as reader:
                types = _typestore(reader, self._types.values())
                images = [_image(message) for message in self._messages(reader, types, self.image_topic, [
                    (frame.stamp, frame.image_time) for frame in wanted])]
                labels = [_labels(message) for message in self._messages(reader, types, self.label_topic, [
                    (frame.stamp, frame.label_time) for frame in wanted])]
        except (BrokenSample, ImageError) as error:
            raise BrokenSample(self.name, getattr(error, 'reason', str(error))) from error
        except Exception as error:  # a parser may fail anywhere in a damaged bag
            raise BrokenSample(self.name, f'{type(error).__name__}: {error}') from error
        ids = sorted({number for found in labels for number in found})
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

    def _messages(self, reader: BagReader, types: Typestore, topic: str,
                  wanted: Sequence[tuple[int, int]]) -> list[Any]:
        """Return the messages with these stamps and recording times, in that order."""
        kind = self._types[topic]
        channels = [channel for channel in reader.channels if (channel.topic, channel.msgtype) == (topic, kind)]
        times, stamps = {time for _, time in wanted}, {stamp for stamp, _ in wanted}
        found: dict[int, Any] = {}
        for _, time, raw in reader.messages(channels, start=min(times), stop=max(times) + 1):
            if time in times and header_stamp(raw) in stamps:
                found.setdefault(header_stamp(raw), types.deserialize_cdr(raw, kind))
        return [found[stamp] for stamp, _ in wanted]


def _typestore(reader: BagReader, kinds: Iterable[str]) -> Typestore:
    """Return the types of ROS 2 and these, as the bag defines them. Definitions of other types do not matter."""
    store = get_typestore(Stores.LATEST)
    for kind in kinds:
        if kind in store.fielddefs:
            continue
        channel = next((channel for channel in reader.channels if channel.msgtype == kind and channel.definition), None)
        if channel is None:
            raise BrokenSample(kind, 'its definition is not in the bag; record it with mcap, which stores definitions')
        if channel.language == 'ros2msg':
            types = get_types_from_msg(channel.definition, kind)
        else:
            types = {}
            for part in channel.definition.split('=' * 80 + '\n'):
                types |= get_types_from_idl(part.removeprefix('IDL: ').partition('\n')[2]
                                            if part.startswith('IDL: ') else part) if part.strip() else {}
        store.register({name: fields for name, fields in types.items() if name not in store.fielddefs})
    return store


def _image(message: Any) -> np.ndarray:
    """Return the pixels that the node reads from a message. Raises ImageError for messages that it refuses."""
    if message.__msgtype__ == COMPRESSED:
        return decompress(message.data.tobytes(), message.format)
    return raw_to_rgb(message)


def _labels(message: Any) -> dict[int, np.ndarray]:
    """Return bool masks of the whole image by id, an empty one for an instance that is not visible.

    Raises BrokenSample for a malformed message.
    """
    if message.__msgtype__ == _INSTANCES:
        ids = [instance.id for instance in message.instances]
        if len(set(ids)) < len(ids) or 0 in ids:
            raise BrokenSample('instances', f'ids {", ".join(map(str, sorted(ids)))}: must be above 0 and different')
        return {instance.id: _instance_mask(instance, message.height, message.width) for instance in message.instances}
    if message.encoding not in ('mono16', '16UC1'):
        raise BrokenSample('label image', f'label image with encoding {message.encoding}: must be mono16')
    pixels = message_to_cvimage(message)
    return {int(number): pixels == number for number in np.unique(pixels) if number}


def _instance_mask(instance: Any, height: int, width: int) -> np.ndarray:
    mask = np.zeros((height, width), bool)
    roi = instance.roi
    if roi.width and roi.height:
        try:
            crop = binary_mask(message_to_cvimage(instance.mask))
        except ValueError as error:
            raise BrokenSample('instances', f'instance {instance.id}: {error}') from None
        if crop.shape != (roi.height, roi.width) or roi.y_offset + roi.height > height \
                or roi.x_offset + roi.width > width:
            raise BrokenSample('instances', f'instance {instance.id}: mask of {crop.shape[1]}x{crop.shape[0]} in a box '
                                            f'of {roi.width}x{roi.height} in an image of {width}x{height}')
        mask[roi.y_offset:roi.y_offset + roi.height, roi.x_offset:roi.x_offset + roi.width] = crop
    return mask
