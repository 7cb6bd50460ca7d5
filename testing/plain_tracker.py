"""Plain implementation of the rules of StreamTracker: it keeps every frame, and runs objects one by one."""
from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sam2_core import VARIANTS, Prompt, Sam2Model
from sam2_core.config import PerceiverConfig, RepVitConfig, Sam2Config
from sam2_core.images import EncodedImage, mask_to_model
from sam2_core.tensors import MEMORY_DTYPE, ImageFeatures, Memory, ObjectMasks

M = TypeVar('M', bound=Sam2Model)
KNOWN = 128  # images back to which trackers recognise each other


class OneByOne(Sam2Model):
    """Model that runs the objects of a batch one by one without filler, so that results are equal bit for bit.

    Results are cached, because the tracker and its plain twin share most inputs.
    """

    fails_after: int | None = None  # runs until it fails; None means never

    def _count(self) -> None:
        if self.fails_after is not None:
            self.fails_after -= 1
            if self.fails_after < 0:
                self.fails_after = None
                raise RuntimeError('out of memory')

    @functools.cached_property
    def _results(self) -> dict[tuple[bytes, ...], tuple]:
        return {}

    def _alone(self, run: Callable[..., tuple], image: ImageFeatures, inputs: Sequence[Tensor], *more: Tensor) -> tuple:
        # Copies, because the rounding of kernels depends on the address of a tensor.
        copies = [part.clone() for part in (*(part for part in inputs if part is not None), *more)]
        key = (run.__name__, *(part.contiguous().view(torch.uint8).numpy().tobytes() for part in (*image, *copies)))
        if key not in self._results:
            if len(self._results) == 64:
                self._results.clear()
            self._results[key] = run(self, image, type(inputs)(*copies[:4]), *copies[4:])
        return self._results[key]

    def track_objects(self, image: ImageFeatures, memory: Memory) -> tuple[Tensor, ObjectMasks]:
        self._count()
        found = []
        for row in range(len(memory.frames)):
            exist = [slice(None) if part is None else part[row] for part in memory[4:] for _ in range(2)]
            found.append(self.track_alone(image, Memory(*(
                part[row, where][None] for part, where in zip(memory[:4], exist, strict=True)))))
        masks = (torch.cat(parts) for parts in zip(*(masks for _, masks in found), strict=True))
        return torch.cat([features for features, _ in found]), ObjectMasks(*masks)

    def track_candidates(self, image: ImageFeatures, memory: Memory) -> tuple[Tensor, ObjectMasks, Tensor]:
        rows = [self._alone(Sam2Model.track_candidates, image, Memory(*(part[row:row + 1] for part in memory[:4])))
                for row in range(len(memory.frames))]
        features, masks, candidates = zip(*rows, strict=True)
        return torch.cat(features), ObjectMasks(*map(torch.cat, zip(*masks, strict=True))), torch.cat(candidates)

    def track_alone(self, image: ImageFeatures, memory: Memory) -> tuple[Tensor, ObjectMasks]:
        features, masks = self._alone(Sam2Model.track_objects, image, memory)
        return features.contiguous(), masks

    def encode_memory(self, image: ImageFeatures, masks: ObjectMasks, prompted: Tensor) -> Tensor:
        self._count()
        return torch.cat([self.encode_memory_alone(image, ObjectMasks(*(part[row:row + 1] for part in masks)),
                                                   prompted[row:row + 1]) for row in range(len(prompted))])

    def encode_memory_alone(self, image: ImageFeatures, masks: ObjectMasks, prompted: Tensor) -> Tensor:
        return self._alone(Sam2Model.encode_memory, image, masks, prompted)


def tiny_model(model: type[M] = OneByOne, **changes: object) -> M:
    """Return a nano of few layers with random weights, in which objects appear and disappear."""
    trunk = replace(VARIANTS['nano'].trunk, embed_dim=8, stages=(1, 1, 1, 1), global_attention_blocks=(2,))
    return _drawn(model, replace(_tiny(VARIANTS['nano']), trunk=trunk, **changes))


