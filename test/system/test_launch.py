"""The launch file, and the node as the launch file starts it."""
import contextlib
import importlib.util
import os
import re
import signal
import sys
from pathlib import Path

import pytest
from harness import Scene, running_node

from sam2_ros.dds import PROFILE_VARIABLES

ROOT = Path(__file__).resolve().parents[2]
# what `ros2 launch FILE NAME:=VALUE` does, and nothing else that ros2cli brings
LAUNCH = '''
import sys
from launch import LaunchDescription, LaunchService
from launch.actions import IncludeLaunchDescription
from launch.launch_description_sources import PythonLaunchDescriptionSource
service = LaunchService(noninteractive=True)
service.include_launch_description(LaunchDescription([IncludeLaunchDescription(
    PythonLaunchDescriptionSource(sys.argv[1]),
    launch_arguments=[tuple(item.split(":=", 1)) for item in sys.argv[2:]])]))
sys.exit(service.run())
'''
needs_launch = pytest.mark.skipif(
    importlib.util.find_spec('launch_ros') is None,
    reason='launch and launch_ros are not on PyPI: this runs where ROS 2 is installed')
CONFIG = ROOT / 'config' / 'sam2.yaml'


@contextlib.contextmanager
def launched(folder, *arguments, environment=None, **peer):
    """The launch file with these arguments, and a peer of its node."""
    command = (sys.executable, '-c', LAUNCH, str(ROOT / 'launch' / 'sam2.launch.py'), *arguments)
    with running_node(folder, command=command, environment=environment, **peer) as other:
        try:
            yield other
        finally:  # launch ends its node only when it is asked to
            if other.process.alive:
                other.process.stop()


def node_environment(log):
    pid = re.search(r'process started with pid \[(\d+)\]', log).group(1)
    return dict(item.split('=', 1) for item in Path(f'/proc/{pid}/environ').read_text().split('\0') if item)


def test_node_answers_under_the_names_that_the_launch_file_gives_it(tmp_path):
    scene = Scene()
    arguments = ('-r', '__node:=sam2', '-r', '__ns:=/robot1', '--params-file', str(CONFIG),
                 '-r', 'image:=camera/image_raw', '--log-level', 'warn')
    with running_node(tmp_path, arguments=arguments, namespace='/robot1', image_topic='camera/image_raw') as peer:
        answer = peer.start_object(3, scene.box(0, 1), scene.image(0))
        assert [instance.id for instance in answer.instances] == [3]


@needs_launch
def test_launched_node_starts_itself_within_its_namespace(tmp_path):
    scene = Scene()
    with launched(tmp_path, 'namespace:=robot1', 'image_topic:=cam/raw',
                  namespace='/robot1', image_topic='cam/raw') as peer:
        answer = peer.start_object(3, scene.box(0, 1), scene.image(0))
        assert [instance.id for instance in answer.instances] == [3]
        code, _ = peer.process.stop(signal.SIGINT)
        assert code == 0, peer.process.log
        assert 'process has finished cleanly' in peer.process.log


@needs_launch
def test_arguments_reach_the_node(tmp_path):
    with launched(tmp_path, 'autostart:=false', 'use_sim_time:=true', 'log_level:=debug', active=False) as peer:
        assert peer.state() == 'unconfigured'
        assert peer.parameter('use_sim_time') is True
        assert '[DEBUG]' in peer.process.log


@needs_launch
def test_parameters_file_decides_where_no_argument_does(tmp_path):
    chosen = tmp_path / 'chosen.yaml'
    chosen.write_text(CONFIG.read_text().replace('autostart: true', 'autostart: false')
                      .replace('max_objects: 32', 'max_objects: 5'))
    with launched(tmp_path, f'params_file:={chosen}', 'node_name:=watcher', active=False) as peer:
        peer.name = '/watcher'
        assert peer.state() == 'unconfigured'
        assert peer.parameter('max_objects') == 5


@needs_launch
def test_missing_parameters_file_ends_the_launch(tmp_path):
    with launched(tmp_path, 'params_file:=/no/such.yaml', active=False) as peer:
        assert peer.process.wait() != 0
        assert 'params_file /no/such.yaml: no such file' in peer.process.log


@needs_launch
@pytest.mark.parametrize('chosen', ['', '/home/robot/own_profile.xml'])
def test_image_profile_is_set_unless_the_user_has_one(tmp_path, chosen):
    environment = {name: value for name, value in os.environ.items() if name not in PROFILE_VARIABLES}
    if chosen:
        environment[PROFILE_VARIABLES[0]] = chosen
    with launched(tmp_path, 'autostart:=false', environment=environment, active=False) as peer:
        peer.state()
        seen = node_environment(peer.process.log)
    if chosen:
        assert [seen.get(name) for name in PROFILE_VARIABLES] == [chosen, None]
    else:
        assert [Path(seen[name]).name for name in PROFILE_VARIABLES] == ['fastdds_images.xml'] * 2
