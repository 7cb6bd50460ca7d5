"""Common parts of the readers of a bag's files. Needs no ROS."""
from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd  # comes with rosbags

ZSTD = b'\x28\xb5\x2f\xfd'  # the first bytes of zstd data
_AT_A_TIME = 1 << 20  # bytes


class BagError(ValueError):
    """Error for a bag that cannot be used; the text names the file and the cure."""


class Channel(NamedTuple):
    """Messages of one type on one topic in one file."""

    topic: str
    msgtype: str  # for example sensor_msgs/msg/Image
    msgcount: int
    encoding: str  # of the messages; cdr in ROS 2
    language: str = ''  # of the definition, ros2msg or ros2idl; empty without a definition
    definition: str = ''
    number: int = 0  # within its file
    file: StorageFile | None = None


class StorageFile:
    """One open file of a bag."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.channels: list[Channel] = []
        self.problems: list[str] = []  # unreadable data, with the cure
        self.start_time = self.end_time = 0  # ns, of the first and last message

    def messages(self, channels: list[Channel], start: int | None = None,
                 stop: int | None = None) -> Iterator[tuple[Channel, int, bytes]]:
        """Yield channel, time (ns) and data of the messages with ``start`` <= time < ``stop``, by time."""
        raise NotImplementedError

    def close(self) -> None:
        """Close the file."""
        raise NotImplementedError


def unzstd(data: bytes, whole: bool = True) -> bytes:
    """Decompress zstd data, cut-off data as far as they go. Raises ValueError for damaged data.

    whole: refuse data that are cut off, too.
    """
    try:
        if whole:
            return zstd.decompress(data)
        return zstd.ZstdDecompressor().decompress(data)
    except zstd.ZstdError as error:
        raise ValueError(f'damaged ({error})') from None


def unpack_file(source: Path, target: Path) -> str:
    """Decompress a zstd file and return why its end is missing, or ''. Raises OSError if the disk is full."""
    decompressor, inside = zstd.ZstdDecompressor(), False  # a file may have several frames
    with source.open('rb') as packed, target.open('wb') as unpacked:
        while data := packed.read(_AT_A_TIME):
            while data:
                try:
                    unpacked.write(decompressor.decompress(data))
                except zstd.ZstdError as error:
                    return f'damaged ({error})'
                data, inside = b'', not decompressor.eof
                if decompressor.eof:
                    data, decompressor = decompressor.unused_data, zstd.ZstdDecompressor()
    return 'cut off' if inside else ''
