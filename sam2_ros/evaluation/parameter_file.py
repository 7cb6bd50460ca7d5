"""The node's parameters from a file, checked as the node checks them."""
from __future__ import annotations

import difflib
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import yaml

from sam2_ros.parameters import Parameters

_FIELDS = {item.name: item for item in fields(Parameters)}


class ParameterError(ValueError):
    """A parameter that cannot be used; the text names the value and the cure."""


def read_parameters(path: Path) -> Parameters:
    """The parameters of a ROS parameter file (NODE: ros__parameters: ...), or of plain NAME: VALUE; the rest are
    defaults. ParameterError."""
    try:
        content = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ParameterError(f'parameters {path}: {getattr(error, "strerror", None) or error}') from None
    if content is None:
        return Parameters()
    if not isinstance(content, dict):
        raise ParameterError(f'parameters {path}: must have the form NAME: VALUE, as config/sam2.yaml')
    nodes = [part['ros__parameters'] for part in content.values()
             if isinstance(part, dict) and isinstance(part.get('ros__parameters'), dict)]
    if len(nodes) > 1:
        raise ParameterError(f'parameters {path}: of {len(nodes)} nodes ({", ".join(map(str, content))}): must be of '
                             f'one')
    try:
        return with_values(Parameters(), nodes[0] if nodes else content)
    except ParameterError as error:
        raise ParameterError(f'parameters {path}: {error}') from None


def with_values(parameters: Parameters, values: dict[str, Any]) -> Parameters:
    """The parameters with these changed. ParameterError."""
    return replace(parameters, **{name: _checked(name, value) for name, value in values.items()
                                  if name != 'use_sim_time'})


def _checked(name: str, value: Any) -> Any:
    if name not in _FIELDS:
        near = difflib.get_close_matches(str(name), _FIELDS, 1)
        raise ParameterError(f"there is no '{name}'; {f'did you mean {near[0]}?' if near else 'see docs/node.md'}")
    item = _FIELDS[name]
    kind, rules = type(item.default), item.metadata
    if kind is float and type(value) is int:
        value = float(value)
    if kind is tuple and isinstance(value, list) and all(isinstance(part, str) for part in value):
        value = tuple(filter(None, value))  # the list of one empty name stands for none
    if type(value) is not kind:
        raise ParameterError(f'{name} {value!r}: must be {"a list of names" if kind is tuple else kind.__name__}')
    if rules['choices'] and value not in rules['choices']:
        raise ParameterError(f"{name} '{value}': must be one of {', '.join(rules['choices'])}")
    if rules['limits']:
        lowest, highest, *step = rules['limits']
        if not lowest <= value <= highest or step and (value - lowest) % step[0]:
            steps = f', in steps of {step[0]}' if step else ''
            raise ParameterError(f'{name} {value:g}: must lie between {lowest:g} and {highest:g}{steps}')
    return value
