"""Interface of a recording, which may be a bag or a folder of a data set."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from sensor_msgs.msg import CameraInfo, CompressedImage, Image

from sam2_ros.msg import Prompt


@dataclass(frozen=True, eq=False)
class RecordedPrompt:
    """A prompt with the time of its arrival."""

    arrival: int  # ns, on the clock of the images' arrivals
    message: Prompt  # its stamp is that of the image it was drawn on


class Recording(Protocol):
    """Images of one camera in order of their stamps, with depth, prompts and ground truth. Images are read on demand.

    Methods raise RecordingError, which names the file or topic and the cure.
    """

    name: str
    prompts: list[RecordedPrompt]
    labels: dict[int, str]  # names of object ids, as far as known
    problems: list[str]  # skipped data with reasons, each naming the topic or file

    @property
    def stamps(self) -> Sequence[int]:
        """Stamps of the images in nanoseconds, increasing."""

    @property
    def arrivals(self) -> Sequence[int]:
        """Recording times of the images in nanoseconds; the stamps if these are not known."""

    def image(self, index: int) -> Image | CompressedImage:
        """Return the message of an image, with its header."""

    def depth(self, index: int) -> tuple[Image | CompressedImage, CameraInfo] | None:
        """Return depth image and calibration for an image, or None if there are none."""

    def truth(self, index: int) -> np.ndarray | None:
        """Return the object id of every pixel as uint16 (H, W), 0 for none, or None for an image without annotation."""


def truth_masks(recording: Recording, index: int) -> dict[int, np.ndarray] | None:
    """Return the masks of an image's annotation, bool (H, W) by object id, or None without an annotation.

    A recording whose objects may overlap has a method ``masks`` (SA-V); in ``truth`` a pixel belongs to one object.
    """
    masks = getattr(recording, 'masks', None)
    if masks is not None:
        return masks(index)
    truth = recording.truth(index)
    if truth is None:
        return None
    return {object_id: truth == object_id for object_id in np.flatnonzero(np.bincount(truth.ravel())).tolist()
            if object_id}


class RecordingError(ValueError):
    """Error for a recording that cannot be used; the text names the value and the cure."""
