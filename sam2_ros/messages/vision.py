"""Optional package vision_msgs. Only this module imports it; everything else works without it."""
from __future__ import annotations

try:
    import vision_msgs.msg as vision_msgs
except ImportError:
    vision_msgs = None


class VisionMessagesMissing(ValueError):
    """A feature needs vision_msgs; the text names the feature and how to install the package."""


def require_vision_msgs(what: str) -> None:
    """Raise VisionMessagesMissing if vision_msgs is not installed. ``what`` names the feature that needs it."""
    if vision_msgs is None:
        raise VisionMessagesMissing(f'{what} needs the package vision_msgs, which is not installed: '
                                    f'sudo apt install ros-$ROS_DISTRO-vision-msgs')
