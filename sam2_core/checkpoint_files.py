"""Reading of weight files without running code in them; errors say what a file is instead."""
from __future__ import annotations

import argparse
import json
import pathlib
import pickle
import re
import warnings
import zipfile
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.torch_version import TorchVersion

_HEAD = 4096  # bytes that identify a file
_LARGEST_HEADER = 100_000_000  # bytes of a safetensors header
_PYTORCH = bytes.fromhex('6cfc9c46f9206aa85019')  # magic number of torch.save before PyTorch 1.6
_LARGEST_INDEX = 50_000_000  # bytes of a JSON index of shards

# Training programs store these types beside the weights; building them runs no code.
_HARMLESS = [np.dtype, np.ndarray, *(type(np.dtype(code)) for code in '?bBhHiIlLefd'), argparse.Namespace,
             pathlib.PosixPath]

_BEGINNINGS = (  # first bytes of other files, and what to do about each
    (rb'version https://git-lfs', 'a git-lfs pointer, not the weights: run git lfs pull in the repository'),
    (rb'(\xef\xbb\xbf)?\s*<(!doctype html|html|head|\?xml|error)', 'a web page, such as the error or login '
     'page of a hub, not the weights: fetch the file itself (hf download, or the link with /resolve/ instead of '
     '/blob/)'),
    (rb'\x08.\x12', 'an ONNX graph: give the checkpoint that it was exported from'),
    (rb'[fp]trt', 'a TensorRT engine: give the checkpoint that it was built from'),
    (rb'....TFL3', 'a TensorFlow Lite model: give a PyTorch checkpoint'),
    (rb'GGUF', 'a GGUF file: give a PyTorch checkpoint'),
    (rb'\x89HDF', 'an HDF5 file: give a PyTorch checkpoint'),
    (rb'\x93NUMPY', 'a numpy array: give a PyTorch checkpoint'),
    (rb'\x1f\x8b|BZh|\xfd7zXZ|7z\xbc\xaf|\x28\xb5\x2f\xfd|Rar!', 'a compressed archive: unpack it'),
    (rb'.{257}ustar', 'a tar archive: unpack it'),
)
_BY_SUFFIX = {'.onnx': _BEGINNINGS[2][1], '.engine': _BEGINNINGS[3][1], '.plan': _BEGINNINGS[3][1]}


class CheckpointError(ValueError):
    """Error for weights that cannot be used; the message states the first problems and the cure."""


def read_file(path: Path) -> Any:
    """Read a safetensors file, a file of torch.save, or an index of shards, onto the CPU.

    The content decides about the format, not the suffix. Raise FileNotFoundError for a missing file, and
    CheckpointError, which says what the file is, for any other.
    """
    if path.is_dir():
        found = sorted(file.name for file in path.iterdir() if file.suffix in ('.pt', '.pth', '.bin', '.safetensors'))
        raise CheckpointError(f'checkpoint {path}: a folder: give a file in it'
                              + (f', such as {", ".join(found[:3])}' if found else ''))
    if not path.is_file():
        raise FileNotFoundError(f'checkpoint {path}: no such file')
    try:
        with path.open('rb') as file:
            head = file.read(_HEAD)
        size = path.stat().st_size
    except OSError as error:
        raise CheckpointError(f'checkpoint {path}: cannot be read ({error.strerror}): check its owner, its mode '
                              f'and the disk') from None
    if not head.strip(b'\0'):
        raise CheckpointError(f'checkpoint {path}: {f"{size} bytes, all zero" if head else "an empty file"}: '
                              f'fetch or copy it again')
    if head.startswith(b'PK'):
        return _read_zip(path)
    if _is_safetensors(head):
        return _read_safetensors(path)
    for beginning, what in _BEGINNINGS:
        if re.match(beginning, head, re.DOTALL | re.IGNORECASE):
            raise CheckpointError(f'checkpoint {path}: {what}')
    if path.suffix in _BY_SUFFIX:
        raise CheckpointError(f'checkpoint {path}: {_BY_SUFFIX[path.suffix]}')
    if head.lstrip()[:1] in (b'{', b'['):
        return _read_index(path, size)
    if head[:1] == b'\x80':  # a plain pickle, as PyTorch wrote before 1.6
        return _load(path, plain=_PYTORCH not in head[:32])
    raise CheckpointError(f'checkpoint {path}: unknown format, begins with {head[:12]!r}: give a complete file of '
                          f'torch.save or a complete .safetensors file')


def read_header(path: Path) -> dict[str, str]:
    """Return the metadata in the header of a safetensors file, or an empty dict for other files."""
    with path.open('rb') as file:
        if not _is_safetensors(file.read(9)):
            return {}
    from safetensors import safe_open
    with safe_open(path, 'pt') as file:
        return file.metadata() or {}


