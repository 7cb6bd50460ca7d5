"""Replay a recording: the node by the bag's clock; the bag starts when the node is ready:

ros2 launch sam2_ros bag.launch.py bag:=/data/run1 image_topic:=/camera/color/image_raw

Without bag: play it yourself, with --clock.
"""
from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument, EmitEvent, ExecuteProcess, OpaqueFunction, RegisterEventHandler
from launch.events import matches_action
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import LifecycleNode
from launch_ros.event_handlers import OnStateTransition
from launch_ros.events.lifecycle import ChangeState
from lifecycle_msgs.msg import Transition

from sam2_ros.launching import camera_arguments, camera_remappings, node_arguments, sam2_node


def generate_launch_description():
    return LaunchDescription([
        DeclareLaunchArgument('bag', default_value='', description='Folder or file. Empty: it is played elsewhere.'),
        DeclareLaunchArgument('rate', default_value='1.0', description='Times as fast as it was recorded.'),
        DeclareLaunchArgument('loop', default_value='false', description=(
            'true: play it again and again; objects are forgotten each time it starts.')),
        *camera_arguments(), *node_arguments(),
        OpaqueFunction(function=start),
    ])


def start(context):
    bag, rate, loop = (LaunchConfiguration(name).perform(context) for name in ('bag', 'rate', 'loop'))
    node = sam2_node(context, camera_remappings(context), kind=LifecycleNode, use_sim_time=True,
                     on_time_jump='reset', autostart=False)
    # the path first: --clock would take it for its rate
    play = ExecuteProcess(cmd=['ros2', 'bag', 'play', bag, '--clock', '100', '--rate', rate,
                               *(['--loop'] if loop.lower() == 'true' else [])], output='screen')
    # the launch file leads the node through its states, so that it knows when the bag can start
    return [RegisterEventHandler(_on_state(node, 'configuring', 'inactive', [_change(node, 'ACTIVATE')])),
            RegisterEventHandler(_on_state(node, 'activating', 'active', [play] if bag else [])),
            node, _change(node, 'CONFIGURE')]


def _on_state(node, before, after, actions):
    return OnStateTransition(target_lifecycle_node=node, start_state=before, goal_state=after, entities=actions)


def _change(node, transition):
    return EmitEvent(event=ChangeState(lifecycle_node_matcher=matches_action(node),
                                       transition_id=getattr(Transition, f'TRANSITION_{transition}')))
