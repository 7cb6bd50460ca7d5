"""The files that hold the project together agree with the code and with each other."""
import ast
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
import zipfile
from dataclasses import fields
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parent.parent
PINS = {path.name: [line.split('#')[0].strip() for line in path.read_text().splitlines() if line.split('#')[0].strip()]
        for path in (ROOT / 'requirements').glob('*.txt')}
of_make = pytest.mark.skipif(not Path(sys.prefix, 'share', 'rclpy').is_dir(),
                             reason='not the environment that make sets up')
needs_make = pytest.mark.skipif(not shutil.which('make'), reason='needs make')


def normal(name):
    """Return the name of a Python distribution in the form in which names are compared."""
    return re.sub(r'[-_.]+', '-', name).lower()


# --- parameters

def test_parameters_file_gives_every_parameter_its_default():
    parameters = pytest.importorskip('sam2_ros.runtime.parameters', reason='needs ROS 2 or its wheels').Parameters
    written = yaml.safe_load((ROOT / 'config' / 'sam2.yaml').read_text())['/**']['ros__parameters']
    defaults = {item.name: [*item.default] if isinstance(item.default, tuple) else item.default
                for item in fields(parameters)}
    assert written == defaults
    for name, default in defaults.items():  # a ROS parameter keeps its type: 5 would not do for 5.0
        assert type(written[name]) is type(default), name


def test_parameters_file_explains_every_parameter():
    lines = [line.strip() for line in (ROOT / 'config' / 'sam2.yaml').read_text().splitlines()]
    settings = lines[lines.index('ros__parameters:') + 1:]
    unexplained = [line for before, line in zip(['', *settings], settings, strict=False)
                   if line and not line.startswith('#') and not before.startswith('#')]
    assert unexplained == []


# --- what is declared is what is used

def test_package_xml_names_every_package_that_is_imported():
    keys = {'cv2': 'python3-opencv', 'numpy': 'python3-numpy', 'rich': 'python3-rich', 'yaml': 'python3-yaml'}
    from_pip = {'torch', 'safetensors', 'huggingface_hub', 'peft', 'rosbags', 'ray', 'onnxruntime', 'lz4', 'backports'}
    # package.xml has no tag for optional packages: docs/install.md; compression is part of Python 3.14
    optional = {'vision_msgs', 'tf2_ros', 'image_transport_py', 'bondpy', 'compression'}
    imported = set()
    for path in [path for folder in ('sam2_core', 'sam2_ros', 'launch') for path in (ROOT / folder).rglob('*.py')]:
        for statement in ast.walk(ast.parse(path.read_text())):
            if isinstance(statement, ast.Import):
                imported |= {name.name.split('.')[0] for name in statement.names}
            elif isinstance(statement, ast.ImportFrom) and not statement.level:
                imported.add(statement.module.split('.')[0])
    others = imported - sys.stdlib_module_names - {'sam2_core', 'sam2_ros'} - from_pip - optional
    tree = ElementTree.parse(ROOT / 'package.xml')
    declared = {item.text for kind in ('depend', 'exec_depend') for item in tree.iter(kind)}
    assert {'rclpy', 'cv2', 'launch_ros'} <= others
    assert {keys.get(name, name) for name in others} <= declared


def test_pip_and_ros_know_the_same_version_and_executables():
    installed = importlib.metadata.distribution('sam2_ros')
    assert ElementTree.parse(ROOT / 'package.xml').findtext('version') == installed.version
    scripts = {script.name: script for script in installed.entry_points.select(group='console_scripts')}
    if not scripts:
        pytest.skip('installed by colcon, which makes no console scripts')
    assert set(scripts) == {path.name for path in (ROOT / 'scripts').iterdir()}
    for name, script in scripts.items():
        assert f'from {script.module} import {script.attr}' in (ROOT / 'scripts' / name).read_text()
        assert callable(script.load())


def test_wheel_holds_the_weights_the_types_and_every_module(tmp_path):
    pytest.importorskip('pip')
    settings = tmp_path / 'settings.cfg'
    settings.write_text(f'[build]\nbuild_base = {tmp_path}/build\n[egg_info]\negg_base = {tmp_path}\n')
    build = subprocess.run(
        [sys.executable, '-m', 'pip', 'wheel', '--quiet', '--no-deps', '--no-build-isolation', '-w', tmp_path, ROOT],
        env={**os.environ, 'DIST_EXTRA_CONFIG': str(settings)}, capture_output=True, text=True)
    assert build.returncode == 0, build.stdout + build.stderr
    wheel, = tmp_path.glob('*.whl')
    expected = {str(path.relative_to(ROOT)) for package in ('sam2_core', 'sam2_ros')
                for path in [*(ROOT / package).rglob('*.py'), *(ROOT / package).rglob('*.safetensors'),
                             *(ROOT / package).rglob('*.sh'), ROOT / package / 'py.typed']}
    assert 'sam2_core/weights/nano.safetensors' in expected
    assert expected - set(zipfile.ZipFile(wheel).namelist()) == set()


# --- versions

def test_every_requirement_is_an_exact_version():
    assert set(PINS) == {'torch.txt', 'runtime.txt', 'ros-jazzy.txt', 'dev.txt', 'docs.txt', 'constraints.txt'}
    loose = [line for lines in PINS.values() for line in lines
             if not re.fullmatch(r'[\w.-]+(\[\w+\])?==[\w.]+( ; python_version (>=|<) "3\.11")?', line)]
    assert loose == []


