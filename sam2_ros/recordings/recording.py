"""What an evaluation needs to know of a recording, whether it is a bag or a folder of images."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from sensor_msgs.msg import CameraInfo, CompressedImage, Image

from sam2_ros.msg import Prompt


@dataclass(frozen=True, eq=False)
class RecordedPrompt:
    """A prompt and when it came."""

    arrival: int  # ns, on the clock of the images' arrivals
    message: Prompt  # its header's stamp is that of the image it was drawn on


class Recording(Protocol):
    """One camera's images in order of their stamps, and what was recorded beside them. Images are read when asked for.

    Errors: ``RecordingError`` (a ValueError) that names the file or topic and the cure.
    """

    name: str
    prompts: list[RecordedPrompt]
    labels: dict[int, str]  # names of the ids in the truth, as far as known
    problems: list[str]  # what was left out and why, each in words that name the topic or file

    @property
    def stamps(self) -> Sequence[int]:
        """Stamps of the images in nanoseconds, increasing."""

    @property
    def arrivals(self) -> Sequence[int]:
        """Recording times of the images in nanoseconds; the stamps if these are not known."""

    def image(self, index: int) -> Image | CompressedImage:
        """The message, with its header."""

    def depth(self, index: int) -> tuple[Image, CameraInfo] | None:
        """The depth of an image; None: there is none."""

    def truth(self, index: int) -> np.ndarray | None:
        """uint16 (H, W): the id of the object a pixel belongs to, 0: none; None: the image is not annotated."""


def truth_masks(recording: Recording, index: int) -> dict[int, np.ndarray] | None:
    """What the truth of an image shows, bool (H, W) by id; None: the image is not annotated.

    A recording whose annotated objects overlap has a method ``masks`` that gives them whole (SA-V); in ``truth`` a
    pixel belongs to one object.
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
    """A recording that cannot be used; the text names the value and the cure."""
