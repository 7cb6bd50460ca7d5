"""Run the node on a recording.

The bag starts to play when the node is active, and the node uses its clock::

    ros2 launch sam2_ros bag.launch.py bag:=/data/run1 image_topic:=/camera/color/image_raw

Without the argument bag, play the bag yourself with `ros2 bag play --clock`.
"""
from launch import Action, LaunchContext, LaunchDescription
from launch.actions import DeclareLaunchArgument, EmitEvent, ExecuteProcess, OpaqueFunction, RegisterEventHandler
from launch.events import matches_action
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import LifecycleNode
from launch_ros.event_handlers import OnStateTransition
from launch_ros.events.lifecycle import ChangeState
from lifecycle_msgs.msg import Transition

from sam2_ros.launching import camera_arguments, camera_remappings, node_arguments, sam2_node


def generate_launch_description() -> LaunchDescription:
    """Return the arguments of the launch file and the node."""
    return LaunchDescription([
        DeclareLaunchArgument('bag', default_value='', description=(
            'Bag to play, a folder or a file. Empty: play it yourself, with --clock.')),
        DeclareLaunchArgument('rate', default_value='1.0', description='Playback rate.'),
        DeclareLaunchArgument('loop', default_value='false', description=(
            'true: play the bag in a loop. The node deletes its objects at each start.')),
        *camera_arguments(), *node_arguments(),
        OpaqueFunction(function=start),
    ])


def start(context: LaunchContext) -> list[Action]:
    """Return the actions to start, from the values of the arguments."""
    bag, rate, loop = (LaunchConfiguration(name).perform(context) for name in ('bag', 'rate', 'loop'))
    node = sam2_node(context, camera_remappings(context), kind=LifecycleNode, use_sim_time=True,
                     on_time_jump='reset', autostart=False)
    # The path stands first because --clock would take it for its rate.
    play = ExecuteProcess(cmd=['ros2', 'bag', 'play', bag, '--clock', '100', '--rate', rate,
                               *(['--loop'] if loop.lower() == 'true' else [])], output='screen')
    # The launch file triggers the lifecycle transitions, so that the bag starts when the node is active.
    return [RegisterEventHandler(_on_state(node, 'configuring', 'inactive', [_change(node, 'ACTIVATE')])),
            RegisterEventHandler(_on_state(node, 'activating', 'active', [play] if bag else [])),
            node, _change(node, 'CONFIGURE')]


def _on_state(node: LifecycleNode, before: str, after: str, actions: list[Action]) -> OnStateTransition:
    return OnStateTransition(target_lifecycle_node=node, start_state=before, goal_state=after, entities=actions)


def _change(node: LifecycleNode, transition: str) -> EmitEvent:
    return EmitEvent(event=ChangeState(lifecycle_node_matcher=matches_action(node),
                                       transition_id=getattr(Transition, f'TRANSITION_{transition}')))
