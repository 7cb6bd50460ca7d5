"""sam2_check as a process beside cameras: that of the demo, and broken ones played by the test."""
import contextlib
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from geometry_msgs.msg import TransformStamped
from rclpy.qos import qos_profile_sensor_data
from sensor_msgs.msg import CameraInfo, Image
from std_msgs.msg import Header

from sam2_ros.messages.conversions import from_pixels
from sam2_ros.runtime.dds import PROFILE_VARIABLES, TRANSPORT_VARIABLE
from testing.camera_images import image_message
from testing.domains import own_domain
from testing.node_process import NodeProcess
from testing.peer import Peer, running_node
from testing.waiting import PATIENCE

ON_A_BUSY_MACHINE = {'rate'}  # skipped images look like lost ones
CAMERA = (sys.executable, '-m', 'sam2_ros.demo.camera')


class Check:
    """Process of sam2_check."""

    def __init__(self, domain: int, *arguments: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, '-m', 'sam2_ros.check', '--seconds', '2', '--device', 'cpu', *arguments],
            env={**os.environ, 'ROS_DOMAIN_ID': str(domain)}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    def result(self) -> tuple[int, str]:
        """Wait for the end; return exit code and output."""
        output, errors = self._process.communicate(timeout=2 * PATIENCE)
        assert 'Traceback' not in errors, errors
        return self._process.returncode, output

    def findings(self) -> tuple[int, dict[str, tuple[str, str]]]:
        """Wait for the end of a run with --json; return the exit code, and verdict and text by finding."""
        code, output = self.result()
        return code, {item['what']: (item['verdict'], item['text']) for item in json.loads(output)}


@contextlib.contextmanager
def demo_camera(folder, domain, **parameters):
    process = NodeProcess(domain, folder / 'camera.log', {'rate': 10.0, 'width': 320, 'height': 240, **parameters},
                          command=CAMERA)
    try:
        yield process
    finally:
        process.kill()


class Rig:
    """Camera with depth in the process of the peer, controlled by the test."""

    def __init__(self, peer: Peer, image_qos=qos_profile_sensor_data) -> None:
        self._peer = peer
        self._images = peer.node.create_publisher(Image, '/rig/image', image_qos)
        self._depths = peer.node.create_publisher(Image, '/rig/depth', qos_profile_sensor_data)
        self._infos = peer.node.create_publisher(CameraInfo, '/rig/camera_info', qos_profile_sensor_data)

    def stream_while(self, check: Check, depth_size=(120, 160), frame_id='rig', step=lambda header: None) -> None:
        while check.running:
            self._peer.spin(0.01)
            if not self._peer.due():
                continue
            header = self._peer.header()
            header.frame_id = frame_id
            step(header)
            self._images.publish(image_message(np.full((120, 160, 3), 90, np.uint8), header))
            self._depths.publish(from_pixels(900 + np.arange(depth_size[1], dtype=np.uint16)
                                             + np.zeros(depth_size, np.uint16), '16UC1', header))
            self._infos.publish(CameraInfo(header=header, width=160, height=120,
                                           k=[150.0, 0.0, 80.0, 0.0, 150.0, 60.0, 0.0, 0.0, 1.0]))


RIG = ('--json', '--image-topic', '/rig/image', '--depth-topic', '/rig/depth',
       '--camera-info-topic', '/rig/camera_info')


@pytest.mark.parametrize(('transport', 'encoding'), [('raw', '16UC1'), ('compressed', '32FC1')])
def test_a_camera_that_works_gets_a_green_line_for_everything(tmp_path, transport, encoding):
    with own_domain() as domain, demo_camera(tmp_path, domain, image_transport=transport, depth=encoding):
        code, output = Check(domain, '--image-transport', transport).result()
    found = {line[5:20].strip(): (line.split()[0], line[20:]) for line in output.splitlines()}
    failed = {what for what, (mark, _) in found.items() if mark == 'FAIL'}
    assert failed <= ON_A_BUSY_MACHINE and code == bool(failed), output
    for what in ('image', 'stamps', 'frame', 'depth size', 'depth stamps', 'depth values', 'camera_info'):
        assert found[what][0] == 'ok', output
    assert found['image'][1].startswith('320 x 240 pixels')
    assert found['depth size'][1] == f'320 x 240 pixels, as the image, {encoding}'
    assert found['frame'][1] == 'camera_optical_frame'


def test_nobody_there_fails_and_names_what_is_there_instead(tmp_path):
    with own_domain() as domain, demo_camera(tmp_path, domain):
        code, found = Check(domain, '--json', '--image-topic', '/front/image').findings()
    assert code == 1
    verdict, text = found['publisher']
    assert verdict == 'bad'
    assert 'nobody publishes /front/image' in text
    assert '/image' in text.partition('; sensor_msgs/msg/Image is on ')[2].removesuffix(': remap it').split(', ')
    assert found['node'] == ('doubtful', '/sam2 is not running: ros2 launch sam2_ros sam2.launch.py')


