"""The SAM 2 model: four pure functions of tensors. What is remembered is the caller's (see memory.py).

"SAM 2: Segment Anything in Images and Videos", arXiv 2408.00714, section 4 and appendix D. Parameter names are those
of the published checkpoints, so that a state dict loads as it is.
"""
from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sam2_core.config import Sam2Config
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


class ImageEncoder(nn.Module):
    """Trunk and neck."""

    def __init__(self, config: Sam2Config) -> None:
        super().__init__()
        self.trunk = Hiera(config)
        self.neck = FpnNeck(self.trunk.channels, config.d_model)

    def forward(self, image_bchw: Tensor, to_stride4: nn.Conv2d | None = None,
                to_stride8: nn.Conv2d | None = None) -> tuple[Tensor, Tensor, Tensor]:
        return self.neck(self.trunk(image_bchw), to_stride4, to_stride8)


class Sam2Model(Float32Buffers):
    """SAM 2 for square images of ``config.image_size``. Holds weights and constant tables, no state."""

    memory_dtype = MEMORY_DTYPE

    def __init__(self, config: Sam2Config, name: str = 'custom') -> None:
        super().__init__()
        self.config, self.name = config, name
        self.compiled: StaticStages | None = None  # run by trackers instead of the methods below
        dim, memory_dim = config.d_model, config.memory_dim
        self.image_encoder = ImageEncoder(config)
        self.memory_attention = MemoryAttention(config)
        self.memory_encoder = MemoryEncoder(config)
        self.sam_prompt_encoder = PromptEncoder(config)
        self.sam_mask_decoder = MaskDecoder(config)
        self.mask_downsample = nn.Conv2d(1, 1, kernel_size=4, stride=4)
        self.obj_ptr_proj = MLP(dim, dim, dim, depth=3)
        self.maskmem_tpos_enc = nn.Parameter(torch.zeros(config.memory_frames, 1, 1, memory_dim))
        self.no_mem_embed = nn.Parameter(torch.zeros(1, 1, dim))
        self.no_mem_pos_enc = nn.Parameter(torch.zeros(1, 1, dim))  # in every checkpoint, used by none
        self.no_obj_ptr = nn.Parameter(torch.zeros(1, dim))
        if config.no_object_embedding:
            self.no_obj_embed_spatial = nn.Parameter(torch.zeros(1, memory_dim))
        if config.pointer_time_codes:
            self.obj_ptr_tpos_proj = nn.Linear(dim, memory_dim)
            self._pointer_codes = Derived()
        for table, channels in (('image_position', dim), ('memory_position', memory_dim)):  # (tokens, channels)
            self.register_buffer(table, sine_grid(channels, self.grid, self.grid).flatten(1).T.contiguous(),
                                 persistent=False)
        self.float()  # whatever torch.set_default_dtype says

    @property
    def stages(self) -> Stages:
        """Stages for trackers to run: ``compiled`` if set, else the model's own methods."""
        return self.compiled or self

    @property
    def image_size(self) -> int:
        """Side of the square the model sees, pixels."""
        return self.config.image_size

    @property
    def grid(self) -> int:
        """Side of the feature map that memory and prompts live on."""
        return self.config.grid

    @property
    def device(self) -> torch.device:
        return self.no_mem_embed.device

    @property
    def dtype(self) -> torch.dtype:
        return self.no_mem_embed.dtype

    def encode_image(self, images_bchw: Tensor) -> ImageFeatures:
        """Normalised images (B, 3, S, S) -> features. The decoder's own projections of strides 4 and 8 are applied."""
        decoder = self.sam_mask_decoder
        stride4, stride8, stride16 = self.image_encoder(images_bchw.to(self.dtype), decoder.conv_s0, decoder.conv_s1)
        return ImageFeatures(stride16, stride8, stride4)

    def without_memory(self, features: ImageFeatures) -> Tensor:
        """What the decoder sees where nothing is remembered yet: (B, d_model, h, w)."""
        return features.stride16_bchw + self.no_mem_embed[0, 0, :, None, None]

    def attend_memory(self, features: ImageFeatures, memory: Memory) -> Tensor:
        """One image as B objects' memories see it: (B, d_model, h, w). Section 4, "Memory attention"."""
        batch, memory_dim = len(memory.frames), self.config.memory_dim
        slots = self.maskmem_tpos_enc[:, 0, 0][memory.time_slots]  # (B, F, memory_dim)
        position = self.memory_position.to(self.dtype) + slots[:, :, None]

        pieces = memory.pointers.shape[1] * self.config.d_model // memory_dim  # a pointer is cut into several tokens
        pointers = memory.pointers.reshape(batch, pieces, memory_dim)
        pointer_position = self._pointer_position(memory.pointer_ages, pieces)

        image = features.stride16_bchw.flatten(2).transpose(1, 2)
        attended = self.memory_attention(
            image, self.image_position.to(self.dtype),
            torch.cat((memory.frames.to(self.dtype).flatten(1, 2), pointers.to(self.dtype)), dim=1),
            torch.cat((position.flatten(1, 2), pointer_position), dim=1),
            pointer_tokens=pieces, exists=self._tokens_exist(memory, pieces))
        return attended.transpose(1, 2).unflatten(-1, (self.grid, self.grid))

    def _tokens_exist(self, memory: Memory, pieces: int) -> Tensor | None:
        """Which tokens of a memory may be looked at, bool (B, tokens); None: all."""
        if memory.frames_exist is None:
            return None
        of_pointers = memory.pointers_exist.repeat_interleave(pieces // memory.pointers_exist.shape[1], dim=1)
        return torch.cat((memory.frames_exist.repeat_interleave(self.grid ** 2, dim=1), of_pointers), dim=1)

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
        """The codes of all ages a pointer can have, (max_pointer_distance + 1, memory_dim)."""
        return self._pointer_codes_of(torch.arange(self.config.max_pointer_distance + 1, device=self.device))

    def _pointer_codes_of(self, ages: Tensor) -> Tensor:
        codes = sine_time(ages.float() / (self.config.object_pointers - 1), self.config.d_model)
        return self.obj_ptr_tpos_proj(codes.to(self.dtype))

    def decode_masks(self, features_bchw: Tensor, image: ImageFeatures, points: Tensor | None = None,
                     labels: Tensor | None = None, mask_logits: Tensor | None = None,
                     multimask: bool = False, unprompted: bool = False) -> DecodedMasks:
        """Masks for B objects in one image.

        features_bchw: (B, d_model, h, w), conditioned on memory or not; image: one encoded image; points: (B, P, 2)
        in pixels of the model's square image, with labels (B, P) of prompt_encoder; mask_logits: float
        (B, 1, S / 4, S / 4). No points: no token at all (a mask prompt for an image alone), or, where ``unprompted``,
        those of a frame of a video that nobody prompts.
        """
        batch = features_bchw.shape[0]
        encoder = self.sam_prompt_encoder
        if unprompted:
            tokens = encoder.no_points(batch)
        elif points is None:
            tokens = features_bchw.new_zeros(batch, 0, self.config.d_model)
        else:
            tokens = encoder.encode_points(points, labels, self.image_size)
        mask_features = encoder.no_mask() if mask_logits is None else encoder.encode_masks(mask_logits.to(self.dtype))
        position = encoder.pe_layer.grid(self.grid, self.grid)[None].to(self.dtype)
        return self.sam_mask_decoder(features_bchw, position, tokens, mask_features, image.stride8_bchw,
                                     image.stride4_bchw, multimask)

    def choose_masks(self, decoded: DecodedMasks) -> ObjectMasks:
        """Of each object's masks the one with the highest predicted IoU, with its pointer."""
        visible = decoded.object_score > 0
        best = decoded.iou.argmax(dim=1)
        rows = torch.arange(len(best), device=best.device)
        logits = torch.where(visible[:, None, None], decoded.logits[rows, best], ABSENT_LOGIT)
        pointers = self.obj_ptr_proj(decoded.tokens[rows, best])
        return ObjectMasks(logits, decoded.iou[rows, best], decoded.object_score, self._absent(pointers, visible))

    def _absent(self, pointers: Tensor, visible: Tensor) -> Tensor:
        return torch.where(visible[:, None], pointers, self.no_obj_ptr)

    def track_objects(self, image: ImageFeatures, memory: Memory) -> tuple[Tensor, ObjectMasks]:
        """B objects in one image from their memories alone: conditioned features (B, d_model, h, w), and masks."""
        features = self.attend_memory(image, memory)
        return features, self.choose_masks(self.decode_masks(features, image, multimask=True, unprompted=True))

    def mask_prompt_logits(self, masks_bchw: Tensor) -> Tensor:
        """A user's masks (B, 1, S, S) of 0 and 1 as the logits that stand for them: float32 (B, 1, S / 4, S / 4)."""
        return mask_logits(masks_bchw)

    def adopt_masks(self, image: ImageFeatures, masks_bchw: Tensor) -> ObjectMasks:
        """Masks given by the user, (B, 1, S, S) of 0 and 1, as they are; the decoder only makes their pointers."""
        batch = masks_bchw.shape[0]
        masks = masks_bchw.float()
        logits = self.mask_prompt_logits(masks)
        features = image.stride16_bchw.expand(batch, -1, -1, -1)
        prompt = self.mask_downsample(masks.to(self.dtype))
        decoded = self.decode_masks(features, image, mask_logits=prompt, unprompted=True)
        present = masks.flatten(1).any(dim=1)
        return ObjectMasks(logits[:, 0], torch.ones(batch, dtype=torch.float32, device=self.device),
                           present.float() * MASK_SCALE + MASK_BIAS,
                           self._absent(self.choose_masks(decoded).pointers, present))

    def encode_memory(self, image: ImageFeatures, masks: ObjectMasks, prompted: Tensor) -> Tensor:
        """One frame of memory for each of B objects: (B, tokens, memory_dim) in MEMORY_DTYPE.

        ``prompted`` (B,) bool: where the user prompted, the mask is remembered as certain (binarised), elsewhere as
        probability. Section 4, "Memory encoder".
        """
        logits = F.interpolate(masks.logits[:, None], size=(self.image_size,) * 2, mode='bilinear')
        certain = prompted[:, None, None, None]
        mask = torch.where(certain, (logits > 0).float(), logits.sigmoid()) * MASK_SCALE + MASK_BIAS
        memory = self.memory_encoder(image.stride16_bchw, mask.to(self.dtype)).flatten(2).transpose(1, 2)
        if self.config.no_object_embedding:
            absent = (masks.object_score <= 0).to(self.dtype)
            memory = memory + absent[:, None, None] * self.no_obj_embed_spatial
        return memory.to(self.memory_dtype)
