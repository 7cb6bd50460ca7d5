"""The messages of one topic of a bag in order of their stamps: listed once, read when asked for."""
from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from sam2_ros.recordings.bag_files import COMPRESSED, IMAGE, header_stamp, image_head
from sam2_ros.recordings.bag_reader import BagReader
from sam2_ros.recordings.bag_storage import Channel

AHEAD = 1_000_000_000  # ns of the bag that are read through rather than jumped over
KEPT = 4  # messages that were read and may be asked for again, or come in another order than their stamps
NAMED = 5  # messages that cannot be used are named one by one; the rest is counted


@dataclass(eq=False)
class Track:
    """One topic. Which messages it has is found by ``list_messages``."""

    topic: str
    connections: list[Channel]  # of one type
    in_order: bool = True  # whether messages are expected to have increasing stamps
    stamps: list[int] = field(default_factory=list)  # ns, increasing
    times: list[int] = field(default_factory=list)  # ns, when each was recorded
    problems: list[str] = field(default_factory=list)  # what was left out
    sizes: list[tuple[int, int]] = field(default_factory=list)  # height and width of each image; (0, 0): not known
    _listed: list[tuple[int, int, tuple[int, int]]] = field(default_factory=list)  # stamp, time and size, as recorded
    _broken: int = 0
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

    def message(self, place: int, reader: BagReader) -> bytes:
        """The serialized message. LookupError when the bag does not have it any more.

        Fast in order, each topic by itself; from elsewhere the bag is searched by its times.
        """
        key = self.stamps[place], self.times[place]
        if key in self._read:
            return self._read[key]
        follows = self._cursor is not None and self._at < key[1] <= self._at + AHEAD
        if not (follows and self._advance(key)):
            self._cursor = reader.messages(self.connections, start=key[1])
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
        except OSError:  # of the disk
            pass
        self._cursor = None
        return False

    # --- listing

    def add(self, time: int, raw: bytes) -> bool:
        """A message of the bag: noted, if it is whole; whether it is."""
        size = 0, 0
        try:
            if self.kind in (IMAGE, COMPRESSED):
                head = image_head(raw, self.kind)
                stamp, size = head.stamp, (head.height, head.width)
            else:
                stamp = header_stamp(raw)
        except ValueError as error:
            self.leave_out(time, str(error))
            return False
        self._listed.append((stamp, time, size))
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
            self.problems.append(f'{self.topic}: {missing} messages lie in parts of the bag that cannot be read')
        back = sum(later[0] < earlier[0] for earlier, later in zip(listed, listed[1:], strict=False))
        if back and self.in_order:
            self.problems.append(f'{self.topic}: stamps go back {back} times; sorted by stamp')
        first: dict[int, tuple[int, tuple[int, int]]] = {}
        for stamp, time, size in listed:
            first.setdefault(stamp, (time, size))
        if len(first) < len(listed) and self.in_order:
            self.problems.append(f'{self.topic}: {len(listed) - len(first)} messages left out that have the stamp of '
                                 f'an earlier one')
        self.stamps = sorted(first)
        self.times = [first[stamp][0] for stamp in self.stamps]
        self.sizes = [first[stamp][1] for stamp in self.stamps]


def list_messages(reader: BagReader, tracks: list[Track], take: Callable[[str, int, bytes], None],
                  progress: Callable[[int, int], None] | None = None) -> None:
    """Go once through the bag. Every whole message of the tracks is noted there and then given to ``take`` with its
    topic and time; ``progress`` is told how many have been read, and of how many."""
    by_topic = {track.topic: track for track in tracks}
    channels = [channel for track in tracks for channel in track.connections]
    total = sum(channel.msgcount for channel in channels)
    for count, (channel, time, raw) in enumerate(reader.messages(channels), 1):
        if by_topic[channel.topic].add(time, raw):
            take(channel.topic, time, raw)
        if progress is not None and count % 64 == 0:
            progress(count, total)
    for track in tracks:
        track.finish()
    if progress is not None:
        progress(total, total)
