"""The figures of a run: how right, how steady, how fast. What is in metrics.json, and how each figure is defined."""
from __future__ import annotations

import bisect
import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np

from sam2_core.metrics import counted_frames
from sam2_ros.evaluation.results import STAGES, TOTAL, Run
from sam2_ros.evaluation.scoring.samples import AS_SEEN, AT_STAMP, WHEN_AVAILABLE, Judged, Sample, judge
from sam2_ros.recordings.recording import Recording

RESULT = 'result'  # latency: from the arrival of an image to its result
FOUND = 0.5  # J from which an object counts as found again
DRIFT_SECONDS = (0, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)


def score(run: Run, recording: Recording, protocol: dict | None = None, *, sav: bool = False,
          progress: Callable[[int], None] = lambda index: None) -> dict:
    """The figures of a run as metrics.json has them (see results.py); None where there is nothing to measure.

    protocol: what else has to be the same for two files to be compared. sav: count frames as SA-V's tool does, not as
    that of DAVIS (``sam2_core.metrics.counted_frames``). progress: is told the index of each image.

    J and F of an object are means over its annotated images without the first, where it is prompted, and the last;
    ``all_frames`` has them with these two. The mean is over objects. An object that is never prompted counts 0.
    ``presence``: of the images that an object is called visible in, the part in which it is (precision), and of those
    it is visible in, the part in which it is called so (recall). ``recovery``: how often an object comes back into
    sight in the truth, how often its mask does before it is gone again (J over 0.5), and how long that takes.
    ``identity_swaps``: how often a mask goes over to another object (IoU over 0.5, and over that with its own).
    ``drift``: J by the time since the last prompt for the object, where it is visible. In real time ``when_available``
    judges each output by the truth of the newest image there was when it was done, and ``as_seen`` each annotated image
    by the newest output there was when it came, also where images were dropped.
    """
    judged = judge(run, recording, progress)
    measures = {number: _Measures(number, samples, run, recording, judged, sav)
                for number, samples in sorted(judged.samples[AT_STAMP].items())}
    metrics = {
        'recording': run.recording, 'mode': run.mode, 'rate': run.rate, 'images': run.images,
        'processed': len(run.frames), 'dropped': len(run.dropped), 'annotated': judged.annotated,
        'protocol': {**(protocol or {}), 'frames_counted': 'SA-V' if sav else 'DAVIS'},
        'mean': _mean_of(item.counted for item in measures.values()),
        'mean_all_frames': _mean_of(item.all_frames for item in measures.values()),
        'objects': {str(number): item.figures() for number, item in measures.items()},
        'not_prompted': {str(number): _why_not(run, number) for number in measures if number not in judged.asked},
        'not_in_truth': sorted(judged.asked.keys() - measures.keys()) if judged.annotated else [],
        'presence': _presence([sample for item in measures.values() for sample in item.samples]),
        'recovery': _recovery([times for item in measures.values() for times in item.recoveries()]),
        'identity_swaps': sum(item.swaps() for item in measures.values()),
        'drift': _drift([pair for item in measures.values() for pair in item.ages()])}
    for view in (WHEN_AVAILABLE, AS_SEEN):
        if view in judged.samples:
            metrics[view.replace(' ', '_')] = _view(judged, view, sav)
    metrics |= {
        'latency': _latency(run, recording),
        'peak_memory': run.peak_memory, 'peak_gpu_memory': run.peak_gpu_memory, 'wall_seconds': run.wall_seconds,
        'prompts': {'accepted': sum(answer.accepted for answer in run.answers),
                    'refused': [{'id': answer.id, 'action': answer.action, 'reason': answer.reason}
                                for answer in run.answers if not answer.accepted]},
        'unusable': {str(index): reason for index, reason in sorted(run.unusable.items())},
        'problems': [*recording.problems, *judged.problems, *run.problems, *run.failures],
        'parameters': run.parameters, 'versions': run.versions}
    return metrics


def write_metrics(metrics: dict, path: Path) -> None:
    """As strict JSON; the file is there as a whole or not at all."""
    part = path.with_name(path.name + '.part')
    part.write_text(json.dumps(metrics, indent=1, allow_nan=False, ensure_ascii=False) + '\n')
    part.replace(path)


