"""Three fixed scenes with ground truth, made here: the evaluation set that a change must not make worse.

    python -m sam2_ros.evaluation.scenes DIR       writes DIR/easy, DIR/occlusion and DIR/twins, mcap bags

Each has five seconds of the synthetic tabletop on /camera/image (rgb8), with /camera/depth (16UC1, as imperfect as a
real camera's), /camera/camera_info and /camera/truth (mono16, a pixel being the id of its object), and on /sam2/prompt
a box around every object in the first image. Pixels depend on nothing but the scene.
"""
from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import cos, pi
from pathlib import Path

import cv2
import numpy as np
from rich.progress import track
from sensor_msgs.msg import RegionOfInterest
from std_msgs.msg import Header

from sam2_core.masks import mask_box
from sam2_ros.messages.conversions import from_pixels
from sam2_ros.msg import Prompt
from sam2_ros.recordings.bag_writer import BagWriter
from sam2_ros.tabletop import textures as textures
from sam2_ros.tabletop.depth_noise import to_camera_info, worsen
from sam2_ros.tabletop.scene import SceneObject, TabletopScene
from sam2_ros.tabletop.solids import Ball, Frustum, Pose

WIDTH, HEIGHT, RATE = 480, 360, 15
IMAGES = 75
START = 1_000_000_000_000  # ns, stamp of the first image
TRANSPORT = 5_000_000  # ns from the stamp of an image to its arrival
CLICKING = 100_000_000  # ns from the stamp of an image to the arrival of the prompt that was drawn on it
IMAGE, TRUTH, PROMPT = '/camera/image', '/camera/truth', '/sam2/prompt'
DEPTH, INFO = '/camera/depth', '/camera/camera_info'
FAR = 65.535  # metres: 16UC1 says no more


@dataclass(frozen=True)
class EvaluationScene:
    """A part of a tabletop's life."""

    seed: int
    first: int  # frame of the tabletop
    objects: Callable[[np.random.Generator], dict[int, SceneObject]] | None = None  # None: the tabletop's own

    def tabletop(self) -> TabletopScene:
        return TabletopScene(self.seed, WIDTH, HEIGHT, RATE, objects=self.objects)


def _twins(random: np.random.Generator) -> dict[int, SceneObject]:
    """Two cans alike in every pixel that pass each other, the one that comes from the right in front; and a ball."""
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
    'easy': EvaluationScene(seed=3, first=8 * RATE),  # all five things in sight
    'occlusion': EvaluationScene(seed=4, first=189),  # the ball is hidden behind the cereal, wholly, and comes back
    'twins': EvaluationScene(seed=8, first=0, objects=_twins),
}


def record_scene(name: str, path: Path,
                 frames: Callable[[Sequence[int]], Iterable[int]] = lambda numbers: numbers) -> None:
    """Write one of ``SCENES`` into a new bag. ``frames`` is given the numbers of the images and gives them back one by
    one, to show how far it is. FileExistsError."""
    scene = SCENES[name]
    tabletop = scene.tabletop()
    with BagWriter(path) as bag:
        for number in frames(range(IMAGES)):
            stamp = START + round(number * 1e9 / RATE)
            header = Header(frame_id='camera_optical_frame')
            header.stamp.sec, header.stamp.nanosec = divmod(stamp, 1_000_000_000)
            rgb, truth, metres = tabletop.render_depth(scene.first + number)
            metres = worsen(metres, np.random.default_rng((scene.seed, number)))
            millimetres = np.where(metres < FAR, metres * 1000, 0).round().astype(np.uint16)
            for topic, message in (
                    (IMAGE, from_pixels(rgb, 'rgb8', header)), (DEPTH, from_pixels(millimetres, '16UC1', header)),
                    (INFO, to_camera_info(tabletop.intrinsics, WIDTH, HEIGHT, header)),
                    (TRUTH, from_pixels(truth, 'mono16', header))):
                bag.write(topic, message, stamp + TRANSPORT)
            if number == 0:
                for object_id, item in tabletop.objects.items():
                    bag.write(PROMPT, _box_prompt(truth == object_id, object_id, item.label, header), stamp + CLICKING)


def _box_prompt(mask: np.ndarray, object_id: int, label: str, header: Header) -> Prompt:
    x0, y0, x1, y1 = mask_box(mask)
    return Prompt(header=header, id=object_id, label=label,
                  box=RegionOfInterest(x_offset=x0, y_offset=y0, width=x1 - x0, height=y1 - y0))


def main(args: Sequence[str] | None = None) -> int:
    """Write the bags. Returns the exit code."""
    parser = argparse.ArgumentParser(prog='python -m sam2_ros.evaluation.scenes', description=__doc__.splitlines()[0])
    parser.add_argument('folder', type=Path, help='where the bags go')
    parser.add_argument('--scene', choices=SCENES, action='append', help='only this one; may be repeated')
    options = parser.parse_args(args)
    cv2.setNumThreads(1)
    try:
        for name in options.scene or SCENES:
            record_scene(name, options.folder / name, lambda numbers, name=name: track(numbers, name))
    except OSError as error:  # the place is taken, or cannot be written
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == '__main__':
    sys.exit(main())
