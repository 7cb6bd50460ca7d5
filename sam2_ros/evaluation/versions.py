"""Versions of everything that may change the figures of a run."""
from __future__ import annotations

import hashlib
import importlib.metadata
import platform
from pathlib import Path
from xml.etree import ElementTree

import cv2
import numpy as np
import torch
from ament_index_python import get_package_share_directory

from sam2_core import Sam2Model


def versions(model: Sam2Model) -> dict[str, str]:
    """Return the versions of packages, model, weights and device by name."""
    weights = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        weights.update(name.encode())
        weights.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy() if tensor.ndim else b'')
    gpu = model.device.type == 'cuda'
    return {
        'sam2_ros': _own_version(), 'python': platform.python_version(),
        'torch': torch.__version__, 'numpy': np.__version__, 'opencv': cv2.__version__,
        'model': f'{model.name}, {model.image_size} pixels, {str(model.dtype).removeprefix("torch.")}',
        'weights': weights.hexdigest()[:16],
        'device': torch.cuda.get_device_name(model.device) if gpu else f'CPU, {torch.get_num_threads()} threads',
        'machine': f'{platform.system()} {platform.machine()}'}


def _own_version() -> str:
    try:
        return importlib.metadata.version('sam2_ros')
    except importlib.metadata.PackageNotFoundError:  # colcon installs no metadata of Python
        package = Path(get_package_share_directory('sam2_ros'), 'package.xml')
        return ElementTree.parse(package).findtext('version', 'unknown')
