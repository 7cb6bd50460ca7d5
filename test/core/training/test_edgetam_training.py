"""EdgeTAM is trained in all its parts, except the statistics of its normalisations."""
import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from sam2_core import VARIANTS, Prompt, Sam2Model, StreamTracker, load_model
from sam2_core.checkpoint_files import CheckpointError
from sam2_core.training import finetune
from sam2_core.training.initialise import new_model
from sam2_core.training.run_state import config_from_json, config_to_json, load_weights, save_weights
from sam2_core.training.settings import Schedule, TrainConfig
from sam2_core.training.trainer import Trainer
from testing.dataset_files import davis_clip
from testing.small_edgetam import SMALL, pictures
from testing.training_runs import Boxes

CONFIG = replace(SMALL, image_size=64)
BATCHES_SEEN = 500_000  # more than float16 can hold
PARTS = {'image_encoder.trunk', 'image_encoder.neck', 'memory_attention', 'memory_encoder', 'spatial_perceiver',
         'sam_prompt_encoder', 'sam_mask_decoder', 'obj_ptr_proj'}


@pytest.fixture(scope='module')
def start():
    """Return the state dict of a new model with statistics of which float16 can hold only some."""
    torch.manual_seed(0)
    state = new_model(CONFIG).state_dict()
    generator = torch.Generator().manual_seed(1)
    for name, value in state.items():
        if name.endswith('running_var'):
            value.copy_(0.5 + torch.rand(value.shape, generator=generator))
        elif name.endswith('num_batches_tracked'):
            value.fill_(BATCHES_SEEN)
    state['image_encoder.trunk.body.stages_0.blocks.0.token_mixer.conv.bn.running_var'][0] = 1e5
    return state


def is_statistic(name):
    return name.rpartition('.')[2] in ('running_mean', 'running_var', 'num_batches_tracked')


def parts_of(names):
    return {part for part in PARTS for name in names if name.startswith(part + '.')}


def model_from(start):
    model = Sam2Model(CONFIG, 'edgetam')
    model.load_state_dict(start)
    return model


def run(output, start, steps, **more):
    config = TrainConfig(output, CONFIG, steps=steps, chunks=1, log_every=1, validate_every=0, clip_frames=4,
                         augment=False, foreground=False,
                         schedule=Schedule(stages=((1.0, 4),), learning_rate=2e-3, warm_up=0.1), **more)
    trainer = Trainer(config, Boxes(), model_from(start))
    assert trainer.run()
    return trainer


def test_the_loss_falls_all_parts_learn_and_statistics_stay(start, tmp_path):
    trainer = run(tmp_path, start, 10, ema=0.5)
    losses = [json.loads(line)['loss'] for line in (tmp_path / 'log.jsonl').read_text().splitlines()]
    assert len(losses) == 10 and sum(losses[-3:]) < sum(losses[:3])
    for model in (trainer.model, trainer.learner.average):
        changed = {name for name, value in model.state_dict().items() if not torch.equal(value, start[name])}
        assert parts_of(changed) == PARTS
        trunk = {name for name in changed if name.startswith('image_encoder.trunk')}
        assert {name.split('.')[-2] for name in trunk} == {'c', 'bn', 'fc1', 'fc2'}  # with each branch's normalisation
        assert not [name for name in changed if is_statistic(name)]


def test_an_interrupted_run_continues_as_if_nothing_had_happened(start, tmp_path):
    run(tmp_path / 'whole', start, 2, ema=0.5)
    step = Trainer.run_step
    with pytest.MonkeyPatch.context() as patch:
        def interrupted(self, chunks):
            if self.step:
                raise RuntimeError('power failure')
            step(self, chunks)
            self.save()
        patch.setattr(Trainer, 'run_step', interrupted)
        with pytest.raises(RuntimeError, match='power failure'):
            run(tmp_path / 'cut', start, 2, ema=0.5)
    assert run(tmp_path / 'cut', start, 2, ema=0.5).step == 2
    whole, resumed = (load_file(tmp_path / name / 'checkpoint' / 'average.safetensors') for name in ('whole', 'cut'))
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())


def test_float16_files_hold_statistics_as_they_are(start, tmp_path):
    model = model_from(start)
    save_weights(tmp_path / 'weights.safetensors', model, torch.float16)
    stored = load_file(tmp_path / 'weights.safetensors')
    assert stored.keys() == start.keys()
    assert {value.dtype for name, value in stored.items() if name in dict(model.named_parameters())} == {torch.float16}
    read = load_weights(tmp_path / 'weights.safetensors', VARIANTS['nano'])
    assert read.config == CONFIG
    for name, value in read.state_dict().items():
        if is_statistic(name):
            assert torch.equal(value, start[name]) and value.dtype == start[name].dtype
        else:
            torch.testing.assert_close(value, start[name], atol=1e-6, rtol=1e-3)


def test_a_run_with_float16_files_does_not_end_for_the_number_of_batches_seen(start, tmp_path):
    assert run(tmp_path, start, 1, ema=0.0, weights_dtype=torch.float16).trouble is None


def test_latents_of_a_new_model_differ():
    model = new_model(SMALL)
    for latents in (model.spatial_perceiver.latents, model.spatial_perceiver.latents_2d):
        assert len(torch.unique(latents, dim=0)) == len(latents)


