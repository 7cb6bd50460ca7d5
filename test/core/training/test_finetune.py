"""Fine-tuning by command: the right parts are trained, all files are written, and a kill loses nothing."""
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from sam2_core import CheckpointError, Prompt, Sam2Model, StreamTracker, load_model
from sam2_core.config import VARIANTS
from sam2_core.datasets import SkippedFiles, open_recordings
from sam2_core.training.finetune import main
from sam2_core.training.initialise import new_model
from sam2_core.training.recorded_clips import split_recordings
from sam2_core.training.run_state import save_weights
from sam2_core.training.trainer import Trainer
from testing.dataset_files import davis_clip
from testing.waiting import PATIENCE

ROOT = Path(__file__).resolve().parents[3]
needs_peft = pytest.mark.skipif(importlib.util.find_spec('peft') is None, reason='needs peft')
ENVIRONMENT = {**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONPATH': str(ROOT)}


@pytest.fixture(scope='module')
def start(tmp_path_factory):
    """Return an untrained nano, stored like a published checkpoint."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp('start') / 'nano.pt'
    torch.save({'model': new_model(VARIANTS['nano']).state_dict()}, path)
    return path


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp('data')
    for i in range(5):
        davis_clip(folder, f'clip{i}', frames=5)
    return folder


@pytest.fixture
def command(start, data, tmp_path):
    """Return a function that adds arguments to those of a run of some seconds."""
    def build(*more, output='run'):
        return ['--checkpoint', str(start), '--data', str(data), '--output', str(tmp_path / output),
                '--image-size', '64', '--frames', '2', '--batch', '1', '--workers', '0', '--device', 'cpu',
                '--validation', '0', *more]
    return build


def changed(start, weights):
    """Return the names of the weights that have changed."""
    before = torch.load(start)['model']
    assert before.keys() == weights.keys()
    return {name for name, value in weights.items() if not torch.equal(value, before[name])}


def test_image_encoder_is_frozen_by_default_and_all_else_learns(command, start, tmp_path):
    assert main(command('--steps', '2')) == 0
    learnt = changed(start, load_file(tmp_path / 'run' / 'weights.safetensors'))
    parts = {name.split('.')[0] for name in learnt}
    assert 'image_encoder' not in parts
    assert {'memory_attention', 'memory_encoder', 'sam_mask_decoder', 'sam_prompt_encoder', 'obj_ptr_proj'} <= parts


def test_parts_are_frozen_by_name(command, start, tmp_path):
    assert main(command('--steps', '1', '--freeze', 'image_encoder.trunk', 'memory_attention.layers.1',
                        'sam_mask_decoder')) == 0
    learnt = changed(start, load_file(tmp_path / 'run' / 'weights.safetensors'))
    assert not any(name.startswith(('image_encoder.trunk', 'memory_attention.layers.1', 'sam_mask_decoder'))
                   for name in learnt)
    assert any(name.startswith('image_encoder.neck') for name in learnt)
    assert any(name.startswith('memory_attention.layers.0') for name in learnt)


def test_parts_have_rates_of_their_own(command, start, tmp_path):
    """The first step of Adam moves a weight by the learning rate, whatever its gradient."""
    assert main(command('--steps', '1', '--weight-decay', '0', '--lr', '1e-3', '--lr', 'memory_encoder=0',
                        '--lr', 'memory_encoder.fuser=4e-3')) == 0
    before = torch.load(start)['model']
    after = load_file(tmp_path / 'run' / 'weights.safetensors')

    def move(*prefixes):
        # Rounding does not show in small weights.
        return max((after[n] - before[n])[before[n].abs() < 0.1].abs().max().item() for n in after
                   if n.startswith(prefixes) and (before[n].abs() < 0.1).any())

    rate = move('sam_mask_decoder')
    assert rate > 0 and move('memory_encoder.out_proj', 'memory_encoder.pix_feat_proj') == 0
    assert move('memory_encoder.fuser') == pytest.approx(4 * rate, rel=0.05)


@pytest.mark.parametrize(('options', 'reason'), [
    (['--freeze', 'image_encoder', 'memory'], 'memory: no part of nano; parts are .*memory_attention'),
    (['--lr', 'decoder=1e-4'], 'decoder: no part of nano'),
    (['--lr', 'image_encoder.neck=1e-4'], 'image_encoder.neck: the part is frozen'),
    (['--image-size', '100'], 'image_size 100'),
    (['--format', 'bag'], 'format bag: .*rosbags'),
    (['--format', 'sav'], 'nothing to train on in the layout sav'),
    (['--validation', '1.5'], 'validation share 1.5'),
    (['--checkpoint', 'gone.pt'], 'gone.pt: no such file'),
    (['--lora-modules', '.*qkv'], "lora-modules '.*qkv': without adapters; add --lora"),
    (['--lora', '--lora-modules', '('], r"lora-modules '\(': not a regular expression: "),
    (['--lora', '--lora-modules', 'qkv'], "lora-modules 'qkv': matches no layer of nano; layers are image_encoder"),
    (['--lora', '--lora-modules', '.*qkv', '--lr', 'memory_encoder=1e-3'],
     'learning rate of memory_encoder: no layer in it has an adapter'),
    (['--model', 'sam2.1_hiera_tiny'], 'is not sam2.1_hiera_tiny.*it looks like nano')])
def test_invalid_settings_are_refused_before_the_run_starts(command, tmp_path, capsys, options, reason):
    assert main(command('--steps', '1', *options)) == 2
    text = capsys.readouterr().err
    assert text.startswith('sam2_train: ')
    assert re.search(reason, text), text
    assert not (tmp_path / 'run' / 'weights.safetensors').exists()


@needs_peft
def test_adapters_alone_learn_and_are_merged_in_what_is_written(command, start, tmp_path, capsys):
    layers = r'memory_attention\..*\.(v_proj|out_proj)'
    assert main(command('--steps', '2', '--lora', '4', '--lora-modules', layers)) == 0
    path = tmp_path / 'run' / 'weights.safetensors'
    learnt = changed(start, load_file(path))
    assert learnt == {f'memory_attention.layers.{i}.{attention}.{projection}.weight' for i in (0, 1)
                      for attention in ('self_attn', 'cross_attn_image') for projection in ('v_proj', 'out_proj')}
    sizes = 2 * (3 * 2 * 96 + 96 + 32) * 4  # two layers; the values of memory are 32 wide
    assert f'{sizes / 1e6:.3g} M of 2.69 M weights train' in (text := capsys.readouterr().err)
    assert 'adapters of rank 4 on 8 layers' in text
    load_model('nano', path, device='cpu')


@needs_peft
def test_adapters_continue_where_they_stopped(command, tmp_path, monkeypatch):
    """By default on linear layers outside the frozen parts, and bit for bit as without the interruption."""
    options = ['--steps', '3', '--lora', '--ema', '0.9']
    assert main(command(*options, output='whole')) == 0
    with monkeypatch.context() as patched:
        step = Trainer.run_step
        patched.setattr(Trainer, 'run_step', lambda self, chunks: (step(self, chunks),
                                                                   signal.raise_signal(signal.SIGTERM)))
        assert main(command(*options)) == 3
    assert main(command(*options)) == 0
    whole, resumed = (load_file(tmp_path / name / 'weights.safetensors') for name in ('whole', 'run'))
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())


def test_adapters_without_peft_name_the_package(command, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, 'peft', None)
    assert main(command('--steps', '1', '--lora')) == 2
    assert 'lora 8: adapters need peft, which cannot be imported' in (text := capsys.readouterr().err)
    assert 'pip install peft' in text


def test_a_run_older_than_an_option_continues(command, tmp_path):
    assert main(command('--steps', '1')) == 0
    path = tmp_path / 'run' / 'settings.json'
    settings = json.loads(path.read_text())
    del settings['lora'], settings['lora_modules']
    path.write_text(json.dumps(settings))
    assert main(command('--steps', '1')) == 0


def test_nothing_left_to_train_is_refused(command, start, capsys):
    tops = sorted({name.split('.')[0] for name in torch.load(start)['model']})
    assert main(command('--steps', '1', '--freeze', *tops)) == 2
    assert 'leaves nothing to train' in capsys.readouterr().err


def test_training_lowers_the_loss_on_clips_held_out(command, tmp_path):
    options = ['--validation', '0.3', '--steps', '10', '--lr', '1e-3', '--log-every', '5', '--validate-every', '5']
    assert main(command(*options)) == 0
    lines = [json.loads(line) for line in (tmp_path / 'run' / 'log.jsonl').read_text().splitlines()]
    measured = {line['step']: line['validation_loss'] for line in lines if 'validation_loss' in line}
    assert set(measured) == {0, 5, 10}
    assert measured[10] < measured[5] < measured[0]
    assert {'loss', 'image_box_j', 'video_tracked_j', 'rate'} <= set(lines[1])
    assert cv2.imread(str(tmp_path / 'run' / 'curves.png')).std() > 5


def test_written_weights_are_loaded_and_track(command, tmp_path, scene):
    assert main(command('--steps', '1')) == 0
    model = load_model('nano', checkpoint=tmp_path / 'run' / 'weights.safetensors', device='cpu')
    assert model.image_size == 64  # of the run
    tracker = StreamTracker(model)
    for frame in range(2):
        result = tracker.step(scene.image(frame), [Prompt(1, box=scene.box(1))] if frame == 0 else [])
    assert result.objects[1].mask.shape == (240, 320) and np.isfinite(result.objects[1].logits.numpy()).all()


@pytest.mark.parametrize(('given', 'size'), [(None, 128), (320, 320)])
def test_written_weights_store_their_image_size(tmp_path, given, size):
    save_weights(tmp_path / 'weights.safetensors', Sam2Model(replace(VARIANTS['nano'], image_size=128), 'nano'))
    assert load_model('nano', tmp_path / 'weights.safetensors', device='cpu', image_size=given).image_size == size


@pytest.mark.parametrize('header', ['{', '[]', '{"image_size": 100}', '{"image_size": "128"}'])
def test_an_invalid_image_size_in_the_file_is_refused(tmp_path, header):
    file = tmp_path / 'weights.safetensors'
    save_file(Sam2Model(VARIANTS['nano'], 'nano').state_dict(), file, {'sam2_config': header})
    with pytest.raises(CheckpointError, match='weights.safetensors: sam2_config in its header: .*: pass image_size'):
        load_model('nano', file, device='cpu')
    assert load_model('nano', file, device='cpu', image_size=256).image_size == 256


@pytest.mark.slow
@pytest.mark.parametrize('name', ['sam2_hiera_tiny', 'sam2.1_hiera_tiny'])
def test_published_shapes_keep_their_key_layout(command, tmp_path, name):
    torch.manual_seed(0)
    checkpoint = tmp_path / 'tiny.pt'
    torch.save({'model': new_model(VARIANTS[name]).state_dict()}, checkpoint)
    assert main(command('--steps', '1', '--model', name, '--checkpoint', str(checkpoint))) == 0
    weights = load_file(tmp_path / 'run' / 'weights.safetensors')
    published = torch.load(checkpoint)['model']
    assert {n: v.shape for n, v in weights.items()} == {n: v.shape for n, v in published.items()}
    assert changed(checkpoint, weights)
    assert load_model(checkpoint=tmp_path / 'run' / 'weights.safetensors', device='cpu').name == name


def test_recomputing_the_trunk_changes_nothing(command, tmp_path):
    for more in ([], ['--recompute']):
        assert main(command('--steps', '1', '--freeze', *more, output=f'run{len(more)}')) == 0
    plain, twice = (load_file(tmp_path / f'run{i}' / 'weights.safetensors') for i in (0, 1))
    assert all(torch.allclose(twice[name], plain[name], atol=1e-7) for name in plain)


def test_bfloat16_trains(command, start, tmp_path):
    assert main(command('--steps', '2', '--bf16')) == 0
    weights = load_file(tmp_path / 'run' / 'weights.safetensors')
    assert all(value.isfinite().all() for value in weights.values()) and changed(start, weights)


def test_average_lies_between_start_and_end(command, start, tmp_path):
    assert main(command('--steps', '1', '--ema', '0.5', '--weight-decay', '0', '--lr', '1e-3')) == 0
    before = torch.load(start)['model']
    end = load_file(tmp_path / 'run' / 'checkpoint' / 'model.safetensors')
    average = load_file(tmp_path / 'run' / 'weights.safetensors')
    assert changed(start, average) == changed(start, end)
    for name in changed(start, end):
        low, high = torch.minimum(before[name], end[name]), torch.maximum(before[name], end[name])
        assert ((average[name] >= low - 1e-7) & (average[name] <= high + 1e-7)).all()
        assert not torch.equal(average[name], end[name]) or torch.equal(low, high)


def test_broken_files_are_named_and_counted(command, start, tmp_path, capsys):
    folder = tmp_path / 'data'
    for i in range(4):
        davis_clip(folder, f'clip{i}', frames=2)
    (folder / 'JPEGImages' / 'clip1' / '00001.jpg').write_bytes(b'broken')
    (folder / 'Annotations' / 'clip3' / '00000.png').write_bytes(b'broken')
    assert main(command('--data', str(folder), '--epochs', '2')) == 0
    text = capsys.readouterr().err
    assert '2 files were skipped:' in text
    assert f'{folder}/JPEGImages/clip1/00001.jpg: not an image' in text
    assert f'{folder}/Annotations/clip3/00000.png: not a PNG' in text


def test_unusable_data_ends_the_run_before_the_first_step_and_repaired_files_are_forgotten(command, tmp_path, capsys):
    folder = tmp_path / 'data'
    davis_clip(folder, 'clip', frames=2)
    labels = {path: path.read_bytes() for path in (folder / 'Annotations' / 'clip').iterdir()}
    for path in labels:
        path.write_bytes(b'broken')
    assert main(command('--data', str(folder), '--steps', '1', '--workers', '1')) == 2
    text = capsys.readouterr().err
    assert 'sam2_train: none of the 1 recordings can be used' in text and 'skipped:\n  ' in text
    for path, content in labels.items():
        path.write_bytes(content)
    assert main(command('--data', str(folder), '--steps', '1', '--workers', '1')) == 0
    assert 'skipped' not in capsys.readouterr().err


def test_a_loss_that_is_not_finite_ends_the_run_with_its_own_exit_code(command, tmp_path, capsys):
    for _ in range(2):  # the second start continues from the last finite state and fails at the same step
        assert main(command('--steps', '4', '--freeze', '--lr', '1e30', '--log-every', '1')) == 4
        text = capsys.readouterr().err
        assert f'{tmp_path / "run"} holds the finite state of step' in text and 'learning rate (--lr, here' in text
        weights = load_file(tmp_path / 'run' / 'weights.safetensors')
        assert all(value.isfinite().all() for value in weights.values())
        last = json.loads((tmp_path / 'run' / 'log.jsonl').read_text().splitlines()[-1])
        assert 'NaN' in (last['loss'], last['gradient'])


def test_a_run_continues_without_validation_if_all_recordings_held_out_are_broken(command, tmp_path, capsys):
    folder = tmp_path / 'data'
    for i in range(5):
        davis_clip(folder, f'clip{i}', frames=2)
    skipped = SkippedFiles(tmp_path / 'skipped.jsonl')
    held_out = split_recordings(open_recordings(folder, skipped), 0.2)[1]
    assert len(held_out) == 1
    for image in (folder / 'JPEGImages' / Path(held_out[0].name).name).glob('*.jpg'):
        image.write_bytes(b'broken')
    assert main(command('--data', str(folder), '--steps', '1', '--validation', '0.2')) == 0
    text = capsys.readouterr().err
    assert 'no validation: of the recordings held out, none of the 1 recordings can be used' in text
    assert '1 file was skipped:' in text
    assert (tmp_path / 'run' / 'weights.safetensors').exists()


def test_a_validation_folder_must_be_readable(command, data, tmp_path, capsys):
    davis_clip(tmp_path / 'bad', 'clip', frames=2)
    for image in (tmp_path / 'bad').rglob('*.jpg'):
        image.write_bytes(b'broken')
    assert main(command('--steps', '1', '--validation-data', str(tmp_path / 'bad'))) == 2
    assert f'validation data {tmp_path / "bad"}: none of the 1 recordings can be used' in capsys.readouterr().err


def test_a_run_does_not_continue_with_other_settings(command, capsys):
    assert main(command('--steps', '1')) == 0
    assert main(command('--steps', '1', '--seed', '4')) == 2
    assert 'seed was 0, is 4' in capsys.readouterr().err


# --- processes

def train(arguments, wait=True):
    process = subprocess.Popen([sys.executable, '-m', 'sam2_core.training.finetune', *arguments], env=ENVIRONMENT,
                               stderr=subprocess.PIPE, text=True)
    if wait:
        _, text = process.communicate()
        assert process.returncode == 0, text
    return process


@pytest.mark.slow
def test_nothing_is_lost_by_a_kill(command, tmp_path):
    options = ['--steps', '8', '--save-every', '0', '--log-every', '1', '--ema', '0.9', '--validation', '0.3',
               '--validate-every', '4', '--workers', '1']
    train(command(*options, output='whole'))
    killed = train(command(*options, output='killed'), wait=False)
    log = tmp_path / 'killed' / 'log.jsonl'
    deadline = time.monotonic() + PATIENCE
    while not log.exists() or '"step": 3,' not in log.read_text():
        assert time.monotonic() < deadline and killed.poll() is None
        time.sleep(0.02)
    killed.send_signal(signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL
    assert not (tmp_path / 'killed' / 'curves.png').exists()  # the run did not end by itself
    train(command(*options, output='killed'))

    for file in ('weights.safetensors', 'checkpoint/model.safetensors', 'checkpoint/exp_avg_sq.safetensors'):
        whole, resumed = (load_file(tmp_path / run / file) for run in ('whole', 'killed'))
        assert whole.keys() == resumed.keys()
        assert all(torch.equal(whole[name], resumed[name]) for name in whole), file

    def figures(run):
        lines = [json.loads(line) for line in (tmp_path / run / 'log.jsonl').read_text().splitlines()]
        return [{k: v for k, v in line.items() if k not in ('minutes', 'images_per_s', 'data_wait')} for line in lines]

    assert figures('killed') == figures('whole')


@pytest.mark.slow
def test_two_processes_train_as_one(command, tmp_path):
    options = ['--steps', '3', '--lr', '1e-3']
    run = [sys.executable, '-m', 'torch.distributed.run', '--nproc-per-node', '2', '--rdzv-backend', 'c10d',
           '--rdzv-endpoint', 'localhost:0', str(Path(__file__).with_name('rank_weights.py'))]
    done = subprocess.run([*run, *command(*options, output='two')], env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    train(command(*options, '--accumulate', '2', output='one'))
    train(command(*options, output='half'))
    first, second = (load_file(tmp_path / 'two' / f'rank{i}.safetensors') for i in (0, 1))
    assert all(torch.equal(first[name], second[name]) for name in first)
    one, half = (load_file(tmp_path / run / 'weights.safetensors') for run in ('one', 'half'))

    def distance(other):
        return max((first[name] - other[name]).abs().max().item() for name in first)

    assert distance(one) < 1e-4 < 5e-4 < distance(half)
