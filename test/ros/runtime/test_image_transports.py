"""Transports of images: topics, and plugins of image_transport through stand-ins of image_transport_py.

The stand-ins have the functions and the argument names of the pybind11 module of image_transport_py, before and after
its functions took the node. The package itself is not run here.
"""
import threading
import time
import types

import numpy as np
import pytest
import rclpy
from rclpy.executors import SingleThreadedExecutor
from rclpy.parameter import Parameter
from sensor_msgs.msg import CompressedImage, Image

from sam2_ros.node import Sam2Node
from sam2_ros.preflight.findings import Verdict
from sam2_ros.preflight.listener import CheckedCamera, Listener
from sam2_ros.runtime import image_transports
from sam2_ros.runtime.image_transports import (
    ImageSubscription,
    TransportMissing,
    check_transports,
    depth_transport_of,
    image_transport_of,
)
from sam2_ros.runtime.parameters import Parameters
from testing.camera_images import header, image_message
from testing.waiting import PATIENCE


class Subscriber:
    """image_transport::Subscriber in Python."""

    def __init__(self, topic, callback):
        self.topic, self.callback, self.shut_down = topic, callback, False

    def get_topic(self):
        return self.topic

    def get_num_publishers(self):
        return 1

    def get_transport(self):
        return 'theora'

    def shutdown(self):
        self.shut_down = True

    def publish(self, message):
        """Deliver a message from a thread of the plugin's executor."""
        thread = threading.Thread(target=self.callback, args=(message,))
        thread.start()
        thread.join()


def plugins(with_node: bool) -> types.SimpleNamespace:
    """Return a stand-in of the module, whose ``made`` and ``subscribers`` list what was asked of it."""
    module = types.SimpleNamespace(made=[], subscribers=[])

    def subscribe(base_topic, queue_size, callback):
        assert isinstance(base_topic, str) and type(queue_size) is int and callable(callback)
        module.subscribers.append(Subscriber(base_topic, callback))
        return module.subscribers[-1]

    class WithoutNode:
        def __init__(self, node_name, image_transport='', launch_params_filepath=''):
            module.made.append((node_name, image_transport))

        def subscribe(self, base_topic, queue_size, callback):
            return subscribe(base_topic, queue_size, callback)

    class WithNode:
        def __init__(self, node, node_name, image_transport='', launch_params_filepath=''):
            assert node.get_namespace()
            module.made.append((node_name, image_transport))

        def subscribe(self, node, base_topic, queue_size, callback):
            return subscribe(node.resolve_topic_name(base_topic), queue_size, callback)
    module.ImageTransport = WithNode if with_node else WithoutNode
    return module


@pytest.fixture(params=[True, False], ids=['with the node', 'without'])
def installed(request, monkeypatch):
    module = plugins(request.param)
    monkeypatch.setattr(image_transports, 'image_transport_py', module)
    return module


@pytest.fixture
def node(ros_domain):
    context = rclpy.Context()
    rclpy.init(args=['--ros-args', '-r', 'image:=/wrist/image'], context=context, domain_id=ros_domain)
    node = rclpy.create_node('sam2', context=context)
    executor = SingleThreadedExecutor(context=context)
    executor.add_node(node)
    yield node
    executor.shutdown()
    node.destroy_node()
    rclpy.shutdown(context=context)


def spin_until(node, condition):
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        node.executor.spin_once(timeout_sec=0.02)


def test_images_of_a_plugin_arrive_in_the_thread_of_the_node(installed, node):
    arrived = []
    subscription = ImageSubscription(node, 'image', 'theora', lambda message: arrived.append(
        (message, threading.current_thread())))
    (subscriber,) = installed.subscribers
    assert subscriber.get_topic() == '/wrist/image' and installed.made == [('sam2_theora', 'theora')]
    message = image_message(np.zeros((4, 4, 3), np.uint8), header(1))
    subscriber.publish(message)
    assert not arrived, 'only the executor calls'
    spin_until(node, lambda: arrived)
    assert arrived == [(message, threading.current_thread())]
    subscription.destroy()
    assert subscriber.shut_down
    subscriber.publish(message)
    node.executor.spin_once(timeout_sec=0.05)
    assert len(arrived) == 1


def test_a_callback_that_fails_costs_its_message_only(installed, node):
    seen = []
    ImageSubscription(node, 'image', 'theora', lambda message: seen.append(message) or 1 / 0)
    for count in (1, 2):
        installed.subscribers[0].publish(image_message(np.zeros((4, 4, 3), np.uint8), header(count)))
        spin_until(node, lambda count=count: len(seen) == count)


def test_a_plugin_is_loaded_once_for_all_cameras(installed, node):
    for name in ('left/image', 'right/image', 'left/image'):
        ImageSubscription(node, name, 'ffmpeg', print).destroy()
    assert installed.made == [('sam2_ffmpeg', 'ffmpeg')]
    assert [subscriber.topic for subscriber in installed.subscribers] == ['/left/image', '/right/image', '/left/image']


