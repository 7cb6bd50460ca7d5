"""One training step's forward pass: clips in, losses out, through the functions the tracker and the segmenter call.

Which rows are prompted how, and when they are corrected, follows from their number alone, so that every step runs the
same kernels on the same shapes and can be replayed as one CUDA graph. All chance is in the data and in torch's
generator.
"""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sam2_core.images import IMAGE_MEAN, IMAGE_STD
from sam2_core.model import MASK_BIAS, MASK_SCALE, ImageFeatures, Memory, ObjectMasks, Sam2Model
from sam2_core.nn.mask_decoder import DecodedMasks
from sam2_core.segmenter import MAX_PROMPT_LOGIT
from sam2_core.training import prompt_sampling
from sam2_core.training.clips import MAX_OBJECTS, PackedClips
from sam2_core.training.losses import mask_iou, mask_losses, object_score_loss, weighted_mean

ALL_MASKS_CLICK, ALL_MASKS = 0.05, 0.2  # one click is ambiguous: its masks may differ
_FIRST_PROMPTS = (('box', 0.45), ('click', 0.2), ('clicks', 0.1), ('mask', 0.25))  # shares of the rows of a video
_IMAGE_PROMPTS = (('box', 0.35), ('box_multimask', 0.1), ('click', 0.25), ('refined', 0.3))


@dataclass(frozen=True)
class Step:
    """The shape of a training step."""

    frames: int  # per clip; 1: images only
    objects: int = 3  # followed per clip
    image_objects: int = 1  # prompted per image


@dataclass(frozen=True)
class Knobs:
    """What changes during training, as tensors of no dimension, so that a captured step sees new values."""

    balance: Tensor  # weight of the balanced loss
    true_masks: Tensor  # probability that the memory is given the true mask
    true_presence: Tensor  # probability that the memory is told whether the object is visible
    foreground: Tensor  # weight of the auxiliary foreground loss

    @classmethod
    def on(cls, device: torch.device) -> Knobs:
        return cls(*(torch.zeros((), device=device) for _ in range(4)))


def may_lack(name: str) -> bool:
    """Tell whether a figure is a share of what was seen: not a number where there was nothing to see."""
    return name.endswith(('_j', '_right'))


