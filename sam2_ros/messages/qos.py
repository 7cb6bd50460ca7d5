"""QoS profiles that are shared by several publishers and subscriptions."""
from __future__ import annotations

from rclpy.qos import DurabilityPolicy, QoSProfile

RELIABLE = QoSProfile(depth=5)
LATCHED = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)  # late subscribers receive the last message
