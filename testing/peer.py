"""Peer of a node process in system tests: it plays camera, user and planner over DDS.

Nothing here sleeps for a fixed time. A test waits for a condition, and the node's log is part of the failure.
"""
from __future__ import annotations

from testing.node_process import NODE, NodeProcess  # before rclpy

# isort: split
import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import rclpy
from builtin_interfaces.msg import Time
from lifecycle_msgs.srv import ChangeState, GetState
from rcl_interfaces.srv import GetParameters, SetParameters
from rclpy.executors import SingleThreadedExecutor
from rclpy.parameter import Parameter
from rclpy.qos import QoSProfile
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import Header
from std_srvs.srv import Trigger

from sam2_ros.msg import Instance, InstanceArray, Prompt, PromptStatus
from sam2_ros.perception.instance_messages import instance_mask
from sam2_ros.srv import SetPrompt
from testing.camera_images import compressed_message, image_message, roi
from testing.domains import own_domain
from testing.waiting import PATIENCE, PROMPT_TIMEOUT

PERIOD = 1 / 15  # seconds from image to image of a camera that streams
FRAME_ID = 'camera_optical_frame'


class Peer:
    """Camera, user and planner: publishes images and prompts, calls services, stores what the node publishes.

    It has many methods because each is one action of theirs.
    """

    def __init__(self, domain: int, process: NodeProcess, *, compressed: bool = False, namespace: str = '',
                 image_topic: str = '', camera: str = '') -> None:
        """Create the peer of a node in ``domain``; ``camera`` is the name of one of several cameras."""
        self.process = process
        self._context = rclpy.Context()
        rclpy.init(context=self._context, domain_id=domain)
        self.node = rclpy.create_node(f'peer_{camera}' if camera else 'peer', context=self._context)
        self._executor = SingleThreadedExecutor(context=self._context)
        self._executor.add_node(self.node)
        self.name = f'{namespace}/sam2'
        self.private = f'{self.name}/{camera}' if camera else self.name
        self.public = f'{namespace}/{camera}' if camera else namespace
        self.instances: list[InstanceArray] = []
        self.statuses: list[PromptStatus] = []
        self._last_stamp = 0
        self._next_image = 0.0
        topic = f'{self.public}/{image_topic or "image"}'
        self._compressed = compressed
        self._image_topic = (CompressedImage, f'{topic}/compressed') if compressed else (Image, topic)
        self._camera = self.node.create_publisher(*self._image_topic, 5)
        self._prompts = self.node.create_publisher(Prompt, f'{self.private}/prompt', QoSProfile(depth=100))
        self.node.create_subscription(InstanceArray, f'{self.private}/instances', self.instances.append, 100)
        self.node.create_subscription(PromptStatus, f'{self.private}/prompt_status', self.statuses.append, 100)
        self._clients = {}

    def close(self) -> None:
        self._executor.shutdown()
        self.node.destroy_node()
        rclpy.shutdown(context=self._context)

    # --- waiting

    def spin(self, seconds: float) -> None:
        """Handle at most one arrival within this time."""
        self._executor.spin_once(timeout_sec=seconds)

    def wait_for(self, condition: Callable[[], object], what: str, patience: float = PATIENCE) -> object:
        """Handle arrivals until the condition is true; return its value."""
        deadline = time.monotonic() + patience
        while not (value := condition()):
            assert self.process.alive, f'the node ended while waiting for {what}:\n{self.process.log}'
            assert time.monotonic() < deadline, f'{what}: not within {patience} s; the log:\n{self.process.log}'
            self._executor.spin_once(timeout_sec=0.05)
        return value

    def wait_until_active(self, image: np.ndarray | None = None) -> None:
        """Wait until prompts, images and answers get through; the camera shows ``image`` meanwhile.

        That a publisher knows its subscriber is not enough: the subscriber may not know its publisher yet.
        """
        self.wait_for(self._prompts.get_subscription_count, 'the node to listen to prompts')
        object_id = 65535

        def answered() -> bool:
            nonlocal object_id
            object_id -= 1
            self.send_prompt(Prompt(id=object_id, action=Prompt.REMOVE))
            return self._soon(lambda: any(status.id == object_id for status in self.statuses))
        self.wait_for(answered, 'the node to answer prompts')
        self.wait_for_camera(image)
        self.instances.clear()
        self.statuses.clear()

    def wait_for_camera(self, image: np.ndarray | None = None) -> None:
        """Wait until the node has processed an image."""
        image = np.full((48, 64, 3), 100, np.uint8) if image is None else image

        def seen() -> bool:
            self.send(message := self.message(image))
            return self._soon(lambda: self.instances_at(message.header.stamp))
        self.wait_for(seen, 'the node to see images')

    def _soon(self, condition: Callable[[], object]) -> bool:
        """Return whether the condition becomes true within a second."""
        deadline = time.monotonic() + 1
        while not condition() and time.monotonic() < deadline:
            self._executor.spin_once(timeout_sec=0.05)
        return bool(condition())

    def wait_until_deaf(self) -> None:
        self.wait_for(lambda: not self._camera.get_subscription_count() and not self._prompts.get_subscription_count(),
                      'the node to stop listening')

    def subscribe_pictures(self, name: str) -> list[Image]:
        """Subscribe to images on ~/name; return the list that they are appended to."""
        return self.subscribe(Image, name)

    def subscribe(self, kind: type, name: str, qos: QoSProfile | int = 10) -> list:
        """Subscribe to ~/name; return the list that messages are appended to."""
        arrived: list = []
        self.node.create_subscription(kind, f'{self.private}/{name}', arrived.append, qos)
        self.wait_for(lambda: self.node.count_publishers(f'{self.private}/{name}'), name)
        return arrived

    # --- the camera

    def header(self) -> Header:
        """Return the header of a new image, stamped now and later than every one before."""
        self._last_stamp = max(time.time_ns(), self._last_stamp + 1)
        seconds, nanoseconds = divmod(self._last_stamp, 10**9)
        return Header(stamp=Time(sec=seconds, nanosec=nanoseconds), frame_id=FRAME_ID)

    def message(self, image: np.ndarray, header: Header | None = None) -> Image | CompressedImage:
        """Return an image as this camera sends it, by default stamped now."""
        header = header or self.header()
        return compressed_message(image, header, 'png') if self._compressed else image_message(image, header)

    def restart_camera(self, image: np.ndarray) -> None:
        """Create the publisher anew, as a driver does that is restarted."""
        self.node.destroy_publisher(self._camera)
        self._camera = self.node.create_publisher(*self._image_topic, 5)
        self.wait_for_camera(image)

    def send(self, message: Image | CompressedImage) -> None:
        self._camera.publish(message)

    def stream(self, image: np.ndarray) -> None:
        """Show an image if the camera's next one is due. Call it repeatedly."""
        if self.due():
            self.send(self.message(image))

    def due(self) -> bool:
        """Return whether the camera's next image is due; if so, schedule the one after it."""
        now = time.monotonic()
        if now < self._next_image:
            return False
        self._next_image = now + PERIOD
        return True

    def process_image(self, image: np.ndarray | Image | CompressedImage) -> InstanceArray:
        """Show one image; return its instances."""
        message = self.message(image) if isinstance(image, np.ndarray) else image
        self.send(message)
        return self.wait_for(lambda: self.instances_at(message.header.stamp), 'the instances of an image')

    def instances_at(self, stamp: Time) -> InstanceArray | None:
        return next((array for array in reversed(self.instances) if array.header.stamp == stamp), None)

    # --- prompts

    def send_prompt(self, prompt: Prompt) -> None:
        self._prompts.publish(prompt)

    def prompt(self, prompt: Prompt, image: np.ndarray | None) -> PromptStatus:
        """Send a prompt and show the image repeatedly until the answer; None shows nothing."""
        seen = len(self.statuses)

        def answer() -> PromptStatus | None:
            return next((status for status in self.statuses[seen:] if _may_answer(status, prompt)), None)
        self.send_prompt(prompt)
        while (status := answer()) is None:
            if image is None:
                self.wait_for(answer, 'the answer to a prompt')
            else:
                self.process_image(image)
        # the instances are published before the answer, on another topic
        if status.accepted and image is not None:
            self.wait_for(lambda: self.instances_at(status.header.stamp), 'the prompted image')
        return status

    def start_object(self, object_id: int, box, image: np.ndarray, label: str = '') -> InstanceArray:
        """SET an object by its box; return the instances of the image it was applied to."""
        status = self.prompt(Prompt(id=object_id, box=roi(box), label=label), image)
        assert status.accepted, status.reason
        return self.instances_at(status.header.stamp)

    # --- services

    def call(self, kind, name: str, request):
        """Call a service; return the future of its response."""
        if name not in self._clients:
            own = kind.__module__.startswith('sam2_ros') or kind is Trigger  # of the camera, not of the node
            self._clients[name] = self.node.create_client(kind, f'{self.private if own else self.name}/{name}')
        client = self._clients[name]
        self.wait_for(client.service_is_ready, f'service {name}')
        return client.call_async(request)

    def ask(self, kind, name: str, request=None):
        """Call a service; return its response."""
        future = self.call(kind, name, kind.Request() if request is None else request)
        self.wait_for(future.done, f'the answer of {name}')
        return future.result()

    def set_prompt(self, prompt: Prompt):
        """Call ~/set_prompt; return the future of its response."""
        return self.call(SetPrompt, 'set_prompt', SetPrompt.Request(prompt=prompt))

    def show_until(self, condition: Callable[[], object], image: np.ndarray) -> None:
        """Show the image repeatedly until the condition is true."""
        deadline = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < deadline, f'not within {PATIENCE} s of images; the log:\n{self.process.log}'
            self.process_image(image)

    def reset(self) -> None:
        assert self.ask(Trigger, 'reset').success

    def change_state(self, transition: int) -> bool:
        request = ChangeState.Request()
        request.transition.id = transition
        return self.ask(ChangeState, 'change_state', request).success

    def state(self) -> str:
        answers = []

        def answered() -> bool:  # an answer is lost if the node has not discovered this client yet: ask again
            answers.append(self.call(GetState, 'get_state', GetState.Request()))
            return self._soon(lambda: any(answer.done() for answer in answers))
        self.wait_for(answered, 'the state of the node')
        return next(answer for answer in reversed(answers) if answer.done()).result().current_state.label

    def set_parameter(self, name: str, value) -> tuple[bool, str]:
        parameters = [Parameter(name, value=value).to_parameter_msg()]
        result = self.ask(SetParameters, 'set_parameters', SetParameters.Request(parameters=parameters)).results[0]
        return result.successful, result.reason

    def parameter(self, name: str):
        answer = self.ask(GetParameters, 'get_parameters', GetParameters.Request(names=[name]))
        return rclpy.parameter.parameter_value_to_python(answer.values[0])


