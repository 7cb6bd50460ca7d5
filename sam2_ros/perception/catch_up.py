"""Prompts for one image of the history, and the way of their objects from there to the live images."""
from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from sam2_core import StreamTracker
from sam2_ros.perception.image_history import ImageHistory, StoredImage
from sam2_ros.perception.object_steps import TrackingStep, take_step
from sam2_ros.perception.prompt_plan import Batch, PromptRequest


@dataclass(eq=False)
class CatchUp:
    """Prompts for one past image, and the temporary tracker that replays newer images up to the live ones."""

    past: StoredImage
    image: np.ndarray  # uint8 RGB (H, W, 3)
    batch: Batch = field(default_factory=Batch)
    waiting: dict[int, list[PromptRequest]] = field(default_factory=dict)  # by object; until the prompts are applied
    corrected: set[int] = field(default_factory=set)  # objects that the live tracker has, too
    tracker: StreamTracker | None = None  # None: not begun
    stamp: int = 0  # ns, of the last image replayed
    images_left: int = 0
    seen: list[int] = field(default_factory=list)  # stamps of the images that the tracker has processed, ns

    def next_image(self, history: ImageHistory, live_stamp: int) -> StoredImage | None:
        """Return the image to replay next, or None if the next live image can follow.

        The images left are spread evenly over those up to ``live_stamp``, and chosen anew each time because live
        images arrive meanwhile.
        """
        rest = history.between(self.stamp, live_stamp) if self.images_left else []
        return rest[math.ceil(len(rest) / self.images_left) - 1] if rest else None

    def begin(self, tracker: StreamTracker, images: int) -> TrackingStep:
        """Apply the prompts to their image. Raises the error if all objects fail.

        Args:
            tracker: Fork of the live tracker as it was before that image, with the objects that are corrected.
            images: Number of images to replay until now.
        """
        self.tracker = tracker
        self.stamp, self.images_left = self.past.stamp, images
        step = take_step(tracker, self.image, self.batch.prompts)
        self.seen.append(self.past.stamp)
        return step

    def go_on(self, stored: StoredImage) -> TrackingStep:
        """Replay an image.

        Raises ImageError if the image cannot be used, and another error if all objects fail. The image is then skipped.
        """
        assert self.tracker is not None, 'not begun'
        self.images_left -= 1
        self.stamp = stored.stamp
        step = take_step(self.tracker, stored.rgb(), {})
        self.seen.append(stored.stamp)
        return step

    def cancel(self, object_id: int) -> list[PromptRequest]:
        """Drop an object; return its requests that have not been answered."""
        if object_id not in self.batch.prompts:
            return []
        self.batch.drop(object_id)
        self.corrected.discard(object_id)
        if self.tracker is not None and object_id in self.tracker.object_ids:
            self.tracker.remove(object_id)
        return self.waiting.pop(object_id, [])
