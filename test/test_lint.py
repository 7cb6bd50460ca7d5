"""`make lint` and the commit hooks: one list of checks, run by the pinned tools, with or without git."""
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
    """A folder with the checks and no other file of this repository."""
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
    assert done.returncode == 2 and 'ruf' in done.stderr and 'ruff, codespell' in done.stderr
