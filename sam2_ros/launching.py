"""What the launch files have in common: arguments, the node, the names of a camera's topics."""
from __future__ import annotations

import posixpath
from pathlib import Path

from launch import Action, LaunchContext
from launch.actions import DeclareLaunchArgument, SetEnvironmentVariable
from launch.substitutions import LaunchConfiguration, PathJoinSubstitution
from launch_ros.actions import LifecycleNode, Node
from launch_ros.parameter_descriptions import ParameterValue
from launch_ros.substitutions import FindPackageShare

from sam2_ros.runtime.dds import image_profile_environment

GIVEN = {'model': str, 'device': str, 'autostart': bool, 'use_sim_time': bool}  # arguments that are parameters


def node_arguments() -> list[Action]:
    """The arguments of every launch file, and the environment that images need."""
    as_file = 'Empty: as the parameters file says.'
    return [
        DeclareLaunchArgument('params_file', default_value=PathJoinSubstitution(
            [FindPackageShare('sam2_ros'), 'config', 'sam2.yaml']), description='Parameters of the node.'),
        DeclareLaunchArgument('model', default_value='', description=f'Variant, as the parameter. {as_file}'),
        DeclareLaunchArgument('device', default_value='', description=f'cpu, cuda or cuda:N. {as_file}'),
        DeclareLaunchArgument('namespace', default_value='', description='Namespace of the node and its topics.'),
        DeclareLaunchArgument('node_name', default_value='sam2', description='Name of the node.'),
        DeclareLaunchArgument('log_level', default_value='info', description='debug, info, warn, error or fatal.'),
        DeclareLaunchArgument('autostart', default_value='', description=(
            f'true: the node configures and activates itself. {as_file}')),
        DeclareLaunchArgument('use_sim_time', default_value='', description=(
            f'true: time comes from the topic /clock. {as_file}')),
        DeclareLaunchArgument('respawn', default_value='false', description=(
            'true: start the node again, after 2 s, whenever it ends.')),
        # for the cameras of an including launch file too: an image is lost unless both ends have the profile
        *(SetEnvironmentVariable(name, value) for name, value in image_profile_environment().items()),
    ]


def camera_arguments(image_topic: str = 'camera/image_raw', depth_topic: str = '',
                     camera_info_topic: str = '') -> list[Action]:
    """The arguments of a launch file for one camera, with these defaults."""
    return [
        DeclareLaunchArgument('image_topic', default_value=image_topic, description=(
            'The camera. Relative names are within the namespace; compressed images are looked for on '
            'IMAGE_TOPIC/compressed.')),
        DeclareLaunchArgument('depth_topic', default_value=depth_topic, description=(
            'Depth that is registered to the image. Empty: the topic depth beside the image.')),
        DeclareLaunchArgument('camera_info_topic', default_value=camera_info_topic, description=(
            'The calibration of the image. Empty: the topic camera_info beside the image.')),
    ]


def camera_remappings(context: LaunchContext) -> list[tuple[str, str]]:
    """As the arguments of ``camera_arguments`` say."""
    return remappings('', *(LaunchConfiguration(name).perform(context)
                            for name in ('image_topic', 'depth_topic', 'camera_info_topic')))


def remappings(camera: str, image: str, depth: str = '', camera_info: str = '') -> list[tuple[str, str]]:
    """From the topics of the node to those of a camera; what is empty is beside the image.

    camera: its name; empty: the only one.
    """
    prefix = f'{camera}/' if camera else ''
    beside = posixpath.dirname(image)
    return [(f'{prefix}image', image), (f'{prefix}depth', depth or posixpath.join(beside, 'depth')),
            (f'{prefix}camera_info', camera_info or posixpath.join(beside, 'camera_info'))]


def sam2_node(context: LaunchContext, topics: list[tuple[str, str]], kind: type[Node] = Node,
              **parameters) -> Node | LifecycleNode:
    """The node, as the arguments of ``node_arguments`` say. ``parameters`` overrule them and the file."""
    params_file = Path(LaunchConfiguration('params_file').perform(context))
    if not params_file.is_file():  # launch_ros would only warn
        raise FileNotFoundError(f'params_file {params_file}: no such file')
    given = {name: ParameterValue(LaunchConfiguration(name), value_type=value_type)
             for name, value_type in GIVEN.items() if LaunchConfiguration(name).perform(context)}
    given |= parameters
    return kind(
        package='sam2_ros', executable='sam2_node',
        name=LaunchConfiguration('node_name'), namespace=LaunchConfiguration('namespace'),
        parameters=[str(params_file), *([given] if given else [])], remappings=topics,
        ros_arguments=['--log-level', LaunchConfiguration('log_level')],
        respawn=LaunchConfiguration('respawn'), respawn_delay=2.0, output='screen')
