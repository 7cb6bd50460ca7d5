"""The package as installed by colcon, built against the ROS 2 wheels and run from install/ alone."""
import filecmp
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sam2_core.metrics import iou
from testing.node_process import NodeProcess
from testing.peer import Scene, ids, running_node, whole_mask

ROOT = Path(__file__).resolve().parents[2]
INSTALL = ROOT / 'build' / 'colcon' / 'install'
PREFIX = INSTALL / 'sam2_ros'
EXECUTABLES = PREFIX / 'lib' / 'sam2_ros'
PYTHON = f'lib/python{sys.version_info.major}.{sys.version_info.minor}/site-packages'

pytestmark = [pytest.mark.slow, pytest.mark.skipif(
    not Path(sys.prefix, 'share', 'rclpy').is_dir(),
    reason='without the ROS 2 wheels colcon has built the package that is tested anyway')]


@pytest.fixture(scope='module')
def environment():
    """Return the environment variables of a shell that has sourced the installation."""
    build = subprocess.run([sys.executable, ROOT / 'tools' / 'colcon_build.py'], capture_output=True, text=True)
    assert build.returncode == 0, build.stdout + build.stderr
    clean = {name: value for name, value in os.environ.items() if not name.startswith(('FASTRTPS_', 'FASTDDS_'))}
    clean['PATH'] = f'{sys.prefix}/bin:{clean["PATH"]}'  # the python3 of the scripts is the one with torch
    shell = subprocess.run(['bash', '-c', 'source "$0" && env -0', INSTALL / 'local_setup.bash'], env=clean,
                           capture_output=True, text=True, check=True)
    return dict(line.split('=', 1) for line in shell.stdout.split('\0') if line)


def sources(*folders):
    return [path for folder in folders for path in sorted((ROOT / folder).rglob('*'))
            if path.is_file() and '__pycache__' not in path.parts]


def test_every_file_is_installed(environment):
    places = {'sam2_ros': PYTHON, 'sam2_core': PYTHON, 'launch': 'share/sam2_ros', 'config': 'share/sam2_ros'}
    expected = {path: PREFIX / place / path.relative_to(ROOT)
                for folder, place in places.items() for path in sources(folder)}
    expected |= {path: EXECUTABLES / path.name for path in sources('scripts')}
    assert ROOT / 'sam2_core' / 'weights' / 'nano.safetensors' in expected
    different = [str(there) for here, there in expected.items()
                 if not there.is_file() or not filecmp.cmp(here, there, shallow=False)]
    assert different == []
    assert all(os.access(expected[path], os.X_OK) for path in sources('scripts'))


def test_nothing_is_taken_from_the_source_tree(environment, tmp_path):
    script = """
import json, sys
import sam2_ros.node, sam2_ros.demo.camera
from sam2_ros.runtime.dds import image_profile
from sam2_ros.msg import Prompt
Prompt.__class__.__import_type_support__()
files = [module.__file__ for name, module in sys.modules.items() if name.startswith("sam2_")]
libraries = {line.split()[-1] for line in open("/proc/self/maps") if "libsam2_ros" in line}
print(json.dumps([files, sorted(libraries), str(image_profile())]))
"""
    run = subprocess.run([sys.executable, '-c', script], env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    files, libraries, profile = json.loads(run.stdout)
    assert {'node.py', 'dds.py', 'tracker.py', '_prompt.py'} <= {Path(path).name for path in files}
    assert libraries
    assert [path for path in [*files, *libraries, profile] if PREFIX not in Path(path).parents] == []


def test_installed_node_answers_a_prompt(environment, tmp_path):
    scene = Scene()
    with running_node(tmp_path, command=(str(EXECUTABLES / 'sam2_node'),), environment=environment, arguments=(
            '--params-file', str(PREFIX / 'share' / 'sam2_ros' / 'config' / 'sam2.yaml'))) as peer:
        answer = peer.start_object(7, scene.box(0, 1), scene.image(0))
        assert ids(answer) == [7]
        assert iou(whole_mask(answer, 7), scene.mask(0, 1)) > 0.8
        open_files = Path(f'/proc/{peer.process.pid}/maps').read_text()
        assert str(PREFIX / 'lib' / 'libsam2_ros__rosidl_typesupport_c.so') in open_files
        code, _ = peer.process.stop()
        assert code == 0, peer.process.log


def test_installed_camera_feeds_the_installed_node(environment, tmp_path):
    with running_node(tmp_path, command=(str(EXECUTABLES / 'sam2_node'),), environment=environment) as peer:
        camera = NodeProcess(peer.node.context.get_domain_id(), tmp_path / 'camera.log',
                             {'width': 320, 'height': 240, 'rate': 10.0},
                             command=(str(EXECUTABLES / 'sam2_demo_camera'),), environment=environment)
        try:
            peer.wait_for(lambda: not camera.alive or any((array.width, array.height) == (320, 240)
                                                          for array in peer.instances), 'images of the camera')
            assert camera.alive, camera.log
        finally:
            camera.kill()
