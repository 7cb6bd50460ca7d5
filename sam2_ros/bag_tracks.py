"""The messages of one topic of a bag in order of their stamps: listed once, read when asked for."""
from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from rosbags.highlevel import AnyReader
from rosbags.interfaces import Connection

from sam2_ros.bag_files import COMPRESSED, IMAGE, header_stamp, image_head

AHEAD = 1_000_000_000  # ns of the bag that are read through rather than jumped over
KEPT = 4  # messages that were read and may be asked for again, or come in another order than their stamps
NAMED = 5  # messages that cannot be used are named one by one; the rest is counted
STRIDE = 1_000_000_000  # ns: what is left out of a damaged bag to go on behind the damage, at first
LONGEST = 4096 * STRIDE  # each further try to get behind it leaves out twice as much, up to this


@dataclass(eq=False)
class Track:
    """One topic. Which messages it has is found by ``list_messages``."""

    topic: str
    connections: list[Connection]
    in_order: bool = True  # whether messages are expected to have increasing stamps
    stamps: list[int] = field(default_factory=list)  # ns, increasing
    times: list[int] = field(default_factory=list)  # ns, when each was recorded
    problems: list[str] = field(default_factory=list)  # what was left out
    size: tuple[int, int] | None = None  # height and width of the first Image
    _listed: list[tuple[int, int]] = field(default_factory=list)  # stamp and time, in the order of the bag
    _broken: int = 0
    _reader: AnyReader | None = None
    _cursor: Iterator | None = None
    _at: int = 0  # ns, time of the last message read
    _read: dict[tuple[int, int], bytes] = field(default_factory=dict)  # by stamp and time

    @property
    def kind(self) -> str:
        return self.connections[0].msgtype

    def nearest(self, stamp: int) -> int:
        """The place of the message whose stamp is nearest; there must be one."""
        place = bisect_left(self.stamps, stamp)
        around = range(max(0, place - 1), min(place + 1, len(self.stamps)))
        return min(around, key=lambda i: abs(self.stamps[i] - stamp))

    def place(self, stamp: int) -> int | None:
        """The place of the message with this stamp."""
        place = bisect_left(self.stamps, stamp)
        return place if place < len(self.stamps) and self.stamps[place] == stamp else None

    # --- reading

    def message(self, place: int, open_reader: Callable[[], AnyReader]) -> bytes:
        """The serialized message; ``open_reader`` is called once. LookupError when the bag does not have it any more.

        Fast in order, each topic by itself; from elsewhere the bag is searched by its times.
        """
        key = self.stamps[place], self.times[place]
        if key in self._read:
            return self._read[key]
        if self._reader is None:
            self._reader = open_reader()
        follows = self._cursor is not None and self._at < key[1] <= self._at + AHEAD
        if not (follows and self._advance(key)):
            own = {connection.topic: connection for connection in self.connections}
            self._cursor = self._reader.messages(
                [connection for connection in self._reader.connections if connection.topic in own], start=key[1])
            if not self._advance(key):
                raise LookupError(f'{self.topic}: the message with stamp {key[0] / 1e9:.3f} cannot be read any more: '
                                  f'was the bag changed?')
        return self._read[key]

    def _advance(self, key: tuple[int, int]) -> bool:
        """Read on until the message is found; False when the bag ends or is damaged before."""
        try:
            for _, time, raw in self._cursor:
                self._at = time
                if len(raw) < 12:
                    continue
                found = header_stamp(raw), time
                self._read.setdefault(found, raw)
                if len(self._read) > KEPT:
                    del self._read[next(iter(self._read))]
                if found == key:
                    return True
        except Exception:  # a damaged bag may fail anywhere in its parsers
            pass
        self._cursor = None
        return False

    def close(self) -> None:
        self._cursor = None
        if self._reader is not None:
            self._reader.close()
            self._reader = None

    # --- listing

    def add(self, time: int, raw: bytes) -> bool:
        """A message of the bag: noted, if it is whole; whether it is."""
        try:
            if self.kind in (IMAGE, COMPRESSED):
                head = image_head(raw, self.kind)
                stamp = head.stamp
                self.size = self.size or ((head.height, head.width) if head.height else None)
            else:
                stamp = header_stamp(raw)
        except ValueError as error:
            self.leave_out(time, str(error))
            return False
        self._listed.append((stamp, time))
        return True

    def leave_out(self, time: int, reason: str) -> None:
        """Count a message that cannot be used, and name it if it is one of the first."""
        self._broken += 1
        if self._broken <= NAMED:
            self.problems.append(f'{self.topic}: message recorded at {time / 1e9:.3f} left out: {reason}')

    def finish(self) -> None:
        """Sort what was added, say what was left out."""
        listed, self._listed = self._listed, []
        if self._broken > NAMED:
            self.problems.append(f'{self.topic}: {self._broken} messages left out that are cut off or broken')
        missing = sum(connection.msgcount for connection in self.connections) - len(listed) - self._broken
        if missing > 0:
            self.problems.append(f'{self.topic}: {missing} messages lie in parts of the bag that are damaged')
        back = sum(later < earlier for (earlier, _), (later, _) in zip(listed, listed[1:], strict=False))
        if back and self.in_order:
            self.problems.append(f'{self.topic}: stamps go back {back} times; sorted by stamp')
        times: dict[int, int] = {}
        for stamp, time in listed:
            times.setdefault(stamp, time)
        if len(times) < len(listed) and self.in_order:
            self.problems.append(f'{self.topic}: {len(listed) - len(times)} messages left out that have the stamp of '
                                 f'an earlier one')
        self.stamps = sorted(times)
        self.times = [times[stamp] for stamp in self.stamps]


def list_messages(reader: AnyReader, tracks: list[Track], take: Callable[[str, int, bytes], None],
                  progress: Callable[[int, int], None] | None = None) -> None:
    """Go once through the bag. Every whole message of the tracks is noted there and then given to ``take`` with its
    topic and time; ``progress`` is told how many have been read, and of how many. Damaged parts are left out."""
    by_topic = {track.topic: track for track in tracks}
    connections = [connection for track in tracks for connection in track.connections]
    total = sum(connection.msgcount for connection in connections)
    count, start, stride = 0, None, STRIDE
    while stride <= LONGEST:
        try:
            for connection, time, raw in reader.messages(connections, start=start):
                if by_topic[connection.topic].add(time, raw):
                    take(connection.topic, time, raw)
                count += 1
                start, stride = time, STRIDE
                if progress is not None and count % 64 == 0:
                    progress(count, total)
            break
        except Exception:  # a damaged bag may fail anywhere in its parsers
            start = (reader.start_time if start is None else start) + stride
            stride *= 2
            if start >= reader.end_time:
                break
    for track in tracks:
        track.finish()
    if progress is not None:
        progress(total, total)
