"""The launch files, and the node as started by them."""
import contextlib
import importlib.util
import os
import re
import signal
import sys
from pathlib import Path

import pytest

from sam2_ros.runtime.dds import PROFILE_VARIABLES
from testing.peer import Scene, running_node

ROOT = Path(__file__).resolve().parents[2]
# the part of ros2cli that `ros2 launch FILE NAME:=VALUE` needs
LAUNCH = """
import sys
from launch import LaunchDescription, LaunchService
from launch.actions import IncludeLaunchDescription
from launch.launch_description_sources import PythonLaunchDescriptionSource
service = LaunchService(noninteractive=True)
service.include_launch_description(LaunchDescription([IncludeLaunchDescription(
    PythonLaunchDescriptionSource(sys.argv[1]),
    launch_arguments=[tuple(item.split(":=", 1)) for item in sys.argv[2:]])]))
sys.exit(service.run())
"""
needs_launch = pytest.mark.skipif(
    importlib.util.find_spec('launch_ros') is None,
    reason='launch and launch_ros are not on PyPI: this runs where ROS 2 is installed')
CONFIG = ROOT / 'config' / 'sam2.yaml'


@contextlib.contextmanager
def launched(folder, *arguments, file='sam2.launch.py', environment=None, **peer):
    """Yield a peer of the node that a launch file has started with these arguments."""
    command = (sys.executable, '-c', LAUNCH, str(ROOT / 'launch' / file), *arguments)
    with running_node(folder, command=command, environment=environment, **peer) as other:
        try:
            yield other
        finally:  # launch ends its node only on a signal
            if other.process.alive:
                other.process.stop()


def node_pids(log):
    return [int(pid) for pid in re.findall(r'process started with pid \[(\d+)\]', log)]


def node_environment(log):
    pid = node_pids(log)[0]
    return dict(item.split('=', 1) for item in Path(f'/proc/{pid}/environ').read_text().split('\0') if item)


def wait_until_heard(peer, *topics):
    """Wait until the node subscribes to all of these topics."""
    def heard(topic):
        return any(info.node_name == 'sam2' for info in peer.node.get_subscriptions_info_by_topic(topic))
    for topic in topics:
        peer.wait_for(lambda topic=topic: heard(topic), f'a listener of {topic}')


def test_documentation_lists_every_argument():
    sources = [*(ROOT / 'launch').glob('*.py'), ROOT / 'sam2_ros' / 'launching.py']
    arguments = {name for path in sources for name in re.findall(r"DeclareLaunchArgument\('(\w+)'", path.read_text())}
    text = (ROOT / 'docs' / 'reference' / 'commands.md').read_text()
    table = text[text.index('| argument | default | file |'):].partition('\n\n')[0]
    listed = {name for row in table.splitlines() for name in re.findall(r'`(\w+)`', row.split('|')[1])}
    assert 'params_file' in arguments
    assert listed == arguments


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


@needs_launch
def test_depth_and_calibration_are_looked_for_beside_the_image(tmp_path):
    with launched(tmp_path, 'image_topic:=/wrist/color/image_raw', active=False) as peer:
        wait_until_heard(peer, '/wrist/color/image_raw', '/wrist/color/depth', '/wrist/color/camera_info')


@needs_launch
def test_depth_and_calibration_can_be_named(tmp_path):
    with launched(tmp_path, 'image_topic:=wrist/image', 'depth_topic:=wrist/aligned', 'camera_info_topic:=/info',
                  'namespace:=robot1', active=False) as peer:
        wait_until_heard(peer, '/robot1/wrist/image', '/robot1/wrist/aligned', '/info')


@needs_launch
def test_node_that_ends_is_started_again_when_asked_for(tmp_path):
    with launched(tmp_path, 'respawn:=true', 'autostart:=false', active=False) as peer:
        assert peer.state() == 'unconfigured'
        os.kill(node_pids(peer.process.log)[0], signal.SIGKILL)
        peer.wait_for(lambda: len(node_pids(peer.process.log)) == 2, 'another node')
        peer.wait_for(lambda: peer.node.count_publishers('/diagnostics'), 'it to be there')


@needs_launch
def test_cameras_get_their_topics_and_share_the_node(tmp_path):
    with launched(tmp_path, 'cameras:=front=/front/color/image_raw,wrist', 'depth_topics:=front=/front/aligned',
                  file='multi_camera.launch.py', active=False) as peer:
        wait_until_heard(peer, '/front/color/image_raw', '/front/aligned', '/front/color/camera_info',
                         '/wrist/image', '/wrist/depth', '/wrist/camera_info')
        assert peer.parameter('cameras') == ['front', 'wrist']
        for name in ('front', 'wrist'):
            peer.wait_for(lambda name=name: peer.node.count_publishers(f'/sam2/{name}/instances'), name)


