"""Topics of bags by content, and heads of messages without decoding them. Needs no ROS."""
from __future__ import annotations

import struct
from typing import NamedTuple

from sam2_ros.messages.compressed_images import read_head
from sam2_ros.messages.encodings import ImageError
from sam2_ros.recordings.bag_reader import BagReader
from sam2_ros.recordings.bag_storage import Channel

IMAGE, COMPRESSED = 'sensor_msgs/msg/Image', 'sensor_msgs/msg/CompressedImage'
DEPTH_ENCODINGS = ('mono16', '16UC1', '32FC1')
# Endings of topics whose images were drawn from masks, by this node and others.
DRAWN = ('label_image', 'class_image', 'confidence', 'overlay', 'truth')


class ImageMessageHead(NamedTuple):
    """Stamp, encoding and size of an Image or CompressedImage."""

    stamp: int  # ns
    encoding: str  # format of a CompressedImage
    height: int  # 0 if a CompressedImage holds no JPEG or PNG
    width: int


def described(topics: dict[str, list[Channel]]) -> str:
    """Return topics with type, encoding unless it is that of ROS 2, and number of messages, as text."""
    if not topics:
        return 'there are none'
    return 'there are ' + ', '.join(
        f'{topic} ({", ".join(sorted({_kind(channel) for channel in channels}))}, '
        f'{sum(channel.msgcount for channel in channels)} messages)'
        for topic, channels in sorted(topics.items()))


def _kind(channel: Channel) -> str:
    return channel.msgtype if channel.encoding == 'cdr' else f'{channel.msgtype} in {channel.encoding or "no encoding"}'


def is_camera(reader: BagReader, connections: list[Channel]) -> bool:
    """Return whether name and first message of an image topic are those of a grey or colour camera."""
    topic = connections[0].topic.removesuffix('/compressed')
    if topic.endswith(DRAWN):
        return False
    encoding = first_encoding(reader, connections)
    if connections[0].msgtype == COMPRESSED:
        return 'depth' not in f'{topic}{encoding}'.lower() and encoding.partition(';')[0] not in DEPTH_ENCODINGS
    return encoding not in DEPTH_ENCODINGS


def first_encoding(reader: BagReader, connections: list[Channel]) -> str:
    """Return the encoding of the first whole image on a topic, or an empty string."""
    for _, _, raw in reader.messages(connections):
        try:
            return image_head(raw, connections[0].msgtype).encoding
        except ValueError:
            continue
    return ''


def header_stamp(raw: bytes) -> int:
    """Return the stamp of a serialised message (CDR) in nanoseconds. Raises ValueError if it is cut off."""
    if len(raw) < 12:  # the stamp follows four bytes of encapsulation
        raise ValueError(f'cut off after {len(raw)} bytes')
    seconds, nanoseconds = struct.unpack_from(f'{_order(raw)}iI', raw, 4)
    return seconds * 1_000_000_000 + nanoseconds


def image_head(raw: bytes, kind: str) -> ImageMessageHead:
    """Return the head of a serialised IMAGE or COMPRESSED (CDR). Raises ValueError unless the message is whole."""
    height = width = 0
    try:
        at = _after_string(raw, 12)  # frame_id
        if kind == IMAGE:
            height, width = struct.unpack_from(f'{_order(raw)}II', raw, at)
            at += 8
        end = _after_string(raw, at, aligned=False)
        encoding = raw[at + 4:end].rstrip(b'\0').decode()
        if kind == IMAGE:
            end = _aligned(end + 1) + 4  # is_bigendian, step
        end = _aligned(end)
        size, = struct.unpack_from(f'{_order(raw)}I', raw, end)
    except (struct.error, IndexError, UnicodeDecodeError):
        raise ValueError(f'cut off or broken: its {len(raw)} bytes hold no image') from None
    if end + 4 + size > len(raw):
        raise ValueError(f'cut off: {len(raw)} of {end + 4 + size} bytes')
    if kind == COMPRESSED:
        try:
            head = read_head(raw[end + 4:end + 4 + size])
            height, width = head.height, head.width
        except ImageError:
            pass
    return ImageMessageHead(header_stamp(raw), encoding, height, width)


def _order(raw: bytes) -> str:
    return '<' if raw[1] & 1 else '>'


def _after_string(raw: bytes, at: int, aligned: bool = True) -> int:
    size, = struct.unpack_from(f'{_order(raw)}I', raw, at)
    return _aligned(at + 4 + size) if aligned else at + 4 + size


def _aligned(at: int) -> int:
    """Return the next offset for a number of four bytes. The encapsulation, also of four bytes, does not count."""
    return at + -at % 4
