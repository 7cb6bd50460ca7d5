"""Quality of service profiles that several parts publish or subscribe with."""
from __future__ import annotations

from rclpy.qos import DurabilityPolicy, QoSProfile

RELIABLE = QoSProfile(depth=5)
LATCHED = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)  # late subscribers get the last message
