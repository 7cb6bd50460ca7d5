"""Prompts on frames of a video, and which of them act in which direction.

An object is followed from the frame of its ``set`` prompt, its origin: forwards to the end, and backwards to the start.
A ``refine`` prompt after the origin corrects the object in the forward pass, one before the origin in the backward
pass; either way it acts from its frame on, in the direction of the pass. A further ``set`` prompt starts the object
again from its frame on; what lies before the first one is followed backwards from the first. A ``remove`` prompt ends
the object in both directions: it is absent in that frame, and the frames behind it belong to the next ``set`` prompt.
"""
from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from sam2_core.datasets.recordings import BrokenSample
from sam2_core.offline.prompt_file import ACTIONS, CLEAR, REFINE, REMOVE, SET, parse_entry, read_list
from sam2_core.prompts import MAX_ID, Prompt, PromptError, errors_of, merge_prompts

BOTH, FORWARD, BACKWARD = DIRECTIONS = 'both', 'forward', 'backward'


@dataclass(frozen=True, eq=False)
class VideoPrompt:
    """A prompt on one frame of a video.

    Attributes:
        frame: Number of the frame, from 0.
        prompt: Object id and content; the id alone with 'remove', nothing with 'clear'.
        action: 'set' starts the object, 'refine' corrects it, 'remove' ends it, 'clear' ends all objects.
        label: Name of the object; '' keeps the name it has.
    """

    frame: int
    prompt: Prompt
    action: str = SET
    label: str = ''


class Span(NamedTuple):
    """Frames ``first`` to ``end`` - 1, in which one object is followed from frame ``origin``."""

    object_id: int
    first: int
    origin: int
    end: int


@dataclass
class PassSchedule:
    """What happens to the objects of one tracker, by frame. Objects are removed before the frame is processed."""

    frames: range  # to process, in this order
    prompts: dict[int, list[Prompt]] = field(default_factory=dict)
    removals: dict[int, list[int]] = field(default_factory=dict)


@dataclass
class TrackPlan:
    """Prompts of a video, sorted by direction."""

    start: int
    end: int
    direction: str
    objects: dict[int, str]  # label by object id, in the order of the prompts
    spans: list[Span]
    forwards: PassSchedule
    backwards: PassSchedule
    prompts: dict[int, list[VideoPrompt]]  # with content, by frame

    def sources(self, frame: int) -> tuple[set[int], set[int]]:
        """Return the objects whose result in a frame comes from the backward pass, and those of the forward pass."""
        here = [span for span in self.spans if span.first <= frame < span.end]
        behind = {span.object_id for span in here if span.origin >= frame and self.direction != FORWARD}
        ahead = {span.object_id for span in here if span.origin <= frame and self.direction != BACKWARD}
        return behind - ahead, ahead


def plan_prompts(prompts: Iterable[VideoPrompt], count: int, direction: str = BOTH, start: int = 0,
                 end: int | None = None) -> TrackPlan:
    """Sort prompts by direction.

    Args:
        prompts: The prompts. Those on one frame are applied in their order.
        count: Number of frames of the video.
        direction: One of DIRECTIONS.
        start: First frame to track in.
        end: Frame after the last one; None means the end of the video.

    Raises:
        PromptError: A prompt cannot be used, whatever its image.
        ValueError: There is no such direction, or no such frame.
    """
    if direction not in DIRECTIONS:
        raise ValueError(f'direction {direction!r}: must be one of {", ".join(DIRECTIONS)}')
    end = count if end is None else end
    if not 0 <= start < count:
        raise ValueError(f'start {start}: must be 0 to {count - 1}, the video has {count} frames')
    if not start < end <= count:
        raise ValueError(f'end {end}: must be {start + 1} to {count}, the video has {count} frames')
    given = [_checked(prompt, start, end) for prompt in prompts]
    if not any(item.action == SET for item in given):
        raise PromptError('no prompt that starts an object: give at least one box, points or mask')
    ids = {item.prompt.object_id: item.label for item in given if item.action != CLEAR}
    for item in given:
        if item.label and item.action != CLEAR:
            ids[item.prompt.object_id] = item.label
    plan = TrackPlan(start, end, direction, {_id(key): label for key, label in ids.items()}, [],
                     PassSchedule(range(0)), PassSchedule(range(0)), defaultdict(list))
    by_object: dict[int, list[VideoPrompt]] = {object_id: [] for object_id in plan.objects}
    for item in sorted(given, key=lambda item: item.frame):
        if item.action in (SET, REFINE):
            plan.prompts[item.frame].append(item)
        for object_id in plan.objects if item.action == CLEAR else [_id(item.prompt.object_id)]:
            by_object[object_id].append(item)
    acts = [act for object_id, items in by_object.items() for act in _object_acts(object_id, items, plan)]
    order = {id(item): number for number, item in enumerate(given)}
    for act in sorted(acts, key=lambda act: (act.frame, order.get(id(act.item), -1))):
        _schedule(act, plan)
    _set_ranges(plan)
    return plan


