"""Messages into an mcap bag with the definition of every type in it: RViz, Foxglove and rosbags open it as it is."""
from __future__ import annotations

import functools
import re
from pathlib import Path

from rclpy.serialization import serialize_message
from rosbags.rosbag2 import CompressionFormat, CompressionMode, StoragePlugin, Writer
from rosbags.typesys import Stores, get_types_from_msg, get_typestore
from rosbags.typesys.store import Typestore

from sam2_ros import msg

_VERSION = 8  # of the metadata: the newest that Humble reads
_NAMES = {'float': 'float32', 'double': 'float64', 'boolean': 'bool', 'octet': 'byte'}  # of IDL, as in .msg files


class BagWriter:
    """A bag to be written, compressed. Topics come to be with their first message.

    FileExistsError when there is something at ``path`` already.
    """

    def __init__(self, path: Path) -> None:
        if path.exists():
            raise FileExistsError(f'bag {path}: is there already; remove it, or choose another place')
        self._writer = Writer(path, version=_VERSION, storage_plugin=StoragePlugin.MCAP)
        self._writer.set_compression(CompressionMode.STORAGE, CompressionFormat.ZSTD)
        self._connections = {}

    def write(self, topic: str, message, time: int) -> None:
        """A message of rclpy's, recorded at ``time``, ns."""
        kind = type_name(type(message))
        if topic not in self._connections:
            self._connections[topic] = self._writer.add_connection(topic, kind, typestore=typestore())
        self._writer.write(self._connections[topic], time, serialize_message(message))

    def __enter__(self) -> BagWriter:
        self._writer.open()
        return self

    def __exit__(self, *failure) -> None:
        self._writer.__exit__(*failure)


def type_name(kind: type) -> str:
    """Of a message class, as bags have it: sensor_msgs/msg/Image."""
    return f'{kind.__module__.split(".")[0]}/msg/{kind.__name__}'


@functools.cache
def typestore() -> Typestore:
    """The types of ROS 2 and ours, for rosbags."""
    store = get_typestore(Stores.ROS2_JAZZY)
    for name, kind in vars(msg).items():
        if isinstance(kind, type):
            store.register(get_types_from_msg(_definition(kind), f'sam2_ros/msg/{name}'))
    return store


def _definition(kind: type) -> str:
    """The fields of a message class as a .msg file has them."""
    lines = []
    for name, declared in kind.get_fields_and_field_types().items():
        element = re.sub(r'sequence<(.*)>', r'\1', declared)
        lines.append(f'{_NAMES.get(element, element)}{"[]" * (element != declared)} {name}\n')
    return ''.join(lines)
