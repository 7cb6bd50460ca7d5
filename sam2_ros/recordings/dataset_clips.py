"""A clip of a data set as a recording, wherever its images and its annotation come from."""
from __future__ import annotations

from typing import Protocol

import numpy as np
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from std_msgs.msg import Header

from sam2_core.datasets import BrokenSample
from sam2_ros.recordings.recording import RecordedPrompt, RecordingError

RATE = 24.0  # images per second of DAVIS and of SA-V
START = 1_000_000_000  # ns, stamp of the first image; a stamp of 0 means none


class ClipImages(Protocol):
    """The images of a clip."""

    def __len__(self) -> int: ...

    def message(self, index: int, header: Header) -> Image | CompressedImage:
        """Return an image with this header. Raises RecordingError if it cannot be read."""


class ClipAnnotation(Protocol):
    """The masks of a clip's objects."""

    def size(self) -> tuple[int, int]:
        """Return the height and width of the masks."""

    def masks(self, index: int) -> dict[int, np.ndarray] | None:
        """Return bool masks (H, W) by object, or None for an image without annotation. Raises BrokenSample."""


class DatasetClip:
    """One clip of a data set, a ``Recording`` (``sam2_ros.recordings.recording``) at an even rate, without depth."""

    def __init__(self, name: str, images: ClipImages, annotation: ClipAnnotation, rate: float = RATE) -> None:
        """rate: images per second."""
        if not rate > 0:
            raise RecordingError(f'rate {rate:g}: must be positive, images per second')
        self.name = name
        self.stamps = [START + round(i * 1e9 / rate) for i in range(len(images))]
        self.arrivals = self.stamps
        self.prompts: list[RecordedPrompt] = []
        self.labels: dict[int, str] = {}
        self.problems: list[str] = []
        self._images, self._annotation = images, annotation

    def image(self, index: int) -> Image | CompressedImage:
        """Return an image with its header. Raises RecordingError if its file cannot be read."""
        header = Header(frame_id='camera')
        header.stamp.sec, header.stamp.nanosec = divmod(self.stamps[index], 1_000_000_000)
        return self._images.message(index, header)

    def depth(self, index: int) -> tuple[Image, CameraInfo] | None:
        """Return None: these data sets have no depth."""

    def masks(self, index: int) -> dict[int, np.ndarray] | None:
        """Return bool masks (H, W) of the annotated objects, which may overlap, or None without an annotation.

        Raises RecordingError if the annotation cannot be read.
        """
        try:
            return self._annotation.masks(index)
        except BrokenSample as error:
            raise RecordingError(str(error)) from None

    def truth(self, index: int) -> np.ndarray | None:
        """Return the object id of every pixel as uint16 (H, W), 0 for none, or None without an annotation.

        Where objects overlap, as a shirt and the person in it, a pixel belongs to the smallest. Raises RecordingError
        if the annotation cannot be read.
        """
        masks = self.masks(index)
        if masks is None:
            return None
        truth = np.zeros(self._annotation.size(), np.uint16)
        for object_id in sorted(masks, key=lambda key: np.count_nonzero(masks[key]), reverse=True):
            truth[masks[object_id]] = object_id
        return truth