def tiny_edgetam(model: type[M] = OneByOne) -> M:
    """Return an EdgeTAM of few layers, with 3 + 4 tokens in a memory frame, and else as ``tiny_model``."""
    config = _tiny(replace(VARIANTS['edgetam'], perceiver=PerceiverConfig(3, grid_side=2, layers=1)))
    return _drawn(model, replace(config, trunk=RepVitConfig((4, 4, 8, 8), (1, 1, 1, 1))))


def _tiny(config: Sam2Config) -> Sam2Config:
    return replace(config, d_model=16, memory_attention_layers=1, memory_attention_feedforward=16, memory_dim=8,
                   fuser_layers=1, decoder_layers=1, decoder_heads=2, decoder_feedforward=16, iou_head_hidden=16,
                   image_size=32)


def _drawn(model: type[M], config: Sam2Config) -> M:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        built = model(config).eval().requires_grad_(False)
        for parameter in built.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) * 0.3)
    return built


class Frame(NamedTuple):
    content: Tensor
    number: int  # counted by the object
    prompted: bool
    foreseen: bool = False


@dataclass
class PlainFrames:
    """Frames of one kind, memories or pointers, of one object."""

    limit: int
    reach: int
    past: list[Frame] = field(default_factory=list)  # all frames so far

    def attended(self, now: int) -> tuple[list[Frame], list[Frame]]:
        """Return the newest prompted frames, and the other frames that are at most ``reach`` frames old."""
        chosen = [frame for frame in self.past if frame.prompted][-self.limit:]
        names = [id(frame) for frame in chosen]
        others = [frame for frame in self.past if id(frame) not in names and not frame.foreseen
                  and 1 <= now - frame.number <= self.reach]
        return chosen, others

    def as_of(self, now: int, then: int) -> PlainFrames:
        chosen, others = self.attended(now)
        names = [id(frame) for frame in chosen + others]
        past = []
        for frame in self.past:
            if frame.number < then and id(frame) in names:
                past.append(frame)
            elif id(frame) in [id(one) for one in chosen]:
                past.append(frame._replace(number=then - 1, foreseen=True))
        return PlainFrames(self.limit, self.reach, past)


@dataclass
class PlainObject:
    frames: PlainFrames
    pointers: PlainFrames
    now: int = 0
    places: dict[int, int] = field(default_factory=dict)  # image of the tracker by number of the frame

    def as_of(self, image: int) -> PlainObject:
        earlier = [number for number, place in self.places.items() if place < image]
        if earlier:
            then, places = max(earlier) + 1, {number: self.places[number] for number in earlier}
        else:
            first = min(self.places)
            then = first - (self.places[first] - image)
            places = {then - 1: image - 1}
        return PlainObject(self.frames.as_of(self.now, then), self.pointers.as_of(self.now, then), then, places)

    def memory(self, model: Sam2Model, recent_frames: int | None) -> Memory:
        chosen, others = self.frames.attended(self.now)
        if recent_frames is not None:
            others = others[max(0, len(others) - recent_frames):]
        slots = [model.config.memory_frames - 1] * len(chosen) + [self.now - frame.number - 1 for frame in others]
        both = [*self.pointers.attended(self.now)[0], *self.pointers.attended(self.now)[1]]
        ages = [min(self.now - frame.number, model.config.max_pointer_distance) for frame in both]
        return Memory(torch.stack([frame.content for frame in chosen + others])[None], torch.tensor([slots]),
                      torch.stack([frame.content for frame in both])[None], torch.tensor([ages]))


