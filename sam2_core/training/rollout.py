"""Forward pass of a training step, from clips to losses, through the functions that tracker and segmenter call.

A row is one object of a clip or image. How a row is prompted, and when it is corrected, follows from its number alone,
so that every step runs the same kernels on the same shapes and can be replayed as one CUDA graph. All randomness is in
the data and in torch's generator.
"""
from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sam2_core.images import IMAGE_MEAN, IMAGE_STD
from sam2_core.mask_prompts import MASK_BIAS, MASK_SCALE
from sam2_core.model import Sam2Model
from sam2_core.nn.mask_decoder import DecodedMasks
from sam2_core.segmenter import MAX_PROMPT_LOGIT
from sam2_core.tensors import ImageFeatures, ObjectMasks
from sam2_core.training import prompt_sampling
from sam2_core.training.clips import MAX_OBJECTS, PackedClips
from sam2_core.training.losses import mask_iou, mask_losses, object_score_loss, weighted_mean
from sam2_core.training.row_memory import CorrectionPlan, RowMemory

# Share of the mask loss that is the mean of all masks; one click is ambiguous, so its masks may differ more.
ALL_MASKS_CLICK, ALL_MASKS = 0.05, 0.2
# Kinds of prompts with their share of the rows, in the first frame of a clip and in single images.
_FIRST_PROMPTS = (('box', 0.45), ('click', 0.2), ('clicks', 0.1), ('mask', 0.25))
_IMAGE_PROMPTS = (('box', 0.35), ('box_multimask', 0.1), ('click', 0.25), ('refined', 0.3))


@dataclass(frozen=True)
class Step:
    """Shape of a training step."""

    frames: int  # per clip; 1: images only
    objects: int = 3  # tracked per clip
    image_objects: int = 1  # prompted per image


@dataclass(frozen=True)
class Knobs:
    """Values that change during training, as tensors without a dimension, so that a captured step reads new values."""

    balance: Tensor  # weight of the balanced loss
    true_masks: Tensor  # probability that a memory frame is written from the true mask
    true_presence: Tensor  # probability that it is written from the true visibility
    foreground: Tensor  # weight of the auxiliary foreground loss

    @classmethod
    def on(cls, device: torch.device) -> Knobs:
        """Return knobs on a device, all 0."""
        return cls(*(torch.zeros((), device=device) for _ in range(4)))


def may_lack(name: str) -> bool:
    """Return whether a figure is a share of visible or hidden objects, which is NaN if there were none."""
    return name.endswith(('_j', '_right'))


