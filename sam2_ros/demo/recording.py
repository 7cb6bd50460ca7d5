"""Recording of the demo: received images, instances and ground truth, paired by stamp and scored."""
from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

import cv2
import numpy as np
from sensor_msgs.msg import Image

from sam2_core.metrics import iou
from sam2_core.scores import ScoreWatch
from sam2_ros.messages.conversions import to_nanoseconds
from sam2_ros.msg import Instance, InstanceArray
from sam2_ros.perception.frame import TrackedObject
from sam2_ros.perception.instance_messages import instance_mask

PICTURE_WIDTH = 640  # pixels; images are stored and drawn at most this wide
PENDING = 60  # messages of one kind that are kept until the others of their stamp arrive
JPEG_QUALITY = 95
Item = TypeVar('Item')


def to_labels(message: Image) -> np.ndarray:
    """Return a mono16 label image as uint16 (H, W), a view of the message.

    Raises:
        ValueError: The image has another encoding or padded rows.
    """
    if message.encoding != 'mono16' or message.step != 2 * message.width:
        raise ValueError(f'label image with encoding {message.encoding!r}, step {message.step}: must be mono16 '
                         'without padding')
    order = '>' if message.is_bigendian else '<'
    return np.frombuffer(message.data, f'{order}u2').reshape(message.height, message.width)


def resized(instance: Instance, height: int, width: int, scale: float) -> TrackedObject:
    """Return an instance of an image of this size as an object of the image resized by ``scale``."""
    mask = box = None
    if instance.state == Instance.TRACKED:
        full = instance_mask(instance, height, width).astype(np.uint8)
        mask = cv2.resize(full, (round(width * scale), round(height * scale)), interpolation=cv2.INTER_NEAREST) > 0
        x, y, w, h = cv2.boundingRect(mask.astype(np.uint8))
        box = (x, y, x + w, y + h) if w else None
    return TrackedObject(instance.id, instance.label, instance.state, instance.score, instance.visibility,
                         instance.last_seen, box, mask)


@dataclass(frozen=True)
class Score:
    """One object in one frame, compared with the ground truth."""

    object_id: int
    hidden: bool  # the truth has no pixel of the object
    called_visible: bool  # the node reported the object as tracked
    iou: float  # of the masks; 0 for an object that is visible in truth and not tracked


@dataclass(frozen=True, eq=False)
class RecordedFrame:
    """One frame as it was received: the image and its instances."""

    stamp: int  # nanoseconds
    jpeg: np.ndarray  # the image, at most PICTURE_WIDTH wide
    instances: InstanceArray
    latency: float  # seconds from the stamp to the arrival of the instances

    def picture(self) -> np.ndarray:
        """Return the stored image, uint8 BGR (h, w, 3)."""
        return _decoded(self.jpeg)


