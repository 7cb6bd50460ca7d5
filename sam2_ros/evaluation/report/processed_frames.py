"""Processed images of a run as frames of the node, from which pictures, bags and training data are made."""
from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from builtin_interfaces.msg import Time
from sensor_msgs.msg import CompressedImage, Image

from sam2_ros.evaluation.results import FrameOutput, Run
from sam2_ros.messages.conversions import to_rgb
from sam2_ros.perception.frame import Frame, TrackedObject
from sam2_ros.recordings.recording import Recording

Progress = Callable[[int, int], None]  # called with the number of images done and the total


class Processed(NamedTuple):
    """One image of a run."""

    output: FrameOutput
    message: Image | CompressedImage  # as recorded
    frame: Frame  # as the node publishes it


def processed(run: Run, recording: Recording, progress: Progress | None = None) -> Iterator[Processed]:
    """Yield the processed images in order, with the objects known in each."""
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
        image = to_rgb(message, run.intensity_of(output.index))
        yield Processed(output, message, Frame(message.header, image, objects, output.dropped))
        if progress is not None:
            progress(number, len(run.frames))
