"""Weights: find, download, verify, recognise, load. Never runs code from a file."""
from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from sam2_core.approximations import pool_memory, quantize_encoder
from sam2_core.checkpoint_files import CheckpointError, read_file, read_header
from sam2_core.checkpoint_layouts import published_weights
from sam2_core.compiled import CompiledStages
from sam2_core.config import VARIANTS, Sam2Config, check_image_size, variant
from sam2_core.model import Sam2Model

CONFIG_KEY = 'sam2_config'  # in the header of weights that were trained here: the shape of the model, as JSON
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_COMPARED = (*DTYPES, torch.float64)  # those that PyTorch compares without a copy; float8 is none


class OfficialFile(NamedTuple):
    """A published checkpoint on the Hugging Face hub."""

    repository: str
    filename: str
    sha256: str
    size: int | None  # bytes; None where it is not known, and the hash alone decides


OFFICIAL = {
    'sam2.1_hiera_tiny': OfficialFile(
        'facebook/sam2.1-hiera-tiny', 'sam2.1_hiera_tiny.pt',
        '7402e0d864fa82708a20fbd15bc84245c2f26dff0eb43a4b5b93452deb34be69', 156008466),
    'sam2.1_hiera_small': OfficialFile(
        'facebook/sam2.1-hiera-small', 'sam2.1_hiera_small.pt',
        '6d1aa6f30de5c92224f8172114de081d104bbd23dd9dc5c58996f0cad5dc4d38', 184416285),
    'sam2.1_hiera_base_plus': OfficialFile(
        'facebook/sam2.1-hiera-base-plus', 'sam2.1_hiera_base_plus.pt',
        'a2345aede8715ab1d5d31b4a509fb160c5a4af1970f199d9054ccfb746c004c5', 323606802),
    'sam2.1_hiera_large': OfficialFile(
        'facebook/sam2.1-hiera-large', 'sam2.1_hiera_large.pt',
        '2647878d5dfa5098f2f8649825738a9345572bae2d4350a2468587ece47dd318', 898083611),
    'sam2_hiera_tiny': OfficialFile(
        'facebook/sam2-hiera-tiny', 'sam2_hiera_tiny.pt',
        '65b50056e05bcb13694174f51bb6da89c894b57b75ccdf0ba6352c597c5d1125', 155906050),
    'sam2_hiera_small': OfficialFile(
        'facebook/sam2-hiera-small', 'sam2_hiera_small.pt',
        '95949964d4e548409021d47b22712d5f1abf2564cc0c3c765ba599a24ac7dce3', None),
    'sam2_hiera_base_plus': OfficialFile(
        'facebook/sam2-hiera-base-plus', 'sam2_hiera_base_plus.pt',
        'd0bb7f236400a49669ffdd1be617959a8b1d1065081789d7bbff88eded3a8071', 323493298),
    'sam2_hiera_large': OfficialFile(
        'facebook/sam2-hiera-large', 'sam2_hiera_large.pt',
        '7442e4e9b732a508f80e141e7c2913437a3610ee0c77381a66658c3a445df87b', 897952466),
}

_PACKAGED = {'nano': Path(__file__).parent / 'weights' / 'nano.safetensors'}


