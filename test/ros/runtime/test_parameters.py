"""Parameters on a real node: defaults, ranges, refusals with a reason. The documents say the same as the code."""
import re
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import rclpy
import yaml
from rcl_interfaces.msg import SetParametersResult
from rclpy.lifecycle import TransitionCallbackReturn
from rclpy.parameter import Parameter

from sam2_core.memory_policy import MEMORY_POLICIES
from sam2_ros.node import Sam2Node
from sam2_ros.runtime.node_arguments import problems
from sam2_ros.runtime.node_parameters import read_parameters
from sam2_ros.runtime.parameter_rules import ParameterError, with_values
from sam2_ros.runtime.parameters import MODEL, START, Parameters
from tools import write_parameters

ROOT = Path(__file__).parents[3]


@pytest.fixture
def make(ros_domain):
    context = rclpy.Context()
    rclpy.init(context=context, domain_id=ros_domain)
    nodes = []

    def node(**values) -> Sam2Node:
        nodes.append(Sam2Node(context=context, parameter_overrides=[as_parameter(*item) for item in values.items()]))
        return nodes[-1]

    yield node
    for created in nodes:
        created.close()
        created.destroy_node()
    rclpy.shutdown(context=context)


def as_parameter(name: str, value) -> Parameter:
    return value if isinstance(value, Parameter) else Parameter(name, value=value)


def set_parameter(node: Sam2Node, name: str, value) -> SetParametersResult:
    return node.set_parameters([as_parameter(name, value)])[0]


def test_defaults_and_descriptions(make):
    node = make()
    assert read_parameters(node) == Parameters()
    for item in fields(Parameters):
        described = node.describe_parameter(item.name)
        assert len(described.description) > 20
        assert described.description == f'{item.metadata["description"]} (Takes effect {item.metadata["when"]}.)'
        assert described.read_only == (item.metadata['when'] == START)
    assert node.describe_parameter('dtype').additional_constraints == 'One of: float32, bfloat16, float16.'
    assert node.describe_parameter('image_size').integer_range[0].step == 32
    assert node.describe_parameter('depth_max').floating_point_range[0].to_value == 1000.0


def test_values_given_at_start_are_taken(make):
    assert read_parameters(make(model='sam2.1_hiera_tiny', lost_after=0.5, max_objects=3)) == Parameters(
        model='sam2.1_hiera_tiny', lost_after=0.5, max_objects=3)