def _may_answer(status: PromptStatus, prompt: Prompt) -> bool:
    """Return whether a status may belong to a prompt: that of an earlier ~/reset or prompt may arrive late."""
    if prompt.id or prompt.action == Prompt.CLEAR:
        return status.id == prompt.id
    return bool(status.id) or not status.accepted


@contextlib.contextmanager
def running_node(folder: Path, parameters: dict | None = None, arguments: tuple[str, ...] = (), *,
                 active: bool = True, command: tuple[str, ...] = NODE, environment: dict[str, str] | None = None,
                 **peer) -> Iterator[Peer]:
    """Yield the peer of a node process in a domain of its own; end both."""
    if command == NODE:
        parameters = {'prompt_timeout': PROMPT_TIMEOUT, **(parameters or {})}
    with own_domain() as domain:
        process = NodeProcess(domain, folder / 'node.log', parameters, arguments, command, environment)
        try:
            with contextlib.closing(Peer(domain, process, **peer)) as other:
                if active:
                    other.wait_until_active()
                yield other
        finally:
            process.kill()


def whole_mask(array: InstanceArray, object_id: int) -> np.ndarray:
    """Return the mask of an instance in its image, bool (height, width)."""
    return instance_mask(instance_of(array, object_id), array.height, array.width)


def instance_of(array: InstanceArray, object_id: int) -> Instance:
    return next(instance for instance in array.instances if instance.id == object_id)