def mean_figures(parts: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Average the figures of several batches. A loss that is not finite stays so."""
    together = {name: torch.stack([part[name] for part in parts]) for name in parts[0]}
    return {name: values.nanmean() if may_lack(name) else values.mean() for name, values in together.items()}


class ForegroundHead(nn.Module):
    """Says of every pixel whether it lies on a thing and whether on an edge. Only helps training to start."""

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.heads = nn.ModuleList(nn.Conv2d(c, 2, kernel_size=1) for c in (d_model, d_model // 4, d_model // 8))

    def loss(self, features: ImageFeatures, things: Tensor) -> Tensor:
        """``things``: uint8 (B, S, S), bit k for object k."""
        on_thing = (things > 0).float()[:, None]
        edge = torch.zeros_like(on_thing)
        edge[:, :, 1:] += (things[:, 1:] != things[:, :-1])[:, None]
        edge[..., 1:] += (things[..., 1:] != things[..., :-1])[:, None]
        target = torch.cat((on_thing, edge.clamp(max=1)), dim=1)
        total = 0.0
        for head, level in zip(self.heads, features, strict=True):
            wanted = F.adaptive_avg_pool2d(target, level.shape[-1])
            total = total + F.binary_cross_entropy_with_logits(head(level).float(), wanted)
        return total


def normalise(frames: Tensor) -> Tensor:
    """uint8 (B, S, S, 3) -> float32 (B, 3, S, S) as ``images.to_model`` makes them."""
    pixels = frames.permute(0, 3, 1, 2).float() / 255
    # no tensor is made of the constants: that would copy from the host, which a CUDA graph cannot
    return torch.stack([(pixels[:, c] - IMAGE_MEAN[c]) / IMAGE_STD[c] for c in range(3)], dim=1)


def object_visibility(masks: Tensor) -> Tensor:
    """Packed masks uint8 (..., S, S) -> bool (..., MAX_OBJECTS)."""
    return torch.stack([((masks >> k) & 1).flatten(-2).any(dim=-1) for k in range(MAX_OBJECTS)], dim=-1)


def object_mask(masks: Tensor, objects: Tensor) -> Tensor:
    """Packed masks uint8 (B, S, S), object numbers (B,) -> bool (B, S, S)."""
    return ((masks >> objects.to(torch.uint8)[:, None, None]) & 1).bool()


def cell_targets(masks_bhw: Tensor) -> Tensor:
    """Exact masks bool (B, S, S) -> the part of each of the decoder's cells they cover, float32 (B, S / 4, S / 4)."""
    return F.avg_pool2d(masks_bhw[:, None].float(), 4)[:, 0]


def shares(rows: int, parts: tuple[tuple[str, float], ...]) -> list[tuple[str, slice]]:
    """``rows`` rows cut into named runs of given shares; none is lost, some may be empty."""
    runs, start, reached = [], 0, 0.0
    for name, share in parts:
        reached += share
        stop = round(rows * reached)
        runs.append((name, slice(start, stop)))
        start = stop
    return runs


class _Tally:
    """Collects the losses of many decodings."""

    def __init__(self, balance: Tensor) -> None:
        self.balance = balance
        self.terms: dict[str, list[tuple[Tensor, Tensor]]] = {}
        self.seen: dict[str, list[tuple[Tensor, Tensor]]] = {}

    def add(self, name: str, decoded: DecodedMasks, targets: Tensor, visible: Tensor, weight: Tensor,
            all_masks: float) -> None:
        """``visible`` bool (B,), ``weight`` (B,): 0 leaves a row out."""
        masks, iou = mask_losses(decoded.logits, decoded.iou, targets, self.balance, all_masks)
        score, importance = object_score_loss(decoded.object_score, visible)
        shown = visible * weight
        self.terms.setdefault('mask', []).append((masks, shown))
        self.terms.setdefault('iou', []).append((iou, shown))
        self.terms.setdefault('object_score', []).append((score, importance * weight))
        with torch.no_grad():
            best = decoded.iou.argmax(dim=1)
            rows = torch.arange(len(best), device=best.device)
            self.seen.setdefault(f'{name}_j', []).append((mask_iou(decoded.logits[rows, best], targets), shown))
            right = ((decoded.object_score > 0) == visible).float()
            self.seen.setdefault('present_right', []).append((right, shown))
            self.seen.setdefault('absent_right', []).append((right, ~visible * weight))

    def result(self) -> tuple[Tensor, dict[str, Tensor]]:
        def joined(parts: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
            return torch.cat([v for v, _ in parts]), torch.cat([w for _, w in parts])

        losses = {name: weighted_mean(*joined(parts)) for name, parts in self.terms.items()}
        figures = {name: value.detach() for name, value in losses.items()}
        for name, parts in self.seen.items():
            values, weights = joined(parts)
            figures[name] = (values * weights).sum() / weights.sum()  # not a number where there was nothing to see
        return sum(losses.values()), figures


def step_losses(model: Sam2Model, head: ForegroundHead | None, clips: PackedClips, step: Step,
                knobs: Knobs) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of a batch of clips of ``step.frames`` frames, and figures to log (0-dimensional tensors).

    ``head``: None leaves the auxiliary foreground loss out.
    """
    count, frames, size = clips.masks.shape[:3]
    encoded = model.encode_image(normalise(clips.frames.flatten(0, 1)))
    visibility = object_visibility(clips.masks)  # (N, T, MAX_OBJECTS)
    figures: dict[str, Tensor] = {}
    loss, seen = _image_losses(model, encoded, clips.masks.flatten(0, 1), visibility.flatten(0, 1), step, knobs)
    figures |= {f'image_{name}': value for name, value in seen.items()}
    if head is not None:
        foreground = head.loss(encoded, clips.masks.flatten(0, 1))
        figures['foreground'] = foreground.detach()
        loss = loss + knobs.foreground * foreground
    if frames > 1:
        levels = ImageFeatures(*(level.unflatten(0, (count, frames)) for level in encoded))
        video, seen = _video_losses(model, levels, clips.masks, visibility, step, knobs)
        figures |= {f'video_{name}': value for name, value in seen.items()}
        loss = loss + video
    figures['loss'] = loss.detach()
    return loss, figures


def _choose_objects(eligible: Tensor, favoured: Tensor, objects: int) -> tuple[Tensor, Tensor]:
    """``objects`` of each row's eligible ones (bool (B, K)), favoured ones more often: numbers and validity."""
    order = torch.rand_like(eligible, dtype=torch.float32) + 0.5 * favoured + 10 * eligible
    best, numbers = order.topk(objects, dim=1)
    numbers = torch.where(best > 10, numbers, numbers[:, :1])  # too few: the first again, prompted another way
    return numbers, (best[:, :1] > 10).expand_as(numbers)


def _repeated(x: Tensor, times: int) -> Tensor:
    """Every row ``times`` times: what the objects of one clip share."""
    return x[:, None].expand(-1, times, *x.shape[1:]).flatten(0, 1)


def _rows(features: ImageFeatures, index: Tensor | slice) -> ImageFeatures:
    if isinstance(index, slice):
        return ImageFeatures(*(level[index] for level in features))
    return ImageFeatures(*(level.index_select(0, index) for level in features))


def _image_losses(model: Sam2Model, encoded: ImageFeatures, masks: Tensor, visibility: Tensor, step: Step,
                  knobs: Knobs) -> tuple[Tensor, dict[str, Tensor]]:
    """Single images: boxes, clicks, and clicks that correct."""
    numbers, valid = _choose_objects(visibility, torch.zeros_like(visibility), step.image_objects)
    numbers, weight = numbers.flatten(), valid.flatten().float()
    image_of_row = torch.arange(len(masks), device=masks.device).repeat_interleave(step.image_objects)
    tally = _Tally(knobs.balance)
    for kind, run in shares(len(numbers), _IMAGE_PROMPTS):
        if run.start == run.stop:
            continue
        rows = image_of_row[run]
        truth = object_mask(masks[rows], numbers[run])
        targets, here = cell_targets(truth), valid.flatten()[run]
        image = _rows(encoded, rows)
        features = model.without_memory(image)

        def decode(name: str, points: Tensor, labels: Tensor, previous: Tensor | None, multimask: bool,
                   features=features, image=image, targets=targets, here=here, run=run) -> Tensor:
            decoded = model.decode_masks(features, image, points, labels, previous, multimask)
            tally.add(name, decoded, targets, here, weight[run],
                      ALL_MASKS_CLICK if points.shape[1] == 1 else ALL_MASKS)
            best = decoded.iou.argmax(dim=1)
            return decoded.logits[torch.arange(len(best), device=best.device), best].detach()

        if kind.startswith('box'):
            points, labels = prompt_sampling.boxes(truth)
            logits = decode('box', points, labels, None, kind == 'box_multimask')
        else:
            points, labels = prompt_sampling.clicks(truth)
            logits = decode('click', points, labels, None, True)
        if kind == 'refined':
            for _ in range(2):
                more, kinds = prompt_sampling.corrections(_at_image_size(logits, truth.shape[-1]), truth)
                points, labels = torch.cat((points, more), dim=1), torch.cat((labels, kinds), dim=1)
                previous = logits.clamp(-MAX_PROMPT_LOGIT, MAX_PROMPT_LOGIT)[:, None]
                logits = decode('refined', points, labels, previous, False)
    return tally.result()


def _at_image_size(logits_bhw: Tensor, size: int) -> Tensor:
    return F.interpolate(logits_bhw[:, None], size=(size, size), mode='bilinear')[:, 0] > 0


def correction_plan(frames: int, rows: int) -> dict[int, list[tuple[str, slice]]]:
    """Which rows are corrected at which frame, and how: every eighth row each time, half of the rows never."""
    if frames < 4:
        return {}
    wanted = [(frames // 4, 'click', 0), (frames // 2, 'click', 1), (frames // 2, 'clicks', 2), (frames - 2, 'box', 3)]
    plan: dict[int, list[tuple[str, slice]]] = {}
    for frame, kind, first in wanted:
        if first < rows:
            plan.setdefault(frame, []).append((kind, slice(first, rows, 8)))
    return plan


def _video_losses(model: Sam2Model, levels: ImageFeatures, masks: Tensor, visibility: Tensor, step: Step,
                  knobs: Knobs) -> tuple[Tensor, dict[str, Tensor]]:
    """Clips: a prompt in the first frame, then the model's own memory; some rows are corrected on the way."""
    device = masks.device
    frames = masks.shape[1]
    first = visibility[:, 0]
    numbers, valid = _choose_objects(first, first & ~visibility.all(dim=1), step.objects)
    numbers, weight = numbers.flatten(), valid.flatten().float()
    rows = len(numbers)
    plan = correction_plan(frames, rows)
    tally = _Tally(knobs.balance)
    memory = _RowMemory(model, rows, plan)
    by_frame = list(zip(*(level.unbind(1) for level in levels), strict=True))  # unbind: one gradient for all frames
    for t in range(frames):
        image = ImageFeatures(*(_repeated(level, step.objects) for level in by_frame[t]))
        truth = object_mask(_repeated(masks[:, t], step.objects), numbers)
        targets, visible = cell_targets(truth), truth.flatten(1).any(dim=1)
        if t == 0:
            chosen = _first_prompts(model, image, truth, targets, visible, weight, tally)
        else:
            features = model.attend_memory(image, memory.read(t))
            decoded = model.decode_masks(features, image, multimask=True, unprompted=True)
            tally.add('tracked', decoded, targets, visible, weight, ALL_MASKS)
            told = torch.rand(rows, device=device) < knobs.true_presence
            score = torch.where(told, visible.float() * MASK_SCALE + MASK_BIAS, decoded.object_score)
            chosen = _choose(model, decoded._replace(object_score=score))
            for kind, run in plan.get(t, ()):
                chosen = _corrected(model, kind, run, chosen, features, image, truth, targets, visible, weight, tally)
        if t == frames - 1:
            break
        shown = torch.rand(rows, device=device) < knobs.true_masks
        logits = torch.where(shown[:, None, None], targets * MASK_SCALE + MASK_BIAS, chosen.logits)
        memory.write(t, image, chosen._replace(logits=logits))
    return tally.result()


def _first_prompts(model: Sam2Model, image: ImageFeatures, truth: Tensor, targets: Tensor, visible: Tensor,
                   weight: Tensor, tally: _Tally) -> ObjectMasks:
    parts = []
    for kind, run in shares(len(truth), _FIRST_PROMPTS):
        if run.start == run.stop:
            continue
        here = _rows(image, run)
        if kind == 'mask':
            parts.append(model.adopt_masks(here, truth[run, None].float()))
            continue
        if kind == 'box':
            points, labels = prompt_sampling.boxes(truth[run])
        else:
            points, labels = prompt_sampling.clicks(truth[run])
            if kind == 'clicks':
                more, kinds = prompt_sampling.clicks(truth[run])
                points, labels = torch.cat((points, more), dim=1), torch.cat((labels, kinds), dim=1)
        decoded = model.decode_masks(model.without_memory(here), here, points, labels, None,
                                     multimask=points.shape[1] <= 1)
        tally.add(kind, decoded, targets[run], visible[run], weight[run],
                  ALL_MASKS_CLICK if kind == 'click' else ALL_MASKS)
        parts.append(_choose(model, decoded))
    return ObjectMasks(*(torch.cat(values) for values in zip(*parts, strict=True)))


def _choose(model: Sam2Model, decoded: DecodedMasks) -> ObjectMasks:
    """What goes into memory. Without a way back for gradients: over many frames they would grow without bound."""
    return model.choose_masks(decoded._replace(logits=decoded.logits.detach(), tokens=decoded.tokens.detach()))


def _corrected(model: Sam2Model, kind: str, run: slice, chosen: ObjectMasks, features: Tensor, image: ImageFeatures,
               truth: Tensor, targets: Tensor, visible: Tensor, weight: Tensor, tally: _Tally) -> ObjectMasks:
    """``chosen`` with the rows of ``run`` decoded again, as ``StreamTracker`` does for a known object's prompt."""
    logits = chosen.logits[run]
    if kind == 'box':
        points, labels = prompt_sampling.boxes(truth[run])
    else:
        predicted = _at_image_size(logits, truth.shape[-1])
        points, labels = prompt_sampling.corrections(predicted, truth[run])
        if kind == 'clicks':
            more, kinds = prompt_sampling.corrections(predicted, truth[run])
            points, labels = torch.cat((points, more), dim=1), torch.cat((labels, kinds), dim=1)
    previous = logits.clamp(-MAX_PROMPT_LOGIT, MAX_PROMPT_LOGIT)[:, None]
    decoded = model.decode_masks(features[run], _rows(image, run), points, labels, previous,
                                 multimask=points.shape[1] <= 1)
    tally.add('corrected', decoded, targets[run], visible[run], weight[run] * visible[run], ALL_MASKS)
    better = _choose(model, decoded)
    index = torch.arange(len(truth), device=truth.device)[run]
    return ObjectMasks(*(old.index_copy(0, index, new.to(old.dtype)) for old, new in zip(chosen, better, strict=True)))


class _RowMemory:
    """The memories of all rows, read as ``MemoryBank`` reads them. Where a row would have more frames than the others,
    its oldest unprompted one is left out, so that rows stay equally long."""

    def __init__(self, model: Sam2Model, rows: int, plan: dict[int, list[tuple[str, slice]]]) -> None:
        self.model, self.rows = model, rows
        self.device = model.device
        self.conditioning = {0: torch.ones(rows, dtype=torch.bool, device=self.device)}
        for frame, runs in plan.items():
            flags = torch.zeros(rows, dtype=torch.bool, device=self.device)
            for _, run in runs:
                flags[run] = True
            self.conditioning[frame] = flags
        self.frames: list[Tensor] = []
        self.pointers: list[Tensor] = []
        # as if the first prompt had been given long ago, for half of the rows
        long_ago = torch.rand(rows, device=self.device) < 0.5
        self.first_age = long_ago * torch.rand(rows, device=self.device) * model.config.max_pointer_distance * 1.2

    def write(self, t: int, image: ImageFeatures, masks: ObjectMasks) -> None:
        self.frames.append(self.model.encode_memory(image, masks, self._flags(t)))
        self.pointers.append(masks.pointers)

    def _flags(self, t: int) -> Tensor:
        none = torch.zeros(self.rows, dtype=torch.bool, device=self.device)
        return self.conditioning.get(t, none)

    def read(self, t: int) -> Memory:
        config = self.model.config
        flags = torch.stack([self._flags(i) for i in range(t)], dim=1)  # (rows, t)
        age = (t - torch.arange(t, device=self.device)).expand(self.rows, t)
        frames, kept = self._newest(torch.stack(self.frames, dim=1), flags, age, config.memory_frames)
        slots = torch.where(flags.gather(1, kept), config.memory_frames - 1,
                            (age.gather(1, kept) - 1).clamp(max=config.memory_frames - 2))
        pointers, kept = self._newest(torch.stack(self.pointers, dim=1), flags, age, config.object_pointers)
        ages = age.gather(1, kept) + (kept == 0) * self.first_age[:, None]
        return Memory(frames, slots, pointers, ages.clamp(max=config.max_pointer_distance))

    def _newest(self, values: Tensor, flags: Tensor, age: Tensor, limit: int) -> tuple[Tensor, Tensor]:
        """Of each row's frames the prompted ones and the newest others, ``limit`` in all, and their numbers."""
        count = values.shape[1]
        if count <= limit:
            return values, torch.arange(count, device=self.device).expand(self.rows, count)
        kept = (flags * 1000 - age).topk(limit, dim=1).indices
        index = kept.view(*kept.shape, *[1] * (values.ndim - 2)).expand(-1, -1, *values.shape[2:])
        return values.gather(1, index), kept
