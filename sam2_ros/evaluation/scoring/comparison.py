"""Comparison of two metrics.json of one recording: the change of J&F, and its confidence interval."""
from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sam2_ros.evaluation.metrics import Metrics, MetricsError, read

DRAWS = 10_000
CONFIDENCE = 0.95


@dataclass(frozen=True, eq=False)
class ObjectScores:
    """J and F of one object, image by image."""

    label: str
    index: np.ndarray  # int (N,), increasing: the images that count
    j: np.ndarray  # float (N,), 0..1
    f: np.ndarray  # float (N,), 0..1


@dataclass(frozen=True, eq=False)
class ScoredRun:
    """Content of a metrics.json, with its scores as arrays."""

    path: Path
    metrics: Metrics
    objects: dict[int, ObjectScores]  # those with images that count


@dataclass(frozen=True)
class Difference:
    """One figure of both files over the same images."""

    before: float
    after: float
    interval: tuple[float, float] | None = None  # of ``change``; None: not estimated, or too few images

    @property
    def change(self) -> float:
        """Difference from before to after."""
        return self.after - self.before


@dataclass(frozen=True, eq=False)
class Comparison:
    """Differences between two files. Figures are named as in metrics.json: J, F, J&F."""

    mean: dict[str, Difference]  # over objects
    objects: dict[int, dict[str, Difference]]
    labels: dict[int, str]
    counted: int  # pairs of an object and an image that count in both files
    left_out: list[str]  # objects and images of only one file, in words


def load(path: Path) -> ScoredRun:
    """Read a metrics.json with scores.

    Raises:
        MetricsError: The file cannot be used, or no image of it counts.
    """
    metrics = read(path)
    objects = {number: ObjectScores(item.label, np.array(item.frames.index, int), np.array(item.frames.j, float),
                                    np.array(item.frames.f, float))
               for number, item in metrics.objects.items() if item.frames.index}
    if not objects:
        raise MetricsError(f'{path}: no object has an image that counts; evaluate with ground truth '
                           '(--ground-truth-topic) that annotates at least three images')
    return ScoredRun(path, metrics, objects)


def mismatches(a: ScoredRun, b: ScoredRun) -> list[str]:
    """Return the reasons, in words, why two files must not be compared; empty if they may be."""
    found = [f'{name}: {ours!r} and {theirs!r}' for name, ours, theirs in (
        ('recording', a.metrics.recording, b.metrics.recording), ('images', a.metrics.images, b.metrics.images),
        ('mode', a.metrics.mode.value, b.metrics.mode.value), ('rate', a.metrics.rate, b.metrics.rate))
        if ours != theirs]
    ours, theirs = a.metrics.protocol, b.metrics.protocol
    found += [f'{name}: {ours.get(name)!r} and {theirs.get(name)!r}'
              for name in sorted({*ours, *theirs}) if ours.get(name) != theirs.get(name)]
    for one, other in ((a, b), (b, a)):
        if only := sorted(set(one.objects) - set(other.objects)):
            found.append(f'only {one.path} scores object {", ".join(map(str, only))}')
    return found


