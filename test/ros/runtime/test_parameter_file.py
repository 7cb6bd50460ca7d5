"""Parameters of the node from a file, as sam2_evaluate reads them."""
from pathlib import Path

import pytest

from sam2_ros.evaluate import parameters_of, parse
from sam2_ros.runtime.parameter_file import read_parameter_file
from sam2_ros.runtime.parameter_rules import ParameterError, with_values
from sam2_ros.runtime.parameters import Parameters

CONFIG = Path(__file__).resolve().parents[3] / 'config' / 'sam2.yaml'


def test_the_file_of_the_node_is_read():
    assert read_parameter_file(CONFIG) == (Parameters(), [])


@pytest.mark.parametrize('text', [
    'lost_after: 1\nclass_names: [cup]',
    'sam2:\n  ros__parameters:\n    lost_after: 1.0\n    class_names: [cup]\n    use_sim_time: true'])
def test_so_are_plain_names(tmp_path, text):
    (tmp_path / 'mine.yaml').write_text(text)
    assert read_parameter_file(tmp_path / 'mine.yaml') == (Parameters(lost_after=1.0, class_names=('cup',)), [])


def test_an_empty_file_changes_nothing(tmp_path):
    (tmp_path / 'mine.yaml').write_text('')
    assert read_parameter_file(tmp_path / 'mine.yaml') == (Parameters(), [])


@pytest.mark.parametrize(('values', 'reason'), [
    ({'lost_afer': 1.0}, "unknown parameter 'lost_afer': did you mean lost_after?"),
    ({'max_objects': 2.5}, 'max_objects 2.5: must be a whole number'),
    ({'depth_min': 5.0, 'depth_max': 1.0}, 'depth_min 5: must be below depth_max 1'),
    ({'reappear_visibility': 0.2}, 'reappear_visibility 0.2: must lie between 0.5 and 1')])
def test_values_that_the_node_would_refuse_are_refused_with_the_cure(values, reason):
    with pytest.raises(ParameterError) as error:
        with_values(Parameters(), values)
    assert str(error.value) == reason


def test_the_sections_of_a_node_are_chosen_by_its_name(tmp_path, capsys):
    file = tmp_path / 'fleet.yaml'
    file.write_text('robot1: {front: {ros__parameters: {max_objects: 7, max_object: 8}}}\n'
                    'camera: {ros__parameters: {fps: 30}}')
    options = ['no.mcap', '--output', 'nowhere', '--parameters', str(file)]
    assert parameters_of(parse([*options, '--node', '/robot1/front', '--model', 'sam2_hiera_tiny'])) == Parameters(
        max_objects=7, model='sam2_hiera_tiny')
    assert capsys.readouterr().err == (f"sam2_evaluate: parameters {file}: unknown parameter 'max_object' is "
                                       'ignored: did you mean max_objects?\n')
    with pytest.raises(ParameterError, match='no section for /sam2 .it has /robot1/front, /camera.: name the node'):
        parameters_of(parse(options))


def test_the_evaluation_stays_in_the_frame_of_the_camera_and_says_so(tmp_path, capsys):
    file = tmp_path / 'robot.yaml'
    file.write_text('target_frame: map\npublish_tf: true\nmax_objects: 7\nkeep_objects: /var/mine.safetensors')
    assert parameters_of(parse(['no.mcap', '--output', 'nowhere', '--parameters', str(file)])) == Parameters(
        max_objects=7)
    told = capsys.readouterr().err
    for what in ("target_frame 'map'", 'publish_tf true'):
        assert f'{what} is ignored: a recording is evaluated in the frame of its camera' in told
    assert "keep_objects '/var/mine.safetensors' is ignored: a recording begins without objects" in told


@pytest.mark.parametrize(('text', 'reason'), [
    ('- 1', 'must have the form NAME: VALUE'), ('a: [', 'parameters '), ('x: 1', "unknown parameter 'x'"),
    ('sam2:\n\tlost_after: 1.0', "bad.yaml: line 2, column 1: found character '.t' .*; indent with spaces$"),
    ('x: [1', r'bad.yaml: line \d, column \d: .*$'), ('lost_after:', "'lost_after' has no value; give one"),
    ('x: !count 7', 'bad.yaml: line 1, column 4: could not determine'),
    (b'class_names: [caf\xe9]', 'byte 17 cannot be read .*: save the file as UTF-8 text$'),
    ('/**: {ros_parameters: {lost_after: 1.0}}', r"section '/\*\*' has no ros__parameters: put the parameters under"),
    ('a: {ros__parameters: {}}\nb: {ros__parameters: {}}', r'no section for /sam2 \(it has /a, /b\)')])
def test_files_that_cannot_be_used_are_named(tmp_path, text, reason):
    (tmp_path / 'bad.yaml').write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ParameterError, match='bad.yaml') as error:
        read_parameter_file(tmp_path / 'bad.yaml')
    assert error.match(reason)
    assert '\n' not in str(error.value)
    with pytest.raises(ParameterError, match='none.yaml: No such file'):
        read_parameter_file(tmp_path / 'none.yaml')
