"""The clients in the documentation beside the node and the demo camera, as its pages start them."""
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip('rclpy', reason='needs ROS 2 or its wheels (make setup)')
from testing.node_process import NodeProcess  # noqa: E402

DOCS = Path(__file__).resolve().parents[2] / 'docs'
CLIENT = DOCS / 'tutorials' / 'first_object.py'
TRACK = DOCS / 'how-to' / 'track_object.py'
CAMERA = (sys.executable, '-m', 'sam2_ros.demo.camera')


@pytest.mark.slow
def test_the_first_object_is_tracked_corrected_and_removed(tmp_path, ros_domain):
    # a slow machine must not make the late prompt too late
    node = NodeProcess(ros_domain, tmp_path / 'node.log', {'history_seconds': 60.0})
    camera = NodeProcess(ros_domain, tmp_path / 'camera.log', {'hold': True, 'rate': 4.0}, command=CAMERA)
    try:
        client = subprocess.run([sys.executable, CLIENT], cwd=tmp_path, capture_output=True, text=True, timeout=240)
        assert client.returncode == 0, client.stderr + node.log
        for line in ('event: ball ADDED', 'event: tea box ADDED', 'event: can ADDED', 'event: tea box REMOVED'):
            assert line in client.stdout
        assert client.stdout.count('accepted') == 5, client.stdout
        assert (tmp_path / 'first_object.png').stat().st_size > 100_000
        assert camera.stop()[0] == node.stop()[0] == 0
    finally:
        camera.kill()
        node.kill()


@pytest.mark.slow
def test_a_client_of_the_action_follows_an_object_and_lets_go_of_it(tmp_path, ros_domain):
    node = NodeProcess(ros_domain, tmp_path / 'node.log')
    camera = NodeProcess(ros_domain, tmp_path / 'camera.log', {'hold': True, 'rate': 4.0}, command=CAMERA)
    try:
        client = subprocess.run([sys.executable, TRACK, '3'], cwd=tmp_path, capture_output=True, text=True, timeout=240)
        assert client.returncode == 0, client.stderr + node.log
        *feedback, end = client.stdout.splitlines()
        assert end == 'CANCELLED: cancelled; object 1 was removed, since this goal had started it', client.stdout
        assert feedback and all(line.startswith('1 ball: TRACKED, score 0.') for line in feedback)
        # a node that ends with an open goal sends no result: the client finds out
        with subprocess.Popen([sys.executable, TRACK, '240'], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                              text=True) as client:
            assert client.stdout.readline().startswith('2 ball: TRACKED')
            assert node.stop()[0] == 0
            _, problem = client.communicate(timeout=240)
        assert (client.returncode, problem.strip()) == (1, 'the node has gone')
        assert 'Traceback' not in node.log
        assert camera.stop()[0] == 0
    finally:
        camera.kill()
        node.kill()
