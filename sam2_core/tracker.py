"""Tracking of any number of objects in a live stream, with bounded memory."""
from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import wraps
from itertools import pairwise
from operator import index
from typing import Any, Concatenate, NamedTuple, ParamSpec, TypeVar

import numpy as np
import torch
from torch import Tensor

from sam2_core.images import EncodedImage, check_encoded, check_image, describe, encode_images
from sam2_core.inference import inference
from sam2_core.masks import mask_box
from sam2_core.memory import MemoryBank, MemoryShapes
from sam2_core.memory_policy import MemoryPolicy, memory_policy_of, same_policy
from sam2_core.metrics import iou as mask_iou
from sam2_core.model import Sam2Model
from sam2_core.prompts import Prompt, PromptError, merge_prompts
from sam2_core.resizing import at_image_size
from sam2_core.tensors import ImageFeatures, ObjectMasks
from sam2_core.timeline import Timeline
from sam2_core.tracker_state import TrackerStateError, from_state, to_state
from sam2_core.tracking import apply_prompt, remember, track_by_memory
from sam2_core.transfer import to_host

P = ParamSpec('P')
R = TypeVar('R')


@dataclass(frozen=True, eq=False)
class ObjectResult:
    """One object in one frame."""

    mask: np.ndarray  # bool (H, W)
    logits: Tensor  # float32 (image_size / 4, image_size / 4), on the model's device
    box: tuple[int, int, int, int] | None  # of the mask, pixels, (x0, y0, x1, y1), x1 and y1 exclusive; None if empty
    iou: float  # predicted IoU, 0..1; for a mask prompt, the IoU with that mask
    object_score: float  # logit; > 0: the object is visible


@dataclass(frozen=True, eq=False)
class FrameResult:
    """All known objects in one frame."""

    objects: dict[int, ObjectResult]
    height: int
    width: int


class _State(NamedTuple):
    """State of a tracker that changes with every image. It is replaced as a whole, never changed in place."""

    banks: dict[int, MemoryBank]  # by object id, in the order in which objects were added
    timeline: Timeline


def _all_or_nothing(
        method: Callable[Concatenate[StreamTracker, P], R]) -> Callable[Concatenate[StreamTracker, P], R]:
    """Decorate a method of a tracker: restore the state if the method raises."""
    @wraps(method)
    def guarded(self: StreamTracker, /, *args: P.args, **kwargs: P.kwargs) -> R:
        before = self._state
        try:
            return method(self, *args, **kwargs)
        except BaseException:
            self._state = before
            raise
    return guarded


