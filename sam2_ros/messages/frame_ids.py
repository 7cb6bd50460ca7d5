"""Comparison of frame ids."""
from __future__ import annotations


def same_frame(one: str, other: str) -> bool:
    """Return True if two frame ids agree. An empty one agrees with all."""
    one, other = one.lstrip('/'), other.lstrip('/')
    return one == other or not one or not other
