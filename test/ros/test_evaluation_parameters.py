"""Parameters of the node from a file, as an evaluation takes them."""
from pathlib import Path

import pytest

from sam2_ros.evaluation.parameter_file import ParameterError, read_parameters, with_values
from sam2_ros.parameters import Parameters

CONFIG = Path(__file__).resolve().parents[2] / 'config' / 'sam2.yaml'


def test_the_file_of_the_node_is_read():
    assert read_parameters(CONFIG) == Parameters()


@pytest.mark.parametrize('text', [
    'lost_after: 1\nclass_names: [cup]',
    'sam2:\n  ros__parameters:\n    lost_after: 1.0\n    class_names: [cup]\n    use_sim_time: true'])
def test_so_are_plain_names(tmp_path, text):
    (tmp_path / 'mine.yaml').write_text(text)
    assert read_parameters(tmp_path / 'mine.yaml') == Parameters(lost_after=1.0, class_names=('cup',))


def test_an_empty_file_changes_nothing(tmp_path):
    (tmp_path / 'mine.yaml').write_text('')
    assert read_parameters(tmp_path / 'mine.yaml') == Parameters()


@pytest.mark.parametrize(('values', 'reason'), [
    ({'lost_afer': 1.0}, "there is no 'lost_afer'; did you mean lost_after?"),
    ({'lost_after': 'long'}, "lost_after 'long': must be float"),
    ({'max_objects': 2.5}, 'max_objects 2.5: must be int'),
    ({'use_depth': 1}, 'use_depth 1: must be bool'),
    ({'class_names': 'cup'}, "class_names 'cup': must be a list of names"),
    ({'dtype': 'int8'}, "dtype 'int8': must be one of float32, bfloat16, float16"),
    ({'reappear_visibility': 0.2}, 'reappear_visibility 0.2: must lie between 0.5 and 1'),
    ({'image_size': 100}, 'image_size 100: must lie between 0 and 4096, in steps of 32')])
def test_values_that_the_node_would_refuse_are_refused_with_the_cure(values, reason):
    with pytest.raises(ParameterError) as error:
        with_values(Parameters(), values)
    assert str(error.value) == reason


@pytest.mark.parametrize(('text', 'reason'), [
    ('- 1', 'must have the form NAME: VALUE'), ('a: [', 'parameters '), ('x: 1', "there is no 'x'"),
    ('a: {ros__parameters: {}}\nb: {ros__parameters: {}}', r'of 2 nodes \(a, b\)')])
def test_files_that_cannot_be_used_are_named(tmp_path, text, reason):
    (tmp_path / 'bad.yaml').write_text(text)
    with pytest.raises(ParameterError, match='bad.yaml') as error:
        read_parameters(tmp_path / 'bad.yaml')
    assert error.match(reason)
    with pytest.raises(ParameterError, match='none.yaml: No such file'):
        read_parameters(tmp_path / 'none.yaml')
