"""Recording in memory for the tests of the evaluation: two discs on a plain background, with ground truth."""
from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from builtin_interfaces.msg import Time
from sensor_msgs.msg import Image, RegionOfInterest
from std_msgs.msg import Header

from sam2_ros.messages.conversions import from_pixels
from sam2_ros.msg import Prompt
from sam2_ros.recordings.recording import RecordedPrompt, RecordingError

HEIGHT, WIDTH, RADIUS = 120, 160, 22
COLOURS = {1: (230, 60, 40), 2: (40, 80, 230)}
PERIOD = 100_000_000  # nanoseconds between two images
START = 50_000_000_000  # stamp of the first image, nanoseconds
TRANSPORT = 5_000_000  # nanoseconds from the stamp of an image to its arrival


def header(index: float) -> Header:
    """Return the header of an image."""
    seconds, nanoseconds = divmod(stamp(index), 10**9)
    return Header(stamp=Time(sec=seconds, nanosec=nanoseconds), frame_id='camera')


def stamp(index: float) -> int:
    """Return the stamp of an image, nanoseconds."""
    return START + round(index * PERIOD)


class Discs:
    """A ``Recording`` of two moving discs."""

    def __init__(self, images: int = 8, prompts: Sequence[RecordedPrompt] = (),
                 hidden: dict[int, Sequence[int]] | None = None, broken: Sequence[int] = (),
                 annotated: Sequence[int] | None = None) -> None:
        """Create the recording.

        Args:
            images: Their number.
            prompts: Recorded prompts.
            hidden: Images in which an object is not visible, by object id.
            broken: Images that cannot be read.
            annotated: Images with ground truth; None means all.
        """
        self.name = 'discs'
        self.stamps = [stamp(index) for index in range(images)]
        self.arrivals = [moment + TRANSPORT for moment in self.stamps]
        self.prompts = list(prompts)
        self.labels = {1: 'red', 2: 'blue'}
        self.problems: list[str] = []
        self._hidden, self._broken = hidden or {}, broken
        self._annotated = range(images) if annotated is None else annotated

    def mask(self, object_id: int, index: int) -> np.ndarray:
        """Return the true mask of an object, bool (HEIGHT, WIDTH)."""
        rows, columns = np.ogrid[:HEIGHT, :WIDTH]
        x, y = {1: (40 + 2 * index, 40), 2: (115 - 2 * index, 85)}[object_id]
        seen = index not in self._hidden.get(object_id, ())
        return (np.hypot(columns - x, rows - y) < RADIUS) & seen

    def box(self, object_id: int, index: int) -> RegionOfInterest:
        """Return the box of an object."""
        rows, columns = np.nonzero(self.mask(object_id, index))
        return RegionOfInterest(x_offset=int(columns.min()), y_offset=int(rows.min()),
                                width=int(np.ptp(columns)) + 1, height=int(np.ptp(rows)) + 1)

    def prompt(self, object_id: int, index: int = 0, delay: float = 0.0) -> RecordedPrompt:
        """Return a box prompt that was drawn on an image and arrives ``delay`` images later."""
        return RecordedPrompt(round(stamp(index + delay)) + TRANSPORT,
                              Prompt(header=header(index), id=object_id, box=self.box(object_id, index)))

    def image(self, index: int) -> Image:
        """Return an image, rgb8."""
        if index in self._broken:
            raise RecordingError(f'image {index}: cut off; record it again')
        picture = np.full((HEIGHT, WIDTH, 3), 90, np.uint8)
        for object_id, colour in COLOURS.items():
            picture[self.mask(object_id, index)] = colour
        return from_pixels(picture, 'rgb8', header(index))

    def depth(self, index: int) -> None:
        """Return None: the recording has no depth."""
        return

    def truth(self, index: int) -> np.ndarray | None:
        """Return the label image of an image, uint16 (HEIGHT, WIDTH)."""
        if index not in self._annotated:
            return None
        labels = np.zeros((HEIGHT, WIDTH), np.uint16)
        for object_id in COLOURS:
            labels[self.mask(object_id, index)] = object_id
        return labels
