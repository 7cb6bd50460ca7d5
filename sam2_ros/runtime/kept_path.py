"""Files that the parameter ``keep_objects`` names."""
from __future__ import annotations

import os
from pathlib import Path

SUFFIX = '.safetensors'


def kept_path(value: str, camera: str = '') -> Path:
    """Return the file of one camera.

    ``~`` and environment variables are replaced. Each of several cameras has a file of its own, with its name before
    the suffix.

    Args:
        value: Value of ``keep_objects``, not empty.
        camera: Name of the camera; empty for the only one.

    Raises:
        ValueError: The value is not an absolute path that ends in .safetensors.
    """
    path = Path(os.path.expanduser(os.path.expandvars(value)))
    if '$' in str(path) or str(path).startswith('~'):
        raise ValueError(f"keep_objects '{value}': no such environment variable or user; write the path out")
    if not path.is_absolute():
        raise ValueError(f"keep_objects '{value}': must be an absolute path, because the folder that a node is started "
                         f'in changes; begin it with / or ~')
    if path.suffix != SUFFIX:
        raise ValueError(f"keep_objects '{value}': must end in {SUFFIX}; append it")
    path = Path(os.path.realpath(path))  # a link stays, and the file that it leads to is replaced
    return path.with_name(f'{path.stem}.{camera}{path.suffix}') if camera else path
