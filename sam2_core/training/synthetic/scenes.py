"""Synthetic clips: textured things move, deform, cover each other, leave and return under a moving camera.

Every clip follows from its seed alone.
"""
from __future__ import annotations

import cv2
import numpy as np
from numpy.random import Generator

from sam2_core.datasets.recordings import VISIBLE_PIXELS
from sam2_core.training.clips import MAX_OBJECTS, Clip
from sam2_core.training.synthetic import sprites
from sam2_core.training.synthetic.drawing import draw_shadow, draw_thing, move, turn
from sam2_core.training.synthetic.sprites import SPRITE_SIZE, ClutterBank, Thing
from sam2_core.training.synthetic.textures import TEXTURE_SIZE

_HALF = SPRITE_SIZE / 2
_CANVAS = 1.6  # width of the background, in widths of the frame


def _wander(rng: Generator, frames: int, step: float, memory: float = 0.9) -> np.ndarray:
    """Return a smooth random walk (frames,) that starts at 0 and moves about ``step`` per frame."""
    kicks = rng.normal(0, step * np.sqrt(1 - memory ** 2), frames)
    velocity = np.empty(frames)
    speed = rng.normal(0, step)
    for t in range(frames):
        velocity[t] = speed
        speed = memory * speed + kicks[t]
    return np.concatenate(([0.0], np.cumsum(velocity[:-1])))


def _smooth(x: np.ndarray) -> np.ndarray:
    x = np.clip(x, 0, 1)
    return x * x * (3 - 2 * x)


class _Path:
    """Path of one thing: position (T, 2) in pixels, angle (T,) in radians, logarithm of the size (T,)."""

    def __init__(self, rng: Generator, frames: int, size: int, extent: float) -> None:
        speed = size * np.exp(rng.uniform(np.log(0.0008), np.log(0.045)))
        start = rng.uniform(0.14, 0.86, 2) * size
        walk = np.stack([_wander(rng, frames, speed) for _ in range(2)], axis=1)
        low, high = -0.05 * size, 1.05 * size
        folded = np.mod(start + walk - low, 2 * (high - low))
        self.position = low + np.minimum(folded, 2 * (high - low) - folded)  # reflected at the border
        self.angle = rng.uniform(0, 2 * np.pi) + _wander(rng, frames, rng.choice([0.0, 0.01, 0.04, 0.12]))
        self.log_size = np.log(extent) + np.clip(_wander(rng, frames, rng.choice([0.0, 0.005, 0.02])), -0.9, 0.7)
        if rng.random() < 0.2:  # it rests first, or stops
            at = int(rng.integers(1, frames))
            still = slice(0, at) if rng.random() < 0.5 else slice(at, frames)
            hold = at if still.start == 0 else at - 1
            for series in (self.position, self.angle, self.log_size):
                series[still] = series[min(hold, frames - 1)]

    def extent(self, t: int) -> float:
        """Return the size in frame ``t``, pixels."""
        return float(np.exp(self.log_size[t]))


def _window(rng: Generator, frames: int, hidden: int) -> tuple[int, int]:
    """Return the frames, from and to, in which a thing is hidden after it was seen and before it may return."""
    start = int(rng.integers(1, max(2, frames - hidden - 1)))
    return start, min(start + hidden, frames)


def _hidden_frames(rng: Generator, frames: int) -> int:
    return int(np.clip(np.exp(rng.uniform(np.log(1.5), np.log(max(3.0, frames * 0.5)))), 1, frames - 2))


