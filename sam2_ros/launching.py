"""Arguments, node and topic names that the launch files share."""
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

# Launch arguments that set the parameter of the same name, with its type.
GIVEN = {'model': str, 'device': str, 'image_transport': str, 'depth_transport': str, 'target_frame': str,
         'publish_tf': bool, 'autostart': bool, 'use_sim_time': bool}


def node_arguments() -> list[Action]:
    """Return the arguments of every launch file, and the environment variables that large images need."""
    as_file = 'Empty: the value in params_file.'
    return [
        DeclareLaunchArgument('params_file', default_value=PathJoinSubstitution(
            [FindPackageShare('sam2_ros'), 'config', 'sam2.yaml']), description='Path of the parameter file.'),
        DeclareLaunchArgument('model', default_value='', description=f'Model variant. {as_file}'),
        DeclareLaunchArgument('device', default_value='', description=(
            f'Device that runs the model: cpu, cuda or cuda:N. {as_file}')),
        DeclareLaunchArgument('image_transport', default_value='', description=(
            f'Transport of the images: raw, compressed, or a plugin of image_transport. {as_file}')),
        DeclareLaunchArgument('depth_transport', default_value='', description=(
            f'Transport of the depth: raw, compressedDepth, compressed, or a plugin of image_transport. {as_file}')),
        DeclareLaunchArgument('target_frame', default_value='', description=(
            f'Frame of positions, such as map. {as_file}')),
        DeclareLaunchArgument('publish_tf', default_value='', description=(
            f'true: publish a TF frame for each object. {as_file}')),
        DeclareLaunchArgument('namespace', default_value='', description='Namespace of the node and its topics.'),
        DeclareLaunchArgument('node_name', default_value='sam2', description='Name of the node.'),
        DeclareLaunchArgument('log_level', default_value='info', description=(
            'Log level: debug, info, warn, error or fatal.')),
        DeclareLaunchArgument('autostart', default_value='', description=(
            f'true: configure and activate the node as soon as it runs. {as_file}')),
        DeclareLaunchArgument('use_sim_time', default_value='', description=(
            f'true: take the time from the topic /clock. {as_file}')),
        DeclareLaunchArgument('respawn', default_value='false', description=(
            'true: restart the node 2 s after it ends. Its objects are lost then.')),
        # An including launch file starts its cameras with the profile too: images are lost unless both ends have it.
        *(SetEnvironmentVariable(name, value) for name, value in image_profile_environment().items()),
    ]


def camera_arguments(image_topic: str = 'camera/image_raw', depth_topic: str = '',
                     camera_info_topic: str = '') -> list[Action]:
    """Return the arguments of a launch file for one camera, with these defaults."""
    return [
        DeclareLaunchArgument('image_topic', default_value=image_topic, description=(
            'Camera topic; a relative name is within the namespace. Images of another transport than raw are expected '
            'on IMAGE_TOPIC/TRANSPORT.')),
        DeclareLaunchArgument('depth_topic', default_value=depth_topic, description=(
            'Depth topic, registered to the image. Empty: depth in the namespace of the image.')),
        DeclareLaunchArgument('camera_info_topic', default_value=camera_info_topic, description=(
            'CameraInfo topic of the image. Empty: camera_info in the namespace of the image.')),
    ]


def camera_remappings(context: LaunchContext) -> list[tuple[str, str]]:
    """Return the remappings from the values of ``camera_arguments``."""
    return remappings('', *(LaunchConfiguration(name).perform(context)
                            for name in ('image_topic', 'depth_topic', 'camera_info_topic')))


def remappings(camera: str, image: str, depth: str = '', camera_info: str = '') -> list[tuple[str, str]]:
    """Return the remappings from the topics of the node to those of one camera.

    Args:
        camera: Name of the camera, or '' for the only one.
        image: Image topic.
        depth: Depth topic, or '' for depth in the namespace of the image.
        camera_info: CameraInfo topic, or '' for camera_info in the namespace of the image.
    """
    prefix = f'{camera}/' if camera else ''
    beside = posixpath.dirname(image)
    return [(f'{prefix}image', image), (f'{prefix}depth', depth or posixpath.join(beside, 'depth')),
            (f'{prefix}camera_info', camera_info or posixpath.join(beside, 'camera_info'))]


def sam2_node(context: LaunchContext, topics: list[tuple[str, str]], kind: type[Node] = Node,
              **parameters: object) -> Node | LifecycleNode:
    """Return the node from the values of ``node_arguments``.

    Args:
        context: Context of the launch, with the values of the arguments.
        topics: Remappings of the node.
        kind: Class of the launch action.
        **parameters: Parameters that override the arguments and the parameter file.

    Raises:
        FileNotFoundError: params_file does not exist.
    """
    params_file = Path(LaunchConfiguration('params_file').perform(context))
    if not params_file.is_file():  # launch_ros only warns
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
