"""A detector's boxes as prompts: what it sees for the first time is added, what is known already keeps its id."""
from __future__ import annotations

import math
import threading
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
from std_msgs.msg import Header

from sam2_ros.depth.calibration import same_frame
from sam2_ros.messages.conversions import to_nanoseconds, to_roi
from sam2_ros.messages.stamps import jumped_back
from sam2_ros.msg import Prompt
from sam2_ros.perception.frame import Frame
from sam2_ros.perception.prompt_plan import PromptAnswer
from sam2_ros.runtime.parameters import Parameters

if TYPE_CHECKING:
    from vision_msgs.msg import BoundingBox2D, Detection2DArray

Box = tuple[float, float, float, float]  # (x0, y0, x1, y1), pixels
JOINING_IMAGES = 5  # live images, besides catch_up_images, in which a late prompt's object has to turn up
MAX_FRAMES = 4096  # whose boxes are kept, however slowly stamps advance
MAX_DETECTIONS = 1000  # of one message


@dataclass(frozen=True)
class Detection:
    """One box of a detector."""

    box: Box  # upright, within the image
    label: str
    score: float


@dataclass(frozen=True)
class Known:
    """What is known about an object at the time of an image."""

    id: int
    label: str
    visible_now: bool  # in the newest image
    box: Box | None  # of its mask; None: out of sight then
    detector_box: Box | None = None  # where the detector that found it would see it


@dataclass(frozen=True, eq=False)
class Proposal:
    """What a message of detections comes to."""

    prompts: list[Prompt] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)  # detections that cannot be used, and why


def read(message: Detection2DArray, parameters: Parameters, height: int,
         width: int) -> tuple[list[Detection], list[str]]:
    """The detections that are wanted, and why others cannot be used.

    Left out: classes that are not in detections_classes, scores below detections_min_score, and of boxes that overlap
    by detections_iou all but the one with the highest score: they are one thing. A rotated box counts as the upright
    one around it; boxes are cut at the edge of the image.
    """
    found, refused = [], []
    if len(message.detections) > MAX_DETECTIONS:
        refused.append(f'{len(message.detections)} detections in one message: only the first {MAX_DETECTIONS} are '
                       f'read; have the detector suppress its doubles')
    for item in message.detections[:MAX_DETECTIONS]:
        best = max((result.hypothesis for result in item.results), key=lambda guess: guess.score, default=None)
        label, score = (best.class_id, best.score) if best is not None else ('', 0.0)
        wanted = not parameters.detections_classes or label in parameters.detections_classes
        if not wanted or not score >= parameters.detections_min_score:  # nor a score that is no number
            continue
        centre, size = item.bbox.center.position, (item.bbox.size_x, item.bbox.size_y)
        if not all(map(math.isfinite, (centre.x, centre.y, item.bbox.center.theta, *size))) or min(size) <= 0:
            refused.append(f"detection '{label}' with a box of {size[0]:g} x {size[1]:g} pixels at ({centre.x:g}, "
                           f'{centre.y:g}): all must be finite and the size positive')
            continue
        x0, y0, x1, y1 = upright(item.bbox)
        box = max(x0, 0.0), max(y0, 0.0), min(x1, float(width)), min(y1, float(height))
        if box[0] >= box[2] or box[1] >= box[3]:
            refused.append(f"detection '{label}' with box ({x0:g}, {y0:g}, {x1:g}, {y1:g}): outside the image of "
                           f'{width} x {height} pixels; boxes must be in pixels of the image that the node gets')
        else:
            found.append(Detection(box, label, score))
    return _distinct(found, parameters.detections_iou), refused


def _distinct(found: list[Detection], max_iou: float) -> list[Detection]:
    """From the surest on, those that overlap none before them."""
    found = sorted(found, key=lambda item: -item.score)
    boxes = _array(item.box for item in found)
    kept = np.ones(len(found), bool)
    for place in range(len(found)):
        if kept[place]:
            kept[place + 1:] &= iou(boxes[place], boxes[place + 1:]) < max_iou
    return [item for item, is_kept in zip(found, kept, strict=True) if is_kept]


