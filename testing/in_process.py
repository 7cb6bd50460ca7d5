"""The real node in this process: messages go into its callbacks, and what it publishes is stored instead of sent."""
from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import rclpy
from rclpy.lifecycle import LifecyclePublisher, TransitionCallbackReturn
from rclpy.parameter import Parameter
from rclpy.publisher import Publisher
from sensor_msgs.msg import CameraInfo, Image, RegionOfInterest
from std_msgs.msg import Header

from sam2_ros.messages.conversions import from_pixels
from sam2_ros.msg import InstanceArray, Prompt, PromptStatus
from sam2_ros.node import Sam2Node
from sam2_ros.perception.worker import Worker
from sam2_ros.runtime.guarded_node import GuardedExecutor
from testing import camera_images
from testing.domains import own_domain
from testing.waiting import PATIENCE, PROMPT_TIMEOUT

HEIGHT, WIDTH = 48, 64
BOX = RegionOfInterest(x_offset=8, y_offset=8, width=24, height=24)


def picture() -> np.ndarray:
    image = np.full((HEIGHT, WIDTH, 3), 80, np.uint8)
    image[8:32, 8:32] = (230, 60, 40)
    return image


def header(nanoseconds: int, frame: str = 'camera') -> Header:
    return camera_images.header(nanoseconds=nanoseconds, frame_id=frame)


def camera_info(nanoseconds: int, **fields) -> CameraInfo:
    return CameraInfo(**{'header': header(nanoseconds), 'width': WIDTH, 'height': HEIGHT,
                         'distortion_model': 'plumb_bob', 'k': [50.0, 0.0, 32.0, 0.0, 50.0, 24.0, 0.0, 0.0, 1.0],
                         'p': [50.0, 0.0, 32.0, 0.0, 0.0, 50.0, 24.0, 0.0, 0.0, 0.0, 1.0, 0.0], **fields})


class InProcess:
    """A configured and active ``Sam2Node`` with nano at 64 pixels."""

    def __init__(self, context: rclpy.Context, threaded: bool, **parameters) -> None:
        """Start the node; ``threaded`` starts the worker, too, otherwise ``serve`` does its work."""
        given = {'image_size': 64, 'autostart': False, 'device': 'cpu', 'depth_wait': 0.0,
                 'prompt_timeout': PROMPT_TIMEOUT, **parameters}
        self.published: list[tuple[str, object]] = []
        self._patch = pytest.MonkeyPatch()
        for kind in (Publisher, LifecyclePublisher):
            self._patch.setattr(kind, 'publish', lambda publisher, message: self.published.append(
                (publisher.topic, message)))
        if not threaded:
            self._patch.setattr(Worker, 'start', lambda worker: None)
        self.node = Sam2Node(context=context, parameter_overrides=[
            Parameter(name, value=value) for name, value in given.items()])
        self.executor = GuardedExecutor(self.node.failures, context=context)
        self.executor.add_node(self.node)
        assert self.node.trigger_configure() == TransitionCallbackReturn.SUCCESS
        assert self.node.trigger_activate() == TransitionCallbackReturn.SUCCESS
        (self.camera,) = self.node._cameras
        self.pipeline = self.camera.pipeline
        self.now = 1_000 * 10**9

    def restart(self) -> None:
        """Reset the camera to its state after configure: no objects, images, depth or prompts."""
        self.camera.unsubscribe()
        self.camera.cleanup()
        chosen = replace(self.pipeline.parameters, detections_topic='')
        self.camera.configure(self.node._model, chosen, self.node._changed)
        self.camera.activate()
        self.node._worker._cameras = [self.camera.topics]
        self.pipeline = self.camera.pipeline
        self.published.clear()

    def close(self) -> None:
        self.node.close()
        self.executor.shutdown()
        self.node.destroy_node()
        self._patch.undo()

    def send(self, topic: str, message) -> None:
        """Pass a message to the callback of its subscription."""
        for subscription in self.node.subscriptions:
            if subscription.topic_name.endswith(topic):
                subscription.callback(message)
                return
        raise KeyError(topic)

    def ask(self, service: str, request) -> rclpy.task.Task:
        """Pass a request to the callback of its service; return the task of the response."""
        for one in self.node.services:
            if one.srv_name.endswith(service):
                return self.executor.create_task(one.callback, request, one.srv_type.Response())
        raise KeyError(service)

    def spin(self) -> None:
        """Let the executor handle everything that is due."""
        for _ in range(12):
            self.executor.spin_once(timeout_sec=0)

    def wait_for(self, condition: Callable[[], object], what: str = '') -> None:
        deadline = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < deadline, what
            self.executor.spin_once(timeout_sec=0.001)

    def show(self, step: int = 10**8, depth: bool = True) -> int:
        """Send the next image with its depth; return its stamp in ns."""
        self.now += step
        if depth:
            self.send('/camera_info', camera_info(self.now))
            self.send('/depth', from_pixels(np.full((HEIGHT, WIDTH), 1000, np.uint16), '16UC1', header(self.now)))
        self.send('/image', from_pixels(picture(), 'rgb8', header(self.now)))
        return self.now

    def serve(self) -> None:
        """Do the work of the worker's thread until nothing is left."""
        worker = self.node._worker
        worker._serve()
        for _ in range(100):
            worker._work_aside()

    def messages(self, kind: type) -> list:
        return [message for _, message in self.published if isinstance(message, kind)]

    @property
    def frames(self) -> list[InstanceArray]:
        return self.messages(InstanceArray)

    @property
    def statuses(self) -> list[PromptStatus]:
        return self.messages(PromptStatus)


@contextmanager
def in_process(threaded: bool, **parameters):
    with own_domain() as number:
        context = rclpy.Context()
        rclpy.init(context=context, domain_id=number)
        robot = InProcess(context, threaded, **parameters)
        try:
            yield robot
        finally:
            robot.close()
            rclpy.shutdown(context=context)


def image(nanoseconds: int, **fields) -> Image:
    message = from_pixels(picture(), 'rgb8', header(nanoseconds))
    for name, value in fields.items():
        setattr(message, name, value)
    return message


def set_box(nanoseconds: int = 0, **fields) -> Prompt:
    return Prompt(**{'header': header(nanoseconds), 'box': BOX, **fields})
