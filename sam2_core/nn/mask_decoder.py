"""Mask decoder: image features and prompt tokens attend to each other, and masks are computed from both.

SAM (arXiv 2304.02643, appendix A) with SAM 2's high-resolution features, object score and pointer tokens
(SAM 2 paper, section 4 and appendix D).
"""
from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from sam2_core.config import Sam2Config
from sam2_core.nn.attention import Attention
from sam2_core.nn.layers import MLP, LayerNorm2d, all_rows

MASK_TOKENS = 4  # one for unambiguous prompts, three for ambiguous ones


class TwoWayBlock(nn.Module):
    """Block in which tokens attend to themselves and to the image, and the image attends to the tokens."""

    def __init__(self, config: Sam2Config, first: bool) -> None:
        super().__init__()
        dim, heads = config.d_model, config.decoder_heads
        self.first = first
        self.self_attn = Attention(dim, heads)
        self.norm1 = nn.LayerNorm(dim)
        self.cross_attn_token_to_image = Attention(dim, heads, downsample=2)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = MLP(dim, config.decoder_feedforward, dim, depth=2)
        self.norm3 = nn.LayerNorm(dim)
        self.norm4 = nn.LayerNorm(dim)
        self.cross_attn_image_to_token = Attention(dim, heads, downsample=2)

    def forward(self, tokens: Tensor, image: Tensor, token_position: Tensor,
                image_position: Tensor) -> tuple[Tensor, Tensor]:
        """Update tokens (B, P, C) and image (B, N, C), given their positions of the same shapes."""
        if self.first:  # here tokens are their own positions, and attention replaces them
            tokens = self.self_attn(tokens, tokens, tokens)
        else:
            placed = tokens + token_position
            tokens = tokens + self.self_attn(placed, placed, tokens)
        tokens = self.norm1(tokens)
        image_keys = image + image_position
        tokens = self.norm2(tokens + self.cross_attn_token_to_image(tokens + token_position, image_keys, image))
        tokens = self.norm3(tokens + self.mlp(tokens))
        image = self.norm4(image + self.cross_attn_image_to_token(image_keys, tokens + token_position, tokens))
        return tokens, image


