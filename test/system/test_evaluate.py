"""sam2_evaluate as users start it, on a recorded bag; live, it plays the bag to a node over DDS."""
import json
import subprocess
import sys

import numpy as np
import pytest
from rclpy.serialization import deserialize_message
from sensor_msgs.msg import CameraInfo

pytest.importorskip('rosbags', reason='needs rosbags (pip install rosbags rosbags-image)')


from sam2_core import load_model
from sam2_ros.evaluation.live_replay import NodeFailed, run_live
from sam2_ros.messages.conversions import from_pixels
from sam2_ros.msg import InstanceArray, Prompt
from sam2_ros.recordings.bag_reader import BagReader
from sam2_ros.recordings.bag_recording import BagRecording
from sam2_ros.recordings.bag_writer import BagWriter
from sam2_ros.runtime.parameters import Parameters
from testing import camera_images
from testing.camera_images import image_message, roi
from testing.depth_codec import compressed_depth
from testing.peer import Scene

IMAGES, PERIOD = 25, 400_000_000  # ns: slow enough for a busy machine


def header(index):
    return camera_images.header(nanoseconds=10**12 + index * PERIOD)


@pytest.fixture(scope='module')
def bag(tmp_path_factory):
    scene, path = Scene(320, 240), tmp_path_factory.mktemp('recorded') / 'bag'
    with BagWriter(path) as bag:
        for index in range(IMAGES):
            arrival = 10**12 + index * PERIOD + 3_000_000
            truth = sum(scene.mask(index, number) * number for number in scene.IDS).astype('u2')
            bag.write('/camera/image', image_message(scene.image(index), header(index)), arrival)
            bag.write('/camera/truth', from_pixels(truth, 'mono16', header(index)), arrival)
            depth = compressed_depth(np.full((240, 320), 1500, np.uint16), header(index), 'rvl')
            bag.write('/camera/z/compressedDepth', depth, arrival)
            bag.write('/camera/camera_info', CameraInfo(header=header(index), width=320, height=240, d=[0.0] * 5, k=[
                300.0, 0.0, 160.0, 0.0, 300.0, 120.0, 0.0, 0.0, 1.0], distortion_model='plumb_bob'), arrival)
        for number in scene.IDS:
            bag.write('/sam2/prompt', Prompt(header=header(0), id=number, box=roi(scene.box(0, number))),
                      10**12 + 50_000_000)
    return path


@pytest.mark.alone
def test_live_the_node_says_what_it_says_in_lock_step(bag, tmp_path):
    done = subprocess.run([sys.executable, '-m', 'sam2_ros.evaluate', bag, '--mode', 'live', '--device', 'cpu',
                           '--output', tmp_path], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    metrics = json.loads((tmp_path / 'metrics.json').read_text())
    assert metrics['mode'] == 'live' and metrics['prompts'] == {'accepted': 2, 'refused': []}
    assert metrics['processed'] + metrics['dropped'] == IMAGES and metrics['processed'] > IMAGES / 3
    assert metrics['mean']['J'] > 0.7
    assert metrics['against_lock_step']['J'] > 0.7
    assert metrics['latency']['result']['p50'] > 0
    assert metrics['peak_memory'] > 50e6, 'of the node'
    with BagReader(tmp_path / 'results') as results:
        arrays = [deserialize_message(raw, InstanceArray) for _, _, raw in results.messages(
            [channel for channel in results.channels if channel.topic.endswith('/instances')])]
    found = [item.box_center.position.z for array in arrays for item in array.instances if item.has_depth]
    assert len(found) > IMAGES / 3 and found == pytest.approx([1.5] * len(found), abs=0.05), 'the depth was compressed'


def test_a_node_that_ends_ends_the_evaluation_with_its_log(bag):
    model = load_model('nano', device='cpu')
    with BagRecording(bag) as recording, pytest.raises(NodeFailed) as failure:
        run_live(recording, model, Parameters(on_time_jump='wait'))
    assert 'the node ended with 1' in str(failure.value)
    assert "on_time_jump 'wait': must be one of" in str(failure.value)
