"""First object in ten minutes: prompt objects, follow them, prompt late and correct.

Needs the node and the demo camera, as docs/tutorials/without-a-robot.md starts them.
"""
import time

import cv2
import numpy as np
import rclpy
from rclpy.node import Node
from sensor_msgs.msg import Image, RegionOfInterest
from std_srvs.srv import Trigger

from sam2_ros.msg import ImagePoint, Instance, InstanceArray, InstanceEvent, Prompt
from sam2_ros.srv import SetPrompt

STATES = {Instance.TRACKED: 'TRACKED', Instance.OCCLUDED: 'OCCLUDED', Instance.LOST: 'LOST'}
EVENTS = ('ADDED', 'OCCLUDED', 'LOST', 'REAPPEARED', 'FORGOTTEN', 'REMOVED')


class FirstObject(Node):
    """Client of the node sam2."""

    def __init__(self) -> None:
        super().__init__('first_object')
        self.instances = InstanceArray()
        self.overlay = Image()
        self.create_subscription(InstanceArray, '/sam2/instances', self.on_instances, 10)
        self.create_subscription(InstanceEvent, '/sam2/events', self.on_event, 100)
        self.create_subscription(Image, '/sam2/overlay', self.on_overlay, 5)
        self.prompts = self.create_client(SetPrompt, '/sam2/set_prompt')
        self.camera = self.create_client(Trigger, '/camera/start')
        for client in (self.prompts, self.camera):
            if not client.wait_for_service(timeout_sec=60):
                raise SystemExit(f'no service {client.srv_name}: start the node and the demo camera first')

    def on_instances(self, message: InstanceArray) -> None:
        """Store the objects of the newest processed image."""
        self.instances = message

    def on_event(self, message: InstanceEvent) -> None:
        """Print each change of an object."""
        print(f'event: {message.label} {EVENTS[message.event]}', flush=True)

    def on_overlay(self, message: Image) -> None:
        """Store the newest image with the masks drawn into it."""
        self.overlay = message

    def call(self, client, request):
        """Call a service and return its response."""
        future = client.call_async(request)
        rclpy.spin_until_future_complete(self, future)
        return future.result()

    def send(self, **fields) -> SetPrompt.Response:
        """Send one prompt and print the answer."""
        answer = self.call(self.prompts, SetPrompt.Request(prompt=Prompt(**fields)))
        print(f'accepted, id {answer.id}' if answer.accepted else f'refused: {answer.reason}', flush=True)
        return answer

    def follow(self, seconds: float) -> None:
        """Receive messages for some seconds, then print the newest state of each object."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            rclpy.spin_once(self, timeout_sec=0.1)
        for item in self.instances.instances:
            print(f'  {item.id} {item.label}: {STATES[item.state]}, score {item.score:.2f}, {item.area} pixels')

    def save_overlay(self, path: str) -> None:
        """Write the newest overlay as a PNG file."""
        rgb = np.frombuffer(self.overlay.data, np.uint8).reshape(self.overlay.height, self.overlay.width, 3)
        cv2.imwrite(path, cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR))


def main() -> None:
    """Run the steps of the tutorial."""
    rclpy.init()
    node = FirstObject()

    print('1. Select the ball with a box and the tea box with a point.')
    node.send(action=Prompt.SET, label='ball', box=RegionOfInterest(x_offset=302, y_offset=194, width=80, height=80))
    tea = node.send(action=Prompt.SET, label='tea box', points=[ImagePoint(x=498.0, y=150.0)])
    node.follow(2)
    node.save_overlay('first_object.png')

    print('2. Start the camera. While it moves, select the can in the image as it was before the start.')
    before = node.instances.header
    node.call(node.camera, Trigger.Request())
    node.follow(1)
    node.send(header=before, action=Prompt.SET, label='can', points=[ImagePoint(x=224.0, y=151.0)])

    print('3. Wait until the ball has passed behind the box.')
    node.follow(8)
    node.save_overlay('three_objects.png')

    print('4. Correct the tea box with a point that is not on it, then remove it.')
    roi = next(item.roi for item in node.instances.instances if item.id == tea.id)
    outside = ImagePoint(x=float(roi.x_offset), y=float(roi.y_offset), label=ImagePoint.BACKGROUND)
    node.send(header=node.instances.header, action=Prompt.REFINE, id=tea.id, points=[outside])
    node.follow(1)
    node.send(action=Prompt.REMOVE, id=tea.id)
    node.follow(1)
    node.destroy_node()
    rclpy.shutdown()


if __name__ == '__main__':
    main()