def test_a_plugin_that_is_not_installed_is_named(installed, node):
    def subscribe(*arguments, **named):
        raise RuntimeError('Unable to load plugin for transport image_transport/theora_sub')
    installed.ImageTransport.subscribe = subscribe
    with pytest.raises(TransportMissing, match=r"transport 'theora' of /wrist/image: .*Unable to load plugin .*install "
                                               r'.*ros-\$ROS_DISTRO-theora-image-transport'):
        ImageSubscription(node, 'image', 'theora', print)


@pytest.mark.parametrize(('values', 'reason'), [
    ({'image_transport': 'theora'}, "image_transport 'theora': must be raw, compressed, compressedDepth, or a plugin"),
    ({'cameras': ('a', 'b'), 'depth_transports': ('raw', 'zstd')}, "depth_transport 'zstd': .*image-transport-py")])
def test_a_plugin_that_nothing_can_read_is_refused_with_the_package(monkeypatch, values, reason):
    monkeypatch.setattr(image_transports, 'image_transport_py', None)
    with pytest.raises(TransportMissing, match=reason):
        check_transports(Parameters(**values))
    monkeypatch.setattr(image_transports, 'image_transport_py', plugins(True))
    check_transports(Parameters(**values))


def test_unused_depth_needs_no_plugin(monkeypatch):
    monkeypatch.setattr(image_transports, 'image_transport_py', None)
    check_transports(Parameters(depth_transport='zstd', use_depth=False))


def test_each_camera_has_its_transport():
    chosen = Parameters(cameras=('a', 'b'), image_transport='theora', image_transports=('raw', 'compressed'),
                        depth_transport='compressedDepth')
    assert [image_transport_of(chosen, name) for name in ('a', 'b')] == ['raw', 'compressed']
    assert [depth_transport_of(chosen, name) for name in ('a', 'b')] == ['compressedDepth'] * 2
    assert image_transport_of(Parameters(image_transport='compressed'), '') == 'compressed'


def started(domain, **values):
    context = rclpy.Context()
    rclpy.init(context=context, domain_id=domain)
    node = Sam2Node(context=context, parameter_overrides=[
        Parameter(name, value=value) for name, value in {'autostart': False, **values}.items()])
    return context, node


def subscribed(node):
    return {item.topic_name: item.msg_type for item in node.subscriptions if item.msg_type in (Image, CompressedImage)}


def test_the_node_subscribes_by_the_transports_of_each_camera(ros_domain, monkeypatch, model, installed):
    monkeypatch.setattr('sam2_ros.node.load', lambda chosen: model)
    context, node = started(ros_domain, cameras=['a', 'b'], image_transports=['raw', 'compressed'],
                            depth_transports=['compressedDepth', 'ffmpeg'])
    try:
        node.trigger_configure()
        node.trigger_activate()
        assert subscribed(node) == {'/a/image': Image, '/b/image/compressed': CompressedImage,
                                    '/a/depth/compressedDepth': CompressedImage}
        assert [subscriber.topic for subscriber in installed.subscribers] == ['/b/depth']
        node.trigger_deactivate()
        assert not subscribed(node) and installed.subscribers[0].shut_down
    finally:
        node.close()
        node.destroy_node()
        rclpy.shutdown(context=context)


def test_the_node_cannot_be_configured_without_the_package(ros_domain, monkeypatch, capfd):
    monkeypatch.setattr(image_transports, 'image_transport_py', None)
    context, node = started(ros_domain, image_transport='theora')
    node.trigger_configure()
    assert node._state_machine.current_state[1] == 'unconfigured'
    assert "image_transport 'theora': must be raw" in capfd.readouterr().err
    node.destroy_node()
    rclpy.shutdown(context=context)


@pytest.mark.parametrize('there', [True, False])
def test_sam2_check_reads_a_plugin_or_names_the_package(node, monkeypatch, there):
    module = plugins(True) if there else None
    monkeypatch.setattr(image_transports, 'image_transport_py', module)
    listener = Listener(node, node, Parameters(image_transport='theora'), [CheckedCamera('', 'image', 'depth', 'info')])
    topic = listener._cameras[0][1][0]
    assert (topic.name, topic.type) == ('/wrist/image/theora', '')
    if there:
        module.subscribers[0].publish(image_message(np.zeros((4, 4, 3), np.uint8), header(1)))
        deadline = time.monotonic() + PATIENCE
        while topic.last is None and time.monotonic() < deadline:
            listener._spin(0.1, lambda: topic.last is not None)
        assert topic.last is not None
    else:
        found = next(finding for finding in listener.findings() if finding.what == 'transport')
        assert found.verdict is Verdict.BAD and 'ros-$ROS_DISTRO-image-transport-py' in found.text
    listener.close()
