"""Comparison of exported graphs in onnxruntime with the model in PyTorch, on the CPU."""
from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from sam2_core.export.graph_model import EMPTY, copy_weights
from sam2_core.export.stages import Stage
from sam2_core.export.write import need
from sam2_core.model import Sam2Model
from sam2_core.nn.prompt_encoder import NOT_A_POINT
from sam2_core.segmenter import MAX_PROMPT_LOGIT
from sam2_core.tensors import ImageFeatures, Memory, ObjectMasks

TOLERANCE = 1e-3  # share of an output's largest value, at least 1; another order of float32 sums stays far below


class OutputDifference(NamedTuple):
    """Difference between an output of a graph and that of the model."""

    stage: str
    output: str
    largest: float  # largest absolute difference
    scale: float  # largest absolute value of the model's output

    @property
    def small(self) -> bool:
        """True if rounding explains the difference."""
        return self.largest <= TOLERANCE * max(1.0, self.scale)


def verify(model: Sam2Model, folder: str | Path, every: Sequence[Stage], seed: int = 0) -> Iterator[OutputDifference]:
    """Run each graph of a folder with onnxruntime, and the model, on the same random inputs.

    Raise ExportError if onnxruntime is missing.
    """
    need(['onnxruntime'])
    import onnxruntime

    def run(stage: Stage, inputs: dict[str, Tensor]) -> list[Tensor]:
        # One session at a time, because large graphs take gigabytes.
        session = onnxruntime.InferenceSession(Path(folder) / f'{stage.name}.onnx', providers=['CPUExecutionProvider'])
        found = session.run([port.name for port in stage.outputs], {name: t.numpy() for name, t in inputs.items()})
        return [torch.from_numpy(output) for output in found]

    return differences(model, every, run, seed)


def differences(model: Sam2Model, every: Sequence[Stage], run: Callable[[Stage, dict[str, Tensor]], Sequence[Tensor]],
                seed: int = 0) -> Iterator[OutputDifference]:
    """Compare a function that runs stages with the model, float32 on the CPU, on random inputs.

    Some rows of memory and some points are empty; the model gets only the others.
    """
    source, model = model, Sam2Model(model.config, model.name)
    copy_weights(source, model)
    model.memory_dtype = torch.float32
    with torch.inference_mode():
        sample = _Sample(model, seed)
    for stage in every:
        with torch.inference_mode():
            inputs = sample.inputs(stage)
            expected = _EXPECTED[stage.kind](model, inputs)
        for port, ours, theirs in zip(stage.outputs, run(stage, inputs), expected, strict=True):
            yield OutputDifference(stage.name, port.name, float((ours - theirs).abs().max()), float(theirs.abs().max()))


