"""Synthetic clips of identical twins, and the figures that memory policies are judged by.

Clip ``i`` has the seed (SEED, i, attempt) and textures of its own set; no training seed reaches SEED. Its kind is
``KINDS[i % 3]``, and object 0 is the twin to track. docs/reference/benchmarks.md explains each figure.
"""
from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from itertools import count, groupby

import numpy as np
from numpy.random import Generator

from benchmarks.lib.nano import HIDDEN_LEAST, SWAP_FRAMES, Figures, clutter, on_another
from sam2_core.datasets.recordings import VISIBLE_PIXELS
from sam2_core.metrics import boundary_f, iou
from sam2_core.training.clips import Clip
from sam2_core.training.synthetic import sprites
from sam2_core.training.synthetic.scenes import SyntheticScene
from sam2_core.training.synthetic.sprites import ClutterBank, Part, Thing

SEED = 9200
FRAMES = 80
LEAST_FRAMES = 40
SIZE = 256
KINDS = ('cross', 'cover', 'leave')
COMPACT = 0.3  # least share of a twin's square that it fills: thin things are no test of a memory
FOUND = 0.5  # IoU above which an object is found again, as in sam2_evaluate
RECOVERY_FRAMES = 20  # within which an object is found again after its return

Course = Sequence[tuple[float, np.ndarray]]  # (frame, position in pixels), in the order of frames


