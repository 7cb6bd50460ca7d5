"""Every parameter of the node, once: name, type, default, range, description, and the rules for its value."""
from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor
from rclpy.exceptions import InvalidTopicNameException
from rclpy.node import Node
from rclpy.parameter import Parameter as RosParameter
from rclpy.validate_topic_name import validate_topic_name

MODEL, LIVE, START = 'at configure', 'at once', 'at start'  # when a new value takes effect
KINDS = {bool: 'true or false', int: 'a whole number', float: 'a number with a decimal point, as 2.0',
         str: "text, in quotes where YAML takes it for something else ('0')", tuple: 'a list of names'}
MOST_CLASSES, RESERVED_CLASSES = 254, ('background', 'unlabeled')  # the class image has 8 bits
OF_EVERY_NODE = ('use_sim_time', 'start_type_description_service')
POLICIES = {'history': ('keep_last', 'keep_all', 'system_default'), 'depth': None,
            'reliability': ('reliable', 'best_effort', 'system_default')}
_OVERRIDE = re.compile(r'qos_overrides\.(?P<topic>/[^.]*)\.subscription\.(?P<policy>\w+)')


class ParameterError(ValueError):
    """A parameter that cannot be used; the text names the value, the rule and the cure."""


def _parameter(default, description: str, *, when: str = LIVE, limits: tuple | None = None,
               choices: tuple[str, ...] = ()):
    """limits: (lowest, highest) or (lowest, highest, step), inclusive."""
    return field(default=default, metadata={'description': description, 'when': when, 'limits': limits,
                                            'choices': choices})


