"""Figures of a run, and metrics.json, the file that holds them. docs/reference/evaluation.md describes its keys."""
from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from sam2_core.files import replacing
from sam2_ros.evaluation.results import Mode

FORMAT_VERSION = 1  # of metrics.json; files from before it had one are read as version 1
RANKS = ('p50', 'p95', 'p99')  # percentiles of times
RESULT = 'result'  # latency from the arrival of an image to its result
REFUSAL = 'name the metrics.json that sam2_evaluate wrote'


class MetricsError(ValueError):
    """A metrics.json cannot be used, or two cannot be compared; the text names them and the cure."""


@dataclass(frozen=True)
class Accuracy:
    """Region similarity J, contour accuracy F, and J&F, their mean; each 0 to 1."""

    j: float
    f: float
    j_and_f: float

    @property
    def named(self) -> dict[str, float]:
        """J, F and J&F by the names that files and tables use."""
        return {'J': self.j, 'F': self.f, 'J&F': self.j_and_f}


@dataclass(frozen=True)
class Presence:
    """Reported visibility against the truth, 0 to 1; None where the denominator is 0."""

    precision: float | None = None  # of the images in which the object is reported as visible
    recall: float | None = None  # of the images in which the object is visible


@dataclass(frozen=True)
class RecoverySeconds:
    """Times from the return of an object to the return of its mask."""

    mean: float
    p50: float
    max: float


@dataclass(frozen=True)
class Recovery:
    """Objects that were out of sight and came back."""

    occlusions: int = 0  # returns of objects in the truth
    recovered: int = 0  # returns after which the mask came back too
    seconds: RecoverySeconds | None = None


@dataclass(frozen=True)
class DriftBin:
    """Mean J in an interval of the time since the last prompt."""

    start: float  # seconds
    end: float | None  # seconds; None: no end
    j: float
    frames: int


@dataclass(frozen=True)
class FrameScores:
    """J and F of one object in each image that counts."""

    index: list[int] = field(default_factory=list)  # of the images, increasing
    j: list[float] = field(default_factory=list)
    f: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class ObjectMetrics:
    """Figures of one object of the truth."""

    label: str = ''
    prompted: bool = True
    accuracy: Accuracy | None = None  # over ``frames``; None: no image counts
    all_frames: Accuracy | None = None  # with the first and the last annotated image
    presence: Presence = Presence()
    recovery: Recovery = Recovery()
    identity_swaps: int = 0
    drift: list[DriftBin] = field(default_factory=list)
    frames: FrameScores = FrameScores()


@dataclass(frozen=True)
class ViewMetrics:
    """Accuracy when outputs are compared with another image's truth than their own."""

    mean: Accuracy | None
    objects: dict[int, Accuracy | None]


@dataclass(frozen=True)
class RefusedPrompt:
    """A prompt that the node refused."""

    id: int
    action: str
    reason: str


@dataclass(frozen=True)
class Agreement:
    """Similarity of the masks of two runs of one recording."""

    j: float | None  # mean over objects; None: neither run has a mask
    objects: dict[int, float]
    images: int  # that both runs processed


@dataclass(frozen=True)
class Exported:
    """Counts of an export of training data."""

    images: int
    masks: int
    unsure: int  # images skipped because the score of a mask is too low
    empty: int  # images skipped because no object is visible
    objects_left_out: tuple[int, ...] = ()  # objects whose scores are too low in most images; clips only


@dataclass
class Metrics:
    """All figures of a run. Times are in seconds, sizes in bytes."""

    recording: str = ''
    mode: Mode = Mode.LOCK_STEP
    rate: float = 1.0
    images: int = 0
    processed: int = 0
    dropped: int = 0
    annotated: int = 0
    protocol: dict[str, Any] = field(default_factory=dict)  # how it was scored; must be equal for a comparison
    mean: Accuracy | None = None  # over objects; None: there is no truth
    mean_all_frames: Accuracy | None = None
    objects: dict[int, ObjectMetrics] = field(default_factory=dict)
    not_prompted: dict[int, str] = field(default_factory=dict)  # reason for each object that was never tracked
    not_in_truth: list[int] = field(default_factory=list)
    presence: Presence = Presence()
    recovery: Recovery = Recovery()
    identity_swaps: int = 0
    drift: list[DriftBin] = field(default_factory=list)
    when_available: ViewMetrics | None = None  # None in lock-step, as ``as_seen``
    as_seen: ViewMetrics | None = None
    latency: dict[str, dict[str, float]] = field(default_factory=dict)  # percentiles by stage
    peak_memory: int = 0
    peak_gpu_memory: int = 0
    wall_seconds: float = 0.0
    prompts_accepted: int = 0
    prompts_refused: list[RefusedPrompt] = field(default_factory=list)
    unusable: dict[int, str] = field(default_factory=dict)  # reason for each image that could not be processed
    problems: list[str] = field(default_factory=list)
    parameters: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, Any] = field(default_factory=dict)
    against_lock_step: Agreement | None = None  # live only
    prompts_from: str = ''  # source of the prompts
    job: str = ''  # hash of everything the figures depend on
    exported: dict[str, Exported] = field(default_factory=dict)  # by kind of training data


