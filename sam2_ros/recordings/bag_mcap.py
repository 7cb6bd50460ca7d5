"""Reader of MCAP files (mcap.dev/spec): by their index, or as far as they go if the recorder was killed.

Only requested data must be readable. Channels in other encodings, definitions, and chunks of other topics do not
matter. Needs no ROS.
"""
from __future__ import annotations

import heapq
import struct
import zlib
from collections import Counter
from collections.abc import Container, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from sam2_ros.recordings.bag_storage import BagError, Channel, StorageFile, unzstd

MAGIC = b'\x89MCAP0\r\n'
_HEADER, _FOOTER, _SCHEMA, _CHANNEL, _MESSAGE, _CHUNK, _INDEX = range(1, 8)
_CHUNK_INDEX, _STATISTICS, _DATA_END = 0x08, 0x0b, 0x0f
_PRIVATE = 0x80  # larger kinds belong to applications
_FOOTER_SIZE = 9 + 20 + len(MAGIC)
_LOOSE = 1 << 22  # bytes of messages outside of chunks that are read at a time


@dataclass
class _Block:
    """A chunk, or a sequence of messages outside of chunks."""

    start: int  # ns, of its first message
    end: int  # ns, of its last message
    offset: int  # of its records in the file
    size: int  # of its records in the file, bytes
    compression: str = ''
    unpacked: int = 0  # size of the unpacked records in bytes, 0 if unknown
    checksum: int = 0  # of the unpacked records, 0 if none was written
    counts: Counter[int] = field(default_factory=Counter)  # messages by channel
    whole: bool = True


