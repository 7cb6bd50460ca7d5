"""Findings of sam2_check."""
from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Verdict(Enum):
    """Result of one check."""

    GOOD = 'good'
    DOUBTFUL = 'doubtful'  # works, but perhaps not as intended
    BAD = 'bad'


@dataclass(frozen=True)
class Finding:
    """Result of one check, as sam2_check prints it. Unless the verdict is GOOD, the text names the cure."""

    what: str  # name of the check
    verdict: Verdict
    text: str


def good(what: str, text: str) -> Finding:
    """Return a finding with the verdict GOOD."""
    return Finding(what, Verdict.GOOD, text)


def doubtful(what: str, text: str) -> Finding:
    """Return a finding with the verdict DOUBTFUL."""
    return Finding(what, Verdict.DOUBTFUL, text)


def bad(what: str, text: str) -> Finding:
    """Return a finding with the verdict BAD."""
    return Finding(what, Verdict.BAD, text)
