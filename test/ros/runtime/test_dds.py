"""The image profile: who gets it, where it is found, that Fast DDS does as it says, and what killed processes leave."""
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sam2_ros.runtime.dds import (
    PROFILE_VARIABLES,
    TRANSPORT_VARIABLE,
    dead_segments,
    image_profile,
    image_profile_environment,
    remove_dead_segments,
)

SEGMENT_SIZE = 64 * 2**20  # as in config/fastdds_images.xml
OPEN_SEGMENTS = '''
import json, os, sys
from sam2_ros.runtime.dds import use_image_profile
if sys.argv[1] == "use": use_image_profile()
import rclpy
rclpy.init()
node = rclpy.create_node("holder")
maps = [line.split() for line in open("/proc/self/maps") if "/dev/shm/fastrtps_" in line]
print(json.dumps([os.stat(fields[5]).st_size for fields in maps]))
if sys.argv[2:] == ["stay"]:
    open_files = [os.readlink(entry) for entry in os.scandir("/proc/self/fd") if os.path.exists(entry)]
    own = [name[:-3] for name in open_files if name.endswith("_el") and "port" not in name]  # others are mapped too
    print(max(own, key=os.path.getsize), flush=True)
    sys.stdin.read()
node.destroy_node()
rclpy.shutdown()
'''
HOLD_LOCK = '''
import fcntl, sys
lock = open(sys.argv[1])
fcntl.flock(lock, fcntl.LOCK_EX)
print(flush=True)
sys.stdin.read()
'''
LONG_AGO = (0, 0)


@pytest.fixture(autouse=True)
def untouched(monkeypatch):
    """An environment in which the user has chosen nothing."""
    for name in (*PROFILE_VARIABLES, TRANSPORT_VARIABLE):
        monkeypatch.delenv(name, raising=False)


def largest_segment(choice):
    """Bytes of the largest shared memory segment that a process with a node has open."""
    run = subprocess.run([sys.executable, '-c', OPEN_SEGMENTS, choice], capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stderr
    return max(json.loads(run.stdout))


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
@pytest.mark.alone  # segments of other processes would be counted too
def test_fast_dds_opens_a_segment_that_holds_images(ros_domain):
    assert largest_segment('use') >= SEGMENT_SIZE
    assert largest_segment('leave') < SEGMENT_SIZE


def leave(folder, name, size=1000):
    """A segment and its lock as a process leaves them that was killed long ago."""
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
    """The segment of a process that lives."""
    segment = leave(tmp_path, f'{naming}_00000000000000aa')
    with subprocess.Popen([sys.executable, '-c', HOLD_LOCK, f'{segment}_el'], stdin=subprocess.PIPE,
                          stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        yield segment
        process.stdin.close()


def test_segments_of_killed_processes_are_removed_and_no_others(tmp_path, held, naming):
    dead = leave(tmp_path, f'{naming}_0123456789abcdef', size=2**20)
    port = leave(tmp_path, f'{naming}_port7000')  # Fast DDS looks after these itself
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


def test_no_shared_memory_has_no_dead_segments(tmp_path):
    assert dead_segments(tmp_path / 'none') == []


@pytest.mark.system
@pytest.mark.alone  # any node that starts would do the same
def test_node_removes_what_a_killed_process_left(ros_domain):
    with subprocess.Popen([sys.executable, '-c', OPEN_SEGMENTS, 'use', 'stay'], stdin=subprocess.PIPE,
                          stdout=subprocess.PIPE, text=True) as process:
        process.stdout.readline()
        segment = Path(process.stdout.readline().strip())
        lock = Path(f'{segment}_el')
        os.utime(lock, LONG_AGO)
        assert segment not in dead_segments()  # it lives
        process.kill()
    assert segment.stat().st_size >= SEGMENT_SIZE
    node = subprocess.run([sys.executable, '-m', 'sam2_ros.node', '--ros-args', '-p', 'max_objects:=-1'],
                          capture_output=True, text=True, timeout=60)
    assert node.returncode == 1  # it ends at once, of its parameter
    assert 'MiB of shared memory freed' in node.stdout + node.stderr
    assert not segment.exists()
    assert not lock.exists()
