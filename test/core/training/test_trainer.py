"""A training run learns, and continues after a kill as if nothing had happened."""
import json
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import cv2
import pytest
import torch
from safetensors.torch import load_file

from sam2_core.config import VARIANTS
from sam2_core.training.data import SyntheticClips
from sam2_core.training.run_state import load_weights
from sam2_core.training.settings import Schedule, TrainConfig
from sam2_core.training.trainer import Trainer
from testing.training_runs import TINY

ROOT = Path(__file__).resolve().parents[3]

def trainer(output, steps, stages=((0.4, 1), (1.0, 4)), save_every=0.0, textures=8):
    """Return a run small enough for a test; the child process below starts it, too."""
    config = TrainConfig(output, TINY, steps=steps, chunks=2, echo=2, log_every=1, validate_every=0, clip_frames=8,
                         schedule=Schedule(stages=stages), save_every=save_every)
    return Trainer(config, SyntheticClips(0, 8, 64, 1, textures=textures))


@pytest.fixture
def one_thread():
    """Compute with one thread, as the child process does: sums over several threads have other last bits."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_a_killed_run_goes_on_bit_for_bit(tmp_path, one_thread):
    steps = 6
    assert trainer(tmp_path / 'whole', steps).run()
    cut = tmp_path / 'cut'
    code = ('import sys, pathlib, torch; torch.set_num_threads(1); sys.path.insert(0, sys.argv[1]); '
            f'import test_trainer as t; t.trainer(pathlib.Path(sys.argv[2]), {steps}).run()')
    child = subprocess.Popen([sys.executable, '-c', code, str(Path(__file__).parent), str(cut)], cwd=ROOT,
                             stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 600
    while not (cut / 'log.jsonl').exists() or len((cut / 'log.jsonl').read_text().splitlines()) < 3:
        assert time.monotonic() < deadline and child.poll() is None
        time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    child.wait()
    going_on = trainer(cut, steps)
    assert 0 < going_on.step < steps
    assert going_on.run()
    for name in ('model', 'average', 'exp_avg', 'exp_avg_sq'):
        whole, resumed = (load_file(tmp_path / run / 'checkpoint' / f'{name}.safetensors') for run in ('whole', 'cut'))
        assert whole.keys() == resumed.keys()
        assert all(torch.equal(whole[key], resumed[key]) for key in whole), name
    lines = [json.loads(line)['step'] for line in (cut / 'log.jsonl').read_text().splitlines()]
    assert lines == list(range(1, steps + 1))


def test_a_run_learns_one_clip(tmp_path):
    class OneClip:
        clips = SyntheticClips(3, 8, 64, 1, textures=8)[2]

        def __getitem__(self, number):
            return self.clips

    config = TrainConfig(tmp_path, TINY, steps=30, chunks=1, log_every=1, validate_every=0, clip_frames=8,
                         augment=False, schedule=Schedule(stages=((1.0, 1),), learning_rate=4e-3))
    Trainer(config, OneClip()).run()
    losses = [json.loads(line)['image_mask'] for line in (tmp_path / 'log.jsonl').read_text().splitlines()]
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])


def test_a_run_writes_weights_log_and_curves(tmp_path):
    trainer(tmp_path, 2, stages=((1.0, 1),)).run()
    model = load_weights(tmp_path / 'weights.safetensors', VARIANTS['nano'])
    assert model.config == TINY  # stored in the file
    assert cv2.imread(str(tmp_path / 'curves.png')) is not None


def test_no_file_of_a_nano_run_exceeds_16_mib(tmp_path):
    """Some machines that can be borrowed return no larger file."""
    nano = replace(VARIANTS['nano'], image_size=64)  # as many weights as at 256
    config = TrainConfig(tmp_path, nano, steps=1, chunks=1, validate_every=0, clip_frames=4,
                         schedule=Schedule(stages=((1.0, 4),)))
    Trainer(config, SyntheticClips(0, 4, 64, 1, textures=8)).run()
    sizes = {path.name: path.stat().st_size for path in tmp_path.rglob('*') if path.is_file()}
    assert {'weights.safetensors', 'model.safetensors', 'average.safetensors', 'exp_avg.safetensors'} <= sizes.keys()
    assert sizes['exp_avg_sq.safetensors'] > 10_000_000  # a whole nano
    assert max(sizes.values()) < 16 * 2 ** 20, sizes


def test_the_rate_rises_then_falls_to_zero():
    schedule = Schedule(learning_rate=1e-3, warm_up=0.1)
    rates = [schedule.rate(progress / 100) for progress in range(101)]
    peak = max(range(101), key=rates.__getitem__)
    assert 9 <= peak <= 11
    assert rates[0] < 1e-4 and rates[100] < 1e-8
    assert rates[peak:] == sorted(rates[peak:], reverse=True)


def test_stages_follow_the_progress():
    schedule = Schedule(stages=((0.1, 1), (0.5, 4), (1.0, 8)))
    assert [schedule.frames(p) for p in (0.0, 0.1, 0.49, 0.5, 1.0)] == [1, 4, 4, 8, 8]