@dataclass(frozen=True)
class Parameters:
    """The node's parameters at one moment. What there is to say about them is said here and nowhere else."""

    model: str = _parameter(
        'nano', 'Model variant: nano (packaged) or sam2_hiera_* and sam2.1_hiera_* with tiny, small, base_plus or '
        'large (fetched once). Empty: recognised from the checkpoint.', when=MODEL)
    checkpoint: str = _parameter(
        '', 'Weights from this local file (.pt as published, or .safetensors). Empty: those of the model.', when=MODEL)
    device: str = _parameter('', 'cpu, cuda or cuda:N. Empty: cuda when there is a GPU, else cpu.', when=MODEL)
    dtype: str = _parameter('float32', 'Numbers the model computes in.', when=MODEL,
                            choices=('float32', 'bfloat16', 'float16'))
    image_size: int = _parameter(0, 'Side of the square the model sees, pixels. 0: the one it was trained with.',
                                 when=MODEL, limits=(0, 4096, 32))
    compile: bool = _parameter(
        False, 'Compile the model when it is loaded, for a GPU: takes minutes, and every image less time.', when=MODEL)
    memory_pooling: int = _parameter(
        1, 'An approximation: objects look at the means of n x n remembered places. 1: off, 2: faster.', when=MODEL,
        limits=(1, 2))
    int8_encoder: bool = _parameter(
        False, 'An approximation: the image encoder computes in 8-bit integers, on a CPU in float32.', when=MODEL)
    image_transport: str = _parameter(
        'raw', 'raw: sensor_msgs/Image on image. compressed: sensor_msgs/CompressedImage on image/compressed.',
        when=MODEL, choices=('raw', 'compressed'))
    cameras: tuple[str, ...] = _parameter(
        (), 'Names of the cameras: each has its topics, NAME/image and ~/NAME/..., and its objects; they share the '
        'model. Empty: one camera, on image and ~/...', when=START)
    max_objects: int = _parameter(32, 'Objects tracked at a time in each camera; a prompt for one more is refused.',
                                  limits=(1, 65535))
    lost_after: float = _parameter(
        2.0, 'Seconds (of image stamps) out of sight after which an occluded object is called lost.',
        limits=(0.0, 1e6))
    forget_after: float = _parameter(
        0.0, 'Seconds (of image stamps) out of sight after which an object is forgotten. 0: never.', limits=(0.0, 1e6))
    reappear_visibility: float = _parameter(
        0.7, 'Visibility from which an object out of sight is called tracked again at once.', limits=(0.5, 1.0))
    reappear_images: int = _parameter(
        3, 'Images in a row in which an object out of sight is found, however surely, until it is called tracked '
        'again.', limits=(1, 1000))
    history_seconds: float = _parameter(
        2.0, 'How old the image may be that a prompt was drawn on, seconds; so long images are kept.',
        limits=(0.0, 60.0))
    history_bytes: int = _parameter(
        268435456, 'Most bytes of images kept for each camera; the oldest go first.', limits=(0, 2**40))
    catch_up_images: int = _parameter(
        4, 'Images between that of a late prompt and the newest that are gone through; one for each live image.',
        limits=(0, 1000))
    prompt_timeout: float = _parameter(
        5.0, 'Seconds (of the wall clock) a prompt waits for an image before it is refused.', limits=(0.1, 600.0))
    on_time_jump: str = _parameter(
        'keep', 'What happens to the objects when image stamps jump back by more than a second, as when a bag starts '
        'again.', choices=('keep', 'reset'))
    use_depth: bool = _parameter(
        True, 'Listen to depth and camera_info and say where the objects are, in metres.', when=MODEL)
    rectified: bool = _parameter(
        False, 'The image and its depth are rectified (image_rect): the P of camera_info holds for them, not K and D.')
    depth_tolerance: float = _parameter(
        0.02, 'Most seconds between the stamps of an image and of its depth.', limits=(0.0, 10.0))
    depth_wait: float = _parameter(
        0.05, 'Most seconds that a finished result waits for the depth of its image, while depth arrives at all.',
        limits=(0.0, 10.0))
    depth_min: float = _parameter(0.1, 'Nearer depth is not believed, metres.', limits=(0.0, 1000.0))
    depth_max: float = _parameter(10.0, 'Farther depth is not believed, metres.', limits=(0.0, 1000.0))
    edge_erosion: int = _parameter(
        2, 'Pixels that are left out along the edge of a mask, where depth belongs to neither side.', limits=(0, 100))
    cloud_stride: int = _parameter(
        2, 'Every how many-th row and column of the depth image becomes a point of ~/points and ~/background_points.',
        limits=(1, 100))
    class_names: tuple[str, ...] = _parameter(
        (), 'Labels in the order of their value in ~/class_image, from 1. A label not listed gets the next value free.')
    detections_topic: str = _parameter(
        '', 'vision_msgs/Detection2DArray whose boxes become prompts. Empty: none. With several cameras, relative to '
        'the camera.', when=MODEL)
    detections_classes: tuple[str, ...] = _parameter((), 'Classes of detections that are tracked. Empty: all.')
    detections_min_score: float = _parameter(0.5, 'Detections with a lower score are left alone.', limits=(0.0, 1.0))
    detections_iou: float = _parameter(
        0.5, 'A detection that overlaps a known object by so much (IoU of the boxes) is that object.',
        limits=(0.0, 1.0))
    segment_all_seconds: float = _parameter(
        5.0, 'Seconds that ~/segment_all works at most, when the call does not say.', limits=(0.01, 600.0))
    latency_target: float = _parameter(
        0.0, 'Seconds from the stamp of an image to its result that the node is to hold. 0: none.',
        limits=(0.0, 60.0))
    shed_load: bool = _parameter(
        True, 'When latency_target is not held: leave out overlay and clouds, then half of the memory frames, then '
        'every second image. false: only say so in /diagnostics.')
    overlay_opacity: float = _parameter(0.45, 'How strongly an object is coloured in the overlay; 0: outline only.',
                                        limits=(0.0, 1.0))
    autostart: bool = _parameter(True, 'Configure and activate the node as soon as it spins.', when=START)

    @classmethod
    def declare(cls, node: Node) -> None:
        """Declare every parameter on a node, with the value that the node was given or the default.

        Raise ParameterError if a value, or a combination of values, cannot work.
        """
        names = {item.name for item in fields(cls)}
        given = given_values(node)
        check_overrides(given)
        chosen = with_values(cls(), {name: value for name, value in given.items() if name in names})
        for item in fields(cls):
            value = getattr(chosen, item.name)
            # rclpy infers the type from the value, and an empty list has none: one empty name stands for no name
            node.declare_parameter(item.name, ([*value] or ['']) if isinstance(value, tuple) else value,
                                   _descriptor(item), ignore_override=True)

    @classmethod
    def read(cls, node: Node) -> Parameters:
        """Return the present values of a node's parameters."""
        values = {item.name: node.get_parameter(item.name).value for item in fields(cls)}
        return cls(**{name: tuple(filter(None, value)) if isinstance(value, list) else value
                      for name, value in values.items()})


def given_values(node: Node) -> dict[str, Any]:
    """Return the values that a node was given at start (files, command line, constructor), known or not.

    rcl gives an empty list no type: its value is None.
    """
    return {name: parameter.value for name, parameter in node._parameter_overrides.items()}


