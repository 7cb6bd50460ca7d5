"""Stages to export, with a description of each input and output."""
from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from sam2_core.config import Sam2Config
from sam2_core.export.graph_model import GraphModel
from sam2_core.tensors import ImageFeatures, Memory, ObjectMasks


@dataclass(frozen=True)
class Sizes:
    """Sizes that are fixed in the graphs, besides the model and its image size.

    Attributes:
        objects: Numbers of objects per run; there are graphs for each number.
        memory_frames: Memory frames to attend to, prompted and recent.
        pointers: Object pointers to attend to.
        points: Points of one prompt; a box counts as two.

    Raises:
        ValueError: A number is not a positive integer, or ``objects`` is empty.
    """

    objects: tuple[int, ...] = (1,)
    memory_frames: int = 7
    pointers: int = 16
    points: int = 8

    def __post_init__(self) -> None:
        if not self.objects:
            raise ValueError('objects (): give at least one number of objects')
        for name, numbers in (('objects', self.objects), ('memory_frames', [self.memory_frames]),
                              ('pointers', [self.pointers]), ('points', [self.points])):
            for number in numbers:
                if not isinstance(number, int) or number < 1:
                    raise ValueError(f'{name} {number!r}: must be a whole number, 1 or more')


class Port(NamedTuple):
    """Input or output of a graph."""

    name: str
    shape: tuple[int, ...]
    dtype: str  # float32 or int32
    meaning: str