# --- writing

def write(metrics: Metrics, path: Path) -> None:
    """Write metrics.json. The file appears complete or not at all."""
    write_json(to_json(metrics), path)


def write_json(content: Mapping[str, Any], path: Path) -> None:
    """Write strict JSON. The file appears complete or not at all."""
    with replacing(path) as part:
        part.write_text(json.dumps(content, indent=1, allow_nan=False, ensure_ascii=False) + '\n')


def to_json(metrics: Metrics) -> dict[str, Any]:
    """Return the content of metrics.json."""
    content = {
        'format_version': FORMAT_VERSION, 'recording': metrics.recording, 'mode': metrics.mode.value,
        'rate': metrics.rate, 'images': metrics.images, 'processed': metrics.processed, 'dropped': metrics.dropped,
        'annotated': metrics.annotated, 'protocol': metrics.protocol,
        'mean': mean_to_json(metrics.mean), 'mean_all_frames': mean_to_json(metrics.mean_all_frames),
        'objects': {str(number): _object_to_json(item) for number, item in metrics.objects.items()},
        'not_prompted': _by_name(metrics.not_prompted), 'not_in_truth': metrics.not_in_truth,
        'presence': asdict(metrics.presence), 'recovery': asdict(metrics.recovery),
        'identity_swaps': metrics.identity_swaps, 'drift': _drift_to_json(metrics.drift)}
    for name, view in (('when_available', metrics.when_available), ('as_seen', metrics.as_seen)):
        if view is not None:
            content[name] = {'mean': mean_to_json(view.mean), 'objects': {
                str(number): _accuracy_to_json(item) for number, item in view.objects.items()}}
    content |= {
        'latency': metrics.latency, 'peak_memory': metrics.peak_memory, 'peak_gpu_memory': metrics.peak_gpu_memory,
        'wall_seconds': metrics.wall_seconds,
        'prompts': {'accepted': metrics.prompts_accepted,
                    'refused': [asdict(item) for item in metrics.prompts_refused]},
        'unusable': _by_name(metrics.unusable), 'problems': metrics.problems,
        'parameters': metrics.parameters, 'versions': metrics.versions}
    if (against := metrics.against_lock_step) is not None:
        content['against_lock_step'] = {'J': against.j, 'objects': _by_name(against.objects), 'images': against.images}
    content |= {name: value for name in ('prompts_from', 'job') if (value := getattr(metrics, name))}
    if metrics.exported:
        content['exported'] = {kind: asdict(item) for kind, item in metrics.exported.items()}
    return content


def mean_to_json(mean: Accuracy | None) -> dict[str, float] | None:
    """Return J, F and J&F over several objects, None without any."""
    return None if mean is None else mean.named


def _accuracy_to_json(accuracy: Accuracy | None) -> dict[str, float | None]:
    return {'J': None, 'F': None, 'J&F': None} if accuracy is None else {**accuracy.named}


def _object_to_json(item: ObjectMetrics) -> dict[str, Any]:
    return {'label': item.label, 'prompted': item.prompted, **_accuracy_to_json(item.accuracy),
            'all_frames': _accuracy_to_json(item.all_frames),
            'presence': asdict(item.presence), 'recovery': asdict(item.recovery),
            'identity_swaps': item.identity_swaps, 'drift': _drift_to_json(item.drift),
            'frames': {'index': item.frames.index, 'J': item.frames.j, 'F': item.frames.f}}


def _drift_to_json(drift: list[DriftBin]) -> list[dict[str, Any]]:
    return [{'from': item.start, 'to': item.end, 'J': item.j, 'frames': item.frames} for item in drift]


def _by_name(values: Mapping[int, Any]) -> dict[str, Any]:
    return {str(number): value for number, value in values.items()}


# --- reading

