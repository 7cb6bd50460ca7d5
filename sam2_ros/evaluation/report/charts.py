"""Charts of the report: inline SVG in the colours of the page, whose classes style.py defines."""
from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

WIDTH, LEFT, RIGHT = 900, 44, 12
POINTS = 900  # of a line, at most: one per unit of the chart's width


@dataclass(frozen=True, eq=False)
class TimelineChart:
    """History of one object. Times are in seconds."""

    times: np.ndarray  # of the scored images, (N,), increasing
    j: np.ndarray  # (N,), 0..1
    f: np.ndarray  # (N,), 0..1
    states: Sequence[tuple[float, str]] = ()  # start and name of each: tracked, occluded, lost; '': unknown
    prompts: Sequence[tuple[float, str, bool]] = ()  # time, text, whether it was accepted


def timeline(data: TimelineChart, end: float) -> str:
    """Return a chart, SVG, of J (thick) and F (thin) over time, with states as a band below and prompts as marks above.

    ``end`` is the duration of the recording in seconds.
    """
    scored = len(data.times) > 0
    top, bottom = 16, 106 if scored else 16
    height = bottom + 34
    end = end or 1.0

    def x(seconds: float) -> float:
        return LEFT + min(1.0, max(0.0, seconds / end)) * (WIDTH - LEFT - RIGHT)

    def y(value: float) -> float:
        return bottom - value * (bottom - top)

    parts = []
    if scored:
        for value in (0, 0.5, 1):
            parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(value)}" y2="{y(value)}"/>'
                         f'<text class="end" x="{LEFT - 6}" y="{y(value) + 4}">{value:g}</text>')
        for name in ('f', 'j'):
            times, values = lowest(data.times, getattr(data, name))
            points = ' '.join(f'{x(time):.1f},{y(value):.1f}' for time, value in zip(times, values, strict=True))
            parts.append(f'<polyline class="{name}" points="{points}"/>' if len(times) > 1 else
                         f'<circle class="{name}" cx="{x(times[0]):.1f}" cy="{y(values[0]):.1f}" r="2"/>')
    band = bottom + 4
    for (since, state), (until, _) in zip(data.states, [*data.states[1:], (end, '')], strict=True):
        if state:
            width = max(0.5, x(until) - x(since))
            parts.append(f'<rect class="{escape(state)}" x="{x(since):.1f}" width="{width:.1f}" y="{band}" height="7">'
                         f'<title>{escape(state)}, {since:.2f} to {until:.2f} s</title></rect>')
    for time, what, accepted in data.prompts:
        parts.append(f'<path class="{"prompt" if accepted else "refused"}" d="M{x(time):.1f} {top - 3} l-5 -9 h10 z">'
                     f'<title>{escape(what)}, {time:.2f} s</title></path>')
    return _svg(height, [*parts, *_seconds(x, end, band + 7)], 'J and F over time' if scored else 'states over time')


def histogram(values: Sequence[float], marks: dict[str, float]) -> str:
    """Return a histogram, SVG, in milliseconds.

    Args:
        values: Seconds, at least one.
        marks: Values to mark, seconds by name.
    """
    milliseconds = np.asarray(values) * 1e3
    end = max(1.15 * max(marks.values(), default=0.0) * 1e3, 1.05 * float(np.quantile(milliseconds, 0.99)), 1e-3)
    counts, edges = np.histogram(np.minimum(milliseconds, end), bins=45, range=(0, end))
    top, bottom, most = 34, 160, int(counts.max())

    def x(value: float) -> float:
        return LEFT + min(1.0, value / end) * (WIDTH - LEFT - RIGHT)

    parts = [f'<text class="end" x="{LEFT - 6}" y="{top + 4}">{most}</text>'
             f'<text class="end" x="{LEFT - 6}" y="{bottom + 4}">0</text>']
    for count, low, high in zip(counts, edges, edges[1:], strict=False):
        if count:
            size = count / most * (bottom - top)
            beyond = ' and more' if high == edges[-1] else ''
            parts.append(f'<rect class="bar" x="{x(low):.1f}" width="{x(high) - x(low) - 1:.1f}" '
                         f'y="{bottom - size:.1f}" height="{size:.1f}">'
                         f'<title>{count} images: {low:.1f} to {high:.1f} ms{beyond}</title></rect>')
    for row, (name, value) in enumerate(sorted(marks.items(), key=lambda item: item[1])):
        place = x(value * 1e3)
        side, shift = ('end', -4) if place > WIDTH - 120 else ('', 4)
        parts.append(f'<line class="mark" x1="{place:.1f}" x2="{place:.1f}" y1="{10 * row + 4}" y2="{bottom}"/>'
                     f'<text class="{side}" x="{place + shift:.1f}" y="{10 * row + 12}">{escape(name)} '
                     f'{value * 1e3:.1f} ms</text>')
    parts.append(f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{bottom}" y2="{bottom}"/>')
    for value in ticks(end):
        parts.append(f'<text class="middle" x="{x(value):.1f}" y="{bottom + 16}">{value:g}</text>')
    parts.append(f'<text class="end" x="{WIDTH - RIGHT}" y="{bottom + 32}">milliseconds per image</text>')
    return _svg(bottom + 38, parts, 'time per image')


def lowest(times: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return at most POINTS points of a line: the lowest value of each section, so that failures stay visible."""
    size = math.ceil(len(values) / POINTS)
    if size <= 1:
        return times, values
    kept = np.array([start + int(np.argmin(values[start:start + size])) for start in range(0, len(values), size)])
    return times[kept], values[kept]


def nice(value: float) -> float:
    """Return the next 1, 2 or 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(value))
    return next(step * power for step in (1, 2, 5, 10) if step * power >= value * (1 - 1e-9))


def ticks(end: float) -> list[float]:
    """Return about six round values from 0 to ``end``."""
    step = nice(end / 8)
    return [round(step * count, 12) for count in range(int(end / step * (1 + 1e-9)) + 1)]


def _seconds(x: Callable[[float], float], end: float, bottom: float) -> list[str]:
    return [f'<text class="middle" x="{x(value):.1f}" y="{bottom + 15}">{value:g}{" s" if not value else ""}</text>'
            for value in ticks(end)]


def _svg(height: float, parts: Sequence[str], title: str) -> str:
    return (f'<svg viewBox="0 0 {WIDTH} {height}" role="img"><title>{escape(title)}</title>'
            f'{"".join(parts)}</svg>')
