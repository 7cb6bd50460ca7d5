"""Parameters on a node: declare, read and change them."""
from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import Field, fields
from typing import Any

from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor
from rclpy.node import Node
from rclpy.parameter import Parameter as RosParameter

from sam2_ros.runtime.parameter_rules import (
    KINDS,
    OF_EVERY_NODE,
    ParameterError,
    allowed,
    shown,
    unknown_name,
    with_values,
)
from sam2_ros.runtime.parameters import LIVE, MODEL, START, Parameters

POLICIES = {'history': ('keep_last', 'keep_all', 'system_default'), 'depth': None,
            'reliability': ('reliable', 'best_effort', 'system_default')}
_OVERRIDE = re.compile(r'qos_overrides\.(?P<topic>/[^.]*)\.subscription\.(?P<policy>\w+)')


def declare_parameters(node: Node) -> None:
    """Declare every parameter on a node, with the value the node was given at startup or the default.

    Raises:
        ParameterError: A value, or a combination of values, cannot work.
    """
    names = {item.name for item in fields(Parameters)}
    given = given_values(node)
    check_overrides(given)
    chosen = with_values(Parameters(), {name: value for name, value in given.items() if name in names})
    for item in fields(Parameters):
        value = getattr(chosen, item.name)
        # rclpy infers the type from the value, and an empty list has no type: declare one empty name instead
        node.declare_parameter(item.name, ([*value] or ['']) if isinstance(value, tuple) else value,
                               _descriptor(item), ignore_override=True)


def read_parameters(node: Node) -> Parameters:
    """Return the current values of a node's parameters."""
    values: dict[str, Any] = {item.name: node.get_parameter(item.name).value for item in fields(Parameters)}
    lists = {name: tuple(filter(None, value)) for name, value in values.items() if isinstance(value, list)}
    return Parameters(**{**values, **lists})


def given_values(node: Node) -> dict[str, Any]:
    """Return the values a node was given at startup (files, command line, constructor), whether declared or not.

    The value of an empty list is None: rcl gives it no type.
    """
    return {name: parameter.value for name, parameter in node._parameter_overrides.items()}


def accepted(changes: Sequence[RosParameter], node: Node, configured: bool) -> list[RosParameter]:
    """Return the changes in the form in which rclpy can set all of them at once.

    Args:
        changes: The parameters to set, as rclpy received them.
        node: The node on which they are declared.
        configured: True while a model is loaded: parameters that take effect on configure cannot change then.

    Raises:
        ParameterError: One of the changes is not possible; nothing may be set.
    """
    known = {item.name: item for item in fields(Parameters)}
    for change in changes:
        if not node.has_parameter(change.name):
            raise ParameterError(unknown_name(change.name))
        if change.name == 'use_sim_time' and change.type_ not in (RosParameter.Type.BOOL, RosParameter.Type.NOT_SET):
            raise ParameterError(f'use_sim_time {shown(change.value)}: must be {KINDS[bool]}')
        if change.type_ == RosParameter.Type.NOT_SET:
            raise ParameterError(f'{change.name}: cannot be deleted; set it to its default'
                                 + (f' {shown(known[change.name].default)}' if change.name in known else ''))
        when = known[change.name].metadata['when'] if change.name in known else LIVE
        if when == START:
            raise ParameterError(f'{change.name} {shown(change.value)}: read-only, takes effect at startup; set '
                                 f'it in the parameters file or with -p')
        if when == MODEL and configured:
            raise ParameterError(f'{change.name} {shown(change.value)}: takes effect when the node is configured; '
                                 f'deactivate it and clean it up first')
    ours = {change.name: change.value for change in changes if change.name in known}
    with_values(read_parameters(node), ours)
    # clients send an empty list with an arbitrary type or with none
    return [RosParameter(change.name, RosParameter.Type.STRING_ARRAY, [])
            if change.name in ours and isinstance(known[change.name].default, tuple) and not change.value else change
            for change in changes]


def unknown(names: Iterable[str], topics: Iterable[str] = ()) -> list[str]:
    """Return a warning for each name that is not a parameter of the node, since ROS ignores typos silently.

    Args:
        names: Names of the values the node was given.
        topics: Full names of the topics whose QoS can be overridden.
    """
    known = {item.name for item in fields(Parameters)} | {*OF_EVERY_NODE}
    known |= {f'qos_overrides.{topic}.subscription.{policy}' for topic in topics for policy in POLICIES}
    return [unknown_name(name, known, ' is ignored') for name in names if name not in known]


def check_overrides(values: Mapping[str, Any]) -> None:
    """Check QoS overrides at startup: rclpy would fail on a bad value only when the node is activated.

    Raises:
        ParameterError: A QoS override has a value that cannot be used.
    """
    for name, value in values.items():
        found = _OVERRIDE.fullmatch(name)
        if found is None or found['policy'] not in POLICIES:
            continue
        choices = POLICIES[found['policy']]
        if choices and value not in choices:
            raise ParameterError(f'{name} {shown(value)}: must be one of {", ".join(choices)}')
        if not choices and (type(value) is not int or not 0 <= value < 2**31):
            raise ParameterError(f'{name} {shown(value)}: must be a whole number, 0 or more')


def _descriptor(item: Field) -> ParameterDescriptor:
    """Return what ``ros2 param describe`` shows of a parameter."""
    rules = item.metadata
    descriptor = ParameterDescriptor(description=f'{rules["description"]} (Takes effect {rules["when"]}.)',
                                     read_only=rules['when'] == START)
    if rules['choices']:
        descriptor.additional_constraints = f'One of: {allowed(item)}.'
    if rules['limits']:
        lowest, highest, *step = rules['limits']
        if isinstance(item.default, float):
            descriptor.floating_point_range = [FloatingPointRange(from_value=lowest, to_value=highest)]
        else:
            descriptor.integer_range = [IntegerRange(from_value=lowest, to_value=highest, step=step[0] if step else 1)]
    return descriptor
