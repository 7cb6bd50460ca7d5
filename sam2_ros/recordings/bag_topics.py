"""Topics of a bag that a user has named, or that are the only ones of their kind."""
from __future__ import annotations

from sam2_ros.recordings.bag_files import described
from sam2_ros.recordings.bag_reader import BagReader
from sam2_ros.recordings.bag_storage import Channel
from sam2_ros.recordings.recording import RecordingError

Topics = dict[str, list[Channel]]


class TopicChooser:
    """Chooser of a bag's topics. It adds the choices that it leaves to the user to ``problems``."""

    def __init__(self, reader: BagReader, problems: list[str]) -> None:
        self.reader, self.problems = reader, problems

    def wanted(self, topics: Topics, given: str, option: str) -> str:
        """Return the topic that was given, or an empty string. Raises RecordingError if the bag does not have it."""
        topic = as_named(given)
        if topic and topic not in topics:
            raise RecordingError(f'nothing of the right type on {option} {given}; {described(topics)}{self.foreign()}')
        return topic

    def foreign(self) -> str:
        """Return the channels in other encodings than that of ROS 2, as text."""
        topics: Topics = {}
        for channel in self.reader.others:
            topics.setdefault(channel.topic, []).append(channel)
        return f'; not in CDR, as ROS 2 records: {described(topics).removeprefix("there are ")}' if topics else ''

    def only(self, topics: Topics, what: str, option: str) -> str:
        """Return the topic if exactly one matches; if several match, record a problem and return ''."""
        if len(topics) > 1:
            self.problems.append(f'several topics of {what}, none is used; {described(topics)}: choose one with '
                                 f'{option}')
        return next(iter(topics)) if len(topics) == 1 else ''


def as_named(topic: str) -> str:
    """Return a topic as bags name it."""
    return f'/{topic.lstrip("/")}' if topic else ''
