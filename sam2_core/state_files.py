"""Files of tracker states: safetensors, replaced as a whole, with a checksum over everything that is read."""
from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from sam2_core.files import replacing
from sam2_core.fingerprint import add_tensor
from sam2_core.tracker_state import TrackerStateError

MARK = 'sam2_tracker_state'  # header field: the metadata of the state as JSON
_CHECKSUM, _NOTES = 'sha256', 'notes'
_LONGEST_HEADER = 100_000_000  # bytes, the limit of safetensors


class ForeignFileError(TrackerStateError):
    """Error for a whole safetensors file that is not of a tracker, such as a checkpoint."""


def save_state(path: str | Path, state: Mapping[str, Any], notes: Mapping[str, str] | None = None) -> None:
    """Write the state of a tracker to a safetensors file; the file changes all at once, also in a power cut.

    Args:
        path: The file.
        state: What ``StreamTracker.state_dict`` returned.
        notes: Texts of the caller that are stored in the header, such as the number of the image.

    Raises:
        OSError: The file cannot be written. The file that was there before is still there.
    """
    tensors = {key: value for key, value in state.items() if isinstance(value, Tensor)}
    header = {MARK: json.dumps(state['metadata']), _NOTES: json.dumps(dict(notes or {}))}
    header[_CHECKSUM] = _checksum(tensors, header)
    with replacing(Path(path), durable=True) as part:
        try:
            safetensors.torch.save_file(tensors, part, header)
        except SafetensorError as error:  # which says nothing about the file
            raise OSError(f'{path}: cannot be written: {error}') from error


def load_state(path: str | Path, max_bytes: int | None = None) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the state in a file, for ``StreamTracker.load_state_dict``, and the notes of the caller.

    Args:
        path: The file.
        max_bytes: Maximum size of the file, checked before it is read; None means no limit.

    Raises:
        ForeignFileError: The file is a safetensors file, but not of a tracker.
        OSError: The file cannot be read.
        TrackerStateError: The file is too large, truncated or damaged.
    """
    path = Path(path)
    with path.open('rb') as file:
        size = file.seek(0, 2)
        if max_bytes is not None and size > max_bytes:
            raise TrackerStateError(f'{path}: {size} bytes: must be at most {max_bytes}; it is not the state of this '
                                    f'tracker, or damaged: use another file')
        file.seek(0)
        content = file.read() if max_bytes is None else file.read(max_bytes)
    header = _header(path, content)
    try:
        tensors = safetensors.torch.load(content)
        texts = {key: header[key] for key in (MARK, _NOTES)}
        whole = header.get(_CHECKSUM) == _checksum(tensors, texts)
        metadata, notes = (json.loads(texts[key]) for key in (MARK, _NOTES))
    except (SafetensorError, KeyError, TypeError, ValueError, AttributeError, OverflowError, RuntimeError) as error:
        raise TrackerStateError(f'{path}: truncated or damaged ({error}): use another file') from error
    if not whole:
        raise TrackerStateError(f'{path}: damaged, its content differs from its checksum: use another file')
    return {**tensors, 'metadata': metadata}, notes


def _header(path: Path, content: bytes) -> dict[str, Any]:
    """Return the texts in the header of a safetensors file."""
    length = int.from_bytes(content[:8], 'little')
    try:
        if not 0 < length <= min(_LONGEST_HEADER, len(content) - 8):
            raise ValueError(f'a header of {length} bytes in a file of {len(content)}')
        entries = json.loads(content[8:8 + length])
        header = entries.get('__metadata__', {})
        own = MARK in header
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise TrackerStateError(f'{path}: truncated or damaged ({error}): use another file') from error
    if not own:
        raise ForeignFileError(f'{path}: a safetensors file, but not the state of a tracker: give another path')
    return dict(header)


def _checksum(tensors: Mapping[str, Tensor], texts: Mapping[str, str]) -> str:
    digest = hashlib.sha256()
    for key in (MARK, _NOTES):
        digest.update(f'{len(texts[key])} {texts[key]}'.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(name.encode())
        add_tensor(digest, tensor)
    return digest.hexdigest()
