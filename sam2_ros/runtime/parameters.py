"""The parameters of the node: name, type, default, range, description and the rules for their values.

This is the only place that describes a parameter. ``ros2 param describe`` and ``sam2_node --help`` read it, and
``make parameters`` writes config/sam2.yaml and the table in the documentation from it.
"""
from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import Field, dataclass, field, fields, replace
from typing import Any

from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor
from rclpy.exceptions import InvalidTopicNameException
from rclpy.node import Node
from rclpy.parameter import Parameter as RosParameter
from rclpy.validate_topic_name import validate_topic_name

MODEL, LIVE, START = 'on configure', 'immediately', 'at startup'  # when a new value takes effect
KINDS = {bool: 'true or false', int: 'a whole number', float: 'a number with a decimal point, such as 2.0',
         str: "text; quote it where YAML would read another type ('0')", tuple: 'a list of names'}
MOST_CLASSES, RESERVED_CLASSES = 254, ('background', 'unlabeled')  # the class image has 8 bits
OF_EVERY_NODE = ('use_sim_time', 'start_type_description_service')
POLICIES = {'history': ('keep_last', 'keep_all', 'system_default'), 'depth': None,
            'reliability': ('reliable', 'best_effort', 'system_default')}
_OVERRIDE = re.compile(r'qos_overrides\.(?P<topic>/[^.]*)\.subscription\.(?P<policy>\w+)')


class ParameterError(ValueError):
    """A parameter that cannot be used; the text names the value, the rule and the cure."""


def _parameter(default: Any, description: str, *, when: str = LIVE, limits: tuple | None = None,
               choices: tuple[str, ...] = (), section: str = '', see: str = '') -> Any:
    """Return a field of ``Parameters``.

    Args:
        default: The default, which sets the type. A tuple stands for a list of names.
        description: What it is, its unit and the special values in words, in whole sentences.
        when: When a new value takes effect: MODEL, LIVE or START.
        limits: (lowest, highest) or (lowest, highest, step), inclusive.
        choices: The values that are allowed. Empty: all.
        section: Title of the section that begins with this parameter.
        see: Page of the documentation with more about it, relative to docs/.
    """
    return field(default=default, metadata={'description': description, 'when': when, 'limits': limits,
                                            'choices': choices, 'section': section, 'see': see})


