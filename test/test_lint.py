"""`make lint`, the commit hooks and the documentation site: one list of checks, run by the pinned tools."""
import ast
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
CONFIG = ROOT / '.pre-commit-config.yaml'
HOOKS = {hook['id']: hook for repository in yaml.safe_load(CONFIG.read_text())['repos'] for hook in repository['hooks']}


of_make = pytest.mark.skipif(not Path(sys.prefix, 'share', 'rclpy').is_dir(),
                             reason='not the environment that make sets up, which has the tools')


@pytest.fixture
def checkout(tmp_path):
    """Return a folder with the checks and no other file of this repository."""
    for name in ('.pre-commit-config.yaml', '.gitignore', 'pyproject.toml', 'tools/lint.py',
                 'tools/british_spelling.txt'):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


def lint(folder, *checks):
    return subprocess.run([sys.executable, folder / 'tools' / 'lint.py', *checks], capture_output=True, text=True)


@of_make
def test_commit_hooks_are_valid():
    done = subprocess.run([sys.executable, '-m', 'pre_commit', 'validate-config', CONFIG],
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_every_check_runs_a_pinned_tool():
    packages = {'codespell_lib': 'codespell', 'pre_commit_hooks': 'pre-commit-hooks', 'pymarkdown': 'pymarkdownlnt'}
    pinned = {line.split('==')[0] for name in ('dev', 'docs')
              for line in (ROOT / 'requirements' / f'{name}.txt').read_text().splitlines()}
    for hook in HOOKS.values():
        python, module = re.match(r'(\S+) -m (\w+)', hook['entry']).groups()
        assert python == '.venv/bin/python' and hook['language'] == 'system'
        assert packages.get(module, module) in pinned


def test_every_module_of_the_public_api_is_type_checked_strictly():
    tree = ast.parse((ROOT / 'sam2_core' / '__init__.py').read_text())
    public = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)
              and node.module.startswith('sam2_core.')}
    strict = re.search(r'# The public API.*?\n\]\n', (ROOT / 'pyproject.toml').read_text(), re.DOTALL)[0]
    assert 'sam2_core.tracker' in public
    assert public <= {*re.findall(r'"([\w.]+)"', strict)}


@of_make
@pytest.mark.parametrize(('check', 'name', 'content', 'found'), [
    ('ruff', 'module.py', 'import os\n', 'F401'),
    ('codespell', 'words.md', 'Recieve images.\n', 'Receive'),
    ('british-spelling', 'colours.md', 'The color of `color` in\n\n```yaml\ncolor: red\n```\n', 'colours.md:1'),
    ('yamllint', 'settings.yaml', 'key: [1,\n', 'settings.yaml'),
    ('pymarkdown', 'long.md', f'# Title\n\n{"word " * 30}\n', 'MD013'),
    ('check-json', 'layout.json', '{', 'layout.json'),
    ('check-xml', 'profile.xml', '<open>', 'profile.xml'),
])
def test_a_check_names_the_file_at_fault(checkout, check, name, content, found):
    (checkout / name).write_text(content)
    done = lint(checkout, check)
    assert done.returncode == 1 and found in done.stdout, done.stdout + done.stderr
    assert 'colours.md:4' not in done.stdout


@of_make
@pytest.mark.parametrize('with_git', [True, False])
def test_checks_pass_over_what_git_ignores(checkout, with_git):
    if with_git and not shutil.which('git'):
        pytest.skip('needs git')
    if with_git:
        subprocess.run(['git', 'init', '--quiet', checkout], check=True)
    for name in ('build/module.py', 'folder/__pycache__/module.py', '.venv/module.py'):
        (checkout / name).parent.mkdir(parents=True, exist_ok=True)
        (checkout / name).write_text('import os\n')
    done = lint(checkout, 'ruff')
    assert done.returncode == 0, done.stdout + done.stderr
    (checkout / 'folder' / 'module.py').write_text('import os\n')
    assert 'folder/module.py' in lint(checkout, 'ruff').stdout


def test_unknown_check_is_refused_with_those_there_are(checkout):
    done = lint(checkout, 'ruf')
    assert done.returncode == 2 and 'ruf' in done.stderr and 'ruff, mypy, codespell' in done.stderr


# --- the documentation site

@pytest.fixture
def site(checkout):
    """Return a function that builds a site of this page, docs/a.md, beside a root page and a source file."""
    for name in ('mkdocs.yml', 'tools/docs_site.py'):
        shutil.copy(ROOT / name, checkout / name)
    config = checkout / 'mkdocs.yml'
    config.write_text(re.sub(r'^nav:\n(?: .*\n)+', '', config.read_text(), flags=re.MULTILINE))  # of other pages
    (checkout / 'docs').mkdir()
    (checkout / 'README.md').write_text('# Overview\n\n[A page](docs/a.md#a-heading-20) ![](docs/picture.png)\n')
    (checkout / 'docs' / 'picture.png').touch()
    (checkout / 'source.py').write_text('answer = 42\n')

    def build(page):
        (checkout / 'docs' / 'a.md').write_text(f'# A heading: 2.0\n\n{page}\n')
        return subprocess.run([sys.executable, '-m', 'mkdocs', 'build', '--strict'], cwd=checkout, capture_output=True,
                              text=True), checkout / 'build' / 'site'
    return build


@of_make
def test_links_to_files_outside_docs_lead_to_pages_of_the_site(site):
    done, folder = site('[source](../source.py#L1) [root](../README.md) `[code](../gone.md)`\n\n```md\n[x](gone)\n```')
    assert done.returncode == 0, done.stderr
    page = (folder / 'a.html').read_text()
    assert 'href="source/source.py.html"' in page and 'href="index.html"' in page
    shown = re.sub(r'<[^>]+>', '', (folder / 'source' / 'source.py.html').read_text())
    assert 'answer = 42' in shown


@of_make
def test_dead_links_fail_the_build_of_the_site(site):
    dead = ['gone.md', '../gone.py', '#no-such-heading', '/a.md', 'images/gone.png', '../tools']
    done, _ = site(' '.join(f'[x]({link})' for link in dead))
    assert done.returncode == 1 and f'{len(dead)} warnings in strict mode' in done.stdout, done.stderr
    for link in dead:
        assert f"'{link}'" in done.stderr