def read(path: Path) -> Metrics:
    """Read a metrics.json of this version or an older one.

    Only ``objects`` must exist; other missing figures get their defaults.

    Raises:
        MetricsError: The file is missing, is no metrics.json, or was written by a newer version.
    """
    try:
        content = json.loads(path.read_text())
    except OSError as error:
        raise MetricsError(f'{path}: {error.strerror}; {REFUSAL}') from error
    except ValueError as error:
        raise MetricsError(f'{path}: no JSON ({error}); {REFUSAL}') from error
    if not isinstance(content, dict) or not isinstance(content.get('objects'), dict):
        raise MetricsError(f'{path}: has no "objects"; {REFUSAL}')
    version = content.get('format_version', FORMAT_VERSION)
    if version != FORMAT_VERSION:
        raise MetricsError(f'{path}: format version {version!r}: must be {FORMAT_VERSION}; use the version of sam2_ros '
                           'that wrote it')
    objects = {}
    for name, item in content['objects'].items():
        try:
            objects[int(name)] = _object_from_json(item)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise MetricsError(f'{path}: object {name}: "frames" must hold "index", "J" and "F" of equal length, of '
                               f'images in order and numbers from 0 to 1 ({error!r}); evaluate again') from error
    try:
        return _from_json(content, dict(sorted(objects.items())))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise MetricsError(f'{path}: cannot be read as metrics.json ({error!r}); evaluate again') from error


def _from_json(content: Mapping[str, Any], objects: dict[int, ObjectMetrics]) -> Metrics:
    given = {name: value for name, value in content.items() if value is not None}
    plain = ('recording', 'rate', 'images', 'processed', 'dropped', 'annotated', 'protocol', 'not_in_truth',
             'identity_swaps', 'latency', 'peak_memory', 'peak_gpu_memory', 'wall_seconds', 'problems', 'parameters',
             'versions', 'prompts_from', 'job')
    prompts, against = given.get('prompts', {}), given.get('against_lock_step')
    return Metrics(
        mode=Mode(given.get('mode', Mode.LOCK_STEP)), objects=objects,
        mean=_accuracy_from_json(given.get('mean')), mean_all_frames=_accuracy_from_json(given.get('mean_all_frames')),
        not_prompted=_by_number(given.get('not_prompted', {})), unusable=_by_number(given.get('unusable', {})),
        presence=Presence(**given.get('presence', {})), recovery=_recovery_from_json(given.get('recovery', {})),
        drift=_drift_from_json(given.get('drift', ())),
        when_available=_view_from_json(given.get('when_available')), as_seen=_view_from_json(given.get('as_seen')),
        prompts_accepted=prompts.get('accepted', 0),
        prompts_refused=[RefusedPrompt(**item) for item in prompts.get('refused', ())],
        against_lock_step=None if against is None else Agreement(against['J'], _by_number(against['objects']),
                                                                 against['images']),
        exported={kind: Exported(**{**item, 'objects_left_out': tuple(item['objects_left_out'])})
                  for kind, item in given.get('exported', {}).items()},
        **{name: given[name] for name in plain if name in given})


def _object_from_json(item: Mapping[str, Any]) -> ObjectMetrics:
    return ObjectMetrics(
        str(item.get('label') or ''), item.get('prompted', True), _accuracy_from_json(item),
        _accuracy_from_json(item.get('all_frames')), Presence(**item.get('presence', {})),
        _recovery_from_json(item.get('recovery', {})), item.get('identity_swaps', 0),
        _drift_from_json(item.get('drift', ())),
        _frames_from_json(item['frames']) if item.get('frames') else FrameScores())


def _frames_from_json(frames: Mapping[str, Any]) -> FrameScores:
    index = np.asarray(frames['index'], int)
    j, f = np.asarray(frames['J'], float), np.asarray(frames['F'], float)
    if not index.shape == j.shape == f.shape == (len(index),):
        raise ValueError(f'{len(frames["index"])}, {len(frames["J"])} and {len(frames["F"])} values')
    if (np.diff(index) <= 0).any():
        raise ValueError('images out of order')
    if not ((j >= 0) & (j <= 1) & (f >= 0) & (f <= 1)).all():
        raise ValueError('values beyond 0 and 1')
    return FrameScores(index.tolist(), j.tolist(), f.tolist())


def _accuracy_from_json(item: Mapping[str, Any] | None) -> Accuracy | None:
    """Return J, F and J&F, None unless all three are there."""
    j, f, j_and_f = (None if item is None else item.get(name) for name in ('J', 'F', 'J&F'))
    return None if j is None or f is None or j_and_f is None else Accuracy(j, f, j_and_f)


def _recovery_from_json(item: Mapping[str, Any]) -> Recovery:
    seconds = item.get('seconds')
    return Recovery(item.get('occlusions', 0), item.get('recovered', 0),
                    None if seconds is None else RecoverySeconds(**seconds))


def _drift_from_json(drift: Any) -> list[DriftBin]:
    return [DriftBin(item['from'], item['to'], item['J'], item['frames']) for item in drift]


def _view_from_json(view: Mapping[str, Any] | None) -> ViewMetrics | None:
    return None if view is None else ViewMetrics(_accuracy_from_json(view.get('mean')), {
        int(number): _accuracy_from_json(item) for number, item in view.get('objects', {}).items()})


def _by_number(values: Mapping[str, Any]) -> dict[int, Any]:
    return {int(name): value for name, value in values.items()}