class _Act(NamedTuple):
    """One change of one tracker at one frame."""

    frame: int
    forwards: bool
    object_id: int
    remove: bool
    item: VideoPrompt | None  # the prompt to apply; None: only remove


def _schedule(act: _Act, plan: TrackPlan) -> None:
    schedule = plan.forwards if act.forwards else plan.backwards
    if act.remove:
        schedule.removals.setdefault(act.frame, []).append(act.object_id)
    if act.item is not None:
        schedule.prompts.setdefault(act.frame, []).append(act.item.prompt)


def _object_acts(object_id: int, items: Sequence[VideoPrompt], plan: TrackPlan) -> list[_Act]:
    """Return the changes that the prompts of one object make, and add its spans to the plan."""
    acts: list[_Act] = []
    first, waiting = plan.start, []
    for item in items:
        if item.action in (SET, REFINE):
            waiting.append(item)
            continue
        if any(other.frame == item.frame for other in waiting):
            raise PromptError(f'object {object_id}, frame {item.frame}: {waiting[-1].action} and then {item.action} in '
                              f'the same frame; leave one out')
        known = _span_acts(object_id, waiting, first, item.frame, plan, acts)
        if item.action == REMOVE and not known and not any(later.frame >= item.frame for later in items
                                                           if later.action == SET):
            raise PromptError(f'object {object_id}, frame {item.frame}: remove, but no prompt starts the object '
                              f'before or after; set it first')
        again = any(later.frame == item.frame and later.action == SET for later in items)
        first, waiting = item.frame + (not again), []
    _span_acts(object_id, waiting, first, plan.end, plan, acts)
    return acts


def _span_acts(object_id: int, items: Sequence[VideoPrompt], first: int, end: int, plan: TrackPlan,
               acts: list[_Act]) -> bool:
    """Add the changes of one span, which ends before frame ``end``; return whether the object is known in it."""
    starts = [item.frame for item in items if item.action == SET]
    if not starts:
        if items:
            raise PromptError(f'object {object_id}, frame {items[0].frame}: refine, but no prompt starts the object; '
                              f'set it first')
        return False
    origin = starts[0]
    plan.spans.append(Span(object_id, first, origin, end))
    backwards = plan.direction != FORWARD and (origin > first or plan.direction == BACKWARD)
    restarted = set()
    for item in items:
        if item.frame >= origin:
            if plan.direction != BACKWARD:
                again = item.action == SET and item.frame != origin and item.frame not in restarted
                restarted |= {item.frame} if again else set()
                acts.append(_Act(item.frame, True, object_id, again, item))
            elif item.frame > origin:
                raise PromptError(f'object {object_id}, frame {item.frame}: after its origin, frame {origin}, and '
                                  f'direction is backward; use direction both')
        elif not backwards:
            raise PromptError(f'object {object_id}, frame {item.frame}: before its origin, frame {origin}, and '
                              f'direction is forward; use direction both, or set it in frame {item.frame}')
        if item.frame <= origin and backwards:
            acts.append(_Act(item.frame, False, object_id, False, item))
    if plan.direction != BACKWARD and end < plan.end:
        acts.append(_Act(end, True, object_id, True, None))
    if backwards and first > plan.start:
        acts.append(_Act(first - 1, False, object_id, True, None))
    return True


