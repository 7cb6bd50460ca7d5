"""The SAM 2 model: pure functions of tensors. Callers hold the memory of each object (see memory.py).

"SAM 2: Segment Anything in Images and Videos", arXiv 2408.00714, section 4 and appendix D. Parameter names are those
of the published checkpoints, so that their state dicts load unchanged.
"""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sam2_core.config import HieraConfig, RepVitConfig, Sam2Config
from sam2_core.mask_prompts import MASK_BIAS, MASK_SCALE, mask_logits
from sam2_core.nn.derived import Derived
from sam2_core.nn.hiera import Hiera
from sam2_core.nn.layers import MLP, Float32Buffers, is_plain
from sam2_core.nn.mask_decoder import DecodedMasks, MaskDecoder
from sam2_core.nn.memory_attention import MemoryAttention
from sam2_core.nn.memory_encoder import MemoryEncoder
from sam2_core.nn.neck import FpnNeck
from sam2_core.nn.position import sine_grid, sine_time
from sam2_core.nn.prompt_encoder import PromptEncoder
from sam2_core.nn.repvit import RepVit
from sam2_core.nn.spatial_perceiver import SpatialPerceiver, token_position
from sam2_core.tensors import (
    ABSENT_LOGIT,
    MEMORY_DTYPE,
    ImageFeatures,
    Memory,
    ObjectMasks,
    Stages,
    StaticStages,
)

__all__ = ['ABSENT_LOGIT', 'MASK_BIAS', 'MASK_SCALE', 'MEMORY_DTYPE', 'ImageEncoder', 'ImageFeatures', 'Memory',
           'ObjectMasks', 'Sam2Model']


_TRUNKS: dict[type, Callable[[Any], Hiera | RepVit]] = {HieraConfig: Hiera, RepVitConfig: RepVit}  # by configuration


