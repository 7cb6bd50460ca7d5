"""Runs stop early at a value that is not finite, at Ctrl-C, and when no data can be read any more."""
import json
import math
import signal
from functools import partial

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from sam2_core.checkpoint import CheckpointError
from sam2_core.config import VARIANTS
from sam2_core.training import learner
from sam2_core.training import pretrain as pretraining
from sam2_core.training.clips import NoUsableData
from sam2_core.training.data import SyntheticClips, batches
from sam2_core.training.divergence import Diverged, UpdateGuard, divergence
from sam2_core.training.initialise import new_model
from sam2_core.training.pretrain import main as pretrain
from sam2_core.training.run_state import load_weights, save_weights
from testing.training_runs import TINY, Boxes, ended, group_signal, interrupted_twice, one_of_two, trainer


def spoil(run, monkeypatch, step, how):
    """Replace the loss or a gradient of a step by a value that is not finite."""
    losses = learner.step_losses

    def spoilt(model, *arguments):
        loss, figures = losses(model, *arguments)
        if run.step == step - 1:
            if how in ('nan', 'inf'):
                loss = loss * float(how)
            elif how == 'infinite gradient':
                parameter = next(p for p in model.parameters() if p.requires_grad)
                loss = loss + (parameter.flatten()[0] - parameter.flatten()[0].detach()) * torch.tensor(math.inf)
                loss = torch.where(torch.isfinite(loss), loss, figures['loss'] + parameter.flatten()[0] * math.inf * 0)
            figures['loss'] = loss.detach() if how != 'infinite gradient' else figures['loss']
        return loss, figures

    monkeypatch.setattr(learner, 'step_losses', spoilt)


def states(run):
    """Return copies of the tensors that a run saves."""
    return {f'{prefix}.{key}': value.clone() for prefix, module in run.learner.saved.items()
            for key, value in module.state_dict().items()}


def lines(folder):
    def refuse(name):
        raise ValueError(f'{name} is not JSON')
    return [json.loads(line, parse_constant=refuse) for line in (folder / 'log.jsonl').read_text().splitlines()]


@pytest.mark.parametrize('how', ['nan', 'inf', 'infinite gradient'])
def test_a_step_that_is_not_finite_changes_nothing_and_ends_the_run(tmp_path, monkeypatch, how):
    run = trainer(tmp_path)
    spoil(run, monkeypatch, 4, how)
    seen = []
    with pytest.raises(Diverged, match='step 4: the (loss|gradient) is (NaN|Infinity)'):
        run.run(each_step=lambda: seen.append(states(run)))
    assert len(seen) == 3
    after = states(run)
    assert all(torch.equal(after[name], value) for name, value in seen[-1].items())
    saved = load_file(tmp_path / 'checkpoint' / 'model.safetensors')
    assert all(torch.equal(value, seen[-1][f'model.{name}']) for name, value in saved.items())
    assert json.loads((tmp_path / 'checkpoint' / 'state.json').read_text())['step'] == 3
    assert load_weights(tmp_path / 'weights.safetensors', TINY)
    last = lines(tmp_path)[-1]
    assert last['step'] == 4 and {last['loss'], last['gradient']} & {'NaN', 'Infinity'}

    if how == 'inf':
        return
    monkeypatch.undo()  # without the cause, the same folder continues bit for bit as if nothing had happened
    assert trainer(tmp_path).run() and trainer(tmp_path / 'whole').run()
    one, other = (load_file(folder / 'checkpoint' / 'average.safetensors') for folder in (tmp_path, tmp_path / 'whole'))
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert [line['step'] for line in lines(tmp_path)] == [2, 4]