def ids(array: InstanceArray) -> list[int]:
    return sorted(instance.id for instance in array.instances)


class Scene:
    """Two textured discs that cross a calm background, with their true masks. Times are image numbers."""

    IDS = (1, 2)

    def __init__(self, width: int = 480, height: int = 360) -> None:
        self.width, self.height = width, height
        random = np.random.default_rng(5)
        coarse = random.integers(70, 110, (height // 60 + 2, width // 60 + 2, 3)).astype(np.float32)
        self._background = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC).clip(0, 255)
        self._rows, self._columns = np.mgrid[:height, :width].astype(np.float32)

    def centre(self, time: float, object_id: int) -> tuple[float, float]:
        if object_id == 1:
            return (0.2 + 0.012 * time) * self.width, (0.33 + 0.02 * np.sin(time / 4)) * self.height
        return (0.8 - 0.012 * time) * self.width, (0.7 + 0.02 * np.cos(time / 4)) * self.height

    def mask(self, time: float, object_id: int) -> np.ndarray:
        x, y = self.centre(time, object_id)
        return np.hypot(self._columns - x, self._rows - y) < 0.13 * self.height

    def box(self, time: float, object_id: int) -> tuple[int, int, int, int]:
        rows, columns = np.nonzero(self.mask(time, object_id))
        return columns.min(), rows.min(), columns.max() + 1, rows.max() + 1

    def image(self, time: float = 0, hidden: tuple[int, ...] = ()) -> np.ndarray:
        """Return the image at a time, uint8 RGB (height, width, 3)."""
        picture = self._background.copy()
        for object_id, colour, stripe in ((1, (225, 60, 40), (250, 200, 60)), (2, (40, 90, 225), (210, 235, 250))):
            if object_id in hidden:
                continue
            x, y = self.centre(time, object_id)
            stripes = np.sin((self._columns - x + 0.5 * (self._rows - y)) * 0.35) > 0.3
            mask = self.mask(time, object_id)
            picture[mask & stripes] = stripe
            picture[mask & ~stripes] = colour
        return cv2.GaussianBlur(picture, (3, 3), 0).astype(np.uint8)
