"""Tracking of prompted objects in a recorded video, forwards and backwards."""
from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypeVar, cast

import numpy as np
from torch import Tensor

from sam2_core.finite import not_finite
from sam2_core.memory_policy import MemoryPolicy, memory_policy_of
from sam2_core.model import Sam2Model
from sam2_core.offline.frames import ArrayFrames, FrameSource, UnreadableFrame, read_one
from sam2_core.offline.prompts import BOTH, PassSchedule, TrackPlan, VideoPrompt, check_prompts, plan_prompts
from sam2_core.offline.sources import open_frames
from sam2_core.offline.store import FrameStore, frame_record
from sam2_core.tracker import FrameResult, StreamTracker

Item = TypeVar('Item')
OnUnreadable = Callable[[UnreadableFrame], object]


def track_video(model: Sam2Model, frames: FrameSource | Sequence[np.ndarray | Tensor] | str | Path,
                prompts: Iterable[VideoPrompt], *, direction: str = BOTH, start: int = 0, end: int | None = None,
                on_unreadable: OnUnreadable | None = None,
                memory_policy: str | MemoryPolicy = 'published') -> Iterator[tuple[int, FrameResult]]:
    """Track objects through a video, forwards and backwards from where they are prompted.

    Forwards, the results are those of a ``StreamTracker`` that gets the frames in order with their prompts; backwards,
    those of a ``StreamTracker`` that gets them in reverse order. The backward pass runs first, when the first result
    is asked for. Its results wait as run lengths in a temporary folder, so memory does not grow with the video; their
    ``logits`` are not kept and have the shape (0, 0).

    Args:
        model: The model to run.
        frames: Video file, folder of pictures, TIFF stack, or a sequence of uint8 RGB images (H, W, 3); or a source of
            frames, such as ``open_frames`` returns.
        prompts: Prompts with their frames; ``sam2_core.offline.prompts`` says which act in which direction.
        direction: 'both'; 'forward' or 'backward' only.
        start: First frame to track in.
        end: Frame after the last one; None means the end of the video.
        on_unreadable: Function that is called for each frame that cannot be read; such frames are skipped. None raises
            the error.
        memory_policy: As given to ``StreamTracker``.

    Yields:
        The number of a frame and its result, in the order of the frames. A frame without objects has an empty result.

    Raises:
        FrameError: The frames cannot be read.
        PromptError: A prompt cannot be used. Nothing has been tracked then.
        TypeError: ``frames`` or ``memory_policy`` is of another type.
        ValueError: There is no such direction, frame or memory policy.
    """
    policy = memory_policy_of(memory_policy)
    source = _source(frames)
    plan = plan_prompts(prompts, len(source), direction, start, end)
    check_against_frames(plan, source, model.image_size)
    return _track(partial(StreamTracker, model, memory_policy=policy), source, plan, on_unreadable)


def _track(tracker: Callable[[], StreamTracker], source: FrameSource, plan: TrackPlan,
           on_unreadable: OnUnreadable | None) -> Iterator[tuple[int, FrameResult]]:
    with tempfile.TemporaryDirectory(prefix='sam2_track_') as folder, FrameStore(Path(folder) / 'backward') as store:
        for step in run_pass(tracker(), source, plan.backwards, plan.backwards.frames):
            if step.result is not None:
                store.append(step.frame, frame_record(step.result))
        for frame, image, result in run_pass(tracker(), source, plan.forwards, range(plan.start, plan.end)):
            if result is not None:
                stored = store.read(frame)
                before = {} if stored is None else stored.result().objects
                yield frame, FrameResult(chosen(plan, frame, before, result.objects), result.height, result.width)
            elif isinstance(image, UnreadableFrame):
                if on_unreadable is None:
                    raise image
                on_unreadable(image)


def check_against_frames(plan: TrackPlan, source: FrameSource, image_size: int | None = None) -> None:
    """Raise PromptError if a prompt does not fit its frame, UnreadableFrame if that frame cannot be read."""
    for frame in sorted(plan.prompts):
        height, width = read_one(source, frame).shape[:2]
        check_prompts(plan, frame, height, width, image_size)


class PassStep(NamedTuple):
    """One frame of a pass."""

    frame: int
    image: np.ndarray | UnreadableFrame
    result: FrameResult | None  # None: the frame cannot be read


def run_pass(tracker: StreamTracker, source: FrameSource, schedule: PassSchedule, frames: range) -> Iterator[PassStep]:
    """Step a tracker through frames, with the prompts and removals of a schedule.

    Raises NotFiniteError if the model's result is NaN or infinite.
    """
    for frame, image in source.read(frames):
        for object_id in schedule.removals.get(frame, ()):
            tracker.remove(object_id)
        if isinstance(image, UnreadableFrame):
            yield PassStep(frame, image, None)
            continue
        result = tracker.step(image, schedule.prompts.get(frame, ()))
        for error in not_finite(result.objects).values():
            raise error
        yield PassStep(frame, image, result)


def chosen(plan: TrackPlan, frame: int, backward: Mapping[int, Item], forward: Mapping[int, Item]) -> dict[int, Item]:
    """Return the objects of a frame, each from the pass that it belongs to, in the order of the prompts."""
    behind, ahead = plan.sources(frame)
    found = {object_id: item for object_id, item in backward.items() if object_id in behind}
    found |= {object_id: item for object_id, item in forward.items() if object_id in ahead}
    return {object_id: found[object_id] for object_id in plan.objects if object_id in found}


def _source(frames: FrameSource | Sequence[np.ndarray | Tensor] | str | Path) -> FrameSource:
    if isinstance(frames, (str, Path)):
        return open_frames(frames)
    if hasattr(frames, 'read') and hasattr(frames, 'frame_name'):
        return cast(FrameSource, frames)
    if hasattr(frames, '__len__') and hasattr(frames, '__getitem__'):
        return ArrayFrames(cast(Sequence[np.ndarray], frames))
    raise TypeError(f'frames of type {type(frames).__name__}: must be a path or a sequence, whose frames can be read '
                    f'again and backwards; put them into a list, or give a StreamTracker one at a time')
