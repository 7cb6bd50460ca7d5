"""Which model runs when the user names none, and the lines that say so."""
import hashlib
from pathlib import Path

import pytest
import torch

from sam2_core import checkpoint
from sam2_core.checkpoint import OFFICIAL, OfficialFile
from sam2_core.config import VARIANTS
from sam2_core.model_choice import better_model, choose_model, low_score_warning, model_line, model_lines, option
from sam2_core.scores import LowScore

CUDA = torch.device('cuda')


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """Point the Hugging Face cache to an empty folder, and have small files published; return how to cache one."""
    monkeypatch.setattr('huggingface_hub.constants.HF_HUB_CACHE', str(tmp_path))
    contents = {name: f'the weights of {name}'.encode() for name in OFFICIAL}
    for name, content in contents.items():
        digest = hashlib.sha256(content).hexdigest()
        monkeypatch.setitem(checkpoint.OFFICIAL, name, OfficialFile(*OFFICIAL[name][:2], digest, len(content)))

    def cache(name: str, content: bytes | None = None) -> Path:
        official = OFFICIAL[name]
        repository = tmp_path / f'models--{official.repository.replace("/", "--")}'
        (repository / 'refs').mkdir(parents=True)
        (repository / 'refs' / 'main').write_text('abc')
        path = repository / 'snapshots' / 'abc' / official.filename
        path.parent.mkdir(parents=True)
        path.write_bytes(contents[name] if content is None else content)
        return path
    return cache


@pytest.fixture
def gpu(monkeypatch):
    """Let a GPU be found, as far as the choice of a model looks."""
    monkeypatch.setattr('sam2_core.model_choice.checked_device', lambda device: torch.device(device or 'cuda'))


def test_without_a_cached_model_nano_runs_and_nothing_is_downloaded(hub, tmp_path):
    choice = choose_model(device='cpu')
    assert choice.name == 'nano' and not choice.named and not choice.passed_over
    assert [*tmp_path.iterdir()] == []


@pytest.mark.parametrize(('cached', 'on_cpu', 'on_cuda'), [
    (['sam2.1_hiera_large'], 'sam2.1_hiera_large', 'sam2.1_hiera_large'),
    (['sam2.1_hiera_small', 'sam2.1_hiera_base_plus'], 'sam2.1_hiera_small', 'sam2.1_hiera_base_plus'),
    (['sam2_hiera_tiny', 'sam2.1_hiera_tiny', 'sam2_hiera_large'], 'sam2.1_hiera_tiny', 'sam2_hiera_large'),
    (['sam2_hiera_tiny', 'sam2.1_hiera_small'], 'sam2_hiera_tiny', 'sam2.1_hiera_small'),
    (['sam2.1_hiera_tiny', 'edgetam'], 'edgetam', 'sam2.1_hiera_tiny')])
def test_a_cpu_gets_the_cheapest_cached_model_and_a_gpu_the_largest(hub, gpu, cached, on_cpu, on_cuda):
    for name in cached:
        hub(name)
    assert choose_model(device='cpu').name == on_cpu
    assert choose_model(device='cuda').name == on_cuda


def test_each_published_model_is_chosen_where_it_alone_is_cached(hub, gpu, tmp_path):
    assert set(OFFICIAL) == set(VARIANTS) - {'nano'}
    for name in OFFICIAL:
        path = hub(name)
        assert choose_model(device='cpu').name == choose_model(device='cuda').name == name
        path.unlink()


@pytest.mark.parametrize(('content', 'reason'), [
    (b'cut off', '7 bytes, the published file has'), (b'THE WEIGHTS OF sam2.1_hiera_tiny', 'sha256')])
def test_a_damaged_file_is_passed_over_with_the_reason(hub, content, reason):
    path = hub('sam2.1_hiera_tiny', content)
    hub('sam2.1_hiera_large')
    choice = choose_model(device='cpu')
    assert choice.name == 'sam2.1_hiera_large'
    (line,) = choice.passed_over
    assert model_lines(choice) == (line, model_line(choice))
    assert line.startswith('sam2.1_hiera_tiny is cached but cannot be used: ')
    assert str(path) in line and reason in line and 'delete it' in line


