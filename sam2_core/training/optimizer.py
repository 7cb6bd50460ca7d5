"""The optimizer of a run: which parameters decay, and which have a learning rate of their own."""
from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from sam2_core.training.settings import TrainConfig, part_of


def new_optimizer(names: Mapping[nn.Parameter, str], config: TrainConfig, device: torch.device) -> torch.optim.AdamW:
    """Return an AdamW for the named parameters that require a gradient; ``scale`` in its groups multiplies the rate."""
    decayed = [p for p, name in names.items() if p.requires_grad and p.ndim > 1 and 'embed' not in name
               and 'token' not in name.split('.')[-2]]
    chosen = set(decayed)
    others = [p for p in names if p.requires_grad and p not in chosen]
    on_gpu = device.type == 'cuda'
    rate = torch.tensor(0.0, device=device) if on_gpu else 0.0
    groups: dict[tuple[float | None, float], list[nn.Parameter]] = {}
    own = dict(config.rates)
    for parameters, decay in ((decayed, config.weight_decay), (others, 0.0)):
        for parameter in parameters:
            part = part_of(names[parameter].removeprefix('model.'), own)
            groups.setdefault((own.get(part), decay), []).append(parameter)
    return torch.optim.AdamW(
        [{'params': parameters, 'weight_decay': decay, 'lr': rate.clone() if on_gpu else rate,
          'scale': 1.0 if peak is None else peak / config.schedule.learning_rate}
         for (peak, decay), parameters in groups.items()],
        lr=rate, betas=(0.9, 0.98), fused=on_gpu, capturable=on_gpu)
