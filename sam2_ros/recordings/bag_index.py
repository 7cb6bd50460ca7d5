"""Messages of one topic of a bag in order of their stamps, listed once and read on demand."""
from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from sam2_ros.recordings.bag_files import COMPRESSED, IMAGE, header_stamp, image_head
from sam2_ros.recordings.bag_reader import BagReader
from sam2_ros.recordings.bag_storage import Channel

AHEAD = 1_000_000_000  # ns of the bag that are read rather than skipped by a new search
KEPT = 4  # messages kept after reading, as they may be requested again or out of order
NAMED = 5  # unusable messages that are reported one by one; the others are counted


@dataclass(eq=False)
class Track:
    """One topic of a bag. ``list_messages`` fills in its messages."""

    topic: str
    connections: list[Channel]  # of one type
    in_order: bool = True  # whether messages are expected to have increasing stamps
    stamps: list[int] = field(default_factory=list)  # ns, increasing
    times: list[int] = field(default_factory=list)  # ns, recording time of each
    problems: list[str] = field(default_factory=list)  # skipped messages, with reasons
    sizes: list[tuple[int, int]] = field(default_factory=list)  # height and width of each image; (0, 0) if unknown
    _listed: list[tuple[int, int, tuple[int, int]]] = field(default_factory=list)  # stamp, time and size, as recorded
    _broken: int = 0
    _cursor: Iterator[tuple[Channel, int, bytes]] = field(default_factory=lambda: iter(()))
    _at: int = 0  # ns, time of the last message read
    _read: dict[tuple[int, int], bytes] = field(default_factory=dict)  # by stamp and time

    @property
    def kind(self) -> str:
        """Return the message type."""
        return self.connections[0].msgtype

    def nearest(self, stamp: int) -> int:
        """Return the index of the message whose stamp is nearest. There must be a message."""
        place = bisect_left(self.stamps, stamp)
        around = range(max(0, place - 1), min(place + 1, len(self.stamps)))
        return min(around, key=lambda i: abs(self.stamps[i] - stamp))

    def place(self, stamp: int) -> int | None:
        """Return the index of the message with this stamp, or None."""
        place = bisect_left(self.stamps, stamp)
        return place if place < len(self.stamps) and self.stamps[place] == stamp else None

    # --- reading

    def message(self, place: int, reader: BagReader) -> bytes:
        """Return a serialised message. Raises LookupError if the bag does not hold it any more.

        Reading in order is fast for each topic by itself; for another place the bag is searched by its times.
        """
        key = self.stamps[place], self.times[place]
        if key in self._read:
            return self._read[key]
        follows = self._at < key[1] <= self._at + AHEAD
        if not (follows and self._advance(key)):
            self._cursor = reader.messages(self.connections, start=key[1])
            if not self._advance(key):
                raise LookupError(f'{self.topic}: the message with stamp {key[0] / 1e9:.3f} cannot be read any more: '
                                  f'was the bag changed?')
        return self._read[key]

    def _advance(self, key: tuple[int, int]) -> bool:
        """Read on until the message is found. Return False if the bag ends or is damaged before."""
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
        self._cursor = iter(())
        return False

    # --- listing

    def add(self, time: int, raw: bytes) -> bool:
        """List a message of the bag, if it is whole; return whether it is."""
        size = 0, 0
        try:
            if self.kind in (IMAGE, COMPRESSED):
                head = image_head(raw, self.kind)
                stamp, size = head.stamp, (head.height, head.width)
            else:
                stamp = header_stamp(raw)
        except ValueError as error:
            self.skip(time, str(error))
            return False
        self._listed.append((stamp, time, size))
        return True

    def skip(self, time: int, reason: str) -> None:
        """Count a message that cannot be used, and report it if it is one of the first."""
        self._broken += 1
        if self._broken <= NAMED:
            self.problems.append(f'{self.topic}: message recorded at {time / 1e9:.3f} skipped: {reason}')

    def finish(self) -> None:
        """Sort the listed messages and report the skipped ones."""
        listed, self._listed = self._listed, []
        if self._broken > NAMED:
            self.problems.append(f'{self.topic}: {self._broken} messages skipped that are cut off or broken')
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
            self.problems.append(f'{self.topic}: {len(listed) - len(first)} messages skipped that have the stamp of '
                                 f'an earlier one')
        self.stamps = sorted(first)
        self.times = [first[stamp][0] for stamp in self.stamps]
        self.sizes = [first[stamp][1] for stamp in self.stamps]


def list_messages(reader: BagReader, tracks: list[Track], take: Callable[[str, int, bytes], None],
                  progress: Callable[[int, int], None] | None = None) -> None:
    """Read the bag once and list every whole message in its track.

    take: is called with topic, time in ns and data of every whole message; progress: is called with the numbers of
    messages that are read and that there are.
    """
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
