"""Two files metrics.json of one recording side by side: by how much J&F differ, and how sure that is."""
from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

DRAWS = 10_000
CONFIDENCE = 0.95


class MetricsError(ValueError):
    """A file that cannot be used, or two that cannot be compared; the text names them and the cure."""


@dataclass(frozen=True, eq=False)
class ObjectScores:
    """J and F of one object, image by image."""

    label: str
    index: np.ndarray  # int (N,), increasing: which images are counted
    j: np.ndarray  # float (N,), 0..1
    f: np.ndarray


@dataclass(frozen=True, eq=False)
class Metrics:
    """What is compared of a metrics.json."""

    path: Path
    content: Mapping[str, Any]
    objects: dict[int, ObjectScores]  # those that have counted images


@dataclass(frozen=True)
class Difference:
    """A figure of both files over the same images, and what lies between them."""

    before: float
    after: float
    interval: tuple[float, float] | None = None  # of ``change``; None: not estimated, or too few images to tell

    @property
    def change(self) -> float:
        return self.after - self.before


@dataclass(frozen=True, eq=False)
class Comparison:
    """Names of figures are those of metrics.json: J, F, J&F."""

    mean: dict[str, Difference]  # over objects
    objects: dict[int, dict[str, Difference]]
    labels: dict[int, str]
    counted: int  # pairs of an object and an image that both files count
    left_out: list[str]  # what only one of the two has, in words


def load(path: Path) -> Metrics:
    """MetricsError when the file is missing, is no metrics.json, or has no J and F for each image."""
    try:
        content = json.loads(path.read_text())
    except OSError as error:
        raise MetricsError(f'{path}: {error.strerror}; name the metrics.json that sam2_evaluate wrote') from error
    except ValueError as error:
        raise MetricsError(f'{path}: no JSON ({error}); name the metrics.json that sam2_evaluate wrote') from error
    if not isinstance(content, dict) or not isinstance(content.get('objects'), dict):
        raise MetricsError(f'{path}: has no "objects"; name the metrics.json that sam2_evaluate wrote')
    objects = {}
    for name, item in content['objects'].items():
        try:
            objects[int(name)] = _object(item)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise MetricsError(f'{path}: object {name}: "frames" must hold "index", "J" and "F" of equal length, of '
                               f'images in order and numbers from 0 to 1 ({error!r}); evaluate again') from error
    objects = {name: scores for name, scores in sorted(objects.items()) if len(scores.index)}
    if not objects:
        raise MetricsError(f'{path}: no object has an image that counts; evaluate with ground truth '
                           '(--ground-truth-topic) that annotates at least three images')
    return Metrics(path, content, objects)


def _object(item: Mapping[str, Any]) -> ObjectScores:
    frames = item.get('frames') or {'index': [], 'J': [], 'F': []}
    index = np.asarray(frames['index'], int)
    j, f = np.asarray(frames['J'], float), np.asarray(frames['F'], float)
    if not index.shape == j.shape == f.shape == (len(index),):
        raise ValueError(f'{len(frames["index"])}, {len(frames["J"])} and {len(frames["F"])} values')
    if (np.diff(index) <= 0).any():
        raise ValueError('images out of order')
    if not ((j >= 0) & (j <= 1) & (f >= 0) & (f <= 1)).all():
        raise ValueError('values beyond 0 and 1')
    return ObjectScores(str(item.get('label') or ''), index, j, f)


def mismatches(a: Metrics, b: Metrics) -> list[str]:
    """Why the two must not be compared, each in words; empty: they may be."""
    found = [f'{name}: {a.content.get(name)!r} and {b.content.get(name)!r}'
             for name in ('recording', 'images', 'mode', 'rate') if a.content.get(name) != b.content.get(name)]
    ours, theirs = (item.content.get('protocol') or {} for item in (a, b))
    found += [f'{name}: {ours.get(name)!r} and {theirs.get(name)!r}'
              for name in sorted({*ours, *theirs}) if ours.get(name) != theirs.get(name)]
    for one, other in ((a, b), (b, a)):
        if only := sorted(set(one.objects) - set(other.objects)):
            found.append(f'only {one.path} scores object {", ".join(map(str, only))}')
    return found


def compare(a: Metrics, b: Metrics, *, block: int = 0, draws: int = DRAWS, seed: int = 0) -> Comparison:
    """What changes from ``a`` to ``b``, over the images of the objects that both count.

    The mean is over objects, each the mean over its images, as in DAVIS. Its interval is a paired bootstrap over the
    differences of J&F at the same image and object (percentile method, CONFIDENCE). Neighbouring images fail
    together, and so do those of one object: each draw takes objects with replacement, and of each of them runs of
    neighbouring images (circular blocks; Künsch 1989, Politis and Romano 1992), so that both the choice of the objects
    and that of the moments count as chance.

    block: images to a run; 0: the square root of an object's number of images, rounded up.
    MetricsError when they have nothing in common; ValueError for a block or draws out of range.
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
        _differences(*means, _interval(changes, block, draws, random)), objects,
        {name: b.objects[name].label or a.objects[name].label for name in pairs},
        sum(map(len, changes)), _left_out(a, b))


def _left_out(a: Metrics, b: Metrics) -> list[str]:
    """What only one of two counts, in words: it is left out of the comparison."""
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
    """Of the mean over objects of the mean over images. changes: one array (N,) for each object."""
    lengths = [min(len(change), block or math.ceil(math.sqrt(len(change)))) for change in changes]
    runs = sum(math.ceil(len(change) / length) for change, length in zip(changes, lengths, strict=True))
    if runs < 2:
        return None
    drawn = random.integers(len(changes), size=(draws, len(changes)))
    total = np.zeros(draws)
    for which, (change, length) in enumerate(zip(changes, lengths, strict=True)):
        times = np.count_nonzero(drawn == which, axis=1)  # an object drawn twice gets runs of its own for each
        means = _resampled_means(change, length, int(times.sum()), random)
        total += np.bincount(np.repeat(np.arange(draws), times), means, draws)
    low, high = np.quantile(total / len(changes), ((1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2))
    return float(low), float(high)


def _resampled_means(change: np.ndarray, length: int, number: int, random: np.random.Generator) -> np.ndarray:
    """``number`` times the mean of as many values as there are, taken in circular runs of ``length``: (number,)."""
    count = len(change)
    runs, rest = divmod(count, length)
    around = np.cumsum(np.concatenate(([0.0], change, change)))
    sums = np.zeros(number)
    for part in [length] * runs + [rest] * bool(rest):  # the last run is cut where the count is reached
        starts = random.integers(count, size=number)
        sums += around[starts + part] - around[starts]
    return sums / count
