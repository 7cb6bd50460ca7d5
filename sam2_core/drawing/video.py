"""Video files of RGB pictures with a line of text below each."""
from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from sam2_core.drawing.overlay import FONT

# H.264 where OpenCV was built with it (its wheels are not), otherwise MPEG-4 part 2, which players show but browsers
# do not.
CODECS = ('avc1', 'mp4v')
CAPTION = 26  # height of the line of text, pixels
PAPER, INK, FAINT = (24, 26, 30), (235, 236, 240), (150, 155, 165)


class VideoFile:
    """Video of pictures of one size. The file is created with the first picture."""

    def __init__(self, path: Path, rate: float, codecs: Sequence[str] = CODECS) -> None:
        """Describe the video to write.

        Args:
            path: Video file to write; its suffix selects the container.
            rate: Pictures per second.
            codecs: Four-letter codes of codecs, in order of preference.
        """
        self._path, self._rate, self._codecs = path, rate, codecs
        self._writer: cv2.VideoWriter | None = None

    @property
    def written(self) -> bool:
        """True once a picture was written."""
        return self._writer is not None

    def write(self, rgb: np.ndarray) -> None:
        """Append a picture, uint8 RGB (H, W, 3).

        Raises:
            OSError: OpenCV has none of the codecs.
        """
        if self._writer is None:
            self._writer = self._open(rgb.shape[1], rgb.shape[0])
        self._writer.write(cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR))

    def _open(self, width: int, height: int) -> cv2.VideoWriter:
        level = cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)  # a codec may be missing
        try:
            for codec in self._codecs:
                writer = cv2.VideoWriter(str(self._path), cv2.VideoWriter.fourcc(*codec), self._rate, (width, height))
                if writer.isOpened():
                    return writer
        finally:
            cv2.utils.logging.setLogLevel(level)
        raise OSError(f'{self._path}: OpenCV can write none of {", ".join(self._codecs)}')

    def __enter__(self) -> VideoFile:
        return self

    def __exit__(self, *_: object) -> None:
        if self._writer is not None:
            self._writer.release()


def captioned(image: np.ndarray, left: str, right: str) -> np.ndarray:
    """Return a picture, uint8 RGB (H, W, 3), with a line of text below it.

    Width and height of the result are even, as video codecs require.
    """
    height, width = image.shape[:2]
    canvas = np.empty(((height + CAPTION + 1) // 2 * 2, width // 2 * 2, 3), np.uint8)
    canvas[:] = PAPER
    canvas[:height] = image[:, :canvas.shape[1]]
    line = height + CAPTION - 8
    cv2.putText(canvas, left, (6, line), FONT, 0.5, INK, 1, cv2.LINE_AA)
    (text_width, _), _ = cv2.getTextSize(right, FONT, 0.5, 1)
    cv2.putText(canvas, right, (canvas.shape[1] - text_width - 6, line), FONT, 0.5, FAINT, 1, cv2.LINE_AA)
    return canvas
