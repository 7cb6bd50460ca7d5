"""The model, written so that its graph is small, static and of real numbers; the numbers are those of Sam2Model."""
from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sam2_core.mask_prompts import MASK_BIAS, MASK_SCALE
from sam2_core.model import Sam2Model
from sam2_core.nn.attention import Attention, RotaryAttention
from sam2_core.nn.layers import is_observed
from sam2_core.nn.mask_decoder import MASK_TOKENS, DecodedMasks, MaskDecoder
from sam2_core.nn.prompt_encoder import FOREGROUND, NOT_A_POINT
from sam2_core.segmenter import MAX_PROMPT_LOGIT
from sam2_core.tensors import ImageFeatures, Memory, ObjectMasks

HIDDEN = -10000.0  # added to a score: its weight is exactly 0 then; float16 holds it
OUTPUT_TOKENS = MASK_TOKENS + 2  # the decoder's own, before those of points: object score, predicted IoU, masks
EMPTY = -1  # the time slot, or age, of a row of memory that holds nothing


@dataclass
class KnownPoints:
    """Which tokens of the decoder exist, bool (B, M), for attentions that are not told; None: all."""

    exist: Tensor | None = None


def copy_weights(source: Sam2Model, target: Sam2Model) -> None:
    """Make ``target`` compute what ``source`` does, in float32 on the CPU.

    ValueError for an int8 encoder, adapters and hooks.
    """
    replaced = _first_replaced(source, target)
    if replaced is not None and isinstance(source.get_submodule(replaced), torch.ao.nn.quantized.dynamic.Linear):
        raise ValueError(f'{source.name} with an int8 encoder: load it without int8_encoder')
    if replaced is not None:
        raise ValueError(f'{source.name} with {replaced} replaced by {type(source.get_submodule(replaced)).__name__}: '
                         f'graphs hold the published layers; merge adapters into the weights first (merge_and_unload)')
    if observed := [name for name, module in source.named_modules() if is_observed(module)]:
        raise ValueError(f'{source.name} with hooks on {", ".join(observed[:3])}: graphs run no hooks; remove them')
    weights = source.state_dict()
    target.load_state_dict({name: value.float() for name, value in weights.items()})
    for ours, theirs in zip(target.memory_attention.layers, source.memory_attention.layers, strict=True):
        ours.cross_attn_image.pooling = theirs.cross_attn_image.pooling
    target.eval().requires_grad_(False)


def _first_replaced(model: nn.Module, original: nn.Module) -> str | None:
    """Return the name of the first module of ``model`` that is of another class than in ``original``, or None."""
    expected = dict(original.named_modules())
    return next((name for name, module in model.named_modules()
                 if name not in expected or not issubclass(type(expected[name]), type(module))), None)


class GraphDecoder(MaskDecoder):
    """The mask decoder, where ``multimask`` may be a tensor: bool (B,), for each object."""

    def forward(self, features_bchw: Tensor, position_bchw: Tensor, prompt_tokens: Tensor, mask_features: Tensor,
                stride8_bchw: Tensor, stride4_bchw: Tensor, multimask: bool | Tensor) -> DecodedMasks:
        if isinstance(multimask, bool):
            return super().forward(features_bchw, position_bchw, prompt_tokens, mask_features, stride8_bchw,
                                   stride4_bchw, multimask)
        logits, iou, tokens, object_score = self._all(
            features_bchw, position_bchw, prompt_tokens, mask_features, stride8_bchw, stride4_bchw)
        single_logits, single_iou = self._stable(logits, iou)  # stands three times: which is chosen does not matter
        several = multimask[:, None]
        return DecodedMasks(torch.where(several[..., None, None], logits[:, 1:], single_logits),
                            torch.where(several, iou[:, 1:], single_iou),
                            torch.where(several[..., None], tokens[:, 1:], tokens[:, :1]), object_score)


