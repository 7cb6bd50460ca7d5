"""Write config/sam2.yaml and the parameter table in docs/ from sam2_ros/runtime/parameters.py.

Run with the python of the virtual environment, or as `make parameters`, after a change of a parameter. The table
replaces what stands between the lines BEGIN and END of the one page that has them.
"""
import posixpath
import re
import textwrap
from collections.abc import Iterator
from dataclasses import Field, fields
from pathlib import Path

from sam2_ros.runtime.parameter_rules import allowed
from sam2_ros.runtime.parameters import LIVE, Parameters

ROOT = Path(__file__).resolve().parents[1]
CONFIG = ROOT / 'config' / 'sam2.yaml'
BEGIN = '<!-- parameters: written by make parameters, edit sam2_ros/runtime/parameters.py -->'
END = '<!-- end of parameters -->'
WIDTH = 114  # of a comment, without its indentation
# what the description of a parameter names: topics, patterns, and parameters other than single words
CODE = re.compile(r'[~\w/]*/[\w/]*(?:\w|\.\.\.)|[\w.]+_\*|\b[a-z]+(?:_[a-z]+)+\b')
TYPES = {bool: 'bool', int: 'integer', float: 'double', str: 'string', tuple: 'string[]'}
HEADER = """\
# Every parameter of the node with its default. Written by `make parameters` from sam2_ros/runtime/parameters.py.
# A new value takes effect immediately unless the comment says otherwise. Doubles need a decimal point: 2.0.
"""


def yaml_value(value: object) -> str:
    """Return a default as YAML has it, in the type that ROS infers from it."""
    if isinstance(value, tuple):
        return f'[{", ".join(value)}]'
    if isinstance(value, bool):
        return str(value).lower()
    return str(value) or '""'


def parameters_file() -> str:
    """Return the text of config/sam2.yaml."""
    lines = [HEADER + '/**:', '  ros__parameters:']
    for number, item in enumerate(fields(Parameters)):
        rules = item.metadata
        if rules['section']:
            lines += [''] * (number > 0) + [f'    # --- {rules["section"]}']
        notes = [f'Range: {allowed(item)}.'] if rules['limits'] else []
        notes += [f'One of: {allowed(item)}.'] if rules['choices'] else []
        notes += [f'Takes effect {rules["when"]}.'] if rules['when'] != LIVE else []
        lines += [f'    # {line}' for line in _wrapped(rules['description'], ' '.join(notes))]
        lines.append(f'    {item.name}: {yaml_value(item.default)}')
    return '\n'.join(lines) + '\n'


def _wrapped(description: str, notes: str) -> list[str]:
    """Return both texts on one line where they fit, else the notes on a line of their own."""
    both = f'{description} {notes}'.strip()
    if len(both) <= WIDTH:
        return [both]
    return textwrap.wrap(description, WIDTH, break_on_hyphens=False) + ([notes] if notes else [])


def table(page: Path) -> str:
    """Return the table of parameters in Markdown, with links relative to a page below docs/."""
    folder = page.parent.relative_to(ROOT / 'docs').as_posix()
    return '\n'.join(['| name | type | default | range | takes effect | description |', '|---|---|---|---|---|---|',
                      *(_row(item, folder) for item in fields(Parameters))])


def _row(item: Field, folder: str) -> str:
    rules = item.metadata
    default = yaml_value(item.default).replace('""', "''")
    description = CODE.sub(r'`\g<0>`', rules['description'])
    see = f' ([details]({posixpath.relpath(rules["see"], folder)}))' if rules['see'] else ''
    return (f'| `{item.name}` | {TYPES[type(item.default)]} | `{default}` | {allowed(item)} | {rules["when"]} | '
            f'{description}{see} |').replace('|  |', '| |')


def page_with_table() -> Path:
    """Return the page of the documentation that has the table. Raise RuntimeError if there is not exactly one."""
    pages = [path for path in sorted((ROOT / 'docs').rglob('*.md')) if BEGIN in path.read_text()]
    if len(pages) != 1:
        raise RuntimeError(f'{len(pages)} pages below docs/ contain the line {BEGIN!r}: exactly one must')
    return pages[0]


def documents() -> Iterator[tuple[Path, str]]:
    """Yield each generated file and the text it must have."""
    yield CONFIG, parameters_file()
    page = page_with_table()
    before, _, rest = page.read_text().partition(BEGIN)
    after = rest.partition(END)[2]
    yield page, f'{before}{BEGIN}\n\n{table(page)}\n\n{END}{after}'


def main() -> None:
    """Write the files that differ and name them."""
    for path, text in documents():
        if path.read_text() != text:
            path.write_text(text)
            print(path.relative_to(ROOT))


if __name__ == '__main__':
    main()
