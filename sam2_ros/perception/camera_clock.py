"""Stamps of one camera's processed images, and the jumps of its clock between them."""
from __future__ import annotations

from sam2_ros.messages.stamps import jumped_back


class CameraClock:
    """Stamp of the newest processed image, also of one from before a restart of the node."""

    def __init__(self) -> None:
        self.newest: int | None = None  # ns; None: no image has been processed
        self._jumps_seen = 0

    def jump(self, stamp: int, jumps: int) -> int:
        """Return by how many nanoseconds the clock has jumped to this stamp: ahead, back if negative, or 0.

        Args:
            stamp: Stamp of the next image, ns.
            jumps: Number of jumps of the camera's clock at arrival. A lead counts as a jump only if this has risen;
                otherwise the camera has paused.
        """
        if self.newest is None:
            return 0
        back = jumped_back(stamp, self.newest)
        if not back and not (jumped_back(self.newest, stamp) and self._jumps_seen != jumps):
            return 0
        self._jumps_seen = jumps
        return stamp - self.newest