class TwoWayTransformer(nn.Module):
    """Two-way blocks, and a final attention of the tokens to the image."""

    def __init__(self, config: Sam2Config) -> None:
        super().__init__()
        self.layers = nn.ModuleList(TwoWayBlock(config, first=i == 0) for i in range(config.decoder_layers))
        self.final_attn_token_to_image = Attention(config.d_model, config.decoder_heads, downsample=2)
        self.norm_final_attn = nn.LayerNorm(config.d_model)

    def forward(self, image_bnc: Tensor, image_position_bnc: Tensor, prompt_tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Return updated tokens (B, P, C) and image (B, N, C)."""
        tokens = prompt_tokens
        for layer in self.layers:
            tokens, image_bnc = layer(tokens, image_bnc, prompt_tokens, image_position_bnc)
        keys = image_bnc + image_position_bnc
        attended = self.final_attn_token_to_image(tokens + prompt_tokens, keys, image_bnc)
        return self.norm_final_attn(tokens + attended), image_bnc


class DecodedMasks(NamedTuple):
    """Decoder output for B objects with M masks each (1 or 3)."""

    logits: Tensor  # float32 (B, M, 4 h, 4 w)
    iou: Tensor  # float32 (B, M), predicted IoU, 0..1
    tokens: Tensor  # (B, M, d_model), source of object pointers
    object_score: Tensor  # float32 (B,), logit, > 0: the object is visible


class MaskDecoder(nn.Module):
    """Decoder of masks, predicted IoU and object score from image features and prompts."""

    def __init__(self, config: Sam2Config) -> None:
        super().__init__()
        dim = config.d_model
        self.stability_delta = config.stability_delta
        self.stability_threshold = config.stability_threshold
        self.transformer = TwoWayTransformer(config)
        self.iou_token = nn.Embedding(1, dim)
        self.mask_tokens = nn.Embedding(MASK_TOKENS, dim)
        self.obj_score_token = nn.Embedding(1, dim)
        self.output_upscaling = nn.Sequential(
            nn.ConvTranspose2d(dim, dim // 4, kernel_size=2, stride=2), LayerNorm2d(dim // 4), nn.GELU(),
            nn.ConvTranspose2d(dim // 4, dim // 8, kernel_size=2, stride=2), nn.GELU())
        self.conv_s0 = nn.Conv2d(dim, dim // 8, kernel_size=1)
        self.conv_s1 = nn.Conv2d(dim, dim // 4, kernel_size=1)
        self.output_hypernetworks_mlps = nn.ModuleList(MLP(dim, dim, dim // 8, depth=3) for _ in range(MASK_TOKENS))
        self.iou_prediction_head = MLP(dim, config.iou_head_hidden, MASK_TOKENS, depth=3)
        self.pred_obj_score_head = MLP(dim, dim, 1, depth=3)

    def forward(self, features_bchw: Tensor, position_bchw: Tensor, prompt_tokens: Tensor, mask_features: Tensor,
                stride8_bchw: Tensor, stride4_bchw: Tensor, multimask: bool) -> DecodedMasks:
        """Decode masks of B objects.

        Args:
            features_bchw: (B, C, h, w).
            position_bchw: (1, C, h, w).
            prompt_tokens: (B, P, C).
            mask_features: (B or 1, C, h or 1, w or 1).
            stride8_bchw: (1 or B, C / 4, 2 h, 2 w).
            stride4_bchw: (1 or B, C / 8, 4 h, 4 w).
            multimask: Return the three masks for ambiguous prompts. Otherwise return the single mask, or the best of
                the three if the single mask is unstable.
        """
        logits, iou, tokens, object_score = self._all(
            features_bchw, position_bchw, prompt_tokens, mask_features, stride8_bchw, stride4_bchw)
        if multimask:
            return DecodedMasks(logits[:, 1:], iou[:, 1:], tokens[:, 1:], object_score)
        logits, iou = self._stable(logits, iou)
        return DecodedMasks(logits, iou, tokens[:, :1], object_score)  # pointers are always made from the single token

    def _all(self, features: Tensor, position: Tensor, prompt_tokens: Tensor, mask_features: Tensor,
             stride8: Tensor, stride4: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        batch, _, height, width = features.shape
        output_tokens = torch.cat((all_rows(self.obj_score_token, 1), all_rows(self.iou_token, 1),
                                   all_rows(self.mask_tokens, MASK_TOKENS)))
        tokens = torch.cat((output_tokens.expand(batch, -1, -1), prompt_tokens), dim=1)
        image = (features + mask_features).flatten(2).transpose(1, 2)
        tokens, image = self.transformer(image, position.flatten(2).transpose(1, 2), tokens)
        score_token, iou_token, mask_tokens = tokens[:, 0], tokens[:, 1], tokens[:, 2:2 + MASK_TOKENS]

        first, norm, activation, second, last_activation = self.output_upscaling
        upscaled = image.transpose(1, 2).reshape(batch, -1, height, width)
        upscaled = activation(norm(first(upscaled) + stride8))
        upscaled = last_activation(second(upscaled) + stride4)
        weights = torch.stack([mlp(mask_tokens[:, i]) for i, mlp in enumerate(self.output_hypernetworks_mlps)], dim=1)
        logits = (weights @ upscaled.flatten(2)).unflatten(-1, upscaled.shape[-2:])

        iou = self.iou_prediction_head(iou_token).float().sigmoid()
        object_score = self.pred_obj_score_head(score_token).float()[:, 0]
        return logits.float(), iou, mask_tokens, object_score

    def _stable(self, logits: Tensor, iou: Tensor) -> tuple[Tensor, Tensor]:
        """Return the single mask (B, 1, ...), or the best of three if the single one depends much on the threshold."""
        flat = logits[:, 0].flatten(1)
        inner = (flat > self.stability_delta).sum(dim=1).float()
        outer = (flat > -self.stability_delta).sum(dim=1).float()
        stability = torch.where(outer > 0, inner / outer, 1.0)
        best = iou[:, 1:].argmax(dim=1) + 1
        chosen = torch.where(stability >= self.stability_threshold, 0, best)
        rows = torch.arange(len(chosen), device=chosen.device)
        return logits[rows, chosen][:, None], iou[rows, chosen][:, None]
