"""For the system tests: the node in a process of its own, a test process that plays camera, user and planner over DDS.

Nothing here sleeps for a fixed time: a test waits for a condition, and when that does not come true the node's log
is part of the failure.
"""
from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

# before rclpy: only this machine, and images as our own nodes send them
os.environ['ROS_AUTOMATIC_DISCOVERY_RANGE'] = 'LOCALHOST'
from sam2_ros.runtime.dds import use_image_profile  # noqa: E402

use_image_profile()

import cv2  # noqa: E402
import numpy as np  # noqa: E402
import rclpy  # noqa: E402
from builtin_interfaces.msg import Time  # noqa: E402
from lifecycle_msgs.srv import ChangeState, GetState  # noqa: E402
from rcl_interfaces.srv import GetParameters, SetParameters  # noqa: E402
from rclpy.executors import SingleThreadedExecutor  # noqa: E402
from rclpy.parameter import Parameter  # noqa: E402
from rclpy.qos import QoSProfile  # noqa: E402
from sensor_msgs.msg import CompressedImage, Image, RegionOfInterest  # noqa: E402
from std_msgs.msg import Header  # noqa: E402
from std_srvs.srv import Trigger  # noqa: E402

from sam2_ros.msg import ImagePoint, Instance, InstanceArray, Prompt, PromptStatus  # noqa: E402
from sam2_ros.srv import SetPrompt  # noqa: E402
from testing.domains import own_domain  # noqa: E402
from testing.waiting import PATIENCE, PROMPT_TIMEOUT  # noqa: E402

PERIOD = 1 / 15  # seconds from image to image of a camera that streams
FRAME_ID = 'camera_optical_frame'
NODE = (sys.executable, '-m', 'sam2_ros.node')


class NodeProcess:
    """The command of a node with its output in a file. ``arguments``: those after --ros-args."""

    def __init__(self, domain: int, log: Path, parameters: dict | None = None, arguments: tuple[str, ...] = (),
                 command: tuple[str, ...] = NODE, environment: dict[str, str] | None = None) -> None:
        arguments = [*arguments]
        for name, value in (parameters or {}).items():
            arguments += ['-p', f'{name}:={str(value).lower() if isinstance(value, bool) else value}']
        command = [*command, *(['--ros-args', *arguments] if arguments else [])]
        self._log = log
        environment = {**(environment or os.environ), 'ROS_DOMAIN_ID': str(domain), 'ROS_LOG_DIR': str(log.parent)}
        with log.open('w') as output:
            self._process = subprocess.Popen(
                command, env=environment, stdout=output, stderr=subprocess.STDOUT,
                # a test run in the background of a shell would pass on that SIGINT is ignored
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler))

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    @property
    def log(self) -> str:
        return self._log.read_text()

    def stop(self, how: int = signal.SIGINT) -> tuple[int, float]:
        """Signal the process, wait for its end and return its exit code and the processor seconds that the end took."""
        before = sum(os.times()[2:4]) + self._processor_seconds()
        self._process.send_signal(how)
        try:
            code = self._process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            raise AssertionError(f'still running {PATIENCE} s after signal {how}:\n{self.log}') from None
        return code, sum(os.times()[2:4]) - before

    def _processor_seconds(self) -> float:
        fields = Path(f'/proc/{self.pid}/stat').read_text().rpartition(')')[2].split()
        return sum(map(int, fields[11:15])) / os.sysconf('SC_CLK_TCK')  # its own, and of children that have ended

    def kill(self) -> None:
        if self.alive:
            self._process.kill()
            self._process.wait()

    def wait(self) -> int:
        """Wait for the process to end by itself: its exit code."""
        return self._process.wait(PATIENCE)


