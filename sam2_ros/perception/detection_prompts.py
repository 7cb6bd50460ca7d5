"""Prompts from a detector's boxes: new objects are added, known objects keep their ids."""
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

from sam2_core.metrics import box_iou
from sam2_ros.messages.conversions import to_nanoseconds, to_roi
from sam2_ros.messages.frame_ids import same_frame
from sam2_ros.messages.stamps import jumped_back
from sam2_ros.msg import Prompt
from sam2_ros.perception.detection_pixels import Box, ImageFit, anchor, upright
from sam2_ros.perception.frame import Frame
from sam2_ros.perception.prompt_plan import PromptAnswer
from sam2_ros.runtime.parameters import Parameters

if TYPE_CHECKING:
    from vision_msgs.msg import Detection2DArray

JOINING_IMAGES = 5  # live images, besides catch_up_images, until the object of a late prompt has to be visible
MAX_FRAMES = 4096  # frames whose boxes are stored, however slowly stamps advance
MAX_DETECTIONS = 1000  # in one message


@dataclass(frozen=True)
class Detection:
    """One box of a detector."""

    box: Box  # upright, within the image
    label: str
    score: float


@dataclass(frozen=True)
class Known:
    """An object at the time of an image."""

    id: int
    label: str
    visible_now: bool  # in the newest image
    box: Box | None  # of its mask; None: not visible then
    detector_box: Box | None = None  # where the detector that found it is expected to see it


@dataclass(frozen=True, eq=False)
class Proposal:
    """Prompts for a message of detections."""

    prompts: list[Prompt] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)  # detections that cannot be used, and why


def read(message: Detection2DArray, parameters: Parameters, height: int,
         width: int) -> tuple[list[Detection], list[str]]:
    """Return the wanted detections of a message, and the reasons why others cannot be used.

    Detections are skipped if their class is not in ``detections_classes``, if their score is below
    ``detections_min_score``, or if they overlap a detection with a higher score by ``detections_iou``. A rotated box
    counts as the upright box around it. Boxes are converted from the detector's pixels to those of the image, whose
    size is given in pixels, and clipped to it. No detection is used if one of them lies too far outside, because then
    all of them are in another pixel scale.
    """
    found, refused = [], []
    fit = ImageFit.of(parameters, height, width)
    if len(message.detections) > MAX_DETECTIONS:
        refused.append(f'{len(message.detections)} detections in one message: only the first {MAX_DETECTIONS} are '
                       f'read; have the detector suppress duplicates')
    for item in message.detections[:MAX_DETECTIONS]:
        best = max((result.hypothesis for result in item.results), key=lambda guess: guess.score, default=None)
        label, score = (best.class_id, best.score) if best is not None else ('', 0.0)
        wanted = not parameters.detections_classes or label in parameters.detections_classes
        wanted = wanted and score >= parameters.detections_min_score  # also skips a score of NaN
        centre, size = item.bbox.center.position, (item.bbox.size_x, item.bbox.size_y)
        if not all(map(math.isfinite, (centre.x, centre.y, item.bbox.center.theta, *size))) or min(size) <= 0:
            if wanted:
                refused.append(f"detection '{label}' with a box of {size[0]:g} x {size[1]:g} pixels at ({centre.x:g}, "
                               f'{centre.y:g}): all must be finite and the size positive')
            continue
        drawn = upright(item.bbox)
        if not fit.covers(anchor(item.bbox)):  # a detection that is not wanted shows the scale as well
            return [], [f"detection '{label}' with box {_shown(drawn)}: {fit.why_not}"]
        x0, y0, x1, y1 = fit.to_image(drawn)
        box = max(x0, 0.0), max(y0, 0.0), min(x1, float(width)), min(y1, float(height))
        if wanted and (box[0] >= box[2] or box[1] >= box[3]):
            refused.append(f"detection '{label}' with box {_shown(drawn)}: outside the image; it has no pixel in it")
        elif wanted:
            found.append(Detection(box, label, score))
    return _distinct(found, parameters.detections_iou), refused


def _distinct(found: list[Detection], max_iou: float) -> list[Detection]:
    """Return the detections that overlap none with a higher score, highest first."""
    found = sorted(found, key=lambda item: -item.score)
    boxes = _array(item.box for item in found)
    kept = np.ones(len(found), bool)
    for place in range(len(found)):
        if kept[place]:
            kept[place + 1:] &= box_iou(boxes[place], boxes[place + 1:]) < max_iou
    return [item for item, is_kept in zip(found, kept, strict=True) if is_kept]


