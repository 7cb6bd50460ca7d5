"""Rules for the values of parameters and for their combinations."""
from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import Field, fields, replace
from typing import Any

from rclpy.exceptions import InvalidTopicNameException
from rclpy.validate_topic_name import validate_topic_name

from sam2_ros.runtime.kept_path import kept_path
from sam2_ros.runtime.parameters import Parameters

KINDS = {bool: 'true or false', int: 'a whole number', float: 'a number with a decimal point, such as 2.0',
         str: "text; quote it where YAML would read another type ('0')", tuple: 'a list of names'}
MOST_CLASSES, RESERVED_CLASSES = 254, ('background', 'unlabeled')  # the class image has 8 bits
OF_EVERY_NODE = ('use_sim_time', 'start_type_description_service')


class ParameterError(ValueError):
    """A parameter that cannot be used; the text names the value, the rule and the cure."""


def with_values(parameters: Parameters, values: Mapping[str, Any]) -> Parameters:
    """Return the parameters with some values replaced.

    Raises:
        ParameterError: A name is unknown, or a value or a combination of values cannot be used.
    """
    changed = replace(parameters, **{name: _checked(name, value) for name, value in values.items()
                                     if name not in OF_EVERY_NODE})
    if reason := _conflict(changed):
        raise ParameterError(reason)
    return changed


def doubts(chosen: Parameters) -> list[str]:
    """Return a warning for each combination of values that is valid but probably not intended."""
    found = []
    if chosen.bond_heartbeat_period and chosen.autostart:
        found.append(f'bond_heartbeat_period {chosen.bond_heartbeat_period:g} with autostart: a lifecycle manager '
                     f'cannot configure a node that is active already; set autostart to false')
    if chosen.detections_classes and not chosen.detections_topic:
        found.append(f'detections_classes {shown(chosen.detections_classes)} has no effect without detections_topic')
    if chosen.detections_fit != 'stretch' and not chosen.detections_width:
        found.append(f"detections_fit '{chosen.detections_fit}' has no effect without detections_width and "
                     f'detections_height')
    if chosen.use_depth and 0 < chosen.latency_target <= chosen.depth_wait:
        found.append(f'depth_wait {chosen.depth_wait:g} is not below latency_target {chosen.latency_target:g}: results '
                     f'that wait for their depth are late; lower depth_wait')
    if chosen.target_frame and 0 < chosen.latency_target <= chosen.transform_wait:
        found.append(f'transform_wait {chosen.transform_wait:g} is not below latency_target '
                     f'{chosen.latency_target:g}: results that wait for their transform are late; lower transform_wait')
    if not chosen.use_depth:
        given = {name: value for name in ('target_frame', 'publish_tf') if (value := getattr(chosen, name))}
        found += [f'{name} {shown(value)} has no effect without use_depth: only objects with depth have a position'
                  for name, value in given.items()]
    return found


def allowed(item: Field) -> str:
    """Return the range or the choices of a parameter in words, or '' if every value of its type is allowed."""
    if item.metadata['choices']:
        return ', '.join(item.metadata['choices'])
    if not item.metadata['limits']:
        return ''
    lowest, highest, *step = item.metadata['limits']
    return f'{lowest:.15g} to {highest:.15g}' + (f' in steps of {step[0]}' if step else '')


def _checked(name: str, value: Any) -> Any:
    """Return a value in the type that ``Parameters`` stores. Raise ParameterError if it cannot be used."""
    item = next((item for item in fields(Parameters) if item.name == name), None)
    if item is None:
        raise ParameterError(unknown_name(name))
    kind, rules = type(item.default), item.metadata
    if kind is tuple:
        value = _names(name, value)
    if type(value) is not kind:
        raise ParameterError(f'{name} {shown(value)}: must be {KINDS[kind]}')
    if rules['choices'] and value not in rules['choices']:
        raise ParameterError(f"{name} '{value}': must be one of {allowed(item)}")
    if rules['limits']:
        lowest, highest, *step = rules['limits']
        if not lowest <= value <= highest or step and (value - lowest) % step[0]:
            steps = f', in steps of {step[0]}' if step else ''
            raise ParameterError(f'{name} {value:g}: must lie between {lowest:g} and {highest:g}{steps}')
    if isinstance(value, str) and '\0' in value:
        raise ParameterError(f'{name} {value!r}: must not contain a null character')
    return value


