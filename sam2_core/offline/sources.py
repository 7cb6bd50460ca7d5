"""Choice of the source of frames by what a path is."""
from __future__ import annotations

from pathlib import Path

from sam2_core.offline.frames import FrameError, FrameSource, Notice, Progress
from sam2_core.offline.pictures import PICTURES, PictureFrames, is_tiff
from sam2_core.offline.video import VideoFrames


def open_frames(path: Path | str, value_range: tuple[float, float] | None = None, notice: Notice = lambda text: None,
                progress: Progress = lambda done, total: None) -> FrameSource:
    """Open a video file, a folder of pictures, or a TIFF stack.

    Args:
        path: The file or folder.
        value_range: Values of pictures of more than 8 bits that become 0 and 255; None means a range that suits them.
        notice: Function for lines about what was found.
        progress: Function that is called while the frames of a video are counted.

    Raises:
        FrameError: There are no frames, or their order is ambiguous.
    """
    path = Path(path)
    if not path.exists():
        raise FrameError(f'{path}: no such file or folder')
    if path.is_dir() or is_tiff(path):
        return PictureFrames(path, value_range, notice)
    if path.suffix.lower() in PICTURES:  # OpenCV would take its name as that of a sequence
        raise FrameError(f'{path}: one picture; give the folder that has all frames, or a video')
    if value_range is not None:
        raise FrameError(f'range {value_range[0]:g},{value_range[1]:g}: a video has 8 bits; leave the range out')
    return VideoFrames(path, None, notice, progress)
