"""Start the node for several cameras that share one model.

ros2 launch sam2_ros multi_camera.launch.py cameras:=front=/front/color/image_raw,wrist=/wrist/color/image_raw
"""
from launch import Action, LaunchContext, LaunchDescription
from launch.actions import DeclareLaunchArgument, OpaqueFunction
from launch.substitutions import LaunchConfiguration

from sam2_ros.launching import node_arguments, remappings, sam2_node


def generate_launch_description() -> LaunchDescription:
    """Return the arguments of the launch file and the node."""
    return LaunchDescription([
        DeclareLaunchArgument('cameras', description=(
            'Cameras, as NAME=IMAGE_TOPIC,NAME=IMAGE_TOPIC,... Each publishes on ~/NAME/... A NAME without a topic '
            'subscribes to NAME/image, NAME/depth and NAME/camera_info.')),
        DeclareLaunchArgument('depth_topics', default_value='', description=(
            'Depth topics registered to the images, as NAME=TOPIC,... Default: depth in the namespace of the image.')),
        DeclareLaunchArgument('camera_info_topics', default_value='', description=(
            'CameraInfo topics, as NAME=TOPIC,... Default: camera_info in the namespace of the image.')),
        DeclareLaunchArgument('image_transports', default_value='', description=(
            'Transports of the images where cameras differ, as NAME=TRANSPORT,... Default: image_transport, or raw.')),
        DeclareLaunchArgument('depth_transports', default_value='', description=(
            'Transports of the depth where cameras differ, as NAME=TRANSPORT,... Default: depth_transport, or raw.')),
        *node_arguments(),
        OpaqueFunction(function=start_node),
    ])


def start_node(context: LaunchContext) -> list[Action]:
    """Return the node, from the values of the arguments."""
    images, depths, infos = (pairs(name, LaunchConfiguration(name).perform(context))
                             for name in ('cameras', 'depth_topics', 'camera_info_topics'))
    if not images:
        raise ValueError("cameras '': name at least one, NAME=IMAGE_TOPIC,...")
    unknown = (depths.keys() | infos.keys()) - images.keys()
    if unknown:
        raise ValueError(f'depth_topics or camera_info_topics of {", ".join(sorted(unknown))}: not among the cameras '
                         f'({", ".join(images)})')
    topics = [pair for name, image in images.items()
              for pair in remappings(name, image or f'{name}/image', depths.get(name, ''), infos.get(name, ''))]
    transports = {f'{name}s': chosen for name in ('image_transport', 'depth_transport')
                  if (chosen := transports_of(context, name, list(images)))}
    return [sam2_node(context, topics, cameras=list(images), **transports)]


def transports_of(context: LaunchContext, name: str, cameras: list[str]) -> list[str]:
    """Return the transport of each camera from the argument ``name`` with an s, or an empty list if it is not given."""
    given = pairs(f'{name}s', LaunchConfiguration(f'{name}s').perform(context))
    unknown = given.keys() - set(cameras)
    if unknown:
        raise ValueError(f'{name}s of {", ".join(sorted(unknown))}: not among the cameras ({", ".join(cameras)})')
    shared = LaunchConfiguration(name).perform(context) or 'raw'
    return [given.get(camera) or shared for camera in cameras] if given else []


def pairs(argument: str, text: str) -> dict[str, str]:
    """Parse NAME=VALUE,... into a dictionary. A name without a value maps to an empty string."""
    items = [item.strip().partition('=') for item in text.split(',') if item.strip()]
    names = [name for name, _, _ in items]
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise ValueError(f'{argument} {text!r}: {", ".join(sorted(twice))} is named twice')
    return {name: topic for name, _, topic in items}
