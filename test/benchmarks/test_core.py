"""The benchmarks of the core run from end to end with tiny settings, and count the operations of published models."""
import ast
import json
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch

from benchmarks import approximations, speed

BENCHMARKS = Path(__file__).resolve().parents[2] / 'benchmarks'
STAGES = ('encode_image', 'attend_memory', 'decode_masks', 'encode_memory', 'images in, masks out')
# GFLOP of the published modules at 512 pixels with one object and full memory: trunk, neck, high-resolution
# convolutions, memory attention, decoder, memory encoder
PUBLISHED_TINY = 62.4 + 6.0 / 4 + 1.61 / 4 + 48.3 + 3.64 / 4 + 11.6 / 4

pytest.importorskip('transformers', reason='the peer and the reference')


def run(name, folder, *arguments):
    """Run a benchmark. Return its figures and the texts in its plot."""
    figures, picture = folder / 'figures.json', folder / 'picture.svg'
    done = subprocess.run([sys.executable, BENCHMARKS / name, *arguments, '--json', figures, '--plot', picture],
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(figures.read_text()), [element.text for element in ElementTree.parse(picture).iter()]


def test_every_file_beside_lib_is_a_command_and_imports_no_other_command():
    for path in BENCHMARKS.glob('*.py'):
        names = {f'{getattr(node, "module", "")}.{alias.name}'.lstrip('.')
                 for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Import | ast.ImportFrom)
                 for alias in node.names}
        others = {name for name in names if name.startswith('benchmarks.') and not name.startswith('benchmarks.lib')}
        assert others == set() and "if __name__ == '__main__'" in path.read_text(), path.name


@pytest.mark.slow
def test_speed_writes_times_stages_peak_and_memory_of_each_side(tmp_path, monkeypatch):
    arguments = ('speed.py', tmp_path, '--models', 'nano', '--image-sizes', '64', '--objects', '1', '--runs', '1',
                 '--devices', 'cpu', '--sides', 'transformers')
    result, texts = run(*arguments)
    assert {'hardware', 'threads', 'torch', 'transformers', 'sam2', 'date', 'dtype', 'clock'} <= result.keys()
    assert result['peak_flop_per_s']['cpu'] > 0
    row, = result['rows']
    assert (row['model'], row['image_size'], row['objects'], row['device']) == ('nano', 64, 1, 'cpu')
    assert row['sides'].keys() == {'sam2_core', 'transformers'}
    for side in row['sides'].values():
        assert min(side[key] for key in ('ms', 'frames_per_s', 'ratio', 'flop', 'of_peak', 'peak_mib')) > 0
        assert side['mask_iou'] > 0.99
    assert tuple(row['stages']) == STAGES
    assert sum(stage['flop'] for stage in row['stages'].values()) == row['sides']['sam2_core']['flop']
    assert 'sam2_core' in texts and 'nano 64 px, 1 obj.' in texts

    name, _, *options = arguments
    monkeypatch.setattr(sys, 'argv', [name, *options, '--json', str(tmp_path / 'figures.json'), '--resume'])
    speed.main()  # in this process, which has loaded PyTorch already
    assert json.loads((tmp_path / 'figures.json').read_text())['rows'] == result['rows']


@pytest.mark.slow
def test_operations_are_those_of_the_published_model(tmp_path):
    from benchmarks.lib.flop import flop_counter
    from benchmarks.lib.speed_sides import SIDES, Setting
    from testing.reference import moving_scene
    setting = Setting('sam2.1_hiera_tiny', 512, torch.device('cpu'), torch.float32, tmp_path / 'weights.pt')
    first, second = moving_scene(2, 512)
    step, _ = SIDES['transformers'].start(SIDES['transformers'].build(setting), setting, first, 1)
    with flop_counter() as counter:
        step(second)
    assert counter.get_total_flops() / 1e9 == pytest.approx(PUBLISHED_TINY, rel=0.02)


@torch.no_grad()
def test_operations_of_attention_block_by_block_are_counted():
    from benchmarks.lib.flop import flop_counter
    from sam2_core.nn.attention import _average
    query, key, value = torch.randn(8, 4), torch.randn(1000, 4), torch.randn(1000, 3)
    with flop_counter() as counter:
        _average(query, key, value)
    assert counter.get_total_flops() == 2 * 8 * 1000 * (4 + 3)


@torch.no_grad()
def test_operations_are_counted_on_the_path_that_runs_uncounted():
    from benchmarks.lib.flop import flop_counter
    from sam2_core.nn.attention import RotaryAttention
    from sam2_core.nn.position import RotaryTable
    attend, table = RotaryAttention(8, num_heads=1, dim_kv=4), RotaryTable(8, 2, 2, theta=100.0)
    query, memory = torch.randn(1, 4, 8), torch.randn(1, 12, 4)
    with flop_counter() as counter:
        attend(query, memory, memory, table)
    projections = 4 * 8 * 8 + 12 * 4 * 8 + 4 * 4 * 8  # of queries, keys, averaged values
    averages = 4 * 12 * (8 + 4)  # scores; values in their own width, which the counter must not widen to 8
    fused = 8 * 8 * 4 + 8 * 8  # weight and bias of value and output projection
    assert counter.get_total_flops() == 2 * (projections + averages + fused)


@pytest.mark.slow
def test_growth_writes_time_and_memory_over_frames_and_objects(tmp_path):
    result, texts = run('growth.py', tmp_path, '--frames', '200', '--image-size', '64', '--tracked', '1', '--objects',
                        '1', '2', '--runs', '2', '--device', 'cpu', '--random-weights')
    growth = result['over_frames']
    assert growth['frames'] == 200 and growth['age_ratio'] > 0
    assert growth['memory_last']['resident_mib'] > 0
    assert len(growth['curve']['frame']) == len(growth['curve']['ms']) == len(growth['curve']['resident_mib']) == 100
    assert [row['objects'] for row in result['over_objects']] == [1, 2]
    assert 'memory, MiB' in texts


@pytest.mark.slow
def test_approximations_have_speed_and_quality_side_by_side(tmp_path):
    figures = tmp_path / 'figures.json'
    subprocess.run([sys.executable, BENCHMARKS / 'approximations.py', '--model', 'nano', '--image-size', '64',
                    '--objects', '1', '--runs', '1', '--clips', '1', '--frames', '12', '--jobs', '1', '--device', 'cpu',
                    '--json', figures], check=True)
    rows = json.loads(figures.read_text())['rows']
    assert {'exact', 'bfloat16', 'image 1/2', '1 recent frame', 'pooled memory', 'int8 encoder'} <= rows.keys()
    for row in rows.values():
        assert row['ms']['1'] > 0 and 0 < row['J&F'] <= 1 and 0 < row['first_frame_box'] <= 1
    assert len({row['J&F'] for row in rows.values()}) == len(rows)  # each row is a different computation


def test_approximations_of_no_frames_are_refused_by_name(monkeypatch, capsys):
    monkeypatch.setattr(sys, 'argv', ['approximations.py', '--frames', '0'])
    with pytest.raises(SystemExit, match='2'):
        approximations.main()
    refusal = capsys.readouterr().err
    assert '--frames 0' in refusal and 'must be at least 1' in refusal