@dataclass(frozen=True)
class Parameters:
    """Values of the node's parameters at one moment, in the order of the documentation."""

    autostart: bool = _parameter(
        True, 'Configure and activate the node as soon as it runs. false: wait for ros2 lifecycle set NODE configure, '
        'then activate.', when=START, section='Startup')

    model: str = _parameter(
        'nano', 'Model variant: nano (packaged), or sam2_hiera_* or sam2.1_hiera_* with tiny, small, base_plus or '
        'large (downloaded once). Empty: detect the variant from the checkpoint.', when=MODEL, section='Model')
    checkpoint: str = _parameter(
        '', 'Path of a weights file, .pt as published or .safetensors. Empty: the weights that come with the model.',
        when=MODEL, see='reference/sam2_core.md#checkpoints')
    device: str = _parameter(
        '', 'Device that runs the model: cpu, cuda or cuda:N. Empty: cuda if there is a GPU, else cpu.', when=MODEL)
    dtype: str = _parameter('float32', 'Floating-point type in which the model computes.', when=MODEL,
                            choices=('float32', 'bfloat16', 'float16'))
    image_size: int = _parameter(
        0, 'Side of the square to which images are resized for the model, in pixels. 0: the size the model was '
        'trained with.', when=MODEL, limits=(0, 4096, 32))
    compile: bool = _parameter(
        False, 'Compile the model when it is loaded. Meant for a GPU: configuring takes minutes, each image less time. '
        'Needs a C compiler.', when=MODEL)
    memory_pooling: int = _parameter(
        1, 'Average memory tokens over n x n blocks before cross-attention, an approximation. 1: off. 2: faster, less '
        'accurate.', when=MODEL, limits=(1, 2), see='reference/benchmarks.md#approximations')
    int8_encoder: bool = _parameter(
        False, 'Run the image encoder in 8-bit integers, an approximation. Only on a CPU with dtype float32.',
        when=MODEL, see='reference/benchmarks.md#approximations')

    image_transport: str = _parameter(
        'raw', 'Transport of the camera images. raw: sensor_msgs/Image on image. compressed: '
        'sensor_msgs/CompressedImage on image/compressed.', when=MODEL, choices=('raw', 'compressed'),
        section='Cameras')
    cameras: tuple[str, ...] = _parameter(
        (), 'Names of the cameras. Each camera has its own topics, NAME/image and ~/NAME/..., and its own objects; all '
        'of them share the model. Empty: one camera, on image and ~/...', when=START)
    on_time_jump: str = _parameter(
        'keep', 'What to do with the objects when image stamps jump back by more than a second, as when a bag '
        'restarts. keep: keep tracking them. reset: forget them all.', choices=('keep', 'reset'))

    max_objects: int = _parameter(
        32, 'Maximum number of objects tracked at a time in each camera; prompts for more are refused.',
        limits=(1, 65535), section='Prompts')
    prompt_timeout: float = _parameter(
        5.0, 'Seconds of wall-clock time a prompt waits for its image before it is refused.', limits=(0.1, 600.0))
    history_seconds: float = _parameter(
        2.0, 'Seconds of image history to keep; prompts drawn on older images are refused. 0: no history.',
        limits=(0.0, 60.0))
    history_bytes: int = _parameter(
        268435456, 'Maximum size of the image history of each camera, with its depth, in bytes; the oldest images are '
        'dropped first. 0: no history.', limits=(0, 2**40))
    catch_up_images: int = _parameter(
        4, 'Number of stored images a late prompt is tracked through to catch up, one per live image. 0: join the '
        'live stream without catching up.', limits=(0, 1000))

    lost_after: float = _parameter(
        2.0, 'Seconds, by image stamps, that an object stays OCCLUDED before it is LOST.',
        limits=(0.0, 1e6), section='Track states')
    forget_after: float = _parameter(
        0.0, 'Seconds, by image stamps, that an object may be OCCLUDED or LOST before it is forgotten. 0: never.',
        limits=(0.0, 1e6))
    reappear_visibility: float = _parameter(
        0.7, 'Visibility at or above which an occluded or lost object is TRACKED again at once.', limits=(0.5, 1.0))
    reappear_images: int = _parameter(
        3, 'Consecutive images in which an occluded or lost object must be visible before it is TRACKED again, where '
        'reappear_visibility is not reached.', limits=(1, 1000))

    use_depth: bool = _parameter(
        True, 'Subscribe to depth and camera_info, and publish the positions of objects in metres.', when=MODEL,
        section='Depth: sensor_msgs/Image on depth, registered to the image, and CameraInfo on camera_info',
        see='how-to/depth.md')
    rectified: bool = _parameter(
        False, 'true: the image and its depth are rectified (image_rect); P of camera_info is used instead of K and D.')
    depth_tolerance: float = _parameter(
        0.02, 'Maximum difference between the stamps of an image and its depth, in seconds.', limits=(0.0, 10.0))
    depth_wait: float = _parameter(
        0.05, 'Maximum time a finished result waits for the depth of its image, in seconds. Applies only while depth '
        'images arrive.', limits=(0.0, 10.0))
    depth_min: float = _parameter(
        0.1, 'Minimum valid depth in metres; nearer readings are ignored.', limits=(0.0, 1000.0))
    depth_max: float = _parameter(
        10.0, 'Maximum valid depth in metres; farther readings are ignored.', limits=(0.0, 1000.0))
    edge_erosion: int = _parameter(
        2, 'Pixels to ignore along the edge of a mask, where depth readings mix object and background. 0: none.',
        limits=(0, 100))
    cloud_stride: int = _parameter(
        2, 'Publish every n-th row and column of the depth image in ~/points and ~/background_points. 1: all.',
        limits=(1, 100))

    detections_topic: str = _parameter(
        '', 'Topic of vision_msgs/Detection2DArray whose boxes become prompts; with several cameras, relative to each '
        'camera. Empty: none.', when=MODEL, section='Detector',
        see='how-to/detectors.md')
    detections_classes: tuple[str, ...] = _parameter((), 'Classes of detections to track. Empty: all.')
    detections_min_score: float = _parameter(
        0.5, 'Minimum score of a detection; detections with lower scores are ignored.', limits=(0.0, 1.0))
    detections_iou: float = _parameter(
        0.5, 'IoU of the boxes at or above which a detection and a known object, or two detections, count as the same '
        'object.', limits=(0.0, 1.0))

    latency_target: float = _parameter(
        0.0, 'Target latency from image stamp to published result, in seconds. 0: none.', limits=(0.0, 60.0),
        section='Latency', see='how-to/tune.md#load-shedding')
    shed_load: bool = _parameter(
        True, 'Reduce the load while latency_target is exceeded: stop overlay and clouds, then attend to half of the '
        'recent frames, then skip every second image. false: only warn on /diagnostics.')

    class_names: tuple[str, ...] = _parameter(
        (), 'Labels in the order of their values in ~/class_image, from 1. Other labels get the next free values.',
        section='Outputs')
    overlay_opacity: float = _parameter(
        0.45, 'Opacity of the object colours in ~/overlay. 0: outlines only.', limits=(0.0, 1.0))
    segment_all_seconds: float = _parameter(
        5.0, 'Maximum duration of a ~/segment_all call that sets no time_limit, in seconds.', limits=(0.01, 600.0))

    @classmethod
    def declare(cls, node: Node) -> None:
        """Declare every parameter on a node, with the value the node was given at startup or the default.

        Raises:
            ParameterError: A value, or a combination of values, cannot work.
        """
        names = {item.name for item in fields(cls)}
        given = given_values(node)
        check_overrides(given)
        chosen = with_values(cls(), {name: value for name, value in given.items() if name in names})
        for item in fields(cls):
            value = getattr(chosen, item.name)
            # rclpy infers the type from the value, and an empty list has no type: declare one empty name instead
            node.declare_parameter(item.name, ([*value] or ['']) if isinstance(value, tuple) else value,
                                   _descriptor(item), ignore_override=True)

    @classmethod
    def read(cls, node: Node) -> Parameters:
        """Return the current values of a node's parameters."""
        values: dict[str, Any] = {item.name: node.get_parameter(item.name).value for item in fields(cls)}
        lists = {name: tuple(filter(None, value)) for name, value in values.items() if isinstance(value, list)}
        return cls(**{**values, **lists})


