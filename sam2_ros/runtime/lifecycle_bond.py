"""Bond with a lifecycle manager, which notices when the node ends. Needs the optional package bondpy."""
from __future__ import annotations

import threading
from typing import Any

from rclpy.duration import Duration
from rclpy.exceptions import InvalidHandle
from rclpy.impl.implementation_singleton import rclpy_implementation
from rclpy.lifecycle import LifecycleNode

try:
    from bondpy.bondpy import Bond
except ImportError:
    Bond = None

TOPIC = 'bond'  # as Nav2's lifecycle manager names it
CONNECT_TIMEOUT = 10.0  # seconds after which a bond is given up if no manager joins it
NEVER = 1e6  # seconds without a heartbeat of the manager after which the node would act, as in Nav2's own nodes
ANSWER_TIMEOUT = 0.5  # seconds that the end of the process waits for the manager's answer
MISSING = ('needs the package bondpy, which is not installed: sudo apt install ros-$ROS_DISTRO-bondpy, or set '
           'bond_heartbeat_period to 0.0, and bond_timeout of the lifecycle manager to 0.0')


def why_no_bond(period: float) -> str:
    """Return why a bond with this heartbeat period (seconds) cannot be formed, with the cure, or ''."""
    return f'bond_heartbeat_period {period:g} {MISSING}' if period and Bond is None else ''


class ManagerBond:
    """Bond of an active node with the lifecycle manager that has activated it, as Nav2's nodes keep it. Thread-safe.

    The node publishes heartbeats on ``bond`` with its own name as id. If they end, the manager shuts its nodes down.
    The node does nothing if the manager ends.
    """

    def __init__(self, node: LifecycleNode) -> None:
        self._node = node
        self._lock = threading.RLock()
        self._bond: Any = None
        self._formed = self._closed = False

    def start(self, period: float) -> None:
        """Publish a heartbeat every ``period`` seconds, unless it is 0, bondpy is missing or ``close`` was called."""
        with self._lock:
            self._discard()
            if not period or Bond is None or self._closed:
                return
            bond = Bond(self._node, TOPIC, self._node.get_name(), on_broken=self._on_broken, on_formed=self._on_formed)
            bond.pub = _BondPublisher(bond.pub, self._node.context)
            bond.heartbeat_period, bond.heartbeat_timeout = period, NEVER
            bond.connect_timeout = CONNECT_TIMEOUT
            self._formed, self._bond = False, bond
            bond.start()

    def end(self) -> None:
        """Tell the manager that the node stops. Repeat it until the manager answers or 2 s have passed."""
        with self._lock:
            bond = self._bond
            if bond is not None:
                bond.set_broken_callback(None)
                bond.set_formed_callback(None)
                if not bond.is_broken():
                    bond.break_bond()

    def close(self) -> None:
        """End the bond, and form none any more. Wait a moment for the manager's answer, so that it is told."""
        with self._lock:
            self._closed = True
            self.end()
            bond = self._bond if self._formed else None
        if bond is not None:
            bond.wait_until_broken(Duration(seconds=ANSWER_TIMEOUT))

    def free(self) -> None:
        """Destroy the topics of the bond. Call it in the executor's thread, or without an executor."""
        with self._lock:
            self._discard()

    def _discard(self) -> None:
        """Destroy the topics of a bond: messages of an old one would break the next."""
        bond, self._bond = self._bond, None
        if bond is not None:
            bond.set_broken_callback(None)
            bond.set_formed_callback(None)
            bond.shutdown()
            bond.heartbeat_timer.cancel()
            bond.disconnect_timer.cancel()
            self._node.destroy_subscription(bond.sub)
            self._node.destroy_publisher(bond.pub.publisher)

    def _on_formed(self) -> None:
        self._formed = True
        self._node.get_logger().info('bond with the lifecycle manager formed')

    def _on_broken(self) -> None:
        """Report a bond that the other side has ended, or that nobody has joined."""
        logger, topic = self._node.get_logger(), self._node.resolve_topic_name(TOPIC)
        if self._formed:
            logger.info('the lifecycle manager has ended the bond: the node stays as it is')
        else:
            logger.warning(f"no lifecycle manager on {topic} knows '{self._node.get_name()}' after {CONNECT_TIMEOUT:g} "
                           f's: check its node_names and namespace, or set bond_heartbeat_period to 0.0')


class _BondPublisher:
    """Publisher of a bond whose thread may outlive ROS."""

    def __init__(self, publisher: Any, context: Any) -> None:
        self.publisher, self._context = publisher, context

    def publish(self, message: Any) -> None:
        """Publish a message, or do nothing once ROS has been shut down."""
        try:
            if self._context.ok():
                self.publisher.publish(message)
        except (InvalidHandle, rclpy_implementation.RCLError):
            if self._context.ok():
                raise

    def destroy(self) -> None:
        """Destroy the publisher."""
        self.publisher.destroy()
