#!/usr/bin/env python3
"""Turn a part of a video into an animated WebP, as for the README.

make demo && .venv/bin/python tools/animate.py demo/overlay.mp4 docs/images/demo.webp
"""
from __future__ import annotations

import argparse
import sys
from pathlib import Path

import cv2


def main(arguments: list[str] | None = None) -> int:
    """Write the animation and print its size. Return the exit code of the process."""
    options = parser().parse_args(arguments)
    try:
        count = animate(options.video, options.output, options.start, options.seconds, options.rate, options.width,
                        options.quality)
    except (OSError, ValueError) as error:
        print(f'animate.py: {error}', file=sys.stderr)
        return 2
    print(f'{options.output}: {count} frames, {options.output.stat().st_size / 1e3:.0f} kB')
    return 0


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(description='Turn a part of a video into an animated WebP.')
    parser.add_argument('video', type=Path, help='video file to read, e.g. demo/overlay.mp4')
    parser.add_argument('output', type=Path, help='WebP file to write; an existing one is replaced')
    parser.add_argument('--start', type=float, default=3.5, help='first second of the part (%(default)s)')
    parser.add_argument('--seconds', type=float, default=6.5, help='length of the part in seconds (%(default)s)')
    parser.add_argument('--rate', type=float, default=7.5, help='frames per second of the animation (%(default)s)')
    parser.add_argument('--width', type=int, default=560, help='width of the animation in pixels (%(default)s)')
    parser.add_argument('--quality', type=int, default=50, help='WebP quality, 1 to 100 (%(default)s)')
    return parser


def animate(video: Path, output: Path, start: float, seconds: float, rate: float, width: int, quality: int) -> int:
    """Write a part of a video as an animated WebP that loops for ever; return the number of its frames.

    Raises:
        OSError: the video cannot be read, or the animation cannot be written.
        ValueError: the video has no frame in the part.
    """
    frames = read(video, start, seconds, rate)
    if not frames:
        raise ValueError(f'{video}: has no frame between {start:g} and {start + seconds:g} s')
    height = round(frames[0].shape[0] * width / frames[0].shape[1])
    animation = cv2.Animation()
    animation.frames = [cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA) for frame in frames]
    animation.durations = [round(1000 / rate)] * len(frames)
    animation.loop_count = 0  # for ever
    if not cv2.imwriteanimation(str(output), animation, [cv2.IMWRITE_WEBP_QUALITY, quality]):
        raise OSError(f'{output}: OpenCV cannot write it')
    return len(frames)


def read(video: Path, start: float, seconds: float, rate: float) -> list:
    """Return the frames of a part of a video, BGR uint8, at the given rate. Raise OSError if it cannot be read."""
    capture = cv2.VideoCapture(str(video))
    if not capture.isOpened():
        raise OSError(f'{video}: cannot be opened as a video')
    frames, due = [], start
    try:
        video_rate = capture.get(cv2.CAP_PROP_FPS)
        number = 0
        while due < start + seconds:
            there, frame = capture.read()
            if not there:
                break
            if number / video_rate >= due:
                frames.append(frame)
                due += 1 / rate
            number += 1
    finally:
        capture.release()
    return frames


if __name__ == '__main__':
    sys.exit(main())
