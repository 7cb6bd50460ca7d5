"""Tests of nano's benchmark: its figures, the comparison of weights, and runs in parts and processes."""
import json
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import cv2
import numpy as np
import pytest
from safetensors.torch import save_file

from benchmarks import nano_quality
from benchmarks.lib import nano
from sam2_core import load_model
from sam2_core.checkpoint import find_weights, read_weights
from sam2_core.training.clips import Clip

ROOT = Path(__file__).resolve().parents[2]

SIZE, FRAMES = 32, 12


def scene(kinds):
    """Return a clip of three squares in a row that do not move."""
    masks = np.zeros((FRAMES, 3, SIZE, SIZE), bool)
    for k in range(3):
        masks[:, k, 8:16, 2 + 10 * k:10 + 10 * k] = True
    return Clip(np.zeros((FRAMES, SIZE, SIZE, 3), np.uint8), masks, np.ones((FRAMES, 3), bool), np.array(kinds))


def judged(clip, masks):
    figures = defaultdict(list)
    nano.judge(clip, masks, clip.visible, figures)
    return figures


def moved(clip, start, stop, onto):
    """Return masks that lie on object ``onto`` instead of object 0 for some frames."""
    masks = clip.masks.copy()
    masks[start:stop, 0] = clip.masks[start:stop, onto]
    return masks


def test_a_mask_that_moves_to_a_twin_is_a_swap():
    figures = judged(scene((0, 0, 2)), moved(scene((0, 0, 2)), 4, FRAMES, onto=1))
    assert figures['twin_swapped'] == [True, False]  # the third has no twin and does not count
    assert np.mean(figures['on_twin'][:FRAMES - 1]) == pytest.approx(8 / 11)
    assert sum(figures['on_another_object']) == 8


def test_a_mask_that_comes_back_soon_is_no_swap():
    figures = judged(scene((0, 0, 2)), moved(scene((0, 0, 2)), 4, 4 + nano.SWAP_FRAMES - 1, onto=1))
    assert figures['twin_swapped'] == [False, False]
    assert sum(figures['on_twin']) == nano.SWAP_FRAMES - 1


def test_a_mask_on_another_thing_is_no_swap():
    figures = judged(scene((0, 0, 2)), moved(scene((0, 0, 2)), 4, FRAMES, onto=2))
    assert sum(figures['on_twin']) == sum(figures['twin_swapped']) == 0
    assert sum(figures['on_another_object']) == 8


def test_an_object_started_in_mid_clip_is_judged_from_there_on(monkeypatch):
    monkeypatch.setattr(nano, 'CORRECTION_FRAME', 6)
    clip = scene((0, 1, 2))
    clip.visible[6, 2] = False  # cannot be started there
    clip.masks[6, 2] = False
    late = np.zeros_like(clip.masks[6:])
    late[:, 0] = clip.masks[6:, 0]
    figures = defaultdict(list)
    nano.judge_middle(clip, nano.Tracked(clip.masks, clip.visible, clip.masks[6:], late), figures)
    assert figures['late_first_frame'] == [1.0, 0.0]
    assert figures['J_late'] == [1.0] * 5 + [0.0] * 5
    assert figures['J_after_correction'] == [1.0] * 15


def test_measuring_the_middle_changes_no_other_figure(monkeypatch, scene_clip):
    monkeypatch.setattr(nano, 'CORRECTION_FRAME', 3)
    model = load_model('nano', device='cpu')
    plain, more = (nano.clip_figures(model, scene_clip, corrections) for corrections in (False, True))
    assert set(more) - set(plain) == {'late_first_frame', 'J_late', 'J_after_uncorrected', 'J_after_correction'}
    assert all(more[name] == plain[name] for name in plain)


@pytest.fixture
def scene_clip():
    """Return six frames of a held-out clip."""
    whole = nano.held_out_clip(1, frames=12)
    return Clip(whole.frames[::2], whole.masks[::2], whole.visible[::2], whole.kinds)


def clips_of(clips=40, **means):
    """Return the figures of clips whose values scatter around these means; others are 0.5 throughout."""
    random = np.random.default_rng(2)
    names = ('J', 'F', 'J_first_10', 'J_last_10', 'box')
    return [{name: (means.get(name, 0.5) + 0.05 * (name in means) * random.standard_normal(5)).tolist()
             for name in names} for _ in range(clips)]