def with_values(parameters: Parameters, values: Mapping[str, Any]) -> Parameters:
    """Return the parameters with some values changed. Raise ParameterError if any cannot be used."""
    changed = replace(parameters, **{name: _checked(name, value) for name, value in values.items()
                                     if name not in OF_EVERY_NODE})
    if reason := _conflict(changed):
        raise ParameterError(reason)
    return changed


def accepted(changes: Sequence[RosParameter], node: Node, configured: bool) -> list[RosParameter]:
    """Return the changes as rclpy can set them, all at once. Raise ParameterError if one of them cannot be set.

    configured: whether there is a model, whose parameters cannot change.
    """
    known = {item.name: item for item in fields(Parameters)}
    for change in changes:
        if not node.has_parameter(change.name):
            raise ParameterError(_unknown(change.name))
        if change.name == 'use_sim_time' and change.type_ not in (RosParameter.Type.BOOL, RosParameter.Type.NOT_SET):
            raise ParameterError(f'use_sim_time {_shown(change.value)}: must be {KINDS[bool]}')
        if change.type_ == RosParameter.Type.NOT_SET:
            raise ParameterError(f'{change.name}: cannot be deleted; set it to its default'
                                 + (f' {_shown(known[change.name].default)}' if change.name in known else ''))
        when = known[change.name].metadata['when'] if change.name in known else LIVE
        if when == START:
            raise ParameterError(f'{change.name} {_shown(change.value)}: read-only, takes effect at start; give it '
                                 f'in the parameters file or with -p')
        if when == MODEL and configured:
            raise ParameterError(f'{change.name} {_shown(change.value)}: takes effect when the node is configured; '
                                 f'deactivate it and clean it up first')
    ours = {change.name: change.value for change in changes if change.name in known}
    with_values(Parameters.read(node), ours)
    # an empty list comes with any type or none
    return [RosParameter(change.name, RosParameter.Type.STRING_ARRAY, [])
            if change.name in ours and isinstance(known[change.name].default, tuple) and not change.value else change
            for change in changes]


def unknown(names: Iterable[str], topics: Iterable[str] = ()) -> list[str]:
    """Return a sentence for each name that is no parameter of the node: a typo, which ROS would ignore in silence.

    topics: those whose QoS can be overridden, in full.
    """
    known = {item.name for item in fields(Parameters)} | {*OF_EVERY_NODE}
    known |= {f'qos_overrides.{topic}.subscription.{policy}' for topic in topics for policy in POLICIES}
    return [f'{_unknown(name, known)}; it is ignored' for name in names if name not in known]


def check_overrides(values: Mapping[str, Any]) -> None:
    """Raise ParameterError if a QoS override has a value that rclpy would fail on when the node is activated."""
    for name, value in values.items():
        found = _OVERRIDE.fullmatch(name)
        if found is None or found['policy'] not in POLICIES:
            continue
        choices = POLICIES[found['policy']]
        if choices and value not in choices:
            raise ParameterError(f'{name} {_shown(value)}: must be one of {", ".join(choices)}')
        if not choices and (type(value) is not int or not 0 <= value < 2**31):
            raise ParameterError(f'{name} {_shown(value)}: must be a whole number, 0 or more')


def doubts(chosen: Parameters) -> list[str]:
    """Return a sentence for each combination of values that works, but hardly as it is meant."""
    found = []
    if chosen.detections_classes and not chosen.detections_topic:
        found.append(f'detections_classes {_shown(chosen.detections_classes)} has no effect without detections_topic')
    if chosen.use_depth and 0 < chosen.latency_target <= chosen.depth_wait:
        found.append(f'depth_wait {chosen.depth_wait:g} is not below latency_target {chosen.latency_target:g}: a '
                     f'result that waits for its depth is late; lower depth_wait')
    return found


def _checked(name: str, value: Any) -> Any:
    """Return a value as ``Parameters`` has it. Raise ParameterError if it cannot be used."""
    item = next((item for item in fields(Parameters) if item.name == name), None)
    if item is None:
        raise ParameterError(_unknown(name))
    kind, rules = type(item.default), item.metadata
    if kind is tuple:
        value = _names(name, value)
    if type(value) is not kind:
        raise ParameterError(f'{name} {_shown(value)}: must be {KINDS[kind]}')
    if rules['choices'] and value not in rules['choices']:
        raise ParameterError(f"{name} '{value}': must be one of {', '.join(rules['choices'])}")
    if rules['limits']:
        lowest, highest, *step = rules['limits']
        if not lowest <= value <= highest or step and (value - lowest) % step[0]:
            steps = f', in steps of {step[0]}' if step else ''
            raise ParameterError(f'{name} {value:g}: must lie between {lowest:g} and {highest:g}{steps}')
    if kind is str and '\0' in value:
        raise ParameterError(f'{name} {value!r}: must not contain a null character')
    return value


