"""Memory attention: the image attends to the memory of each object (SAM 2 paper, section 4)."""
from __future__ import annotations

from typing import cast

from torch import Tensor, nn

from sam2_core.config import Sam2Config
from sam2_core.nn.attention import RotaryAttention
from sam2_core.nn.layers import is_plain
from sam2_core.nn.position import RotaryTable


class MemoryAttentionLayer(nn.Module):
    """Self-attention, cross-attention to the memory and feed-forward, each with normalisation before it."""

    def __init__(self, config: Sam2Config) -> None:
        super().__init__()
        dim = config.d_model
        self.self_attn = RotaryAttention(dim, num_heads=1)
        self.cross_attn_image = RotaryAttention(dim, num_heads=1, dim_kv=config.memory_dim)
        self.linear1 = nn.Linear(dim, config.memory_attention_feedforward)
        self.linear2 = nn.Linear(config.memory_attention_feedforward, dim)
        self.norm1 = nn.LayerNorm(dim)
        self.norm2 = nn.LayerNorm(dim)
        self.norm3 = nn.LayerNorm(dim)

    def forward(self, x_bnc: Tensor, memory_keys: Tensor, memory: Tensor, pointer_tokens: int,
                table: RotaryTable, memory_table: RotaryTable | None, exists: Tensor | None) -> Tensor:
        """Update (1 or B, N, d_model) from memory (B, M, memory_dim): (B, N, d_model)."""
        normed = self.norm1(x_bnc)
        x_bnc = x_bnc + self.self_attn(normed, normed, normed, table)
        x_bnc = x_bnc + self.cross_attn_image(self.norm2(x_bnc), memory_keys, memory, table, pointer_tokens,
                                              exists, memory_table)
        hidden = self.linear1(self.norm3(x_bnc))
        return x_bnc + self.linear2(hidden.relu_() if is_plain(self.linear1) else hidden.relu())


class MemoryAttention(nn.Module):
    """Stack of layers. Positions are added once to the input, scaled by 0.1, and to the keys of the memory."""

    def __init__(self, config: Sam2Config) -> None:
        super().__init__()
        self.layers = nn.ModuleList(MemoryAttentionLayer(config) for _ in range(config.memory_attention_layers))
        self.norm = nn.LayerNorm(config.d_model)
        self.rotary = RotaryTable(config.d_model, config.grid, config.grid, config.rope_theta)
        # None means the table of the image. Under two names, that module would make torch.export replace all classes.
        self.memory_rotary: RotaryTable | None = None
        if (perceiver := config.perceiver) is not None:
            self.memory_rotary = RotaryTable(config.d_model, perceiver.grid_side, perceiver.grid_side,
                                             config.rope_theta, unplaced=perceiver.global_latents)

    @property
    def cross_attentions(self) -> list[RotaryAttention]:
        """Attention to the memory in each layer."""
        return [cast(MemoryAttentionLayer, layer).cross_attn_image for layer in self.layers]

    def forward(self, image_bnc: Tensor, image_position_nc: Tensor, memory_bmc: Tensor, memory_position_bmc: Tensor,
                pointer_tokens: int, exists: Tensor | None = None) -> Tensor:
        """Condition an image on the memories of B objects.

        A single image is expanded to B only at the first cross-attention, so the work before that is shared.

        Args:
            image_bnc: (1 or B, N, d_model).
            image_position_nc: (N, d_model).
            memory_bmc: (B, M, memory_dim); the last tokens are those of pointers.
            memory_position_bmc: (B, M, memory_dim).
            pointer_tokens: Number of tokens of pointers.
            exists: bool (B, M), False for tokens to ignore; None means all exist.

        Returns:
            (B, N, d_model).
        """
        x = image_bnc + 0.1 * image_position_nc
        keys = memory_bmc + memory_position_bmc
        for layer in self.layers:
            x = layer(x, keys, memory_bmc, pointer_tokens, self.rotary, self.memory_rotary, exists)
        return self.norm(x)
