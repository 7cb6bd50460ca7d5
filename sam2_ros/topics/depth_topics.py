"""Subscriptions to depth and camera_info, paired by message_filters where it is installed."""
from __future__ import annotations

from collections.abc import Callable
from functools import partial

from rclpy.clock import Clock, ClockType
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, qos_profile_sensor_data
from rclpy.qos_overriding_options import QoSOverridingOptions
from sensor_msgs.msg import CameraInfo

from sam2_ros.depth.depth_messages import DepthMessage
from sam2_ros.depth.matching import DepthMailbox
from sam2_ros.messages.conversions import to_nanoseconds
from sam2_ros.messages.qos import LATCHED
from sam2_ros.runtime.image_transports import RAW, ImageSubscription

try:
    import message_filters
except ImportError:  # not part of the wheels
    message_filters = None

LOOK_EVERY = 0.5  # seconds
UNPAIRED = 10  # messages of each topic that wait for the other one of their stamp
_Found = Callable[[DepthMessage, CameraInfo], None]


class DepthTopics:
    """Subscriptions to depth and camera_info between construction and ``destroy``."""

    def __init__(self, node: Node, mailbox: DepthMailbox, prefix: str = '', pairing: str = '',
                 transport: str = RAW) -> None:
        """Subscribe.

        Args:
            node: The node.
            mailbox: Receives the messages.
            prefix: Prefix of the topics, empty or ``NAME/``.
            pairing: One of PAIRINGS; empty takes the first.
            transport: Transport of the depth.
        """
        self._node = node
        info_topic = f'{prefix}camera_info'
        self._mailbox = mailbox
        self._pair_depth, self._pair_info = PAIRINGS[pairing or next(iter(PAIRINGS))](mailbox.put_pair)
        self._depth = ImageSubscription(node, f'{prefix}depth', transport, self._on_depth)
        self._subscriptions = [node.create_subscription(
            CameraInfo, info_topic, self._on_info, qos_profile_sensor_data,
            qos_overriding_options=QoSOverridingOptions.with_default_policies())]
        self._info_topic = info_topic
        self._timer = node.create_timer(LOOK_EVERY, self._look_for_latched, clock=Clock(
            clock_type=ClockType.STEADY_TIME))

    def _on_depth(self, message: DepthMessage) -> None:
        self._mailbox.put_depth(message)
        self._pair_depth(message)

    def _on_info(self, message: CameraInfo) -> None:
        self._mailbox.put_info(message)
        self._pair_info(message)

    def _look_for_latched(self) -> None:
        """Subscribe to latched camera_info if a driver offers it: it may have been sent once, before this node ran.

        A transient-local subscription to a driver that does not latch would make that driver log a warning.
        """
        if self._mailbox.info is not None:
            self._timer.cancel()
            return
        publishers = self._node.get_publishers_info_by_topic(self._node.resolve_topic_name(self._info_topic))
        if any(publisher.qos_profile.durability == DurabilityPolicy.TRANSIENT_LOCAL for publisher in publishers):
            self._timer.cancel()
            self._subscriptions.append(self._node.create_subscription(
                CameraInfo, self._info_topic, self._mailbox.put_info, LATCHED))

    def destroy(self) -> None:
        """Destroy the subscriptions."""
        self._node.destroy_timer(self._timer)
        self._depth.destroy()
        for subscription in self._subscriptions:
            self._node.destroy_subscription(subscription)
        self._subscriptions = []


def _filtered(found: _Found) -> tuple[Callable, Callable]:
    depth, info = message_filters.SimpleFilter(), message_filters.SimpleFilter()
    message_filters.TimeSynchronizer([depth, info], UNPAIRED).registerCallback(found)

    def add(source: message_filters.SimpleFilter, message: DepthMessage | CameraInfo) -> None:
        if message.header.stamp.sec >= 0:  # at a negative stamp, TimeSynchronizer raises and keeps its lock
            source.signalMessage(message)
    return partial(add, depth), partial(add, info)


def _paired(found: _Found) -> tuple[Callable, Callable]:
    pairs = _Pairs(found)
    return pairs.add_depth, pairs.add_info


# functions that return where to put depth and camera_info, to have the pairs of one stamp found
PAIRINGS = {**({'message_filters': _filtered} if message_filters else {}), 'by stamp': _paired}


class _Pairs:
    """Pairing of depth and camera_info of one stamp, in whichever order they arrive."""

    def __init__(self, found: _Found) -> None:
        self._found = found
        self._depths: dict[int, DepthMessage] = {}
        self._infos: dict[int, CameraInfo] = {}

    def add_depth(self, message: DepthMessage) -> None:
        self._add(message, self._depths)

    def add_info(self, message: CameraInfo) -> None:
        self._add(message, self._infos)

    def _add(self, message: DepthMessage | CameraInfo, messages: dict) -> None:
        stamp = to_nanoseconds(message.header.stamp)
        messages[stamp] = message
        if stamp in self._depths and stamp in self._infos:
            self._found(self._depths.pop(stamp), self._infos.pop(stamp))
        elif len(messages) > UNPAIRED:
            del messages[next(iter(messages))]
