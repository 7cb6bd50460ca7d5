"""Names of the splits of data sets."""
from __future__ import annotations

import re
from pathlib import Path

_HELD_OUT = re.compile(r'(^|[_.-])(val|valid|validation|minival|test|testdev|test-dev)\d*$', re.IGNORECASE)


def is_held_out(name: str) -> bool:
    """Return whether a file or folder of this name, without its suffix, holds a validation or test split."""
    return bool(_HELD_OUT.search(name))


def why_held_out(path: Path) -> str:
    """Return why a file or folder is not trained on, with the cure."""
    return f'a validation or test split, which is not trained on; --data {path} or --validation-data {path} reads it'
