"""Check whether a machine and its cameras are ready for the node sam2. Print one line per check, with the cure."""
from __future__ import annotations

if __name__ == '__main__':  # handle signals before the imports below, which take seconds
    from sam2_ros.runtime.executables import main_of

    main_of('sam2_check')

import argparse
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence

import rclpy
from rclpy.executors import ExternalShutdownException
from rclpy.node import Node
from rclpy.signals import SignalHandlerOptions
from rclpy.utilities import get_rmw_implementation_identifier
from rich.console import Console
from rich.text import Text

from sam2_core import __version__
from sam2_ros.preflight.findings import Finding, Verdict, bad, doubtful, good
from sam2_ros.preflight.listener import CheckedCamera, Listener
from sam2_ros.preflight.machine import check_machine
from sam2_ros.runtime.dds import use_image_profile
from sam2_ros.runtime.node_arguments import (
    ARGUMENT_ERRORS,
    node_as_given,
    parameter_files,
    problems,
    sections,
    why,
    without_ros_arguments,
)
from sam2_ros.runtime.node_parameters import declare_parameters, given_values, read_parameters
from sam2_ros.runtime.parameter_rules import OF_EVERY_NODE, with_values
from sam2_ros.runtime.parameters import Parameters

MARKS = {Verdict.GOOD: ('ok', 'green'), Verdict.DOUBTFUL: ('warn', 'yellow'), Verdict.BAD: ('FAIL', 'bold red')}


def parse(arguments: list[str]) -> argparse.Namespace:
    """Return the options. Exit with code 2 if they contradict each other."""
    parser = argparse.ArgumentParser(
        prog='sam2_check', description=__doc__,
        epilog='Accepts the ROS arguments of the node: --ros-args --params-file FILE, -r image:=TOPIC, '
               '-p use_sim_time:=true. The exit code is 1 if a check has failed.')
    parser.add_argument('--version', action='version', version=f'%(prog)s {__version__}')
    parser.add_argument('--image-topic', action='append', metavar='TOPIC',
                        help='images of a camera (default: image); repeat it for each camera')
    parser.add_argument('--depth-topic', action='append', metavar='TOPIC',
                        help='depth of the camera (default: depth); repeat it as often as --image-topic')
    parser.add_argument('--camera-info-topic', action='append', metavar='TOPIC',
                        help='calibration of the camera (default: camera_info); repeat it as often as --image-topic')
    parser.add_argument('--cameras', nargs='+', metavar='NAME',
                        help='camera names, as in the parameter cameras; check NAME/image, NAME/depth, ...')
    for kind in ('image', 'depth'):
        parser.add_argument(f'--{kind}-transport', metavar='NAME',
                            help=f'transport of the {kind} topics, such as raw or compressed (default: the parameters '
                                 f'{kind}_transport and {kind}_transports)')
    parser.add_argument('--model', help='model variant (default: the parameter of that name)')
    parser.add_argument('--checkpoint', help='weights file (default: the parameter of that name)')
    parser.add_argument('--device', help='cpu, cuda or cuda:N (default: the parameter of that name)')
    parser.add_argument('--node', default='sam2', help='name of the node with its namespace (default: sam2)')
    parser.add_argument('--seconds', type=float, default=3.0,
                        help='duration of the measurement of the topics, in seconds (default: 3)')
    parser.add_argument('--json', action='store_true', help='print JSON: a list of objects with what, verdict and text')
    options = parser.parse_args(arguments)
    for name in ('depth_topic', 'camera_info_topic'):
        given = getattr(options, name)
        if given and len(given) != len(options.image_topic or ['image']):
            parser.error(f'--{name.replace("_", "-")} is given {len(given)} times: must be as often as --image-topic')
    if options.cameras and options.image_topic:
        parser.error('--cameras and --image-topic: give one of them')
    if not 0 < options.seconds <= 600:
        parser.error(f'--seconds {options.seconds:g}: must lie between 0 and 600')
    return options


def cameras_of(options: argparse.Namespace, parameters: Parameters) -> list[CheckedCamera]:
    """Return the cameras named on the command line, else those of the parameter ``cameras``, else the default one."""
    names = options.cameras or (() if options.image_topic else parameters.cameras)
    if names:
        return [CheckedCamera(name, f'{name}/image', f'{name}/depth', f'{name}/camera_info') for name in names]
    images = options.image_topic or ['image']
    depths = options.depth_topic or ['depth'] * len(images)
    infos = options.camera_info_topic or ['camera_info'] * len(images)
    return [CheckedCamera(image if len(images) > 1 else '', image, depth, info, bool(options.depth_topic))
            for image, depth, info in zip(images, depths, infos, strict=True)]


