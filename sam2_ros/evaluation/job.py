"""One recording from reading it to the files about it. It is described by plain values, so that any process can do it.
"""
from __future__ import annotations

import errno
import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

from sam2_core import Sam2Model
from sam2_ros.evaluation.live_replay import agreement, run_live
from sam2_ros.evaluation.prompts import first_truth_prompts, read_prompts
from sam2_ros.evaluation.replay import run
from sam2_ros.evaluation.report.page import write_report
from sam2_ros.evaluation.report.pictures import write_video
from sam2_ros.evaluation.report.results_bag import write_results
from sam2_ros.evaluation.report.training_export import MIN_SCORE, export
from sam2_ros.evaluation.results import Run
from sam2_ros.evaluation.scoring.scores import score, write_metrics
from sam2_ros.recordings.bag_recording import BagRecording
from sam2_ros.recordings.davis_folder import DavisFolder
from sam2_ros.recordings.recording import Recording, RecordingError
from sam2_ros.recordings.sav_folder import SavFolder
from sam2_ros.runtime.parameters import Parameters

BAG, DAVIS, SAV = 'bag', 'davis', 'sav'
TOPIC, FIRST_TRUTH = 'topic', 'first-truth'
METRICS, RESULTS, REPORT, VIDEO = 'metrics.json', 'results', 'report.html', 'overlay.mp4'
Progress = Callable[[str, int, int], None]  # what is being done, how much of it is, of how much


@dataclass(frozen=True)
class Job:
    """What to do with one recording."""

    source: Path  # of the bag, or of the folder of a data set
    output: Path  # folder, made if need be
    kind: str = BAG  # or DAVIS, SAV
    clip: str = ''  # of a data set
    topics: dict[str, str] = field(default_factory=dict)  # those given, as arguments of BagRecording
    prompts: str = ''  # TOPIC, FIRST_TRUTH or a YAML file; empty: those of the topic, where there are any, or the truth
    mode: str = 'lock-step'
    rate: float = 1.0
    parameters: Parameters = field(default_factory=Parameters)
    bag: str = 'results'  # whether a bag of the results is written: or 'images', with the images in it, or ''
    video: bool = True  # whether overlay.mp4 is written
    exports: tuple[str, ...] = ()  # kinds of training data that are made of the masks
    export_folder: Path = Path()  # recordings share it, with a folder for each kind
    min_score: float = MIN_SCORE  # of the masks that are exported

    @property
    def name(self) -> str:
        return self.clip or self.source.resolve().name


def job_key(job: Job) -> str:
    """What the outcome of a job depends on, as a hash: its options, and the files that it reads by size and time."""
    options = {name: value for name, value in asdict(job).items() if name not in ('output', 'export_folder')}
    files = [Path(name) for name in (job.prompts, job.parameters.checkpoint) if name and Path(name).is_file()]
    if job.kind == BAG:
        files += sorted(job.source.iterdir() if job.source.is_dir() else job.source.parent.glob(f'{job.source.name}*'))
    seen = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in files if path.is_file()]
    return hashlib.sha256(json.dumps([options, seen], default=str, sort_keys=True).encode()).hexdigest()[:16]


def do(job: Job, model: Sam2Model, progress: Progress = lambda what, done, total: None) -> dict:
    """Evaluate with a warm model and write the files; the content of metrics.json. RecordingError."""
    with opened(job, progress) as recording:
        prompts_from = choose_prompts(job, recording, progress)
        result, more = evaluate(job, recording, model, progress)
        return write(job, recording, result, {**more, 'prompts_from': prompts_from, 'job': job_key(job)}, progress)


