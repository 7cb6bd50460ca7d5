"""Plots of the benchmarks: bars and lines in one SVG file, readable on light and dark pages."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from sam2_ros.evaluation.report.charts import ticks

WIDTH, LEFT, RIGHT, TOP, LABEL = 900, 220, 90, 44, 16
BAR, GAP = 15, 12
COLOURS = ('#1f77b4', '#ff7f0e', '#2ca02c', '#d62728', '#9467bd', '#8c564b', '#7f7f7f')


@dataclass(frozen=True)
class Panel:
    """Part of a plot: its height and its SVG elements, with y from 0."""

    height: float
    parts: Sequence[str]


def bars(title: str, rows: Mapping[str, Mapping[str, float]], stacked: bool = False) -> Panel:
    """Return horizontal bars: one group per row, one colour per name.

    Args:
        title: Title of the panel.
        rows: Label of the row -> name -> value.
        stacked: Draw the values of a row as parts of one bar, with their sum.
    """
    names = list(dict.fromkeys(name for values in rows.values() for name in values))
    widest = max(sum(values.values()) if stacked else max(values.values()) for values in rows.values())
    scale = (WIDTH - LEFT - RIGHT) / (widest or 1.0)
    parts, y = _heading(title, names), TOP
    for label, values in rows.items():
        height = BAR if stacked else BAR * len(values)
        parts.append(_text(LEFT - 8, y + height / 2 + 4, label, 'end'))
        x = float(LEFT)
        for name, value in values.items():
            parts.append(f'<rect x="{x:.1f}" y="{y:.1f}" width="{value * scale:.1f}" height="{BAR - 1}" '
                         f'fill="{_colour(names, name)}">'
                         f'<title>{escape(label)}: {escape(name)} {value:.4g}</title></rect>')
            if stacked:
                x += value * scale
            else:
                parts.append(_text(LEFT + value * scale + 4, y + 11, f'{value:.4g}'))
                y += BAR
        if stacked:
            parts.append(_text(x + 4, y + 11, f'{sum(values.values()):.4g}'))
            y += BAR
        y += GAP
    return Panel(y + 8, parts)


def lines(title: str, under: str, series: Mapping[str, Sequence[tuple[float, float]]]) -> Panel:
    """Return lines over a common x axis, labelled ``under``. The y axis starts at 0."""
    top, bottom = TOP + 6, TOP + 186
    right = max(x for points in series.values() for x, _ in points) or 1.0
    highest = 1.1 * max(y for points in series.values() for _, y in points) or 1.0
    left = 60

    def place(x: float, y: float) -> tuple[float, float]:
        return left + x / right * (WIDTH - left - 20), bottom - y / highest * (bottom - top)

    parts = _heading(title, list(series))
    for value in ticks(highest):
        y = place(0, value)[1]
        parts += [f'<line x1="{left}" x2="{WIDTH - 20}" y1="{y:.1f}" y2="{y:.1f}" stroke="#dddddd"/>',
                  _text(left - 6, y + 4, f'{value:g}', 'end')]
    parts += [_text(place(value, 0)[0], bottom + 16, f'{value:g}', 'middle') for value in ticks(right)]
    parts.append(_text(WIDTH - 20, bottom + 32, under, 'end'))
    for name, points in series.items():
        places = ' '.join(f'{x:.1f},{y:.1f}' for x, y in (place(*point) for point in points))
        parts.append(f'<polyline points="{places}" fill="none" stroke="{_colour(list(series), name)}" '
                     f'stroke-width="1.5"/>')
    return Panel(bottom + 44, parts)


def write(picture: Path, title: str, panels: Sequence[Panel]) -> None:
    """Write the panels, one below the other, to an SVG file."""
    parts, y = [f'<text x="16" y="22" font-size="14" font-weight="bold">{escape(title)}</text>'], 34.0
    for panel in panels:
        parts.append(f'<g transform="translate(0 {y:.0f})">{"".join(panel.parts)}</g>')
        y += panel.height
    picture.write_text(f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {y:.0f}" '
                       f'font-family="sans-serif" font-size="12" fill="#222222"><title>{escape(title)}</title>'
                       f'<rect width="100%" height="100%" fill="white"/>{"".join(parts)}</svg>\n')


def _heading(title: str, names: Sequence[str]) -> list[str]:
    """Return the elements of title and legend."""
    parts, x = [_text(LABEL, 14, title)], float(LABEL)
    for name in names:
        parts += [f'<rect x="{x}" y="22" width="11" height="11" fill="{_colour(names, name)}"/>',
                  _text(x + 15, 32, name)]
        x += 32 + 6.6 * len(name)
    return parts


def _colour(names: Sequence[str], name: str) -> str:
    """Return the colour of a name."""
    return COLOURS[names.index(name) % len(COLOURS)]


def _text(x: float, y: float, text: str, anchor: str = 'start') -> str:
    """Return a text element."""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
