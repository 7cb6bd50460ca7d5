"""Prompts on the command line.

    --box X0,Y0,X1,Y1              a box around a new object, on the first frame
    --box X0,Y0,X1,Y1@FRAME        on another frame
    --points "X,Y;X,Y,-@FRAME"     points on a new object; a minus marks one that is not on it
    --points "ID:X,Y,-@FRAME"      for object ID; the first prompt of an object starts it, further ones correct it

Objects without an ID are numbered 1, 2, ... in the order of the options; numbers given as ID are left out.
"""
from __future__ import annotations

import math
import re
from argparse import Action, ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Sequence
from typing import Any, NamedTuple

from sam2_core.offline.prompt_file import REFINE, SET
from sam2_core.offline.prompts import VideoPrompt
from sam2_core.prompts import MAX_ID, Prompt

_FORM = re.compile(r'\s*(?:(?P<id>[^:@]*):)?(?P<content>[^:@]*)(?:@(?P<frame>[^:@]*))?')
_LABELS = {'+': 1, '-': 0}


class OptionPrompt(NamedTuple):
    """One prompt of the command line."""

    object_id: int | None  # None: a new object
    frame: int | None  # None: the first frame
    box: tuple[float, ...] | None = None
    points: tuple[tuple[float, float], ...] = ()
    labels: tuple[int, ...] = ()


def read_box(text: str) -> OptionPrompt:
    """Read ``[ID:]X0,Y0,X1,Y1[@FRAME]``."""
    form = '[ID:]X0,Y0,X1,Y1[@FRAME], such as 10,20,110,90 or 2:10,20,110,90@40'
    object_id, content, frame = _split(text, form)
    numbers = _numbers(content.split(','), text, form)
    if len(numbers) != 4:
        raise ArgumentTypeError(f'{text}: has {len(numbers)} numbers; must be {form}')
    if numbers[2] <= numbers[0] or numbers[3] <= numbers[1]:
        raise ArgumentTypeError(f'{text}: X1 must exceed X0 and Y1 must exceed Y0 (not width and height)')
    return OptionPrompt(object_id, frame, box=tuple(numbers))


def read_points(text: str) -> OptionPrompt:
    """Read ``[ID:]X,Y[,+|-][;X,Y[,+|-]...][@FRAME]``."""
    form = '[ID:]X,Y[,-][;X,Y[,-]...][@FRAME], such as "320,240;400,210,-" or 2:320,240@40'
    object_id, content, frame = _split(text, form)
    points, labels = [], []
    for part in content.split(';'):
        x, y, *label = part.split(',') if part.count(',') else (part, '')
        if len(label) > 1 or label and label[0].strip() not in _LABELS:
            raise ArgumentTypeError(f'{text}: point {part}: must be X,Y on the object, or X,Y,- not on it; {form}')
        points.append(tuple(_numbers((x, y), text, form)))
        labels.append(_LABELS[label[0].strip()] if label else 1)
    return OptionPrompt(object_id, frame, points=tuple((x, y) for x, y in points), labels=tuple(labels))


def read_range(text: str) -> tuple[float, float]:
    """Read ``LOW,HIGH``."""
    numbers = _numbers(text.split(','), text, 'LOW,HIGH')
    if len(numbers) != 2 or numbers[0] >= numbers[1]:
        raise ArgumentTypeError(f'{text}: must be LOW,HIGH, two numbers of which the second is larger')
    return numbers[0], numbers[1]


class InOrder(Action):
    """Action of argparse that collects the values of several options in the order of the command line."""

    def __call__(self, parser: ArgumentParser, namespace: Namespace, values: Any,
                 option_string: str | None = None) -> None:
        """Append a value."""
        setattr(namespace, self.dest, [*(getattr(namespace, self.dest) or ()), values])


def video_prompts(given: Sequence[OptionPrompt], first_frame: int) -> list[VideoPrompt]:
    """Return the prompts with their objects, frames and actions."""
    named = {prompt.object_id for prompt in given}
    free = (number for number in range(1, MAX_ID + 1) if number not in named)
    origins: dict[int, int] = {}
    prompts = []
    for item in given:
        object_id = next(free) if item.object_id is None else item.object_id
        frame = first_frame if item.frame is None else item.frame
        action = SET if origins.setdefault(object_id, frame) == frame else REFINE
        prompts.append(VideoPrompt(frame, Prompt(object_id, item.points, item.labels, item.box), action))
    return prompts


def _split(text: str, form: str) -> tuple[int | None, str, int | None]:
    match = _FORM.fullmatch(text)
    if match is None:
        raise ArgumentTypeError(f'{text}: must be {form}')
    object_id = None if match['id'] is None else _integer(match['id'], 1, MAX_ID, f'{text}: ID')
    frame = None if match['frame'] is None else _integer(match['frame'], 0, None, f'{text}: FRAME')
    return object_id, match['content'], frame


def _integer(text: str, least: int, most: int | None, what: str) -> int:
    bounds = f'at least {least}' if most is None else f'{least} to {most}'
    if not re.fullmatch(r'\s*\d+\s*', text) or int(text) < least or most is not None and int(text) > most:
        raise ArgumentTypeError(f'{what} {text!r}: must be a whole number, {bounds}')
    return int(text)


def _numbers(parts: Sequence[str], text: str, form: str) -> list[float]:
    try:
        numbers = [float(part) for part in parts]
    except ValueError:
        raise ArgumentTypeError(f'{text}: must be {form}') from None
    if not all(map(math.isfinite, numbers)):
        raise ArgumentTypeError(f'{text}: must have finite numbers')
    return numbers
