"""Subscriptions to depth and camera_info, paired by message_filters where it is installed."""
from __future__ import annotations

from collections.abc import Callable

from rclpy.clock import Clock, ClockType
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, qos_profile_sensor_data
from rclpy.qos_overriding_options import QoSOverridingOptions
from rclpy.subscription import Subscription
from sensor_msgs.msg import CameraInfo, Image

from sam2_ros.depth.matching import DepthMailbox
from sam2_ros.messages.conversions import to_nanoseconds
from sam2_ros.messages.qos import LATCHED

try:
    import message_filters
except ImportError:  # not part of the wheels
    message_filters = None

LOOK_EVERY = 0.5  # seconds
UNPAIRED = 10  # messages of each topic that wait for the other one of their stamp


class DepthTopics:
    """Subscriptions to depth and camera_info between construction and ``destroy``."""

    def __init__(self, node: Node, mailbox: DepthMailbox, prefix: str = '', pairing: str = '') -> None:
        """Subscribe.

        Args:
            node: The node.
            mailbox: Receives the messages.
            prefix: Prefix of the topics, empty or ``NAME/``.
            pairing: One of PAIRINGS; empty takes the first.
        """
        self._node = node
        info_topic = f'{prefix}camera_info'
        subscribe = PAIRINGS[pairing or next(iter(PAIRINGS))]
        self._subscriptions = subscribe(node, mailbox, f'{prefix}depth', info_topic)
        self._mailbox = mailbox
        self._info_topic = info_topic
        self._timer = node.create_timer(LOOK_EVERY, self._look_for_latched, clock=Clock(
            clock_type=ClockType.STEADY_TIME))

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
        for subscription in self._subscriptions:
            self._node.destroy_subscription(subscription)
        self._subscriptions = []


def _filtered(node: Node, mailbox: DepthMailbox, depth_topic: str, info_topic: str) -> list[Subscription]:
    depth = message_filters.Subscriber(node, Image, depth_topic, **_options())
    info = message_filters.Subscriber(node, CameraInfo, info_topic, **_options())
    depth.registerCallback(mailbox.put_depth)
    info.registerCallback(mailbox.put_info)
    stamped = [_with_stamps_from_zero(depth), _with_stamps_from_zero(info)]
    message_filters.TimeSynchronizer(stamped, UNPAIRED).registerCallback(mailbox.put_pair)
    return [depth.sub, info.sub]


def _with_stamps_from_zero(source: message_filters.SimpleFilter) -> message_filters.SimpleFilter:
    """Filter out messages with a negative stamp, at which TimeSynchronizer raises and keeps its lock."""
    passed = message_filters.SimpleFilter()
    source.registerCallback(lambda message: passed.signalMessage(message) if message.header.stamp.sec >= 0 else None)
    return passed


def _paired(node: Node, mailbox: DepthMailbox, depth_topic: str, info_topic: str) -> list[Subscription]:
    pairs = _Pairs(mailbox.put_pair)

    def on_depth(message: Image) -> None:
        mailbox.put_depth(message)
        pairs.add_depth(message)

    def on_info(message: CameraInfo) -> None:
        mailbox.put_info(message)
        pairs.add_info(message)
    return [node.create_subscription(Image, depth_topic, on_depth, **_options()),
            node.create_subscription(CameraInfo, info_topic, on_info, **_options())]


def _options() -> dict:
    return {'qos_profile': qos_profile_sensor_data,
            'qos_overriding_options': QoSOverridingOptions.with_default_policies()}


PAIRINGS = {**({'message_filters': _filtered} if message_filters else {}), 'by stamp': _paired}


class _Pairs:
    """Pairing of depth and camera_info of one stamp, in whichever order they arrive."""

    def __init__(self, found: Callable[[Image, CameraInfo], None]) -> None:
        self._found = found
        self._depths: dict[int, Image] = {}
        self._infos: dict[int, CameraInfo] = {}

    def add_depth(self, message: Image) -> None:
        self._add(message, self._depths)

    def add_info(self, message: CameraInfo) -> None:
        self._add(message, self._infos)

    def _add(self, message: Image | CameraInfo, messages: dict) -> None:
        stamp = to_nanoseconds(message.header.stamp)
        messages[stamp] = message
        if stamp in self._depths and stamp in self._infos:
            self._found(self._depths.pop(stamp), self._infos.pop(stamp))
        elif len(messages) > UNPAIRED:
            del messages[next(iter(messages))]