def mean_figures(parts: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Average the figures of several batches. A loss that is not finite makes its average so."""
    together = {name: torch.stack([part[name] for part in parts]) for name in parts[0]}
    return {name: values.nanmean() if may_lack(name) else values.mean() for name, values in together.items()}


class ForegroundHead(nn.Module):
    """Auxiliary head that classifies pixels as object and as edge. It only helps a new model to start."""

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.heads = nn.ModuleList(nn.Conv2d(c, 2, kernel_size=1) for c in (d_model, d_model // 4, d_model // 8))

    def loss(self, features: ImageFeatures, masks: Tensor) -> Tensor:
        """Return the loss for packed masks uint8 (B, S, S), bit k for object k."""
        on_object = (masks > 0).float()[:, None]
        edge = torch.zeros_like(on_object)
        edge[:, :, 1:] += (masks[:, 1:] != masks[:, :-1])[:, None]
        edge[..., 1:] += (masks[..., 1:] != masks[..., :-1])[:, None]
        target = torch.cat((on_object, edge.clamp(max=1)), dim=1)
        losses = [F.binary_cross_entropy_with_logits(head(level).float(),
                                                     F.adaptive_avg_pool2d(target, level.shape[-1]))
                  for head, level in zip(self.heads, features, strict=True)]
        return functools.reduce(torch.add, losses)


def normalise(frames: Tensor) -> Tensor:
    """Convert frames uint8 (B, S, S, 3) to the model's input, float32 (B, 3, S, S), as ``images.to_model`` does."""
    pixels = frames.permute(0, 3, 1, 2).float() / 255
    # The constants stay numbers: a tensor of them would be copied from the host, which a CUDA graph cannot do.
    return torch.stack([(pixels[:, c] - IMAGE_MEAN[c]) / IMAGE_STD[c] for c in range(3)], dim=1)


def object_visibility(masks: Tensor) -> Tensor:
    """Return whether each object is visible in packed masks uint8 (..., S, S), as bool (..., MAX_OBJECTS)."""
    return torch.stack([((masks >> k) & 1).flatten(-2).any(dim=-1) for k in range(MAX_OBJECTS)], dim=-1)


def object_mask(masks: Tensor, objects: Tensor) -> Tensor:
    """Return one object's mask of each row, bool (B, S, S), from packed masks uint8 (B, S, S) and numbers (B,)."""
    return ((masks >> objects.to(torch.uint8)[:, None, None]) & 1).bool()


def cell_targets(masks_bhw: Tensor) -> Tensor:
    """Return the share of each decoder cell that exact masks bool (B, S, S) cover, float32 (B, S / 4, S / 4)."""
    return F.avg_pool2d(masks_bhw[:, None].float(), 4)[:, 0]


def shares(rows: int, parts: tuple[tuple[str, float], ...]) -> list[tuple[str, slice]]:
    """Split ``rows`` rows into named runs of given shares. No row is lost; a run may be empty."""
    runs, start, reached = [], 0, 0.0
    for name, share in parts:
        reached += share
        stop = round(rows * reached)
        runs.append((name, slice(start, stop)))
        start = stop
    return runs


class _Tally:
    """Losses and figures of many decodings."""

    def __init__(self, balance: Tensor) -> None:
        self.balance = balance
        self.terms: dict[str, list[tuple[Tensor, Tensor]]] = {}
        self.seen: dict[str, list[tuple[Tensor, Tensor]]] = {}

    def add(self, name: str, decoded: DecodedMasks, targets: Tensor, visible: Tensor, weight: Tensor,
            all_masks: float) -> None:
        """Add B rows. visible: bool (B,); weight: (B,), 0 ignores a row."""
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
        """Return the sum of the losses, and all figures to log."""
        def joined(parts: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
            return torch.cat([v for v, _ in parts]), torch.cat([w for _, w in parts])

        losses = {name: weighted_mean(*joined(parts)) for name, parts in self.terms.items()}
        figures = {name: value.detach() for name, value in losses.items()}
        for name, parts in self.seen.items():
            values, weights = joined(parts)
            figures[name] = (values * weights).sum() / weights.sum()  # NaN without any such row
        return functools.reduce(torch.add, losses.values()), figures


def step_losses(model: Sam2Model, head: ForegroundHead | None, clips: PackedClips, step: Step,
                knobs: Knobs) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the loss of a batch of clips of ``step.frames`` frames, and figures to log (0-dimensional tensors).

    head: head of the auxiliary foreground loss, or None for training without.
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
    """Draw ``objects`` of the eligible ones in each row of bool (B, K), favoured ones more often.

    Return their numbers and whether each is valid, both (B, objects).
    """
    order = torch.rand_like(eligible, dtype=torch.float32) + 0.5 * favoured + 10 * eligible
    best, numbers = order.topk(objects, dim=1)
    numbers = torch.where(best > 10, numbers, numbers[:, :1])  # of too few, the first again, with another prompt
    return numbers, (best[:, :1] > 10).expand_as(numbers)


def _repeated(x: Tensor, times: int) -> Tensor:
    """Repeat every row ``times`` times, for the objects of one clip."""
    return x[:, None].expand(-1, times, *x.shape[1:]).flatten(0, 1)


def _rows(features: ImageFeatures, index: Tensor | slice) -> ImageFeatures:
    if isinstance(index, slice):
        return ImageFeatures(*(level[index] for level in features))
    return ImageFeatures(*(level.index_select(0, index) for level in features))


def _image_losses(model: Sam2Model, encoded: ImageFeatures, masks: Tensor, visibility: Tensor, step: Step,
                  knobs: Knobs) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the loss and the figures of single images: boxes, clicks, and correcting clicks."""
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
                   features: Tensor = features, image: ImageFeatures = image, targets: Tensor = targets,
                   here: Tensor = here, run: slice = run) -> Tensor:
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


def correction_plan(frames: int, rows: int) -> CorrectionPlan:
    """Return for each frame with corrections how which rows are corrected.

    Each kind of correction takes every eighth row; half of the rows are never corrected.
    """
    if frames < 4:
        return {}
    wanted = [(frames // 4, 'click', 0), (frames // 2, 'click', 1), (frames // 2, 'clicks', 2), (frames - 2, 'box', 3)]
    plan: CorrectionPlan = {}
    for frame, kind, first in wanted:
        if first < rows:
            plan.setdefault(frame, []).append((kind, slice(first, rows, 8)))
    return plan


def _video_losses(model: Sam2Model, levels: ImageFeatures, masks: Tensor, visibility: Tensor, step: Step,
                  knobs: Knobs) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the loss and the figures of clips.

    Each row is prompted in the first frame and tracked on the model's own memory; some are corrected on the way.
    """
    device = masks.device
    frames = masks.shape[1]
    first = visibility[:, 0]
    numbers, valid = _choose_objects(first, first & ~visibility.all(dim=1), step.objects)
    numbers, weight = numbers.flatten(), valid.flatten().float()
    rows = len(numbers)
    plan = correction_plan(frames, rows)
    tally = _Tally(knobs.balance)
    memory = RowMemory(model, rows, plan)
    by_frame = list(zip(*(level.unbind(1) for level in levels), strict=True))  # one gradient for all frames
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
            given = torch.rand(rows, device=device) < knobs.true_presence
            score = torch.where(given, visible.float() * MASK_SCALE + MASK_BIAS, decoded.object_score)
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
    """Prompt every row in the first frame and return the masks for its memory."""
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
    """Return the masks for the memory, without gradients, which would grow without bound over many frames."""
    return model.choose_masks(decoded._replace(logits=decoded.logits.detach(), tokens=decoded.tokens.detach()))


def _corrected(model: Sam2Model, kind: str, run: slice, chosen: ObjectMasks, features: Tensor, image: ImageFeatures,
               truth: Tensor, targets: Tensor, visible: Tensor, weight: Tensor, tally: _Tally) -> ObjectMasks:
    """Return ``chosen`` with the rows of ``run`` corrected, as ``StreamTracker`` corrects a known object."""
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
