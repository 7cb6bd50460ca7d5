"""Cleanup frees the model and the objects, however much they have been used."""
import gc
import time
import weakref

import numpy as np
import pytest
import rclpy
import torch
from diagnostic_msgs.msg import DiagnosticArray
from rclpy.executors import SingleThreadedExecutor
from rclpy.lifecycle import TransitionCallbackReturn
from rclpy.parameter import Parameter
from sensor_msgs.msg import Image, RegionOfInterest
from std_msgs.msg import Header

from sam2_ros.messages.conversions import from_pixels
from sam2_ros.msg import InstanceArray, Prompt
from sam2_ros.node import Sam2Node
from sam2_ros.runtime.parameter_rules import ParameterError

SUCCESS = TransitionCallbackReturn.SUCCESS


class User:
    """User of the node in the same process."""

    def __init__(self, node: Sam2Node, context: rclpy.Context) -> None:
        self.executor = SingleThreadedExecutor(context=context)
        self._own = rclpy.create_node('user', context=context)
        for one in (node, self._own):
            self.executor.add_node(one)
        self._images = self._own.create_publisher(Image, 'image', 5)
        self._prompts = self._own.create_publisher(Prompt, 'sam2/prompt', 5)
        self._seen: list[InstanceArray] = []
        self._own.create_subscription(InstanceArray, 'sam2/instances', self._seen.append, 10)

    def track_something(self) -> None:
        """Prompt an object and wait until it is tracked."""
        self._seen.clear()
        picture = np.random.default_rng(0).integers(0, 255, (96, 128, 3), np.uint8)
        deadline = time.monotonic() + 30
        while not any(array.instances for array in self._seen):
            assert time.monotonic() < deadline
            self._prompts.publish(Prompt(id=1, box=RegionOfInterest(x_offset=20, y_offset=20, width=50, height=40)))
            stamp = self._own.get_clock().now().to_msg()
            self._images.publish(from_pixels(picture, 'rgb8', Header(stamp=stamp, frame_id='camera')))
            self.executor.spin_once(timeout_sec=0.1)

    def diagnostics(self) -> DiagnosticArray:
        """Return the next message of the node."""
        arrived: list[DiagnosticArray] = []
        subscription = self._own.create_subscription(DiagnosticArray, '/diagnostics', arrived.append, 10)
        deadline = time.monotonic() + 30
        while not arrived:
            assert time.monotonic() < deadline
            self.executor.spin_once(timeout_sec=0.1)
        self._own.destroy_subscription(subscription)
        return arrived[0]

    def close(self) -> None:
        self.executor.shutdown()
        self._own.destroy_node()


def make(context: rclpy.Context, **parameters) -> Sam2Node:
    parameters = {'autostart': False, 'device': 'cpu', **parameters}
    return Sam2Node(context=context,
                    parameter_overrides=[Parameter(name, value=value) for name, value in parameters.items()])


@pytest.mark.parametrize('names', [[], ['front', 'rear']], ids=['one camera', 'two cameras'])
def test_nothing_of_a_model_outlives_cleanup(context, names):
    node = make(context, **({'cameras': names} if names else {}))
    user = User(node, context)
    for _ in range(2):
        assert node.trigger_configure() == node.trigger_activate() == SUCCESS
        held = [weakref.ref(node._model), *(weakref.ref(camera.pipeline.objects.tracker) for camera in node._cameras)]
        if not names:
            user.track_something()
        assert node.trigger_deactivate() == node.trigger_cleanup() == SUCCESS
        assert [reference() for reference in held] == [None] * len(held)
    user.close()
    node.close()
    node.destroy_node()


def test_a_device_without_room_for_the_model_leaves_the_node_unconfigured_with_the_reason(context, monkeypatch):
    node = make(context)

    def load_model(*arguments, **options):
        raise torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 20.00 MiB')
    with monkeypatch.context() as full:
        full.setattr('sam2_ros.perception.model_loading.load_model', load_model)
        assert node.trigger_configure() == TransitionCallbackReturn.FAILURE
    user = User(node, context)
    status, = user.diagnostics().status
    assert status.message == ('unconfigured, the model cannot be loaded: CUDA out of memory. Tried to allocate '
                              '20.00 MiB')
    assert node.trigger_configure() == SUCCESS
    assert user.diagnostics().status[0].message == 'inactive: ros2 lifecycle set /sam2 activate'
    user.close()
    node.close()
    node.destroy_node()


def test_a_node_that_ended_or_could_not_start_leaves_the_graph_at_once(context, ros_domain):
    gc.collect()
    gc.disable()
    try:
        node = make(context)
        node.close()
        node.destroy_node()
        with pytest.raises(ParameterError):
            make(context, max_objects=-1)
        later = rclpy.Context()  # when a later node has been found, earlier ones would have been, too
        rclpy.init(context=later, domain_id=ros_domain)
        beacon = rclpy.create_node('beacon', context=later)
        watcher = rclpy.create_node('watcher', context=context)
        deadline = time.monotonic() + 30
        while 'beacon' not in watcher.get_node_names():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert 'sam2' not in watcher.get_node_names()
        for one in (beacon, watcher):
            one.destroy_node()
        rclpy.shutdown(context=later)
    finally:
        gc.enable()