def check(options: argparse.Namespace, arguments: Sequence[str], environment: Mapping[str, str]) -> Iterator[Finding]:
    """Run all checks. Requires ``rclpy.init``.

    Args:
        options: The parsed options.
        arguments: The command line, including ROS arguments.
        environment: Environment variables of the user's shell.
    """
    namespace, _, name = options.node.rpartition('/')
    try:
        with node_as_given(arguments, name, namespace) as sam2:
            chosen = {name: value
                      for name in ('model', 'checkpoint', 'device', 'image_transport', 'depth_transport')
                      if (value := getattr(options, name)) is not None}
            chosen |= {f'{name}s': () for name in ('image_transport', 'depth_transport') if name in chosen}
            declare_parameters(sam2)
            parameters = with_values(read_parameters(sam2), chosen)
            yield from check_parameters(sam2, arguments, name, namespace)
            yield from _guarded('machine', check_machine(parameters, get_rmw_implementation_identifier(), environment))
            yield from _guarded('topics', _listen(options, sam2, parameters))
    except ARGUMENT_ERRORS as error:
        yield bad('parameters', why(error))


def _guarded(what: str, findings: Iterator[Finding]) -> Iterator[Finding]:
    """Yield the findings, and a bad one if the check itself raises an exception."""
    try:
        yield from findings
    except ExternalShutdownException:
        raise
    except Exception as error:
        yield bad(what, f'the check itself failed ({type(error).__name__}: {error}): report this bug with the input')


def check_parameters(sam2: Node, arguments: Sequence[str], name: str, namespace: str) -> Iterator[Finding]:
    """Report where the parameters of the node come from, and which values have no effect.

    Args:
        sam2: A node with the given arguments.
        arguments: The command line, including ROS arguments.
        name: Name of the node before the arguments rename it.
        namespace: Namespace of the node before the arguments rename it.
    """
    full_name = sam2.get_fully_qualified_name()
    applied = []
    for file in parameter_files(arguments):
        found = sections(file, name, namespace, arguments)
        applied += [f'{section} of {file}' for section in found.applied]
        if found.others and not found.applied:
            yield doubtful('parameters', f'{file} has parameters for {", ".join(found.others)}, none for {full_name}: '
                                         f'rename the section, or the node (--node NAME, -r __node:=, -r __ns:=)')
    for problem in problems(sam2, read_parameters(sam2)):
        yield doubtful('parameters', problem)
    count = len(given_values(sam2))
    yield good('parameters', f'{full_name}: ' + (f'{count} given' if count else 'defaults')
               + (f', {", ".join(applied)}' if applied else ''))


def _listen(options: argparse.Namespace, sam2: Node, parameters: Parameters) -> Iterator[Finding]:
    """Check the topics of the cameras, and the node if it is running."""
    overrides = [parameter for name, parameter in sam2._parameter_overrides.items()
                 if name in OF_EVERY_NODE or name.startswith('qos_overrides.')]
    node = Node('sam2_check', namespace=sam2.get_namespace(), use_global_arguments=False, parameter_overrides=overrides)
    try:
        listener = Listener(node, sam2, parameters, cameras_of(options, parameters))
        listener.listen(options.seconds)
        yield from listener.findings()
        listener.close()
    finally:
        node.destroy_node()


def main(args: list[str] | None = None) -> int:
    """Run all checks and print the findings. Return the exit code: 1 if a check has failed."""
    arguments = sys.argv[1:] if args is None else args
    options = parse(without_ros_arguments(arguments))
    console = Console(highlight=False, soft_wrap=True)
    found = []
    environment = dict(os.environ)  # before use_image_profile changes it
    use_image_profile()
    rclpy.init(args=[], signal_handler_options=SignalHandlerOptions.NO)
    try:
        for finding in check(options, arguments, environment):
            found.append(finding)
            if not options.json:
                console.print(_line(finding))
    except ExternalShutdownException:
        return 1
    finally:
        rclpy.try_shutdown()
    if options.json:
        print(json.dumps([{'what': finding.what, 'verdict': finding.verdict.value, 'text': finding.text}
                          for finding in found], indent=1))
    return int(any(finding.verdict is Verdict.BAD for finding in found))


def _line(finding: Finding) -> Text:
    mark, style = MARKS[finding.verdict]
    return Text.assemble((f'{mark:5}', style), (f'{finding.what:<14} ', 'bold'), finding.text)