def given_values(node: Node) -> dict[str, Any]:
    """Return the values a node was given at startup (files, command line, constructor), whether declared or not.

    The value of an empty list is None: rcl gives it no type.
    """
    return {name: parameter.value for name, parameter in node._parameter_overrides.items()}


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
            raise ParameterError(_unknown(change.name))
        if change.name == 'use_sim_time' and change.type_ not in (RosParameter.Type.BOOL, RosParameter.Type.NOT_SET):
            raise ParameterError(f'use_sim_time {_shown(change.value)}: must be {KINDS[bool]}')
        if change.type_ == RosParameter.Type.NOT_SET:
            raise ParameterError(f'{change.name}: cannot be deleted; set it to its default'
                                 + (f' {_shown(known[change.name].default)}' if change.name in known else ''))
        when = known[change.name].metadata['when'] if change.name in known else LIVE
        if when == START:
            raise ParameterError(f'{change.name} {_shown(change.value)}: read-only, takes effect at startup; set '
                                 f'it in the parameters file or with -p')
        if when == MODEL and configured:
            raise ParameterError(f'{change.name} {_shown(change.value)}: takes effect when the node is configured; '
                                 f'deactivate it and clean it up first')
    ours = {change.name: change.value for change in changes if change.name in known}
    with_values(Parameters.read(node), ours)
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
    return [_unknown(name, known, ' is ignored') for name in names if name not in known]


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
            raise ParameterError(f'{name} {_shown(value)}: must be one of {", ".join(choices)}')
        if not choices and (type(value) is not int or not 0 <= value < 2**31):
            raise ParameterError(f'{name} {_shown(value)}: must be a whole number, 0 or more')


def doubts(chosen: Parameters) -> list[str]:
    """Return a warning for each combination of values that is valid but probably not intended."""
    found = []
    if chosen.detections_classes and not chosen.detections_topic:
        found.append(f'detections_classes {_shown(chosen.detections_classes)} has no effect without detections_topic')
    if chosen.use_depth and 0 < chosen.latency_target <= chosen.depth_wait:
        found.append(f'depth_wait {chosen.depth_wait:g} is not below latency_target {chosen.latency_target:g}: results '
                     f'that wait for their depth are late; lower depth_wait')
    return found


def _checked(name: str, value: Any) -> Any:
    """Return a value in the type that ``Parameters`` stores. Raise ParameterError if it cannot be used."""
    item = next((item for item in fields(Parameters) if item.name == name), None)
    if item is None:
        raise ParameterError(_unknown(name))
    kind, rules = type(item.default), item.metadata
    if kind is tuple:
        value = _names(name, value)
    if type(value) is not kind:
        raise ParameterError(f'{name} {_shown(value)}: must be {KINDS[kind]}')
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
        raise ParameterError(f'{name} {_shown(value)}: must be {KINDS[tuple]}')
    names = tuple(value)
    if names == ('',):  # the form in which declare sets an empty list
        return ()
    if '' in names:
        raise ParameterError(f'{name} {_shown(names)}: name {names.index("") + 1} is empty; leave it out')
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
    if 0 < chosen.forget_after < chosen.lost_after:
        return (f'forget_after {chosen.forget_after:g}: must be at least lost_after {chosen.lost_after:g}, or 0 for '
                f'never; set both at once')
    if chosen.int8_encoder and (chosen.dtype != 'float32' or chosen.device.startswith('cuda')):
        return (f"int8_encoder with dtype '{chosen.dtype}' and device '{chosen.device}': must be float32 on the cpu; "
                f'set int8_encoder to false')
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


def _unknown(name: str, known: Iterable[str] = (), effect: str = '') -> str:
    """Return a message about an unknown parameter, with the closest known name."""
    near = difflib.get_close_matches(str(name), [*known] or [item.name for item in fields(Parameters)], 1)
    cure = f'did you mean {near[0]}?' if near else 'see docs/reference/parameters.md'
    return f"unknown parameter '{name}'{effect}: {cure}"


def allowed(item: Field) -> str:
    """Return the range or the choices of a parameter in words, or '' if every value of its type is allowed."""
    if item.metadata['choices']:
        return ', '.join(item.metadata['choices'])
    if not item.metadata['limits']:
        return ''
    lowest, highest, *step = item.metadata['limits']
    return f'{lowest:.15g} to {highest:.15g}' + (f' in steps of {step[0]}' if step else '')


def _shown(value: Any) -> str:
    """Return a value in the form in which a user writes it."""
    if isinstance(value, bool):
        return str(value).lower()
    if value is None:
        return '[]'
    if isinstance(value, str):
        return f"'{value}'"
    return f'[{", ".join(map(_shown, value))}]' if isinstance(value, Iterable) else repr(value)


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
