"""Sam2Model in a form that exports to small static graphs of real numbers, with the same results."""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sam2_core.mask_prompts import MASK_BIAS, MASK_SCALE
from sam2_core.model import Sam2Model
from sam2_core.nn.attention import Attention
from sam2_core.nn.layers import is_observed
from sam2_core.nn.mask_decoder import MASK_TOKENS, DecodedMasks, MaskDecoder, TwoWayBlock
from sam2_core.nn.neck import Lateral
from sam2_core.nn.prompt_encoder import FOREGROUND, NOT_A_POINT
from sam2_core.segmenter import MAX_PROMPT_LOGIT
from sam2_core.tensors import ImageFeatures, Memory, ObjectMasks

HIDDEN = -10000.0  # added to a score, it makes the weight exactly 0; it fits into float16
OUTPUT_TOKENS = MASK_TOKENS + 2  # tokens before those of points: object score, predicted IoU and masks
EMPTY = -1  # time slot or age of an empty row of memory

Layer = TypeVar('Layer', nn.Linear, nn.Conv2d)


@dataclass
class KnownPoints:
    """Existence of the decoder's tokens, bool (B, M), shared by its attention layers; None means all exist."""

    exist: Tensor | None = None


def copy_weights(source: Sam2Model, target: Sam2Model) -> None:
    """Copy weights and pooling from ``source`` to ``target``, in float32 on the CPU.

    Raise ValueError if the source has an int8 encoder, adapters or hooks.
    """
    replaced = _first_replaced(source, target)
    if replaced is not None and isinstance(source.get_submodule(replaced), torch.ao.nn.quantized.dynamic.Linear):
        raise ValueError(f'{source.name} with an int8 encoder: load it without int8_encoder')
    if replaced is not None:
        raise ValueError(f'{source.name} with {replaced} replaced by {type(source.get_submodule(replaced)).__name__}: '
                         f'graphs hold published layers only; merge adapters into the weights first (merge_and_unload)')
    if observed := [name for name, module in source.named_modules() if is_observed(module)]:
        raise ValueError(f'{source.name} with hooks on {", ".join(observed[:3])}: graphs cannot run hooks; remove them')
    weights = source.state_dict()
    target.load_state_dict({name: value.float() for name, value in weights.items()})
    for ours, theirs in zip(target.memory_attention.cross_attentions, source.memory_attention.cross_attentions,
                            strict=True):
        ours.pooling = theirs.pooling
    target.eval().requires_grad_(False)


def _first_replaced(model: nn.Module, original: nn.Module) -> str | None:
    """Return the name of the first module of ``model`` with another class than in ``original``, or None."""
    expected = dict(original.named_modules())
    return next((name for name, module in model.named_modules()
                 if name not in expected or not issubclass(type(expected[name]), type(module))), None)


class GraphDecoder(MaskDecoder):
    """Mask decoder with a ``multimask`` per object."""

    def forward(self, features_bchw: Tensor, position_bchw: Tensor, prompt_tokens: Tensor, mask_features: Tensor,
                stride8_bchw: Tensor, stride4_bchw: Tensor, multimask: bool | Tensor) -> DecodedMasks:
        """Decode masks as ``MaskDecoder`` does; ``multimask`` may also be a tensor, bool (B,)."""
        if isinstance(multimask, bool):
            return super().forward(features_bchw, position_bchw, prompt_tokens, mask_features, stride8_bchw,
                                   stride4_bchw, multimask)
        logits, iou, tokens, object_score = self._all(
            features_bchw, position_bchw, prompt_tokens, mask_features, stride8_bchw, stride4_bchw)
        single_logits, single_iou = self._stable(logits, iou)  # it fills all three places, so that any choice is right
        several = multimask[:, None]
        return DecodedMasks(torch.where(several[..., None, None], logits[:, 1:], single_logits),
                            torch.where(several, iou[:, 1:], single_iou),
                            torch.where(several[..., None], tokens[:, 1:], tokens[:, :1]), object_score)