def load_model(name: str | None = None, checkpoint: str | Path | None = None, device: str | torch.device | None = None,
               dtype: torch.dtype = torch.float32, image_size: int | None = None,
               compile: bool | str = False, memory_pooling: int = 1, int8_encoder: bool = False) -> Sam2Model:
    """Load a model, ready for inference.

    name: one of ``VARIANTS``; None: recognised from ``checkpoint``. Nano is packaged; the official models are fetched
    once into the Hugging Face cache and checked.
    checkpoint: a local file instead, ``.pt`` as published or ``.safetensors``.
    device: 'cpu', 'cuda', 'cuda:1', ...; None: CUDA when there is a GPU, else the CPU.
    dtype: float32, bfloat16 or float16.
    image_size: side of the square the model sees, a multiple of 32. None means the size that the weights were trained
    with: what ``sam2_train`` wrote beside them, or the published size.
    compile: let trackers run compiled stages (torch.compile; CUDA graphs on a GPU), or the name of torch.compile's
    backend. The first image of each kind takes minutes: ``model.compiled.warm_up`` goes through all. For GPUs: on a
    CPU it works, but gains nothing.
    memory_pooling: 2: an approximation, see ``approximations.pool_memory``; int8_encoder: likewise,
    ``approximations.quantize_encoder``, on a CPU. What they cost is in docs/reference/benchmarks.md.
    Raises ValueError for a name, device, dtype or size that does not exist, CheckpointError for weights that do not
    fit, FileNotFoundError for a missing file, ConnectionError when the weights cannot be fetched.
    """
    device = checked_device(device)
    if dtype not in DTYPES:
        raise ValueError(f'dtype {dtype}: must be one of {", ".join(str(d) for d in DTYPES)}')
    if image_size is not None:
        check_image_size(image_size)
    if name is not None:
        variant(name)
    elif checkpoint is None:
        raise ValueError(f'neither a model name nor a checkpoint: name one of {", ".join(VARIANTS)}')
    path = Path(checkpoint) if checkpoint is not None else find_weights(name)
    weights = read_weights(path)
    name = name or recognise(weights, path)
    config = variant(name)
    size = trained_image_size(path) if image_size is None else image_size
    model = _new_model(config if size is None else replace(config, image_size=size), name)
    _check_weights(weights, model, path, dtype)
    model.load_state_dict({key: value.float() for key, value in weights.items()})
    for parameter in model.parameters():  # not the buffers: coordinates and positions stay float32
        parameter.data = parameter.data.to(dtype)
    model = model.to(device).eval().requires_grad_(False)
    pool_memory(model, memory_pooling)
    if int8_encoder:
        quantize_encoder(model)
    if compile:
        model.compiled = CompiledStages(model, 'inductor' if compile is True else compile)
    return model


def find_weights(name: str) -> Path:
    """The file with the published weights of ``name``: packaged, cached, or fetched now (with a progress bar).

    What is cached has to have the published sha256, so there is nothing to ask the hub about it: a robot without a
    connection does not wait for one.
    """
    if name in _PACKAGED:
        return _PACKAGED[name]
    official = OFFICIAL[name]
    try:
        from huggingface_hub import hf_hub_download, try_to_load_from_cache
        from huggingface_hub.errors import HfHubHTTPError
    except ImportError:
        raise ConnectionError(f'the weights of {name} are fetched with huggingface_hub: pip install huggingface_hub, '
                              f'or give a local file as checkpoint') from None
    try:
        cached = try_to_load_from_cache(official.repository, official.filename)
        path = Path(cached if isinstance(cached, str) else hf_hub_download(official.repository, official.filename))
    except (OSError, HfHubHTTPError) as error:  # no network, no such file, disk full
        raise ConnectionError(f'the weights of {name} ({official.repository}/{official.filename}) cannot be fetched: '
                              f'{error}. Give a local file as checkpoint, or fetch it on a machine with a connection '
                              f'and copy the cache') from error
    verify(path, official)
    return path


def verify(path: Path, official: OfficialFile) -> None:
    """CheckpointError unless the file is byte for byte the published one."""
    size = path.stat().st_size
    if official.size is not None and size != official.size:
        raise CheckpointError(f'{path}: {size} bytes, the published file has {official.size}: delete it and try again')
    digest = _sha256(path)
    if digest != official.sha256:
        raise CheckpointError(f'{path}: sha256 {digest}, the published file has {official.sha256}: '
                              f'delete it and try again')


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()  # in blocks: Python 3.10 has no file_digest
    with path.open('rb') as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def read_weights(path: Path) -> dict[str, Tensor]:
    """Return the state dict in a checkpoint under the published names, on the CPU.

    FileNotFoundError for a missing file, CheckpointError for a file without the weights of a SAM 2, by what it is.
    """
    return published_weights(read_file(path), path)


def trained_image_size(path: Path) -> int | None:
    """Return the image size in the header of weights that were trained here, None if the file has no such header."""
    text = read_header(path).get(CONFIG_KEY)
    if text is None:
        return None
    try:
        size = json.loads(text)['image_size']
        check_image_size(size)
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f'checkpoint {path}: {CONFIG_KEY} in its header: {error}: pass image_size') from error
    return size


def read_checkpoint(path: Path, name: str | None = None,
                    dtype: torch.dtype = torch.float32) -> tuple[str, dict[str, Tensor]]:
    """Return the variant in a checkpoint and its weights, if ``load_model`` can use them.

    name: the variant it must be; None: recognised. Raises as ``read_weights``, and CheckpointError for weights that
    do not fit or are not finite in ``dtype``.
    """
    weights = read_weights(path)
    name = name or recognise(weights, path)
    _check_weights(weights, _new_model(variant(name), name), path, dtype)
    return name, weights