@pytest.mark.parametrize(('name', 'value', 'reason'), [
    ('dtype', 'float64', "dtype 'float64': must be one of float32, bfloat16, float16"),
    ('image_transport', '', "image_transport '': must be the name of a transport, such as raw or compressed"),
    ('image_transport', 'compressedDepth', "image_transport 'compressedDepth': has depth, not images; set depth_"),
    ('depth_transport', 'a/b', "depth_transport 'a/b': must be the name of a transport"),
    ('image_transports', ['raw'], 'must have one for each of the 0 cameras; with one camera without a name, set '
                                  'image_transport'),
    ('intensity_min', 5, 'intensity_min 5: must be below intensity_max 0; set both at once'),
    ('on_time_jump', '', "on_time_jump '': must be one of keep, reset"),
    ('image_size', 100, 'image_size 100: must lie between 0 and 4096, in steps of 32'),
    ('max_objects', 65536, 'max_objects 65536: must lie between 1 and 65535'),
    ('history_bytes', -1, 'history_bytes -1: must lie between 0'),
    ('history_bytes', 1e20, 'history_bytes 1e+20: must be a whole number'),
    ('detections_iou', 1.5, 'detections_iou 1.5: must lie between 0 and 1'),
    ('latency_target', float('nan'), 'latency_target nan: must lie between 0 and 60'),
    ('lost_after', float('inf'), 'lost_after inf: must lie between 0'),
    ('lost_after', 'soon', "lost_after 'soon': must be a number with a decimal point, such as 2.0"),
    ('lost_after', 2, 'lost_after 2: must be a number with a decimal point, such as 2.0'),
    ('lost_after', Parameter('lost_after', Parameter.Type.NOT_SET), None),
    ('max_objects', 8.0, 'max_objects 8.0: must be a whole number'),
    ('max_objects', True, 'max_objects true: must be a whole number'),
    ('device', 0, "device 0: must be text; quote it where YAML would read another type ('0')"),
    ('checkpoint', 'a\0b', 'must not contain a null character'),
    ('use_depth', 'yes', "use_depth 'yes': must be true or false"),
    ('class_names', 'cup', "class_names 'cup': must be a list of names"),
    ('class_names', [1, 2], 'class_names [1, 2]: must be a list of names'),
    ('class_names', [True], 'class_names [true]: must be a list of names'),
    ('class_names', ['cup', ''], "class_names ['cup', '']: name 2 is empty; leave it out"),
    ('class_names', ['cup', 'cup'], "class_names 'cup': named twice"),
    ('class_names', ['background'], "class_names 'background': reserved; leave it out"),
    ('class_names', [f'class {number}' for number in range(255)], 'class_names: 255 names, must be at most 254'),
    ('depth_min', 20.0, 'depth_min 20: must be below depth_max 10'),
    ('depth_max', 0.1, 'depth_min 0.1: must be below depth_max 0.1'),
    ('forget_after', 1.0, 'forget_after 1: must be at least lost_after 2, or 0 for never; set both at once'),
    ('detections_width', 640, 'detections_width 640 and detections_height 0: both must be positive, or both 0; set'),
    ('detections_fit', 'pad', "detections_fit 'pad': must be one of stretch, letterbox, corner, crop"),
    ('target_frame', '/map', "target_frame '/map': must be the name of a TF frame, without a leading /"),
    ('target_frame', 'my map', "target_frame 'my map': must be the name of a TF frame, without a leading / and"),
    ('tf_names', 'name', "tf_names 'name': must be one of id, label"),
    ('keep_objects', 'objects.safetensors', "keep_objects 'objects.safetensors': must be an absolute path"),
    ('keep_objects', '/var/objects.yaml', "keep_objects '/var/objects.yaml': must end in .safetensors; append it"),
    ('keep_objects', '/var/.safetensors', "keep_objects '/var/.safetensors': must end in .safetensors"),
    ('keep_objects', '$NO_SUCH/a.safetensors', 'no such environment variable or user; write the path out'),
    ('keep_objects', '~nobody_at_all/a.safetensors', 'no such environment variable or user; write the path out'),
    ('keep_objects_period', 0.0, 'keep_objects_period 0: must lie between 0.1 and 3600'),
    ('detections_topic', 'boxes!', "detections_topic 'boxes!': Invalid topic name: topic name must not contain"),
])
def test_a_value_that_cannot_work_is_refused_by_name_at_once_and_at_start(make, name, value, reason):
    node = make()
    result = set_parameter(node, name, value)
    assert not result.successful
    assert result.reason.startswith(reason or f'{name}: cannot be deleted') or reason and reason in result.reason
    assert read_parameters(node) == Parameters()
    with pytest.raises(ParameterError) as error:
        make(**{name: value})
    assert (reason or 'lost_after []: must be a number') in str(error.value)


@pytest.mark.parametrize(('values', 'reason'), [
    ({'int8_encoder': True, 'dtype': 'bfloat16'}, "int8_encoder with dtype 'bfloat16' and device '': must be float32"),
    ({'int8_encoder': True, 'device': 'cuda:0'}, "and device 'cuda:0': must be float32 on the cpu"),
    ({'cameras': ['a'], 'detections_topic': '/boxes'}, 'remove the first /, and remap a/boxes'),
    ({'cameras': ['a', 'a']}, "cameras 'a': named twice"),
    ({'cameras': ['1']}, "cameras '1': a name consists of letters"),
    ({'qos_overrides./image.subscription.reliability': 'reliably'},
     "qos_overrides./image.subscription.reliability 'reliably': must be one of reliable, best_effort"),
    ({'qos_overrides./image.subscription.depth': -1}, 'subscription.depth -1: must be a whole number, 0 or more'),
])
def test_values_that_cannot_work_together_are_refused_at_start(make, values, reason):
    with pytest.raises(ParameterError) as error:
        make(**values)
    assert reason in str(error.value)


