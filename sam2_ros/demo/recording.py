"""What the demo's recorder knows: images, instances and ground truth paired by stamp, their scores, the pictures."""
from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import cv2
import numpy as np
from sensor_msgs.msg import Image

from sam2_core.metrics import iou
from sam2_ros.messages.conversions import to_nanoseconds
from sam2_ros.msg import Instance, InstanceArray
from sam2_ros.perception.frame import TrackedObject
from sam2_ros.perception.instance_messages import instance_mask

PICTURE_WIDTH = 640  # pixels; pictures are kept and drawn no wider
PENDING = 60         # messages of a kind that wait for the others of their stamp
JPEG_QUALITY = 95


def to_labels(message: Image) -> np.ndarray:
    """A mono16 label image as uint16 (H, W), a view."""
    if message.encoding != 'mono16' or message.step != 2 * message.width:
        raise ValueError(f'label image with encoding {message.encoding!r}, step {message.step}: must be mono16 '
                         f'without padding')
    order = '>' if message.is_bigendian else '<'
    return np.frombuffer(message.data, f'{order}u2').reshape(message.height, message.width)


def resized(instance: Instance, height: int, width: int, scale: float) -> TrackedObject:
    """An instance of an image (height, width) as it is in the picture that is ``scale`` times as large."""
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
    """One object in one processed image, against the ground truth."""
    object_id: int
    hidden: bool         # no pixel of it is visible in truth
    called_visible: bool
    iou: float           # of the masks; 0 when it is visible in truth and called not visible


@dataclass(frozen=True, eq=False)
class Shot:
    """One processed image."""
    stamp: int           # ns
    jpeg: np.ndarray     # of the picture, at most PICTURE_WIDTH wide
    instances: InstanceArray
    latency: float       # seconds, stamp to arrival here


class Recording:
    """Collects what arrives, in any order, and pairs it by stamp. Times are in nanoseconds."""

    def __init__(self) -> None:
        self.images = 0  # received
        self.shots: list[Shot] = []
        self.scores: list[Score] = []
        self.first_stamp: int | None = None
        self._pictures: dict[int, np.ndarray] = {}
        self._truths: dict[int, np.ndarray] = {}
        self._arrays: dict[int, tuple[InstanceArray, float]] = {}
        self._unscored: dict[int, InstanceArray] = {}

    def add_image(self, stamp: int, rgb: np.ndarray) -> None:
        """rgb: uint8 (H, W, 3)."""
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
        """received: time of arrival on the clock of the stamps."""
        stamp = to_nanoseconds(message.header.stamp)
        _keep(self._arrays, stamp, (message, (received - stamp) / 1e9))
        _keep(self._unscored, stamp, message)
        self._pair(stamp)

    def add_truth(self, stamp: int, labels: np.ndarray) -> None:
        """labels: (H, W), pixel = object id."""
        _keep(self._truths, stamp, labels)
        self._pair(stamp)

    def _pair(self, stamp: int) -> None:
        if stamp in self._pictures and stamp in self._arrays:
            self.shots.append(Shot(stamp, self._pictures.pop(stamp), *self._arrays.pop(stamp)))
        if stamp in self._truths and stamp in self._unscored:
            self.scores += scores(self._unscored.pop(stamp), self._truths.pop(stamp))

    # --- figures

    @property
    def tracked(self) -> bool:
        """Whether any object was visible to the node in any image."""
        return any(item.state == Instance.TRACKED for shot in self.shots for item in shot.instances.instances)

    def figures(self) -> dict:
        """The figures of the table; times in seconds, None where there is nothing to measure."""
        visible = [score for score in self.scores if not score.hidden]
        hidden = [score for score in self.scores if score.hidden]
        names = {item.id: item.label for shot in self.shots for item in shot.instances.instances}
        span = (self.shots[-1].stamp - self.shots[0].stamp) / 1e9 if len(self.shots) > 1 else 0
        inside = [shot.instances.latency.sec + shot.instances.latency.nanosec / 1e9 for shot in self.shots]
        return {
            'images': self.images,
            'processed': len(self.shots),
            'dropped': sum(shot.instances.dropped for shot in self.shots),
            'frames_per_second': (len(self.shots) - 1) / span if span else None,
            'latency_node': _percentiles(inside),
            'latency_received': _percentiles([shot.latency for shot in self.shots]),
            'objects': names,
            'iou': _mean(score.iou for score in visible),
            'iou_by_object': {object_id: _mean(score.iou for score in visible if score.object_id == object_id)
                              for object_id in names},
            'hidden': len(hidden),
            'hidden_called_not_visible': _mean(not score.called_visible for score in hidden),
            'visible_called_visible': _mean(score.called_visible for score in visible),
        }


def scores(message: InstanceArray, labels: np.ndarray) -> list[Score]:
    """Each instance against a label image of the same size."""
    result = []
    for item in message.instances:
        truth, called_visible = labels == item.id, item.state == Instance.TRACKED
        found = instance_mask(item, message.height, message.width) & called_visible
        result.append(Score(item.id, not truth.any(), called_visible, iou(found, truth)))
    return result


def _keep(waiting: dict, stamp: int, item) -> None:
    waiting[stamp] = item
    if len(waiting) > PENDING:
        del waiting[min(waiting)]


def _mean(values: Iterable[float]) -> float | None:
    values = list(values)
    return float(np.mean(values)) if values else None


def _percentiles(values: list[float]) -> dict[str, float] | None:
    return {'p50': float(np.percentile(values, 50)), 'p95': float(np.percentile(values, 95))} if values else None