def _is_safetensors(head: bytes) -> bool:
    return head[8:9] == b'{' and int.from_bytes(head[:8], 'little') <= _LARGEST_HEADER


def _read_safetensors(path: Path) -> dict:
    from safetensors import SafetensorError
    from safetensors.torch import load_file
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise CheckpointError(f'checkpoint {path}: not a whole safetensors file ({error}): '
                              f'fetch or copy it again') from None


def _read_zip(path: Path) -> Any:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        raise CheckpointError(f'checkpoint {path}: truncated or damaged, the directory at its end cannot be read: '
                              f'fetch or copy it again') from None
    if any(name.endswith('/constants.pkl') for name in names):
        raise CheckpointError(f'checkpoint {path}: a TorchScript program: save the weights of the model that it was '
                              f'made from, torch.save(model.state_dict(), ...)')
    if names and all(name.endswith('.npy') for name in names):
        raise CheckpointError(f'checkpoint {path}: numpy arrays: give a PyTorch checkpoint')
    if any(name.endswith(('models/model.json', 'serialized_exported_program.json')) for name in names):
        raise CheckpointError(f'checkpoint {path}: a program of torch.export: save the weights of the model that it '
                              f'was made from, torch.save(model.state_dict(), ...)')
    if not any(name.endswith('data.pkl') for name in names):
        raise CheckpointError(f'checkpoint {path}: a zip archive of {", ".join(names[:3]) or "nothing"}, not of '
                              f'torch.save: unpack it, and give the checkpoint in it')
    return _load(path)


def _load(path: Path, plain: bool = False) -> Any:
    """Load a file of torch.save with a list of allowed types.

    Errors name a forbidden type, but do not repeat PyTorch's advice to run the code. With ``plain``, the file is a
    pickle that PyTorch has not written.
    """
    harmless = [*_HARMLESS, *_numpy_functions()]
    allowed = torch.serialization.safe_globals(harmless) if hasattr(torch.serialization, 'safe_globals') else (
        nullcontext())
    try:
        with warnings.catch_warnings(), allowed, path.open('rb') as file:  # given a path, PyTorch decides by the suffix
            warnings.simplefilter('ignore')
            return torch.load(file if path.suffix == '.safetensors' else path, map_location='cpu', weights_only=True)
    except pickle.UnpicklingError as error:
        found = re.search(r'(?:GLOBAL|class) `?([A-Za-z_][\w.]*\.\w+)', str(error))
        if found is None and plain:
            raise CheckpointError(f'checkpoint {path}: damaged, or pickled without torch.save: save it with '
                                  f'torch.save(model.state_dict(), ...)') from None
        if found is None:
            raise CheckpointError(f'checkpoint {path}: damaged, or not a PyTorch file: '
                                  f'fetch or copy it again') from None
        raise CheckpointError(
            f'checkpoint {path}: contains a Python object, {found[1]}, beside tensors: it was not loaded, because '
            f'that can run code; save only the weights where it was made, torch.save(model.state_dict(), ...)',
        ) from None
    except Exception as error:  # a damaged pickle can raise any exception
        text = (str(error) or type(error).__name__).splitlines()[0]
        reason = '' if 'weights_only' in text else f' ({text})'
        raise CheckpointError(f'checkpoint {path}: truncated or not a PyTorch file{reason}: '
                              f'fetch or copy it again') from None


def _numpy_functions() -> list:
    """Return the functions that numpy pickles numbers and arrays with, under both names of its module."""
    core = getattr(np, '_core', None) or np.core
    functions = [core.multiarray.scalar, core.multiarray._reconstruct]
    if TorchVersion(torch.__version__) < '2.6':  # older versions take no names
        return functions
    return functions + [(function, f'numpy.core.multiarray.{function.__name__}') for function in functions]


def _read_index(path: Path, size: int) -> dict:
    """Read the shards that an ``*.index.json`` lists from its folder."""
    what = 'a JSON file'
    try:
        index = json.loads(path.read_text()) if size <= _LARGEST_INDEX else None
    except (ValueError, OSError):
        index, what = None, 'a text file'
    files = index.get('weight_map') if isinstance(index, dict) else None
    if not isinstance(files, dict) or not files:
        raise CheckpointError(f'checkpoint {path}: {what}, not weights: give the .safetensors or .pt file beside it')
    content: dict = {}
    for name in sorted({str(file) for file in files.values()}):
        if Path(name).name != name or name.endswith('.json') or not (path.parent / name).is_file():
            raise CheckpointError(f'checkpoint {path}: its shard {name} is not beside it: copy all files of the '
                                  f'model into one folder')
        shard = read_file(path.parent / name)
        if not isinstance(shard, dict):
            raise CheckpointError(f'checkpoint {path}: its shard {name} holds a {type(shard).__name__}, not tensors '
                                  f'by name: fetch or copy it again')
        content.update(shard)
    return content
