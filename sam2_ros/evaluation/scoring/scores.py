"""Figures of a run: accuracy, stability and speed."""
from __future__ import annotations

import bisect
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from sam2_core.metrics import counted_frames
from sam2_ros.evaluation.metrics import (
    RESULT,
    Accuracy,
    DriftBin,
    FrameScores,
    Metrics,
    ObjectMetrics,
    Presence,
    Recovery,
    RecoverySeconds,
    RefusedPrompt,
    ViewMetrics,
)
from sam2_ros.evaluation.results import STAGES, TOTAL, TRACK, Mode, Run
from sam2_ros.evaluation.scoring.samples import AS_SEEN, AT_STAMP, WHEN_AVAILABLE, Judged, Sample, judge
from sam2_ros.recordings.recording import Recording

FOUND = 0.5  # J above which an object counts as recovered
DRIFT_SECONDS = (0, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)


def score(run: Run, recording: Recording, protocol: Mapping[str, Any] | None = None, *, sav: bool = False,
          progress: Callable[[int], None] = lambda index: None) -> Metrics:
    """Return the figures of a run.

    J and F of an object are means over its annotated images. As in the tools of DAVIS 2017, the first one, which is
    prompted, and the last one do not count; ``all_frames`` includes them. ``mean`` is over objects, and an object that
    is never prompted counts 0.

    * ``presence``: precision is the share of images with the object among those in which it is reported as visible,
      recall the share reported as visible among the images with the object.
    * ``recovery``: returns of objects in the truth, returns of their masks (J above 0.5) before the object disappears
      again, and the time in between.
    * ``identity_swaps``: transitions of a mask to another object: its IoU with that object is above 0.5 and above the
      IoU with its own.
    * ``drift``: J of visible objects by the time since their last prompt.
    * ``when_available`` and ``as_seen``, not in lock-step: see ``samples.WHEN_AVAILABLE`` and ``samples.AS_SEEN``.

    Args:
        run: Run to score.
        recording: Recording of the run.
        protocol: Further properties that two files must share to be compared.
        sav: True counts frames as SA-V's tool does instead of DAVIS's (``sam2_core.metrics.counted_frames``).
        progress: Function that is called with the index of each image.
    """
    judged = judge(run, recording, progress)
    scored = {number: _ScoredObject(number, samples, run, recording, judged, sav)
              for number, samples in sorted(judged.samples[AT_STAMP].items())}
    views = {view: _view(judged, view, sav) for view in (WHEN_AVAILABLE, AS_SEEN) if view in judged.samples}
    return Metrics(
        recording=run.recording, mode=run.mode, rate=run.rate, images=run.images, processed=len(run.frames),
        dropped=len(run.dropped), annotated=judged.annotated,
        protocol={**(protocol or {}), 'frames_counted': 'SA-V' if sav else 'DAVIS'},
        mean=mean_of(item.accuracy for item in scored.values()),
        mean_all_frames=mean_of(item.all_frames for item in scored.values()),
        objects={number: item.metrics() for number, item in scored.items()},
        not_prompted={number: _why_not(run, number) for number in scored if number not in judged.asked},
        not_in_truth=sorted(judged.asked.keys() - scored.keys()) if judged.annotated else [],
        presence=_presence([sample for item in scored.values() for sample in item.samples]),
        recovery=_recovery([times for item in scored.values() for times in item.recoveries()]),
        identity_swaps=sum(item.swaps() for item in scored.values()),
        drift=_drift([pair for item in scored.values() for pair in item.ages()]),
        when_available=views.get(WHEN_AVAILABLE), as_seen=views.get(AS_SEEN), latency=_latency(run, recording),
        peak_memory=run.peak_memory, peak_gpu_memory=run.peak_gpu_memory, wall_seconds=run.wall_seconds,
        prompts_accepted=sum(answer.accepted for answer in run.answers),
        prompts_refused=[RefusedPrompt(answer.id, answer.action, answer.reason)
                         for answer in run.answers if not answer.accepted],
        unusable=dict(sorted(run.unusable.items())),
        problems=[*recording.problems, *judged.problems, *run.problems, *run.failures],
        parameters=run.parameters, versions=run.versions)