class Peer:
    """All that the node talks with: publishes images and prompts, calls its services, keeps what it publishes."""

    def __init__(self, domain: int, process: NodeProcess, *, compressed: bool = False, namespace: str = '',
                 image_topic: str = '', camera: str = '') -> None:
        """camera: the name of one of several."""
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
        """Handle what arrives within this time, one thing at most."""
        self._executor.spin_once(timeout_sec=seconds)

    def wait_for(self, condition: Callable[[], object], what: str, patience: float = PATIENCE) -> object:
        """Handle what arrives until the condition is true; its value."""
        deadline = time.monotonic() + patience
        while not (value := condition()):
            assert self.process.alive, f'the node ended while waiting for {what}:\n{self.process.log}'
            assert time.monotonic() < deadline, f'{what}: not within {patience} s; the log:\n{self.process.log}'
            self._executor.spin_once(timeout_sec=0.05)
        return value

    def wait_until_active(self, image: np.ndarray | None = None) -> None:
        """Until prompts and images get through, and answers back; ``image`` is what the camera shows meanwhile.

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
        """Until the node sees what the camera shows."""
        image = np.full((48, 64, 3), 100, np.uint8) if image is None else image

        def seen() -> bool:
            self.send(message := self.message(image))
            return self._soon(lambda: self.instances_at(message.header.stamp))
        self.wait_for(seen, 'the node to see images')

    def _soon(self, condition: Callable[[], object]) -> bool:
        """Whether it comes true within a second."""
        deadline = time.monotonic() + 1
        while not condition() and time.monotonic() < deadline:
            self._executor.spin_once(timeout_sec=0.05)
        return bool(condition())

    def wait_until_deaf(self) -> None:
        self.wait_for(lambda: not self._camera.get_subscription_count() and not self._prompts.get_subscription_count(),
                      'the node to stop listening')

    def subscribe_pictures(self, name: str) -> list[Image]:
        """What arrives on ~/name from now on."""
        return self.subscribe(Image, name)

    def subscribe(self, kind: type, name: str, qos: QoSProfile | int = 10) -> list:
        """The messages of a type that arrive on ~/name from now on."""
        arrived: list = []
        self.node.create_subscription(kind, f'{self.private}/{name}', arrived.append, qos)
        self.wait_for(lambda: self.node.count_publishers(f'{self.private}/{name}'), name)
        return arrived

    # --- the camera

    def header(self) -> Header:
        """Of a new image: this moment, and later than every one before."""
        self._last_stamp = max(time.time_ns(), self._last_stamp + 1)
        seconds, nanoseconds = divmod(self._last_stamp, 10**9)
        return Header(stamp=Time(sec=seconds, nanosec=nanoseconds), frame_id=FRAME_ID)

    def message(self, image: np.ndarray, header: Header | None = None) -> Image | CompressedImage:
        """As this camera sends it; by default an image of this moment."""
        header = header or self.header()
        return compressed_message(image, header, 'png') if self._compressed else image_message(image, header)

    def restart_camera(self, image: np.ndarray) -> None:
        """As when its driver is stopped and started again."""
        self.node.destroy_publisher(self._camera)
        self._camera = self.node.create_publisher(*self._image_topic, 5)
        self.wait_for_camera(image)

    def send(self, message: Image | CompressedImage) -> None:
        self._camera.publish(message)

    def stream(self, image: np.ndarray) -> None:
        """Show an image when the camera's next one is due; to be called again and again."""
        if self.due():
            self.send(self.message(image))

    def due(self) -> bool:
        """Whether it is time for the camera's next image; if so, the one after it is due a period later."""
        now = time.monotonic()
        if now < self._next_image:
            return False
        self._next_image = now + PERIOD
        return True

    def process_image(self, image: np.ndarray | Image | CompressedImage) -> InstanceArray:
        """Show one image and wait for what the node says about it."""
        message = self.message(image) if isinstance(image, np.ndarray) else image
        self.send(message)
        return self.wait_for(lambda: self.instances_at(message.header.stamp), 'the instances of an image')

    def instances_at(self, stamp: Time) -> InstanceArray | None:
        return next((array for array in reversed(self.instances) if array.header.stamp == stamp), None)

    # --- prompts

    def send_prompt(self, prompt: Prompt) -> None:
        self._prompts.publish(prompt)

    def prompt(self, prompt: Prompt, image: np.ndarray | None) -> PromptStatus:
        """Send a prompt by topic and show the image again and again until it is answered; None: show nothing."""
        seen = len(self.statuses)
        self.send_prompt(prompt)
        while len(self.statuses) == seen:
            if image is None:
                self.wait_for(lambda: len(self.statuses) > seen, 'the answer to a prompt')
            else:
                self.process_image(image)
        # the instances are published before the answer, on another topic
        if self.statuses[seen].accepted and image is not None:
            self.wait_for(lambda: self.instances_at(self.statuses[seen].header.stamp), 'the prompted image')
        return self.statuses[seen]

    def start_object(self, object_id: int, box, image: np.ndarray, label: str = '') -> InstanceArray:
        """SET an object by its box; the instances of the image it was applied to."""
        status = self.prompt(Prompt(id=object_id, box=roi(box), label=label), image)
        assert status.accepted, status.reason
        return self.instances_at(status.header.stamp)

    # --- services

    def call(self, kind, name: str, request):
        """The future of a service's answer."""
        if name not in self._clients:
            own = kind.__module__.startswith('sam2_ros') or kind is Trigger  # of the camera, not of the node
            self._clients[name] = self.node.create_client(kind, f'{self.private if own else self.name}/{name}')
        client = self._clients[name]
        self.wait_for(client.service_is_ready, f'service {name}')
        return client.call_async(request)

    def ask(self, kind, name: str, request=None):
        """A service's answer."""
        future = self.call(kind, name, kind.Request() if request is None else request)
        self.wait_for(future.done, f'the answer of {name}')
        return future.result()

    def set_prompt(self, prompt: Prompt):
        """The future of ~/set_prompt."""
        return self.call(SetPrompt, 'set_prompt', SetPrompt.Request(prompt=prompt))

    def show_until(self, condition: Callable[[], object], image: np.ndarray) -> None:
        """Show the image again and again until the condition is true."""
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
        return self.ask(GetState, 'get_state').current_state.label

    def set_parameter(self, name: str, value) -> tuple[bool, str]:
        parameters = [Parameter(name, value=value).to_parameter_msg()]
        result = self.ask(SetParameters, 'set_parameters', SetParameters.Request(parameters=parameters)).results[0]
        return result.successful, result.reason

    def parameter(self, name: str):
        answer = self.ask(GetParameters, 'get_parameters', GetParameters.Request(names=[name]))
        return rclpy.parameter.parameter_value_to_python(answer.values[0])