class _Sample:
    """Inputs by name: features of a random image, and random numbers of realistic size."""

    def __init__(self, model: Sam2Model, seed: int) -> None:
        self.model = model
        self.random = torch.Generator().manual_seed(seed)
        image = torch.randn(1, 3, model.image_size, model.image_size, generator=self.random)
        features = model.encode_image(image)
        self.known = {'image': image, 'stride16': features.stride16_bchw, 'stride8': features.stride8_bchw,
                      'stride4': features.stride4_bchw, 'features': model.without_memory(features)}

    def inputs(self, stage: Stage) -> dict[str, Tensor]:
        return {port.name: self._input(port.name, port.shape).to(getattr(torch, port.dtype)).contiguous()
                for port in stage.inputs}

    def _input(self, name: str, shape: tuple[int, ...]) -> Tensor:
        if name == 'features':
            return self.known[name] + 0.1 * torch.randn(shape, generator=self.random)
        if name in self.known:
            return self.known[name]
        if name in ('time_slots', 'pointer_ages'):
            return self._rows(name, *shape)
        if name == 'points':
            return torch.rand(shape, generator=self.random) * self.model.image_size
        if name == 'labels':
            return torch.tensor([2, 3, 1, 0][:shape[1]] + [NOT_A_POINT] * (shape[1] - 4))[None]
        if name in ('prompted', 'use_previous'):
            return torch.arange(shape[0]) % 2 == 0
        if name == 'mask':
            return (self._smooth(shape) > 0).float()
        if name in ('logits', 'previous_logits'):
            return 10 * self._smooth(shape)
        if name == 'object_score':
            return torch.arange(shape[0]) % 2 - 0.5
        return torch.randn(shape, generator=self.random)

    def _rows(self, name: str, objects: int, room: int) -> Tensor:
        """Return rows of a prompted frame and the most recent frames; each object has two rows less than the last."""
        config = self.model.config
        if name == 'time_slots':
            prompted, recent, highest = config.memory_frames - 1, range(room - 1), config.memory_frames - 1
        else:
            prompted, recent, highest = 2 * room, range(1, room), config.max_pointer_distance
        rows = torch.tensor([prompted, *recent]).clamp(max=highest).repeat(objects, 1)
        for row in range(objects):
            rows[row, max(1, room - 2 * row):] = EMPTY
        return rows

    def _smooth(self, shape: tuple[int, ...]) -> Tensor:
        coarse = torch.randn(1, shape[0], shape[-2] // 16, shape[-1] // 16, generator=self.random)
        return F.interpolate(coarse, size=shape[-2:], mode='bilinear').view(shape)


def _features(inputs: dict[str, Tensor]) -> ImageFeatures:
    return ImageFeatures._make(inputs.get(name) for name in ('stride16', 'stride8', 'stride4'))


def _encode_image(model: Sam2Model, inputs: dict[str, Tensor]) -> Sequence[Tensor]:
    features = model.encode_image(inputs['image'])
    return (*features, model.without_memory(features))


def _attend_memory(model: Sam2Model, inputs: dict[str, Tensor]) -> Sequence[Tensor]:
    attended = []
    for frames, slots, pointers, ages in zip(*(inputs[name] for name in (
            'frames', 'time_slots', 'pointers', 'pointer_ages')), strict=True):
        frames, slots = frames[slots != EMPTY], slots[slots != EMPTY]
        pointers, ages = pointers[ages != EMPTY], ages[ages != EMPTY]
        attended.append(model.attend_memory(_features(inputs), Memory(*(t[None] for t in (
            frames, slots.long(), pointers, ages)))))
    return [torch.cat(attended)]


def _decode_tracked(model: Sam2Model, inputs: dict[str, Tensor]) -> Sequence[Tensor]:
    return model.choose_masks(model.decode_masks(inputs['features'], _features(inputs), multimask=True,
                                                 unprompted=True))


def _decode_prompted(model: Sam2Model, inputs: dict[str, Tensor]) -> Sequence[Tensor]:
    given = inputs['labels'][0] != NOT_A_POINT
    previous = inputs['previous_logits'].clamp(-MAX_PROMPT_LOGIT, MAX_PROMPT_LOGIT)
    return model.choose_masks(model.decode_masks(
        inputs['features'], _features(inputs), inputs['points'][:, given], inputs['labels'][:, given].long(),
        previous if inputs['use_previous'][0] else None, multimask=int(given.sum()) <= 1))


def _adopt_mask(model: Sam2Model, inputs: dict[str, Tensor]) -> Sequence[Tensor]:
    masks = model.adopt_masks(_features(inputs), inputs['mask'])
    return masks.logits, masks.object_score, masks.pointers


def _encode_memory(model: Sam2Model, inputs: dict[str, Tensor]) -> Sequence[Tensor]:
    logits, score = inputs['logits'], inputs['object_score']
    return [model.encode_memory(_features(inputs), ObjectMasks(logits, score, score, score),
                                inputs['prompted'].bool())]


_EXPECTED: dict[str, Callable[[Sam2Model, dict[str, Tensor]], Sequence[Tensor]]] = {
    'encode_image': _encode_image, 'attend_memory': _attend_memory, 'decode_tracked': _decode_tracked,
    'decode_prompted': _decode_prompted, 'adopt_mask': _adopt_mask, 'encode_memory': _encode_memory}