class McapFile(StorageFile):
    """One .mcap file."""

    def __init__(self, path: Path) -> None:
        """Read the index or, without one, all records. Raises BagError if nothing can be read."""
        super().__init__(path)
        self._schemas: dict[int, tuple[str, str, bytes]] = {}  # name, encoding, data
        self._channels: dict[int, tuple[int, str, str]] = {}  # schema, topic, encoding
        self._blocks: list[_Block] = []
        self._file = path.open('rb')
        try:
            self._size = path.stat().st_size
            if self._read(0, len(MAGIC)) != MAGIC:
                raise BagError(f'{path.name} is not an mcap file, or its first bytes are damaged')
            if not self._read_summary():
                self._scan()
            self._make_channels()
        except BaseException:
            self._file.close()
            raise

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    # --- messages

    def messages(self, channels: list[Channel], start: int | None = None,
                 stop: int | None = None) -> Iterator[tuple[Channel, int, bytes]]:
        """Yield channel, time (ns) and data of the messages with ``start`` <= time < ``stop``, by time."""
        wanted = {channel.number: channel for channel in channels}
        low, high = start if start is not None else 0, stop if stop is not None else 1 << 64
        blocks = [block for block in self._blocks if block.end >= low and block.start < high
                  and (not block.counts or block.counts.keys() & wanted.keys())]
        blocks.sort(key=lambda block: block.start)
        heap: list[tuple[int, int, int, bytes]] = []
        order = opened = 0
        while opened < len(blocks) or heap:
            if opened < len(blocks) and (not heap or blocks[opened].start <= heap[0][0]):
                for number, time, data in self._messages_in(blocks[opened], wanted):
                    if low <= time < high:
                        heapq.heappush(heap, (time, order, number, data))
                        order += 1
                opened += 1
                continue
            time, _, number, data = heapq.heappop(heap)
            yield wanted[number], time, data

    def _messages_in(self, block: _Block, wanted: Container[int]) -> Iterator[tuple[int, int, bytes]]:
        """Yield channel, time and data of the messages in a block; none if it is damaged."""
        try:
            records = self._unpacked(block)
        except NotImplementedError as error:
            self._report(f'{self.path.name}: {error}')
            return
        except (ValueError, OSError):
            return
        for kind, at, end in _records(records):
            if kind == _MESSAGE and end - at >= 22:
                number, _, time = struct.unpack_from('<HIQ', records, at)
                if number in wanted:
                    yield number, time, records[at + 22:end]

    def _unpacked(self, block: _Block) -> bytes:
        data = self._read(block.offset, block.size)
        if block.compression:
            data = _decompressed(data, block.compression, block.whole)
        checked = block.whole and block.checksum
        if block.whole and block.unpacked not in (0, len(data)) or checked and zlib.crc32(data) != checked:
            raise ValueError('damaged chunk')
        return data

    def _report(self, problem: str) -> None:
        if problem not in self.problems:
            self.problems.append(problem)

    def _read(self, offset: int, size: int) -> bytes:
        self._file.seek(offset)
        return self._file.read(size)

    # --- content of the file

    def _read_summary(self) -> bool:
        """Read the index at the end of a finished file. Return whether there is one that agrees with the file."""
        footer = self._read(max(0, self._size - _FOOTER_SIZE), _FOOTER_SIZE)
        if len(footer) < _FOOTER_SIZE or not footer.endswith(MAGIC) or footer[0] != _FOOTER:
            return False
        start, = struct.unpack_from('<Q', footer, 9)
        if not len(MAGIC) < start < self._size:
            return False
        try:
            summary = self._read(start, self._size - _FOOTER_SIZE - start)
            chunks = -1
            for kind, at, end in _records(summary):
                if kind == _CHUNK_INDEX:
                    self._blocks.append(_indexed(summary, at))
                elif kind == _STATISTICS:
                    chunks, = struct.unpack_from('<I', summary, at + 22)
                else:
                    self._note(kind, summary[at:end])
            known = self._channels.keys() >= {number for block in self._blocks for number in block.counts}
            counted = all(block.counts for block in self._blocks)
            found = [self._locate(block) for block in self._blocks]
            if any(found) and known and counted and chunks in (-1, len(self._blocks)):
                return True
        except (ValueError, struct.error):
            pass
        self._schemas, self._channels, self._blocks = {}, {}, []
        return False

    def _locate(self, block: _Block) -> bool:
        """Replace the offset of a chunk by that of its records. Return whether the chunk is there."""
        head = self._read(block.offset, 9 + 32 + len(block.compression) + 8)
        block.offset += len(head)
        if len(head) == 9 + 32 + len(block.compression) + 8:
            kind, length, start, end, unpacked, checksum, named = struct.unpack_from('<BQQQQII', head)
            size, = struct.unpack_from('<Q', head, len(head) - 8)
            if (kind, start, end, named) == (_CHUNK, block.start, block.end, len(block.compression)) \
                    and size <= min(length, self._size - block.offset):
                block.size, block.unpacked, block.checksum = size, unpacked, checksum
                return True
        block.unpacked = -1  # no data have this size, so its messages count as missing
        return False

    def _scan(self) -> None:
        """Read all records up to the first that is damaged or cut off."""
        at, loose, finished = len(MAGIC), None, False
        while at + 9 <= self._size:
            kind, length = struct.unpack('<BQ', self._read(at, 9))
            begin, at = at, at + 9 + length
            if not _is_kind(kind) or at > self._size and kind != _CHUNK:
                at = begin
                break
            if kind == _MESSAGE and length >= 22:
                number, _, time = struct.unpack('<HIQ', self._read(begin + 9, 14))
                if loose is None or loose.size > _LOOSE:
                    loose = _Block(time, time, begin, 0)
                    self._blocks.append(loose)
                loose.start, loose.end = min(loose.start, time), max(loose.end, time)
                loose.size = at - loose.offset
                loose.counts[number] += 1
            elif kind == _CHUNK:
                loose = None
                self._scan_chunk(begin + 9, min(at, self._size) - begin - 9, at <= self._size)
            elif kind in (_SCHEMA, _CHANNEL):
                self._note(kind, self._read(begin + 9, length))
            elif kind in (_DATA_END, _FOOTER):
                finished = True
                break
        if not finished:
            lost = max(0, self._size - min(at, self._size))
            self.problems.append(
                f'{self.path.name}: the recorder did not finish it (killed, or power was lost); read as far as it goes'
                + (f', {lost} bytes at its end skipped' if lost else '') + '; `mcap recover` makes a finished file')

    def _scan_chunk(self, offset: int, length: int, whole: bool) -> None:
        """List a chunk with its messages, schemas and channels."""
        head = self._read(offset, min(length, 32))
        if len(head) < 32:
            return
        start, end, unpacked, checksum, named = struct.unpack('<QQQII', head)
        compression = self._read(offset + 32, min(named, 64)).decode(errors='replace')
        skip = 32 + named + 8
        block = _Block(start, end, offset + skip, length - skip, compression, unpacked, checksum, whole=whole)
        if block.size < 0:
            return
        if whole:
            block.size = min(block.size, struct.unpack('<Q', self._read(offset + skip - 8, 8))[0])
        try:
            records = self._unpacked(block)
        except NotImplementedError as error:
            self._report(f'{self.path.name}: {error}')
            return
        except (ValueError, OSError) as error:
            self._report(f'{self.path.name}: chunk at byte {offset - 9} skipped: {error}')
            return
        times = []
        for kind, at, stop in _records(records):
            if kind == _MESSAGE and stop - at >= 22:
                number, _, time = struct.unpack_from('<HIQ', records, at)
                block.counts[number] += 1
                times.append(time)
            else:
                self._note(kind, records[at:stop])
        if times:
            block.start, block.end = min(times), max(times)
            self._blocks.append(block)

    def _note(self, kind: int, record: bytes) -> None:
        """Store a schema or channel."""
        try:
            if kind == _SCHEMA:
                number, = struct.unpack_from('<H', record)
                name, at = _text(record, 2)
                encoding, at = _text(record, at)
                self._schemas[number] = name, encoding, record[at + 4:]
            elif kind == _CHANNEL:
                number, schema = struct.unpack_from('<HH', record)
                topic, at = _text(record, 4)
                encoding, at = _text(record, at)
                self._channels[number] = schema, topic, encoding
        except (struct.error, UnicodeDecodeError):  # a damaged channel does not exist; other records do not matter
            pass

    def _make_channels(self) -> None:
        counts: Counter[int] = Counter()
        for block in self._blocks:
            counts += block.counts
        for number, (schema, topic, encoding) in self._channels.items():
            name, language, data = self._schemas.get(schema, ('', '', b''))
            self.channels.append(Channel(topic, name, counts[number], encoding, language,
                                         data.decode(errors='replace'), number, self))
        self.start_time = min((block.start for block in self._blocks), default=0)
        self.end_time = max((block.end for block in self._blocks), default=0)