def _cover(rng: Generator, path: _Path, target: _Path, frames: int, size: int) -> None:
    """Move ``path`` over ``target``, let it stay there, and mostly leave again."""
    start, stop = _window(rng, frames, _hidden_frames(rng, frames))
    approach = max(1.0, frames * rng.uniform(0.06, 0.3))
    angle, away = rng.uniform(0, 2 * np.pi), 1.4 * size
    t = np.arange(frames)
    before = np.clip((start - t) / approach, 0, None)[:, None]
    after = np.clip((t - stop + 1) / approach, 0, None)[:, None] * (rng.random() < 0.85)
    leave = angle + rng.choice([0.0, np.pi, rng.uniform(0, 6)])
    aim = np.stack([np.cos([angle, leave]), np.sin([angle, leave])], axis=1)
    jitter = rng.normal(0, 0.04, 2) * size
    way = np.minimum(after, 2) * aim[1] - np.minimum(before, 2) * aim[0]
    path.position = target.position + jitter + way * away
    path.log_size[:] = np.log(np.exp(target.log_size).max() * rng.uniform(1.3, 2.1))


def _leave(rng: Generator, path: _Path, frames: int, size: int) -> None:
    """Move ``path`` out of the frame and mostly back in, perhaps over another edge."""
    start, stop = _window(rng, frames, _hidden_frames(rng, frames))
    ramp = max(1.0, frames * rng.uniform(0.05, 0.25))
    t = np.arange(frames)
    out = _smooth(1 - (start - t) / ramp)
    back = _smooth((t - stop + 1) / ramp) if rng.random() < 0.85 else np.zeros(frames)
    edge = int(rng.integers(4))
    other = edge if rng.random() < 0.6 else int(rng.integers(4))
    reach = 0.75 * np.exp(path.log_size).max()
    for exit_edge, weight in ((edge, out * (back == 0)), (other, (1 - back) * (back > 0))):
        axis, far = exit_edge % 2, exit_edge >= 2
        goal = size + reach if far else -reach
        path.position[:, axis] += (goal - path.position[:, axis]) * weight


def _shuffle(rng: Generator, paths: list[_Path], frames: int, size: int) -> None:
    """Let identical things in a row change places, two at a time, as in the shell game."""
    count = len(paths)
    x = (np.arange(count) + 0.5) / count * 0.8 * size + 0.1 * size
    y = rng.uniform(0.3, 0.7) * size
    places = np.arange(count)
    length = max(4, int(frames * rng.uniform(0.15, 0.6)))
    extent = min(np.exp(paths[0].log_size[0]), 0.7 * 0.8 * size / count)
    position = np.empty((frames, count, 2))
    for t0 in range(0, frames, length):
        pair = rng.choice(count, 2, replace=False)
        steps = np.arange(t0, min(t0 + length, frames))
        progress = _smooth((steps - t0 + 1) / (length * rng.uniform(0.6, 1)))
        for i in range(count):
            position[steps, i] = x[places[i]], y
        swing = np.sin(progress * np.pi) * rng.uniform(0.25, 0.9) * extent
        for one, two, side in ((pair[0], pair[1], 1), (pair[1], pair[0], -1)):
            position[steps, one, 0] += (x[places[two]] - x[places[one]]) * progress
            position[steps, one, 1] += side * swing
        places[pair] = places[pair[::-1]]
    for i, path in enumerate(paths):
        path.position = position[:, i]
        path.angle = np.full(frames, paths[0].angle[0]) + rng.normal(0, 0.05)
        path.log_size[:] = np.log(extent)


