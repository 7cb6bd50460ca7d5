"""sam2_evaluate as users start it, on a recorded bag; live, it plays the bag to a node over DDS."""
import json
import subprocess
import sys

import pytest

pytest.importorskip('rosbags', reason='needs rosbags (pip install rosbags rosbags-image)')


from sam2_core import load_model
from sam2_ros.evaluation.live_replay import NodeFailed, run_live
from sam2_ros.messages.conversions import from_pixels
from sam2_ros.msg import Prompt
from sam2_ros.recordings.bag_recording import BagRecording
from sam2_ros.recordings.bag_writer import BagWriter
from sam2_ros.runtime.parameters import Parameters
from testing import camera_images
from testing.camera_images import image_message, roi
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


def test_a_node_that_ends_ends_the_evaluation_with_its_log(bag):
    model = load_model('nano', device='cpu')
    with BagRecording(bag) as recording, pytest.raises(NodeFailed) as failure:
        run_live(recording, model, Parameters(on_time_jump='wait'))
    assert 'the node ended with 1' in str(failure.value)
    assert "on_time_jump 'wait': must be one of" in str(failure.value)