class PlainTracker:
    """Plain StreamTracker, for valid input only."""

    def __init__(self, model: OneByOne, limit: int) -> None:
        self.model, self.limit = model, limit
        self.recent_frames: int | None = None
        self.objects: dict[int, PlainObject] = {}
        self.images = 0
        self.moments: dict[int, object] = {0: object()}

    def _advance(self) -> None:
        self.images += 1
        self.moments[self.images] = object()

    @torch.inference_mode()
    def step(self, image: EncodedImage, prompts: Iterable[Prompt]) -> dict[int, ObjectMasks]:
        features, size = image.features, (image.height, image.width)
        together = {}
        for prompt in prompts:
            prompt = prompt.check(*size)
            first = together.get(prompt.object_id)
            together[prompt.object_id] = prompt if first is None else replace(
                first, points=[*first.points, *prompt.points], labels=[*first.labels, *prompt.labels],
                box=prompt.box if first.box is None else first.box)
        results = {}
        for object_id in [*self.objects, *(new for new in together if new not in self.objects)]:
            known = self.objects.get(object_id)
            conditioned, masks = (None, None) if known is None else self.model.track_alone(
                features, known.memory(self.model, self.recent_frames))
            prompt = together.get(object_id)
            if prompt is not None:
                masks = self._prompted(features, prompt, size, conditioned, masks)
            memory = self.model.encode_memory_alone(features, masks, torch.tensor([prompt is not None]))
            config = self.model.config
            if known is None:
                known = self.objects[object_id] = PlainObject(PlainFrames(self.limit, config.memory_frames - 1),
                                                              PlainFrames(self.limit, config.object_pointers - 1))
            known.frames.past.append(Frame(memory[0].to(MEMORY_DTYPE), known.now, prompt is not None))
            known.pointers.past.append(Frame(masks.pointers[0], known.now, prompt is not None))
            known.places[known.now] = self.images
            known.now += 1
            if prompt is not None and prompt.mask is not None:
                found = F.interpolate(masks.logits[None], size=size, mode='bilinear')[0, 0].numpy() > 0
                masks = masks._replace(iou=torch.tensor((found & prompt.mask).sum() / (found | prompt.mask).sum()))
            results[object_id] = masks
        self._advance()
        return results

    def _prompted(self, features: ImageFeatures, prompt: Prompt, size: tuple[int, int], conditioned: Tensor | None,
                  tracked: ObjectMasks | None) -> ObjectMasks:
        if prompt.mask is not None:
            return self.model.adopt_masks(features, mask_to_model(self.model, prompt.mask))
        points, labels = prompt.as_points(*size, self.model.image_size)
        return self.model.choose_masks(self.model.decode_masks(
            self.model.without_memory(features) if tracked is None else conditioned, features,
            torch.from_numpy(points)[None], torch.from_numpy(labels)[None],
            None if tracked is None else tracked.logits.clamp(-32, 32)[:, None], multimask=len(points) == 1))

    def fork(self, object_ids: Iterable[int], frames_back: int) -> PlainTracker:
        fork = PlainTracker(self.model, self.limit)
        fork.recent_frames = self.recent_frames
        objects = {object_id: self.objects[object_id] for object_id in object_ids}
        fork.images = self.images - frames_back
        if objects and frames_back == 0:
            fork.images = 1 + max(max(known.places.values()) for known in objects.values())
        fork.objects = {object_id: known.as_of(fork.images) for object_id, known in objects.items()}
        fork.moments = {n: moment for n, moment in self.moments.items() if n <= fork.images}
        fork.moments.setdefault(fork.images, object())
        return fork

    def adopt(self, other: PlainTracker, object_id: int, frames_back: Sequence[int] | None) -> None:
        if other is self:
            return
        known = other.objects.pop(object_id)
        shared = [n for n, moment in self.moments.items() if other.moments.get(n) is moment
                  and n >= max(self.images, other.images) - KNOWN]
        if not shared:
            place = {n: n + self.images - other.images for n in known.places.values()}
        else:
            parted = max(shared)
            if parted == self.images and not frames_back:
                self.images, self.moments = other.images, dict(other.moments)
            here, there = self.images - parted, other.images - parted
            place = {n: n for n in known.places.values()}
            if there and here:
                spread = np.floor(np.linspace(parted, parted + here - 1, there) + 0.5).astype(int).tolist()
                place.update(zip(range(parted, other.images), spread, strict=True))
        exact = {other.images - len(frames_back) + k: self.images - back
                 for k, back in enumerate(frames_back or ())}
        for n in [n for n in place if frames_back]:
            place[n] = exact[n] if n in exact else min(place[n], self.images - frames_back[0])
        known.places = {number: place[n] for number, n in known.places.items()}
        self.objects[object_id] = known