@dataclass(frozen=True)
class Stage:
    """Function of tensors that is exported as one graph."""

    name: str  # file name without .onnx
    kind: str  # encode_image, attend_memory, decode_tracked, decode_prompted, adopt_mask or encode_memory
    objects: int
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]

    def run(self, model: GraphModel, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Return the outputs for the inputs, both in the order of the ports."""
        return _FUNCTIONS[self.kind](model, *inputs)


def stages(config: Sam2Config, sizes: Sizes) -> list[Stage]:
    """Return all stages of a model of this configuration."""
    ports = _Ports(config, sizes)
    found = [Stage('encode_image', 'encode_image', 1, *ports.encode_image())]
    for objects in sorted(set(sizes.objects)):
        for kind in ('attend_memory', 'decode_tracked', 'encode_memory'):
            found.append(Stage(f'{kind}_{objects}', kind, objects, *getattr(ports, kind)(objects)))
    found += [Stage(kind, kind, 1, *getattr(ports, kind)()) for kind in ('decode_prompted', 'adopt_mask')]
    return found


Inputs = tuple[tuple[Port, ...], tuple[Port, ...]]


class _Ports:
    """Inputs and outputs of all kinds of stages; each method with the name of a kind returns those of that kind."""

    def __init__(self, config: Sam2Config, sizes: Sizes) -> None:
        self.config, self.sizes = config, sizes
        size, dim, meaning = config.image_size, config.d_model, 'image features from encode_image'
        self.tokens = config.memory_tokens
        self.stride16 = Port('stride16', (1, dim, size // 16, size // 16), 'float32', meaning)
        self.stride8 = Port('stride8', (1, dim // 4, size // 8, size // 8), 'float32', meaning)
        self.stride4 = Port('stride4', (1, dim // 8, size // 4, size // 4), 'float32', meaning)

    def features(self, objects: int, meaning: str, name: str = 'features') -> Port:
        return Port(name, (objects, *self.stride16.shape[1:]), 'float32', meaning)

    def masks(self, objects: int) -> tuple[Port, ...]:
        side = self.config.image_size // 4
        return (Port('logits', (objects, side, side), 'float32',
                     'mask: > 0 on the object, after resizing (bilinear) to the image; -1024 if it is not visible'),
                Port('iou', (objects,), 'float32', 'predicted IoU of the mask, 0..1'),
                Port('object_score', (objects,), 'float32', 'logit; > 0: the object is visible'),
                Port('pointers', (objects, self.config.d_model), 'float32', 'object pointers for the memory'))

    def encode_image(self) -> Inputs:
        size = self.config.image_size
        image = Port('image', (1, 3, size, size), 'float32', 'RGB, stretched to the square and normalised')
        return (image,), (self.stride16, self.stride8, self.stride4, self.features(
            1, 'features for decoding a new object', name='without_memory'))

    def attend_memory(self, objects: int) -> Inputs:
        frames, pointers, config = self.sizes.memory_frames, self.sizes.pointers, self.config
        return (self.stride16,
                Port('frames', (objects, frames, self.tokens, config.memory_dim), 'float32',
                     'outputs of encode_memory; empty rows must be finite'),
                Port('time_slots', (objects, frames), 'int32',
                     f'{config.memory_frames - 1}: prompted frame; otherwise its age in frames minus 1; -1: empty row'),
                Port('pointers', (objects, pointers, config.d_model), 'float32',
                     'object pointers of prompted and recent frames; empty rows must be finite'),
                Port('pointer_ages', (objects, pointers), 'int32',
                     f'age in frames, at most {config.max_pointer_distance}; -1: empty row')), (
            self.features(objects, 'features of the image conditioned on the memory of each object'),)

    def decode_tracked(self, objects: int) -> Inputs:
        return (self.features(objects, 'output of attend_memory'), self.stride8, self.stride4), self.masks(objects)

    def decode_prompted(self) -> Inputs:
        points, side = self.sizes.points, self.config.image_size // 4
        return (self.features(1, 'new object: without_memory from encode_image; known object: its features'),
                self.stride8, self.stride4,
                Port('points', (1, points, 2), 'float32', 'x, y in pixels of the square image'),
                Port('labels', (1, points), 'int32', '1: on the object, 0: not on it, 2 and 3: top left and bottom '
                     'right corner of a box, before the points; -1: no point'),
                Port('previous_logits', (1, 1, side, side), 'float32',
                     'known object: its logits from decode_tracked in this image'),
                Port('use_previous', (1,), 'int32', '1: use previous_logits, 0: ignore them')), self.masks(1)

    def adopt_mask(self) -> Inputs:
        size = self.config.image_size
        mask = Port('mask', (1, 1, size, size), 'float32', 'mask prompt, 0 and 1, stretched as the image')
        logits, _, object_score, pointers = self.masks(1)  # the predicted IoU would be 1
        return (self.stride16, self.stride8, self.stride4, mask), (logits, object_score, pointers)

    def encode_memory(self, objects: int) -> Inputs:
        logits, _, object_score, _ = self.masks(objects)
        prompted = Port('prompted', (objects,), 'int32', '1: prompted in this image, 0: tracked')
        memory = Port('memory', (objects, self.tokens, self.config.memory_dim), 'float32',
                      'memory frame of this image for each object')
        return (self.stride16, logits, object_score, prompted), (memory,)


def _image(stride16: Tensor | None, stride8: Tensor | None = None, stride4: Tensor | None = None) -> ImageFeatures:
    return ImageFeatures._make((stride16, stride8, stride4))  # each stage reads some of them


def _encode_image(model: GraphModel, image: Tensor) -> tuple[Tensor, ...]:
    features = model.encode_image(image)
    return (*features, model.without_memory(features))


def _attend_memory(model: GraphModel, stride16: Tensor, frames: Tensor, time_slots: Tensor, pointers: Tensor,
                   pointer_ages: Tensor) -> tuple[Tensor, ...]:
    return (model.attend_memory(_image(stride16), Memory(frames, time_slots.long(), pointers, pointer_ages)),)


def _decode_tracked(model: GraphModel, features: Tensor, stride8: Tensor, stride4: Tensor) -> tuple[Tensor, ...]:
    return model.choose_masks(model.decode_masks(features, _image(None, stride8, stride4), multimask=True,
                                                 unprompted=True))


def _decode_prompted(model: GraphModel, features: Tensor, stride8: Tensor, stride4: Tensor, points: Tensor,
                     labels: Tensor, previous_logits: Tensor, use_previous: Tensor) -> tuple[Tensor, ...]:
    return model.decode_prompted(features, _image(None, stride8, stride4), points, labels.long(), previous_logits,
                                 use_previous != 0)


def _adopt_mask(model: GraphModel, stride16: Tensor, stride8: Tensor, stride4: Tensor,
                mask: Tensor) -> tuple[Tensor, ...]:
    masks = model.adopt_masks(_image(stride16, stride8, stride4), mask)
    return masks.logits, masks.object_score, masks.pointers


def _encode_memory(model: GraphModel, stride16: Tensor, logits: Tensor, object_score: Tensor,
                   prompted: Tensor) -> tuple[Tensor, ...]:
    masks = ObjectMasks(logits, object_score, object_score, object_score)  # iou and pointers are unused
    return (model.encode_memory(_image(stride16), masks, prompted != 0),)


_FUNCTIONS: dict[str, Callable[..., tuple[Tensor, ...]]] = {
    'encode_image': _encode_image, 'attend_memory': _attend_memory, 'decode_tracked': _decode_tracked,
    'decode_prompted': _decode_prompted, 'adopt_mask': _adopt_mask, 'encode_memory': _encode_memory}


def placeholders(stage: Stage) -> tuple[Tensor, ...]:
    """Return inputs with the shapes and types of a stage, for tracing."""
    return tuple(torch.zeros(port.shape, dtype=getattr(torch, port.dtype)) for port in stage.inputs)
