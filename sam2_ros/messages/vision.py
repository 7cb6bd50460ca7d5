"""vision_msgs, which a robot may not have: everything else works without. The one place that imports it."""
from __future__ import annotations

try:
    import vision_msgs.msg as vision_msgs
except ImportError:
    vision_msgs = None


class VisionMessagesMissing(ValueError):
    """Something was asked for that needs vision_msgs; the text says what, and how to install it."""


def require_vision_msgs(what: str) -> None:
    """Raise VisionMessagesMissing, naming ``what`` needs it, when vision_msgs is not installed."""
    if vision_msgs is None:
        raise VisionMessagesMissing(f'{what} needs the package vision_msgs, which is not installed: '
                                    f'sudo apt install ros-$ROS_DISTRO-vision-msgs')