class DemoRecording:
    """Images, instances and ground truth, received in any order and paired by stamp. Stamps are in nanoseconds."""

    def __init__(self) -> None:
        self.images = 0  # images received
        self.frames: list[RecordedFrame] = []
        self.scores: list[Score] = []
        self.first_stamp: int | None = None
        self._pictures: dict[int, np.ndarray] = {}
        self._truths: dict[int, np.ndarray] = {}
        self._arrays: dict[int, tuple[InstanceArray, float]] = {}
        self._unscored: dict[int, InstanceArray] = {}

    def add_image(self, stamp: int, rgb: np.ndarray) -> None:
        """Store an image, uint8 RGB (H, W, 3), scaled down to PICTURE_WIDTH."""
        self.images += 1
        if self.first_stamp is None:
            self.first_stamp = stamp
        height, width = rgb.shape[:2]
        if width > PICTURE_WIDTH:
            rgb = cv2.resize(rgb, (PICTURE_WIDTH, round(height * PICTURE_WIDTH / width)), interpolation=cv2.INTER_AREA)
        _, jpeg = cv2.imencode('.jpg', cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
        _keep(self._pictures, stamp, jpeg)
        self._pair(stamp)

    def add_instances(self, message: InstanceArray, received: int) -> None:
        """Store the instances of an image; ``received`` is the time of their arrival."""
        stamp = to_nanoseconds(message.header.stamp)
        _keep(self._arrays, stamp, (message, (received - stamp) / 1e9))
        _keep(self._unscored, stamp, message)
        self._pair(stamp)

    def add_truth(self, stamp: int, labels: np.ndarray) -> None:
        """Store a label image, uint16 (H, W)."""
        _keep(self._truths, stamp, labels)
        self._pair(stamp)

    def _pair(self, stamp: int) -> None:
        if stamp in self._pictures and stamp in self._arrays:
            self.frames.append(RecordedFrame(stamp, self._pictures.pop(stamp), *self._arrays.pop(stamp)))
        if stamp in self._truths and stamp in self._unscored:
            self.scores += scores(self._unscored.pop(stamp), self._truths.pop(stamp))

    # --- figures

    @property
    def tracked(self) -> bool:
        """True if any object was tracked in any frame."""
        return any(item.state == Instance.TRACKED for frame in self.frames for item in frame.instances.instances)

    def low_scores(self) -> list[dict[str, Any]]:
        """Return the objects whose score stayed low: ``object_id``, ``mean`` and ``frame`` of a LowScore each."""
        watch = ScoreWatch()
        found = [watch.add(number, item.id, item.score, item.state == Instance.TRACKED)
                 for number, frame in enumerate(self.frames) for item in frame.instances.instances]
        return [low._asdict() for low in found if low is not None]

    def figures(self) -> dict[str, Any]:
        """Return the figures of the demo's table; times in seconds, None for a figure without data."""
        visible = [score for score in self.scores if not score.hidden]
        hidden = [score for score in self.scores if score.hidden]
        arrays = [frame.instances for frame in self.frames]
        names = {item.id: item.label for array in arrays for item in array.instances}
        span = (self.frames[-1].stamp - self.frames[0].stamp) / 1e9 if len(self.frames) > 1 else 0
        published = [array.latency.sec + array.latency.nanosec / 1e9 for array in arrays]
        return {
            'images': self.images,
            'processed': len(self.frames),
            'dropped': sum(array.dropped for array in arrays),
            'frames_per_second': (len(self.frames) - 1) / span if span else None,
            'latency_node': _percentiles(published),
            'latency_received': _percentiles([frame.latency for frame in self.frames]),
            'objects': names,
            'iou': _mean(score.iou for score in visible),
            'iou_by_object': {object_id: _mean(score.iou for score in visible if score.object_id == object_id)
                              for object_id in names},
            'hidden': len(hidden),
            'hidden_called_not_visible': _mean(not score.called_visible for score in hidden),
            'visible_called_visible': _mean(score.called_visible for score in visible),
        }


def scores(message: InstanceArray, labels: np.ndarray) -> list[Score]:
    """Compare each instance with the label image of the same image."""
    result = []
    for item in message.instances:
        truth, called_visible = labels == item.id, item.state == Instance.TRACKED
        found = instance_mask(item, message.height, message.width) & called_visible
        result.append(Score(item.id, not truth.any(), called_visible, iou(found, truth)))
    return result


def _decoded(jpeg: np.ndarray) -> np.ndarray:
    bgr = cv2.imdecode(jpeg, cv2.IMREAD_COLOR)
    assert bgr is not None, 'cannot decode a JPEG that was encoded here'
    return bgr


def _keep(waiting: dict[int, Item], stamp: int, item: Item) -> None:
    """Store an item until the others of its stamp arrive; drop the oldest if there are too many."""
    waiting[stamp] = item
    if len(waiting) > PENDING:
        del waiting[min(waiting)]


def _mean(values: Iterable[float]) -> float | None:
    values = list(values)
    return float(np.mean(values)) if values else None


def _percentiles(values: list[float]) -> dict[str, float] | None:
    return {'p50': float(np.percentile(values, 50)), 'p95': float(np.percentile(values, 95))} if values else None
