"""The processed images of a run as the node had them: what pictures, bags and training data are made of."""
from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from builtin_interfaces.msg import Time
from sensor_msgs.msg import CompressedImage, Image

from sam2_ros.evaluation.results import FrameOutput, Run
from sam2_ros.messages.conversions import to_rgb
from sam2_ros.perception.frame import Frame, TrackedObject
from sam2_ros.recordings.recording import Recording

Progress = Callable[[int, int], None]  # is told how many of how many images are done


class Processed(NamedTuple):
    """One image of a run."""

    output: FrameOutput
    message: Image | CompressedImage  # as recorded
    frame: Frame  # as the node's outputs take it


def processed(run: Run, recording: Recording, progress: Progress | None = None) -> Iterator[Processed]:
    """The images that were processed, in order, with the objects known in each."""
    last_seen: dict[int, Time] = {}
    for number, output in enumerate(run.frames, 1):
        message = recording.image(output.index)
        objects = []
        for object_id, found in output.objects.items():
            if found.visible:
                last_seen[object_id] = message.header.stamp
            objects.append(TrackedObject(
                object_id, run.labels.get(object_id, ''), found.state, found.score, found.visibility,
                last_seen.get(object_id, Time()), found.box,
                None if found.box is None else found.mask(*run.size_of(output)), found.shape))
        yield Processed(output, message, Frame(message.header, to_rgb(message), objects, output.dropped))
        if progress is not None:
            progress(number, len(run.frames))
