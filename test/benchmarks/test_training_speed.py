"""benchmarks/training_speed.py runs, and making clips costs a fraction of training on them."""
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_one_process_makes_clips_faster_than_a_core_trains_on_them(tmp_path):
    done = subprocess.run([sys.executable, 'benchmarks/training_speed.py', '--device', 'cpu', '--steps', '1', '--made',
                           '2', '--workers', '1', '--json', str(tmp_path / 'speed.json')], cwd=ROOT,
                          env={**os.environ, 'PYTHONPATH': str(ROOT), 'OMP_NUM_THREADS': '1'}, capture_output=True,
                          text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / 'speed.json').read_text())
    assert found['processes_that_keep_up'] < 0.3, 'a ratio of processor times of one process'
    assert 0 <= found['waited'] < 1, 'how long depends on what else runs: docs/nano.md has it for an idle machine'
    assert found['trained_per_processor_s'] > 0 and found['loop_per_s'] > 0
