"""The benchmark of nano: what its figures count, and that they do not depend on how it is run."""
import json
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import save_file

from benchmarks import nano_quality
from sam2_core import load_model
from sam2_core.checkpoint import find_weights, read_weights
from sam2_core.training.clips import Clip

ROOT = Path(__file__).resolve().parents[2]

SIZE, FRAMES = 32, 12


def scene(kinds):
    """Three squares in a row that stay where they are."""
    masks = np.zeros((FRAMES, 3, SIZE, SIZE), bool)
    for k in range(3):
        masks[:, k, 8:16, 2 + 10 * k:10 + 10 * k] = True
    return Clip(np.zeros((FRAMES, SIZE, SIZE, 3), np.uint8), masks, np.ones((FRAMES, 3), bool), np.array(kinds))


def judged(clip, masks):
    figures = defaultdict(list)
    nano_quality.judge(clip, masks, clip.visible, figures)
    return figures


def moved(clip, start, stop, onto):
    """Masks that lie on object ``onto`` instead of object 0 for some frames."""
    masks = clip.masks.copy()
    masks[start:stop, 0] = clip.masks[start:stop, onto]
    return masks


def test_a_mask_that_moves_to_a_twin_is_a_swap():
    figures = judged(scene((0, 0, 2)), moved(scene((0, 0, 2)), 4, FRAMES, onto=1))
    assert figures['twin_swapped'] == [True, False]  # the third has no twin and does not count
    assert np.mean(figures['on_twin'][:FRAMES - 1]) == pytest.approx(8 / 11)
    assert sum(figures['on_another_object']) == 8


def test_a_mask_that_comes_back_soon_is_no_swap():
    figures = judged(scene((0, 0, 2)), moved(scene((0, 0, 2)), 4, 4 + nano_quality.SWAP_FRAMES - 1, onto=1))
    assert figures['twin_swapped'] == [False, False]
    assert sum(figures['on_twin']) == nano_quality.SWAP_FRAMES - 1


def test_a_mask_on_another_thing_is_no_swap():
    figures = judged(scene((0, 0, 2)), moved(scene((0, 0, 2)), 4, FRAMES, onto=2))
    assert sum(figures['on_twin']) == sum(figures['twin_swapped']) == 0
    assert sum(figures['on_another_object']) == 8


def test_an_object_begun_in_mid_clip_is_judged_from_there_on(monkeypatch):
    monkeypatch.setattr(nano_quality, 'CORRECTION_FRAME', 6)
    clip = scene((0, 1, 2))
    clip.visible[6, 2] = False  # cannot be begun there
    clip.masks[6, 2] = False
    late = np.zeros_like(clip.masks[6:])
    late[:, 0] = clip.masks[6:, 0]
    figures = defaultdict(list)
    nano_quality.judge_middle(clip, nano_quality.Tracked(clip.masks, clip.visible, clip.masks[6:], late), figures)
    assert figures['late_first_frame'] == [1.0, 0.0]
    assert figures['J_late'] == [1.0] * 5 + [0.0] * 5
    assert figures['J_after_correction'] == [1.0] * 15


def test_measuring_the_middle_changes_no_other_figure(monkeypatch, scene_clip):
    monkeypatch.setattr(nano_quality, 'CORRECTION_FRAME', 3)
    model = load_model('nano', device='cpu')
    plain, more = (nano_quality.clip_figures(model, scene_clip, corrections) for corrections in (False, True))
    assert set(more) - set(plain) == {'late_first_frame', 'J_late', 'J_after_uncorrected', 'J_after_correction'}
    assert all(more[name] == plain[name] for name in plain)


@pytest.fixture
def scene_clip():
    """Six frames of a clip of the set, cut short."""
    whole = nano_quality.make_clip((nano_quality.SEED, 1), nano_quality.clutter(), 12)
    return Clip(whole.frames[::2], whole.masks[::2], whole.visible[::2], whole.kinds)


def test_the_difference_knows_what_is_better():
    compared = nano_quality.comparison({'old': {'J': 0.4, 'drift': 0.2, 'box': 0.5, 'returns': 3},
                                        'new': {'J': 0.5, 'drift': 0.3, 'box': 0.5, 'returns': 3}})
    assert {name: found['verdict'] for name, found in compared.items()} == {
        'J': 'better', 'drift': 'worse', 'box': 'same'}


@pytest.fixture
def blind(tmp_path_factory):
    """Return the path of weights that call every object absent."""
    weights = read_weights(find_weights('nano'))
    weights['sam_mask_decoder.pred_obj_score_head.layers.2.bias'] -= 1000
    path = tmp_path_factory.mktemp('weights') / 'blind.safetensors'
    save_file(weights, path)
    return path


@pytest.mark.slow
def test_two_processes_find_what_one_finds(tmp_path, blind):
    environment = {'PYTHONPATH': str(ROOT), 'OMP_NUM_THREADS': '1'}

    def run(*options):
        path = tmp_path / f'{len(list(tmp_path.iterdir()))}.json'
        done = subprocess.run([sys.executable, 'benchmarks/nano_quality.py', *options, '--no-corrections', '--json',
                               str(path)], cwd=ROOT, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return path

    both = run('--clips', '2', '--jobs', '2', '--weights', 'packaged', str(blind))
    parts = [run('--clips', '1', '--from', str(number), '--threads', '1') for number in (0, 1)]
    joined = run('--merge', *map(str, parts))
    content, alone = (json.loads(path.read_text())['weights'] for path in (both, joined))
    assert content['packaged'] == alone['packaged']
    assert content[str(blind)]['summary']['J'] < alone['packaged']['summary']['J']
    assert content[str(blind)]['summary']['hidden_called_absent'] == 1
    twice = subprocess.run([sys.executable, 'benchmarks/nano_quality.py', '--merge', str(joined), str(parts[0])],
                           cwd=ROOT, env=environment, capture_output=True, text=True)
    assert twice.returncode == 2 and 'clips [0] are in another part too' in twice.stderr
