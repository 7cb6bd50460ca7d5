"""Transports of images: topics, message types, and subscriptions, also through image_transport_py.

A transport publishes on TOPIC/TRANSPORT, raw on TOPIC itself. This package reads raw, compressed and compressedDepth.
Every other transport is read by the plugins of image_transport, if image_transport_py is installed.
"""
from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

from rclpy.node import Node
from rclpy.qos import qos_profile_sensor_data
from rclpy.qos_overriding_options import QoSOverridingOptions
from sensor_msgs.msg import CompressedImage, Image

from sam2_ros.runtime.parameters import Parameters

try:
    import image_transport_py
except ImportError:  # not part of the wheels
    image_transport_py = None

RAW = 'raw'
OWN_TYPES = {RAW: Image, 'compressed': CompressedImage, 'compressedDepth': CompressedImage}
QUEUE = 5  # messages, as in rclpy's profile for sensor data


class TransportMissing(ValueError):
    """A transport that nothing installed can read; the text names the parameter and how to install it."""


def image_transport_of(chosen: Parameters, camera: str) -> str:
    """Return the transport of a camera's images; ``camera`` is '' for the only one."""
    return _of(chosen, camera, chosen.image_transports, chosen.image_transport)


def depth_transport_of(chosen: Parameters, camera: str) -> str:
    """Return the transport of a camera's depth; ``camera`` is '' for the only one."""
    return _of(chosen, camera, chosen.depth_transports, chosen.depth_transport)


def _of(chosen: Parameters, camera: str, each: tuple[str, ...], shared: str) -> str:
    return each[chosen.cameras.index(camera)] if each and camera in chosen.cameras else shared


def check_transports(chosen: Parameters) -> None:
    """Raise TransportMissing if a transport needs image_transport_py and that is not installed."""
    for camera in chosen.cameras or ('',):
        check_transport('image_transport', image_transport_of(chosen, camera))
        if chosen.use_depth:
            check_transport('depth_transport', depth_transport_of(chosen, camera))


def check_transport(parameter: str, transport: str) -> None:
    """Raise TransportMissing if this value of a parameter needs image_transport_py and that is not installed."""
    if transport not in OWN_TYPES and image_transport_py is None:
        raise TransportMissing(f"{parameter} '{transport}': must be {', '.join(OWN_TYPES)}, or a plugin of "
                               f'image_transport, which needs the package image_transport_py: sudo apt install '
                               f'ros-$ROS_DISTRO-image-transport-py and the package of the plugin')


def transport_topic(node: Node, name: str, transport: str) -> str:
    """Return the topic of a transport to subscribe to, before ``node.resolve_topic_name``.

    As with image_transport, the topic of a transport follows a remapping of the raw topic. It can also be remapped
    itself.

    Args:
        node: The node that subscribes.
        name: Relative name of the raw topic.
        transport: Name of the transport.
    """
    return name if transport == RAW else f'{node.resolve_topic_name(name)}/{transport}'


class ImageSubscription:
    """Subscription to the images of a topic by any transport, until ``destroy``."""

    def __init__(self, node: Node, name: str, transport: str, callback: Callable[[Any], None],
                 topic: str = '') -> None:
        """Subscribe.

        Args:
            node: The node.
            name: Relative name of the raw topic.
            transport: Name of the transport.
            callback: Receives Image or CompressedImage, in the thread of the node's executor.
            topic: Topic of the transport, if it does not follow from the name and the remappings of the node.
        """
        self._node = node
        self._callback = callback
        self._subscription = self._plugin = None
        if transport in OWN_TYPES:
            self._subscription = node.create_subscription(
                OWN_TYPES[transport], topic or transport_topic(node, name, transport), callback,
                qos_profile_sensor_data, qos_overriding_options=QoSOverridingOptions.with_default_policies())
        else:
            self._plugin = _subscribe(node, node.resolve_topic_name(name), transport, self._hand_over)

    def _hand_over(self, message: Image) -> None:
        """Pass a message on from the thread of the plugin, which has an executor of its own, to that of the node."""
        executor = self._node.executor
        if executor is not None and self._plugin is not None:
            executor.create_task(self._call, message)

    def _call(self, message: Image) -> None:
        if self._plugin is None:  # destroyed meanwhile
            return
        try:
            self._callback(message)
        except Exception as error:  # raised in the executor, it would end the process
            self._node.get_logger().error(f'callback of {self._plugin.get_topic()}: {type(error).__name__}: {error}',
                                          throttle_duration_sec=5.0)

    def destroy(self) -> None:
        """Destroy the subscription."""
        if self._subscription is not None:
            self._node.destroy_subscription(self._subscription)
        plugin, self._subscription, self._plugin = self._plugin, None, None
        if plugin is not None:
            plugin.shutdown()


def _subscribe(node: Node, topic: str, transport: str, callback: Callable[[Image], None]) -> Any:
    """Return a Subscriber of image_transport_py. Newer releases take the node as the first argument."""
    try:
        sources = _SOURCES.setdefault(node, {})
        if transport not in sources:
            options = {'node_name': f'{node.get_name()}_{transport}', 'image_transport': transport}
            try:
                source = image_transport_py.ImageTransport(node=node, **options)
                sources[transport] = partial(source.subscribe, node=node)
            except TypeError:
                sources[transport] = image_transport_py.ImageTransport(**options).subscribe
        return sources[transport](base_topic=topic, queue_size=QUEUE, callback=callback)
    except Exception as error:  # of the plugin's library
        raise TransportMissing(f"transport '{transport}' of {topic}: image_transport_py cannot subscribe to it "
                               f'({error}); install the package of the plugin, such as '
                               f'ros-$ROS_DISTRO-{transport}-image-transport') from error


# An ImageTransport runs a node of its own in a thread that ends with the process: each transport gets only one.
_SOURCES: WeakKeyDictionary[Node, dict[str, Callable]] = WeakKeyDictionary()
