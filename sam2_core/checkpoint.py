"""Loading of models: find, download, verify, recognise and load weights. Code in a file never runs."""
from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Container, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from sam2_core.approximations import pool_memory, quantize_encoder
from sam2_core.checkpoint_files import CheckpointError, read_file, read_header
from sam2_core.checkpoint_layouts import published_weights
from sam2_core.compiled import CompiledStages
from sam2_core.config import VARIANTS, HieraConfig, RepVitConfig, Sam2Config, check_image_size, variant
from sam2_core.model import Sam2Model

__all__ = ['CONFIG_KEY', 'DTYPES', 'OFFICIAL', 'CheckpointError', 'OfficialFile', 'cached_weights', 'check_finite',
           'checked_device', 'find_weights', 'load_model', 'read_checkpoint', 'read_weights', 'recognise',
           'trained_image_size', 'verify']

CONFIG_KEY = 'sam2_config'  # header field of weights trained with this package: the configuration as JSON
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_COMPARED = (*DTYPES, torch.float64)  # types that PyTorch compares directly; float8 has to be converted


class OfficialFile(NamedTuple):
    """A published checkpoint on the Hugging Face hub."""

    repository: str
    filename: str
    sha256: str
    size: int | None  # bytes; None if unknown, then the hash alone decides


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
    'edgetam': OfficialFile(
        'facebook/EdgeTAM', 'edgetam.pt',
        'ed2d4850b8792c239689b043c47046ec239b6e808a3d9b6ae676c803fd8780df', 56116523),
}

_PACKAGED = {'nano': Path(__file__).parent / 'weights' / 'nano.safetensors'}


def load_model(name: str | None = None, checkpoint: str | Path | None = None, device: str | torch.device | None = None,
               dtype: torch.dtype = torch.float32, image_size: int | None = None,
               compile: bool | str = False, memory_pooling: int = 1, int8_encoder: bool = False) -> Sam2Model:
    """Load a model for inference.

    Args:
        name: One of ``VARIANTS``; None means the variant that is recognised from ``checkpoint``. The weights of nano
            are packaged. Those of the official models are downloaded once to the Hugging Face cache, and verified.
        checkpoint: A local file to use instead, ``.pt`` as published or ``.safetensors``.
        device: 'cpu', 'cuda', 'cuda:1', ...; None means CUDA if there is a GPU, else the CPU.
        dtype: float32, bfloat16 or float16.
        image_size: Side of the square model input in pixels, a multiple of 32, for edgetam of 256. None means the size
            with which the weights were trained: what ``sam2_train`` has stored with them, or the published size.
        compile: Let trackers run compiled stages (torch.compile, with CUDA graphs on a GPU); True, or the name of a
            backend of torch.compile. The first images take minutes; ``model.compiled.warm_up`` runs all shapes in
            advance. On a CPU it gains nothing.
        memory_pooling: 1 (off) or 2, an approximation: see ``approximations.pool_memory``.
        int8_encoder: An approximation for CPUs: see ``approximations.quantize_encoder``.

    Returns:
        The model in evaluation mode, without gradients.

    Raises:
        CheckpointError: The weights do not fit, or the file is not a checkpoint.
        ConnectionError: The weights cannot be downloaded.
        FileNotFoundError: The file does not exist.
        ValueError: The name, device, dtype, size, backend or approximation does not exist.
    """
    device = checked_device(device)
    if dtype not in DTYPES:
        raise ValueError(f'dtype {dtype}: must be one of {", ".join(str(d) for d in DTYPES)}')
    if image_size is not None:
        check_image_size(image_size)
    if name is not None:
        variant(name, image_size)  # raises before anything is downloaded
    if checkpoint is not None:
        path = Path(checkpoint)
    elif name is not None:
        path = find_weights(name)
    else:
        raise ValueError(f'neither a model name nor a checkpoint: give a checkpoint, or one of {", ".join(VARIANTS)}')
    weights = read_weights(path)
    name = name or recognise(weights, path)
    size = trained_image_size(path) if image_size is None else image_size
    model = _new_model(variant(name, size), name)
    _check_weights(weights, model, path, dtype)
    counts = {key: value for key, value in model.state_dict().items() if not value.is_floating_point()}  # never read
    model.load_state_dict(counts | {key: value.float() for key, value in weights.items()})
    for parameter in model.parameters():  # only parameters: coordinates and positions stay float32
        parameter.data = parameter.data.to(dtype)
    model = model.to(device).eval().requires_grad_(False)
    pool_memory(model, memory_pooling)
    if int8_encoder:
        quantize_encoder(model)
    if compile:
        model.compiled = CompiledStages(model, 'inductor' if compile is True else compile)
    return model


