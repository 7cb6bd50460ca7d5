"""Copy the definitions of msg/, srv/ and action/ into docs/reference/messages.md.

.venv/bin/python tools/list_messages.py
"""
from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / 'docs' / 'reference' / 'messages.md'
BEGIN, END = '<!-- definitions: begin -->\n', '<!-- definitions: end -->\n'
SECTIONS = {'msg': 'Messages', 'srv': 'Services', 'action': 'Actions'}


def main() -> int:
    """Write the page. Return the exit code of the process."""
    PAGE.write_text(page(PAGE.read_text()))
    return 0


def page(text: str) -> str:
    """Return the text of the page with the definitions of today between its two markers."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return before + BEGIN + definitions() + END + after


def definitions() -> str:
    """Return a section for each message, service and action, as Markdown."""
    parts = []
    for kind, title in SECTIONS.items():
        parts.append(f'\n## {title}\n')
        for path in sorted((ROOT / kind).glob(f'*.{kind}')):
            parts.append(f'\n### {path.stem}\n\n```text\n{path.read_text()}```\n')
    return ''.join(parts) + '\n'


if __name__ == '__main__':
    sys.exit(main())