def test_values_that_work_only_together_are_set_together(make):
    node = make()
    assert not set_parameter(node, 'depth_min', 12.0).successful
    both = [Parameter('depth_min', value=12.0), Parameter('depth_max', value=20.0)]
    assert node.set_parameters_atomically(both).successful
    assert (read_parameters(node).depth_min, read_parameters(node).depth_max) == (12.0, 20.0)
    spoilt = [Parameter('depth_max', value=30.0), Parameter('depth_min', value=40.0)]
    assert not node.set_parameters_atomically(spoilt).successful
    assert read_parameters(node).depth_max == 20.0


EMPTY = {'no type, as rcl reads []': (Parameter.Type.NOT_SET, None), 'bytes, as rqt': (Parameter.Type.BYTE_ARRAY, []),
         'bools, as ros2 param': (Parameter.Type.BOOL_ARRAY, []), 'names': (Parameter.Type.STRING_ARRAY, []),
         'one empty name': (Parameter.Type.STRING_ARRAY, [''])}


@pytest.mark.parametrize(('kind', 'value'), EMPTY.values(), ids=EMPTY)
def test_an_empty_list_of_names_is_taken_in_every_form(make, kind, value):
    names = ('cameras', 'class_names', 'detections_classes')
    node = make(**{name: Parameter(name, kind, value) for name in names})
    assert read_parameters(node) == Parameters()
    if kind != Parameter.Type.NOT_SET:  # NOT_SET deletes a parameter
        assert set_parameter(node, 'class_names', ['cup']).successful
        assert set_parameter(node, 'class_names', Parameter('class_names', kind, value)).successful
        assert node.get_parameter('class_names').type_ == Parameter.Type.STRING_ARRAY
        assert read_parameters(node) == Parameters()


def test_a_parameter_cannot_be_deleted(make):
    node = make()
    for name in [item.name for item in fields(Parameters)] + ['use_sim_time']:
        result = set_parameter(node, name, Parameter(name, Parameter.Type.NOT_SET))
        assert not result.successful and f'{name}: cannot be deleted; set it to its default' in result.reason
    assert read_parameters(node) == Parameters()


def test_the_clock_is_refused_by_name_too(make):
    result = set_parameter(make(), 'use_sim_time', 'yes')
    assert not result.successful and result.reason == "use_sim_time 'yes': must be true or false"


def test_a_name_that_does_not_exist_is_refused_with_the_closest(make):
    result = set_parameter(make(), 'lost_aftr', 3.0)
    assert not result.successful and result.reason == "unknown parameter 'lost_aftr': did you mean lost_after?"


def test_names_and_combinations_without_effect_are_told_at_start(make, capfd):
    node = make(lost_aftr=3.0, fps=30, **{'qos_overrides./imag.subscription.reliability': 'reliable',
                                          'qos_overrides./image.subscription.reliability': 'reliable'},
                use_sim_time=False, detections_classes=['cup'], detections_fit='crop', latency_target=0.04,
                bond_heartbeat_period=0.1)
    told = ["unknown parameter 'lost_aftr' is ignored: did you mean lost_after?",
            "unknown parameter 'fps' is ignored: see docs/reference/parameters.md",
            "unknown parameter 'qos_overrides./imag.subscription.reliability' is ignored: did you mean "
            'qos_overrides./image.subscription.reliability?',
            'bond_heartbeat_period 0.1 with autostart: a lifecycle manager cannot configure a node that is active '
            'already; set autostart to false',
            "detections_classes ['cup'] has no effect without detections_topic",
            "detections_fit 'crop' has no effect without detections_width and detections_height",
            'depth_wait 0.05 is not below latency_target 0.04: results that wait for their depth are late; lower '
            'depth_wait']
    assert problems(node, read_parameters(node)) == told
    logged = capfd.readouterr().err
    assert [text for text in told if f'[sam2]: {text}\n' not in logged] == []
    assert logged.count('[WARN]') == len(told)


