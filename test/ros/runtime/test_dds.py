"""The image profile: who uses it, where it is found, and its effect; shared memory left behind by killed processes."""
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from sam2_ros.runtime.dds import (
    PROFILE_VARIABLES,
    SHARED_MEMORY,
    TRANSPORT_VARIABLE,
    dead_segments,
    image_profile,
    image_profile_environment,
    remove_dead_segments,
)

SEGMENT_SIZE = 64 * 2**20  # bytes, as in config/fastdds_images.xml
OPEN_SEGMENTS = """
import json, os, sys
from sam2_ros.runtime.dds import use_image_profile
if sys.argv[1] == "use": use_image_profile()
import rclpy
rclpy.init()
node = rclpy.create_node("holder")
open_files = [os.readlink(entry) for entry in os.scandir("/proc/self/fd") if os.path.exists(entry)]
locks = [name for name in open_files if name.startswith("/dev/shm/fast") and name.endswith("_el")]
own = max((name[:-3] for name in locks if "port" not in name), key=os.path.getsize)
print(json.dumps([own, os.path.getsize(own)]), flush=True)
if sys.argv[2:] == ["stay"]:
    sys.stdin.read()
node.destroy_node()
rclpy.shutdown()
"""
# a node whose folder of shared memory is argv[1]
NODE = """
import pathlib, runpy, sys
from sam2_ros.runtime import dds
dds.dead_segments.__defaults__ = dds.remove_dead_segments.__defaults__ = (pathlib.Path(sys.argv.pop(1)),)
runpy.run_module("sam2_ros.node", run_name="__main__")
"""
HOLD_LOCK = """
import fcntl, sys
lock = open(sys.argv[1])
fcntl.flock(lock, fcntl.LOCK_EX)
print(flush=True)
sys.stdin.read()
"""
LONG_AGO = (0, 0)


@pytest.fixture(autouse=True)
def untouched(monkeypatch):
    """Have an environment in which the user has set no profile and no transports."""
    for name in (*PROFILE_VARIABLES, TRANSPORT_VARIABLE):
        monkeypatch.delenv(name, raising=False)


def largest_segment(choice):
    """Return the bytes of the largest shared memory segment of a process with a node."""
    run = subprocess.run([sys.executable, '-c', OPEN_SEGMENTS, choice], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)[1]


def test_both_names_lead_to_the_profile():
    variables = image_profile_environment()
    assert set(variables) == {'FASTRTPS_DEFAULT_PROFILES_FILE', 'FASTDDS_DEFAULT_PROFILES_FILE'}
    assert all(Path(value).name == 'fastdds_images.xml' and Path(value).is_file() for value in variables.values())


@pytest.mark.parametrize('name', [*PROFILE_VARIABLES, TRANSPORT_VARIABLE])
def test_the_users_choice_stands(monkeypatch, name):
    monkeypatch.setenv(name, 'UDPv4')
    assert image_profile_environment() == {}


def test_an_empty_variable_is_no_choice(monkeypatch):
    monkeypatch.setenv(PROFILE_VARIABLES[0], '')
    assert image_profile_environment()


def test_profile_is_found_in_the_overlay_that_comes_first(monkeypatch, tmp_path):
    prefixes = [tmp_path / name for name in ('overlay', 'underlay', 'bare')]
    for prefix in prefixes[:2]:
        profile = prefix / 'share' / 'sam2_ros' / 'config' / 'fastdds_images.xml'
        profile.parent.mkdir(parents=True)
        profile.touch()
    monkeypatch.setenv('AMENT_PREFIX_PATH', os.pathsep.join(map(str, [prefixes[2], *prefixes[:2]])))
    monkeypatch.setattr('sam2_ros.runtime.dds.__file__', str(tmp_path / 'lib' / 'sam2_ros' / 'runtime' / 'dds.py'))
    assert image_profile() == tmp_path / 'overlay' / 'share' / 'sam2_ros' / 'config' / 'fastdds_images.xml'


def test_missing_profile_names_the_places_and_the_cure(monkeypatch, tmp_path):
    monkeypatch.setenv('AMENT_PREFIX_PATH', str(tmp_path / 'prefix'))
    monkeypatch.setattr('sam2_ros.runtime.dds.__file__', str(tmp_path / 'lib' / 'sam2_ros' / 'runtime' / 'dds.py'))
    monkeypatch.setattr(sys, 'prefix', str(tmp_path / 'python'))
    with pytest.raises(FileNotFoundError, match='prefix/share/sam2_ros.*colcon build'):
        image_profile()


