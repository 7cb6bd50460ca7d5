"""What sam2_check has found out: one line each."""
from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Verdict(Enum):
    GOOD = 'good'
    DOUBTFUL = 'doubtful'  # it works, but perhaps not as wished
    BAD = 'bad'


@dataclass(frozen=True)
class Finding:
    """One thing looked at. The text of what is not good says the cure."""

    what: str
    verdict: Verdict
    text: str


def good(what: str, text: str) -> Finding:
    return Finding(what, Verdict.GOOD, text)


def doubtful(what: str, text: str) -> Finding:
    return Finding(what, Verdict.DOUBTFUL, text)


def bad(what: str, text: str) -> Finding:
    return Finding(what, Verdict.BAD, text)
