"""The files that bags are made of: what their readers have in common. Needs no ROS."""
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
    """A bag that cannot be used; the text names the file and the cure."""


class Channel(NamedTuple):
    """Messages of one type on one topic in one file."""

    topic: str
    msgtype: str  # sensor_msgs/msg/Image
    msgcount: int
    encoding: str  # of the messages: cdr in ROS 2
    language: str = ''  # of the definition: ros2msg or ros2idl; empty: there is none
    definition: str = ''
    number: int = 0  # in its file
    file: StorageFile | None = None


class StorageFile:
    """One file of a bag, open."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.channels: list[Channel] = []
        self.problems: list[str] = []  # what could not be read, and the cure
        self.start_time = self.end_time = 0  # ns, of the first and last message

    def messages(self, channels: list[Channel], start: int | None = None,
                 stop: int | None = None) -> Iterator[tuple[Channel, int, bytes]]:
        """Yield channel, time (ns) and data of the messages with ``start`` <= time < ``stop``, by time."""
        raise NotImplementedError

    def close(self) -> None:
        raise NotImplementedError


def unzstd(data: bytes, whole: bool = True) -> bytes:
    """Decompress zstd data; as far as they go where they are not ``whole``. Raises ValueError for damaged data."""
    try:
        if whole:
            return zstd.decompress(data)
        return zstd.ZstdDecompressor().decompress(data)
    except zstd.ZstdError as error:
        raise ValueError(f'damaged ({error})') from None


def unpack_file(source: Path, target: Path) -> str:
    """Decompress a zstd file; return why the end of it is missing, or ''. Raises OSError when the disk is full."""
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