def _new_model(config: Sam2Config, name: str) -> Sam2Model:
    if torch.get_default_device().type == 'cpu':
        return Sam2Model(config, name)
    with torch.device('cpu'):
        return Sam2Model(config, name)


def check_finite(weights: Mapping[str, Tensor], path: Path | str, dtype: torch.dtype = torch.float32) -> None:
    """Raise CheckpointError, by name, for weights that are NaN or infinite, or will be when converted to ``dtype``."""
    broken, beyond, limit = [], [], torch.finfo(dtype).max
    for key, value in weights.items():
        if not value.is_floating_point() or not value.numel():
            continue
        ends = torch.aminmax(value if value.dtype in _COMPARED else value.float())  # NaN passes through
        largest = max(abs(end.item()) for end in ends)
        if not all(math.isfinite(end.item()) for end in ends):
            broken.append(key)
        elif largest > limit and torch.tensor(largest, dtype=dtype, device='cpu').isinf():  # a little more is rounded
            beyond.append((key, largest))
    if broken:
        first = weights[broken[0]].float()
        raise CheckpointError(
            f'checkpoint {path}: {len(broken)} of {len(weights)} tensors are not finite: {", ".join(broken[:3])}'
            f'{", ..." if len(broken) > 3 else ""}; in {broken[0]} {int((~first.isfinite()).sum())} of '
            f'{first.numel()} values are NaN or infinite: the training diverged or the file is damaged; take an '
            f'earlier checkpoint')
    if beyond:
        raise CheckpointError(
            f'checkpoint {path}: {len(beyond)} of {len(weights)} tensors exceed {limit:g}, the '
            f'largest {dtype}; {beyond[0][0]} reaches {beyond[0][1]:g}: load it with dtype bfloat16 or float32')


def recognise(weights: Mapping[str, Tensor], path: Path | str = 'state dict') -> str:
    """The variant whose parameters have these names and shapes; CheckpointError when there is none."""
    position = weights.get('image_encoder.trunk.pos_embed')
    blocks = {key.split('.')[3] for key in weights if key.startswith('image_encoder.trunk.blocks.')}
    is_21 = 'no_obj_embed_spatial' in weights
    for name, config in VARIANTS.items():
        if (position is not None and position.ndim == 4 and position.shape[1] == config.embed_dim
                and len(blocks) == config.blocks and is_21 == config.no_object_embedding):
            return name
    raise CheckpointError(f'{path}: not a SAM 2 checkpoint that is known: {len(blocks)} trunk blocks, position '
                          f'embedding {None if position is None else tuple(position.shape)}; '
                          f'known are {", ".join(VARIANTS)}')


def _check_weights(weights: Mapping[str, Tensor], model: Sam2Model, path: Path, dtype: torch.dtype) -> None:
    own = model.state_dict()
    problems = [f'missing {key}' for key in own if key not in weights]
    problems += [f'unexpected {key}' for key in weights if key not in own]
    problems += [f'{key} is {tuple(weights[key].shape)}, must be {tuple(own[key].shape)}'
                 for key in own if key in weights and weights[key].shape != own[key].shape]
    problems += [f'{key} is {weights[key].dtype}, must be floating-point, before it is quantized'
                 for key in own if key in weights and not weights[key].is_floating_point()]
    if problems:
        more = f' and {len(problems) - 3} more' if len(problems) > 3 else ''
        try:
            like = recognise(weights)
        except CheckpointError:
            hint = 'it fits no variant that is known'
        else:
            hint = f'it looks like {like}' if like != model.name else (
                f'otherwise it is one: save the state dict of the whole {model.name}, and nothing else')
        raise CheckpointError(f'checkpoint {path} is not a {model.name}: {"; ".join(problems[:3])}{more}; {hint}')
    check_finite(weights, path, dtype)


def checked_device(device: str | torch.device | None) -> torch.device:
    """Return the device; None: CUDA when there is a GPU, else the CPU. Raise ValueError if this machine has no such."""
    if device is None:
        device = 'cuda' if torch.cuda.is_available() else 'cpu'
    try:
        device = torch.device(device)
    except RuntimeError:
        raise ValueError(f"device {device!r}: must be 'cpu', 'cuda' or 'cuda:N'") from None
    if device.type not in ('cpu', 'cuda'):
        raise ValueError(f"device '{device}': must be 'cpu', 'cuda' or 'cuda:N'")
    if device.type == 'cuda' and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"device '{device}': this machine has {torch.cuda.device_count()} CUDA devices; use 'cpu', "
                         f'or install a CUDA build of PyTorch and its driver')
    return device
