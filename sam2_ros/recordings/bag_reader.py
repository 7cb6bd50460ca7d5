"""A ROS 2 bag as one sequence of messages, whatever files it consists of. Needs no ROS.

Reads mcap and sqlite3, compressed with zstd as files or message by message, with or without metadata.yaml, finished or
left by a recorder that was killed. Only requested data must be readable. Nothing is written beside the bag: copies and
unpacked files are placed in a temporary folder.
"""
from __future__ import annotations

import errno
import heapq
import re
import tempfile
from collections.abc import Iterable, Iterator
from operator import itemgetter
from pathlib import Path, PurePath
from typing import Any

import yaml

from sam2_core.files import in_order
from sam2_ros.recordings import bag_mcap, bag_sqlite
from sam2_ros.recordings.bag_storage import ZSTD, BagError, Channel, StorageFile, unpack_file, unzstd

SUFFIXES = ('.mcap', '.db3', '.mcap.zstd', '.db3.zstd')
_PART = re.compile(r'_\d+$')  # number of a file within its bag
_CDR = 'cdr'


class BagReader:
    """Messages of a bag.

    channels: those in CDR, as ROS 2 records; others: those in other encodings, such as JSON, protobuf and ROS 1.
    """

    def __init__(self, path: Path) -> None:
        """Open the files. Raises BagError if the path is no bag, or one without messages."""
        self.path = path
        self._problems: list[str] = []
        self._files: list[StorageFile] = []
        self._temporary: tempfile.TemporaryDirectory | None = None
        try:
            self._open(path)
        except OSError as error:  # the folder cannot be listed, or was moved
            self.close()
            raise BagError(f'cannot be read ({error.strerror})') from None
        except BaseException:
            self.close()
            raise
        channels = [channel for file in self._files for channel in file.channels if channel.msgcount]
        self.channels = [channel for channel in channels if channel.encoding == _CDR]
        self.others = [channel for channel in channels if channel.encoding != _CDR]
        self.start_time = min(file.start_time for file in self._files)
        self.end_time = max(file.end_time for file in self._files)

    def __enter__(self) -> BagReader:
        return self

    def __exit__(self, *failure: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the files and remove the copies."""
        for file in self._files:
            file.close()
        self._files = []
        if self._temporary is not None:
            self._temporary.cleanup()
            self._temporary = None

    @property
    def problems(self) -> list[str]:
        """Return the data that were requested so far and cannot be read, with the cure."""
        return [*self._problems, *(problem for file in self._files for problem in file.problems)]

    def by_topic(self, types: Iterable[str]) -> dict[str, list[Channel]]:
        """Return the channels of each topic with messages of these types.

        Of several types on one topic, the one with the most messages counts; ``problems`` lists the others.
        """
        topics: dict[str, dict[str, list[Channel]]] = {}
        for channel in self.channels:
            if channel.msgtype in types:
                topics.setdefault(channel.topic, {}).setdefault(channel.msgtype, []).append(channel)
        result = {}
        for topic, kinds in topics.items():
            kept = max(kinds, key=lambda kind: _count(kinds[kind]))
            result[topic] = kinds[kept]
            for kind in kinds.keys() - {kept}:
                problem = (f'{topic}: {_count(kinds[kind])} messages of type {kind} skipped: the topic has '
                           f'{_count(kinds[kept])} of type {kept}')
                if problem not in self._problems:
                    self._problems.append(problem)
        return result

    def messages(self, channels: Iterable[Channel], start: int | None = None,
                 stop: int | None = None) -> Iterator[tuple[Channel, int, bytes]]:
        """Yield channel, time (ns) and data of the messages with ``start`` <= time < ``stop``, by time."""
        by_file: dict[int, list[Channel]] = {}
        for channel in channels:
            by_file.setdefault(id(channel.file), []).append(channel)
        files = sorted((file for file in self._files if id(file) in by_file), key=lambda file: file.start_time)
        for group in _overlapping(files):
            for channel, time, data in heapq.merge(*(
                    file.messages(by_file[id(file)], start, stop) for file in group), key=itemgetter(1)):
                yield channel, time, unzstd(data) if data.startswith(ZSTD) else data  # CDR begins with a zero

    # --- files

    def _open(self, path: Path) -> None:
        if not path.exists():
            raise BagError('there is no such file or folder')
        if path.suffix == '.bag':
            raise BagError('a bag of ROS 1; convert it with rosbags-convert')
        if path.name == 'metadata.yaml' or not (path.is_file() or path.is_dir()):
            raise BagError("neither a bag's folder nor one of its .mcap and .db3 files; give one of these")
        metadata = {} if path.is_file() else self._metadata(path)
        sources = [path] if path.is_file() else self._sources(path, metadata)
        failures = []
        for source in sources:
            try:
                self._files.append(self._opened(source))
            except (BagError, OSError) as error:
                failures.append(str(error))
        if not self._files:
            raise BagError('; '.join(failures))
        self._problems += failures
        found = sum(channel.msgcount for file in self._files for channel in file.channels)
        expected = metadata.get('message_count')
        if isinstance(expected, int) and found < expected:
            self._problems.append(f'{found} of the {expected} messages that metadata.yaml counts are there')
        if not found:
            raise BagError('; '.join(['there is not one message in it', *self.problems]))

    def _metadata(self, folder: Path) -> dict[str, Any]:
        """Return the content of metadata.yaml, empty if it is missing or cannot be used."""
        try:
            content = yaml.safe_load((folder / 'metadata.yaml').read_bytes())
        except FileNotFoundError:
            reason = 'it is missing (was the recorder killed?); `ros2 bag reindex` writes it'
        except (OSError, yaml.YAMLError) as error:
            text = getattr(error, 'strerror', None) or ' '.join(str(error).split())
            reason = f'it cannot be read ({text}); `ros2 bag reindex` writes it anew'
        else:
            if metadata := _listed(content):
                return metadata
            reason = 'it lists no files; `ros2 bag reindex` writes it anew'
        if any(_is_bag_file(path) for path in folder.iterdir()):
            self._problems.append(f'read without metadata.yaml: {reason}')
        return {}

    def _sources(self, folder: Path, metadata: dict[str, Any]) -> list[Path]:
        """Return the files of a bag in order, and report missing and extra ones."""
        there = in_order(path for path in folder.iterdir() if _is_bag_file(path))
        if metadata:
            names = metadata['names']
            counts = metadata['counts']
            for name in names:
                if not any(_same_file(path.name, name) for path in there):
                    count = f', with {counts[name]} messages' if counts.get(name) else ''
                    self._problems.append(f'{name} is missing{count}: metadata.yaml lists it; put it back')
            chosen = [path for path in there if any(_same_file(path.name, name) for name in names)]
            if left := [path.name for path in there if path not in chosen]:
                self._problems.append(f'{", ".join(left)}: not in metadata.yaml, skipped; `ros2 bag reindex` adds it')
            if there and not chosen:
                raise BagError('; '.join(self.problems))
            if chosen:
                return chosen
        if not there:
            raise BagError(self._no_files(folder))
        if len({_PART.sub('', path.name.partition('.')[0]) for path in there}) > 1:
            raise BagError(f'several bags in one folder, give one of them: {", ".join(path.name for path in there)}')
        return there

    def _no_files(self, folder: Path) -> str:
        bags = sorted(path.name for path in folder.iterdir()
                      if path.is_dir() and any(_is_bag_file(inner) for inner in path.iterdir()))
        if bags:
            return f'a folder of bags, give one or several of them: {", ".join(bags)}'
        if any(folder.glob('*.bag')):
            return 'a bag of ROS 1; convert it with rosbags-convert'
        if logs := sorted(path.name for path in folder.glob('*.db3-wal')):
            return f'{logs[0]} is there without {logs[0].removesuffix("-wal")}; put that file beside it'
        return '; '.join([*self.problems, 'give a folder with metadata.yaml, .mcap or .db3 files, or one such file'])

    def _opened(self, path: Path) -> StorageFile:
        """Open a file by its content. Raises BagError."""
        with path.open('rb') as file:
            head = file.read(16)
        if head.startswith(ZSTD):
            target = self._folder() / path.name.removesuffix('.zstd')
            try:
                missing = unpack_file(path, target)
            except OSError as error:
                cure = f'; {target.parent} is full: set TMPDIR to a folder with room' \
                    if error.errno == errno.ENOSPC else ''
                raise BagError(f'{path.name} cannot be unpacked ({error.strerror}){cure}') from None
            if missing:
                self._problems.append(f'{path.name}: {missing}; read as far as it goes')
            path = target
            with path.open('rb') as file:
                head = file.read(16)
        if head.startswith(bag_mcap.MAGIC):
            return bag_mcap.McapFile(path)
        if head.startswith(b'#ROSBAG'):
            raise BagError(f'{path.name} is a bag of ROS 1; convert it with rosbags-convert')
        if head == bag_sqlite.MAGIC:
            log = bag_sqlite.leftovers(path)
            if log is not None:
                path, report = bag_sqlite.with_leftovers(path, log, self._folder())
                self._problems += [report] if report else []
            return bag_sqlite.SqliteFile(path)
        if not head:
            raise BagError(f'{path.name} cannot be read: it is empty')
        raise BagError(f'{path.name} cannot be read: it is neither mcap nor sqlite3, as it is or in zstd; repair it '
                       f'with `mcap recover` or `sqlite3 FILE .recover`, or convert it with `ros2 bag convert` where '
                       f'its compression is not zstd')

    def _folder(self) -> Path:
        """Return a temporary folder for one more file."""
        if self._temporary is None:
            self._temporary = tempfile.TemporaryDirectory(prefix='sam2_bag_')
        return Path(tempfile.mkdtemp(dir=self._temporary.name))


def _listed(content: Any) -> dict[str, Any]:
    """Return files and message counts from the content of metadata.yaml, empty if it lists no files."""
    content = content.get('rosbag2_bagfile_information') if isinstance(content, dict) else None
    paths = content.get('relative_file_paths') if isinstance(content, dict) else None
    if not isinstance(paths, list) or not paths or not all(isinstance(path, str) for path in paths):
        return {}
    files = content.get('files')
    counts = {PurePath(item['path']).name: item.get('message_count') for item in files
              if isinstance(item, dict) and isinstance(item.get('path'), str)} if isinstance(files, list) else {}
    return {'names': [PurePath(path).name for path in paths], 'counts': counts,
            'message_count': content.get('message_count')}


def _is_bag_file(path: Path) -> bool:
    return path.name.endswith(SUFFIXES) and path.is_file()


def _same_file(name: str, listed: str) -> bool:
    """Return whether a file is the one that metadata.yaml lists, compressed or not."""
    return name.removesuffix('.zstd') == listed.removesuffix('.zstd')


def _count(channels: Iterable[Channel]) -> int:
    return sum(channel.msgcount for channel in channels)


def _overlapping(files: list[StorageFile]) -> Iterator[list[StorageFile]]:
    """Yield groups of files whose times overlap, in order: a file needs memory only while its group is read."""
    group: list[StorageFile] = []
    end = 0
    for file in files:
        if group and file.start_time > end:
            yield group
            group = []
        group.append(file)
        end = max(file.end_time, end)
    if group:
        yield group
