"""Training nano by command: invalid settings are refused, and a run continues after a stop, also elsewhere."""
import io
import itertools
import json
import os
import re
import shlex
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from sam2_core import progress
from sam2_core.config import VARIANTS
from sam2_core.training import run_state, trainer
from sam2_core.training.initialise import new_model
from sam2_core.training.loop import main
from sam2_core.training.pretrain import parser
from testing.training_runs import TINY

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def command(tmp_path, monkeypatch):
    """Return a function that adds arguments to those of a run of a tiny model."""
    monkeypatch.setitem(VARIANTS, 'nano', TINY)
    torch.manual_seed(0)
    start = tmp_path / 'start.safetensors'
    run_state.save_weights(start, new_model(TINY))

    def build(*more, output='run'):
        return ['--output', str(tmp_path / output), '--weights', str(start), '--device', 'cpu', '--clips', '1',
                '--workers', '0', '--log-every', '1', '--validate-every', '0', *more]
    return build


@pytest.mark.parametrize(('options', 'reason'), [
    (['--weights', 'gone.safetensors'], 'weights gone.safetensors: no such file'),
    (['--weights', __file__], 'weights .*test_pretrain.py: '),
    (['--seed', '9000'], 'seed 9000: must be 0 to 999; larger seeds make the clips that models are validated on'),
    (['--echo', '2', '--chunks', '3'], 'chunks 3: must be a multiple of echo 2')])
def test_invalid_settings_are_refused_before_the_run_starts(command, tmp_path, capsys, options, reason):
    assert main(command('--steps', '1', *options)) == 2
    assert re.match(f'training: {reason}', capsys.readouterr().err)
    assert not (tmp_path / 'run').exists()


def test_a_run_continues_from_a_copy_of_its_folder(command, tmp_path, capsys):
    """As on machines that are lent for minutes: all files are copied, and the same command continues the run."""
    assert main(command('--steps', '4', '--echo', '2', output='whole')) == 0
    assert main(command('--steps', '4', '--echo', '2', '--stop-after', '0', output='here')) == 3
    assert 'stopped at step 1: run the same command again to continue' in capsys.readouterr().err
    shutil.copytree(tmp_path / 'here', tmp_path / 'there')
    shutil.rmtree(tmp_path / 'here')
    assert main(command('--steps', '4', '--echo', '2', output='there')) == 0
    assert 'continuing from step 1' in capsys.readouterr().err
    whole, resumed = (load_file(tmp_path / run / 'weights.safetensors') for run in ('whole', 'there'))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    lines = [json.loads(line) for line in (tmp_path / 'there' / 'log.jsonl').read_text().splitlines()]
    assert [line['step'] for line in lines] == [1, 2, 3, 4]
    assert all(line['rate'] > 0 for line in lines)


def test_a_run_given_in_minutes_continues_with_the_minutes_left(command, tmp_path, monkeypatch):
    """It also continues with the clips of its stage, which have 16 frames from half of the time on."""
    ticks = itertools.count()  # a second passes whenever the loop reads the clock
    monkeypatch.setattr(trainer, 'time', SimpleNamespace(monotonic=lambda: next(ticks)))

    def run(output, *more):
        code = main(command('--minutes', '0.4', '--longer-from', '0.5', *more, output=output))
        log = (tmp_path / output / 'log.jsonl').read_text().splitlines()
        return code, [json.loads(line) for line in log], json.loads(
            (tmp_path / output / 'checkpoint' / 'state.json').read_text())

    code, before, left = run('here', '--stop-after', '9')
    assert code == 3 and 0 < left['elapsed'] < 12
    shutil.copytree(tmp_path / 'here', tmp_path / 'there')
    code, lines, complete = run('there')
    assert code == 0 and 24 <= complete['elapsed'] < 24 + 8
    assert lines[:len(before)] == before
    assert lines[len(before)]['minutes'] * 60 == pytest.approx(left['elapsed'], abs=0.1)
    assert [line['frames'] for line in lines] == [8 if line['minutes'] < 0.2 else 16 for line in lines]
    assert lines[-1]['rate'] < 0.3 * max(line['rate'] for line in lines)


def documented_runs():
    text = (ROOT / 'docs' / 'nano.md').read_text()
    return [shlex.split(line)[3:] for line in text.splitlines()
            if line.startswith('python -m sam2_core.training.loop --output')]


def test_documented_runs_start_from_weights_that_exist():
    runs = [parser().parse_args(arguments) for arguments in documented_runs()]
    outputs = {run.output / 'weights.safetensors' for run in runs}
    outputs |= {Path(line.split(' > ')[1]) for line in (ROOT / 'docs' / 'nano.md').read_text().splitlines()
                if line.startswith('git show ')}  # from the history
    assert len(runs) >= 5
    assert any(run.weights is None for run in runs)
    for run in runs:
        assert run.weights is None or run.weights in outputs or (ROOT / run.weights).exists(), run.weights
        assert run.workers >= (os.cpu_count() or 1) - 1


@pytest.mark.parametrize('arguments', documented_runs()[-2:], ids=['from weights', 'from nothing'])
def test_documented_gpu_runs_complete(command, tmp_path, arguments):
    """The documented arguments are used, but for a tiny model, seconds and a CPU."""
    changed = command('--minutes', '0.05')
    if '--weights' not in arguments:
        at = changed.index('--weights')
        del changed[at:at + 2]
    assert main([*arguments, *changed]) == 0
    assert (tmp_path / 'run' / 'weights.safetensors').exists()
    assert (tmp_path / 'run' / 'curves.png').exists()


def test_a_terminal_shows_a_progress_bar_up_to_its_end(command, monkeypatch):
    screen = io.StringIO()
    monkeypatch.setattr(progress, 'Console', lambda stderr: Console(file=screen, force_terminal=True, width=100))
    assert main(command('--steps', '2')) == 0
    assert '100%' in screen.getvalue()
    assert 'video_tracked_j' in screen.getvalue()  # the lines of the log above it


def test_bfloat16_on_a_cpu_learns_nearly_the_same(command, tmp_path):
    """Losses and gradients are finite and near those of float32; the second loss depends on the first gradient."""
    for name, more in (('float32', []), ('bfloat16', ['--bf16'])):
        assert main(command('--steps', '2', '--rate', '1e-3', *more, output=name)) == 0
    logs = {name: [json.loads(line) for line in (tmp_path / name / 'log.jsonl').read_text().splitlines()]
            for name in ('float32', 'bfloat16')}
    for exact, half in zip(logs['float32'], logs['bfloat16'], strict=True):
        assert np.isfinite(half['loss']) and np.isfinite(half['gradient'])
        assert half['loss'] == pytest.approx(exact['loss'], rel=0.05)
        assert half['loss'] != exact['loss']  # the precision was another one