@needs_launch
def test_each_camera_gets_its_transports(tmp_path):
    with launched(tmp_path, 'cameras:=front,wrist', 'image_transports:=wrist=compressed',
                  'depth_transport:=compressedDepth', file='multi_camera.launch.py', active=False) as peer:
        wait_until_heard(peer, '/front/image', '/wrist/image/compressed', '/front/depth/compressedDepth',
                         '/wrist/depth/compressedDepth')
        assert peer.parameter('image_transports') == ['raw', 'compressed']


@needs_launch
def test_one_camera_gets_its_transports(tmp_path):
    with launched(tmp_path, 'image_topic:=/cam/image', 'image_transport:=compressed',
                  'depth_transport:=compressedDepth', active=False) as peer:
        wait_until_heard(peer, '/cam/image/compressed', '/cam/depth/compressedDepth', '/cam/camera_info')


@needs_launch
@pytest.mark.parametrize(('arguments', 'reason'), [
    (('cameras:=front,front=/b',), 'front is named twice'),
    (('cameras:=front', 'image_transports:=rear=raw'), 'image_transports of rear: not among the cameras (front)'),
    (('cameras:=front', 'depth_topics:=rear=/d'), 'rear: not among the cameras (front)'),
    (('cameras:=',), 'name at least one')])
def test_cameras_that_do_not_fit_end_the_launch(tmp_path, arguments, reason):
    with launched(tmp_path, *arguments, file='multi_camera.launch.py', active=False) as peer:
        assert peer.process.wait() != 0
        assert reason in peer.process.log


@needs_launch
def test_realsense_is_heard_under_the_names_of_its_driver(tmp_path):
    with launched(tmp_path, 'camera_name:=d435', file='realsense.launch.py', active=False) as peer:
        wait_until_heard(peer, '/camera/d435/color/image_raw', '/camera/d435/aligned_depth_to_color/image_raw',
                         '/camera/d435/color/camera_info')


@needs_launch
@pytest.mark.skipif(Path(sys.prefix, 'share', 'realsense2_camera').exists(), reason='the driver is installed')
def test_realsense_driver_that_is_not_installed_is_named(tmp_path):
    with launched(tmp_path, 'driver:=true', file='realsense.launch.py', active=False) as peer:
        assert peer.process.wait() != 0
        assert 'realsense2_camera is not installed; apt install' in peer.process.log


@needs_launch
def test_realsense_driver_is_started_with_aligned_depth(tmp_path):
    """The driver is a stand-in whose launch file prints its arguments."""
    share = tmp_path / 'share'
    for path, content in ((share / 'ament_index/resource_index/packages/realsense2_camera', ''),
                          (share / 'realsense2_camera/launch/rs_launch.py', """
from launch import LaunchDescription
from launch.actions import OpaqueFunction
def generate_launch_description():
    return LaunchDescription([OpaqueFunction(function=lambda context: print('given', context.launch_configurations))])
""")):
        path.parent.mkdir(parents=True)
        path.write_text(content)
    prefixes = [str(tmp_path), os.environ.get('AMENT_PREFIX_PATH', '')]
    environment = {**os.environ, 'AMENT_PREFIX_PATH': os.pathsep.join(prefixes)}
    with launched(tmp_path, 'driver:=true', 'serial_no:=123', 'autostart:=false', file='realsense.launch.py',
                  environment=environment, active=False) as peer:
        peer.state()
        given = re.search('given (.*)', peer.process.log).group(1)
    for setting in ("'align_depth.enable': 'true'", "'camera_name': 'camera'", """'serial_no': "'123'\""""):
        assert setting in given


@needs_launch
def test_bag_starts_when_the_node_is_ready_and_leads_its_clock(tmp_path):
    """The player is a stand-in for `ros2 bag`: it prints its arguments and waits for its end."""
    player = tmp_path / 'ros2'
    player.write_text('#!/bin/sh\necho "played: $@"\nexec sleep 1000\n')
    player.chmod(0o755)
    environment = {**os.environ, 'PATH': f'{tmp_path}{os.pathsep}{os.environ["PATH"]}'}
    with launched(tmp_path, 'bag:=/data/run1', 'rate:=0.5', 'loop:=true', 'image_topic:=/cam/image',
                  file='bag.launch.py', environment=environment, active=False) as peer:
        peer.wait_for(lambda: 'played:' in peer.process.log, 'the bag to be played')
        assert 'played: bag play /data/run1 --clock 100 --rate 0.5 --loop' in peer.process.log
        assert peer.state() == 'active'
        assert peer.parameter('use_sim_time') is True
        assert peer.parameter('on_time_jump') == 'reset'
        wait_until_heard(peer, '/cam/image', '/cam/depth')


@needs_launch
def test_without_a_bag_the_node_waits_for_one_that_is_played_elsewhere(tmp_path):
    with launched(tmp_path, 'image_topic:=/cam/image', file='bag.launch.py', active=False) as peer:
        wait_until_heard(peer, '/cam/image')
        assert peer.state() == 'active'
