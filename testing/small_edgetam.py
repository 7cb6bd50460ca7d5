"""EdgeTAM with all its parts, so small that a frame takes milliseconds, with random weights."""
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import pytest
import torch
from torch import nn

from sam2_core import Sam2Model
from sam2_core.config import VARIANTS, PerceiverConfig, RepVitConfig

SMALL = replace(VARIANTS['edgetam'], trunk=RepVitConfig((8, 16, 24, 32), (1, 1, 2, 1)), d_model=32, memory_dim=16,
                perceiver=PerceiverConfig(global_latents=5, grid_side=4), memory_attention_layers=1,
                memory_attention_feedforward=32, fuser_layers=1, decoder_layers=1, decoder_heads=2,
                decoder_feedforward=32, iou_head_hidden=16, image_size=128)

M = TypeVar('M', bound=nn.Module)


def randomised(module: M) -> M:
    """Draw all weights and statistics at random, so that every part has an effect."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, value in [*module.named_parameters(), *module.named_buffers()]:
            if name.endswith('running_var'):
                value.copy_(0.5 + torch.rand(value.shape, generator=generator))
            elif value.is_floating_point() and 'position' not in name and 'rotary' not in name:
                value.add_(torch.randn(value.shape, generator=generator) * 0.1)
    return module.eval().requires_grad_(False)


def small_edgetam() -> Sam2Model:
    """Return a model of this size, in which every object is visible."""
    torch.manual_seed(0)
    model = randomised(Sam2Model(SMALL))
    model.sam_mask_decoder.pred_obj_score_head.layers[-1].bias.fill_(3.0)
    return model


def pictures(count: int, seed: int = 0) -> list[np.ndarray]:
    """Return images of coarse noise, (128, 128, 3)."""
    generator = np.random.default_rng(seed)
    return [np.kron(generator.integers(0, 255, (8, 8, 3), np.uint8), np.ones((16, 16, 1), np.uint8))
            for _ in range(count)]


def small_variant(monkeypatch: pytest.MonkeyPatch, folder: Path) -> Path:
    """Give the variant edgetam this size for a test, and return a file with weights for it."""
    monkeypatch.setitem(VARIANTS, 'edgetam', SMALL)
    path = folder / 'edgetam.pt'
    torch.save({'model': small_edgetam().state_dict()}, path)
    return path
