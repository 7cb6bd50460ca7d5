"""Parameter files as users write them: sam2_evaluate and sam2_check accept and refuse the same as the node."""
import os
import time

import pytest
import rclpy
from rclpy.parameter import Parameter
from sensor_msgs.msg import CompressedImage, Image

from sam2_ros.check import check_parameters
from sam2_ros.node import Sam2Node
from sam2_ros.preflight.findings import Verdict
from sam2_ros.preflight.listener import Listener
from sam2_ros.runtime.image_transports import transport_topic
from sam2_ros.runtime.namesakes import Namesakes
from sam2_ros.runtime.node_arguments import (
    ARGUMENT_ERRORS,
    node_as_given,
    parameter_files,
    problems,
    sections,
    why,
    without_ros_arguments,
)
from sam2_ros.runtime.node_parameters import declare_parameters, read_parameters
from sam2_ros.runtime.parameter_file import read_parameter_file
from sam2_ros.runtime.parameter_rules import ParameterError
from sam2_ros.runtime.parameters import Parameters

FILES = {
    'all nodes': '/**: {ros__parameters: {max_objects: 7}}',
    'name': 'sam2: {ros__parameters: {max_objects: 7}}',
    'full name': '/sam2: {ros__parameters: {max_objects: 7}}',
    'any namespace': '/**/sam2: {ros__parameters: {max_objects: 7}}',
    'one namespace': '/*/sam2: {ros__parameters: {max_objects: 7}}',
    'name in a namespace': '/robot/sam2: {ros__parameters: {max_objects: 7}}',
    'all of a namespace': '/robot/**: {ros__parameters: {max_objects: 7}}',
    'any node of a namespace': '/robot/*: {ros__parameters: {max_objects: 7}}',
    'nested': 'robot: {sam2: {ros__parameters: {max_objects: 7}}}',
    'nested twice': 'fleet: {robot: {sam2: {ros__parameters: {max_objects: 7}}}}',
    'several nodes': 'camera: {ros__parameters: {fps: 30}}\nsam2: {ros__parameters: {max_objects: 7}}',
    'another node': 'camera: {ros__parameters: {max_objects: 7}}',
    'several sections': '/**: {ros__parameters: {max_objects: 7, lost_after: 1.0}}\n'
                        'sam2: {ros__parameters: {max_objects: 8}}\n/robot/sam2: {ros__parameters: {max_objects: 9}}',
    'several sections, the wider last': 'sam2: {ros__parameters: {max_objects: 8}}\n'
                                        '/**: {ros__parameters: {max_objects: 7}}',
    'one section twice': 'sam2: {ros__parameters: {max_objects: 7}}\nsam2: {ros__parameters: {lost_after: 1.0}}',
}
VALUES = {
    'nested name': '/**: {ros__parameters: {max: {objects: 7}}}',
    'qos override': '/**: {ros__parameters: {qos_overrides: {/image: {subscription: {depth: 9}}}}}',
    'of every node': '/**: {ros__parameters: {use_sim_time: true, lost_aftr: 1.0}}',
    'empty lists': '/**: {ros__parameters: {cameras: [], class_names: [], detections_classes: [""]}}',
    'lists': '/**: {ros__parameters: {cameras: [a, b], class_names: ["1", "yes"]}}',
    'words for true': '/**: {ros__parameters: {use_depth: no, shed_load: off, rectified: "true"}}',
    'numbers': '/**: {ros__parameters: {max_objects: 0x10, lost_after: 1e0}}',
    'an integer for a double': '/**: {ros__parameters: {lost_after: 2}}',
    'a double for an integer': '/**: {ros__parameters: {max_objects: 2.0}}',
    'a mixed list': '/**: {ros__parameters: {class_names: [1, cup]}}',
    'a list for a number': '/**: {ros__parameters: {max_objects: []}}',
    'nothing for a text': '/**: {ros__parameters: {model: }}',
    'null': '/**: {ros__parameters: {checkpoint: null}}',
    'a conflict': '/**: {ros__parameters: {depth_min: 5.0, depth_max: 1.0}}',
    'an anchor': '/**: {ros__parameters: &common {max_objects: 7}}\nsam2: {ros__parameters: *common}',
    'no parameters': '/**: {ros__parameters: }',
    'an empty section': '/**: {ros__parameters: {}}',
    'no ros__parameters in one section': 'sam2: {max_objects: 7}\n/**: {ros__parameters: {max_objects: 7}}',
    'an empty file': '',
    'a tag of another program': '/**: {ros__parameters: {max_objects: !count 7}}',
    'two documents': '/**: {ros__parameters: {max_objects: 7}}\n---\n/**: {ros__parameters: {lost_after: 1.0}}',
    'UTF-16': '/**: {ros__parameters: {max_objects: 7}}'.encode('utf-16'),
}
NAMES = ('/sam2', '/robot/sam2', '/robot/front')