def test_a_loss_that_is_not_finite_in_one_part_of_a_step_is_noticed(tmp_path, monkeypatch):
    """The average of several parts ignores shares of nothing, but no loss."""
    run = trainer(tmp_path, chunks=2, accumulate=2)
    losses, calls = learner.step_losses, []

    def spoilt(*arguments):
        loss, figures = losses(*arguments)
        calls.append(1)
        factor = math.nan if len(calls) == 2 else 1.0
        return loss * factor, {**figures, 'loss': figures['loss'] * factor}

    monkeypatch.setattr(learner, 'step_losses', spoilt)
    with pytest.raises(Diverged, match='step 1: the loss is NaN'):
        run.run()


def test_validation_that_is_not_finite_ends_the_run_and_overwrites_nothing(tmp_path, monkeypatch):
    run = trainer(tmp_path, save_every=0.0, validate_every=3)
    monkeypatch.setattr(run, 'validate', lambda: {'loss': math.nan, 'image_box_j': math.nan})
    with pytest.raises(Diverged, match='step 3: the validation loss is NaN'):
        run.run()
    assert json.loads((tmp_path / 'checkpoint' / 'state.json').read_text())['step'] == 2
    last = lines(tmp_path)[-1]
    assert last['validation_loss'] == 'NaN' and 'validation_image_box_j' not in last  # a share of nothing is dropped


@pytest.mark.parametrize('part', ['model', 'average'])
def test_weights_that_are_not_finite_are_never_saved(tmp_path, part):
    run = trainer(tmp_path, steps=3, save_every=0.0)

    def spoil_weights():
        if run.step == 2:
            module = run.learner.average if part == 'average' else run.learner.model
            next(module.obj_ptr_proj.parameters()).data[0, 0] = math.nan

    with pytest.raises(Diverged, match=f'the {part}.obj_ptr_proj.*is NaN|the loss is NaN'):
        run.run(each_step=spoil_weights)
    assert json.loads((tmp_path / 'checkpoint' / 'state.json').read_text())['step'] == 1
    for file in ('weights.safetensors', 'checkpoint/model.safetensors', 'checkpoint/average.safetensors'):
        assert all(value.isfinite().all() for value in load_file(tmp_path / file).values())


def test_a_saved_state_that_is_not_finite_is_refused(tmp_path):
    run = trainer(tmp_path, steps=1)
    assert run.run()
    weights = load_file(tmp_path / 'checkpoint' / 'model.safetensors')
    next(iter(weights.values())).view(-1)[0] = math.nan
    save_file(weights, tmp_path / 'checkpoint' / 'model.safetensors')
    with pytest.raises(ValueError, match='checkpoint: model.* not finite: start again'):
        trainer(tmp_path)


def test_fused_updates_are_skipped_on_the_device():
    """As on a GPU, but without synchronisation: the record keeps the first failed step."""
    weight = nn.Parameter(torch.ones(3))
    optimizer = torch.optim.AdamW([weight], lr=0.1, fused=True)
    guard = UpdateGuard(torch.device('cpu'))
    optimizer.found_inf = guard.failed
    after = []
    for step, gradient in enumerate((1.0, math.inf, 1.0, math.nan), 1):
        guard.number.fill_(step)
        weight.grad = torch.full((3,), gradient)
        guard.judge(torch.tensor(0.5), torch.nn.utils.clip_grad_norm_([weight], 1.0))
        optimizer.step()
        after.append((weight.detach().clone(), float(optimizer.state[weight]['step'])))
    assert not torch.equal(after[0][0], torch.ones(3))
    assert all(torch.equal(value, after[0][0]) and number == 1 for value, number in after)
    found = divergence(guard.record)
    assert found.step == 2 and found.values == {'loss': 0.5, 'gradient': math.inf}


def test_all_processes_stop_together_when_one_is_not_finite(tmp_path):
    codes = ended(*((one_of_two, tmp_path / f'errors{rank}', rank, tmp_path) for rank in (0, 1)))
    assert codes == [43, 43], [(tmp_path / f'errors{rank}').read_text() for rank in (0, 1)]
    assert json.loads((tmp_path / 'run' / 'checkpoint' / 'state.json').read_text())['step'] == 2
    assert lines(tmp_path / 'run')[-1]['loss'] == 'NaN'


