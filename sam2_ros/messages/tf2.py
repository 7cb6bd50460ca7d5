"""Optional package tf2_ros. Only this module imports it, when it is needed; everything else works without it."""
from __future__ import annotations

from types import ModuleType


class Tf2Missing(ValueError):
    """A feature needs tf2_ros; the text names the feature and how to install the package."""


def tf2_for(what: str) -> ModuleType:
    """Return the module tf2_ros. Raise Tf2Missing if it is not installed. ``what`` names the feature that needs it."""
    try:
        import tf2_ros
    except ImportError:
        raise Tf2Missing(f'{what} needs the package tf2_ros, which is not installed: '
                         f'sudo apt install ros-$ROS_DISTRO-tf2-ros-py') from None
    return tf2_ros