def find_weights(name: str) -> Path:
    """Return the file with the published weights of a model: packaged, cached, or downloaded now.

    A cached file must have the published sha256, so the hub is not asked about it, and a robot without a connection
    does not wait for one.

    Raises:
        CheckpointError: The file differs from the published one.
        ConnectionError: The weights cannot be downloaded.
        KeyError: There is no model of that name.
    """
    if name in _PACKAGED:
        return _PACKAGED[name]
    official = OFFICIAL[name]
    try:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import HfHubHTTPError
    except ImportError:
        raise ConnectionError(f'downloading the weights of {name} needs huggingface_hub: pip install huggingface_hub, '
                              f'or give a local file as checkpoint') from None
    try:
        path = cached_weights(name) or Path(hf_hub_download(official.repository, official.filename))
    except (OSError, HfHubHTTPError) as error:  # no network, no such file, disk full
        raise ConnectionError(f'the weights of {name} ({official.repository}/{official.filename}) cannot be '
                              f'downloaded: {error}. Give a local file as checkpoint, or download them on a machine '
                              f'with a connection and copy the cache') from error
    verify(path, official)
    return path


def cached_weights(name: str) -> Path | None:
    """Return the file of an official model in the Hugging Face cache, unverified; None if it is not cached.

    Nothing is downloaded. Raise KeyError if there is no official model of that name, and ImportError without
    huggingface_hub, which knows where the cache is.
    """
    from huggingface_hub import try_to_load_from_cache
    official = OFFICIAL[name]
    cached = try_to_load_from_cache(official.repository, official.filename)
    return Path(cached) if isinstance(cached, str) else None


def verify(path: Path, official: OfficialFile) -> None:
    """Raise CheckpointError unless the file is byte for byte the published one."""
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
    """Return the state dict of a checkpoint with the published names, on the CPU.

    Raise FileNotFoundError for a missing file, and CheckpointError, which says what the file is, for a file without the
    weights of a SAM 2.
    """
    return published_weights(read_file(path), path)


def trained_image_size(path: Path) -> int | None:
    """Return the image size that ``sam2_train`` has stored in the header of a file, or None if there is none."""
    text = read_header(path).get(CONFIG_KEY)
    if text is None:
        return None
    try:
        size: int = json.loads(text)['image_size']
        check_image_size(size)
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f'checkpoint {path}: {CONFIG_KEY} in its header: {error}: pass image_size') from error
    return size