def propose(detections: Sequence[Detection], known: Sequence[Known], min_iou: float, header: Header) -> list[Prompt]:
    """Prompts for the detections, drawn on the image of ``header``. ``known``: the objects at that image's time.

    - One that overlaps a known object by ``min_iou``, its mask or where the detector is expected to see it, is that
      object, whatever its label: no prompt.
    - Otherwise, if exactly one object with its label was out of sight then, and it alone has that label among the
      detections left, it is that object come back: REFINE under the known id. No prompt if the object has come back by
      itself since: the next detections will find it.
    - Everything else is new: SET.
    """
    boxes = _array(box for other in known for box in (other.box, other.detector_box) if box is not None)
    new = [item for item in detections if (iou(item.box, boxes) < min_iou).all()]
    counts = Counter(item.label for item in new)
    prompts = []
    for item in new:
        prompt = Prompt(header=header, action=Prompt.SET, label=item.label, box=to_roi(_pixels(item.box)))
        hidden = [other for other in known if other.box is None and other.label == item.label != '']
        if len(hidden) == 1 and counts[item.label] == 1:
            if hidden[0].visible_now:
                continue
            prompt.action, prompt.id = Prompt.REFINE, hidden[0].id
        prompts.append(prompt)
    return prompts


class RecentBoxes:
    """Where the objects of one camera have been of late."""

    def __init__(self) -> None:
        self._boxes: dict[int, dict[int, Box | None]] = {}  # by stamp, ns, and by object; None: out of sight
        self._newest: list[Known] = []

    def see(self, frame: Frame, seconds: float) -> None:
        """Add a frame and forget what is ``seconds`` older, or all when stamps jump back.

        A frame without a stamp is only the newest: no detection can name it.
        """
        stamp = to_nanoseconds(frame.header.stamp)
        self._newest = [Known(item.id, item.label, item.box is not None, item.box) for item in frame.objects]
        if stamp:
            oldest = stamp - seconds * 1e9
            self._boxes = {when: boxes for when, boxes in self._boxes.items()
                           if oldest <= when and not jumped_back(stamp, when)}
            self._put(stamp, {item.id: item.box for item in frame.objects})

    def add(self, stamp: int, object_id: int, box: Box | None) -> None:
        """An object was found in a past image."""
        if stamp:
            self._put(stamp, {**self._boxes.get(stamp, {}), object_id: box})

    def _put(self, stamp: int, boxes: dict[int, Box | None]) -> None:
        self._boxes[stamp] = boxes
        while len(self._boxes) > MAX_FRAMES:
            del self._boxes[next(iter(self._boxes))]

    def at(self, stamp: int) -> list[Known]:
        """The objects known now as they were at a stamp, ns; 0: as they are. Between two frames, in a straight line."""
        if not stamp:
            return self._newest
        return [replace(item, box=self._box(item, stamp)) for item in self._newest]

    def _box(self, item: Known, stamp: int) -> Box | None:
        seen = [(when, boxes[item.id]) for when, boxes in self._boxes.items() if item.id in boxes]
        if not seen:  # its images carry no stamp
            return item.box
        before = max((item for item in seen if item[0] <= stamp), key=lambda item: item[0], default=None)
        after = min((item for item in seen if item[0] >= stamp), key=lambda item: item[0], default=None)
        if before is None or after is None:
            return (before or after)[1]
        (start, first), (end, second) = before, after
        part = (stamp - start) / max(end - start, 1)
        if first is None or second is None:
            return first if part < 0.5 else second
        return tuple(a + part * (b - a) for a, b in zip(first, second, strict=True))


@dataclass(eq=False)
class _Pending:
    """A prompt on its way; there until its object turns up."""

    prompt: Prompt
    until: float  # seconds, time.monotonic()
    id: int = 0  # once it is accepted
    images_left: float = math.inf  # once it is answered