@pytest.mark.system
def test_fast_dds_opens_a_segment_that_holds_images(ros_domain):
    assert largest_segment('use') >= SEGMENT_SIZE
    assert largest_segment('leave') < SEGMENT_SIZE


def leave(folder, name, size=1000):
    """Create a segment and its lock as a process leaves them that was killed long ago."""
    segment, lock = folder / name, folder / f'{name}_el'
    segment.write_bytes(bytes(size))
    lock.touch()
    os.utime(lock, LONG_AGO)
    return segment


@pytest.fixture(params=['fastrtps', 'fastdds'])  # Fast DDS up to 2 (Jazzy) and since 3 (Kilted)
def naming(request):
    return request.param


@pytest.fixture
def held(tmp_path, naming):
    """Return the segment of a running process."""
    segment = leave(tmp_path, f'{naming}_00000000000000aa')
    with subprocess.Popen([sys.executable, '-c', HOLD_LOCK, f'{segment}_el'], stdin=subprocess.PIPE,
                          stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        yield segment
        process.stdin.close()


def test_segments_of_killed_processes_are_removed_and_no_others(tmp_path, held, naming):
    dead = leave(tmp_path, f'{naming}_0123456789abcdef', size=2**20)
    port = leave(tmp_path, f'{naming}_port7000')  # Fast DDS manages these itself
    (tmp_path / f'sem.{naming}_port7000_mutex').touch()
    leave(tmp_path, f'{naming}_port7001').with_name(f'{naming}_port7001_el').rename(tmp_path / f'{naming}_port7001_sl')
    leave(tmp_path, 'fastother_0123456789abcdef')
    young = leave(tmp_path, f'{naming}_00000000000000bb')
    os.utime(f'{young}_el')  # its process may be about to lock it
    without_lock = tmp_path / f'{naming}_00000000000000cc'
    without_lock.touch()
    before = {path for path in tmp_path.iterdir() if not path.name.startswith(dead.name)}
    assert dead_segments(tmp_path) == [dead]
    assert remove_dead_segments(tmp_path) == 2**20
    assert set(tmp_path.iterdir()) == before >= {held, port, young, without_lock}
    assert remove_dead_segments(tmp_path) == 0


def test_a_lock_whose_segment_is_gone_is_removed_too(tmp_path, naming):
    leave(tmp_path, f'{naming}_0123456789abcdef').unlink()
    assert remove_dead_segments(tmp_path) == 0
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def shared_folder():
    """Return a folder in the shared memory, where segments can be hard links."""
    with tempfile.TemporaryDirectory(dir=SHARED_MEMORY) as folder:
        yield Path(folder)


def test_no_shared_memory_has_no_dead_segments(tmp_path):
    assert dead_segments(tmp_path / 'none') == []


@pytest.mark.system
def test_node_removes_what_a_killed_process_left(ros_domain, shared_folder):
    with subprocess.Popen([sys.executable, '-c', OPEN_SEGMENTS, 'use', 'stay'], stdin=subprocess.PIPE,
                          stdout=subprocess.PIPE, text=True) as process:
        shared = Path(json.loads(process.stdout.readline())[0])
        os.utime(f'{shared}_el', LONG_AGO)
        assert shared not in dead_segments()  # its process is running
        # every node that starts on this machine may remove the segment: this test has its own name for it
        segment, lock = shared_folder / shared.name, shared_folder / f'{shared.name}_el'
        segment.hardlink_to(shared)
        process.kill()
    lock.touch()
    os.utime(lock, LONG_AGO)
    assert segment.stat().st_size >= SEGMENT_SIZE
    assert dead_segments(shared_folder) == [segment]
    node = subprocess.run([sys.executable, '-c', NODE, shared_folder, '--ros-args', '-p', 'max_objects:=-1'],
                          capture_output=True, text=True)
    assert node.returncode == 1  # it ends at once because of its parameter
    assert 'MiB of shared memory left behind by killed processes' in node.stdout + node.stderr
    assert not segment.exists()
    assert not lock.exists()
