"""The node's parameters from a file, read as a node of some name reads it."""
from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import yaml

from sam2_ros.node_arguments import ARGUMENT_ERRORS, node_as_given, problems, sections, why
from sam2_ros.parameters import ParameterError, Parameters, doubts, with_values

NODE = '/sam2'


def read_parameters(path: Path, node: str = NODE) -> tuple[Parameters, list[str]]:
    """Return the parameters that a node of this full name takes from a file, and what is given without effect.

    A file without sections for nodes has the form NAME: VALUE. What a file does not say has its default. Raise
    ParameterError.
    """
    try:
        content = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ParameterError(f'parameters {path}: {getattr(error, "strerror", None) or error}') from None
    try:
        if content is None or isinstance(content, dict) and not _has_sections(content):
            chosen = _plain(content or {})
            return chosen, doubts(chosen)
        if not isinstance(content, dict):
            raise ParameterError('must have the form NAME: VALUE, as config/sam2.yaml')
        namespace, _, name = node.rpartition('/')
        with node_as_given(['--ros-args', '--params-file', str(path)], name, namespace) as given:
            found = sections(path, name, namespace)
            if not found.applied:
                raise ParameterError(f'no section for {given.get_fully_qualified_name()} (it has '
                                     f'{", ".join(found.others)}): name the node with --node')
            Parameters.declare(given)
            chosen = Parameters.read(given)
            return chosen, problems(given, chosen)
    except ARGUMENT_ERRORS as error:
        raise ParameterError(f'parameters {path}: {why(error)}') from None


def _has_sections(content: dict) -> bool:
    return any(key == 'ros__parameters' or isinstance(value, dict) and _has_sections(value)
               for key, value in content.items())


def _plain(content: dict) -> Parameters:
    """Return parameters from NAME: VALUE, where YAML's 1 stands for 1.0 as well."""
    doubles = {item.name for item in fields(Parameters) if isinstance(item.default, float)}
    return with_values(Parameters(), {name: float(value) if name in doubles and type(value) is int else value
                                      for name, value in content.items()})