class TwinScene(SyntheticScene):
    """Two or three identical things that cross, are covered, or leave the picture and return.

    Thing 0 is the one to track. Other things lie below the twins; a thing that covers lies above them.
    """

    def __init__(self, rng: Generator, bank: ClutterBank, frames: int, size: int, kind: str) -> None:
        self._kind = kind
        super().__init__(rng, bank, frames, size)

    def _cast(self) -> None:
        rng = self.rng
        twin = sprites.rigid(rng, self.bank)
        while np.mean(twin.parts[0].sprite.levels[0][1] > 127) < COMPACT:
            twin = sprites.rigid(rng, self.bank)
        self.twins, self.extent = int(rng.integers(2, 4)), self.size * rng.uniform(0.2, 0.3)
        for _ in range(self.twins):
            self._add(twin, self.extent)
        if rng.random() < 0.5:  # twins that also point the same way
            for path in self.paths:
                path.angle = self.paths[0].angle
        for path in self.paths:
            path.log_size[:] = np.log(self.extent) + 0.5 * (self.paths[0].log_size - self.paths[0].log_size[0])
        for _ in range(int(rng.integers(0, 3))):
            self._add(sprites.thing(rng, self.bank), self.size * rng.uniform(0.12, 0.3))

    def _events(self) -> None:
        rng, others = self.rng, len(self.things) - self.twins
        self.depth = np.concatenate((others + rng.permutation(self.twins), np.arange(others)))
        {'cross': self._cross, 'cover': self._cover, 'leave': self._leave}[self._kind]()

    def _cross(self) -> None:
        """Let the target meet a twin three times, in front of it or behind it, and part in any direction."""
        rng, frames = self.rng, self.frames
        rivals = [int(rng.integers(1, self.twins)) for _ in range(3)]
        courses: list[list[tuple[float, np.ndarray]]] = [[] for _ in range(self.twins)]
        self._apart(courses, 0.0)
        for meeting, rival in enumerate(rivals):
            at = frames * (0.2 + 0.29 * meeting + rng.uniform(-0.04, 0.04))
            place = self._inside()
            courses[0].append((at, place))
            courses[rival].append((at, place + rng.uniform(-0.3, 0.3, 2) * self.extent))
            self._apart(courses, at + frames * 0.145)
        for thing, course in enumerate(courses):
            self._follow(thing, course)

    def _cover(self) -> None:
        """Let another thing cover the target once or twice for 6 to 20 frames; the covered target moves on."""
        rng, frames = self.rng, self.frames
        self._roam()
        half = sprites.REACH * 0.9
        corners = np.array([[-half, -half], [half, -half], [half, half], [-half, half]])
        alpha = sprites.filled(corners * rng.uniform(0.85, 1, (4, 2)))
        self._add(Thing([Part(sprites.textured_sprite(rng, self.bank, alpha))]))
        self.depth = np.append(self.depth, len(self.depth))
        target, cover = self.paths[0], self.paths[-1]
        cover.log_size[:] = target.log_size.max() + np.log(rng.uniform(1.5, 2))
        away, t = 1.4 * self.size, np.arange(frames)
        way = np.full((frames, 2), np.inf)
        for start, stop in self._absences():
            approach = frames * rng.uniform(0.08, 0.15)
            come, go = (_direction(rng) for _ in range(2))
            before, after = np.clip((start - t) / approach, 0, 1), np.clip((t - stop + 1) / approach, 0, 1)
            offset = (before[:, None] * come + after[:, None] * go) * away
            nearer = np.hypot(*offset.T) < np.hypot(*way.T)
            way[nearer] = offset[nearer]
        cover.position = target.position + way

    def _leave(self) -> None:
        """Let the target leave the picture once or twice for 6 to 20 frames and return over any edge."""
        rng, frames = self.rng, self.frames
        self._roam()
        target, t = self.paths[0], np.arange(frames)
        reach = 0.75 * np.exp(target.log_size).max()
        for start, stop in self._absences():
            ramp, first_half = frames * rng.uniform(0.08, 0.15), t < (start + stop) / 2
            for edge, share in ((rng.integers(4), np.clip(1 - (start - t) / ramp, 0, 1) * first_half),
                                (rng.integers(4), np.clip(1 - (t - stop + 1) / ramp, 0, 1) * ~first_half)):
                goal = self.size + reach if edge >= 2 else -reach
                target.position[:, edge % 2] += (goal - target.position[:, edge % 2]) * share

    def _roam(self) -> None:
        """Let all twins move slowly about; in half of the clips one stays close to the target."""
        rng, frames = self.rng, self.frames
        courses: list[list[tuple[float, np.ndarray]]] = [[] for _ in range(self.twins)]
        for at in np.linspace(0, frames, 4):
            self._apart(courses, float(at))
        for thing, course in enumerate(courses):
            self._follow(thing, course)
        if rng.random() < 0.5:
            self.paths[1].position = self.paths[0].position + _direction(rng) * self.extent * rng.uniform(1.1, 1.5)

    def _absences(self) -> list[tuple[int, int]]:
        """Return the frames, from and to, in which the target is hidden."""
        rng, frames = self.rng, self.frames
        starts = [0.2, 0.6] if rng.random() < 0.5 else [0.35]
        return [(start, start + int(rng.integers(6, 21)))
                for start in (round(frames * (share + rng.uniform(0, 0.05))) for share in starts)]

    def _inside(self) -> np.ndarray:
        return self.rng.uniform(0.25, 0.75, 2) * self.size

    def _apart(self, courses: list[list[tuple[float, np.ndarray]]], at: float) -> None:
        """Add places to all courses that are at least 1.2 widths of a twin from each other where there is room."""
        places: list[np.ndarray] = []
        for course in courses:
            tries = [self._inside() for _ in range(20)]
            best = max(tries, key=lambda place: min((np.hypot(*(place - other)) for other in places),
                                                    default=np.inf))
            free = [place for place in tries
                    if all(np.hypot(*(place - other)) > 1.2 * self.extent for other in places)]
            places.append(free[0] if free else best)
            course.append((at, places[-1]))

    def _follow(self, thing: int, course: Course) -> None:
        """Move a thing along a course without corners."""
        at, places = np.array([frame for frame, _ in course]), np.array([place for _, place in course])
        window = np.hanning(max(5, self.frames // 8))
        margin = len(window) // 2
        t = np.arange(-margin, self.frames + len(window) - 1 - margin)
        self.paths[thing].position = np.stack([np.convolve(np.interp(t, at, line), window / window.sum(), 'valid')
                                               for line in places.T], axis=1)


def _direction(rng: Generator) -> np.ndarray:
    angle = rng.uniform(0, 2 * np.pi)
    return np.array([np.cos(angle), np.sin(angle)])


def twin_clip(number: int, seed: int = SEED, frames: int = FRAMES) -> Clip:
    """Return a clip whose objects are twins; another number of frames gives another clip.

    Scenes are drawn until one is of its kind (``_shows``), which takes a few attempts. Raise ValueError for fewer than
    LEAST_FRAMES, which are too short for an absence.
    """
    if frames < LEAST_FRAMES:
        raise ValueError(f'frames {frames}: must be at least {LEAST_FRAMES}')
    kind = KINDS[number % len(KINDS)]
    clips = (_draw(TwinScene(np.random.default_rng((seed, number, attempt)), clutter(seed), frames, SIZE, kind))
             for attempt in count())
    return next(clip for clip in clips if _shows(kind, clip.masks))


def _draw(scene: TwinScene) -> Clip:
    """Return all frames of a scene with its twins as objects."""
    frames, labels = zip(*(scene.draw(t) for t in range(scene.frames)), strict=True)
    masks = np.stack(labels)[:, None] == np.arange(1, scene.twins + 1, dtype=np.uint8)[:, None, None]
    masks &= masks.sum(axis=(2, 3), keepdims=True) >= VISIBLE_PIXELS
    return Clip(np.stack(frames), masks, masks.any(axis=(2, 3)), np.zeros(scene.twins, int))


def _shows(kind: str, masks: np.ndarray) -> bool:
    """Return whether a scene is of its kind: two twins cover each other by half, or the target vanishes and returns.

    In all kinds the first frame shows all twins, the target wholly. The target is visible in half of the frames at
    least, a twin of it in 80 %.
    """
    areas = masks.sum(axis=(2, 3))
    visible = areas > 0
    if (areas[0].min() < 4 * VISIBLE_PIXELS or areas[0, 0] < 0.8 * areas[0].max() or visible[:, 0].mean() < 0.5
            or visible[:, 1:].any(axis=1).mean() < 0.8):
        return False
    return bool((areas < 0.5 * areas[0]).any()) if kind == 'cross' else bool(returns(visible[:, 0]))


def returns(visible: np.ndarray) -> list[range]:
    """Return the visible frames after each absence of HIDDEN_LEAST frames or more, up to the next frame without."""
    runs = [(seen, [t for t, _ in group]) for seen, group in groupby(enumerate(visible), key=lambda item: item[1])]
    return [range(after[0], after[-1] + 1) for (_, before), (seen, after) in zip(runs, runs[1:], strict=False)
            if seen and len(before) >= HIDDEN_LEAST]


def judge(clip: Clip, masks: np.ndarray, present: np.ndarray) -> Figures:
    """Return the figures of one track of object 0.

    masks: bool (T, H, W), empty where the object is not seen. present: bool (T,), whether it is called present. The
    prompted first frame does not count.
    """
    figures: Figures = defaultdict(list)
    true, visible = clip.masks[:, 0], clip.visible[:, 0]
    j = np.array([iou(a, b) for a, b in zip(masks, true, strict=True)])
    figures['J'] = j[1:].tolist()
    figures['F'] = [boundary_f(a, b) for a, b in zip(masks[1:], true[1:], strict=True)]
    figures['J&F'] = [(one + other) / 2 for one, other in zip(figures['J'], figures['F'], strict=True)]
    figures['J_visible'] = j[1:][visible[1:]].tolist()
    swaps = [on_another(masks[t], float(j[t]), clip.masks[t, 1:]) for t in range(1, len(j))]
    figures['on_twin'] = [float(swapped) for swapped, seen in zip(swaps, clip.visible[1:, 1:].any(axis=1), strict=True)
                          if seen]
    figures['twin_swapped'] = [float(max((len([*group]) for swapped, group in groupby(swaps) if swapped), default=0)
                                     >= SWAP_FRAMES)]
    figures['ends_on_twin'] = [float(swaps[-1])]
    figures['found_again'] = [float(j[back][:RECOVERY_FRAMES].max() > FOUND) for back in returns(visible)]
    figures['hidden_called_present'] = present[1:][~visible[1:]].astype(float).tolist()
    return dict(figures)