def evaluate(job: Job, recording: Recording, model: Sam2Model, progress: Progress) -> tuple[Run, dict]:
    """Return the run, and what is in metrics.json for this mode alone. RecordingError when no image can be used."""
    def show(what: str) -> Callable[[int], None]:
        return lambda index: progress(what, index + 1, len(recording.stamps))
    if job.mode != 'live':
        result = run(recording, model, job.parameters, job.mode, rate=job.rate, progress=show('tracking'))
        _check_used(result)
        return result, {}
    result = run_live(recording, model, job.parameters, rate=job.rate, progress=show('playing'))
    _check_used(result)
    other = run(recording, model, job.parameters, progress=show('tracking in lock-step'))
    return result, {'against_lock_step': agreement(result, other)}


def _check_used(result: Run) -> None:
    """Raise RecordingError when not one image could be processed: there is nothing to tell about such a recording."""
    if result.unusable and not result.frames:
        index, reason = min(result.unusable.items())
        raise RecordingError(f'{result.recording}: not one of its {result.images} images can be used; image {index}: '
                             f'{reason}')


def write(job: Job, recording: Recording, result: Run, more: dict, progress: Progress) -> dict:
    """Score a run and write what there is to say about it, metrics.json last: where it is, the rest is complete.

    more: what is in metrics.json besides.
    """
    metrics = score(result, recording, {'truth': job.kind}, sav=job.kind == SAV,
                    progress=lambda index: progress('scoring', index + 1, result.images))
    metrics |= more
    job.output.mkdir(parents=True, exist_ok=True)
    if job.bag:
        _remove_bag(job.output / RESULTS)
        with _told('results', metrics):
            write_results(result, recording, job.output / RESULTS, job.bag == 'images', job.parameters.overlay_opacity,
                          lambda done, total: progress('writing the bag', done, total))
    for kind in job.exports:
        with _told(f'export {kind}', metrics):
            made = export(kind, result, recording, job.export_folder / kind, job.min_score,
                          lambda done, total, kind=kind: progress(f'exporting {kind}', done, total))
            metrics.setdefault('exported', {})[kind] = asdict(made)
    if job.video:
        with _told(VIDEO, metrics):
            write_video(result, recording, job.output / VIDEO,
                        lambda index: progress('drawing the video', index + 1, result.images))
    write_report(result, metrics, recording, job.output / REPORT)
    write_metrics(metrics, job.output / METRICS)
    return metrics


@contextmanager
def _told(what: str, metrics: dict) -> Iterator[None]:
    """Note what cannot be written beside the figures as a problem; the figures are worth having without it."""
    try:
        yield
    except (OSError, RecordingError) as error:
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            raise
        metrics['problems'].append(f'{what}: {error}')


def _remove_bag(folder: Path) -> None:
    """An earlier one, if it is a bag and nothing else."""
    if folder.is_dir() and {path.suffix for path in folder.iterdir()} <= {'.yaml', '.mcap'}:
        shutil.rmtree(folder)


@contextmanager
def opened(job: Job, progress: Progress) -> Iterator[Recording]:
    """RecordingError."""
    if job.kind == BAG:
        with BagRecording(job.source, **job.topics,
                          progress=lambda done, total: progress('reading', done, total)) as recording:
            yield recording
    else:
        yield data_set(job.kind, job.source).clip(job.clip)


def data_set(kind: str, folder: Path, split: str = '') -> DavisFolder | SavFolder:
    """RecordingError."""
    return (DavisFolder if kind == DAVIS else SavFolder)(folder, split)


def choose_prompts(job: Job, recording: Recording, progress: Progress) -> str:
    """Put the prompts that are wanted into the recording; where they come from, in words."""
    if job.prompts == TOPIC or not job.prompts and recording.prompts:
        if not recording.prompts:
            raise RecordingError(f'{recording.name}: no prompts in it: say where they come from with --prompts')
        return TOPIC
    if job.prompts in ('', FIRST_TRUTH):
        recording.prompts = first_truth_prompts(
            recording, progress=lambda done, total: progress('looking for the first truth', done, total))
        return FIRST_TRUTH
    recording.prompts = read_prompts(job.prompts, recording)
    return Path(job.prompts).name