# --- Ctrl-C

@pytest.fixture
def default_ctrl_c():
    """Let Ctrl-C act as in a terminal, also where the tests run as a shell's background job, which ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_during_an_update_waits_for_its_end(tmp_path, default_ctrl_c):
    """The saved state is that of a whole step, and the run continues to the weights of an uninterrupted one."""
    run, whole = trainer(tmp_path / 'cut', steps=4), trainer(tmp_path / 'whole', steps=4)
    update = run.learner.optimizer.step

    def interrupted():
        if run.step == 1:
            signal.raise_signal(signal.SIGINT)
        update()

    run.learner.optimizer.step = interrupted
    before = signal.getsignal(signal.SIGINT)
    assert not run.run() and run.step == 2
    assert signal.getsignal(signal.SIGINT) is before
    assert trainer(tmp_path / 'cut', steps=4).run() and whole.run()
    for name in ('model', 'average', 'exp_avg_sq'):
        one, other = (load_file(tmp_path / part / f'checkpoint/{name}.safetensors') for part in ('cut', 'whole'))
        assert all(torch.equal(one[key], other[key]) for key in one), name


def test_a_second_ctrl_c_stops_at_once_without_saving(tmp_path):
    assert ended((interrupted_twice, tmp_path / 'errors', tmp_path)) == [-signal.SIGINT]
    assert 'press Ctrl-C again to stop at once' in (tmp_path / 'errors').read_text()
    assert not (tmp_path / 'run' / 'checkpoint').exists()


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_readers_stop_with_the_main_process_only(tmp_path, number):
    """A terminal sends Ctrl-C to every process of a group, timeout(1) sends SIGTERM."""
    codes = ended((group_signal, tmp_path / 'errors', number, tmp_path))
    text = (tmp_path / 'errors').read_text()
    assert codes == [10], text
    assert 'Traceback' not in text and 'Error' not in text
    assert json.loads((tmp_path / 'run' / 'checkpoint' / 'state.json').read_text())['step'] == 2


# --- data

class RunsDry(Boxes):
    def __getitem__(self, number):
        if number >= 2:
            raise NoUsableData('the disk was unplugged')
        return super().__getitem__(number)


@pytest.mark.parametrize('workers', [0, 1])
def test_a_run_whose_data_ends_saves_and_names_the_reason(tmp_path, workers):
    run = trainer(tmp_path, source=RunsDry(), workers=workers)
    with pytest.raises(NoUsableData, match='^the disk was unplugged$'):
        run.run()
    assert json.loads((tmp_path / 'checkpoint' / 'state.json').read_text())['step'] == 2


def test_a_reader_passes_the_reason_on_without_its_traceback():
    with pytest.raises(NoUsableData, match='^the disk was unplugged$'):
        list(batches(RunsDry(), 1, 0, workers=1))


def test_pretraining_that_diverges_has_an_exit_code_of_its_own(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(VARIANTS, 'nano', TINY)
    monkeypatch.setattr(pretraining, 'SyntheticClips', partial(SyntheticClips, textures=8))
    save_weights(tmp_path / 'start.safetensors', new_model(TINY))
    code = pretrain(['--output', str(tmp_path / 'run'), '--weights', str(tmp_path / 'start.safetensors'), '--device',
                     'cpu', '--clips', '1', '--workers', '0', '--steps', '4', '--rate', '1e30', '--validate-every',
                     '0'])
    text = capsys.readouterr().err
    assert code == 4 and 'step 2: the ' in text and '--rate' in text
    assert not (tmp_path / 'run' / 'weights.safetensors').exists()  # those of step 1 are infinite in float16
    weights = load_file(tmp_path / 'start.safetensors')
    next(iter(weights.values())).view(-1)[0] = math.nan
    save_file(weights, tmp_path / 'start.safetensors')
    with pytest.raises(CheckpointError, match='1 of .* tensors are not finite'):
        load_weights(tmp_path / 'start.safetensors', TINY)
