"""Command line of sam2_node: --help, --version and the check for arguments that ROS would ignore.

Imports no PyTorch, so that the help appears at once.
"""
from __future__ import annotations

import argparse
import textwrap
from collections.abc import Sequence
from dataclasses import fields

from sam2_core import __version__
from sam2_ros.runtime.node_arguments import without_ros_arguments
from sam2_ros.runtime.parameter_rules import allowed
from sam2_ros.runtime.parameters import Parameters

DESCRIPTION = """Track prompted objects in the images of one or more cameras: the node sam2.

    sam2_node --ros-args -r image:=/camera/color/image_raw -p device:=cuda
    sam2_node --ros-args --params-file robot.yaml -r __node:=sam2_front -r __ns:=/robot1

Remap the topics image, depth and camera_info with -r. With the parameter cameras, they are NAME/image, ...
Images of another transport than raw are on image/TRANSPORT, which follows a remapping of image; so does depth.
The node takes prompts on ~/prompt, ~/set_prompt and the action ~/track, and publishes ~/instances, ~/overlay,
~/prompt_status, ...
docs/reference/node.md describes all of them."""


def parse(arguments: Sequence[str]) -> None:
    """Check the arguments of sam2_node. Exit after --help and --version.

    Exit with code 2 if there are arguments other than ROS arguments, which rclpy would ignore.
    """
    parser = argparse.ArgumentParser(
        prog='sam2_node', usage='sam2_node [--help] [--version] [--ros-args ...]', description=DESCRIPTION,
        epilog=_parameters(), formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--version', action='version', version=f'%(prog)s {__version__}')
    _, others = parser.parse_known_args(without_ros_arguments(arguments))
    if others:
        parser.error(f'unknown arguments: {" ".join(others)}; ROS arguments (-p, -r, --params-file) come after '
                     f'--ros-args')


def _parameters() -> str:
    """Return the help text of all parameters, a paragraph for each."""
    found = ['parameters (-p NAME:=VALUE, or --params-file FILE):']
    for item in fields(Parameters):
        default = [*item.default] if isinstance(item.default, tuple) else item.default
        default = str(default).lower() if isinstance(default, bool) else repr(default)
        about = '; '.join(filter(None, [f'default {default}', allowed(item), f'takes effect {item.metadata["when"]}']))
        found.append(textwrap.fill(f'{item.name}  {item.metadata["description"]} ({about})', 100,
                                   initial_indent='  ', subsequent_indent='      ', break_on_hyphens=False))
    return '\n'.join(found)