def test_the_difference_knows_what_is_better():
    old = clips_of(J=0.4, J_first_10=0.6)
    new = [{**clip, 'J': [value + 0.1 for value in clip['J']], 'J_first_10': [value + 0.1 for value in clip['J']]}
           for clip in old]
    compared = nano_quality.comparison({'old': old, 'between': clips_of(), 'new': new})
    assert {name: compared[name].verdict for name in ('J', 'F', 'J&F', 'drift', 'box')} == {
        'J': 'better', 'F': 'same', 'J&F': 'better', 'drift': 'better', 'box': 'same'}
    assert compared['J'].change == pytest.approx(0.1, abs=1e-4) and compared['drift'].change < 0
    assert (compared['J'].low, compared['J'].high) == pytest.approx((0.1, 0.1))  # every clip gains as much


def test_a_change_within_the_scatter_of_the_clips_may_be_chance():
    old, new = clips_of(), clips_of()
    for number, clip in enumerate(new):
        clip['F'] = [0.79 if number % 2 else 0.19] * 5
    change = nano_quality.comparison({'old': old, 'new': new})['F']
    assert change.verdict == 'worse' and change.low < change.change < change.high and not change.sure


def test_a_figure_that_one_clip_has_is_compared_over_the_draws_with_that_clip():
    old, new = clips_of(), clips_of()
    old[7]['recovered'], new[7]['recovered'] = [0.0, 1.0], [1.0, 1.0]
    assert nano_quality.comparison({'old': old, 'new': new})['recovered'] == (0.5, 0.5, 0.5, 'better')


@pytest.mark.parametrize(('change', 'reasons'), [
    ({'J&F': (0.1, 0.05, 0.15), 'box': (0.1, 0.05, 0.15), 'drift': (0.02, -0.01, 0.05)}, []),
    ({'J&F': (0.1, -0.05, 0.25), 'box': (0.0, 0.0, 0.0), 'drift': (-0.1, -0.2, -0.05)}, ['box is not better']),
    ({'J&F': (-0.1, -0.2, 0.1), 'box': (0.1, 0.05, 0.15), 'drift': (0.02, 0.01, 0.05)},
     ['J&F is not better', 'drift is worse by more than chance explains'])])
def test_later_weights_have_to_meet_the_rule(change, reasons):
    def verdict(name, value):
        gain = -value if name in nano_quality.LOWER_IS_BETTER else value
        return 'better' if gain > 0 else 'worse' if gain < 0 else 'same'
    compared = {name: nano_quality.Change(*values, verdict(name, values[0])) for name, values in change.items()}
    assert nano_quality.violations(compared) == reasons


@pytest.fixture
def blind(tmp_path_factory):
    """Return the path of weights that call every object absent."""
    weights = read_weights(find_weights('nano'))
    weights['sam_mask_decoder.pred_obj_score_head.layers.2.bias'] -= 1000
    path = tmp_path_factory.mktemp('weights') / 'blind.safetensors'
    save_file(weights, path)
    return path


@pytest.fixture
def command(monkeypatch):
    """Return a function that runs the command line in this process, which has loaded PyTorch already."""
    threads = cv2.getNumThreads()

    def run(*options):
        monkeypatch.setattr(sys, 'argv', ['nano_quality.py', *map(str, options)])
        nano_quality.main()
    yield run
    cv2.setNumThreads(threads)


@pytest.mark.slow
def test_two_processes_find_what_one_finds(tmp_path, blind, command, capsys):
    both, *parts, joined = (tmp_path / f'{name}.json' for name in ('both', 'first', 'second', 'joined'))
    done = subprocess.run([sys.executable, 'benchmarks/nano_quality.py', '--clips', '2', '--jobs', '2', '--weights',
                           'packaged', str(blind), '--no-corrections', '--json', str(both)], cwd=ROOT,
                          env={'PYTHONPATH': str(ROOT), 'OMP_NUM_THREADS': '1'}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for number, part in enumerate(parts):
        command('--clips', 1, '--from', number, '--threads', 1, '--no-corrections', '--json', part)
    command('--merge', *parts, '--no-corrections', '--json', joined)
    result = json.loads(both.read_text())
    content, alone = result['weights'], json.loads(joined.read_text())['weights']
    assert content['packaged'] == alone['packaged']
    assert content[str(blind)]['summary']['J'] < alone['packaged']['summary']['J']
    assert content[str(blind)]['summary']['hidden_called_absent'] == 1
    assert result['comparison']['J']['verdict'] == 'worse' and 'J&F is not better' in result['rule_violations']
    with pytest.raises(SystemExit, match='2'):
        command('--merge', joined, parts[0])
    assert 'clips [0] are in another part too' in capsys.readouterr().err