class _ScoredObject:
    """One object of the truth with its samples at the stamps of the outputs."""

    def __init__(self, number: int, samples: list[Sample], run: Run, recording: Recording, judged: Judged,
                 sav: bool) -> None:
        self._label = run.labels.get(number, '')
        self._stamps = recording.stamps
        self._prompted = number in judged.asked
        self._prompts = sorted(answer.applied for answer in run.answers if answer.accepted and answer.id == number
                               and answer.applied is not None and answer.action in ('SET', 'REFINE'))
        self._all = samples
        self.samples = _counted(samples, sav)
        self.accuracy = _accuracy(self.samples, self._prompted)
        self.all_frames = _accuracy(_counted(samples, sav, skip=False), self._prompted)

    def metrics(self) -> ObjectMetrics:
        factor = float(self._prompted)
        return ObjectMetrics(
            self._label, self._prompted, self.accuracy, self.all_frames, _presence(self.samples),
            _recovery(self.recoveries()), self.swaps(), _drift(self.ages()),
            FrameScores([sample.index for sample in self.samples], [factor * sample.j for sample in self.samples],
                        [factor * sample.f for sample in self.samples]))

    def recoveries(self) -> list[float | None]:
        """Return the seconds from each return of the object to that of its mask, None where the mask did not return."""
        result: list[float | None] = []
        back: int | None = None  # stamp of the return while the mask has not returned
        for before, sample in zip(self._all, self._all[1:], strict=False):
            if not sample.in_truth:
                if back is not None:
                    result.append(None)
                back = None
                continue
            if not before.in_truth:
                back = self._stamps[sample.index]
            if back is not None and sample.called_visible and sample.j > FOUND:
                result.append((self._stamps[sample.index] - back) / 1e9)
                back = None
        return [*result, None] if back is not None else result

    def swaps(self) -> int:
        """Return how often the mask moved to another object."""
        return sum(sample.on_another and not before.on_another
                   for before, sample in zip(self._all, self._all[1:], strict=False))

    def ages(self) -> list[tuple[float, float]]:
        """Return the seconds since the last prompt, and J, for each image in which the object is visible."""
        result = []
        for sample in self.samples:
            place = bisect.bisect_right(self._prompts, self._stamps[sample.index])
            if sample.in_truth and place:
                result.append(((self._stamps[sample.index] - self._prompts[place - 1]) / 1e9, sample.j))
        return result


def mean_of(objects: Iterable[Accuracy | None]) -> Accuracy | None:
    """Return the mean over the objects that have an accuracy, None if none has."""
    found = [item for item in objects if item is not None]
    if not found:
        return None
    j, f, j_and_f = (float(np.mean(values)) for values in zip(*((item.j, item.f, item.j_and_f) for item in found),
                                                              strict=True))
    return Accuracy(j, f, j_and_f)


def _counted(samples: Sequence[Sample], sav: bool, skip: bool = True) -> list[Sample]:
    return [samples[i] for i in counted_frames([s.in_truth or s.in_output for s in samples], skip, sav)]


def _accuracy(samples: Sequence[Sample], prompted: bool) -> Accuracy | None:
    """Return the accuracy of one object, None without samples."""
    if not samples:
        return None
    j, f = (float(np.mean(values)) * prompted for values in zip(*((s.j, s.f) for s in samples), strict=True))
    return Accuracy(j, f, (j + f) / 2)


def _view(judged: Judged, view: str, sav: bool) -> ViewMetrics:
    objects = {number: _accuracy(_counted(samples, sav), number in judged.asked)
               for number, samples in sorted(judged.samples[view].items())}
    return ViewMetrics(mean_of(objects.values()), objects)


def _presence(samples: Sequence[Sample]) -> Presence:
    right = sum(sample.called_visible and sample.in_truth for sample in samples)
    called, visible = sum(sample.called_visible for sample in samples), sum(sample.in_truth for sample in samples)
    return Presence(right / called if called else None, right / visible if visible else None)


def _recovery(times: Sequence[float | None]) -> Recovery:
    found = [seconds for seconds in times if seconds is not None]
    return Recovery(len(times), len(found), RecoverySeconds(float(np.mean(found)), float(np.median(found)), max(found))
                    if found else None)


def _drift(ages: Iterable[tuple[float, float]]) -> list[DriftBin]:
    bins = defaultdict(list)
    for seconds, j in ages:
        bins[bisect.bisect_right(DRIFT_SECONDS, seconds) - 1].append(j)
    ends = (*DRIFT_SECONDS[1:], None)
    return [DriftBin(DRIFT_SECONDS[place], ends[place], float(np.mean(values)), len(values))
            for place, values in sorted(bins.items())]


def _latency(run: Run, recording: Recording) -> dict[str, dict[str, float]]:
    """Return the percentiles of the seconds of each stage that took place."""
    seconds = {stage: [frame.stages[stage] for frame in run.frames if stage in frame.stages]
               for stage in (*STAGES, TRACK, TOTAL)}
    if run.mode != Mode.LOCK_STEP:
        seconds[RESULT] = [(frame.available - recording.arrivals[frame.index]) / 1e9 / run.rate
                           for frame in run.frames]
    return {stage: {f'p{rank}': float(np.percentile(values, rank)) for rank in (50, 95, 99)}
            for stage, values in seconds.items() if values}


def _why_not(run: Run, number: int) -> str:
    """Return why an object was never tracked."""
    return next((f'refused: {answer.reason}' for answer in run.answers if answer.id == number and answer.reason),
                'no prompt for it')
