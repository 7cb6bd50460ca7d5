"""The documentation agrees with the code. `make docs` checks its links and anchors."""
import ast
import importlib.util
import re
from pathlib import Path

import pytest

from sam2_core.config import VARIANTS
from sam2_core.memory_policy import MEMORY_POLICIES

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / 'docs'
PAGES = sorted([*ROOT.glob('*.md'), *DOCS.rglob('*.md')])
SOURCES = [path for folder in ('sam2_core', 'sam2_ros', 'launch', 'config', 'test', 'testing', 'benchmarks', 'tools',
                               'requirements', 'msg', 'srv', 'action')
           for path in (ROOT / folder).rglob('*') if path.suffix in {'.py', '.sh', '.yaml', '.txt', '.cmake'}]
COMMANDS = {'sam2_check': 'sam2_ros/check.py', 'sam2_evaluate': 'sam2_ros/evaluate.py',
            'sam2_compare': 'sam2_ros/compare.py', 'sam2_train': 'sam2_core/training/finetune.py',
            'sam2_export': 'sam2_core/export/cli.py', 'sam2_track': 'sam2_core/offline/track.py',
            'sam2_segment': 'sam2_core/offline/segment.py'}


def load(name):
    """Import a file of tools/."""
    spec = importlib.util.spec_from_file_location(name, ROOT / 'tools' / f'{name}.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_page_is_in_the_list_of_pages():
    contents = (DOCS / 'contents.md').read_text()
    missing = [page.relative_to(DOCS) for page in DOCS.rglob('*.md')
               if page.name != 'contents.md' and f'({page.relative_to(DOCS)})' not in contents]
    assert missing == []


def test_pages_named_in_the_source_exist():
    named = {name for path in [*SOURCES, ROOT / 'Makefile', ROOT / 'package.xml', ROOT / 'setup.py']
             for name in re.findall(r'\bdocs/[\w/-]+\.\w+', path.read_text())}
    assert 'docs/install.md' in named
    # operators.md is a page of onnx-tensorrt, the others are examples in test_lint.py
    assert {name for name in named if not (ROOT / name).exists()} == {
        'docs/operators.md', 'docs/a.md', 'docs/picture.png'}


@pytest.mark.parametrize('page', PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_files_that_a_page_names_exist(page):
    folders = 'sam2_core|sam2_ros|testing|test|benchmarks|tools|config|msg|srv|docs|launch|requirements'
    named = re.findall(rf'(?<![\w/.*-])((?:{folders})/[\w/.-]+\.(?:md|xml|yaml|json|sh|rviz|txt|safetensors))\b',
                       page.read_text())
    named += re.findall(r'`([a-z]\w*/[\w/]+\.py)`', page.read_text())  # of sam2_ros where it is not in the root
    assert {name for name in named if not (ROOT / name).exists() and not (ROOT / 'sam2_ros' / name).exists()} == set()


@pytest.mark.parametrize('command', COMMANDS)
def test_the_command_lines_list_every_option(command):
    options = set(re.findall(r"add_argument\('(--[\w-]+)'", (ROOT / COMMANDS[command]).read_text())) - {'--version'}
    text = (DOCS / 'reference' / 'commands.md').read_text()
    section = text[text.index(f'\n## {command}\n'):].partition('\n## ')[2].partition('\n## ')[0]
    assert options
    assert {option for option in options if not re.search(rf'`{option}\b', section)} == set()


@pytest.mark.parametrize('name', VARIANTS)
def test_the_page_of_models_has_the_parameters_of_every_variant(name):
    page = (DOCS / 'how-to' / 'choose-a-model.md').read_text()
    assert re.search(rf'^\| `{re.escape(name)}` \| \d+\.\d \|', page, re.MULTILINE)


def test_the_page_of_models_compares_all_memory_policies():
    page = (DOCS / 'how-to' / 'choose-a-model.md').read_text()
    assert f'| | {" | ".join(f"`{name}`" for name in MEMORY_POLICIES)} |' in page


def test_the_page_of_messages_has_their_definitions():
    tool = load('list_messages')
    assert tool.PAGE.read_text() == tool.page(tool.PAGE.read_text()), 'run tools/list_messages.py'


def test_the_picture_of_the_packages_is_the_dependency_rule():
    tool, rule = load('draw_rooms'), load_rule()
    drawn = {name: tool.reachable(name) for name in tool.ROOMS}
    assert drawn.pop('entry points') == set(rule)
    assert drawn.pop('sam2_core') == set()
    assert drawn == rule
    assert tool.OUTPUT.read_text() == tool.drawing(), 'run tools/draw_rooms.py'


def load_rule():
    """Return MAY_IMPORT of the test of the architecture, without the executables, which may import everything."""
    tree = ast.parse((ROOT / 'test' / 'test_architecture.py').read_text())
    rule = next(node.value for node in tree.body
                if isinstance(node, ast.Assign) and node.targets[0].id == 'MAY_IMPORT')
    return {key.value: set(value.value.split()) for key, value in zip(rule.keys, rule.values, strict=True)
            if key.value != 'executables'}