class SyntheticScene:
    """Things of a scene with their paths, background, camera and light; ``draw`` renders a frame."""

    def __init__(self, rng: Generator, clutter: ClutterBank, frames: int, size: int) -> None:
        self.rng, self.bank, self.clutter, self.frames, self.size = rng, clutter.bank, clutter, frames, size
        self.things: list[Thing] = []
        self.paths: list[_Path] = []
        self._cast()
        count = len(self.things)
        self.depth = rng.permutation(count)
        self._events()
        self._surroundings()

    def _add(self, thing: Thing, extent: float | None = None) -> None:
        if extent is None:
            extent = self.size * np.exp(self.rng.uniform(np.log(0.12), np.log(0.65)))
        self.things.append(thing)
        self.paths.append(_Path(self.rng, self.frames, self.size, extent))

    def _cast(self) -> None:
        rng = self.rng
        count = int(rng.integers(2, 6))
        surface = sprites.random_surface(rng, self.bank) if rng.random() < 0.2 else None
        for _ in range(count):
            self._add(sprites.rigid(rng, self.bank, surface) if surface is not None and rng.random() < 0.7
                      else sprites.thing(rng, self.bank))
        self.twins = 0
        if rng.random() < 0.35:
            self.twins = int(rng.integers(2, min(4, count + 1)))
            extent = self.paths[0].extent(0)
            for i in range(1, self.twins):
                self.things[i] = self.things[0]
                self.paths[i].log_size += np.log(extent * np.exp(rng.normal(0, 0.05))) - self.paths[i].log_size[0]

    def _events(self) -> None:
        rng, frames, size = self.rng, self.frames, self.size
        if self.twins and rng.random() < 0.5:
            _shuffle(rng, self.paths[:self.twins], frames, size)
        targets = rng.permutation(len(self.paths))
        used = 0
        if rng.random() < 0.5:
            target = self.paths[targets[0]]
            target.log_size -= max(0.0, np.log(target.extent(0) / (0.4 * size)))
            is_hand = rng.random() < 0.3
            self._add(sprites.hand(rng, self.bank) if is_hand else sprites.rigid(rng, self.bank))
            if not is_hand:  # a compact shape, which can hide the target
                half = sprites.REACH * 0.9
                corners = np.array([[-half, -half], [half, -half], [half, half], [-half, half]])
                alpha = sprites.filled(corners * rng.uniform(0.8, 1, (4, 2)))
                self.things[-1] = Thing([sprites.Part(sprites.textured_sprite(rng, self.bank, alpha))])
            _cover(rng, self.paths[-1], target, frames, size)
            self.depth = np.append(self.depth, len(self.depth))
            used = 1
        if rng.random() < 0.35 and used < len(targets):
            _leave(rng, self.paths[targets[used]], frames, size)
            used += 1
        if rng.random() < 0.2 and used < len(targets) and len(self.things) < 8:  # a hand carries a thing
            carried = self.paths[targets[used]]
            self._add(sprites.hand(rng, self.bank))
            arm = self.paths[-1]
            angle = rng.uniform(0, 2 * np.pi)
            extent = np.exp(carried.log_size).max() * rng.uniform(1.8, 3.0)
            arm.log_size[:] = np.log(extent)
            arm.angle = angle + _wander(rng, frames, 0.01)
            reach = -0.42 * extent * rng.uniform(0.8, 1.3)
            arm.position = carried.position + reach * np.stack((np.cos(arm.angle), np.sin(arm.angle)), axis=1)
            self.depth = np.append(self.depth, len(self.depth))

    def _surroundings(self) -> None:
        rng, frames, size = self.rng, self.frames, self.size
        side = round(size * _CANVAS)
        self.background = self._make_background(side)
        motion = rng.choice([0.0, 0.0, 0.001, 0.004, 0.012]) * size
        pan = np.stack([_wander(rng, frames, motion) for _ in range(2)], axis=1)
        roll = _wander(rng, frames, rng.choice([0.0, 0.0, 0.003, 0.012]))
        zoom = np.exp(np.clip(_wander(rng, frames, rng.choice([0.0, 0.0, 0.003, 0.012])), -0.3, 0.5))
        shake = rng.normal(0, rng.choice([0.0, 0.0, 0.4, 1.2]), (frames, 2))
        self.camera = [move(size / 2 + pan[t, 0] + shake[t, 0], size / 2 + pan[t, 1] + shake[t, 1])
                       @ turn(roll[t], zoom[t], zoom[t]) @ move(-size / 2, -size / 2) for t in range(frames)]
        self.shadow = rng.uniform(0.15, 0.55) if rng.random() < 0.5 else 0.0
        self.shadow_offset = rng.normal(0, 0.03, 2) * size
        self.panel = None
        if rng.random() < 0.12:  # a bar in front of everything
            width, height = (rng.uniform(0.1, 0.3), 1.2) if rng.random() < 0.7 else (1.2, rng.uniform(0.1, 0.3))
            x, y = rng.uniform(-0.1, 0.9), rng.uniform(-0.1, 0.9)
            corner = (x, -0.1) if height > 1 else (-0.1, y)
            texture = cv2.resize(self.bank.draw(rng), (max(2, round(width * size)), max(2, round(height * size))))
            self.panel = (texture, corner[0] * size, corner[1] * size)
        self._light()

    def _light(self) -> None:
        rng, frames = self.rng, self.frames
        drift = rng.choice([0.0, 0.004, 0.02])
        self.gain = rng.uniform(0.65, 1.25) * np.exp(np.clip(_wander(rng, frames, drift), -0.5, 0.4))
        self.bias = rng.uniform(0, 30) if rng.random() < 0.3 else 0.0
        self.gamma = np.exp(rng.normal(0, 0.25)) if rng.random() < 0.5 else 1.0
        self.cast = np.exp(rng.normal(0, 0.08, 3))
        self.blur = rng.uniform(0.4, 1.3) if rng.random() < 0.4 else 0.0
        self.noise = rng.uniform(0.05, 0.5) if rng.random() < 0.6 else 0.0
        self.jpeg = int(rng.integers(35, 95)) if rng.random() < 0.25 else 0
        side = self.size + 64
        self.grain = (rng.standard_normal((side, side, 3), np.float32) * 25 + 128).clip(0, 255).astype(np.uint8) if (
            self.noise) else None

    def _make_background(self, side: int) -> np.ndarray:
        rng, bank = self.rng, self.bank

        def area() -> np.ndarray:
            texture = bank.draw(rng)
            crop = int(rng.integers(80, TEXTURE_SIZE + 1))
            x, y = rng.integers(0, TEXTURE_SIZE - crop + 1, 2)
            tile = texture[y:y + crop, x:x + crop]
            if rng.random() < 0.35:
                tile = np.tile(tile, (2, 2, 1))
            return cv2.resize(tile, (side, side), interpolation=cv2.INTER_LINEAR)

        canvas = area()
        if rng.random() < 0.5:  # a wall behind a table
            split, slope = rng.uniform(0.2, 0.8) * side, rng.normal(0, 0.15) * side
            mask = np.zeros((side, side), np.uint8)
            cv2.fillPoly(mask, [np.array([[0, split - slope], [side, split + slope], [side, side], [0, side]],
                                         np.int32)], 255)
            canvas[mask > 0] = area()[mask > 0]
        labels = np.zeros((side, side), np.uint8)
        for _ in range(int(rng.choice([0, 2, 5, 12, 25]))):
            kind = rng.random()
            thing = (self.things[int(rng.integers(len(self.things)))] if kind < 0.12
                     else self.clutter.draw(rng))
            extent = side * np.exp(rng.uniform(np.log(0.03), np.log(0.35)))
            scale = extent / SPRITE_SIZE
            place = move(*rng.uniform(0, side, 2)) @ turn(rng.uniform(0, 6.3), scale, scale) @ move(-_HALF, -_HALF)
            draw_thing(canvas, labels, thing, place, 0.0, 0)
        if rng.random() < 0.3:
            canvas = cv2.GaussianBlur(canvas, (0, 0), rng.uniform(0.7, 3))
        if rng.random() < 0.5:
            ramp = np.linspace(rng.uniform(0.5, 1), rng.uniform(0.5, 1), side, dtype=np.float32)
            ramp = ramp[None, :, None] if rng.random() < 0.5 else ramp[:, None, None]
            canvas = (canvas * ramp).astype(np.uint8)
        return canvas

    def _place(self, i: int, t: int) -> np.ndarray:
        path = self.paths[i]
        scale = path.extent(t) / (2 * sprites.REACH)
        aspect = self.things[i].aspect
        return (self.camera[t] @ move(*path.position[t]) @ turn(path.angle[t], scale * aspect, scale / aspect)
                @ move(-_HALF, -_HALF))

    def draw(self, t: int) -> tuple[np.ndarray, np.ndarray]:
        """Return frame ``t``, uint8 (S, S, 3), and the number of the thing in each pixel, from 1, uint8 (S, S)."""
        size, rng = self.size, self.rng
        margin = size * (_CANVAS - 1) / 2
        frame: np.ndarray = cv2.warpAffine(self.background, (self.camera[t] @ move(-margin, -margin))[:2], (size, size),
                                           flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
        labels = np.zeros((size, size), np.uint8)
        for i in np.argsort(self.depth):
            place = self._place(i, t)
            if self.shadow:
                draw_shadow(frame, self.things[i], move(*self.shadow_offset) @ place, t, self.shadow)
            draw_thing(frame, labels, self.things[i], place, t, i + 1)
        if self.panel is not None:
            texture, x, y = self.panel
            height, width = texture.shape[:2]
            place = (self.camera[t] @ move(x, y))[:2]
            alpha = cv2.warpAffine(np.full((height, width), 255, np.uint8), place, (size, size))
            frame = np.where(alpha[..., None] > 127, cv2.warpAffine(texture, place, (size, size)), frame)
            labels[alpha > 127] = 0
        levels = np.linspace(0, 1, 256)[:, None] ** self.gamma * 255 * self.gain[t] * self.cast + self.bias
        frame = cv2.LUT(frame, levels.clip(0, 255).astype(np.uint8).reshape(256, 1, 3))
        if self.blur:
            frame = cv2.GaussianBlur(frame, (0, 0), self.blur)
        if self.grain is not None:
            x, y = rng.integers(0, 64, 2)
            frame = cv2.addWeighted(frame, 1.0, self.grain[y:y + size, x:x + size], self.noise, -128 * self.noise)
        if self.jpeg:
            _, data = cv2.imencode('.jpg', frame, [cv2.IMWRITE_JPEG_QUALITY, self.jpeg])
            decoded = cv2.imdecode(data, cv2.IMREAD_COLOR)
            assert decoded is not None
            frame = decoded
        return frame, labels


def render(seed: int | tuple[int, ...], clutter: ClutterBank, frames: int,
           size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return frames, the objects in them, and the kind of each object.

    Frames are uint8 (T, S, S, 3). Objects are uint8 (T, S, S): the number of the object in each pixel, 0 for none.
    Kinds are int64 (K,): objects that look alike have one kind. Objects are numbered from 1 in random order. Each is
    visible in the first frame: things that come later are not labelled, nor objects in frames that show less than
    ``VISIBLE_PIXELS`` of them.
    """
    rng = np.random.default_rng(seed)
    scene = SyntheticScene(rng, clutter, frames, size)
    drawn = [scene.draw(t) for t in range(frames)]
    labels = np.stack([labels for _, labels in drawn])
    counts = np.stack([np.bincount(part.reshape(-1), minlength=len(scene.things) + 1) for part in labels])
    present = [i for i in range(1, len(scene.things) + 1) if counts[0, i] >= 4 * VISIBLE_PIXELS][:MAX_OBJECTS]
    order = rng.permutation(present).astype(np.int64)
    numbers = np.zeros((frames, 256), np.uint8)
    for number, i in enumerate(order, 1):
        numbers[counts[:, i] >= VISIBLE_PIXELS, i] = number
    objects = np.stack([cv2.LUT(part, table) for part, table in zip(labels, numbers, strict=True)])
    return np.stack([frame for frame, _ in drawn]), objects, np.where(order <= scene.twins, 0, order)


def make_clip(seed: int | tuple[int, ...], clutter: ClutterBank, frames: int, size: int = 256) -> Clip:
    """Return a clip of ``frames`` frames of ``size`` x ``size`` pixels. It follows from ``seed`` and the bank alone."""
    pixels, objects, kinds = render(seed, clutter, frames, size)
    masks = objects[:, None] == np.arange(1, objects[0].max() + 1, dtype=np.uint8)[None, :, None, None]
    return Clip(pixels, masks, masks.any(axis=(2, 3)), kinds)
