"""Write three synthetic scenes with ground truth as bags: the evaluation set of the regression gate.

    python -m sam2_ros.evaluation.scenes DIR       writes the mcap bags DIR/easy, DIR/occlusion and DIR/twins

Each has five seconds of the synthetic tabletop: /camera/image (rgb8), /camera/depth (16UC1 with the errors of a real
camera), /camera/camera_info, /camera/truth (mono16, pixels are object ids), and on /sam2/prompt a box around each
object of the first image. The pixels are the same every time.
"""
from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from math import cos, pi
from pathlib import Path

import cv2
import numpy as np
from rich.progress import track
from std_msgs.msg import Header

from sam2_core.masks import mask_box
from sam2_ros.messages.conversions import from_pixels, to_roi
from sam2_ros.msg import Prompt
from sam2_ros.recordings.bag_writer import BagWriter
from sam2_ros.tabletop import textures
from sam2_ros.tabletop.depth_noise import to_camera_info, to_millimetres, worsen
from sam2_ros.tabletop.scene import SceneObject, TabletopScene
from sam2_ros.tabletop.solids import Ball, Frustum, Pose

WIDTH, HEIGHT, RATE = 480, 360, 15
IMAGES = 75
START = 1_000_000_000_000  # stamp of the first image, nanoseconds
TRANSPORT = 5_000_000  # nanoseconds from the stamp of an image to its arrival
CLICKING = 100_000_000  # nanoseconds from the stamp of an image to the arrival of the prompt that was drawn on it
IMAGE, TRUTH, PROMPT = '/camera/image', '/camera/truth', '/sam2/prompt'
DEPTH, INFO = '/camera/depth', '/camera/camera_info'


@dataclass(frozen=True)
class EvaluationScene:
    """A section of a tabletop scene."""

    seed: int
    first: int  # frame of the tabletop
    objects: Callable[[np.random.Generator], dict[int, SceneObject]] | None = None  # None: the tabletop's own

    def tabletop(self) -> TabletopScene:
        """Create the scene that the section belongs to."""
        return TabletopScene(self.seed, WIDTH, HEIGHT, RATE, objects=self.objects)


def _twins(random: np.random.Generator) -> dict[int, SceneObject]:
    """Return two identical cans that pass each other, the one from the right in front, and a ball."""
    colours = random.permutation(textures.PALETTES)
    picture, solid = textures.can(random, colours[0], 'SOUP'), Frustum(0.048, 0.048, 0.13)

    def behind(t: float) -> Pose:
        return Pose(-0.17 * cos(pi * t / 5), 0.20, 0.5 * t)

    def before(t: float) -> Pose:
        return Pose(0.17 * cos(pi * t / 5), 0.02, 0.5 * t)

    def ball(t: float) -> Pose:
        return Pose(0.03 * cos(0.8 * t), -0.16, 0)
    return {1: SceneObject('can', solid, picture, behind), 2: SceneObject('can', solid, picture, before),
            3: SceneObject('ball', Ball(0.045), textures.beach_ball(random, colours[1]), ball)}


SCENES = {
    'easy': EvaluationScene(seed=3, first=8 * RATE),  # all five objects are visible
    'occlusion': EvaluationScene(seed=4, first=189),  # the ball is hidden completely behind the cereal box for a while
    'twins': EvaluationScene(seed=8, first=0, objects=_twins),
}


def record_scene(name: str, path: Path,
                 frames: Callable[[Sequence[int]], Iterable[int]] = lambda numbers: numbers) -> None:
    """Write a scene into a new bag.

    Args:
        name: Key of SCENES.
        path: Folder of the bag.
        frames: Function that iterates over the numbers of the images, for example to show progress.

    Raises:
        FileExistsError: ``path`` exists.
    """
    scene = SCENES[name]
    tabletop = scene.tabletop()
    with BagWriter(path) as bag:
        for number in frames(range(IMAGES)):
            stamp = START + round(number * 1e9 / RATE)
            header = Header(frame_id='camera_optical_frame')
            header.stamp.sec, header.stamp.nanosec = divmod(stamp, 1_000_000_000)
            rgb, truth, metres = tabletop.render_depth(scene.first + number)
            depth = to_millimetres(worsen(metres, np.random.default_rng((scene.seed, number))))
            for topic, message in (
                    (IMAGE, from_pixels(rgb, 'rgb8', header)), (DEPTH, from_pixels(depth, '16UC1', header)),
                    (INFO, to_camera_info(tabletop.intrinsics, WIDTH, HEIGHT, header)),
                    (TRUTH, from_pixels(truth, 'mono16', header))):
                bag.write(topic, message, stamp + TRANSPORT)
            if number == 0:
                for object_id, item in tabletop.objects.items():
                    box = to_roi(mask_box(truth == object_id))
                    bag.write(PROMPT, Prompt(header=header, id=object_id, label=item.label, box=box), stamp + CLICKING)


def main(args: Sequence[str] | None = None) -> int:
    """Write the bags; return the exit code."""
    parser = argparse.ArgumentParser(prog='python -m sam2_ros.evaluation.scenes', description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('folder', type=Path, help='folder for the bags')
    parser.add_argument('--scene', choices=SCENES, action='append', help='write only this scene; may be repeated')
    options = parser.parse_args(args)
    cv2.setNumThreads(1)
    try:
        for name in options.scene or SCENES:
            record_scene(name, options.folder / name, partial(track, description=name))
    except OSError as error:  # the bag exists, or the folder cannot be written
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == '__main__':
    sys.exit(main())
