"""Draw the packages of the source and what each may import: docs/images/rooms.svg.

.venv/bin/python tools/draw_rooms.py

The arrows are the dependency rule of test/test_architecture.py; test/test_documentation.py holds the two together.
"""
from __future__ import annotations

import sys
from html import escape
from pathlib import Path
from typing import NamedTuple

OUTPUT = Path(__file__).resolve().parents[1] / 'docs' / 'images' / 'rooms.svg'
WIDTH, HEIGHT = 190, 62           # of a room, pixels
ACROSS, DOWN = 226, 116           # from one room to the next, pixels
MARGIN, TITLE = 16, 26
FONT = 'font-family="system-ui, sans-serif"'
INK, FAINT, LINE, PAPER = '#1d2330', '#5a6476', '#8a94a6', '#ffffff'
COLOURS = {'entry': '#e8e3f7', 'ros': '#dceaf7', 'tool': '#f8ead6', 'base': '#e4f1e1', 'core': '#f6dfe2'}


class Room(NamedTuple):
    """A package: where it is drawn, what it contains, and the packages directly below it."""

    column: float
    row: int
    kind: str
    holds: str
    below: tuple[str, ...] = ()


ROOMS = {
    'entry points': Room(1.5, 0, 'entry', 'node, check, evaluate,\ncompare, train',
                         ('topics', 'preflight', 'evaluation', 'demo')),
    'topics': Room(0, 1, 'ros', 'publishers, subscriptions,\nservices, diagnostics', ('drawing',)),
    'preflight': Room(1, 1, 'tool', 'the checks of sam2_check', ('depth',)),
    'evaluation': Room(2, 1, 'tool', 'replay, scores, report', ('recordings', 'drawing', 'tabletop')),
    'demo': Room(3, 1, 'tool', 'camera, prompter, recorder', ('drawing', 'tabletop')),
    'drawing': Room(0, 2, 'ros', 'overlay, label images, video', ('perception',)),
    'recordings': Room(2, 2, 'tool', 'bags, DAVIS, SA-V', ('messages',)),
    'tabletop': Room(3, 2, 'tool', 'simulated RGB-D table'),
    'perception': Room(0, 3, 'ros', 'one camera: images, prompts,\nobjects; the worker', ('depth',)),
    'depth': Room(0, 4, 'base', 'matching, calibration,\noriented boxes', ('messages', 'runtime')),
    'messages': Room(1, 5, 'base', 'conversions, stamps, QoS'),
    'runtime': Room(0, 5, 'base', 'parameters, DDS, threads,\nfailures'),
    'sam2_core': Room(2.5, 5, 'core', 'SAM 2 in PyTorch, without ROS;\nany room may import it'),
}


def main() -> int:
    """Write the drawing. Return the exit code of the process."""
    OUTPUT.write_text(drawing())
    print(OUTPUT)
    return 0


def drawing() -> str:
    """Return the drawing as SVG."""
    width = round(MARGIN * 2 + 3 * ACROSS + WIDTH)
    height = MARGIN * 2 + 5 * DOWN + HEIGHT
    arrows = [_arrow(name, other) for name, room in ROOMS.items() for other in room.below]
    return '\n'.join([
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'role="img">',
        '<title>Packages of sam2_ros and what each may import</title>',
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8" orient="auto">',
        f'<path d="M0 0 8 4 0 8z" fill="{LINE}"/></marker></defs>',
        f'<rect width="{width}" height="{height}" fill="{PAPER}"/>',
        *arrows, *(_box(name, room) for name, room in ROOMS.items()), '</svg>', ''])


def reachable(name: str) -> set[str]:
    """Return every room below this one."""
    below = set(ROOMS[name].below)
    return below.union(*(reachable(other) for other in below))


def _corner(room: Room) -> tuple[float, int]:
    return MARGIN + room.column * ACROSS, MARGIN + room.row * DOWN


def _box(name: str, room: Room) -> str:
    x, y = _corner(room)
    middle = x + WIDTH / 2
    lines = [f'<text x="{middle:g}" y="{y + 40 + 14 * number}" font-size="11" fill="{FAINT}" text-anchor="middle" '
             f'{FONT}>{escape(line)}</text>' for number, line in enumerate(room.holds.split('\n'))]
    return '\n'.join([
        f'<rect x="{x:g}" y="{y}" width="{WIDTH}" height="{HEIGHT}" rx="8" fill="{COLOURS[room.kind]}" '
        f'stroke="{LINE}"/>',
        f'<text x="{middle:g}" y="{y + 22}" font-size="15" font-weight="600" fill="{INK}" text-anchor="middle" '
        f'{FONT}>{escape(name)}</text>', *lines])


def _arrow(name: str, other: str) -> str:
    """Draw a line from the lower edge of a room to the upper edge of another."""
    (x0, y0), (x1, y1) = _corner(ROOMS[name]), _corner(ROOMS[other])
    shift = max(-1.0, min(1.0, (x1 - x0) / ACROSS)) * WIDTH / 4
    start, end, top, bottom = x0 + WIDTH / 2 + shift, x1 + WIDTH / 2 - shift, y0 + HEIGHT, y1
    bend = max(bottom - 36, (top + bottom) / 2)
    return (f'<path d="M{start:g} {top} C{start:g} {bend:g} {end:g} {bend:g} {end:g} {bottom}" '
            f'fill="none" stroke="{LINE}" stroke-width="1.5" marker-end="url(#tip)"/>')


if __name__ == '__main__':
    sys.exit(main())
