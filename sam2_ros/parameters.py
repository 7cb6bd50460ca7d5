"""Every parameter of the node, once: name, type, default, range, description."""
from __future__ import annotations

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
    image_transport: str = _parameter(
        'raw', 'raw: sensor_msgs/Image on image. compressed: sensor_msgs/CompressedImage on image/compressed.',
        when=MODEL, choices=('raw', 'compressed'))
    max_objects: int = _parameter(32, 'Objects tracked at a time; a prompt for one more is refused.',
                                  limits=(1, 65535))
    lost_after: float = _parameter(
        2.0, 'Seconds (of image stamps) out of sight after which an occluded object is called lost.',
        limits=(0.0, 1e6))
    prompt_timeout: float = _parameter(
        5.0, 'Seconds (of the wall clock) a prompt waits for an image before it is refused.', limits=(0.1, 600.0))
    on_time_jump: str = _parameter(
        'keep', 'What happens to the objects when image stamps jump back by more than a second, as when a bag starts '
        'again.', choices=('keep', 'reset'))
    overlay_opacity: float = _parameter(0.45, 'How strongly an object is coloured in the overlay; 0: outline only.',
                                        limits=(0.0, 1.0))
    autostart: bool = _parameter(True, 'Configure and activate the node as soon as it spins.', when=START)

    @classmethod
    def declare(cls, node: Node) -> None:
        """Declare all of them on a node. Raises rclpy's exceptions when a value given at start is not acceptable."""
        for item in fields(cls):
            node.declare_parameter(item.name, item.default, _descriptor(item))

    @classmethod
    def read(cls, node: Node) -> Parameters:
        return cls(**{item.name: node.get_parameter(item.name).value for item in fields(cls)})


def check(changes: list[RosParameter], configured: bool) -> SetParametersResult:
    """Whether these values can be set; for ``add_on_set_parameters_callback``. Ranges and types rclpy checks itself."""
    known = {item.name: item.metadata for item in fields(Parameters)}
    for change in changes:
        rules = known.get(change.name)
        if rules is None:
            continue
        if rules['choices'] and change.value not in rules['choices']:
            return _refused(f"{change.name} '{change.value}': must be one of {', '.join(rules['choices'])}")
        if rules['when'] == MODEL and configured:
            return _refused(f"{change.name} '{change.value}': takes effect when the node is configured; "
                            f'deactivate it and clean it up first')
    return SetParametersResult(successful=True)


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
