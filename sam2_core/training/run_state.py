"""Files of a training run: a folder to continue from, and weights that ``load_model`` loads.

Tensors are safetensors files, the rest is JSON; nothing is pickled. No file holds more than one copy of the model.
"""
from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from sam2_core.checkpoint import CONFIG_KEY, check_finite
from sam2_core.checkpoint_files import CheckpointError
from sam2_core.config import HieraConfig, PerceiverConfig, RepVitConfig, Sam2Config
from sam2_core.files import replacing
from sam2_core.model import Sam2Model
from sam2_core.training.adapters import merged_state


def config_to_json(config: Sam2Config) -> str:
    """Return the configuration of a model as text, for the header of its weights."""
    return json.dumps(asdict(config))


def config_from_json(text: str) -> Sam2Config:
    """Return the configuration that ``config_to_json`` wrote.

    Older files hold the sizes of their Hiera trunk among those of the model. Raise CheckpointError for a configuration
    that this version does not know.
    """
    try:
        return _config_of(json.loads(text))
    except (TypeError, ValueError) as error:
        raise CheckpointError(f'{CONFIG_KEY} {text[:80]}: {error}: written by another version of sam2_core; use that '
                              f'version') from error


def _config_of(content: dict[str, Any]) -> Sam2Config:
    if 'trunk' not in content:
        content['trunk'] = {item.name: content.pop(item.name) for item in fields(HieraConfig) if item.name in content}
    if not isinstance(content['trunk'], Mapping):
        raise TypeError(f'a trunk of type {type(content["trunk"]).__name__}')
    if content.get('perceiver') is not None:
        content['perceiver'] = PerceiverConfig(**content['perceiver'])
    kind = next((kind for kind in (HieraConfig, RepVitConfig)
                 if content['trunk'].keys() <= {item.name for item in fields(kind)}), None)
    if kind is None:
        raise ValueError(f'a trunk of {", ".join(content["trunk"])}')
    content['trunk'] = kind(**_with_tuples(content['trunk']))
    return Sam2Config(**_with_tuples(content))


def _with_tuples(content: Mapping[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in content.items()}


def stored_values(model: nn.Module, state: Mapping[str, Tensor], dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
    """Yield the values of a state dict as ``save_weights`` stores them.

    Parameters have the type ``dtype``. Buffers keep theirs: float16 cannot hold some statistics of normalisations, nor
    the number of batches that these have seen.
    """
    buffers = {name for name, _ in model.named_buffers()}
    for key, value in state.items():
        yield key, value.detach().to(value.dtype if key in buffers else dtype)


def save_weights(path: Path, model: Sam2Model, dtype: torch.dtype = torch.float16) -> None:
    """Write a model's weights, with its configuration in the header; the file changes all at once.

    Parameters are written in ``dtype``, buffers in their own type.
    """
    weights = {key: value.cpu().contiguous() for key, value in stored_values(model, merged_state(model), dtype)}
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as part:
        save_file(weights, part, metadata={CONFIG_KEY: config_to_json(model.config)})


def load_weights(path: Path, default: Sam2Config) -> Sam2Model:
    """Return a model with the weights of a file, ready for inference, on the CPU.

    Its configuration is that of the file's header, or ``default``. Raises CheckpointError for weights that do not fit
    it or are not finite.
    """
    with safe_open(path, 'pt') as file:
        header = file.metadata() or {}
    config = config_from_json(header[CONFIG_KEY]) if CONFIG_KEY in header else default
    model = Sam2Model(config, path.stem)
    weights = load_file(path)
    check_finite(weights, path)
    try:
        model.load_state_dict({key: value.float() for key, value in weights.items()})
    except RuntimeError as error:
        reason = str(error).splitlines()[1].strip()
        raise CheckpointError(f'{path}: does not fit its configuration: {reason}') from error
    return model.eval().requires_grad_(False)


def save_state(folder: Path, modules: Mapping[str, nn.Module], optimizer: Optimizer, names: Mapping[Tensor, str],
               state: Mapping[str, Any]) -> None:
    """Write everything a run needs to continue; the folder changes all at once, whenever the process is killed."""
    new, old = folder.with_name(folder.name + '.new'), folder.with_name(folder.name + '.old')
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    for name, module in modules.items():
        save_file({key: value.detach().cpu().contiguous() for key, value in module.state_dict().items()},
                  new / f'{name}.safetensors')
    for field in ('exp_avg', 'exp_avg_sq'):
        moments = {names[p]: s[field].cpu().contiguous() for p, s in optimizer.state.items() if field in s}
        save_file(moments, new / f'{field}.safetensors')
    steps = {names[p]: int(s['step']) for p, s in optimizer.state.items()}
    (new / 'state.json').write_text(json.dumps({**state, 'optimizer_steps': steps}))
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    new.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def load_state(folder: Path, modules: Mapping[str, nn.Module], optimizer: Optimizer,
               names: Mapping[Tensor, str]) -> dict[str, Any] | None:
    """Load into modules and optimizer what ``save_state`` wrote, and return its ``state``; None if there is nothing."""
    if not folder.exists():
        folder = folder.with_name(folder.name + '.old')  # killed between the two renames
    if not folder.exists():
        return None
    for name, module in modules.items():
        module.load_state_dict(load_file(folder / f'{name}.safetensors'))
    moments = {field: load_file(folder / f'{field}.safetensors') for field in ('exp_avg', 'exp_avg_sq')}
    state = json.loads((folder / 'state.json').read_text())
    steps = state.pop('optimizer_steps')
    for parameter, name in names.items():
        if name in steps:
            on = parameter.device
            step_device = on if optimizer.defaults['capturable'] or optimizer.defaults['fused'] else 'cpu'
            optimizer.state[parameter] = {
                'step': torch.tensor(float(steps[name]), device=step_device),
                **{field: values[name].to(on) for field, values in moments.items()}}
    return state


def saved_step(folder: Path) -> int | None:
    """Return the step whose state the folder holds, or None if nothing was saved."""
    try:
        return json.loads((folder / 'state.json').read_text())['step']
    except OSError:
        return None


def parameter_names(modules: Mapping[str, nn.Module]) -> dict[Tensor, str]:
    """Return the parameters of all modules with their names in the files."""
    return {parameter: f'{prefix}.{key}' for prefix, module in modules.items()
            for key, parameter in module.named_parameters()}
