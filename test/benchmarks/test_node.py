"""benchmarks/node.py runs camera, node and subscriber as processes, and accounts for every image."""
import json
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

BENCHMARK = Path(__file__).resolve().parents[2] / 'benchmarks' / 'node.py'


@pytest.mark.system
@pytest.mark.alone
def test_every_image_is_processed_dropped_or_lost(tmp_path):
    figures, picture = tmp_path / 'figures.json', tmp_path / 'picture.svg'
    done = subprocess.run(
        [sys.executable, BENCHMARK, '--image-size', '64', '--objects', '1', '--seconds', '1', '--rate', '10', '--runs',
         '2', '--device', 'cpu', '--random-weights', '--json', figures, '--plot', picture],
        capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    result = json.loads(figures.read_text())
    assert (result['model'], result['image_size'], result['device']) == ('nano', 64, 'cpu')
    row, = result['rows']
    assert row['processed'] + row['dropped'] + row['lost'] == row['sent']
    assert min(row[key] for key in ('frames_per_s', 'tracker_frames_per_s', 'of_tracker', 'counted')) > 0
    for kind in ('latency_ms', 'arrival_ms'):
        assert 0 < row[kind]['p50'] <= row[kind]['p95']
    assert row['latency_ms']['p50'] <= row['arrival_ms']['p50']
    assert 'tracker only' in [element.text for element in ElementTree.parse(picture).iter()]