class GraphModel(Sam2Model):
    """Copy of a model, float32 on the CPU, to be traced with gradients enabled.

    Shapes are static; rows of memory and points may be empty, and do not change the results. Consecutive linear layers
    are fused, so that values of the memory are averaged in their own width before they are projected. Tensors that
    depend on no input are constants, and memory is not rounded to bfloat16.
    """

    memory_dtype = torch.float32
    shrink: Tensor

    def __init__(self, model: Sam2Model) -> None:
        super().__init__(model.config, model.name)
        self.sam_mask_decoder = GraphDecoder(model.config)
        copy_weights(model, self)
        self._points = KnownPoints()
        with torch.no_grad():
            self._make_constants()
            self._fuse()
        for attention in self.memory_attention.cross_attentions:
            _attend_to_existing(attention, KnownPoints())
        for block in self.sam_mask_decoder.transformer.layers:
            assert isinstance(block, TwoWayBlock)
            _attend_to_existing(block.self_attn, self._points)
            _attend_to_existing(block.cross_attn_image_to_token, self._points)

    def _make_constants(self) -> None:
        side, places = self.image_size // 4, self.sam_prompt_encoder.pe_layer
        self.image_encoder.trunk.hold_constants(self.image_size)
        _replace(places, 'grid', _constant(places.grid(self.grid, self.grid)))
        if self.config.pointer_time_codes:
            _replace(self, '_make_pointer_codes', _constant(self._make_pointer_codes()))
        lines = torch.eye(self.image_size)[None, None]  # resized, it is the matrix that resizes the lines of a mask
        shrink = F.interpolate(lines, size=(side, self.image_size), mode='bilinear', antialias=True)[0, 0]
        self.register_buffer('shrink', shrink, persistent=False)

    def _fuse(self) -> None:
        decoder, laterals = self.sam_mask_decoder, self.image_encoder.neck.convs
        for lateral, name in ((laterals[-1], 'conv_s0'), (laterals[-2], 'conv_s1')):
            assert isinstance(lateral, Lateral)
            lateral.conv = _fused(lateral.conv, getattr(decoder, name))
            decoder.add_module(name, nn.Identity())
        for attention in self.memory_attention.cross_attentions:  # exact, since the weights of one head sum to one
            attention.out_proj = _fused(attention.v_proj, attention.out_proj)
            attention.add_module('v_proj', nn.Identity())

    def mask_prompt_logits(self, masks_bchw: Tensor) -> Tensor:
        """Resize masks by matrix products, because few runtimes can resize with antialias."""
        return self.shrink @ (masks_bchw * MASK_SCALE + MASK_BIAS) @ self.shrink.T

    def attend_memory(self, features: ImageFeatures, memory: Memory) -> Tensor:
        """Condition an image on memories as ``Sam2Model`` does, ignoring rows whose slot or age is EMPTY."""
        frames_exist, pointers_exist = memory.time_slots != EMPTY, memory.pointer_ages != EMPTY
        return super().attend_memory(features, Memory(  # no clamp: TensorRT's parser does not clip integers
            memory.frames, torch.where(frames_exist, memory.time_slots, 0), memory.pointers,
            torch.where(pointers_exist, memory.pointer_ages, 0), frames_exist, pointers_exist))

    def decode_prompted(self, features_bchw: Tensor, image: ImageFeatures, points: Tensor, labels: Tensor,
                        previous_logits: Tensor, use_previous: Tensor) -> ObjectMasks:
        """Decode masks of B prompted objects as ``StreamTracker`` does.

        One point gives the best of three masks, several points give the single mask.

        Args:
            features_bchw: (B, d_model, h, w).
            image: One encoded image.
            points: (B, N, 2), in pixels of the square model input.
            labels: (B, N); points with the label NOT_A_POINT are ignored.
            previous_logits: (B, 1, S / 4, S / 4).
            use_previous: bool (B,), whether ``previous_logits`` are a prompt.
        """
        encoder, given = self.sam_prompt_encoder, labels != NOT_A_POINT
        # The last token is padding that exists. Labels are padded, since TensorRT's parser does not pad booleans.
        self._points.exist = F.pad(labels, (OUTPUT_TOKENS, 1), value=FOREGROUND) != NOT_A_POINT
        previous = encoder.encode_masks(previous_logits.clamp(-MAX_PROMPT_LOGIT, MAX_PROMPT_LOGIT))
        decoded = self.sam_mask_decoder(
            features_bchw, encoder.pe_layer.grid(self.grid, self.grid)[None],
            encoder.encode_points(points, labels, self.image_size),
            torch.where(use_previous[:, None, None, None], previous, encoder.no_mask()),
            image.stride8_bchw, image.stride4_bchw, given.sum(dim=1) <= 1)
        self._points.exist = None
        return self.choose_masks(decoded)


def _replace(module: nn.Module, method: str, function: Callable[..., Tensor]) -> None:
    setattr(module, method, function)


def _constant(value: Tensor) -> Callable[..., Tensor]:
    return lambda *_: value


def _fused(first: Layer, second: Layer) -> Layer:
    """Fuse consecutive linear layers or 1x1 convolutions: W2 (W1 x + b1) + b2 = (W2 W1) x + (W2 b1 + b2)."""
    assert first.bias is not None and second.bias is not None
    inner, outer = (layer.weight.flatten(1).double() for layer in (first, second))
    weight, bias = outer @ inner, outer @ first.bias.double() + second.bias.double()
    inputs, outputs = weight.shape[1], weight.shape[0]
    fused = nn.Linear(inputs, outputs) if isinstance(first, nn.Linear) else nn.Conv2d(inputs, outputs, kernel_size=1)
    assert fused.bias is not None
    fused.weight.copy_(weight.view_as(fused.weight))
    fused.bias.copy_(bias)
    return fused.requires_grad_(False)


def _attend_to_existing(attention: Attention, points: KnownPoints) -> None:
    """Make an attention hide keys that do not exist by adding to scores; one head may have narrow values."""

    def attend(query: Tensor, key: Tensor, value: Tensor, exists: Tensor | None = None) -> Tensor:
        query, key, value = (x.unflatten(-1, (attention.num_heads, -1)).transpose(1, 2) for x in (query, key, value))
        scores = query * query.shape[-1] ** -0.5 @ key.transpose(-2, -1)
        exists = points.exist if exists is None else exists
        if exists is not None:
            scores = scores + torch.where(exists, 0.0, HIDDEN)[:, None, None]
        attended: Tensor = attention.out_proj((scores.softmax(dim=-1) @ value).transpose(1, 2).flatten(-2))
        return attended

    _replace(attention, 'attend', attend)
