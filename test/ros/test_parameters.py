"""Parameters on a real node: defaults, ranges, refusals with a reason; the documents say the same as the code."""
import re
from dataclasses import fields
from pathlib import Path

import pytest
import rclpy
import yaml
from rclpy.exceptions import InvalidParameterTypeException, InvalidParameterValueException
from rclpy.lifecycle import TransitionCallbackReturn
from rclpy.parameter import Parameter

from sam2_ros.node import Sam2Node
from sam2_ros.parameters import MODEL, Parameters

ROOT = Path(__file__).parents[2]


@pytest.fixture
def make(ros_domain):
    context = rclpy.Context()
    rclpy.init(context=context, domain_id=ros_domain)
    nodes = []

    def node(**values) -> Sam2Node:
        nodes.append(Sam2Node(context=context,
                              parameter_overrides=[Parameter(name, value=value) for name, value in values.items()]))
        return nodes[-1]

    yield node
    for created in nodes:
        created.close()
        created.destroy_node()
    rclpy.shutdown(context=context)


def set_parameter(node: Sam2Node, name: str, value):
    return node.set_parameters([Parameter(name, value=value)])[0]


def test_defaults_and_descriptions(make):
    node = make()
    assert Parameters.read(node) == Parameters()
    for item in fields(Parameters):
        assert len(node.describe_parameter(item.name).description) > 20


def test_values_given_at_start_are_taken(make):
    assert Parameters.read(make(model='sam2.1_hiera_tiny', lost_after=0.5, max_objects=3)) == Parameters(
        model='sam2.1_hiera_tiny', lost_after=0.5, max_objects=3)


@pytest.mark.parametrize(('name', 'value', 'reason'), [
    ('dtype', 'float64', "dtype 'float64': must be one of float32, bfloat16, float16"),
    ('image_transport', 'theora', "image_transport 'theora': must be one of raw, compressed"),
    ('on_time_jump', '', "on_time_jump '': must be one of keep, reset"),
    ('image_size', 100, '100'),
    ('image_size', -32, '-32'),
    ('max_objects', 0, '0'),
    ('detections_iou', 1.5, '1.5'),
    ('history_bytes', -1, '-1'),
    ('max_objects', 65536, '65536'),
    ('lost_after', -1.0, '-1'),
    ('prompt_timeout', 0.0, '0'),
    ('overlay_opacity', 1.5, '1.5'),
    ('autostart', False, 'read-only'),
])
def test_values_out_of_range_are_refused_at_once_and_at_start(make, name, value, reason):
    node = make()
    result = set_parameter(node, name, value)
    assert not result.successful and reason in result.reason
    assert Parameters.read(node) == Parameters()
    if name != 'autostart':
        with pytest.raises(InvalidParameterValueException):
            make(**{name: value})


def test_values_of_another_type_are_refused(make):
    with pytest.raises(InvalidParameterTypeException):
        make(lost_after='soon')


def test_what_the_model_is_made_of_cannot_change_while_there_is_one(make):
    node = make(device='cpu')
    assert set_parameter(node, 'model', 'nano').successful
    assert node.trigger_configure() == TransitionCallbackReturn.SUCCESS
    for item in fields(Parameters):
        if item.metadata['when'] == MODEL:
            result = set_parameter(node, item.name, getattr(Parameters(), item.name))
            assert not result.successful and 'clean it up first' in result.reason
    assert set_parameter(node, 'lost_after', 7.0).successful
    node.trigger_cleanup()
    assert set_parameter(node, 'dtype', 'bfloat16').successful


@pytest.mark.parametrize('path', sorted(ROOT.glob('config/*.yaml')), ids=lambda path: path.name)
def test_the_configuration_files_name_parameters_that_exist(make, path):
    for section in yaml.safe_load(path.read_text()).values():
        make(**section['ros__parameters'])  # would raise for a bad value
        assert set(section['ros__parameters']) <= {item.name for item in fields(Parameters)}


def test_the_documentation_lists_every_parameter_with_its_default():
    text = (ROOT / 'docs' / 'node.md').read_text()
    rows = dict(re.findall(r'^\| `(\w+)` \| [\w\[\]]+ \| (\S+) \|', text, re.MULTILINE))
    defaults = {item.name: str(item.default).lower() if isinstance(item.default, bool) else
                str([*item.default]) if isinstance(item.default, tuple) else
                str(item.default) or "''" for item in fields(Parameters)}
    assert {name: rows[name].strip('`') for name in rows if name in defaults} == defaults
