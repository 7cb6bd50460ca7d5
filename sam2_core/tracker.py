"""Tracking of any number of objects through a live stream, with memory bounded from the first frame."""
from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import wraps
from itertools import pairwise
from operator import index
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from sam2_core.images import (
    EncodedImage,
    at_image_size,
    check_encoded,
    check_image,
    describe,
    encode_images,
    mask_to_model,
)
from sam2_core.inference import inference
from sam2_core.masks import mask_box
from sam2_core.memory import MemoryBank, MemoryShapes, stack_memories, write_memories
from sam2_core.metrics import iou as mask_iou
from sam2_core.model import Sam2Model
from sam2_core.prompts import Prompt, PromptError, errors_of, merge_prompts
from sam2_core.segmenter import MAX_PROMPT_LOGIT
from sam2_core.tensors import ImageFeatures, Memory, ObjectMasks
from sam2_core.timeline import Timeline
from sam2_core.transfer import to_device, to_host

Method = TypeVar('Method', bound=Callable[..., Any])


@dataclass(frozen=True, eq=False)
class ObjectResult:
    """One object in one frame."""

    mask: np.ndarray  # bool (H, W)
    logits: Tensor  # float32 (image_size / 4, image_size / 4), on the model's device
    box: tuple[int, int, int, int] | None  # (x0, y0, x1, y1) of the mask, pixels, x1 and y1 exclusive; None: no pixel
    iou: float  # predicted IoU, 0..1; where the prompt was a mask, IoU with that mask
    object_score: float  # logit; > 0: the object is visible


@dataclass(frozen=True, eq=False)
class FrameResult:
    """All known objects in one frame."""

    objects: dict[int, ObjectResult]
    height: int
    width: int


class _State(NamedTuple):
    """Everything that changes from image to image, replaced as a whole or not at all."""

    banks: dict[int, MemoryBank]  # never changed in place
    timeline: Timeline


def _all_or_nothing(method: Method) -> Method:
    """Have a method of a tracker take back what it has changed if anything is raised up to its return."""
    @wraps(method)
    def guarded(self: StreamTracker, *args: Any, **kwargs: Any) -> Any:
        before = self._state
        try:
            return method(self, *args, **kwargs)
        except BaseException:
            self._state = before
            raise
    return guarded