def test_what_the_user_names_is_not_replaced(hub):
    hub('sam2.1_hiera_tiny')
    assert choose_model('nano', device='cpu')[:2] == ('nano', None)
    assert choose_model('nano', device='cpu').named
    assert choose_model(None, 'mine.pt', 'cpu')[:2] == (None, Path('mine.pt'))
    with pytest.raises(ValueError, match='sam3'):
        choose_model('sam3', device='cpu')
    with pytest.raises(ValueError, match='tpu'):
        choose_model(device='tpu')


def test_without_the_client_of_the_hub_nano_runs(monkeypatch):
    monkeypatch.setitem(__import__('sys').modules, 'huggingface_hub', None)
    choice = choose_model(device='cpu')
    assert choice.name == 'nano'
    assert better_model(choice) == 'edgetam'


@pytest.mark.parametrize(('name', 'device', 'better'), [
    ('nano', 'cpu', 'edgetam'), ('nano', 'cuda', 'sam2.1_hiera_base_plus'),
    ('edgetam', 'cpu', 'sam2.1_hiera_tiny'), ('edgetam', 'cuda', 'sam2.1_hiera_tiny'),
    ('sam2.1_hiera_tiny', 'cpu', 'sam2.1_hiera_small'), ('sam2.1_hiera_base_plus', 'cpu', 'sam2.1_hiera_large'),
    ('sam2_hiera_small', 'cpu', 'sam2.1_hiera_small'), ('sam2_hiera_large', 'cuda', 'sam2.1_hiera_large'),
    ('sam2.1_hiera_large', 'cuda', None)])
def test_the_better_model_is_the_next_size(hub, gpu, name, device, better):
    assert better_model(choose_model(name, device=device)) == better


def test_a_larger_model_that_is_cached_is_better_than_one_to_download(hub):
    hub('sam2.1_hiera_base_plus')
    assert better_model(choose_model('nano', device='cpu')) == 'sam2.1_hiera_base_plus'
    assert better_model(choose_model('sam2.1_hiera_tiny', device='cpu')) == 'sam2.1_hiera_base_plus'
    assert better_model(choose_model('sam2.1_hiera_base_plus', device='cpu')) == 'sam2.1_hiera_large'


def test_nothing_is_said_to_be_better_than_weights_of_the_users_own(hub):
    choice = choose_model('nano', 'mine.pt', 'cpu')
    assert better_model(choice) is None
    assert model_line(choice) == 'model: mine.pt on cpu'
    assert '--model' not in low_score_warning(LowScore(1, 0.2, 30), choice)


def test_one_line_says_which_model_runs_and_which_option_runs_a_better_one(monkeypatch, tmp_path):
    """The size is that of the published file: 56,116,523 bytes."""
    monkeypatch.setattr('huggingface_hub.constants.HF_HUB_CACHE', str(tmp_path))
    line = model_line(choose_model(device='cpu'))
    assert line == ('model: nano (packaged, small, made for tests) on cpu; better masks: '
                    '--model edgetam (downloads 56 MB once)')


def test_the_line_of_a_cached_model_says_so_and_what_it_costs_on_a_cpu(hub, gpu):
    hub('sam2.1_hiera_tiny')
    line = model_line(choose_model(device='cpu'))
    assert line.startswith('model: sam2.1_hiera_tiny (cached) on cpu, which takes seconds per image; better masks: ')
    assert 'seconds' not in model_line(choose_model(device='cuda'))
    assert option('sam2.1_hiera_tiny') == '--model sam2.1_hiera_tiny (cached)'
    assert 'as asked' in model_line(choose_model('sam2.1_hiera_large', device='cuda'))


def test_the_warning_names_object_score_frame_and_both_cures(hub):
    text = low_score_warning(LowScore(3, 0.314, 57), choose_model('nano', device='cpu'), 'cup')
    assert text.startswith('object 3 (cup): ') and '0.31' in text and '57' in text
    assert '--model edgetam' in text and 'correct the object with a prompt' in text