def _set_ranges(plan: TrackPlan) -> None:
    if plan.direction != BACKWARD:
        plan.forwards.frames = range(min(span.origin for span in plan.spans), max(span.end for span in plan.spans))
    spans = [span for span in plan.spans if span.origin > span.first or plan.direction == BACKWARD]
    if spans and plan.direction != FORWARD:
        plan.backwards.frames = range(max(span.origin for span in spans), min(span.first for span in spans) - 1, -1)


def _checked(item: VideoPrompt, start: int, end: int) -> VideoPrompt:
    if not isinstance(item, VideoPrompt):
        raise PromptError(f'prompt of type {type(item).__name__}: must be a VideoPrompt, with the frame it is drawn on')
    if item.action not in ACTIONS:
        raise PromptError(f'action {item.action!r}: must be one of {", ".join(ACTIONS)}')
    if isinstance(item.frame, bool) or not isinstance(item.frame, (int, np.integer)):
        raise PromptError(f'frame {item.frame!r}: must be an integer')
    if not start <= item.frame < end:
        raise PromptError(f'prompt on frame {item.frame}: must be on frames {start} to {end - 1}, which are tracked')
    if item.action != CLEAR:
        _id(item.prompt.object_id)
    return replace(item, frame=int(item.frame))


def _id(object_id: int | None) -> int:
    if not isinstance(object_id, (int, np.integer)) or isinstance(object_id, bool) or not 1 <= object_id <= MAX_ID:
        raise PromptError(f'object_id {object_id!r}: must be an integer from 1 to {MAX_ID}')
    return int(object_id)


def check_prompts(plan: TrackPlan, frame: int, height: int, width: int, image_size: int | None = None) -> None:
    """Raise PromptError, which names the frame, if a prompt does not fit the image of its frame.

    With the ``image_size`` of a model, also reject masks that are too thin for that model.
    """
    try:
        items = plan.prompts[frame]
        for item in items:
            with errors_of(item.prompt.object_id):
                item.prompt.check(height, width, image_size)
        merged = merge_prompts([item.prompt for item in items], height, width)
        for item in items:
            if item.action == SET:
                with errors_of(item.prompt.object_id):
                    merged[_id(item.prompt.object_id)].check_starts()
    except PromptError as error:
        raise PromptError(f'frame {frame}, {error}') from None


def read_video_prompts(path: Path, count: int) -> list[VideoPrompt]:
    """Return the prompts of a file for a video of ``count`` frames.

    Objects without an id get the lowest ids that the file does not name. Raises ValueError, which names the file, the
    entry and the cure.
    """
    parsed = []
    for number, content in enumerate(read_list(path), 1):
        try:
            entry = parse_entry(content, path.parent)
            if 'frame' not in entry.where:
                raise PromptError(f'stamp {entry.where["stamp"]!r}: frames of a video or folder have no stamps; give '
                                  f'frame, their number from 0')
            parsed.append((entry, entry.frame(count, 'the video')))
        except (PromptError, BrokenSample) as error:
            raise ValueError(f'prompts {path}, entry {number}: {error}') from None
    named = {entry.object_id for entry, _ in parsed}
    free = iter(sorted(set(range(1, MAX_ID + 1)) - named))
    prompts = []
    for entry, frame in parsed:
        object_id = entry.object_id or (None if entry.action == CLEAR else next(free))
        prompt = Prompt(object_id, [(x, y) for x, y, _ in entry.points], [label for _, _, label in entry.points],
                        entry.box, entry.mask)
        prompts.append(VideoPrompt(frame, prompt, entry.action, entry.label))
    return prompts