class DetectionGate:
    """The detections of one camera. ``put`` in any thread, the rest is the worker's.

    A detection is older than the newest image, so it is compared with where the objects were then. While the prompts
    made of one message are on their way, the next message waits, and a newer one takes its place: what is about to be
    tracked is not prompted again.
    """

    def __init__(self) -> None:
        self._waiting: Detection2DArray | None = None
        self._lock = threading.Lock()
        self._whereabouts = RecentBoxes()
        self._pending: list[_Pending] = []
        self._outlines: dict[int, Box] = {}  # by object: the detector's box in units of that of the mask

    def put(self, message: Detection2DArray) -> None:
        with self._lock:
            self._waiting = message

    def take(self, parameters: Parameters, height: int, width: int, room: int | None = None,
             frame_id: str = '') -> Proposal:
        """Return what the message that waits comes to, for images of this size; empty when there is none, or not yet.

        room: the largest number of prompts, the surest first; the next message brings the others. None: any number.
        frame_id: of the images; detections of another camera are refused.
        """
        now = time.monotonic()
        self._pending = [pending for pending in self._pending if pending.images_left > 0 and now < pending.until]
        if self._pending:
            return Proposal()
        with self._lock:
            message, self._waiting = self._waiting, None
        if message is None:
            return Proposal()
        if not same_frame(message.header.frame_id, frame_id):
            return Proposal(refused=[f"detections in frame '{message.header.frame_id}': must be in '{frame_id}', as "
                                     f'the image; have the detector copy its header, or leave frame_id empty'])
        detections, refused = read(message, parameters, height, width)
        known = [item if item.box is None or item.id not in self._outlines else
                 replace(item, detector_box=_from_units(self._outlines[item.id], item.box))
                 for item in self._whereabouts.at(to_nanoseconds(message.header.stamp))]
        prompts = propose(detections, known, parameters.detections_iou, message.header)
        new = sum(prompt.action == Prompt.SET for prompt in prompts)
        surplus = new - max(0, parameters.max_objects - len(known))
        if surplus > 0:
            refused.append(f'{surplus} of {new} new things left out: {len(known)} objects are known and max_objects is '
                           f'{parameters.max_objects}; ask for fewer classes, or raise it')
            prompts = _without_last_new(prompts, surplus)
        prompts = prompts[:room]
        self._pending = [_Pending(prompt, now + parameters.prompt_timeout) for prompt in prompts]
        return Proposal(prompts, refused)

    def see(self, frame: Frame | None, answers: Iterable[PromptAnswer], parameters: Parameters) -> None:
        """Take in what became of an image and of prompts, whoever sent them."""
        if frame is not None:
            self._whereabouts.see(frame, parameters.history_seconds)
        for answer in answers:
            if answer.item is not None:
                self._whereabouts.add(to_nanoseconds(answer.header.stamp), answer.id, answer.item.box)
            for pending in self._pending:
                if pending.prompt is answer.request.message:
                    self._answered(pending, answer, parameters)
        if frame is not None:
            visible = {item.id for item in frame.objects if item.box is not None}
            for pending in self._pending:
                pending.images_left = 0 if pending.id in visible else pending.images_left - 1
            known = {item.id for item in frame.objects} | {pending.id for pending in self._pending}
            self._outlines = {object_id: box for object_id, box in self._outlines.items() if object_id in known}

    def _answered(self, pending: _Pending, answer: PromptAnswer, parameters: Parameters) -> None:
        pending.id = answer.id
        pending.images_left = parameters.catch_up_images + JOINING_IMAGES if answer.accepted else 0
        if answer.item is not None and answer.item.box is not None:
            box = pending.prompt.box
            outline = box.x_offset, box.y_offset, box.x_offset + box.width, box.y_offset + box.height
            self._outlines[answer.id] = _to_units(outline, answer.item.box)


def _without_last_new(prompts: list[Prompt], count: int) -> list[Prompt]:
    """The surest come first."""
    places = {*[place for place, prompt in enumerate(prompts) if prompt.action == Prompt.SET][-count:]}
    return [prompt for place, prompt in enumerate(prompts) if place not in places]


# --- boxes

def upright(box: BoundingBox2D) -> Box:
    """The box (x0, y0, x1, y1) around a box that may be rotated."""
    cosine, sine = abs(math.cos(box.center.theta)), abs(math.sin(box.center.theta))
    width = box.size_x * cosine + box.size_y * sine
    height = box.size_x * sine + box.size_y * cosine
    x, y = box.center.position.x, box.center.position.y
    return x - width / 2, y - height / 2, x + width / 2, y + height / 2


def iou(box: Box | np.ndarray, others: np.ndarray) -> np.ndarray:
    """Intersection over union of one box with each of others (N, 4): (N,), 0..1."""
    x0, y0, x1, y1 = np.transpose(others)
    shared = (np.minimum(box[2], x1) - np.maximum(box[0], x0)).clip(0) * (
        np.minimum(box[3], y1) - np.maximum(box[1], y0)).clip(0)
    return shared / ((box[2] - box[0]) * (box[3] - box[1]) + (x1 - x0) * (y1 - y0) - shared)


def _array(boxes: Iterable[Box]) -> np.ndarray:
    """(N, 4)."""
    return np.array([*boxes], float).reshape(-1, 4)


def _to_units(box: Box, unit: Box) -> Box:
    """``box`` where ``unit`` is (0, 0, 1, 1)."""
    width, height = unit[2] - unit[0], unit[3] - unit[1]
    return tuple((value - unit[axis]) / (height if axis else width)
                 for value, axis in zip(box, (0, 1, 0, 1), strict=True))


def _from_units(box: Box, unit: Box) -> Box:
    width, height = unit[2] - unit[0], unit[3] - unit[1]
    return tuple(unit[axis] + value * (height if axis else width)
                 for value, axis in zip(box, (0, 1, 0, 1), strict=True))


def _pixels(box: Box) -> tuple[int, int, int, int]:
    """All pixels that a box touches."""
    x0, y0, x1, y1 = box
    return math.floor(x0), math.floor(y0), math.ceil(x1), math.ceil(y1)
