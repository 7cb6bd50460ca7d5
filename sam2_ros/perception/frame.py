"""Frame: a processed image together with the result for every known object."""
from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from builtin_interfaces.msg import Time
from std_msgs.msg import Header

from sam2_core.masks import mask_box
from sam2_ros.depth.frame_transform import CAMERA_FRAME, FrameTransform
from sam2_ros.msg import Instance

if TYPE_CHECKING:
    from sam2_ros.depth.surface import DepthFrame, OrientedBox


@dataclass(frozen=True, eq=False)
class TrackedObject:
    """One known object in one frame."""

    id: int
    label: str
    state: int  # Instance.TRACKED, OCCLUDED or LOST
    score: float  # predicted IoU, 0..1; 0 when not visible
    visibility: float  # probability, 0..1
    last_seen: Time
    box: tuple[int, int, int, int] | None = None  # (x0, y0, x1, y1), pixels, x1 and y1 exclusive; None: not visible
    mask: np.ndarray | None = None  # bool (H, W); None: not visible
    shape: OrientedBox | None = None  # oriented box, in the camera's frame; None: not visible or no depth
    hidden_for: float = 0.0  # seconds by image stamps since it was visible; 0 when visible
    target: FrameTransform | None = CAMERA_FRAME  # from there into target_frame; None: no transform at the stamp

    @property
    def region(self) -> tuple[tuple[int, int, int, int], np.ndarray] | None:
        """Box and mask; None if the object is not visible."""
        return None if self.box is None or self.mask is None else (self.box, self.mask)


def sighting(object_id: int, label: str, mask: np.ndarray, score: float, visibility: float,
             stamp: Time) -> TrackedObject:
    """Return an object as a single image shows it: TRACKED if its mask, bool (H, W), has a pixel, else OCCLUDED."""
    box = mask_box(mask)
    if box is None:
        return TrackedObject(object_id, label, Instance.OCCLUDED, 0.0, visibility, Time())
    return TrackedObject(object_id, label, Instance.TRACKED, score, visibility, stamp, box, mask)


@dataclass(frozen=True)
class Event:
    """One change of an object."""

    id: int
    label: str
    kind: int  # InstanceEvent.ADDED, OCCLUDED, ...
    last_seen: Time


@dataclass(frozen=True, eq=False)
class Frame:
    """A processed image."""

    header: Header
    image: np.ndarray  # uint8 RGB (H, W, 3)
    objects: list[TrackedObject]
    dropped: int  # images skipped since the previous frame
    depth: DepthFrame | None = None
    events: list[Event] = field(default_factory=list)
    target: FrameTransform | None = CAMERA_FRAME  # into target_frame; None: there is no transform at the stamp
