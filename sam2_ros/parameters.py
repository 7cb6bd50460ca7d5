"""Every parameter of the node, once: name, type, default, range, description."""
from __future__ import annotations

import re
from dataclasses import dataclass, field, fields

from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor, SetParametersResult
from rclpy.node import Node
from rclpy.parameter import Parameter as RosParameter

MODEL, LIVE, START = 'at configure', 'at once', 'at start'  # when a new value takes effect


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
        """Declare all of them on a node. Raises rclpy's exceptions when a value given at start is not acceptable."""
        for item in fields(cls):
            default = [*item.default] or [''] if isinstance(item.default, tuple) else item.default
            node.declare_parameter(item.name, default, _descriptor(item))

    @classmethod
    def read(cls, node: Node) -> Parameters:
        values = {item.name: node.get_parameter(item.name).value for item in fields(cls)}
        # rclpy has no empty array that knows its type: the list of one empty name stands for none
        return cls(**{name: tuple(filter(None, value)) if isinstance(value, list) else value
                      for name, value in values.items()})


def check(changes: list[RosParameter], configured: bool) -> SetParametersResult:
    """Whether these values can be set; for ``add_on_set_parameters_callback``. Ranges and types rclpy checks itself."""
    known = {item.name: item.metadata for item in fields(Parameters)}
    for change in changes:
        rules = known.get(change.name)
        if rules is None:
            continue
        if rules['choices'] and change.value not in rules['choices']:
            return _refused(f"{change.name} '{change.value}': must be one of {', '.join(rules['choices'])}")
        if change.name == 'cameras' and (reason := _bad_names(change.value)):
            return _refused(reason)
        if rules['when'] == MODEL and configured:
            return _refused(f"{change.name} '{change.value}': takes effect when the node is configured; "
                            f'deactivate it and clean it up first')
    return SetParametersResult(successful=True)


def _bad_names(names: list[str]) -> str:
    """Why these cannot be the names of cameras; empty when they can."""
    given = [name for name in names if name]
    for name in given:
        if not re.fullmatch(r'[A-Za-z][A-Za-z0-9_]*', name):
            return f"cameras '{name}': a name is made of letters, digits and _, and begins with a letter"
        if given.count(name) > 1:
            return f"cameras '{name}': named twice"
    return ''


def _refused(reason: str) -> SetParametersResult:
    return SetParametersResult(successful=False, reason=reason)


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
