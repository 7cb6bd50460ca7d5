"""The check of the files that keep_objects names."""
import pytest

from sam2_core import Prompt, StreamTracker, load_model, save_state
from sam2_ros.preflight.findings import Verdict
from sam2_ros.preflight.kept_file import check_kept_files
from sam2_ros.runtime.parameters import Parameters
from testing.in_process import picture


def findings(path, **parameters):
    return [(finding.verdict, finding.text) for finding in check_kept_files(
        Parameters(keep_objects=str(path) if path else '', **parameters))]


@pytest.fixture
def path(tmp_path):
    return tmp_path / 'objects.safetensors'


def test_without_the_parameter_nothing_is_checked():
    assert findings('') == []


def test_a_file_is_described_with_its_objects(path):
    tracker = StreamTracker(load_model('nano', device='cpu', image_size=64))
    tracker.step(picture(), [Prompt(1, box=(8, 8, 32, 32))])
    save_state(path, tracker.state_dict())
    assert findings(path) == [(Verdict.GOOD, f'{path}: 1 object, 0.0 MB')]
    path.write_bytes(path.read_bytes()[:-1])
    (verdict, text), = findings(path)
    assert verdict is Verdict.DOUBTFUL and f'the node will not use it: {path}: truncated or damaged' in text


def test_each_camera_has_a_file_and_none_is_made(path):
    folder = path.parent / 'new'
    assert findings(folder / 'objects.safetensors', cameras=('left', 'right')) == [
        (Verdict.GOOD, f'{folder}/objects.{name}.safetensors, not written yet') for name in ('left', 'right')]
    assert not folder.exists()


def test_a_folder_that_cannot_be_written_to_is_bad(path):
    path.write_text('')
    (verdict, text), = findings(path / 'objects.safetensors')
    assert verdict is Verdict.BAD and f'{path} is not a folder that this user may write to: change its owner' in text
