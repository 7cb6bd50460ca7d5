"""The image profile: who gets it, where it is found, and that Fast DDS does as it says."""
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sam2_ros.dds import PROFILE_VARIABLES, TRANSPORT_VARIABLE, image_profile, image_profile_environment

SEGMENT_SIZE = 64 * 2**20  # as in config/fastdds_images.xml
OPEN_SEGMENTS = '''
import json, os, sys
from sam2_ros.dds import use_image_profile
if sys.argv[1] == "use": use_image_profile()
import rclpy
rclpy.init()
node = rclpy.create_node("holder")
maps = [line.split() for line in open("/proc/self/maps") if "/dev/shm/fastrtps_" in line]
print(json.dumps([os.stat(fields[5]).st_size for fields in maps]))
node.destroy_node()
rclpy.shutdown()
'''


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
    monkeypatch.setattr('sam2_ros.dds.__file__', str(tmp_path / 'lib' / 'sam2_ros' / 'dds.py'))
    assert image_profile() == tmp_path / 'overlay' / 'share' / 'sam2_ros' / 'config' / 'fastdds_images.xml'


def test_missing_profile_names_the_places_and_the_cure(monkeypatch, tmp_path):
    monkeypatch.setenv('AMENT_PREFIX_PATH', str(tmp_path / 'prefix'))
    monkeypatch.setattr('sam2_ros.dds.__file__', str(tmp_path / 'lib' / 'sam2_ros' / 'dds.py'))
    monkeypatch.setattr(sys, 'prefix', str(tmp_path / 'python'))
    with pytest.raises(FileNotFoundError, match='prefix/share/sam2_ros.*colcon build'):
        image_profile()


@pytest.mark.system  # segments of other processes would be counted too
def test_fast_dds_opens_a_segment_that_holds_images(ros_domain):
    assert largest_segment('use') >= SEGMENT_SIZE
    assert largest_segment('leave') < SEGMENT_SIZE