@contextlib.contextmanager
def running_node(folder: Path, parameters: dict | None = None, arguments: tuple[str, ...] = (), *,
                 active: bool = True, command: tuple[str, ...] = NODE, environment: dict[str, str] | None = None,
                 **peer) -> Iterator[Peer]:
    """A node process in a domain of its own and the peer to talk to it; ends both."""
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


def image_message(pixels: np.ndarray, header: Header, encoding: str = 'rgb8') -> Image:
    height, width = pixels.shape[:2]
    message = Image(header=header, height=height, width=width, encoding=encoding, step=pixels[0].nbytes)
    message.data.frombytes(pixels.tobytes())
    return message


def compressed_message(pixels: np.ndarray, header: Header, kind: str) -> CompressedImage:
    """kind: jpeg or png."""
    done, data = cv2.imencode(f'.{kind}', cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR))
    assert done
    message = CompressedImage(header=header, format=f'rgb8; {kind} compressed bgr8')
    message.data.frombytes(data.tobytes())
    return message


def roi(box) -> RegionOfInterest:
    """(x0, y0, x1, y1), x1 and y1 exclusive."""
    x0, y0, x1, y1 = (int(value) for value in box)
    return RegionOfInterest(x_offset=x0, y_offset=y0, width=x1 - x0, height=y1 - y0)


def point(x: float, y: float, label: int = ImagePoint.FOREGROUND) -> ImagePoint:
    return ImagePoint(x=float(x), y=float(y), label=label)


def whole_mask(array: InstanceArray, object_id: int) -> np.ndarray:
    """The mask of an instance at its place in the image, bool (height, width)."""
    instance = instance_of(array, object_id)
    mask = np.zeros((array.height, array.width), bool)
    if instance.roi.width:
        crop = np.frombuffer(instance.mask.data, np.uint8).reshape(instance.mask.height, instance.mask.width)
        x, y = instance.roi.x_offset, instance.roi.y_offset
        mask[y:y + crop.shape[0], x:x + crop.shape[1]] = crop > 0
    return mask


def instance_of(array: InstanceArray, object_id: int) -> Instance:
    return next(instance for instance in array.instances if instance.id == object_id)


def ids(array: InstanceArray) -> list[int]:
    return sorted(instance.id for instance in array.instances)


class Scene:
    """Two textured discs that cross a calm background, with the truth about them. Times are image numbers."""

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
        """uint8 RGB (height, width, 3)."""
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