def propose(detections: Sequence[Detection], known: Sequence[Known], min_iou: float, header: Header) -> list[Prompt]:
    """Return prompts for detections in the image of ``header``; ``known`` are the objects at the time of that image.

    - A detection that overlaps a known object by ``min_iou`` (its mask, or where the detector is expected to see it) is
      that object, whatever its label: no prompt.
    - Otherwise, if exactly one object with its label was hidden then, and no other detection left has that label, the
      object has reappeared: REFINE with the known id. No prompt if the object has reappeared by itself since.
    - Any other detection is new: SET.
    """
    boxes = _array(box for other in known for box in (other.box, other.detector_box) if box is not None)
    new = [item for item in detections if (box_iou(item.box, boxes) < min_iou).all()]
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
    """Boxes of one camera's objects in recent frames."""

    def __init__(self) -> None:
        self._boxes: dict[int, dict[int, Box | None]] = {}  # by stamp, ns, and by object; None: not visible
        self._newest: list[Known] = []

    def see(self, frame: Frame, seconds: float) -> None:
        """Add a frame, and forget frames that are more than ``seconds`` older, or all if stamps jump back.

        A frame without a stamp is not stored, because no detection can name it.
        """
        stamp = to_nanoseconds(frame.header.stamp)
        self._newest = [Known(item.id, item.label, item.box is not None, item.box) for item in frame.objects]
        if stamp:
            oldest = stamp - seconds * 1e9
            self._boxes = {when: boxes for when, boxes in self._boxes.items()
                           if oldest <= when and not jumped_back(stamp, when)}
            self._put(stamp, {item.id: item.box for item in frame.objects})

    def add(self, stamp: int, object_id: int, box: Box | None) -> None:
        """Add the box of an object in a past image; ``stamp`` in ns."""
        if stamp:
            self._put(stamp, {**self._boxes.get(stamp, {}), object_id: box})

    def _put(self, stamp: int, boxes: dict[int, Box | None]) -> None:
        self._boxes[stamp] = boxes
        while len(self._boxes) > MAX_FRAMES:
            del self._boxes[next(iter(self._boxes))]

    def at(self, stamp: int) -> list[Known]:
        """Return the current objects as they were at a stamp (ns), interpolated between frames; 0: as they are now."""
        if not stamp:
            return self._newest
        return [replace(item, box=self._box(item, stamp)) for item in self._newest]

    def _box(self, item: Known, stamp: int) -> Box | None:
        seen = [(when, boxes[item.id]) for when, boxes in self._boxes.items() if item.id in boxes]
        if not seen:  # images carry no stamp
            return item.box
        before = max((item for item in seen if item[0] <= stamp), key=lambda item: item[0], default=None)
        after = min((item for item in seen if item[0] >= stamp), key=lambda item: item[0], default=None)
        if before is None or after is None:
            nearest = before or after
            return None if nearest is None else nearest[1]
        (start, first), (end, second) = before, after
        part = (stamp - start) / max(end - start, 1)
        if first is None or second is None:
            return first if part < 0.5 else second
        x0, y0, x1, y1 = (a + part * (b - a) for a, b in zip(first, second, strict=True))
        return x0, y0, x1, y1


@dataclass(eq=False)
class _Pending:
    """A prompt whose object has not been seen yet."""

    prompt: Prompt
    until: float  # seconds, time.monotonic()
    id: int = 0  # set by the answer
    images_left: float = math.inf  # set by the answer


class DetectionGate:
    """Converter of one camera's detections into prompts. Any thread may call ``put``; the rest is the worker's.

    A detection is older than the newest image, so it is compared with the objects as they were then. A message waits
    until the objects of the previous one are tracked, so that they are not prompted twice; a newer message replaces it.
    """

    def __init__(self) -> None:
        self._waiting: Detection2DArray | None = None
        self._lock = threading.Lock()
        self._whereabouts = RecentBoxes()
        self._pending: list[_Pending] = []
        self._outlines: dict[int, Box] = {}  # by object: the detector's box in units of the mask's box

    def put(self, message: Detection2DArray) -> None:
        """Store a message in the place of the one before."""
        with self._lock:
            self._waiting = message

    def take(self, parameters: Parameters, height: int, width: int, room: int | None = None,
             frame_id: str = '') -> Proposal:
        """Return the prompts for the message that waits; none if it has to wait longer.

        Args:
            parameters: Those of the node.
            height: Of the images, pixels.
            width: Of the images, pixels.
            room: Greatest number of prompts, highest scores first; None: no limit.
            frame_id: That of the images; detections in another frame are refused.
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
            refused.append(f'{surplus} of {new} new objects skipped: {len(known)} objects are known and max_objects is '
                           f'{parameters.max_objects}; ask for fewer classes, or raise it')
            prompts = _without_last_new(prompts, surplus)
        prompts = prompts[:room]
        self._pending = [_Pending(prompt, now + parameters.prompt_timeout) for prompt in prompts]
        return Proposal(prompts, refused)

    def see(self, frame: Frame | None, answers: Iterable[PromptAnswer], parameters: Parameters) -> None:
        """Note a frame and the answers to prompts, also of other senders."""
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
    """Return the prompts without the last ``count`` that are SET; those with the highest scores come first."""
    places = {*[place for place, prompt in enumerate(prompts) if prompt.action == Prompt.SET][-count:]}
    return [prompt for place, prompt in enumerate(prompts) if place not in places]


# --- boxes

def _array(boxes: Iterable[Box]) -> np.ndarray:
    """Return boxes as an array, (N, 4)."""
    return np.array([*boxes], float).reshape(-1, 4)


def _to_units(box: Box, unit: Box) -> Box:
    """Return ``box`` in coordinates in which ``unit`` is (0, 0, 1, 1)."""
    width, height = unit[2] - unit[0], unit[3] - unit[1]
    return ((box[0] - unit[0]) / width, (box[1] - unit[1]) / height,
            (box[2] - unit[0]) / width, (box[3] - unit[1]) / height)


def _from_units(box: Box, unit: Box) -> Box:
    """Return the inverse of ``_to_units``."""
    width, height = unit[2] - unit[0], unit[3] - unit[1]
    return (unit[0] + box[0] * width, unit[1] + box[1] * height,
            unit[0] + box[2] * width, unit[1] + box[3] * height)


def _pixels(box: Box) -> tuple[int, int, int, int]:
    """Return the pixel box of all pixels that a box touches."""
    x0, y0, x1, y1 = box
    return math.floor(x0), math.floor(y0), math.ceil(x1), math.ceil(y1)


def _shown(box: Box) -> str:
    """Return a box as text."""
    return f'({", ".join(f"{side:g}" for side in box)})'