def read_checkpoint(path: Path, name: str | None = None,
                    dtype: torch.dtype = torch.float32) -> tuple[str, dict[str, Tensor]]:
    """Return the variant and the weights of a checkpoint if ``load_model`` can use them.

    Args:
        path: The file.
        name: The variant that it must be; None means any.
        dtype: The type in which the weights must be finite.

    Raises:
        CheckpointError: The file is not a checkpoint, the weights do not fit, or they are not finite in ``dtype``.
        FileNotFoundError: The file does not exist.
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


def check_finite(weights: Mapping[str, Tensor], path: Path | str, dtype: torch.dtype = torch.float32,
                 unconverted: Container[str] = ()) -> None:
    """Raise CheckpointError for weights that are NaN or infinite, or become infinite when converted to ``dtype``.

    ``unconverted``: names of weights that stay float32.
    """
    broken, beyond, limit = [], [], torch.finfo(dtype).max
    for key, value in weights.items():
        if not value.is_floating_point() or not value.numel():
            continue
        ends = torch.aminmax(value if value.dtype in _COMPARED else value.float())  # propagates NaN
        largest = max(abs(end.item()) for end in ends)
        if not all(math.isfinite(end.item()) for end in ends):
            broken.append(key)
        elif (key not in unconverted and largest > limit
              and torch.tensor(largest, dtype=dtype, device='cpu').isinf()):  # some round down to the limit
            beyond.append((key, largest))
    if broken:
        first = weights[broken[0]].float()
        raise CheckpointError(
            f'checkpoint {path}: {len(broken)} of {len(weights)} tensors are not finite: {", ".join(broken[:3])}'
            f'{", ..." if len(broken) > 3 else ""}; in {broken[0]} {int((~first.isfinite()).sum())} of '
            f'{first.numel()} values are NaN or infinite: the training diverged or the file is damaged; use an '
            f'earlier checkpoint')
    if beyond:
        raise CheckpointError(
            f'checkpoint {path}: {len(beyond)} of {len(weights)} tensors exceed {limit:g}, the '
            f'largest {dtype}; {beyond[0][0]} reaches {beyond[0][1]:g}: load it with dtype bfloat16 or float32')


def recognise(weights: Mapping[str, Tensor], path: Path | str = 'state dict') -> str:
    """Return the variant whose parameters have these names and shapes; raise CheckpointError if there is none."""
    is_21, blocks = 'no_obj_embed_spatial' in weights, _trunk_blocks(weights)
    for name, config in VARIANTS.items():
        if _has_trunk(weights, blocks, config.trunk) and is_21 == config.no_object_embedding:
            return name
    position = weights.get('image_encoder.trunk.pos_embed')
    raise CheckpointError(f'{path}: not a known SAM 2 checkpoint: {blocks} trunk blocks, position '
                          f'embedding {None if position is None else tuple(position.shape)}; '
                          f'known variants are {", ".join(VARIANTS)}')


def _has_trunk(weights: Mapping[str, Tensor], blocks: int, trunk: HieraConfig | RepVitConfig) -> bool:
    """Return whether a state dict with this number of blocks has an image encoder of this kind and size."""
    if isinstance(trunk, HieraConfig):
        position = weights.get('image_encoder.trunk.pos_embed')
        return (position is not None and position.ndim == 4 and position.shape[1] == trunk.embed_dim
                and blocks == trunk.blocks)
    stem = weights.get('image_encoder.trunk.body.stem.conv2.c.weight')
    return stem is not None and len(stem) == trunk.channels[0] and blocks == sum(trunk.stages)


def _trunk_blocks(weights: Mapping[str, Tensor]) -> int:
    return len({match[0] for key in weights
                if (match := re.match(r'image_encoder\.trunk\.(body\.stages_\d+\.)?blocks\.\d+\.', key))})


def _check_weights(weights: Mapping[str, Tensor], model: Sam2Model, path: Path, dtype: torch.dtype) -> None:
    own = model.state_dict()
    problems = [f'missing {key}' for key, value in own.items() if key not in weights and value.is_floating_point()]
    problems += [f'unexpected {key}' for key in weights if key not in own]
    problems += [f'{key} is {tuple(weights[key].shape)}, must be {tuple(own[key].shape)}'
                 for key in own if key in weights and weights[key].shape != own[key].shape]
    problems += [f'{key} is {weights[key].dtype}, must be floating-point; save the weights before they are quantised'
                 for key, value in own.items() if value.is_floating_point()  # counts of batches are integers
                 and key in weights and not weights[key].is_floating_point()]
    if problems:
        more = f' and {len(problems) - 3} more' if len(problems) > 3 else ''
        try:
            like = recognise(weights)
        except CheckpointError:
            hint = 'it fits no known variant'
        else:
            hint = f'it looks like {like}' if like != model.name else (
                f'apart from that it is one: save the complete state dict of the {model.name}, and nothing else')
        raise CheckpointError(f'checkpoint {path} is not {model.name}: {"; ".join(problems[:3])}{more}; {hint}')
    check_finite(weights, path, dtype, {name for name, _ in model.named_buffers()})


def checked_device(device: str | torch.device | None) -> torch.device:
    """Return a device of this machine; None means CUDA if there is a GPU, else the CPU.

    Raise ValueError for a device that this machine does not have.
    """
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
