"""Make the animation of the README: nano tracks the simulated table in lock-step, so the machine's load does not show.

.venv/bin/python tools/animate.py docs/images/demo.webp
"""
from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import cv2
import numpy as np

SCENE = 'occlusion'


def main(arguments: list[str] | None = None) -> int:
    """Write the animation and print its size. Return the exit code of the process."""
    options = parser().parse_args(arguments)
    try:
        with tempfile.TemporaryDirectory() as folder:
            frames = read(options.video or track_scene(Path(folder)), options.rate)
        animate(frames, options.output, options.rate, options.width, options.quality)
    except (OSError, subprocess.CalledProcessError) as error:
        print(f'animate.py: {error}', file=sys.stderr)
        return 2
    print(f'{options.output}: {len(frames)} frames, {options.output.stat().st_size / 1e3:.0f} kB')
    return 0


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(description='Make an animated WebP of tracked objects.')
    parser.add_argument('output', type=Path, help='WebP file to write; an existing file is replaced')
    parser.add_argument('--video', type=Path, help=f'video to animate; default: sam2_evaluate on the scene {SCENE}')
    parser.add_argument('--rate', type=float, default=7.5, help='frames per second of the animation (%(default)s)')
    parser.add_argument('--width', type=int, default=480, help='width of the animation in pixels (%(default)s)')
    parser.add_argument('--quality', type=int, default=75, help='WebP quality, 1 to 100 (%(default)s)')
    return parser


def track_scene(folder: Path) -> Path:
    """Evaluate a test scene in lock-step and return the path of its video."""
    for module, *arguments in (('sam2_ros.evaluation.scenes', folder),
                               ('sam2_ros.evaluate', folder / SCENE, '--bag', 'none', '--output', folder / 'out')):
        subprocess.run([sys.executable, '-m', module, *map(str, arguments)], check=True)
    return folder / 'out' / 'overlay.mp4'


def read(video: Path, rate: float) -> list[np.ndarray]:
    """Return the frames of a video, BGR uint8, at the given rate. Raise OSError if it cannot be read."""
    capture = cv2.VideoCapture(str(video))
    frames, number, due = [], 0, 0.0
    try:
        while (found := capture.read())[0]:
            if number / capture.get(cv2.CAP_PROP_FPS) >= due - 1e-6:
                frames.append(found[1])
                due += 1 / rate
            number += 1
    finally:
        capture.release()
    if not frames:
        raise OSError(f'{video}: cannot be read as a video')
    return frames


def animate(frames: list[np.ndarray], output: Path, rate: float, width: int, quality: int) -> None:
    """Write frames as an animated WebP that loops for ever. Raise OSError if OpenCV cannot write it."""
    height = round(frames[0].shape[0] * width / frames[0].shape[1])
    animation = cv2.Animation()
    animation.frames = [cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA) for frame in frames]
    animation.durations = [round(1000 / rate)] * len(frames)
    animation.loop_count = 0  # for ever
    if not cv2.imwriteanimation(str(output), animation, [cv2.IMWRITE_WEBP_QUALITY, quality]):
        raise OSError(f'{output}: OpenCV cannot write it')


if __name__ == '__main__':
    sys.exit(main())