@pytest.mark.fuzz
def test_no_value_of_any_type_ends_the_node_or_leaves_it_with_values_that_do_not_work(make, rounds):
    rng = np.random.default_rng(3)
    node = make()
    known = {item.name: item for item in fields(Parameters)}
    names = [*known, 'use_sim_time', 'lost_aftr', '', 'qos_overrides./image.subscription.depth']
    words = ['', 'cup', 'keep', 'reset', 'cuda', '/a', 'a b', 'a\0', 'ü' * 300, 'compressed', 'nano', '~']
    makers = [lambda: bool(rng.integers(2)), lambda: int(rng.integers(-2**63, 2**63 - 1)), lambda: int(rng.integers(9)),
              lambda: float(rng.choice([0.0, 0.1, 0.7, 1.0, 3.0, 20.0, -1.0, 1e300, np.nan, np.inf])),
              lambda: str(rng.choice(words)), lambda: [str(word) for word in rng.choice(words, rng.integers(4))],
              lambda: [int(value) for value in rng.integers(9, size=rng.integers(3))],
              lambda: [b'x'] * rng.integers(2), lambda: [True] * rng.integers(1, 3), lambda: [0.5], lambda: None]
    accepted = 0
    for _ in range(rounds(500, 50_000)):
        changes = []
        for name in rng.choice(names, rng.integers(1, 4)):
            value = makers[rng.integers(len(makers))]()
            if rng.random() < 0.5 and name in known:  # of the right type
                value = next(made for _ in range(100) if type(made := makers[rng.integers(len(makers))]())
                             is (list if isinstance(known[name].default, tuple) else type(known[name].default)))
            changes.append(Parameter(str(name), value=value))
        before = read_parameters(node)
        results = node.set_parameters(changes) if rng.random() < 0.5 else [node.set_parameters_atomically(changes)]
        accepted += any(result.successful for result in results)
        assert all(result.successful or result.reason for result in results)
        after = read_parameters(node)
        if not any(result.successful for result in results):
            assert after == before
        assert with_values(Parameters(), {name: getattr(after, name) for name in known}) == after
    assert accepted > 20


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


def test_what_takes_effect_at_start_is_read_only(make):
    node = make()
    for item in fields(Parameters):
        if item.metadata['when'] == START:
            result = set_parameter(node, item.name, item.default)
            assert not result.successful and 'read-only, takes effect at startup' in result.reason


@pytest.mark.parametrize('path', sorted(ROOT.glob('config/*.yaml')), ids=lambda path: path.name)
def test_the_configuration_files_name_parameters_that_exist(make, path):
    for section in yaml.safe_load(path.read_text()).values():
        make(**section['ros__parameters'])  # raises for a bad value
        assert set(section['ros__parameters']) <= {item.name for item in fields(Parameters)}


def test_the_memory_policies_are_those_of_the_trackers():
    known = {item.name: item for item in fields(Parameters)}['memory_policy'].metadata['choices']
    assert known == tuple(MEMORY_POLICIES)


def test_the_documentation_lists_every_parameter_with_its_default():
    text = write_parameters.page_with_table().read_text()
    rows = dict(re.findall(r'^\| `(\w+)` \| [\w\[\]]+ \| (\S+) \|', text, re.MULTILINE))
    defaults = {item.name: str(item.default).lower() if isinstance(item.default, bool) else
                str([*item.default]) if isinstance(item.default, tuple) else
                str(item.default) or "''" for item in fields(Parameters)}
    assert {name: rows[name].strip('`') for name in rows if name in defaults} == defaults


def test_the_parameters_file_and_the_documentation_are_those_that_make_parameters_writes():
    assert [path.name for path, text in write_parameters.documents() if path.read_text() != text] == []


def test_what_is_generated_names_units_ranges_and_links_from_the_page_it_is_in():
    text, depth = write_parameters.parameters_file(), 'depth in metres; nearer readings are ignored.'
    assert f'    # Minimum valid {depth} Range: 0 to 1000.\n    depth_min: 0.1\n' in text
    top, nested = (write_parameters.table(ROOT / 'docs' / page) for page in ('node.md', 'reference/node.md'))
    assert '([details](how-to/tune.md#load-shedding))' in top
    assert '([details](../how-to/tune.md#load-shedding))' in nested