def _names(name: str, value: Any) -> tuple[str, ...]:
    """Return a list of names as a tuple. Raise ParameterError if it is not one or breaks a rule of ``name``."""
    value = () if value is None else value
    if isinstance(value, str) or not isinstance(value, Iterable) or not all(isinstance(part, str) for part in value):
        raise ParameterError(f'{name} {shown(value)}: must be {KINDS[tuple]}')
    names = tuple(value)
    if names == ('',):  # the form in which declare sets an empty list
        return ()
    if '' in names:
        raise ParameterError(f'{name} {shown(names)}: name {names.index("") + 1} is empty; leave it out')
    twice = next((part for part in names if names.count(part) > 1), None)
    if twice is not None and name in ('cameras', 'class_names'):
        raise ParameterError(f"{name} '{twice}': named twice; remove one of them")
    for part in names if name == 'cameras' else ():
        if not re.fullmatch(r'[A-Za-z][A-Za-z0-9_]*', part):
            raise ParameterError(f"cameras '{part}': a name consists of letters, digits and _ and begins with a letter")
    if name == 'class_names':
        if reserved := next((part for part in names if part in RESERVED_CLASSES), None):
            raise ParameterError(f"class_names '{reserved}': reserved; leave it out")
        if len(names) > MOST_CLASSES:
            raise ParameterError(f'class_names: {len(names)} names, must be at most {MOST_CLASSES}')
    return names


def _conflict(chosen: Parameters) -> str:
    """Return why these values cannot work together, or '' if they can."""
    if chosen.depth_min >= chosen.depth_max:
        return f'depth_min {chosen.depth_min:g}: must be below depth_max {chosen.depth_max:g}'
    for name in ('image_transport', 'depth_transport'):
        each: tuple[str, ...] = getattr(chosen, f'{name}s')
        if each and len(each) != len(chosen.cameras):
            return (f'{name}s {shown(each)}: must have one for each of the {len(chosen.cameras)} cameras; with one '
                    f'camera without a name, set {name}')
        for transport in (getattr(chosen, name), *each):
            if not re.fullmatch(r'[A-Za-z][A-Za-z0-9_]*', transport):
                return f"{name} '{transport}': must be the name of a transport, such as raw or compressed"
            if (name, transport) == ('image_transport', 'compressedDepth'):
                return f"{name} '{transport}': has depth, not images; set depth_transport, and {name} to compressed"
    if chosen.intensity_min >= chosen.intensity_max > 0 or chosen.intensity_min > 0 == chosen.intensity_max:
        return (f'intensity_min {chosen.intensity_min}: must be below intensity_max {chosen.intensity_max}; set both '
                f'at once, or both to 0 for a range chosen from the images')
    if 0 < chosen.forget_after < chosen.lost_after:
        return (f'forget_after {chosen.forget_after:g}: must be at least lost_after {chosen.lost_after:g}, or 0 for '
                f'never; set both at once')
    if chosen.int8_encoder and (chosen.dtype != 'float32' or chosen.device.startswith('cuda')):
        return (f"int8_encoder with dtype '{chosen.dtype}' and device '{chosen.device}': must be float32 on the cpu; "
                f'set int8_encoder to false')
    if bool(chosen.detections_width) != bool(chosen.detections_height):
        return (f'detections_width {chosen.detections_width} and detections_height {chosen.detections_height}: both '
                f'must be positive, or both 0; set both at once')
    if chosen.target_frame.startswith('/') or re.search(r'\s', chosen.target_frame):
        return (f"target_frame '{chosen.target_frame}': must be the name of a TF frame, without a leading / and "
                f'without spaces')
    if chosen.keep_objects:
        try:
            kept_path(chosen.keep_objects)
        except ValueError as error:
            return str(error)
    if chosen.detections_topic:
        if chosen.cameras and chosen.detections_topic.startswith('/'):
            return (f"detections_topic '{chosen.detections_topic}': with several cameras it is relative to each; "
                    f'remove the first /, and remap {chosen.cameras[0]}{chosen.detections_topic}')
        for prefix in [f'{name}/' for name in chosen.cameras] or ['']:
            try:
                validate_topic_name(f'{prefix}{chosen.detections_topic}')
            except InvalidTopicNameException as error:
                return f"detections_topic '{chosen.detections_topic}': {' '.join(str(error).split())}"
    return ''


def unknown_name(name: str, known: Iterable[str] = (), effect: str = '') -> str:
    """Return a message about an unknown parameter, with the closest known name."""
    near = difflib.get_close_matches(str(name), [*known] or [item.name for item in fields(Parameters)], 1)
    cure = f'did you mean {near[0]}?' if near else 'see docs/reference/parameters.md'
    return f"unknown parameter '{name}'{effect}: {cure}"


def shown(value: Any) -> str:
    """Return a value in the form in which a user writes it."""
    if isinstance(value, bool):
        return str(value).lower()
    if value is None:
        return '[]'
    if isinstance(value, str):
        return f"'{value}'"
    return f'[{", ".join(map(shown, value))}]' if isinstance(value, Iterable) else repr(value)