# --- the command

@pytest.fixture
def command(start, tmp_path, monkeypatch):
    """Return a function that runs sam2_train on this model with more arguments; its exit code must be 0."""
    monkeypatch.setitem(VARIANTS, 'edgetam', CONFIG)
    torch.save({'model': start}, tmp_path / 'edgetam.pt')
    davis_clip(tmp_path / 'data', 'clip', frames=3)

    def run(*more):
        assert finetune.main([
            '--model', 'edgetam', '--checkpoint', str(tmp_path / 'edgetam.pt'), '--data', str(tmp_path / 'data'),
            '--output', str(tmp_path / 'run'), '--frames', '2', '--batch', '1', '--workers', '0', '--device', 'cpu',
            '--validation', '0', '--steps', '2', *more]) == 0
        weights = load_file(tmp_path / 'run' / 'weights.safetensors')
        assert weights.keys() == start.keys()
        return {name for name, value in weights.items() if not torch.equal(value, start[name])}
    return run


def test_the_image_encoder_is_frozen_by_default_and_the_result_tracks(command, tmp_path):
    assert parts_of(command()) == PARTS - {'image_encoder.trunk', 'image_encoder.neck'}
    model = load_model(checkpoint=tmp_path / 'run' / 'weights.safetensors', device='cpu')
    assert (model.name, model.config) == ('edgetam', CONFIG)
    tracker = StreamTracker(model)
    for number, image in enumerate(pictures(2)):
        result = tracker.step(image, [Prompt(1, box=(5, 5, 80, 80))] if number == 0 else [])
    assert result.objects[1].logits.isfinite().all()


def test_the_trunk_is_trained_with_blocks_recomputed(command):
    changed = command('--freeze', 'sam_mask_decoder', 'spatial_perceiver', '--recompute', '--ema', '0.5')
    assert parts_of(changed) == PARTS - {'sam_mask_decoder', 'spatial_perceiver'}
    assert not [name for name in changed if is_statistic(name)]


def test_adapters_are_added_to_linear_layers_which_the_trunk_has_none_of(command):
    pytest.importorskip('peft', reason='needs peft')
    changed = command('--lora', '2', '--freeze', 'memory_encoder')
    linear = {f'{name}.weight' for name, module in Sam2Model(CONFIG).named_modules()
              if isinstance(module, torch.nn.Linear) and not name.startswith('memory_encoder')}
    assert changed <= linear and parts_of(changed) == {'memory_attention', 'spatial_perceiver', 'sam_mask_decoder',
                                                       'obj_ptr_proj'}


def test_adapters_on_convolutions_of_the_trunk_are_merged_into_its_branches(command):
    pytest.importorskip('peft', reason='needs peft')
    layers = r'image_encoder\.trunk\.body\.stages_\d\.blocks\.\d\.channel_mixer\.conv\d\.c'
    assert command('--lora', '2', '--lora-modules', layers) == {
        f'image_encoder.trunk.body.stages_{stage}.blocks.{block}.channel_mixer.conv{number}.c.weight'
        for stage, blocks in enumerate((1, 1, 2, 1)) for block in range(blocks) for number in (1, 2)}


# --- the configuration in the header of the file

def test_a_configuration_is_read_back_from_its_text():
    for config in (CONFIG, *VARIANTS.values()):
        assert config_from_json(config_to_json(config)) == config


def test_a_header_from_before_other_trunks_is_read():
    """Older files hold the sizes of the Hiera trunk among those of the model."""
    header = {
        'embed_dim': 32, 'num_heads': 1, 'stages': [1, 2, 4, 1], 'global_attention_blocks': [4, 6],
        'window_sizes': [8, 4, 8, 8], 'position_grid': 8, 'd_model': 96, 'memory_attention_layers': 2,
        'memory_attention_feedforward': 256, 'rope_theta': 10000.0, 'memory_dim': 32, 'mask_channels': 256,
        'fuser_layers': 2, 'mask_prompt_channels': 16, 'decoder_layers': 2, 'decoder_heads': 4,
        'decoder_feedforward': 256, 'iou_head_hidden': 128, 'stability_delta': 0.05, 'stability_threshold': 0.98,
        'memory_frames': 7, 'object_pointers': 16, 'max_pointer_distance': 32, 'no_object_embedding': True,
        'pointer_time_codes': True, 'image_size': 256, 'masks_alone': False}
    assert config_from_json(json.dumps(header)) == VARIANTS['nano']


@pytest.mark.parametrize(('change', 'reason'), [
    ({'trunk': {'patch_size': 16}}, 'a trunk of patch_size'), ({'trunk': None}, 'a trunk of type NoneType'),
    ({'stride': 14}, "unexpected keyword argument 'stride'"),
    ({'image_size': 100}, 'image_size 100: must be a positive multiple of 32')])
def test_a_configuration_of_another_version_is_refused_with_the_cure(change, reason):
    header = json.loads(config_to_json(VARIANTS['edgetam'])) | change
    with pytest.raises(CheckpointError, match=rf'{reason}.*: written by another version of sam2_core; use that'):
        config_from_json(json.dumps(header))