class StreamTracker:
    """Tracks prompted objects from image to image.

    Objects can be added, corrected and removed at any frame. Trackers hold their own memory and share nothing but
    the model, so several may run on one. Not thread-safe. Whatever a method raises, KeyboardInterrupt included, the
    tracker is as it was before the call.
    """

    def __init__(self, model: Sam2Model, *, max_objects: int | None = None, max_conditioning_frames: int = 4) -> None:
        """``max_conditioning_frames``: how many prompted frames an object remembers, the newest win."""
        if _integer('max_conditioning_frames', max_conditioning_frames) < 1:
            raise ValueError(f'max_conditioning_frames {max_conditioning_frames}: must be at least 1')
        self.model = model
        self.max_objects = max_objects
        self._max_conditioning_frames = index(max_conditioning_frames)
        self._shapes = MemoryShapes(model.config, self._max_conditioning_frames)
        self._recent_frames: int | None = None
        self._state = _State({}, Timeline.begin())

    @property
    def max_conditioning_frames(self) -> int:
        """Number of prompted frames that an object remembers."""
        return self._max_conditioning_frames

    @property
    def recent_frames(self) -> int | None:
        """How many recent frames are looked at, at most; None: all that are remembered (6).

        Fewer are faster and less exact. What is remembered does not depend on it: it may be changed at any time.
        ValueError for a negative number, TypeError for what is no integer.
        """
        return self._recent_frames

    @recent_frames.setter
    def recent_frames(self, limit: int | None) -> None:
        if limit is not None and _integer('recent_frames', limit) < 0:
            raise ValueError(f'recent_frames {limit}: must be at least 0, or None for all')
        self._recent_frames = None if limit is None else index(limit)

    @property
    def object_ids(self) -> tuple[int, ...]:
        """The objects known, in the order in which they were added."""
        return tuple(self._banks)

    @property
    def memory_bytes(self) -> int:
        """Bytes of memory held for all objects: a constant for each of them."""
        return sum(bank.nbytes for bank in self._banks.values())

    @_all_or_nothing
    def remove(self, object_id: int) -> None:
        """Forget an object; KeyError when it is not known."""
        self._bank(object_id)
        self._state = self._state._replace(banks=_without(self._banks, object_id))

    @_all_or_nothing
    def reset(self) -> None:
        """Forget all objects."""
        self._state = self._state._replace(banks={})

    @torch.inference_mode()
    def fork(self, object_ids: Iterable[int], frames_back: int = 0) -> StreamTracker:
        """Return an independent tracker that remembers these objects as they were ``frames_back`` images ago.

        Images are those of this tracker: 1 is the image of its newest step. 0: both continue alike. Otherwise recent
        frames since then are unknown to the fork; conditioning frames since then stay and count as the newest, until
        newer ones take their place; and what has left the memory since then does not come back. An object that was
        added since has its conditioning frames only.

        With ``adopt`` a fork serves prompts that were drawn on an older image: apply them in a fork, step it through
        the images since, and adopt the object. KeyError as for ``remove``, ValueError for a negative number.
        """
        if _integer('frames_back', frames_back) < 0:
            raise ValueError(f'frames_back {frames_back}: must be at least 0')
        wanted = {object_id: self._bank(object_id) for object_id in object_ids}
        banks = {index(object_id): bank for object_id, bank in wanted.items()}
        timeline = self._state.timeline
        step = timeline.images - index(frames_back)
        if banks and frames_back == 0:  # objects that an image failed for go on with that image
            step = max(bank.steps[-1] for bank in banks.values()) + 1
        other = StreamTracker(self.model, max_objects=self.max_objects,
                              max_conditioning_frames=self.max_conditioning_frames)
        other._recent_frames = self._recent_frames
        other._state = _State({object_id: bank.copy(bank.frames_since(step)) for object_id, bank in banks.items()},
                              timeline.before(step))
        return other

    @_all_or_nothing
    def adopt(self, other: StreamTracker, object_id: int, frames_back: Sequence[int] | None = None) -> None:
        """Take an object over from another tracker on the same model, which no longer knows it.

        It takes the place of the object of that id, if there is one; a new one comes last. KeyError as for ``remove``,
        PromptError beyond ``max_objects``, ValueError for a tracker with another model or ``max_conditioning_frames``.

        frames_back: where the newest images of ``other`` lie in the stream of this tracker, from old to new, counted as
        in ``fork``: 1 is the image of the newest step here, or one that came after it. None or an empty list: if a fork
        has processed as many images since it began as this tracker, they are the same ones; if not, they lie evenly
        between that moment and now; if this tracker has not processed any since, those of the fork become its own. The
        newest image of a tracker that is no fork is the newest one here.
        """
        if other.model is not self.model:
            raise ValueError(f'object {object_id} of a tracker on {describe(other.model)} cannot join one on '
                             f'another model, {describe(self.model)}: give both trackers the same model')
        if other.max_conditioning_frames != self.max_conditioning_frames:
            raise ValueError(f'object {object_id} of a tracker with max_conditioning_frames '
                             f'{other.max_conditioning_frames} cannot join one with {self.max_conditioning_frames}: '
                             'give both trackers the same')
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
        """Process the next image of the stream, uint8 RGB (H, W, 3), or encoded already, by the same model.

        A prompt with an unknown ``object_id`` adds the object; one with a known id corrects it, and the correction is
        remembered like a first prompt. Several prompts for one object are merged. Images may change in size. Results
        have the order of ``object_ids``. PromptError for a prompt, TypeError and ValueError for an image that cannot
        be used. Whatever is raised: the image did not happen.
        """
        encoded = image if isinstance(image, EncodedImage) else None
        height, width = check_image(image) if encoded is None else check_encoded(self.model, encoded)
        merged = merge_prompts(prompts, height, width)
        self._check_limit(merged)
        timeline = self._state.timeline.after_image()
        if not self._banks and not merged:
            self._state = _State({}, timeline)
            return FrameResult({}, height, width)
        encoded = encoded or encode_images(self.model, [image])[0]
        features = encoded.features_for(self.model)

        conditioned, masks = self._track(features)
        for object_id, prompt in merged.items():
            masks[object_id] = self._prompt(features, prompt, (height, width), conditioned.get(object_id),
                                            masks.get(object_id))
        together = ObjectMasks(*(torch.stack(parts) for parts in zip(*masks.values(), strict=True)))
        banks = self._remember(features, list(masks), together, merged)
        results = _results(list(masks), together, merged, height, width)
        self._state = _State(banks, timeline)
        return FrameResult(results, height, width)

    def _check_limit(self, object_ids: Iterable[int]) -> None:
        new = [object_id for object_id in object_ids if object_id not in self._banks]
        if new and self.max_objects is not None and len(self._banks) + len(new) > self.max_objects:
            raise PromptError(f'object {new[-1]}: {len(self._banks)} objects are tracked already and the limit is '
                              f'{self.max_objects}: remove one first')

    def _track(self, image: ImageFeatures) -> tuple[dict[int, Tensor], dict[int, ObjectMasks]]:
        """Each known object in this image, from its memory alone: conditioned features (d_model, h, w) and mask."""
        conditioned, masks = {}, {}
        for ids, memory in self._batches():
            features, chosen = self.model.stages.track_objects(image, memory)
            for row, object_id in enumerate(ids):
                conditioned[object_id] = features[row]
                masks[object_id] = ObjectMasks(*(part[row] for part in chosen))
        return conditioned, {object_id: masks[object_id] for object_id in self._banks}

    def _batches(self) -> Iterator[tuple[list[int], Memory]]:
        """Objects that can run together, with what they remember: those whose memories are equally long.

        Where shapes must not change from image to image, those whose memories are complete, and the others filled up.
        """
        complete = self._shapes.complete(self.recent_frames)
        groups: dict[tuple[int, int] | None, list[int]] = {}
        for object_id, bank in self._banks.items():
            length = bank.length(self.recent_frames)
            to_fill_up = self.model.compiled is not None and length != complete
            groups.setdefault(None if to_fill_up else length, []).append(object_id)
        for length, ids in groups.items():
            yield ids, stack_memories([self._banks[i] for i in ids], self.recent_frames,
                                      self._shapes.longest(self.recent_frames) if length is None else None)

    def _prompt(self, image: ImageFeatures, prompt: Prompt, size: tuple[int, int], conditioned: Tensor | None,
                tracked: ObjectMasks | None) -> ObjectMasks:
        """One object as its prompt says: a new one without memory, a known one with its features and mask so far."""
        model = self.model
        with errors_of(prompt.object_id):
            if tracked is None:
                prompt.check_starts()
            mask = None if prompt.mask is None else mask_to_model(model, prompt.mask)
        if mask is not None:
            masks = model.adopt_masks(image, mask)
        else:
            points, labels = prompt.as_points(*size, model.image_size)
            if tracked is None:
                features, previous = model.without_memory(image), None
            else:
                features = conditioned[None]
                previous = tracked.logits.clamp(-MAX_PROMPT_LOGIT, MAX_PROMPT_LOGIT)[None, None]
            decoded = model.decode_masks(features, image, to_device(points, model.device)[None],
                                         to_device(labels, model.device)[None], previous, multimask=len(points) <= 1)
            masks = model.choose_masks(decoded)
        return ObjectMasks(*(part[0] for part in masks))

    def _remember(self, image: ImageFeatures, ids: list[int], masks: ObjectMasks,
                  prompted: dict[int, Prompt]) -> dict[int, MemoryBank]:
        """The banks after this image; those of the present state go on to attend to what they do."""
        flags = [object_id in prompted for object_id in ids]
        memories = self._encode(image, masks, flags)
        model = self.model
        banks = [self._banks[object_id] if object_id in self._banks
                 else MemoryBank(model.config, self.max_conditioning_frames, model.device, model.dtype)
                 for object_id in ids]
        after = write_memories(banks, memories, masks.pointers, flags, self._state.timeline.images)
        return dict(zip(ids, after, strict=True))

    def _encode(self, image: ImageFeatures, masks: ObjectMasks, flags: list[bool]) -> Tensor:
        """This frame's memory of each object. That of absent ones is the same for all: it is made once.

        Which ones are absent is known without waiting on a CPU only.
        """
        device = masks.logits.device
        scores = masks.object_score.tolist() if device.type == 'cpu' and self.model.compiled is None else []
        absent = [row for row, score in enumerate(scores) if score <= 0 and not flags[row]]
        if len(absent) < 2:
            return self.model.stages.encode_memory(image, masks, to_device(flags, device))
        kept = [row for row in range(len(flags)) if row not in absent[1:]]
        place = {row: i for i, row in enumerate(kept)}
        memories = self.model.stages.encode_memory(image, ObjectMasks(*(part[kept] for part in masks)),
                                                   torch.tensor([flags[row] for row in kept], device=device))
        return memories[[place.get(row, place[absent[0]]) for row in range(len(flags))]]


def _without(banks: dict[int, MemoryBank], object_id: int) -> dict[int, MemoryBank]:
    return {known: bank for known, bank in banks.items() if known != object_id}


def _integer(name: str, value: int) -> int:
    if isinstance(value, bool) or not hasattr(value, '__index__'):
        raise TypeError(f'{name} {value!r}: must be an integer')
    return index(value)


def _checked(frames_back: Sequence[int]) -> list[int]:
    numbers = [_integer('frames_back', back) for back in frames_back]
    if any(older < newer for older, newer in pairwise([*numbers, 1])):
        raise ValueError(f'frames_back {numbers}: must be at least 1 and go from old to new, without rising')
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
