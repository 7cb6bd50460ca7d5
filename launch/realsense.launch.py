"""Start the node for a RealSense with depth aligned to colour.

The argument driver:=true starts the camera driver too::

    ros2 launch sam2_ros realsense.launch.py driver:=true
"""
from ament_index_python.packages import PackageNotFoundError, get_package_share_directory
from launch import Action, LaunchContext, LaunchDescription
from launch.actions import DeclareLaunchArgument, IncludeLaunchDescription, OpaqueFunction
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import LaunchConfiguration

from sam2_ros.launching import node_arguments, remappings, sam2_node


def generate_launch_description() -> LaunchDescription:
    """Return the arguments of the launch file and the node."""
    return LaunchDescription([
        DeclareLaunchArgument('camera_namespace', default_value='camera', description=(
            'Namespace of the camera, as given to the driver.')),
        DeclareLaunchArgument('camera_name', default_value='camera', description=(
            'Name of the camera, as given to the driver.')),
        DeclareLaunchArgument('driver', default_value='false', description=(
            'true: start realsense2_camera with depth aligned to the colour image.')),
        DeclareLaunchArgument('serial_no', default_value='', description=(
            'Serial number of the camera, for the driver. Empty: the first camera found.')),
        *node_arguments(),
        OpaqueFunction(function=start),
    ])


def start(context: LaunchContext) -> list[Action]:
    """Return the actions to start, from the values of the arguments."""
    namespace, name, driver, serial = (LaunchConfiguration(argument).perform(context) for argument in (
        'camera_namespace', 'camera_name', 'driver', 'serial_no'))
    camera = f'/{namespace}/{name}' if namespace else f'/{name}'
    node = sam2_node(context, remappings(
        '', f'{camera}/color/image_raw', f'{camera}/aligned_depth_to_color/image_raw', f'{camera}/color/camera_info'))
    if driver.lower() != 'true':
        return [node]
    try:
        share = get_package_share_directory('realsense2_camera')
    except PackageNotFoundError:
        raise RuntimeError('driver:=true: realsense2_camera is not installed; apt install '
                           'ros-$ROS_DISTRO-realsense2-camera, or start the driver elsewhere') from None
    arguments = {'camera_namespace': namespace, 'camera_name': name, 'align_depth.enable': 'true',
                 'enable_sync': 'true', 'serial_no': f"'{serial}'" if serial else "''"}
    return [IncludeLaunchDescription(PythonLaunchDescriptionSource(f'{share}/launch/rs_launch.py'),
                                     launch_arguments=arguments.items()), node]
