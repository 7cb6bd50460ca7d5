"""The executables: one version, help without a start, arguments that are not ROS arguments."""
import runpy
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from xml.etree import ElementTree

import pytest

from sam2_core import __version__
from sam2_ros.runtime import executables
from sam2_ros.runtime.node_help import parse
from sam2_ros.runtime.parameters import Parameters

ROOT = Path(__file__).parents[3]


def test_the_version_is_that_of_the_package(monkeypatch):
    given = {}
    monkeypatch.setattr('setuptools.setup', lambda **options: given.update(options))
    monkeypatch.chdir(ROOT)
    runpy.run_path('setup.py')
    assert given['version'] == ElementTree.parse('package.xml').findtext('version') == __version__
    scripts = dict(line.split(' = ') for line in given['entry_points']['console_scripts'])
    assert scripts.keys() == executables.MODULES.keys() == {path.name for path in (ROOT / 'scripts').iterdir()}
    for name, place in scripts.items():
        assert getattr(executables, place.removeprefix('sam2_ros.runtime.executables:')).args == (name,)
        assert f'import {place.partition(":")[2]}\n' in (ROOT / 'scripts' / name).read_text()


def test_every_executable_knows_its_version_in_both_forms():
    for command in ([ROOT / 'scripts' / 'sam2_train'], ['-m', 'sam2_ros.node']):
        process = subprocess.run([sys.executable, *command, '--version'], capture_output=True, text=True, cwd=ROOT)
        name = 'sam2_node' if command[0] == '-m' else 'sam2_train'
        assert (process.returncode, process.stdout, process.stderr) == (0, f'{name} {__version__}\n', '')


@pytest.mark.parametrize('name', [name for name in executables.MODULES if name != 'sam2_node'])
def test_the_parser_of_each_tool_knows_the_version(name, monkeypatch, capsys):
    monkeypatch.setattr(sys, 'argv', [name, '--version'])
    module = import_module(executables.MODULES[name])
    monkeypatch.setattr(module, 'install', lambda name: None, raising=False)
    with pytest.raises(SystemExit) as ended:
        module.main()
    assert (ended.value.code, capsys.readouterr().out) == (0, f'{name} {__version__}\n')


def test_the_nodes_help_describes_every_parameter_and_starts_nothing(capsys):
    with pytest.raises(SystemExit) as ended:
        parse(['--help', '--ros-args', '-p', 'max_objects:=3'])
    text = ' '.join(capsys.readouterr().out.split())
    assert ended.value.code == 0
    for name, item in Parameters.__dataclass_fields__.items():
        assert f'{name} {item.metadata["description"]} (default ' in text
    assert 'max_objects Maximum number of objects tracked at a time in each camera; prompts for more are refused. ' \
           '(default 32; 1 to 65535; takes effect immediately)' in text
    assert '-r image:=' in text


@pytest.mark.parametrize('argument', ['--help', 'typo'])
def test_the_nodes_help_and_refusals_come_without_pytorch(argument):
    process = subprocess.run(
        [sys.executable, '-c', 'import sys\nfrom sam2_ros.runtime.executables import node\n'
         'try:\n    node()\nfinally:\n    print("torch" in sys.modules)', argument],
        capture_output=True, text=True, cwd=ROOT)
    assert process.returncode == (0 if argument == '--help' else 2)
    assert process.stdout.endswith('False\n')
    assert ('prompt_timeout' if argument == '--help' else 'unknown arguments: typo;') in process.stdout + process.stderr


def test_arguments_that_ros_would_ignore_are_refused(capsys):
    parse([])
    parse(['--ros-args', '-p', 'lost_after:=2.0', '--'])
    with pytest.raises(SystemExit) as ended:
        parse(['-p', 'lost_after:=2.0', '--ros-args', '-r', 'image:=/cam'])
    assert ended.value.code == 2
    assert 'unknown arguments: -p lost_after:=2.0; ROS arguments (-p, -r, --params-file) come after --ros-args' in \
        capsys.readouterr().err
