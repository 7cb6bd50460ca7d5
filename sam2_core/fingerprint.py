"""Fingerprint of a model's weights, by which saved memories recognise the model that wrote them."""
from __future__ import annotations

import hashlib
from itertools import chain
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

_BYTES = 16
_Versions = list[tuple[Tensor, int, int, torch.dtype]]
_FOUND: WeakKeyDictionary[nn.Module, tuple[_Versions, str]] = WeakKeyDictionary()  # by model


def fingerprint(model: nn.Module) -> str:
    """Return a hash of the names and values of all weights, equal on every device.

    It is cached until a weight is replaced or changed in place; changes through ``parameter.data`` go unnoticed.
    """
    versions = _versions(model)
    known = _FOUND.get(model)
    if versions and known is not None and _equal(known[0], versions):
        return known[1]
    digest = hashlib.blake2b(digest_size=_BYTES)
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode())
        _add(digest, value)
    found = digest.hexdigest()
    _FOUND[model] = versions, found
    return found


def add_tensor(digest: Any, tensor: Tensor) -> None:
    """Add type, shape and values of a tensor to a hash of hashlib."""
    digest.update(f'{tensor.dtype}{tuple(tensor.shape)}'.encode())
    if tensor.numel():
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())


def _add(digest: Any, value: Any) -> None:
    """Add a value of a state dict; those of quantised layers are tuples of tensors and numbers."""
    if isinstance(value, Tensor):
        add_tensor(digest, value.dequantize() if value.is_quantized else value)
    elif isinstance(value, (tuple, list)):
        for part in value:
            _add(digest, part)
    else:
        digest.update(repr(value).encode())


def _versions(model: nn.Module) -> _Versions:
    """Return the weights with numbers that change when they change; empty if PyTorch does not count the changes."""
    try:
        return [(weight, weight._version, weight.data_ptr(), weight.dtype)
                for weight in chain(model.parameters(), model.buffers())]
    except RuntimeError:  # tensors made in inference mode have no version
        return []


def _equal(before: _Versions, now: _Versions) -> bool:
    return len(before) == len(now) and all(old[0] is new[0] and old[1:] == new[1:]
                                           for old, new in zip(before, now, strict=True))
