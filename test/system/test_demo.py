"""The demo as a user starts it: real processes, real DDS, real files."""
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest

from testing.waiting import PATIENCE

pytest.importorskip('rclpy', reason='needs ROS 2 or its wheels (make setup)')
pytestmark = pytest.mark.slow

COMMAND = [sys.executable, '-m', 'sam2_ros.demo']


def run(*arguments, **environment) -> subprocess.CompletedProcess:
    return subprocess.run([*COMMAND, *map(str, arguments)], capture_output=True, text=True,
                          env={**os.environ, 'COLUMNS': '160', **environment})


def processes_about(folder: Path) -> list[str]:
    """Return the command lines of processes that name the folder."""
    found = []
    for entry in Path('/proc').glob('[0-9]*/cmdline'):
        try:
            line = entry.read_bytes().replace(b'\0', b' ').decode(errors='replace')
        except OSError:
            continue
        if str(folder) in line:
            found.append(line)
    return found


def frames_of(path: Path) -> list[np.ndarray]:
    video, frames = cv2.VideoCapture(str(path)), []
    while (frame := video.read())[0]:
        frames.append(frame[1])
    return frames


def test_the_synthetic_scene_is_tracked_scored_and_drawn(tmp_path):
    output = tmp_path / 'demo'
    done = run('--seconds', 5, '--output', output)
    assert done.returncode == 0, done.stdout + done.stderr
    figures = json.loads((output / 'figures.json').read_text())
    assert figures['processed'] > 0
    assert {'ball', 'can', 'tea box', 'cereal'} <= set(figures['objects'].values())
    assert figures['iou'] > 0.6, 'easy objects, a few seconds'
    for word in ('frames in', 'processed', 'dropped', 'frames per second', 'latency', 'mean IoU'):
        assert word in done.stdout
    frames = frames_of(output / 'overlay.mp4')
    assert len(frames) > 15 * seconds_tracked(figures) - 2, 'in real time, whatever was dropped'
    assert cv2.imread(str(output / 'overlay.png')).std() > 10
    assert not processes_about(output)


def seconds_tracked(figures: dict) -> float:
    """Return the time from the first processed image to the last one; the video begins with the first received one."""
    return (figures['processed'] - 1) / figures['frames_per_second']


@pytest.fixture
def clip(tmp_path):
    """Write a clip of 10 s in which a red disc crosses a grey room, slowly enough for a busy machine."""
    path = tmp_path / 'a clip.mp4'
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*'mp4v'), 5, (480, 360))
    for number in range(50):
        image = np.full((360, 480, 3), (110, 120, 115), np.uint8)
        cv2.circle(image, (120 + 3 * number, 180), 50, (40, 40, 220), -1, cv2.LINE_AA)
        writer.write(image)
    writer.release()
    return path


def test_a_clip_is_tracked_from_its_box(tmp_path, clip):
    output = tmp_path / 'demo'
    done = run('--clip', clip, '--box', '70,130,170,230', '--output', output, HF_HUB_CACHE=str(tmp_path / 'empty'))
    assert done.returncode == 0, done.stdout + done.stderr
    assert 'model: nano (packaged' in done.stdout and 'better masks: --model ' in done.stdout
    assert 'the score stays low' not in done.stdout, 'a disc that is easy to follow'
    figures = json.loads((output / 'figures.json').read_text())
    assert figures['objects'] == {'1': 'object'} and figures['iou'] is None
    assert 'mean IoU' not in done.stdout
    frames = frames_of(output / 'overlay.mp4')
    assert len(frames) > 5 * seconds_tracked(figures) - 2
    assert len(frames) > 50 * 0.8
    # the disc is red on grey: blue pixels belong to the overlay
    blue = [np.argwhere((frame[..., 0].astype(int) - frame[..., 2] > 40)[:360]) for frame in frames]
    middles = [spot[:, 1].mean() for spot in blue if len(spot)]  # none before the prompt
    assert len(middles) > 30
    assert abs(middles[0] - 120) < 25 and abs(middles[-1] - 267) < 40, 'where the disc is'


def test_when_nothing_can_be_tracked_the_reason_is_printed_and_the_exit_code_says_so(tmp_path):
    done = run('--model', 'sam2_hiera_gigantic', '--output', tmp_path)
    assert done.returncode == 1
    assert "model 'sam2_hiera_gigantic' is not known" in done.stdout
    assert not processes_about(tmp_path)


@pytest.mark.parametrize('how', [signal.SIGINT, signal.SIGTERM])
def test_interrupted_it_leaves_no_process_behind(tmp_path, how):
    process = subprocess.Popen([*COMMAND, '--seconds', '60', '--output', str(tmp_path)], stdout=subprocess.PIPE,
                               stderr=subprocess.STDOUT, text=True,
                               preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler))
    try:
        deadline = time.monotonic() + PATIENCE
        log = tmp_path / 'log' / 'camera.log'
        while not (log.exists() and 'streaming' in log.read_text()):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.1)
        assert len(processes_about(tmp_path)) >= 2  # itself and the recorder at least
        process.send_signal(how)
        said, _ = process.communicate(timeout=PATIENCE)
    finally:
        process.kill()
    assert process.returncode == 130 and 'stopped' in said
    assert not processes_about(tmp_path)


@pytest.mark.parametrize(('arguments', 'reason'), [
    (['--clip', 'missing.mp4', '--box', '1,2,3,4'], 'there is no such file'),
    (['--clip', '{clip}'], 'a clip needs a box'),
    (['--clip', '{clip}', '--box', '400,100,500,200'], '0 <= x0 < x1 <= 480'),
    (['--clip', '{clip}', '--box', '1,2,3'], 'four whole numbers'),
    (['--box', '1,2,3,4'], '--box is for a clip'),
    (['--seconds', '0'], 'a number of seconds from 1 to 600')])
def test_wrong_arguments_are_refused_before_anything_starts(tmp_path, clip, arguments, reason):
    output = tmp_path / 'demo'
    done = run(*[str(clip) if argument == '{clip}' else argument for argument in arguments], '--output', output)
    assert done.returncode == 2
    assert reason in ' '.join((done.stdout + done.stderr).split())
    assert not output.exists()
