"""Parameters of the node from a YAML file, read and checked as the node does."""
from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml

from sam2_ros.runtime.node_arguments import (
    ARGUMENT_ERRORS,
    SECTION,
    node_as_given,
    problems,
    read_yaml,
    sections,
    why,
    yaml_reason,
)
from sam2_ros.runtime.node_parameters import declare_parameters, read_parameters
from sam2_ros.runtime.parameter_rules import ParameterError, doubts, with_values
from sam2_ros.runtime.parameters import Parameters

NODE = '/sam2'


def read_parameter_file(path: Path, node: str = NODE) -> tuple[Parameters, list[str]]:
    """Return the parameters that a node reads from a file, and warnings about values without effect.

    A file without sections for nodes has the form NAME: VALUE. Parameters that are not in the file have their defaults.

    Args:
        path: The file.
        node: Full name of the node.

    Raises:
        ParameterError: The file or a value in it cannot be used, or no section applies to the node.
    """
    try:
        if not any(map(_has_sections, read_yaml(path))):
            chosen = _plain(path)
            return chosen, doubts(chosen)
        namespace, _, name = node.rpartition('/')
        with node_as_given(['--ros-args', '--params-file', str(path)], name, namespace) as given:
            found = sections(path, name, namespace)
            if not found.applied:
                raise ParameterError(f'no section for {given.get_fully_qualified_name()} (it has '
                                     f'{", ".join(found.others)}): name the node with --node')
            declare_parameters(given)
            chosen = read_parameters(given)
            return chosen, problems(given, chosen)
    except ARGUMENT_ERRORS as error:
        raise ParameterError(f'parameters {path}: {why(error)}') from None


def _has_sections(content: Any) -> bool:
    """Return True if a YAML document has sections for nodes."""
    return isinstance(content, dict) and any(
        key == SECTION or _has_sections(value) for key, value in content.items())


def _plain(path: Path) -> Parameters:
    """Return the parameters of a file of the form NAME: VALUE, in which 1 may stand for 1.0."""
    try:
        content = yaml.safe_load(path.read_bytes()) or {}
    except yaml.YAMLError as error:
        raise ParameterError(yaml_reason(error)) from None
    if not isinstance(content, dict):
        raise ParameterError('must have the form NAME: VALUE, as in config/sam2.yaml')
    for name, value in content.items():
        if isinstance(value, dict) or str(name).startswith('/'):
            raise ParameterError(f"section '{name}' has no {SECTION}: put the parameters under {SECTION}")
        if value is None:
            raise ParameterError(f"'{name}' has no value; give one, or leave it out")
    doubles = {item.name for item in fields(Parameters) if isinstance(item.default, float)}
    return with_values(Parameters(), {name: float(value) if name in doubles and type(value) is int else value
                                      for name, value in content.items()})