def arguments_of(*files, name='/sam2') -> list[str]:
    namespace, _, node = name.rpartition('/')
    return ['--ros-args', '-r', f'__node:={node}', '-r', f'__ns:={namespace or "/"}',
            *(part for file in files for part in ('--params-file', str(file)))]


def wait_for(condition):
    """Return the result of a call once discovery has made it true."""
    deadline = time.monotonic() + 30
    while not (value := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return value


def of_a_node(domain: int, arguments: list[str]) -> tuple[Parameters, list[str]] | str:
    """Return the parameters of a real node started with these arguments, or why it cannot be started."""
    context = rclpy.Context()
    try:
        rclpy.init(args=arguments, context=context, domain_id=domain)
        node = Sam2Node(context=context)
        found = read_parameters(node), problems(node, read_parameters(node))
        node.destroy_node()
        return found
    except ARGUMENT_ERRORS as error:
        return why(error)
    finally:
        rclpy.try_shutdown(context=context)


@pytest.mark.parametrize('what', [*FILES, *VALUES])
def test_a_file_gives_an_evaluation_and_a_check_what_it_gives_the_node(ros_domain, tmp_path, what):
    file, text = tmp_path / 'robot.yaml', (FILES | VALUES)[what]
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    for name in NAMES if what in FILES else NAMES[:1]:
        expected = of_a_node(ros_domain, arguments_of(file, name=name))
        applied = None
        try:
            with node_as_given(arguments_of(file, name=name)) as given:
                declare_parameters(given)
                checked = read_parameters(given), problems(given, read_parameters(given))
                verdicts = [*check_parameters(given, arguments_of(file, name=name), 'sam2', '')]
                applied = sections(file, 'sam2', '', arguments_of(file, name=name)).applied
        except ARGUMENT_ERRORS as error:
            checked = why(error)
        assert checked == expected
        if applied == () and text:
            assert any('none for' in finding.text for finding in verdicts)
            with pytest.raises(ParameterError, match=f'no section for {name} '):
                read_parameter_file(file, name)
        elif isinstance(expected, str):
            with pytest.raises(ParameterError) as error:
                read_parameter_file(file, name)
            assert str(error.value).endswith(expected)
        else:
            assert read_parameter_file(file, name) == expected


def test_the_files_reach_the_nodes_that_they_name(ros_domain, tmp_path):
    """The keys work as ROS 2 documents, so the comparison above is between values that differ."""
    taken = {}
    for key in ('name', 'any namespace', 'one namespace', 'nested', 'all of a namespace', 'another node'):
        (tmp_path / 'f.yaml').write_text(FILES[key])
        taken[key] = [of_a_node(ros_domain, arguments_of(tmp_path / 'f.yaml', name=name))[0].max_objects == 7
                      for name in NAMES]
    assert taken == {'name': [True, False, False], 'any namespace': [True, True, False],
                     'one namespace': [False, True, False], 'nested': [False, True, False],
                     'all of a namespace': [False, True, True], 'another node': [False, False, False]}


def test_later_files_and_the_command_line_win(ros_domain, tmp_path):
    for number in (1, 2):
        (tmp_path / f'{number}.yaml').write_text(
            f'/**: {{ros__parameters: {{max_objects: {number}, class_names: [of {number}]}}}}')
    arguments = [*arguments_of(tmp_path / '1.yaml', tmp_path / '2.yaml'), '-p', 'sam2:lost_after:=9.0',
                 '-p', 'other:depth_min:=1.0']
    expected = Parameters(max_objects=2, class_names=('of 2',), lost_after=9.0)
    assert of_a_node(ros_domain, arguments)[0] == expected
    with node_as_given(arguments) as given:
        declare_parameters(given)
        assert read_parameters(given) == expected
    assert parameter_files(arguments) == [str(tmp_path / f'{number}.yaml') for number in (1, 2)]


def test_the_check_says_which_sections_apply_and_which_names_do_not_exist(tmp_path):
    file, other = tmp_path / 'robot.yaml', tmp_path / 'other.yaml'
    file.write_text('/**: {ros__parameters: {lost_aftr: 1.0}}\nsam2: {ros__parameters: {lost_after: 1.0}}\n'
                    'camera: {ros__parameters: {fps: 30}}')
    other.write_text('foo: {ros__parameters: {lost_after: 1.0}}\nns: {bar: {ros__parameters: {lost_after: 1.0}}}')
    arguments = arguments_of(file, other)
    with node_as_given(arguments) as given:
        declare_parameters(given)
        nobody, typo, good = check_parameters(given, arguments, 'sam2', '')
    assert (nobody.verdict, typo.verdict, good.verdict) == (Verdict.DOUBTFUL, Verdict.DOUBTFUL, Verdict.GOOD)
    assert nobody.text.startswith(f'{other} has parameters for /foo, /ns/bar, none for /sam2: rename the section')
    assert typo.text == "unknown parameter 'lost_aftr' is ignored: did you mean lost_after?"
    assert good.text == f'/sam2: 2 given, /** of {file}, /sam2 of {file}'


@pytest.mark.parametrize(('arguments', 'reason'), [
    (['--ros-args', '--params-file', '/no/such.yaml'], "Couldn't parse params file: '--params-file /no/such.yaml'"),
    (['--ros-args', '-p', 'lost_after'], "Couldn't parse parameter override rule: '-p lost_after'"),
    (['--ros-args', '-r', 'image:=/cam-1/image'], "Couldn't parse remap rule: '-r image:=/cam-1/image'"),
    (['--ros-args', '-r', '__node:=a-b'], 'a-b'),
    (['--ros-args', '-p', 'use_sim_time:=1'], "'use_sim_time'"),
    (['--ros-args', '--parms-file', 'x'], 'unknown ROS arguments')])
def test_arguments_that_cannot_be_used_are_named_in_one_line(ros_domain, arguments, reason):
    found = of_a_node(ros_domain, arguments)
    assert reason in found and '\n' not in found and '/project' not in found
    with pytest.raises(ARGUMENT_ERRORS) as error, node_as_given(arguments):
        pass
    assert why(error.value) == found


def test_arguments_of_ros_are_told_from_others():
    arguments = ['a', '--ros-args', '-p', 'x:=1', '--', 'b', '--ros-args', '--', '--', 'c', '--ros-args', 'd']
    assert without_ros_arguments(arguments) == ['a', 'b', '--', 'c']


def test_nobody_sees_the_node_that_only_reads_and_the_environment_stays(ros_domain, monkeypatch):
    monkeypatch.setenv('ROS_STATIC_PEERS', 'localhost')
    before = dict(os.environ)
    context = rclpy.Context()
    rclpy.init(args=[], context=context, domain_id=ros_domain)
    watcher = rclpy.create_node('watcher', context=context)
    with node_as_given(['--ros-args', '-r', '__node:=reader']) as given:
        assert given.get_fully_qualified_name() == '/reader'
        later = rclpy.Context()  # a node created later has been discovered, so enough time has passed
        rclpy.init(args=[], context=later, domain_id=ros_domain)
        beacon = rclpy.create_node('beacon', context=later)
        wait_for(lambda: 'beacon' in watcher.get_node_names())
        assert 'reader' not in watcher.get_node_names()
        beacon.destroy_node()
        rclpy.shutdown(context=later)
    assert dict(os.environ) == before
    watcher.destroy_node()
    rclpy.shutdown(context=context)


REMAPPED = {  # remappings -> the raw topic and the compressed one
    (): ('/image', '/image/compressed'),
    ('image:=/cam/image',): ('/cam/image', '/cam/image/compressed'),
    ('image/compressed:=/cam/jpeg',): ('/image', '/cam/jpeg'),
    ('image:=/cam/image', '/cam/image/compressed:=/cam/jpeg'): ('/cam/image', '/cam/jpeg'),
    ('image:=/a', '/a:=/b'): ('/a', '/a/compressed'),
    ('image:=~/own',): ('/sam2/own', '/sam2/own/compressed'),
}


@pytest.mark.parametrize('transport', ['raw', 'compressed'])
def test_the_log_and_the_diagnostics_name_the_topic_that_is_subscribed(ros_domain, capfd, monkeypatch, model,
                                                                       transport):
    monkeypatch.setattr('sam2_ros.node.load', lambda chosen: model)
    for remappings, topics in REMAPPED.items():
        context = rclpy.Context()
        arguments = [part for rule in remappings for part in ('-r', rule)]
        rclpy.init(args=['--ros-args', *arguments], context=context, domain_id=ros_domain)
        node = Sam2Node(context=context, parameter_overrides=[Parameter('autostart', value=False),
                                                              Parameter('image_transport', value=transport)])
        node.trigger_configure()
        node.trigger_activate()
        subscribed, = (item.topic_name for item in node.subscriptions
                       if item.msg_type is (CompressedImage if transport == 'compressed' else Image)
                       and 'depth' not in item.topic_name)
        assert subscribed == topics[transport == 'compressed']
        assert f'active: images from {subscribed}, prompts' in capfd.readouterr().err
        assert node._cameras[0].topics.watched().topic == subscribed
        with node_as_given(['--ros-args', *arguments]) as given:  # as in sam2_check
            assert given.resolve_topic_name(transport_topic(given, 'image', transport)) == subscribed
        node.close()
        node.destroy_node()
        rclpy.shutdown(context=context)


def test_a_second_node_of_the_same_name_is_told_by_node_and_check_and_taken_back(ros_domain, capfd):
    contexts = [rclpy.Context(), rclpy.Context()]
    for context in contexts:
        rclpy.init(args=[], context=context, domain_id=ros_domain)
    node = rclpy.create_node('sam2', namespace='twins', context=contexts[0])
    near = rclpy.create_node('sam2', context=contexts[1])  # has another full name
    namesakes = Namesakes(node)
    assert namesakes.look() == ''
    second = rclpy.create_node('sam2', namespace='twins', context=contexts[1])
    text = wait_for(namesakes.look)
    assert text.startswith('2 nodes are named /twins/sam2: stop all but one, or rename them (-r __node:=NAME')
    assert namesakes.look() == text
    with node_as_given([], 'sam2', '/twins') as given:
        listener = Listener(node, given, Parameters(), [])
        finding, = listener._check_node([])
        listener.close()
    assert finding.verdict is Verdict.BAD and finding.text == f'{text}; check again then'
    second.destroy_node()
    wait_for(lambda: not namesakes.look())
    log = capfd.readouterr().err
    assert log.count('2 nodes are named /twins/sam2') == log.count('no other node is named /twins/sam2 any more') == 1
    for one in (node, near):
        one.destroy_node()
    for context in contexts:
        rclpy.shutdown(context=context)
