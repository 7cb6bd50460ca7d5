"""Result of a run: every output of the node on a recording, and its cost. Scores, reports and exports read it."""
from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any

import cv2
import numpy as np

from sam2_core.masks import mask_box
from sam2_ros.depth.oriented_box import OrientedBox
from sam2_ros.messages.intensity import IntensityRange, given_range
from sam2_ros.msg import Instance, Prompt
from sam2_ros.perception.frame import TrackedObject

STAGES = ('decode', 'encode', 'attend', 'decode mask', 'memory', 'publish')  # in the order of the work on one image
TRACK = 'track'  # the stage in which a compiled model attends and decodes tracked objects
TOTAL = 'total'  # all of the work on one image, between the stages too

_ACTIONS = {getattr(Prompt, name): name for name in ('SET', 'REFINE', 'REMOVE', 'CLEAR')}


def action_name(action: int) -> str:
    """Return the name of a prompt's action, or its number if it has none."""
    return _ACTIONS.get(action, str(action))


class Mode(str, Enum):
    """Ways in which images and prompts of a recording reach the node."""

    LOCK_STEP = 'lock-step'  # every image in order, each prompt with the image it was drawn on
    REAL_TIME = 'real-time'  # at their recorded times, on a simulated clock that advances by the time the work takes
    LIVE = 'live'  # at their recorded times, over DDS, to a node process

    def __str__(self) -> str:
        return self.value


@dataclass(frozen=True, eq=False)
class ObjectOutput:
    """One known object in one image."""

    state: int  # Instance.TRACKED, OCCLUDED or LOST
    score: float  # predicted IoU, 0..1; 0 if the object is not visible
    visibility: float  # probability, 0..1
    box: tuple[int, int, int, int] | None = None  # (x0, y0, x1, y1), pixels, x1 and y1 exclusive; None: not visible
    bits: np.ndarray | None = None  # uint8, the mask within its box by rows, eight pixels to the byte (np.packbits)
    shape: OrientedBox | None = None  # place and size in metres; None: not visible or no depth

    @classmethod
    def of(cls, item: TrackedObject) -> ObjectOutput:
        """Return the output for an object of a frame."""
        if item.box is None or item.mask is None:
            return cls(item.state, item.score, item.visibility)
        x0, y0, x1, y1 = item.box
        return cls(item.state, item.score, item.visibility, item.box, np.packbits(item.mask[y0:y1, x0:x1]),
                   item.shape)

    @property
    def visible(self) -> bool:
        """True if the node reported the object as visible."""
        return self.state == Instance.TRACKED

    def crop(self) -> np.ndarray:
        """Return the mask within its box, bool (y1 - y0, x1 - x0); (0, 0) if the object is not visible."""
        if self.box is None or self.bits is None:
            return np.zeros((0, 0), bool)
        x0, y0, x1, y1 = self.box
        height, width = y1 - y0, x1 - x0
        return np.unpackbits(self.bits, count=height * width).reshape(height, width).view(bool)

    def mask(self, height: int, width: int) -> np.ndarray:
        """Return the mask in its image, bool (height, width)."""
        whole = np.zeros((height, width), bool)
        if self.box is not None:
            x0, y0, x1, y1 = self.box
            whole[y0:y1, x0:x1] = self.crop()
        return whole

    def resized(self, size: tuple[int, int], wanted: tuple[int, int]) -> ObjectOutput:
        """Return the output for an image of another size of the same camera; sizes are height and width."""
        if self.box is None or size == wanted:
            return self
        mask = cv2.resize(self.mask(*size).view(np.uint8), wanted[::-1], interpolation=cv2.INTER_NEAREST).view(bool)
        box = mask_box(mask)
        if box is None:
            return replace(self, box=None, bits=None)
        x0, y0, x1, y1 = box
        return replace(self, box=box, bits=np.packbits(mask[y0:y1, x0:x1]))


@dataclass(frozen=True, eq=False)
class FrameOutput:
    """One processed image."""

    index: int  # of the image in the recording
    stamp: int  # of the image, nanoseconds
    available: int  # when the result was available, nanoseconds on the clock of the arrivals; lock-step: at once
    objects: dict[int, ObjectOutput]  # every known object, by id
    stages: dict[str, float] = field(default_factory=dict)  # seconds; the STAGES that took place, and TOTAL
    dropped: int = 0  # images skipped since the previous frame
    size: tuple[int, int] | None = None  # height and width of the image; None: those of the run
    intensity: IntensityRange | None = None  # values of a 16-bit image that the model saw as black and white


@dataclass(frozen=True)
class Answer:
    """Answer to one prompt."""

    arrival: int  # of the prompt, nanoseconds on the clock of the images' arrivals
    stamp: int  # of the image the prompt was drawn on, nanoseconds; 0: the newest
    action: str  # SET, REFINE, REMOVE or CLEAR
    id: int  # of the object; 0: all objects
    label: str
    accepted: bool
    reason: str = ''  # of a refusal; empty: accepted
    applied: int | None = None  # stamp of the image the prompt was applied to, nanoseconds; None: refused
    answered: int = 0  # when the answer was available, nanoseconds on the clock of the images' arrivals


@dataclass(eq=False)
class Run:
    """A recording that was processed by the node."""

    recording: str  # its name
    mode: Mode
    rate: float  # speed of playback relative to the recording; all times are on the recording's clock; lock-step: 1
    images: int  # in the recording
    height: int  # of the first image, pixels; 0 if no image could be used
    width: int
    labels: dict[int, str] = field(default_factory=dict)  # of the objects, as far as known
    frames: list[FrameOutput] = field(default_factory=list)  # in order, at most one for each image
    answers: list[Answer] = field(default_factory=list)
    unusable: dict[int, str] = field(default_factory=dict)  # reason for each image that was not processed, by index
    problems: list[str] = field(default_factory=list)  # other data of the recording that could not be used, and why
    failures: list[str] = field(default_factory=list)  # steps that raised an exception and were skipped, with counts
    peak_memory: int = 0  # of the process, bytes
    peak_gpu_memory: int = 0  # allocated by PyTorch, bytes; 0 without a GPU
    wall_seconds: float = 0.0
    parameters: dict[str, Any] = field(default_factory=dict)  # of the node
    versions: dict[str, str] = field(default_factory=dict)  # of packages, model and device

    def __post_init__(self) -> None:
        self.mode = Mode(self.mode)

    def intensity_of(self, index: int) -> IntensityRange | None:
        """Return the range in which the model saw an image, if it has 16 bits, or would have seen it.

        None if it is unknown, as for the images of a live run that chooses the range itself.
        """
        place = bisect_right(self.frames, index, key=lambda frame: frame.index)
        if self.frames and (used := self.frames[max(place - 1, 0)].intensity):
            return used
        return given_range(self.parameters.get('intensity_min', 0), self.parameters.get('intensity_max', 0))

    def size_of(self, frame: FrameOutput) -> tuple[int, int]:
        """Return height and width of the image of a frame; a camera may change them."""
        return frame.size or (self.height, self.width)

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """Distinct heights and widths of the images, in order of appearance."""
        return list(dict.fromkeys(self.size_of(frame) for frame in self.frames)) or [(self.height, self.width)]

    @property
    def dropped(self) -> list[int]:
        """Indices of the images that were replaced by newer ones before they were processed."""
        processed = {frame.index for frame in self.frames}
        return [index for index in range(self.images) if index not in processed and index not in self.unusable]