def _is_kind(kind: int) -> bool:
    return 0 < kind <= _DATA_END or kind >= _PRIVATE


def _records(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Yield kind, start and end of the content of each whole record."""
    at = 0
    while at + 9 <= len(data):
        kind, length = struct.unpack_from('<BQ', data, at)
        at += 9
        if not _is_kind(kind) or at + length > len(data):
            return
        yield kind, at, at + length
        at += length


def _text(record: bytes, at: int) -> tuple[str, int]:
    length, = struct.unpack_from('<I', record, at)
    if at + 4 + length > len(record):
        raise struct.error('text beyond its record')
    return record[at + 4:at + 4 + length].decode(), at + 4 + length


def _indexed(summary: bytes, at: int) -> _Block:
    """Return a chunk as its index describes it. The offset is not yet that of its records."""
    start, end, offset, _, length = struct.unpack_from('<QQQQI', summary, at)
    at += 36
    places = sorted(struct.unpack_from('<HQ', summary, at + i)[::-1] for i in range(0, length - 9, 10))
    at += length
    behind, = struct.unpack_from('<Q', summary, at)
    compression, _ = _text(summary, at + 8)
    block = _Block(start, end, offset, 0, compression)
    block.counts = Counter({number: 1 for _, number in places})
    if places:
        ends = [*(place for place, _ in places[1:]), places[0][0] + behind]
        # A message index has 9 bytes of head, 6 of its own, and 16 for each message.
        block.counts = Counter({number: max(0, stop - place - 15) // 16
                                for (place, number), stop in zip(places, ends, strict=True)})
    return block


def _decompressed(data: bytes, compression: str, whole: bool) -> bytes:
    if compression == 'zstd':
        return unzstd(data, whole)
    if compression == 'lz4':
        from lz4.frame import LZ4FrameDecompressor
        try:
            decompressor = LZ4FrameDecompressor()
            unpacked = decompressor.decompress(data)
        except RuntimeError as error:
            raise ValueError(f'damaged ({error})') from None
        if whole and not decompressor.eof:
            raise ValueError('cut off')
        return unpacked
    raise NotImplementedError(f'chunks compressed with {compression!r} cannot be read; `mcap compress` changes them')