def test_a_camera_with_depth_is_checked_against_its_node(tmp_path):
    with running_node(tmp_path, arguments=('-r', 'image:=/rig/image'), image_topic='rig/image') as peer:
        rig = Rig(peer)
        check = Check(peer.node.context.get_domain_id(), *RIG)
        rig.stream_while(check)
        code, found = check.findings()
    failed = {what for what, (verdict, _) in found.items() if verdict == 'bad'}
    assert failed <= ON_A_BUSY_MACHINE and code == bool(failed), found
    for what in ('image', 'stamps', 'frame', 'depth size', 'depth stamps', 'depth values', 'camera_info',
                 'node'):
        assert found[what][0] == 'good', found[what]
    assert found['depth size'][1] == '160 x 120 pixels, as the image, 16UC1'


def test_the_transform_into_target_frame_is_checked_at_the_stamps_of_the_images(tmp_path):
    pytest.importorskip('tf2_ros', reason='needs tf2_ros (CONTRIBUTING.md)')
    from tf2_msgs.msg import TFMessage
    with running_node(tmp_path, active=False) as peer:
        rig = Rig(peer)
        tf = peer.node.create_publisher(TFMessage, '/tf', 100)

        def move(header):
            moved = TransformStamped(header=Header(stamp=header.stamp, frame_id='map'), child_frame_id='rig')
            tf.publish(TFMessage(transforms=[moved]))
        check = Check(peer.node.context.get_domain_id(), *RIG, '--ros-args', '-p', 'target_frame:=map')
        rig.stream_while(check, step=move)
        _, found = check.findings()
    assert found['target_frame'] == ('good', "'rig' to 'map': 100% of the images have a transform at their stamp")


def test_a_camera_with_everything_wrong_is_told_so(tmp_path):
    def spoil(header):
        header.stamp.sec -= 86400

    with running_node(tmp_path, arguments=('-r', 'image:=/another/image'), active=False) as peer:
        rig = Rig(peer)
        peer.wait_for(lambda: peer.state() == 'active', 'the node to be active')
        check = Check(peer.node.context.get_domain_id(), *RIG)
        rig.stream_while(check, depth_size=(60, 80), frame_id='', step=spoil)
        code, found = check.findings()
    assert code == 1
    assert found['depth size'] == ('bad', 'depth of 80 x 60 pixels: must be 160 x 120, as the image; use the depth '
                                          'that is aligned to it (RealSense: align_depth.enable:=true)')
    assert found['stamps'][0] == 'bad' and 'set use_sim_time' in found['stamps'][1]
    assert found['frame'][0] == 'bad'
    assert found['node'] == ('bad', '/sam2 is active, but is not subscribed to /rig/image: remap its topic image '
                                    '(image_topic:=... of the launch file)')


def test_a_node_that_asks_for_more_than_the_camera_gives_is_named(tmp_path):
    override = ('-r', 'image:=/rig/image', '-p', 'qos_overrides./rig/image.subscription.reliability:=reliable')
    with running_node(tmp_path, arguments=override, active=False) as peer:
        rig = Rig(peer)  # best effort
        peer.wait_for(lambda: peer.state() == 'active', 'the node to be active')
        check = Check(peer.node.context.get_domain_id(), *RIG)
        rig.stream_while(check)
        code, found = check.findings()
    assert code == 1
    assert found['QoS'] == ('bad', '/rig/image: /peer and /sam2 are incompatible: best effort publisher and '
                                   'reliable subscription; relax the subscription with the parameters '
                                   'qos_overrides./rig/image.subscription.*')


def test_what_keeps_the_node_from_its_model_is_in_the_check(tmp_path):
    with running_node(tmp_path, {'checkpoint': '/no/such.pt'}, active=False) as peer:
        peer.wait_for(lambda: 'cannot be loaded' in peer.process.log, 'the node to give up')
        check = Check(peer.node.context.get_domain_id(), '--json', '--checkpoint', '/no/such.pt')
        code, found = check.findings()
    assert code == 1
    assert found['weights'] == ('bad', 'checkpoint /no/such.pt: no such file')
    assert found['node'] == ('doubtful', '/sam2 is unconfigured: ros2 lifecycle set /sam2 configure')
    assert found['node says'][0] == 'bad' and 'checkpoint /no/such.pt: no such file' in found['node says'][1]


def test_the_check_reads_the_parameters_file_of_the_node(tmp_path):
    parameters = tmp_path / 'robot.yaml'
    parameters.write_text('camera:\n  ros__parameters: {fps: 30}\n'
                          'robot:\n  sam2:\n    ros__parameters:\n      model: sam3\n      cameras: [front]\n'
                          '      use_sim_time: true\n')
    with own_domain() as domain:
        code, found = Check(domain, '--json', '--node', '/robot/sam2', '--ros-args', '-r', 'front/depth:=/depth',
                            '--params-file', str(parameters)).findings()
    assert code == 1
    assert found['parameters'] == ('good', f'/robot/sam2: 3 given, /robot/sam2 of {parameters}')
    assert found['clock'][0] == 'bad'
    assert 'nobody publishes /depth' in found['front depth'][1]
    assert found['weights'][1].startswith("model 'sam3': must be one of")
    assert 'nobody publishes /robot/front/image' in found['front publisher'][1]


def test_the_profile_is_that_of_the_shell(monkeypatch):
    for name in (*PROFILE_VARIABLES, TRANSPORT_VARIABLE):
        monkeypatch.delenv(name, raising=False)
    with own_domain() as domain:
        _, found = Check(domain, '--json').findings()
    assert found['transport'][0] == 'doubtful'
    assert f'export {PROFILE_VARIABLES[0]}=' in found['transport'][1]
