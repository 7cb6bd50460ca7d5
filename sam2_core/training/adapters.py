"""LoRA adapters (arXiv 2106.09685) on layers of a model. They alone are trained, and are merged when saved."""
from __future__ import annotations

import re
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from sam2_core.model import Sam2Model
from sam2_core.training.settings import part_of

DEFAULT_RANK = 8


def add_adapters(model: Sam2Model, rank: int, pattern: str | None, frozen: Iterable[str], seed: int) -> list[str]:
    """Add adapters to a model and return the names of the layers that have one.

    pattern: regular expression that matches the whole name of each layer to adapt, linear or convolution; None adapts
    all linear layers outside the ``frozen`` parts. Raises ValueError for a pattern that matches no layer, and if peft
    is not installed.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise ValueError(f'lora {rank}: adapters need peft, which cannot be imported ({error}): '
                         f'pip install peft') from None
    names = _layers(model, pattern, tuple(frozen))
    torch.manual_seed(seed)  # all processes draw the same adapters
    targets = '|'.join(re.escape(name) for name in names)
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=targets), model)
    return names


def _layers(model: Sam2Model, pattern: str | None, frozen: tuple[str, ...]) -> list[str]:
    layers = [(name, module) for name, module in model.named_modules()
              if type(module) is nn.Linear or type(module) is nn.Conv2d and module.groups == 1]
    if pattern is None:
        names = [name for name, layer in layers if isinstance(layer, nn.Linear) and part_of(name, frozen) is None]
        if not names:
            raise ValueError(f'lora: freezing {" ".join(frozen)} leaves no linear layer to adapt')
        return names
    try:
        names = [name for name, _ in layers if re.fullmatch(pattern, name)]
    except re.error as error:
        raise ValueError(f'lora-modules {pattern!r}: not a regular expression: {error}') from None
    if not names:
        raise ValueError(f'lora-modules {pattern!r}: matches no layer of {model.name}; layers are '
                         f'{", ".join(name for name, _ in layers[::len(layers) // 4][:4])}, ...')
    return names


def base_weights(model: nn.Module) -> tuple[str, ...]:
    """Return the names of the parameters outside the adapters."""
    return tuple(name for name, _ in model.named_parameters() if '.lora_' not in name)


def merged_state(model: nn.Module) -> dict[str, Tensor]:
    """Return a model's state dict under its own names, with adapters merged. The model itself does not change."""
    state = model.state_dict()
    adapted = {name: module for name, module in model.named_modules() if hasattr(module, 'get_delta_weight')}
    for name, module in adapted.items():
        state[f'{name}.base_layer.weight'] = module.base_layer.weight.detach() + sum(
            module.get_delta_weight(adapter).detach() for adapter in module.active_adapters)
    return {key.replace('.base_layer.', '.'): value for key, value in state.items() if '.lora_' not in key}