class GraphModel(Sam2Model):
    """A copy of a model, float32 on the CPU, to be traced with gradients enabled.

    Rows of memory and points may be empty: shapes are static, numbers those of the rest. Two linear layers in a row
    are one (values of the memory are averaged in their own width before they are projected), what depends on
    no input is a constant, and memory is not rounded to bfloat16.
    """

    memory_dtype = torch.float32

    def __init__(self, model: Sam2Model) -> None:
        super().__init__(model.config, model.name)
        self.sam_mask_decoder = GraphDecoder(model.config)
        copy_weights(model, self)
        self._points = KnownPoints()
        with torch.no_grad():
            self._make_constants()
            self._fuse()
        for layer in self.memory_attention.layers:
            _attend_what_exists(layer.cross_attn_image, KnownPoints())
        for block in self.sam_mask_decoder.transformer.layers:
            _attend_what_exists(block.self_attn, self._points)
            _attend_what_exists(block.cross_attn_image_to_token, self._points)

    def _make_constants(self) -> None:
        side, trunk, places = self.image_size // 4, self.image_encoder.trunk, self.sam_prompt_encoder.pe_layer
        _replace(trunk, 'position', trunk.position(side, side))
        _replace(places, 'grid', places.grid(self.grid, self.grid))
        if self.config.pointer_time_codes:
            _replace(self, '_make_pointer_codes', self._make_pointer_codes())
        lines = torch.eye(self.image_size)[None, None]  # shrinking the lines of a mask by four is one matrix
        shrink = F.interpolate(lines, size=(side, self.image_size), mode='bilinear', antialias=True)[0, 0]
        self.register_buffer('shrink', shrink, persistent=False)

    def _fuse(self) -> None:
        decoder, laterals = self.sam_mask_decoder, self.image_encoder.neck.convs
        laterals[-1].conv, decoder.conv_s0 = _fused(laterals[-1].conv, decoder.conv_s0), nn.Identity()
        laterals[-2].conv, decoder.conv_s1 = _fused(laterals[-2].conv, decoder.conv_s1), nn.Identity()
        for layer in self.memory_attention.layers:
            attention: RotaryAttention = layer.cross_attn_image  # one head, whose weights sum to one
            attention.out_proj, attention.v_proj = _fused(attention.v_proj, attention.out_proj), nn.Identity()

    def mask_prompt_logits(self, masks_bchw: Tensor) -> Tensor:
        """As the model does, by matrix products: few runtimes resize with antialias."""
        return self.shrink @ (masks_bchw * MASK_SCALE + MASK_BIAS) @ self.shrink.T

    def attend_memory(self, features: ImageFeatures, memory: Memory) -> Tensor:
        """As the model does, for objects that remember less than there is room for: rows EMPTY are not looked at."""
        frames_exist, pointers_exist = memory.time_slots != EMPTY, memory.pointer_ages != EMPTY
        return super().attend_memory(features, Memory(  # not clamped: TensorRT's parser clips no integers
            memory.frames, torch.where(frames_exist, memory.time_slots, 0), memory.pointers,
            torch.where(pointers_exist, memory.pointer_ages, 0), frames_exist, pointers_exist))

    def decode_prompted(self, features_bchw: Tensor, image: ImageFeatures, points: Tensor, labels: Tensor,
                        previous_logits: Tensor, use_previous: Tensor) -> ObjectMasks:
        """Prompted masks of B objects as StreamTracker makes them.

        points (B, N, 2), labels (B, N): those NOT_A_POINT are not there; previous_logits (B, 1, S / 4, S / 4) count
        where ``use_previous`` (B,) bool. One point: the best of three masks; several: the single mask.
        """
        encoder, given = self.sam_prompt_encoder, labels != NOT_A_POINT
        # the last token is no point on purpose; labels are padded because TensorRT's parser pads no booleans
        self._points.exist = F.pad(labels, (OUTPUT_TOKENS, 1), value=FOREGROUND) != NOT_A_POINT
        previous = encoder.encode_masks(previous_logits.clamp(-MAX_PROMPT_LOGIT, MAX_PROMPT_LOGIT))
        decoded = self.sam_mask_decoder(
            features_bchw, encoder.pe_layer.grid(self.grid, self.grid)[None],
            encoder.encode_points(points, labels, self.image_size),
            torch.where(use_previous[:, None, None, None], previous, encoder.no_mask()),
            image.stride8_bchw, image.stride4_bchw, given.sum(dim=1) <= 1)
        self._points.exist = None
        return self.choose_masks(decoded)


def _replace(module: nn.Module, method: str, value: Tensor) -> None:
    """Let a method that makes the same tensor each time return that tensor."""
    setattr(module, method, lambda *_: value)


def _fused(first: nn.Module, second: nn.Module) -> nn.Module:
    """Two linear layers, or 1x1 convolutions, in a row as one: W2 (W1 x + b1) + b2 = (W2 W1) x + (W2 b1 + b2)."""
    inner, outer = (layer.weight.flatten(1).double() for layer in (first, second))
    weight, bias = outer @ inner, outer @ first.bias.double() + second.bias.double()
    sizes = weight.shape[1], weight.shape[0]
    fused = nn.Linear(*sizes) if isinstance(first, nn.Linear) else nn.Conv2d(*sizes, kernel_size=1)
    fused.weight.copy_(weight.view_as(fused.weight))
    fused.bias.copy_(bias)
    return fused.requires_grad_(False)


def _attend_what_exists(attention: Attention, points: KnownPoints) -> None:
    """Let an attention leave keys out by plain sums. Values may be narrower than keys, with one head."""

    def attend(query: Tensor, key: Tensor, value: Tensor, exists: Tensor | None = None) -> Tensor:
        query, key, value = (x.unflatten(-1, (attention.num_heads, -1)).transpose(1, 2) for x in (query, key, value))
        scores = query * query.shape[-1] ** -0.5 @ key.transpose(-2, -1)
        exists = points.exist if exists is None else exists
        if exists is not None:
            scores = scores + torch.where(exists, 0.0, HIDDEN)[:, None, None]
        return attention.out_proj((scores.softmax(dim=-1) @ value).transpose(1, 2).flatten(-2))

    attention.attend = attend
