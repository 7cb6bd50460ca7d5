"""Writer of mcap bags with the definitions of all types, which RViz, Foxglove and rosbags can open."""
from __future__ import annotations

import functools
import re
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from rclpy.serialization import serialize_message
from rosbags.interfaces import Connection
from rosbags.rosbag2 import CompressionFormat, CompressionMode, StoragePlugin, Writer
from rosbags.typesys import Stores, get_types_from_msg, get_typestore
from rosbags.typesys.store import Typestore

from sam2_ros import msg

_VERSION: Literal[8] = 8  # of the metadata, the newest that Humble reads
_NAMES = {'float': 'float32', 'double': 'float64', 'boolean': 'bool', 'octet': 'byte'}  # IDL type -> type in .msg files


class BagWriter:
    """Compressed bag that is written. A topic is created with its first message."""

    def __init__(self, path: Path) -> None:
        """Raise FileExistsError if there is something at ``path`` already."""
        if path.exists():
            raise FileExistsError(f'bag {path}: exists already; remove it, or choose another path')
        self._writer = Writer(path, version=_VERSION, storage_plugin=StoragePlugin.MCAP)
        self._writer.set_compression(CompressionMode.STORAGE, CompressionFormat.ZSTD)
        self._connections: dict[str, Connection] = {}

    def write(self, topic: str, message: Any, time: int) -> None:
        """Write a message of rclpy as recorded at ``time``, in ns."""
        kind = type_name(type(message))
        if topic not in self._connections:
            self._connections[topic] = self._writer.add_connection(topic, kind, typestore=typestore())
        self._writer.write(self._connections[topic], time, serialize_message(message))

    def __enter__(self) -> BagWriter:
        self._writer.open()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 traceback: TracebackType | None) -> None:
        self._writer.__exit__(kind, error, traceback)


def type_name(kind: type) -> str:
    """Return the type name of a message class as in bags, for example sensor_msgs/msg/Image."""
    return f'{kind.__module__.split(".")[0]}/msg/{kind.__name__}'


@functools.cache
def typestore() -> Typestore:
    """Return the message types of ROS 2 and of this project, for rosbags."""
    store = get_typestore(Stores.ROS2_JAZZY)
    for name, kind in vars(msg).items():
        if isinstance(kind, type):
            store.register(get_types_from_msg(_definition(kind), f'sam2_ros/msg/{name}'))
    return store


def _definition(kind: Any) -> str:
    """Return the fields of a message class as in a .msg file."""
    lines = []
    for name, declared in kind.get_fields_and_field_types().items():
        sequence = re.fullmatch(r'sequence<(.*?)(?:, (\d+))?>', declared)
        element, bound = (sequence[1], sequence[2]) if sequence else (declared, None)
        brackets = f'[{f"<={bound}" if bound else ""}]' if sequence else ''
        lines.append(f'{_NAMES.get(element, element)}{brackets} {name}\n')
    return ''.join(lines)