class _Measures:
    """One object of the truth, each output at its stamp."""

    def __init__(self, number: int, samples: list[Sample], run: Run, recording: Recording, judged: Judged,
                 sav: bool) -> None:
        self._label = run.labels.get(number, '')
        self._stamps = recording.stamps
        self._prompted = number in judged.asked
        self._prompts = sorted(answer.applied for answer in run.answers if answer.accepted and answer.id == number
                               and answer.action in ('SET', 'REFINE'))
        self._all = samples
        self.samples = _counted(samples, sav)
        self.counted = _means(self.samples, self._prompted)
        self.all_frames = _means(_counted(samples, sav, skip=False), self._prompted)

    def figures(self) -> dict:
        factor = float(self._prompted)
        return {'label': self._label, 'prompted': self._prompted, **self.counted, 'all_frames': self.all_frames,
                'presence': _presence(self.samples), 'recovery': _recovery(self.recoveries()),
                'identity_swaps': self.swaps(), 'drift': _drift(self.ages()),
                'frames': {'index': [sample.index for sample in self.samples],
                           'J': [factor * sample.j for sample in self.samples],
                           'F': [factor * sample.f for sample in self.samples]}}

    def recoveries(self) -> list[float | None]:
        """For each time that it comes back into sight: seconds until it is found; None: it is not."""
        result = []
        back: int | None = None  # stamp; in sight again, and not found yet
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
        return sum(sample.on_another and not before.on_another
                   for before, sample in zip(self._all, self._all[1:], strict=False))

    def ages(self) -> list[tuple[float, float]]:
        """Seconds since the last prompt, and J, where it is visible."""
        result = []
        for sample in self.samples:
            place = bisect.bisect_right(self._prompts, self._stamps[sample.index])
            if sample.in_truth and place:
                result.append(((self._stamps[sample.index] - self._prompts[place - 1]) / 1e9, sample.j))
        return result


def _counted(samples: Sequence[Sample], sav: bool, skip: bool = True) -> list[Sample]:
    return [samples[i] for i in counted_frames([s.in_truth or s.in_output for s in samples], skip, sav)]


def _means(samples: Sequence[Sample], prompted: bool) -> dict[str, float | None]:
    """Of one object."""
    if not samples:
        return {'J': None, 'F': None, 'J&F': None}
    j, f = (float(np.mean(values)) * prompted for values in zip(*((s.j, s.f) for s in samples), strict=True))
    return {'J': j, 'F': f, 'J&F': (j + f) / 2}


def _mean_of(objects: Iterable[dict[str, float | None]]) -> dict[str, float] | None:
    """Over those that there are figures of; None: there is none."""
    found = [item for item in objects if item['J'] is not None]
    return {name: float(np.mean([item[name] for item in found])) for name in ('J', 'F', 'J&F')} if found else None


def _view(judged: Judged, view: str, sav: bool) -> dict:
    objects = {str(number): _means(_counted(samples, sav), number in judged.asked)
               for number, samples in sorted(judged.samples[view].items())}
    return {'mean': _mean_of(objects.values()), 'objects': objects}


def _presence(samples: Sequence[Sample]) -> dict[str, float | None]:
    right = sum(sample.called_visible and sample.in_truth for sample in samples)
    called, visible = sum(sample.called_visible for sample in samples), sum(sample.in_truth for sample in samples)
    return {'precision': right / called if called else None, 'recall': right / visible if visible else None}


def _recovery(times: Sequence[float | None]) -> dict:
    found = [seconds for seconds in times if seconds is not None]
    return {'occlusions': len(times), 'recovered': len(found),
            'seconds': {'mean': float(np.mean(found)), 'p50': float(np.median(found)), 'max': max(found)}
            if found else None}


def _drift(ages: Iterable[tuple[float, float]]) -> list[dict]:
    bins = defaultdict(list)
    for seconds, j in ages:
        bins[bisect.bisect_right(DRIFT_SECONDS, seconds) - 1].append(j)
    ends = (*DRIFT_SECONDS[1:], None)
    return [{'from': DRIFT_SECONDS[place], 'to': ends[place], 'J': float(np.mean(values)), 'frames': len(values)}
            for place, values in sorted(bins.items())]


def _latency(run: Run, recording: Recording) -> dict[str, dict[str, float]]:
    """Seconds by stage, those that there were."""
    seconds = {stage: [frame.stages[stage] for frame in run.frames if stage in frame.stages]
               for stage in (*STAGES, TOTAL)}
    if run.mode != 'lock-step':
        seconds[RESULT] = [(frame.available - recording.arrivals[frame.index]) / 1e9 / run.rate
                           for frame in run.frames]
    return {stage: {f'p{rank}': float(np.percentile(values, rank)) for rank in (50, 95, 99)}
            for stage, values in seconds.items() if values}


def _why_not(run: Run, number: int) -> str:
    """Why an object was never tracked."""
    return next((f'refused: {answer.reason}' for answer in run.answers if answer.id == number and answer.reason),
                'no prompt for it')
