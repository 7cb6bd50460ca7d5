"""What came of a recording: all that the node said about it, and what it cost. Scores, reports and exports read it.

What is read of metrics.json, which scores.py makes of it, by reports and comparisons (there is more in it)::

    {"recording": name, "images": number, "mode": of MODES, "rate": number,
     "protocol": {...},  # flat: how it was scored; the same where two files can be compared (prompts need not be)
     "mean": {"J":, "F":, "J&F":},  # over objects; null, or no "mean" at all, without truth
     "objects": {"7": {"label":, "J":, "F":, "J&F":,
                       "frames": {"index": [...], "J": [...], "F": [...]}}},  # the images that "J" and "F" count
     "latency": {stage: {"p50":, "p95":, "p99":}}, "dropped":, "parameters": {...}, "versions": {...}}
"""
from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import cv2
import numpy as np

from sam2_core.masks import mask_box
from sam2_ros.depth.oriented_box import OrientedBox
from sam2_ros.msg import Instance
from sam2_ros.perception.frame import TrackedObject

MODES = ('lock-step', 'real-time', 'live')
STAGES = ('decode', 'encode', 'attend', 'decode mask', 'memory', 'publish')  # in the order of the work on one image
TOTAL = 'total'  # the whole of the work on one image, stages and what lies between them


@dataclass(frozen=True, eq=False)
class ObjectOutput:
    """One known object in one image."""

    state: int  # Instance.TRACKED, OCCLUDED or LOST
    score: float  # predicted IoU, 0..1; 0 when not visible
    visibility: float  # probability, 0..1
    box: tuple[int, int, int, int] | None = None  # (x0, y0, x1, y1), pixels, x1 and y1 exclusive; None: not visible
    bits: np.ndarray | None = None  # uint8, the mask in its box row by row, eight pixels to the byte (np.packbits)
    shape: OrientedBox | None = None  # where it is, metres; None: not visible or no depth

    @classmethod
    def of(cls, item: TrackedObject) -> ObjectOutput:
        if item.box is None:
            return cls(item.state, item.score, item.visibility)
        x0, y0, x1, y1 = item.box
        return cls(item.state, item.score, item.visibility, item.box, np.packbits(item.mask[y0:y1, x0:x1]),
                   item.shape)

    @property
    def visible(self) -> bool:
        """Whether it was said to be in sight."""
        return self.state == Instance.TRACKED

    def crop(self) -> np.ndarray:
        """The mask in its box, bool (y1 - y0, x1 - x0); (0, 0) when not visible."""
        if self.box is None:
            return np.zeros((0, 0), bool)
        x0, y0, x1, y1 = self.box
        height, width = y1 - y0, x1 - x0
        return np.unpackbits(self.bits, count=height * width).reshape(height, width).view(bool)

    def mask(self, height: int, width: int) -> np.ndarray:
        """The mask at its place in the image, bool (height, width)."""
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
    stamp: int  # ns, of the image
    available: int  # ns, on the clock of the images' arrivals: when the result was there; lock-step: at once
    objects: dict[int, ObjectOutput]  # all that were known, by id
    stages: dict[str, float] = field(default_factory=dict)  # seconds; STAGES that took place, and TOTAL
    dropped: int = 0  # images skipped since the previous frame
    size: tuple[int, int] | None = None  # height and width of the image; None: those of the run


@dataclass(frozen=True)
class Answer:
    """What became of one prompt."""

    arrival: int  # ns, when it came, on the clock of the images' arrivals
    stamp: int  # ns, of the image it was drawn on; 0: the newest
    action: str  # SET, REFINE, REMOVE or CLEAR
    id: int  # of the object; 0: of all
    label: str
    accepted: bool
    reason: str = ''  # why it was refused; empty: accepted
    applied: int | None = None  # ns, stamp of the image it was applied to; None: refused
    answered: int = 0  # ns, when the answer was there, on the clock of the images' arrivals


@dataclass(eq=False)
class Run:
    """A recording that was put through the node."""

    recording: str  # its name
    mode: str  # of MODES
    rate: float  # images were offered at so many times their recorded rate, on whose clock all times are; lock-step: 1
    images: int  # in the recording
    height: int  # of the first image, pixels; 0 when none could be used
    width: int
    labels: dict[int, str] = field(default_factory=dict)  # names of the objects, as far as known
    frames: list[FrameOutput] = field(default_factory=list)  # in order; at most one for each image
    answers: list[Answer] = field(default_factory=list)
    unusable: dict[int, str] = field(default_factory=dict)  # images that could not be processed, by index, and why
    problems: list[str] = field(default_factory=list)  # what else of the recording could not be used, and why
    failures: list[str] = field(default_factory=list)  # steps that raised while the rest went on, and how often
    peak_memory: int = 0  # bytes, of the process
    peak_gpu_memory: int = 0  # bytes, allocated by PyTorch; 0 without a GPU
    wall_seconds: float = 0.0
    parameters: dict[str, Any] = field(default_factory=dict)  # of the node
    versions: dict[str, str] = field(default_factory=dict)  # of what took part: packages, model, device

    def size_of(self, frame: FrameOutput) -> tuple[int, int]:
        """Return height and width of the image of a frame: a camera may change them."""
        return frame.size or (self.height, self.width)

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """Heights and widths of the images, each once, in the order in which they came."""
        return list(dict.fromkeys(self.size_of(frame) for frame in self.frames)) or [(self.height, self.width)]

    @property
    def dropped(self) -> list[int]:
        """Indices of the images that came while the node was busy, and of which nothing is known."""
        processed = {frame.index for frame in self.frames}
        return [index for index in range(self.images) if index not in processed and index not in self.unusable]