@of_make
def test_what_the_requirements_bring_along_is_pinned_too():
    pinned = {normal(re.split(r'[\[=]', line)[0]) for lines in PINS.values() for line in lines}
    comes_with_torch = {'triton', 'cuda-bindings', 'cuda-pathfinder', 'cuda-toolkit'}  # of its GPU build, pinned by it
    unpinned, waiting = set(), [name for name in pinned if name != 'torch']
    seen = set(waiting)
    while waiting:
        try:
            distribution = importlib.metadata.distribution(waiting.pop())
        except importlib.metadata.PackageNotFoundError:
            continue  # for other versions of Python
        for requirement in distribution.requires or []:
            requirement = Requirement(requirement)
            name = normal(requirement.name)
            wanted = requirement.marker is None or requirement.marker.evaluate({'extra': ''})
            if not wanted or name in seen or not is_installed(name):
                continue
            seen.add(name)
            waiting.append(name)
            if name not in pinned | comes_with_torch and not name.startswith('nvidia-'):
                unpinned.add(f'{name}, for {distribution.name}')
    assert unpinned == set()


def is_installed(name):
    try:
        return bool(importlib.metadata.distribution(name))
    except importlib.metadata.PackageNotFoundError:
        return False


# --- make

@pytest.fixture
def plan(tmp_path):
    """Return a function that gives what `make` would run in a clone where the set-up has been done."""
    done = tmp_path / '.done'
    done.mkdir()
    for step in ('venv', 'torch', 'wheels', 'package', 'interfaces'):
        (done / step).touch()

    def plan(*arguments):
        environment = {name: value for name, value in os.environ.items() if not name.startswith('MAKE')}
        return subprocess.run(['make', '-n', f'VENV={tmp_path}', *arguments], cwd=ROOT, env=environment,
                              capture_output=True, text=True, check=True).stdout
    return plan


@needs_make
def test_set_up_is_done_once(plan):
    assert 'Nothing to be done' in plan('setup')
    assert plan('quick').splitlines() == [line for line in plan('quick').splitlines() if 'pytest' in line]


@needs_make
@pytest.mark.parametrize(('changed', 'again', 'not_again'), [
    ('requirements/dev.txt', '-r requirements/dev.txt', 'requirements/torch.txt'),
    ('requirements/torch.txt', '-r requirements/torch.txt', 'requirements/dev.txt'),
    ('setup.py', '--editable .', 'build_interfaces'),
    ('msg/Prompt.msg', 'build_interfaces', 'pip'),
    ('srv/SetPrompt.srv', 'build_interfaces', 'pip'),
    ('action/Track.action', 'build_interfaces', 'pip'),
    ('CMakeLists.txt', 'build_interfaces', 'pip'),
])
def test_a_change_repeats_only_its_step(plan, changed, again, not_again):
    steps = plan('-W', changed, 'setup')
    assert again in steps
    assert not_again not in steps


@needs_make
def test_demo_takes_a_clip_and_a_box(plan):
    assert plan('demo').split()[-4:] == ['-m', 'sam2_ros.demo', '--output', 'demo']
    assert '--model "nano"' in plan('demo', 'MODEL=nano')
    assert '--clip "my clip.mp4" --box "1,2,3,4"' in plan('demo', 'CLIP=my clip.mp4', 'BOX=1,2,3,4')


# --- the machine

@pytest.fixture
def machine(tmp_path):
    """Return a function that runs tools/find_python.sh on a machine with only these programs, name to content."""
    def look(*arguments, **programs):
        for name in ('uname', 'tail'):
            programs[name] = f'exec {shutil.which(name)} "$@"'
        for name, content in programs.items():
            program = tmp_path / name
            program.write_text(f'#!/bin/sh\n{content}\n')
            program.chmod(0o755)
        return subprocess.run([shutil.which('sh'), ROOT / 'tools' / 'find_python.sh', *arguments],
                              env={'PATH': str(tmp_path)}, capture_output=True, text=True)
    return look


def python_with(change):
    """Return a program that runs -c CODE in the real Python after a change to it."""
    return f'''exec {sys.executable} -c "import sys; {change}; exec(sys.argv[1])" "$2"'''


on_x86 = pytest.mark.skipif(os.uname().machine != 'x86_64', reason='the wheels are for x86_64')


@on_x86
def test_python_that_will_do_is_found(machine, tmp_path):
    found = machine(python3=python_with('pass'), **{'g++': ''})
    assert (found.returncode, found.stdout.strip()) == (0, str(tmp_path / 'python3')), found.stderr


@on_x86
def test_missing_compiler_is_said_with_the_cure(machine):
    found = machine(python3=python_with('pass'))
    assert found.returncode == 1
    assert 'No C++ compiler' in found.stderr and 'apt install g++' in found.stderr


@on_x86
@pytest.mark.parametrize(('change', 'message'), [
    ('sys.version_info = (3, 9, 2)', 'python3 is Python 3.9, too old'),
    ('sys.modules.update(ensurepip=None)', 'apt install python3-venv'),
    ("import os; os.path.exists = lambda path: not path.endswith('.h')", 'apt install python3-dev'),
])
def test_python_that_will_not_do_is_named_with_the_reason(machine, change, message):
    found = machine(python3=python_with(change), **{'g++': ''})
    assert found.returncode == 1
    assert 'No Python 3.10 or newer' in found.stderr
    assert message in found.stderr


@on_x86
def test_a_newer_python_beside_an_old_one_is_taken(machine, tmp_path):
    old, new = python_with('sys.version_info = (3, 9, 2)'), python_with('pass')
    found = machine(**{'python3': old, 'python3.12': new, 'g++': ''})
    assert found.stdout.strip() == str(tmp_path / 'python3.12')


@on_x86
def test_the_python_that_was_asked_for_is_not_replaced(machine):
    found = machine('python3.9', python3=python_with('pass'), **{'g++': ''})
    assert found.returncode == 1
    assert '(python3.9)' in found.stderr