class ImageEncoder(nn.Module):
    """Image encoder: trunk and neck."""

    def __init__(self, config: Sam2Config) -> None:
        super().__init__()
        self.trunk = _TRUNKS[type(config.trunk)](config.trunk)
        self.neck = FpnNeck(self.trunk.channels, config.d_model)

    def forward(self, image_bchw: Tensor, to_stride4: nn.Conv2d | None = None,
                to_stride8: nn.Conv2d | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Return feature maps at strides 4, 8 and 16 of images (B, 3, S, S); see ``FpnNeck.forward``."""
        levels: tuple[Tensor, Tensor, Tensor] = self.neck(self.trunk(image_bchw), to_stride4, to_stride8)
        return levels


class Sam2Model(Float32Buffers):
    """SAM 2 for square images of ``config.image_size``. It holds weights and constant tables, but no state.

    In the docstrings below, S is ``image_size``, B the number of objects, and h = w = S / 16.
    """

    memory_dtype = MEMORY_DTYPE
    image_position: Tensor  # of the cells of the grid, for d_model channels
    grid_position: Tensor  # of the same cells, for memory_dim channels
    memory_position: Tensor  # of the tokens of a memory frame

    def __init__(self, config: Sam2Config, name: str = 'custom') -> None:
        super().__init__()
        self.config, self.name = config, name
        self.compiled: StaticStages | None = None  # if set, trackers run these instead of the methods below
        dim, memory_dim = config.d_model, config.memory_dim
        self.image_encoder = ImageEncoder(config)
        self.memory_attention = MemoryAttention(config)
        self.memory_encoder = MemoryEncoder(config)
        self.spatial_perceiver = None if config.perceiver is None else SpatialPerceiver(config.perceiver, memory_dim)
        self.sam_prompt_encoder = PromptEncoder(config)
        self.sam_mask_decoder = MaskDecoder(config)
        self.mask_downsample = nn.Conv2d(1, 1, kernel_size=4, stride=4)
        self.obj_ptr_proj = MLP(dim, dim, dim, depth=3)
        self.maskmem_tpos_enc = nn.Parameter(torch.zeros(config.memory_frames, 1, 1, memory_dim))
        self.no_mem_embed = nn.Parameter(torch.zeros(1, 1, dim))
        self.no_mem_pos_enc = nn.Parameter(torch.zeros(1, 1, dim))  # in every checkpoint, but unused
        self.no_obj_ptr = nn.Parameter(torch.zeros(1, dim))
        if config.no_object_embedding:
            self.no_obj_embed_spatial = nn.Parameter(torch.zeros(1, memory_dim))
        if config.pointer_time_codes:
            self.obj_ptr_tpos_proj = nn.Linear(dim, memory_dim)
            self._pointer_codes = Derived()
        for table, channels in (('image_position', dim), ('grid_position', memory_dim)):  # (tokens, channels)
            self.register_buffer(table, sine_grid(channels, self.grid, self.grid).flatten(1).T.contiguous(),
                                 persistent=False)
        self.register_buffer('memory_position', self.grid_position if config.perceiver is None
                             else token_position(config.perceiver, memory_dim), persistent=False)
        self.float()  # whatever torch.set_default_dtype says

    @property
    def stages(self) -> Stages:
        """Stages for trackers to run: ``compiled`` if set, else the methods of the model itself."""
        return self.compiled or self

    @property
    def image_size(self) -> int:
        """Side of the square model input, in pixels."""
        return self.config.image_size

    @property
    def grid(self) -> int:
        """Side of the stride-16 feature map, which memory and prompts share."""
        return self.config.grid

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return self.no_mem_embed.device

    @property
    def dtype(self) -> torch.dtype:
        """Floating-point type of the weights."""
        return self.no_mem_embed.dtype

    def encode_image(self, images_bchw: Tensor) -> ImageFeatures:
        """Encode normalised images (B, 3, S, S), and apply the decoder's projections of strides 4 and 8."""
        decoder = self.sam_mask_decoder
        stride4, stride8, stride16 = self.image_encoder(images_bchw.to(self.dtype), decoder.conv_s0, decoder.conv_s1)
        return ImageFeatures(stride16, stride8, stride4)

    def without_memory(self, features: ImageFeatures) -> Tensor:
        """Return features (B, d_model, h, w) for decoding without memory: single images and new objects."""
        return features.stride16_bchw + self.no_mem_embed[0, 0, :, None, None]

    def attend_memory(self, features: ImageFeatures, memory: Memory) -> Tensor:
        """Condition one image on the memories of B objects: (B, d_model, h, w). Section 4, "Memory attention"."""
        batch, memory_dim = len(memory.frames), self.config.memory_dim
        slots = self.maskmem_tpos_enc[:, 0, 0][memory.time_slots]  # (B, F, memory_dim)
        position = self.memory_position.to(self.dtype) + slots[:, :, None]

        pieces = memory.pointers.shape[1] * self.config.d_model // memory_dim  # each pointer is split into tokens
        pointers = memory.pointers.reshape(batch, pieces, memory_dim)
        pointer_position = self._pointer_position(memory.pointer_ages, pieces)

        image = features.stride16_bchw.flatten(2).transpose(1, 2)
        attended: Tensor = self.memory_attention(
            image, self.image_position.to(self.dtype),
            torch.cat((memory.frames.to(self.dtype).flatten(1, 2), pointers.to(self.dtype)), dim=1),
            torch.cat((position.flatten(1, 2), pointer_position), dim=1),
            pointer_tokens=pieces, exists=self._tokens_exist(memory, pieces))
        return torch.unflatten(attended.transpose(1, 2), -1, (self.grid, self.grid))

    def _tokens_exist(self, memory: Memory, pieces: int) -> Tensor | None:
        """Return bool (B, tokens), False for tokens of filler rows, or None if the memory has none."""
        if memory.frames_exist is None:
            return None
        assert memory.pointers_exist is not None
        of_pointers = memory.pointers_exist.repeat_interleave(pieces // memory.pointers_exist.shape[1], dim=1)
        return torch.cat((memory.frames_exist.repeat_interleave(self.config.memory_tokens, dim=1), of_pointers), dim=1)

    def _pointer_position(self, ages: Tensor, pieces: int) -> Tensor:
        if not self.config.pointer_time_codes:
            return torch.zeros(len(ages), pieces, self.config.memory_dim, device=self.device, dtype=self.dtype)
        projection = self.obj_ptr_tpos_proj
        if ages.is_floating_point() or not is_plain(projection):
            codes = self._pointer_codes_of(ages)
        else:
            table = self._pointer_codes.get((projection.weight, projection.bias), self._make_pointer_codes)
            codes = F.embedding(ages.long(), table)
        return codes.repeat_interleave(pieces // ages.shape[1], dim=1)

    def _make_pointer_codes(self) -> Tensor:
        """Return the codes of all ages that a pointer can have, (max_pointer_distance + 1, memory_dim)."""
        return self._pointer_codes_of(torch.arange(self.config.max_pointer_distance + 1, device=self.device))

    def _pointer_codes_of(self, ages: Tensor) -> Tensor:
        codes = sine_time(ages.float() / (self.config.object_pointers - 1), self.config.d_model)
        projected: Tensor = self.obj_ptr_tpos_proj(codes.to(self.dtype))
        return projected

    def decode_masks(self, features_bchw: Tensor, image: ImageFeatures, points: Tensor | None = None,
                     labels: Tensor | None = None, mask_logits: Tensor | None = None,
                     multimask: bool = False, unprompted: bool = False) -> DecodedMasks:
        """Decode masks of B objects in one image.

        Args:
            features_bchw: (B, d_model, h, w), conditioned on memory or not.
            image: One encoded image.
            points: (B, P, 2), in pixels of the square model input. Without points there is no prompt token at all (a
                mask prompt for a single image), unless ``unprompted``.
            labels: (B, P), as in nn/prompt_encoder.py; needed with points.
            mask_logits: Mask prompt, float (B, 1, S / 4, S / 4).
            multimask: Return three masks instead of one.
            unprompted: Use the tokens of a video frame without a prompt.

        Returns:
            One mask per object, or three with ``multimask``.
        """
        batch = features_bchw.shape[0]
        encoder = self.sam_prompt_encoder
        if unprompted:
            tokens = encoder.no_points(batch)
        elif points is None:
            tokens = features_bchw.new_zeros(batch, 0, self.config.d_model)
        else:
            assert labels is not None
            tokens = encoder.encode_points(points, labels, self.image_size)
        mask_features = encoder.no_mask() if mask_logits is None else encoder.encode_masks(mask_logits.to(self.dtype))
        position = encoder.pe_layer.grid(self.grid, self.grid)[None].to(self.dtype)
        decoded: DecodedMasks = self.sam_mask_decoder(features_bchw, position, tokens, mask_features,
                                                      image.stride8_bchw, image.stride4_bchw, multimask)
        return decoded

    def choose_masks(self, decoded: DecodedMasks) -> ObjectMasks:
        """Return the mask with the highest predicted IoU of each object, and its object pointer."""
        visible = decoded.object_score > 0
        best = decoded.iou.argmax(dim=1)
        rows = torch.arange(len(best), device=best.device)
        logits = torch.where(visible[:, None, None], decoded.logits[rows, best], ABSENT_LOGIT)
        pointers = torch.where(visible[:, None], self.obj_ptr_proj(decoded.tokens[rows, best]), self.no_obj_ptr)
        return ObjectMasks(logits, decoded.iou[rows, best], decoded.object_score, pointers)

    def track_objects(self, image: ImageFeatures, memory: Memory) -> tuple[Tensor, ObjectMasks]:
        """Track B objects into one image by their memories alone.

        Returns:
            Conditioned features (B, d_model, h, w), and masks.
        """
        return self.track_candidates(image, memory)[:2]

    def track_candidates(self, image: ImageFeatures, memory: Memory) -> tuple[Tensor, ObjectMasks, Tensor]:
        """Track B objects as ``track_objects`` does.

        Returns:
            Conditioned features (B, d_model, h, w), masks, and the logits of all masks that these were chosen of,
            float32 (B, 3, S / 4, S / 4).
        """
        features = self.attend_memory(image, memory)
        decoded = self.decode_masks(features, image, multimask=True, unprompted=True)
        return features, self.choose_masks(decoded), decoded.logits

    def mask_prompt_logits(self, masks_bchw: Tensor) -> Tensor:
        """Convert mask prompts (B, 1, S, S), 0 and 1, to logits, float32 (B, 1, S / 4, S / 4)."""
        return mask_logits(masks_bchw)

    def adopt_masks(self, image: ImageFeatures, masks_bchw: Tensor) -> ObjectMasks:
        """Take mask prompts (B, 1, S, S), 0 and 1, as the objects' masks; decode their object pointers only."""
        batch = masks_bchw.shape[0]
        masks = masks_bchw.float()
        logits = self.mask_prompt_logits(masks)
        features = image.stride16_bchw.expand(batch, -1, -1, -1)
        prompt = self.mask_downsample(masks.to(self.dtype))
        decoded = self.decode_masks(features, image, mask_logits=prompt, unprompted=True)
        present = masks.flatten(1).any(dim=1)
        return ObjectMasks(logits[:, 0], torch.ones(batch, dtype=torch.float32, device=self.device),
                           present.float() * MASK_SCALE + MASK_BIAS,
                           torch.where(present[:, None], self.choose_masks(decoded).pointers, self.no_obj_ptr))

    def encode_memory(self, image: ImageFeatures, masks: ObjectMasks, prompted: Tensor) -> Tensor:
        """Encode one memory frame for each of B objects. Section 4, "Memory encoder".

        Args:
            image: The image of the frame.
            masks: The objects' masks in it.
            prompted: bool (B,). The mask of a prompted object is stored as certain (binarised), other masks as
                probabilities.

        Returns:
            (B, tokens, memory_dim) in ``memory_dtype``.
        """
        logits = F.interpolate(masks.logits[:, None], size=(self.image_size,) * 2, mode='bilinear')
        certain = prompted[:, None, None, None]
        mask = torch.where(certain, (logits > 0).float(), logits.sigmoid()) * MASK_SCALE + MASK_BIAS
        encoded: Tensor = self.memory_encoder(image.stride16_bchw, mask.to(self.dtype))
        memory = encoded.flatten(2).transpose(1, 2)
        if self.config.no_object_embedding:
            absent = (masks.object_score <= 0).to(self.dtype)
            memory = memory + absent[:, None, None] * self.no_obj_embed_spatial
        if self.spatial_perceiver is not None:
            memory = self.spatial_perceiver(memory, self.grid_position.to(self.dtype))
        return memory.to(self.memory_dtype)
