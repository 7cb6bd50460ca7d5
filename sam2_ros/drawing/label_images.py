"""Images that show the object, the class or the confidence at each pixel."""
from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np

from sam2_core.drawing.label_images import Layer, paint
from sam2_ros.perception.frame import Frame, TrackedObject

BACKGROUND, UNLABELED = 0, 255  # vision_msgs/LabelInfo: the highest class id means unlabelled
RESERVED = {'background': BACKGROUND, 'unlabeled': UNLABELED}


def label_image(frame: Frame) -> np.ndarray:
    """Return the id of the object that each pixel belongs to, uint16 (H, W); 0: none.

    Where masks overlap, the object with the higher score is shown.
    """
    return _painted(frame, np.uint16, lambda item: item.id)


def class_image(frame: Frame, classes: ClassTable) -> np.ndarray:
    """Return the class value of the object that ``label_image`` shows at each pixel, uint8 (H, W)."""
    return _painted(frame, np.uint8, lambda item: classes.value(item.label))


def confidence_image(frame: Frame) -> np.ndarray:
    """Return 255 times the score of the object that ``label_image`` shows at each pixel, uint8 (H, W)."""
    return _painted(frame, np.uint8, lambda item: round(255 * item.score))


def _painted(frame: Frame, dtype: type, value: Callable[[TrackedObject], int]) -> np.ndarray:
    layers = [Layer(item.score, *item.region, value(item)) for item in frame.objects if item.region is not None]
    return paint(frame.image.shape[:2], layers, dtype)


class ClassTable:
    """Value of each label in the class image.

    The names of the parameter ``class_names`` have the values 1, 2, ... in their order. A label that is not listed
    takes the next free value when it first appears, and keeps it until ``class_names`` changes. Objects without a
    label, and labels beyond the 254th value, are UNLABELED.
    """

    def __init__(self) -> None:
        self._names: tuple[str, ...] = ()
        self._values = dict(RESERVED)
        self._next = BACKGROUND + 1

    def update(self, class_names: tuple[str, ...], labels: Iterable[str]) -> None:
        """Assign values to the labels of a frame's objects."""
        if class_names != self._names:
            labels = [*self._values, *labels]
            self._names = class_names
            self._values = dict(RESERVED)
            for value, name in enumerate(class_names[:UNLABELED - 1], BACKGROUND + 1):
                self._values.setdefault(name, value)
            self._next = len(class_names) + 1
        for label in labels:
            if label and label not in self._values and self._next < UNLABELED:
                self._values[label] = self._next
                self._next += 1

    def value(self, label: str) -> int:
        """Return the value of a label, UNLABELED if it has none."""
        return self._values.get(label, UNLABELED)

    @property
    def names(self) -> dict[int, str]:
        """Labels by value, in the order of the values."""
        return {value: name for name, value in sorted(self._values.items(), key=lambda item: item[1])}
