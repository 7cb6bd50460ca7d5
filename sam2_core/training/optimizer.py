"""Optimizer of a run: which parameters decay, and which have a learning rate of their own."""
from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from sam2_core.training.settings import TrainConfig, part_of


def new_optimizer(names: Mapping[Tensor, str], config: TrainConfig, device: torch.device) -> torch.optim.AdamW:
    """Return an AdamW for the named parameters that require a gradient.

    ``scale`` in each parameter group multiplies the learning rate of the schedule.
    """
    decayed = [p for p, name in names.items() if p.requires_grad and p.ndim > 1
               and not any(word in name for word in ('embed', 'latents')) and 'token' not in name.split('.')[-2]]
    chosen = set(decayed)
    others = [p for p in names if p.requires_grad and p not in chosen]
    on_gpu = device.type == 'cuda'
    groups: dict[tuple[float | None, float], list[Tensor]] = {}
    own = dict(config.rates)
    for parameters, decay in ((decayed, config.weight_decay), (others, 0.0)):
        for parameter in parameters:
            part = part_of(names[parameter].removeprefix('model.'), own)
            groups.setdefault((None if part is None else own[part], decay), []).append(parameter)

    def rate() -> Tensor | float:
        return torch.tensor(0.0, device=device) if on_gpu else 0.0  # a captured step reads it from the device

    return torch.optim.AdamW(
        [{'params': parameters, 'weight_decay': decay, 'lr': rate(),
          'scale': 1.0 if peak is None else peak / config.schedule.learning_rate}
         for (peak, decay), parameters in groups.items()],
        lr=rate(), betas=(0.9, 0.98), fused=on_gpu, capturable=on_gpu)


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of every parameter group to its share of ``rate``."""
    for group in optimizer.param_groups:
        if isinstance(group['lr'], Tensor):
            group['lr'].fill_(rate * group['scale'])
        else:
            group['lr'] = rate * group['scale']
