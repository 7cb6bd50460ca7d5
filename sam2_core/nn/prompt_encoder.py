"""Prompt encoder: tokens of points and boxes, and features of masks (SAM, arXiv 2304.02643, section 3)."""
from __future__ import annotations

import torch
from torch import Tensor, nn

from sam2_core.config import Sam2Config
from sam2_core.nn.layers import LayerNorm2d, all_rows
from sam2_core.nn.position import FourierPosition

NOT_A_POINT = -1
BACKGROUND = 0
FOREGROUND = 1
BOX_TOP_LEFT = 2
BOX_BOTTOM_RIGHT = 3


class PromptEncoder(nn.Module):
    """Encoder of points to sparse tokens, and of masks to dense features. A box is two points."""

    def __init__(self, config: Sam2Config) -> None:
        super().__init__()
        dim, mask_dim = config.d_model, config.mask_prompt_channels
        self.pe_layer = FourierPosition(dim)
        self.point_embeddings = nn.ModuleList(nn.Embedding(1, dim) for _ in range(4))
        self.not_a_point_embed = nn.Embedding(1, dim)
        self.mask_downscaling = nn.Sequential(
            nn.Conv2d(1, mask_dim // 4, kernel_size=2, stride=2), LayerNorm2d(mask_dim // 4), nn.GELU(),
            nn.Conv2d(mask_dim // 4, mask_dim, kernel_size=2, stride=2), LayerNorm2d(mask_dim), nn.GELU(),
            nn.Conv2d(mask_dim, dim, kernel_size=1))
        self.no_mask_embed = nn.Embedding(1, dim)

    def encode_points(self, points: Tensor, labels: Tensor, image_size: int) -> Tensor:
        """Encode points (B, P, 2), in pixels of the model input, with labels (B, P): tokens (B, P + 1, d_model).

        The last token is padding. It is always there, because boxes are encoded as points.
        """
        batch = points.shape[0]
        points = torch.cat((points.float() + 0.5, points.new_zeros(batch, 1, 2)), dim=1) / image_size
        labels = torch.cat((labels, labels.new_full((batch, 1), NOT_A_POINT)), dim=1)
        kinds = torch.cat([all_rows(e, 1) for e in (self.not_a_point_embed, *self.point_embeddings)])
        position = self.pe_layer(points) * (labels != NOT_A_POINT)[..., None]
        return position.to(kinds.dtype) + kinds[labels + 1]

    def no_points(self, batch: int) -> Tensor:
        """Return the tokens of a frame without a prompt, (B, 2, d_model): an empty point and the padding."""
        return all_rows(self.not_a_point_embed, 1).expand(batch, 2, -1)

    def encode_masks(self, logits_bchw: Tensor) -> Tensor:
        """Encode mask logits (B, 1, 4 h, 4 w): (B, d_model, h, w)."""
        return self.mask_downscaling(logits_bchw)

    def no_mask(self) -> Tensor:
        """Return the features that stand for "no mask", (1, d_model, 1, 1)."""
        return all_rows(self.no_mask_embed, 1)[..., None, None]