def _names(name: str, value: Any) -> tuple[str, ...]:
    """Return the names of a list. Raise ParameterError if it is no list of names, or cannot be that of ``name``."""
    value = () if value is None else value
    if isinstance(value, str) or not isinstance(value, Iterable) or not all(isinstance(part, str) for part in value):
        raise ParameterError(f'{name} {_shown(value)}: must be {KINDS[tuple]}')
    names = tuple(value)
    if names == ('',):  # an empty list, as declare and config/sam2.yaml have it
        return ()
    if '' in names:
        raise ParameterError(f'{name} {_shown(names)}: name {names.index("") + 1} is empty; leave it out')
    twice = next((part for part in names if names.count(part) > 1), None)
    if twice is not None and name in ('cameras', 'class_names'):
        raise ParameterError(f"{name} '{twice}': named twice")
    for part in names if name == 'cameras' else ():
        if not re.fullmatch(r'[A-Za-z][A-Za-z0-9_]*', part):
            raise ParameterError(f"cameras '{part}': a name is made of letters, digits and _, and begins with a letter")
    if name == 'class_names':
        if reserved := next((part for part in names if part in RESERVED_CLASSES), None):
            raise ParameterError(f"class_names '{reserved}': reserved; leave it out")
        if len(names) > MOST_CLASSES:
            raise ParameterError(f'class_names: {len(names)} names, must be at most {MOST_CLASSES}')
    return names


def _conflict(chosen: Parameters) -> str:
    """Return why these values cannot work together; empty if they can."""
    if chosen.depth_min >= chosen.depth_max:
        return f'depth_min {chosen.depth_min:g}: must be below depth_max {chosen.depth_max:g}'
    if 0 < chosen.forget_after < chosen.lost_after:
        return (f'forget_after {chosen.forget_after:g}: must be at least lost_after {chosen.lost_after:g}, or 0 for '
                f'never; set both at once')
    if chosen.int8_encoder and (chosen.dtype != 'float32' or chosen.device.startswith('cuda')):
        return (f"int8_encoder with dtype '{chosen.dtype}' and device '{chosen.device}': must be float32 on the cpu; "
                f'leave int8_encoder out')
    if chosen.detections_topic:
        if chosen.cameras and chosen.detections_topic.startswith('/'):
            return (f"detections_topic '{chosen.detections_topic}': with several cameras it is relative to each; "
                    f'leave out the first /, and remap {chosen.cameras[0]}{chosen.detections_topic}')
        for prefix in [f'{name}/' for name in chosen.cameras] or ['']:
            try:
                validate_topic_name(f'{prefix}{chosen.detections_topic}')
            except InvalidTopicNameException as error:
                return f"detections_topic '{chosen.detections_topic}': {' '.join(str(error).split())}"
    return ''


def _unknown(name: str, known: Iterable[str] = ()) -> str:
    near = difflib.get_close_matches(str(name), [*known] or [item.name for item in fields(Parameters)], 1)
    return f"there is no '{name}'; {f'did you mean {near[0]}?' if near else 'see docs/node.md'}"


def _shown(value: Any) -> str:
    """Return a value as a user writes it."""
    if isinstance(value, bool):
        return str(value).lower()
    if value is None:
        return '[]'
    if isinstance(value, str):
        return f"'{value}'"
    return f'[{", ".join(map(_shown, value))}]' if isinstance(value, Iterable) else repr(value)


def _descriptor(item) -> ParameterDescriptor:
    rules = item.metadata
    descriptor = ParameterDescriptor(description=f'{rules["description"]} (Takes effect {rules["when"]}.)',
                                     read_only=rules['when'] == START)
    if rules['choices']:
        descriptor.additional_constraints = f'one of: {", ".join(rules["choices"])}'
    if rules['limits']:
        lowest, highest, *step = rules['limits']
        if isinstance(item.default, float):
            descriptor.floating_point_range = [FloatingPointRange(from_value=lowest, to_value=highest)]
        else:
            descriptor.integer_range = [IntegerRange(from_value=lowest, to_value=highest, step=step[0] if step else 1)]
    return descriptor
