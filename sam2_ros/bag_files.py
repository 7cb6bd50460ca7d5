"""ROS 2 bags as files: which topic holds what, and what can be said about a message without decoding it.

Reads bags with rosbags alone: no ROS installation is needed.
"""
from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from rosbags.highlevel import AnyReader
from rosbags.interfaces import Connection
from rosbags.typesys import Stores, get_typestore

IMAGE, COMPRESSED = 'sensor_msgs/msg/Image', 'sensor_msgs/msg/CompressedImage'
DEPTH_ENCODINGS = ('mono16', '16UC1', '32FC1')
# topics of pictures that no camera took: what this node and others make of masks
DRAWN = ('label_image', 'class_image', 'confidence', 'overlay', 'truth')


class ImageHead(NamedTuple):
    """What an Image or CompressedImage says before its pixels."""

    stamp: int  # ns
    encoding: str  # of a CompressedImage: its format
    height: int  # 0 in a CompressedImage, which does not say
    width: int


def open_reader(paths: Sequence[Path]) -> AnyReader:
    """A reader of one bag, or of files that make one, not yet opened. Bags from before Iron do not say how their
    messages are made: those of ROS 2 itself are known."""
    return AnyReader(paths, default_typestore=get_typestore(Stores.LATEST))


def by_topic(reader: AnyReader, types: Iterable[str]) -> dict[str, list[Connection]]:
    """The connections of each topic with messages of these types."""
    topics: dict[str, list[Connection]] = {}
    for connection in reader.connections:
        if connection.msgtype in types and connection.msgcount:
            topics.setdefault(connection.topic, []).append(connection)
    return topics


def described(topics: dict[str, list[Connection]]) -> str:
    """Topics with type and number of messages."""
    if not topics:
        return 'there are none'
    return 'there are ' + ', '.join(
        f'{topic} ({connections[0].msgtype}, {sum(connection.msgcount for connection in connections)} messages)'
        for topic, connections in sorted(topics.items()))


def is_camera(reader: AnyReader, connections: list[Connection]) -> bool:
    """Whether a topic of images shows what a camera saw in grey or colour, as far as name and first message tell."""
    topic = connections[0].topic.removesuffix('/compressed')
    if topic.endswith(DRAWN):
        return False
    encoding = first_encoding(reader, connections)
    if connections[0].msgtype == COMPRESSED:
        return 'depth' not in f'{topic}{encoding}'.lower() and encoding.partition(';')[0] not in DEPTH_ENCODINGS
    return encoding not in DEPTH_ENCODINGS


def first_encoding(reader: AnyReader, connections: list[Connection]) -> str:
    """Encoding of the first whole image on a topic; empty when there is none."""
    for _, _, raw in reader.messages(connections):
        try:
            return image_head(raw, connections[0].msgtype).encoding
        except ValueError:
            continue
    return ''


def stamps(reader: AnyReader, connections: list[Connection]) -> Iterator[tuple[int, int]]:
    """Stamp in the header and time in the bag, ns, of every message of a type that begins with a header."""
    for _, time, raw in reader.messages(connections):
        yield header_stamp(raw), time


def header_stamp(raw: bytes) -> int:
    """Nanoseconds. The stamp is the first thing after the four bytes of encapsulation."""
    if len(raw) < 12:
        raise ValueError(f'cut off after {len(raw)} bytes')
    seconds, nanoseconds = struct.unpack_from(f'{_order(raw)}iI', raw, 4)
    return seconds * 1_000_000_000 + nanoseconds


def image_head(raw: bytes, kind: str) -> ImageHead:
    """The head of a serialized IMAGE or COMPRESSED (CDR). ValueError when the message is not whole."""
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
        raise ValueError(f'cut off or broken: no image can be made of its {len(raw)} bytes') from None
    if end + 4 + size > len(raw):
        raise ValueError(f'cut off: {len(raw)} of {end + 4 + size} bytes')
    return ImageHead(header_stamp(raw), encoding, height, width)


def _order(raw: bytes) -> str:
    return '<' if raw[1] & 1 else '>'


def _after_string(raw: bytes, at: int, aligned: bool = True) -> int:
    size, = struct.unpack_from(f'{_order(raw)}I', raw, at)
    return _aligned(at + 4 + size) if aligned else at + 4 + size


def _aligned(at: int) -> int:
    """The next place for a number of four bytes; the encapsulation, of four bytes too, does not count."""
    return at + -at % 4
