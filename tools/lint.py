"""Run the checks of .pre-commit-config.yaml over every file of the checkout: make lint.

Unlike `pre-commit run --all-files` this needs neither a git repository nor pre-commit, and it runs every check with the
Python that runs this script. Give the ids of checks to run only those.
"""
from __future__ import annotations

import argparse
import os
import re
import shlex
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parent.parent
PYTHON = '.venv/bin/python'  # how an entry of .pre-commit-config.yaml calls the environment
NEEDS_GIT = ('check-added-large-files',)
NEEDS_PYTHON = {'mypy': (3, 11)}  # the NumPy for 3.10 has other types


def main() -> int:
    """Run the chosen checks and return the exit code."""
    config = yaml.safe_load((ROOT / '.pre-commit-config.yaml').read_text())
    hooks = {hook['id']: hook for repository in config['repos'] for hook in repository['hooks']}
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('checks', nargs='*', metavar='CHECK', help=f'any of {", ".join(hooks)}; default: all of them')
    chosen = parser.parse_args().checks or list(hooks)
    if unknown := sorted({*chosen} - {*hooks}):
        parser.error(f'no such check: {", ".join(unknown)}; there are {", ".join(hooks)}')
    paths = tracked_files()
    files = sorted(exported_files() if paths is None else paths)
    failed = []
    for name in chosen:
        if (paths is None and name in NEEDS_GIT) or sys.version_info < NEEDS_PYTHON.get(name, (3,)):
            print(f'{hooks[name]["name"]:.<60}skipped')
        elif not passes(hooks[name], files):
            failed.append(name)
    if failed:
        print(f'\nFailed: {", ".join(failed)}. Run one of them: {PYTHON} tools/lint.py {failed[0]}')
    return bool(failed)


def passes(hook: dict, files: list[str]) -> bool:
    """Run one check over the files it wants and print what it found."""
    if hook.get('pass_filenames', True):
        exclude = hook.get('exclude', '^$')
        files = [path for path in files if re.search(hook.get('files', ''), path) and not re.search(exclude, path)]
    else:
        files = []
    command = [*shlex.split(hook['entry']), *hook.get('args', []), *files]
    if command[0] == PYTHON:
        command[0] = sys.executable
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    print(f'{hook["name"]:.<60}{"failed" if done.returncode else "passed"}', flush=True)
    if done.returncode:
        print(done.stdout, flush=True)
    return done.returncode == 0


def tracked_files() -> list[str] | None:
    """Return the files that git knows or would add, or None where this is not the root of a git checkout."""
    if not (ROOT / '.git').exists():
        return None
    try:
        listed = subprocess.run(['git', 'ls-files', '-z', '--cached', '--others', '--exclude-standard'], cwd=ROOT,
                                capture_output=True, text=True, check=True).stdout
    except (FileNotFoundError, subprocess.CalledProcessError):
        return None
    return [path for path in listed.split('\0') if path and (ROOT / path).is_file()]


def exported_files() -> list[str]:
    """Return the files below the root, without what .gitignore names."""
    ignored = [line.rstrip('/') for line in (ROOT / '.gitignore').read_text().splitlines() if line]

    def is_ignored(folder: str, name: str) -> bool:
        path = f'/{os.path.relpath(os.path.join(folder, name), ROOT)}'
        return any(path == rule or fnmatch(name, rule) for rule in ignored)

    found = []
    for folder, folders, names in os.walk(ROOT):
        folders[:] = [name for name in folders if name != '.git' and not is_ignored(folder, name)]
        found += [os.path.relpath(os.path.join(folder, name), ROOT) for name in names if not is_ignored(folder, name)]
    return found


if __name__ == '__main__':
    sys.exit(main())
