"""ROS arguments and parameter files of a node. rcl parses them for a node that no other process can see."""
from __future__ import annotations

import contextlib
import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import rclpy
import yaml
from rclpy.exceptions import NameValidationException, ParameterException
from rclpy.impl.implementation_singleton import rclpy_implementation
from rclpy.logging import LoggingSeverity, set_logger_level
from rclpy.node import Node

from sam2_ros.runtime.image_transports import OWN_TYPES, transport_topic
from sam2_ros.runtime.node_parameters import given_values, unknown
from sam2_ros.runtime.parameter_rules import ParameterError, doubts
from sam2_ros.runtime.parameters import Parameters

# errors that rclpy raises at startup for arguments, names and parameters that cannot be used
ARGUMENT_ERRORS = (rclpy_implementation.RCLError, rclpy_implementation.UnknownROSArgsError,
                   rclpy_implementation.RCLInvalidROSArgsError, ParameterException, NameValidationException,
                   ParameterError)
SECTION = 'ros__parameters'


@dataclass(frozen=True)
class Sections:
    """Sections of a parameter file."""

    file: str
    applied: tuple[str, ...]  # sections for the node, in the order of the file
    others: tuple[str, ...]  # sections for other nodes


@contextlib.contextmanager
def node_as_given(arguments: Sequence[str], name: str = 'sam2', namespace: str = '') -> Iterator[Node]:
    """Yield a node with the name, parameters and remappings that ROS arguments give to it.

    No other process can see the node.

    Args:
        arguments: A command line, with --ros-args.
        name: Name of the node before the arguments rename it.
        namespace: Namespace of the node before the arguments rename it.

    Raises:
        Exception: One of ARGUMENT_ERRORS, if the arguments cannot be used.
    """
    context = rclpy.Context()
    set_logger_level('rcl', LoggingSeverity.FATAL)  # rcl would log what the exception says
    alone = {variable: value for variable, value in os.environ.items()
             if variable not in ('ROS_LOCALHOST_ONLY', 'ROS_STATIC_PEERS', 'ROS_DISCOVERY_SERVER')}
    try:
        with mock.patch.dict(os.environ, {**alone, 'ROS_AUTOMATIC_DISCOVERY_RANGE': 'OFF'}, clear=True):
            rclpy.init(args=[*arguments], context=context)
            node = Node(name, namespace=namespace or None, context=context, enable_rosout=False,
                        start_parameter_services=False)
        try:
            yield node
        finally:
            node.destroy_node()
    finally:
        set_logger_level('rcl', LoggingSeverity.UNSET)
        rclpy.try_shutdown(context=context)


def why(error: Exception) -> str:
    """Return the text of one of ARGUMENT_ERRORS as a sentence, without line numbers of rcl's source."""
    text = ' '.join(str(error).split()).removeprefix('failed to initialize rcl: ')
    if isinstance(error, rclpy_implementation.UnknownROSArgsError):
        text = f'unknown ROS arguments: {text}'
    return re.sub(r', at /[^,]*:\d+', '', text)


def without_ros_arguments(arguments: Sequence[str]) -> list[str]:
    """Return the arguments other than ROS arguments. Unlike rclpy's function, accept unusable ROS arguments."""
    found, ros = [], False
    for argument in arguments:
        if argument == '--ros-args':
            ros = True
        elif ros and argument == '--':
            ros = False
        elif not ros:
            found.append(argument)
    return found


def parameter_files(arguments: Sequence[str]) -> list[str]:
    """Return the files given with --params-file."""
    return [value for option, value in zip(arguments, arguments[1:], strict=False) if option == '--params-file']


def sections(file: str | Path, name: str = 'sam2', namespace: str = '', arguments: Sequence[str] = ()) -> Sections:
    """Return which sections of a parameter file apply to a node.

    rcl does the matching: it reads a copy of the sections in which each sets a different parameter.

    Args:
        file: The parameter file.
        name: Name of the node before the arguments rename it.
        namespace: Namespace of the node before the arguments rename it.
        arguments: The command line, which may rename the node.

    Raises:
        ParameterError: The file cannot be read.
    """
    try:
        documents = read_yaml(Path(file))
    except ParameterError as error:
        raise ParameterError(f'{file}: {error}') from None
    found: list[str] = []
    marked = [_marked(content, '', found) for content in documents if isinstance(content, dict)]
    if not found:
        return Sections(str(file), (), ())
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder, 'sections.yaml')
        copy.write_text(yaml.safe_dump_all(marked, sort_keys=False))
        others = [argument for number, argument in enumerate(arguments)
                  if '--params-file' not in arguments[max(number - 1, 0):number + 1]]
        with node_as_given([*others, '--ros-args', '--params-file', str(copy)], name, namespace) as node:
            applied = {key for key in given_values(node) if key.startswith('section_')}
    return Sections(str(file), *(tuple(dict.fromkeys(section for number, section in enumerate(found)
                                                     if (f'section_{number}' in applied) == wanted))
                                 for wanted in (True, False)))


def read_yaml(file: Path) -> list[Any]:
    """Return the documents of a YAML file with every value as text, which shows the structure that rcl sees.

    Raises:
        ParameterError: The file cannot be read; the text names the line.
    """
    try:
        return [*yaml.load_all(file.read_bytes(), yaml.BaseLoader)]
    except OSError as error:
        raise ParameterError(error.strerror) from None
    except yaml.YAMLError as error:
        raise ParameterError(yaml_reason(error)) from None


def yaml_reason(error: yaml.YAMLError) -> str:
    """Return an error in a YAML file as one line."""
    mark, problem = getattr(error, 'problem_mark', None), getattr(error, 'problem', None)
    if isinstance(error, yaml.reader.ReaderError):
        return f'byte {error.position} cannot be read ({error.reason}): save the file as UTF-8 text'
    if mark is None or not problem:
        return f'is not YAML ({" ".join(str(error).split())})'
    tabs = '; indent with spaces' if "'\\t'" in problem else ''
    return f'line {mark.line + 1}, column {mark.column + 1}: {problem}{tabs}'


def _marked(content: dict[Any, Any], path: str, found: list[str]) -> dict[Any, Any]:
    """Return a copy in which each section has one parameter with the section's number. Append names to ``found``."""
    copy = {}
    for key, value in content.items():
        if key == SECTION:
            copy[key] = {f'section_{len(found)}': len(found)}
            found.append(path)
        elif isinstance(value, dict):
            copy[key] = _marked(value, f'{path}/{str(key).strip("/")}', found)
    return copy


def problems(node: Node, chosen: Parameters) -> list[str]:
    """Return a warning for each value given to a node that has no effect or probably not the intended one."""
    topics = []
    for prefix in [f'{name}/' for name in chosen.cameras] or ['']:
        topics += [transport_topic(node, f'{prefix}image', transport) for transport in OWN_TYPES]
        topics += [transport_topic(node, f'{prefix}depth', transport) for transport in OWN_TYPES]
        topics.append(f'{prefix}camera_info')
    return [*unknown(given_values(node), map(node.resolve_topic_name, topics)), *doubts(chosen)]