class StreamTracker:
    """Tracker of prompted objects from image to image (SAM 2, arXiv 2408.00714, section 4).

    Objects can be added, corrected and removed at any frame. Each tracker has its own memory, so several trackers can
    share a model. If a method raises any exception, KeyboardInterrupt included, the tracker is as it was before the
    call. Not thread-safe.
    """

    def __init__(self, model: Sam2Model, *, max_objects: int | None = None, max_conditioning_frames: int = 4,
                 memory_policy: str | MemoryPolicy = 'published') -> None:
        """Create a tracker.

        Args:
            model: The model.
            max_objects: Maximum number of objects; None means no limit.
            max_conditioning_frames: Prompted frames that each object stores; the newest are kept.
            memory_policy: Rule of which frames are remembered: a name in ``MEMORY_POLICIES``, or a ``MemoryPolicy``.

        Raises:
            TypeError: ``max_conditioning_frames`` is no integer, or ``memory_policy`` no policy.
            ValueError: ``max_conditioning_frames`` is below 1, or no policy has this name.
        """
        if _integer('max_conditioning_frames', max_conditioning_frames) < 1:
            raise ValueError(f'max_conditioning_frames {max_conditioning_frames}: must be at least 1')
        self.model = model
        self.max_objects = max_objects
        self._max_conditioning_frames = index(max_conditioning_frames)
        self._memory_policy, self._policy = memory_policy, memory_policy_of(memory_policy)
        self._shapes = MemoryShapes(model.config, self._max_conditioning_frames, self._policy)
        self._recent_frames: int | None = None
        self._state = _State({}, Timeline.begin())

    @property
    def max_conditioning_frames(self) -> int:
        """Number of conditioning frames that are stored per object."""
        return self._max_conditioning_frames

    @property
    def memory_policy(self) -> str | MemoryPolicy:
        """Rule of which frames are remembered: the name or object that the tracker was created with."""
        return self._memory_policy

    @property
    def recent_frames(self) -> int | None:
        """Maximum number of recent frames to attend to; None means all that are stored (6).

        Fewer frames are faster and less exact. The stored memory does not depend on this number, so it can be changed
        at any time. Setting it raises ValueError for a negative number and TypeError for a non-integer.
        """
        return self._recent_frames

    @recent_frames.setter
    def recent_frames(self, limit: int | None) -> None:
        if limit is not None and _integer('recent_frames', limit) < 0:
            raise ValueError(f'recent_frames {limit}: must be at least 0, or None for all')
        self._recent_frames = None if limit is None else index(limit)

    @property
    def object_ids(self) -> tuple[int, ...]:
        """Ids of all objects, in the order in which they were added."""
        return tuple(self._banks)

    @property
    def memory_bytes(self) -> int:
        """Memory of all objects in bytes: a constant per object."""
        return sum(bank.nbytes for bank in self._banks.values())

    @_all_or_nothing
    def remove(self, object_id: int) -> None:
        """Remove an object; raise KeyError if its id is unknown."""
        self._bank(object_id)
        self._state = self._state._replace(banks=_without(self._banks, object_id))

    @_all_or_nothing
    def reset(self) -> None:
        """Remove all objects."""
        self._state = self._state._replace(banks={})

    @torch.inference_mode()
    def fork(self, object_ids: Iterable[int], frames_back: int = 0) -> StreamTracker:
        """Return an independent tracker with copies of some objects, as of ``frames_back`` images ago.

        Use it with ``adopt`` for prompts that were drawn on an older image: apply the prompts to a fork, step the fork
        through the images since then, and adopt the object. 1 goes back to before the newest step, 0 copies the
        present. Raise KeyError for an unknown id, ValueError for a negative number, TypeError for a non-integer.

        The fork does not have the tracked frames since then. Later conditioning frames are kept, and count as the
        newest until newer ones replace them. Frames that have already been dropped from memory do not come back. An
        object that was added later has its conditioning frames only.
        """
        if _integer('frames_back', frames_back) < 0:
            raise ValueError(f'frames_back {frames_back}: must be at least 0')
        wanted = {object_id: self._bank(object_id) for object_id in object_ids}
        banks = {index(object_id): bank for object_id, bank in wanted.items()}
        timeline = self._state.timeline
        step = timeline.images - index(frames_back)
        if banks and frames_back == 0:  # objects for which an image failed continue with that image
            step = max(bank.steps[-1] for bank in banks.values()) + 1
        other = StreamTracker(self.model, max_objects=self.max_objects,
                              max_conditioning_frames=self.max_conditioning_frames,
                              memory_policy=self.memory_policy)
        other._recent_frames = self._recent_frames
        other._state = _State({object_id: bank.copy(bank.frames_since(step)) for object_id, bank in banks.items()},
                              timeline.before(step))
        return other

    @_all_or_nothing
    def adopt(self, other: StreamTracker, object_id: int, frames_back: Sequence[int] | None = None) -> None:
        """Move an object from another tracker, usually a fork of this one, to this tracker.

        The object takes the place of an object with the same id; a new one comes last. ``frames_back`` gives the
        positions of the newest images of ``other`` in the stream of this tracker, from old to new, counted as in
        ``fork``: 1 is the image of this tracker's newest step, or an image after it. Without positions, a fork that has
        processed as many images as this tracker since then has processed the same images; if the numbers differ, its
        images are spread evenly over that time; if this tracker has processed none, it takes over the images of the
        fork. The newest images of unrelated trackers coincide.

        Raises:
            KeyError: The id is unknown to ``other``.
            PromptError: This tracker has ``max_objects`` objects already.
            TypeError: A position is not an integer.
            ValueError: The trackers differ in model, conditioning frames or policy, or positions are below 1 or rise.
        """
        if other.model is not self.model:
            raise ValueError(f'object {object_id} of a tracker on {describe(other.model)} cannot join one on '
                             f'another model, {describe(self.model)}: give both trackers the same model')
        if other.max_conditioning_frames != self.max_conditioning_frames:
            raise ValueError(f'object {object_id} of a tracker with max_conditioning_frames '
                             f'{other.max_conditioning_frames} cannot join one with {self.max_conditioning_frames}: '
                             'give both trackers the same')
        if not same_policy(other._policy, self._policy):
            raise ValueError(f'object {object_id} of a tracker with memory_policy {other._policy.name!r} cannot join '
                             f'one with {self._policy.name!r}: give both trackers the same')
        bank = other._bank(object_id)
        self._check_limit([object_id])
        if other is self:
            return
        timeline, theirs = self._state.timeline, other._state.timeline
        newest = [] if frames_back is None else _checked(frames_back)
        if newest:
            steps = timeline.place_exactly(theirs, bank.steps, newest)
        else:
            timeline = timeline.joined(theirs)
            steps = [timeline.place(theirs, step) for step in bank.steps]
        mine = _State({**self._banks, index(object_id): bank.placed(steps)}, timeline)
        before = other._state
        try:
            other._state = before._replace(banks=_without(before.banks, object_id))
            self._state = mine
        except BaseException:
            other._state = before
            raise

    def state_dict(self) -> dict[str, Any]:
        """Return a snapshot of all objects, from which ``load_state_dict`` continues as if nothing had happened.

        It holds two tensors, ``frames`` and ``pointers``, on the CPU whatever the device, and ``metadata``, a dict
        that JSON can store. Later steps do not change it. Its tensors have at most ``memory_bytes`` bytes.
        """
        return to_state(self.model, self.max_conditioning_frames, self._policy, self.recent_frames, self._banks,
                        self._state.timeline)

    @_all_or_nothing
    @torch.inference_mode()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Replace all objects and ``recent_frames`` by those of a snapshot.

        The model must have the configuration, weights and type of the one that the snapshot was taken with; the device
        may differ. ``max_objects`` stays as it is.

        Raises:
            TrackerStateError: The snapshot does not fit this tracker, or is damaged. The tracker is as it was before.
        """
        banks, timeline, recent_frames = from_state(state, self.model, self.max_conditioning_frames, self._policy)
        if self.max_objects is not None and len(banks) > self.max_objects:
            raise TrackerStateError(f'state of {len(banks)} objects: the limit of this tracker is {self.max_objects}: '
                                    f'raise max_objects')
        self._recent_frames, self._state = recent_frames, _State(banks, timeline)

    @property
    def _banks(self) -> dict[int, MemoryBank]:
        return self._state.banks

    def _bank(self, object_id: int) -> MemoryBank:
        if object_id not in self._banks:
            raise KeyError(f'object {object_id} is not known; known: {list(self._banks)}')
        return self._banks[object_id]

    @_all_or_nothing
    @inference
    def step(self, image: np.ndarray | Tensor | EncodedImage, prompts: Iterable[Prompt] = ()) -> FrameResult:
        """Process the next image of the stream.

        Args:
            image: uint8 RGB (H, W, 3), or an image that the same model has encoded. Images may differ in size.
            prompts: A prompt with an unknown ``object_id`` adds an object. A prompt with a known id corrects that
                object. Either way the frame is stored as a conditioning frame. Prompts for one object are merged.

        Returns:
            Results of all objects, in the order of ``object_ids``.

        Raises:
            PromptError: A prompt cannot be used.
            TypeError: The image has another type.
            ValueError: The image has another shape, or another model has encoded it.
        """
        if isinstance(image, EncodedImage):
            height, width = check_encoded(self.model, image)
        else:
            height, width = check_image(image)
        merged = merge_prompts(prompts, height, width)
        self._check_limit(merged)
        timeline = self._state.timeline.after_image()
        if not self._banks and not merged:
            self._state = _State({}, timeline)
            return FrameResult({}, height, width)
        encoded = image if isinstance(image, EncodedImage) else encode_images(self.model, [image])[0]
        features = encoded.features_for(self.model)

        conditioned, masks, candidates = self._track(features)
        for object_id, prompt in merged.items():
            tracked = (conditioned[object_id], masks[object_id]) if object_id in conditioned else None
            masks[object_id] = self._prompt(features, prompt, (height, width), tracked)
        together = ObjectMasks(*(torch.stack(parts) for parts in zip(*masks.values(), strict=True)))
        banks = self._remember(features, list(masks), together, candidates, merged)
        results = _results(list(masks), together, merged, height, width)
        self._state = _State(banks, timeline)
        return FrameResult(results, height, width)

    def _check_limit(self, object_ids: Iterable[int]) -> None:
        new = [object_id for object_id in object_ids if object_id not in self._banks]
        if new and self.max_objects is not None and len(self._banks) + len(new) > self.max_objects:
            raise PromptError(f'object {new[-1]}: {len(self._banks)} objects are tracked already and the limit is '
                              f'{self.max_objects}: remove one first')

    def _track(self, image: ImageFeatures) -> tuple[dict[int, Tensor], dict[int, ObjectMasks], dict[int, Tensor]]:
        return track_by_memory(self.model, image, self._banks, self._shapes, self.recent_frames)

    def _prompt(self, image: ImageFeatures, prompt: Prompt, size: tuple[int, int],
                tracked: tuple[Tensor, ObjectMasks] | None) -> ObjectMasks:
        return apply_prompt(self.model, image, prompt, size, tracked)

    def _remember(self, image: ImageFeatures, ids: list[int], masks: ObjectMasks, candidates: dict[int, Tensor],
                  prompted: dict[int, Prompt]) -> dict[int, MemoryBank]:
        """Return the banks including this image; the banks of the present state stay valid."""
        model = self.model
        banks = {object_id: self._banks[object_id] if object_id in self._banks
                 else MemoryBank(model.config, self.max_conditioning_frames, model.device, model.dtype, self._policy)
                 for object_id in ids}
        return remember(model, self._policy, image, banks, masks, candidates, prompted, self._state.timeline.images)


def _without(banks: dict[int, MemoryBank], object_id: int) -> dict[int, MemoryBank]:
    return {known: bank for known, bank in banks.items() if known != object_id}


def _integer(name: str, value: int) -> int:
    if isinstance(value, bool) or not hasattr(value, '__index__'):
        raise TypeError(f'{name} {value!r}: must be an integer')
    return index(value)


def _checked(frames_back: Sequence[int]) -> list[int]:
    numbers = [_integer('frames_back', back) for back in frames_back]
    if any(older < newer for older, newer in pairwise([*numbers, 1])):
        raise ValueError(f'frames_back {numbers}: must be at least 1 and must not increase, from old to new')
    return numbers


def _results(ids: list[int], masks: ObjectMasks, prompts: dict[int, Prompt], height: int,
             width: int) -> dict[int, ObjectResult]:
    pixels, iou, object_score = to_host(at_image_size(masks.logits, height, width), masks.iou, masks.object_score)
    results = {}
    for row, object_id in enumerate(ids):
        given = prompts[object_id].mask if object_id in prompts else None
        overlap = iou[row] if given is None else mask_iou(pixels[row], given)
        results[object_id] = ObjectResult(pixels[row], masks.logits[row], mask_box(pixels[row]), float(overlap),
                                          float(object_score[row]))
    return results
