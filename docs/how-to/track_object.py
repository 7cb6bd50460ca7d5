"""Follow one object through the action ~/track for some seconds, then let go of it.

Needs the node and the demo camera, as docs/tutorials/without-a-robot.md starts them.
"""
import sys
import time

import rclpy
from rclpy.action import ActionClient
from sensor_msgs.msg import RegionOfInterest

from sam2_ros.action import Track
from sam2_ros.msg import Instance, Prompt

STATES = {Instance.TRACKED: 'TRACKED', Instance.OCCLUDED: 'OCCLUDED', Instance.LOST: 'LOST'}
REASONS = {getattr(Track.Result, name): name for name in (
    'FAILED', 'REMOVED', 'LOST', 'CANCELLED', 'REFUSED', 'REPLACED', 'TIME_JUMP', 'NODE_STOPPED')}


def on_feedback(message) -> None:
    """Print where the object is, once for each processed image."""
    item = message.feedback.instance
    print(f'{item.id} {item.label}: {STATES[item.state]}, score {item.score:.2f}, x {item.roi.x_offset}, '
          f'y {item.roi.y_offset}', flush=True)


def main() -> None:
    """Send a goal, follow it, and cancel it in the end."""
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 10.0
    rclpy.init()
    node = rclpy.create_node('track_object')
    client = ActionClient(node, Track, '/sam2/track')
    if not client.wait_for_server(timeout_sec=60):
        raise SystemExit('no action /sam2/track: start the node first')

    box = RegionOfInterest(x_offset=302, y_offset=194, width=80, height=80)
    goal = Track.Goal(prompt=Prompt(action=Prompt.SET, label='ball', box=box), lost_timeout=5.0)
    sent = client.send_goal_async(goal, feedback_callback=on_feedback)
    rclpy.spin_until_future_complete(node, sent)
    handle = sent.result()  # accepted in every state of the node: the result says why, if it was refused
    ended = handle.get_result_async()
    until, cancelled = time.monotonic() + seconds, False
    while not ended.done():
        rclpy.spin_once(node, timeout_sec=0.5)
        if time.monotonic() > until and not cancelled:
            handle.cancel_goal_async()
            cancelled = True
        if not client.server_is_ready():  # a node that was killed sends no result
            raise SystemExit('the node has gone')
    result = ended.result().result
    print(f'{REASONS[result.reason]}: {result.text}')
    client.destroy()
    node.destroy_node()
    rclpy.shutdown()


if __name__ == '__main__':
    main()
