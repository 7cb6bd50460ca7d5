"""Reader of SQLite files of ROS 2 bags, which are never changed. Needs no ROS.

A recorder that was killed leaves messages in FILE.db3-wal (write-ahead log, storage preset resilient), or half of a
transaction in FILE.db3 and the way to undo it in FILE.db3-journal. SQLite repairs the file when it opens it for
writing. The reader lets it do so on a copy.
"""
from __future__ import annotations

import shutil
import sqlite3
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path

from sam2_ros.recordings.bag_storage import BagError, Channel, StorageFile

MAGIC = b'SQLite format 3\0'
_JOURNAL = b'\xd9\xd5\x05\xf9\x20\xa1\x63\xd7'  # the first bytes of a journal that is needed
_LOG = b'\x37\x7f\x06\x82', b'\x37\x7f\x06\x83'  # the first bytes of a write-ahead log, by byte order
_LOG_HEAD, _FRAME_HEAD = 32, 24  # bytes
_DAMAGE = sqlite3.Error, UnicodeDecodeError  # the latter if an error text of SQLite quotes damaged bytes
_LOWEST, _HIGHEST = -2**63, 2**63 - 1
_LONGEST_JUMP = 1 << 24  # rows that are skipped to get behind damage


class SqliteFile(StorageFile):
    """One .db3 file."""

    def __init__(self, path: Path) -> None:
        """List the topics. Raises BagError if nothing can be read."""
        super().__init__(path)
        self._connection = _connect(path)
        self._rows: list[tuple[int, int, int]] | None = None  # time, row and topic in a damaged file
        try:
            try:
                self._list()
            except _DAMAGE:  # only this opens a file that was cut off; nothing is written
                self._connection.execute('PRAGMA writable_schema = ON')
                self._list()
        except _DAMAGE as error:
            self._connection.close()
            raise BagError(f'{path.name} cannot be read ({error}); repair it with `sqlite3 FILE .recover`') from None

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    def messages(self, channels: list[Channel], start: int | None = None,
                 stop: int | None = None) -> Iterator[tuple[Channel, int, bytes]]:
        """Yield channel, time (ns) and data of the messages with ``start`` <= time < ``stop``, by time."""
        wanted = {channel.number: channel for channel in channels}
        low, high = start if start is not None else _LOWEST, stop if stop is not None else _HIGHEST
        done: set[int] = set()  # rows at the last time
        for row, number, time, data in self._whole_rows(wanted, low, high):
            if time > low:
                low, done = time, set()
            done.add(row)
            yield wanted[number], time, data
        if self._rows is None:
            return
        for time, row, number in self._rows:
            if low <= time < high and number in wanted and row not in done:
                found = self._data(row)
                if found is not None:
                    yield wanted[number], time, found

    def _whole_rows(self, numbers: Iterable[int], low: int, high: int) -> Iterator[tuple[int, int, int, bytes]]:
        """Yield row, topic, time and data in order of time, up to the first damage in the file."""
        if self._rows is not None:
            return
        query = (f'SELECT rowid, topic_id, timestamp, data FROM messages WHERE topic_id IN '
                 f'({", ".join(map(str, numbers))}) AND timestamp >= {low} AND timestamp < {high} ORDER BY timestamp')
        seen: set[int] = set()
        last = low
        try:
            for row, number, time, data in self._connection.execute(query):
                if time != last:
                    last, seen = max(time, last), set()
                if time < last or row in seen:  # pages in a ring
                    raise sqlite3.DatabaseError('pages in a ring')
                seen.add(row)
                if isinstance(data, bytes):  # otherwise the row is damaged
                    yield row, number, time, data
        except _DAMAGE as error:
            self._find_rows(error)

    def _data(self, row: int) -> bytes | None:
        """Return the data of a row of a damaged file, or None if the row is damaged."""
        try:
            data, = self._connection.execute('SELECT data FROM messages WHERE rowid = ?', (row,)).fetchone() or (None,)
        except _DAMAGE:
            return None
        return data if isinstance(data, bytes) else None

    def _find_rows(self, error: Exception) -> None:
        """List the rows of a damaged file, skipping the damage."""
        rows, last, jump = [], 0, 1
        query = 'SELECT rowid, topic_id, timestamp FROM messages NOT INDEXED WHERE rowid >= ? ORDER BY rowid'
        while jump <= _LONGEST_JUMP:
            try:
                for row, number, time in self._connection.execute(query, (last + jump,)):
                    if row <= last:  # pages in a ring
                        raise sqlite3.DatabaseError('pages in a ring')
                    last, jump = row, 1
                    if isinstance(time, int) and isinstance(number, int):
                        rows.append((time, row, number))
                break
            except _DAMAGE:
                jump *= 2
        self._rows = sorted(rows)
        self.problems.append(f'{self.path.name}: damaged or cut off ({error}); {len(rows)} messages were found; '
                             f'`sqlite3 FILE .recover` may find more')

    def _list(self) -> None:
        topics = self._connection.execute('SELECT id, name, type, serialization_format FROM topics').fetchall()
        definitions = {}
        tables = {name for name, in self._connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        if 'message_definitions' in tables:
            definitions = {kind: (language, text) for kind, language, text in self._connection.execute(
                'SELECT topic_type, encoding, encoded_message_definition FROM message_definitions')}
        counts = self._count()
        self.channels = []
        for number, topic, kind, encoding in topics:
            language, text = definitions.get(kind, ('', ''))
            self.channels.append(Channel(topic, kind, counts[number], encoding, language, text, number, self))

    def _count(self) -> Counter[int]:
        """Count messages by topic, and find the time of the first and the last message."""
        try:
            rows = self._connection.execute('SELECT topic_id, count(*) FROM messages GROUP BY topic_id').fetchall()
            low, high = self._connection.execute('SELECT min(timestamp), max(timestamp) FROM messages').fetchone()
        except _DAMAGE as error:
            if self._rows is None:
                self._find_rows(error)
            if not self._rows:
                raise
            self.start_time, self.end_time = self._rows[0][0], self._rows[-1][0]
            return Counter(number for _, _, number in self._rows)
        self.start_time, self.end_time = (time if isinstance(time, int) else 0 for time in (low, high))
        return Counter(dict(rows))


def leftovers(path: Path) -> Path | None:
    """Return the log that a killed recorder left beside a file, or None if there is none with content."""
    log, journal = (path.with_name(f'{path.name}-{name}') for name in ('wal', 'journal'))
    if log.is_file() and log.stat().st_size:
        return log
    if journal.is_file():
        with journal.open('rb') as file:
            return journal if file.read(len(_JOURNAL)) == _JOURNAL else None
    return None


def with_leftovers(path: Path, log: Path, folder: Path) -> tuple[Path, str]:
    """Return the file to read, and a report: a copy in ``folder`` with the messages of the log, if there is room.

    The file itself is never opened for writing. The report is empty if there is nothing to report.
    """
    size = path.stat().st_size + log.stat().st_size
    if shutil.disk_usage(folder).free < size + log.stat().st_size:
        return path, (f'{path.name}: {log.stat().st_size} bytes in {log.name}, left by a recorder that was killed, are '
                      f'not read: {folder} has no room for a copy of {size} bytes; set TMPDIR to a folder that has it')
    copy = folder / path.name
    try:
        for source in (path, log):
            shutil.copyfile(source, folder / source.name)
        with closing(sqlite3.connect(copy)) as connection:
            taken = connection.execute('PRAGMA wal_checkpoint(PASSIVE)').fetchone()[1]  # frames
            connection.execute('PRAGMA wal_checkpoint(TRUNCATE)')
            connection.execute('PRAGMA journal_mode = DELETE')
            after = _total(connection)
    except (OSError, *_DAMAGE) as error:
        return path, (f'{path.name}: {log.stat().st_size} bytes in {log.name}, left by a recorder that was killed, '
                      f'cannot be read ({error}); `sqlite3 FILE .recover` on a copy of both may find more')
    try:
        with closing(_connect(path)) as connection:
            before = _total(connection)
    except _DAMAGE:
        before = 0
    if log.name.endswith('-journal'):
        return copy, (f'{path.name}: the recorder was killed or still runs: {after} messages are read, and those '
                      f'of the write that it did not finish are lost ({log.name})')
    report = []
    if after != before:
        report.append(f'the recorder was killed or still runs: {after - before} of {after} messages are read from '
                    f'{log.name}, {log.stat().st_size} bytes; keep it beside the file')
    if lost := _lost(log, taken):
        report.append(f'{lost} of {log.stat().st_size} bytes of {log.name} cannot be read: cut off, damaged or a write '
                    f'that the recorder did not finish')
    return copy, f'{path.name}: {"; ".join(report)}' if report else ''


def _lost(log: Path, taken: int) -> int:
    """Return the number of bytes that SQLite did not read from a write-ahead log, though they are of its last round.

    taken: number of frames that it read. Behind them lie frames of earlier rounds, which the database has already.
    """
    size = log.stat().st_size
    with log.open('rb') as file:
        head = file.read(_LOG_HEAD)
        page = int.from_bytes(head[8:12], 'big')
        if len(head) < _LOG_HEAD or head[:4] not in _LOG or not 512 <= page <= 65536:
            return size
        end = _LOG_HEAD + max(taken, 0) * (page + _FRAME_HEAD)
        at = end
        while at < size:
            file.seek(at)
            frame = file.read(_FRAME_HEAD)
            if len(frame) == _FRAME_HEAD and frame[8:16] != head[16:24]:  # the salt of another round
                break
            at += page + _FRAME_HEAD
    return max(0, min(at, size) - end)


def _connect(path: Path) -> sqlite3.Connection:
    """Open a file as one that does not change, so that SQLite creates no file beside it."""
    connection = sqlite3.connect(f'{path.resolve().as_uri()}?mode=ro&immutable=1', uri=True, check_same_thread=False)
    connection.text_factory = lambda data: data.decode(errors='replace')
    return connection


def _total(connection: sqlite3.Connection) -> int:
    return connection.execute('SELECT count(*) FROM messages').fetchone()[0]
