"""Topics of bags by content, and heads of messages without decoding them. Needs no ROS."""
from __future__ import annotations

import struct
from typing import NamedTuple

from sam2_ros.messages.compressed_depth import read_depth_file
from sam2_ros.messages.compressed_images import DEPTH_TRANSPORT, read_head
from sam2_ros.messages.encodings import GREY, ImageError, find_encoding
from sam2_ros.recordings.bag_reader import BagReader
from sam2_ros.recordings.bag_storage import Channel

IMAGE, COMPRESSED = 'sensor_msgs/msg/Image', 'sensor_msgs/msg/CompressedImage'
DEPTH_ENCODINGS = ('mono16', '16UC1', '32FC1')
# Endings of topics whose images were drawn from masks, by this node and others.
DRAWN = ('label_image', 'class_image', 'confidence', 'overlay', 'truth')


class ImageMessageHead(NamedTuple):
    """Stamp, encoding, size and frame of an Image or CompressedImage."""

    stamp: int  # ns
    encoding: str  # format of a CompressedImage
    height: int  # 0 if a CompressedImage holds no JPEG, PNG or depth that can be read
    width: int
    frame_id: str
    bits: int = 0  # per channel of a compressed image


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
    """Return whether an image topic is that of a grey or colour camera, by its first message, and not of masks."""
    if connections[0].topic.removesuffix('/compressed').endswith(DRAWN):
        return False
    head = first_head(reader, connections)
    encoding = head.encoding if head is not None else ''
    if connections[0].msgtype == COMPRESSED:
        source, names_it, _ = encoding.partition(';')
        deep = head is not None and head.bits > 8 and not names_it  # depth as a plain PNG
        return not deep and source.strip() not in DEPTH_ENCODINGS and 'compressedDepth' not in encoding
    return encoding not in DEPTH_ENCODINGS


def is_infrared(reader: BagReader, connections: list[Channel]) -> bool:
    """Return whether an image topic may be that of a grey camera with 16 bits, such as a thermal one, and not depth."""
    topic = connections[0].topic.removesuffix('/compressed')
    head = first_head(reader, connections)
    if head is None or topic.endswith(DRAWN) or 'depth' in topic.lower() or DEPTH_TRANSPORT in head.encoding:
        return False
    named = find_encoding(head.encoding.partition(';')[0].strip())
    return named is not None and (named.kind, named.bits) == (GREY, 16)


def first_head(reader: BagReader, connections: list[Channel]) -> ImageMessageHead | None:
    """Return the head of the first whole image on a topic, or None."""
    for _, _, raw in reader.messages(connections):
        try:
            return image_head(raw, connections[0].msgtype)
        except ValueError:
            continue
    return None


def header_stamp(raw: bytes) -> int:
    """Return the stamp of a serialised message (CDR) in nanoseconds. Raises ValueError if it is cut off."""
    if len(raw) < 12:  # the stamp follows four bytes of encapsulation
        raise ValueError(f'cut off after {len(raw)} bytes')
    seconds, nanoseconds = struct.unpack_from(f'{_order(raw)}iI', raw, 4)
    return seconds * 1_000_000_000 + nanoseconds


def image_head(raw: bytes, kind: str) -> ImageMessageHead:
    """Return the head of a serialised IMAGE or COMPRESSED (CDR). Raises ValueError unless the message is whole."""
    height = width = bits = 0
    try:
        at = _after_string(raw, 12, aligned=False)
        frame_id = raw[16:at].rstrip(b'\0').decode()
        at = _aligned(at)
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
        data = raw[end + 4:end + 4 + size]
        try:
            if DEPTH_TRANSPORT in encoding:
                file, bits = read_depth_file(data, encoding), 16
                height, width = file.height, file.width
            else:
                head = read_head(data)
                height, width, bits = head.height, head.width, head.bits
        except ImageError:
            bits = 0
    return ImageMessageHead(header_stamp(raw), encoding, height, width, frame_id, bits)


def _order(raw: bytes) -> str:
    return '<' if raw[1] & 1 else '>'


def _after_string(raw: bytes, at: int, aligned: bool = True) -> int:
    size, = struct.unpack_from(f'{_order(raw)}I', raw, at)
    return _aligned(at + 4 + size) if aligned else at + 4 + size


def _aligned(at: int) -> int:
    """Return the next offset for a number of four bytes. The encapsulation, also of four bytes, does not count."""
    return at + -at % 4