def compare(a: ScoredRun, b: ScoredRun, *, block: int = 0, draws: int = DRAWS, seed: int = 0) -> Comparison:
    """Return the change from ``a`` to ``b`` over the objects and images that count in both.

    The mean is over objects, each the mean over its images, as in DAVIS. Its interval is a paired bootstrap over the
    differences of J&F at the same image and object (percentile method, CONFIDENCE). Errors of neighbouring images and
    of one object are correlated. Therefore each draw takes objects with replacement and, for each of them, blocks of
    neighbouring images (circular blocks; Künsch 1989, Politis and Romano 1992). The interval thus covers the choice of
    both objects and moments.

    Args:
        a: The run before.
        b: The run after.
        block: Images per block; 0 means the square root of an object's number of images, rounded up.
        draws: Number of bootstrap draws.
        seed: Seed of the bootstrap.

    Raises:
        MetricsError: The runs have no object and image in common.
        ValueError: ``block`` or ``draws`` is out of range.
    """
    if block < 0 or draws < 1:
        raise ValueError(f'block {block}, draws {draws}: must be at least 0 and 1')
    pairs = {}
    for name in sorted(set(a.objects) & set(b.objects)):
        ours, theirs = a.objects[name], b.objects[name]
        _, mine, other = np.intersect1d(ours.index, theirs.index, return_indices=True)
        if len(mine):
            pairs[name] = (np.stack((ours.j[mine], ours.f[mine])), np.stack((theirs.j[other], theirs.f[other])))
    if not pairs:
        raise MetricsError(f'{a.path} and {b.path}: no object with an image that both count; compare runs of one '
                           'recording')
    changes = [(after - before).mean(0) for before, after in pairs.values()]
    random = np.random.default_rng(seed)
    objects = {name: _differences(before.mean(1), after.mean(1), _interval([change], block, draws, random))
               for (name, (before, after)), change in zip(pairs.items(), changes, strict=True)}
    means = [np.mean([values[side].mean(1) for values in pairs.values()], 0) for side in (0, 1)]
    return Comparison(
        _differences(means[0], means[1], _interval(changes, block, draws, random)), objects,
        {name: b.objects[name].label or a.objects[name].label for name in pairs},
        sum(map(len, changes)), _left_out(a, b))


def _left_out(a: ScoredRun, b: ScoredRun) -> list[str]:
    """Return the objects and images, in words, that count in only one run and are not compared."""
    found = []
    for one, other in ((a, b), (b, a)):
        for name, scores in one.objects.items():
            if name not in other.objects:
                found.append(f'object {name}: only {one.path} scores it')
            elif only := len(np.setdiff1d(scores.index, other.objects[name].index)):
                found.append(f'object {name}: {only} images that only {one.path} counts')
    return found


def _differences(before: np.ndarray, after: np.ndarray,
                 interval: tuple[float, float] | None) -> dict[str, Difference]:
    return {'J': Difference(float(before[0]), float(after[0])), 'F': Difference(float(before[1]), float(after[1])),
            'J&F': Difference(float(before.mean()), float(after.mean()), interval)}


def _interval(changes: Sequence[np.ndarray], block: int, draws: int,
              random: np.random.Generator) -> tuple[float, float] | None:
    """Return the interval of the mean over objects of the mean over images, None if there are too few images.

    ``changes`` has one array (N,) for each object.
    """
    lengths = [min(len(change), block or math.ceil(math.sqrt(len(change)))) for change in changes]
    runs = sum(math.ceil(len(change) / length) for change, length in zip(changes, lengths, strict=True))
    if runs < 2:
        return None
    drawn = random.integers(len(changes), size=(draws, len(changes)))
    total = np.zeros(draws)
    for which, (change, length) in enumerate(zip(changes, lengths, strict=True)):
        times = np.count_nonzero(drawn == which, axis=1)  # an object drawn twice is resampled twice
        means = _resampled_means(change, length, int(times.sum()), random)
        total += np.bincount(np.repeat(np.arange(draws), times), means, draws)
    low, high = np.quantile(total / len(changes), ((1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2))
    return float(low), float(high)


def _resampled_means(change: np.ndarray, length: int, number: int, random: np.random.Generator) -> np.ndarray:
    """Return the means of ``number`` resamples, (number,), each made of circular blocks of ``length`` values."""
    count = len(change)
    runs, rest = divmod(count, length)
    around = np.cumsum(np.concatenate(([0.0], change, change)))
    sums = np.zeros(number)
    for part in [length] * runs + [rest] * bool(rest):  # the last block is shorter if the length does not divide count
        starts = random.integers(count, size=number)
        sums += around[starts + part] - around[starts]
    return sums / count
