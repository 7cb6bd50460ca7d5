"""Evaluation of one recording, from reading it to writing its files.

A job consists of plain values, so that any process can do it.
"""
from __future__ import annotations

import errno
import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

from sam2_core import Sam2Model
from sam2_ros.evaluation import metrics as metrics_file
from sam2_ros.evaluation.live_replay import agreement, run_live
from sam2_ros.evaluation.metrics import Agreement, Metrics
from sam2_ros.evaluation.prompts import first_truth_prompts, read_prompts
from sam2_ros.evaluation.replay import run
from sam2_ros.evaluation.report.page import write_report
from sam2_ros.evaluation.report.pictures import write_video
from sam2_ros.evaluation.report.results_bag import write_results
from sam2_ros.evaluation.report.training_export import MIN_SCORE, export
from sam2_ros.evaluation.results import Mode, Run
from sam2_ros.evaluation.scoring.scores import score
from sam2_ros.recordings.bag_recording import BagRecording
from sam2_ros.recordings.davis_folder import DavisFolder
from sam2_ros.recordings.recording import Recording, RecordingError
from sam2_ros.recordings.sav_folder import SavFolder
from sam2_ros.runtime.parameters import Parameters

BAG, DAVIS, SAV = 'bag', 'davis', 'sav'
TOPIC, FIRST_TRUTH = 'topic', 'first-truth'
METRICS, RESULTS, REPORT, VIDEO = 'metrics.json', 'results', 'report.html', 'overlay.mp4'
Progress = Callable[[str, int, int], None]  # called with the name of a step, the number of parts done and the total


@dataclass(frozen=True)
class Job:
    """One recording and the options of its evaluation."""

    source: Path  # bag, or folder of a data set
    output: Path  # folder, created if necessary
    kind: str = BAG  # or DAVIS, SAV
    clip: str = ''  # of a data set
    topics: dict[str, str] = field(default_factory=dict)  # topics chosen by the user, as arguments of BagRecording
    prompts: str = ''  # TOPIC, FIRST_TRUTH or a YAML file; empty: TOPIC if the bag has prompts, else FIRST_TRUTH
    mode: Mode = Mode.LOCK_STEP
    rate: float = 1.0
    parameters: Parameters = field(default_factory=Parameters)
    bag: str = 'results'  # 'results' writes a bag of the results, 'images' one with the images too, '' none
    video: bool = True  # whether to write overlay.mp4
    exports: tuple[str, ...] = ()  # kinds of training data to write
    export_folder: Path = Path()  # shared by all recordings; has a folder for each kind
    min_score: float = MIN_SCORE  # minimum score of exported masks

    @property
    def name(self) -> str:
        """Name of the recording."""
        return self.clip or self.source.resolve().name


def job_key(job: Job) -> str:
    """Return a hash of everything the figures depend on: the options, and size and time of the files that are read."""
    options = {name: value for name, value in asdict(job).items() if name not in ('output', 'export_folder')}
    files = [Path(name) for name in (job.prompts, job.parameters.checkpoint) if name and Path(name).is_file()]
    if job.kind == BAG:
        files += sorted(job.source.iterdir() if job.source.is_dir() else job.source.parent.glob(f'{job.source.name}*'))
    seen = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in files if path.is_file()]
    return hashlib.sha256(json.dumps([options, seen], default=str, sort_keys=True).encode()).hexdigest()[:16]


def do(job: Job, model: Sam2Model, progress: Progress = lambda what, done, total: None) -> Metrics:
    """Evaluate a recording and write its files.

    Args:
        job: Recording and options.
        model: Model that is warmed up.
        progress: Function that is called as ``Progress`` describes.

    Raises:
        RecordingError: The recording, its prompts or all of its images cannot be used.
        OSError: The output folder cannot be written.
    """
    with opened(job, progress) as recording:
        prompts_from = choose_prompts(job, recording, progress)
        result, against = evaluate(job, recording, model, progress)
        metrics = score(result, recording, {'truth': job.kind}, sav=job.kind == SAV,
                        progress=lambda index: progress('scoring', index + 1, result.images))
        metrics.against_lock_step, metrics.prompts_from, metrics.job = against, prompts_from, job_key(job)
        write(job, recording, result, metrics, progress)
        return metrics


def evaluate(job: Job, recording: Recording, model: Sam2Model, progress: Progress) -> tuple[Run, Agreement | None]:
    """Return the run and, in live mode, its agreement with a run in lock-step.

    Raises:
        RecordingError: No image can be used.
    """
    def show(what: str) -> Callable[[int], None]:
        return lambda index: progress(what, index + 1, len(recording.stamps))
    if job.mode != Mode.LIVE:
        result = run(recording, model, job.parameters, job.mode, rate=job.rate, progress=show('tracking'))
        _check_used(result)
        return result, None
    result = run_live(recording, model, job.parameters, rate=job.rate, progress=show('playing'))
    _check_used(result)
    other = run(recording, model, job.parameters, progress=show('tracking in lock-step'))
    return result, agreement(result, other)


def _check_used(result: Run) -> None:
    """Raise RecordingError if no image could be processed."""
    if result.unusable and not result.frames:
        index, reason = min(result.unusable.items())
        raise RecordingError(f'{result.recording}: none of its {result.images} images can be used; image {index}: '
                             f'{reason}')


def write(job: Job, recording: Recording, result: Run, metrics: Metrics, progress: Progress) -> None:
    """Write the files of a run. metrics.json comes last: if it exists, the other files are complete.

    A file that cannot be written is added to the problems of ``metrics``, an export to its exports.
    """
    job.output.mkdir(parents=True, exist_ok=True)
    if job.bag:
        _remove_bag(job.output / RESULTS)
        with _problems_noted('results', metrics):
            write_results(result, recording, job.output / RESULTS, job.bag == 'images', job.parameters.overlay_opacity,
                          lambda done, total: progress('writing the bag', done, total))
    for kind in job.exports:
        with _problems_noted(f'export {kind}', metrics):
            metrics.exported[kind] = export(kind, result, recording, job.export_folder / kind, job.min_score,
                                            partial(progress, f'exporting {kind}'))
    if job.video:
        with _problems_noted(VIDEO, metrics):
            write_video(result, recording, job.output / VIDEO,
                        lambda index: progress('drawing the video', index + 1, result.images))
    write_report(result, metrics, recording, job.output / REPORT)
    metrics_file.write(metrics, job.output / METRICS)


@contextmanager
def _problems_noted(what: str, metrics: Metrics) -> Iterator[None]:
    """Record that a file cannot be written as a problem; the figures are useful without it."""
    try:
        yield
    except (OSError, RecordingError) as error:
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            raise
        metrics.problems.append(f'{what}: {error}')


def _remove_bag(folder: Path) -> None:
    """Remove an earlier bag; a folder with other files is left alone."""
    if folder.is_dir() and {path.suffix for path in folder.iterdir()} <= {'.yaml', '.mcap'}:
        shutil.rmtree(folder)


@contextmanager
def opened(job: Job, progress: Progress) -> Iterator[Recording]:
    """Open the recording of a job, without its prompts.

    Raises:
        RecordingError: It cannot be opened.
    """
    if job.kind == BAG:
        with BagRecording(job.source, **job.topics,
                          progress=lambda done, total: progress('reading', done, total)) as recording:
            yield recording
    else:
        yield data_set(job.kind, job.source).clip(job.clip)


def data_set(kind: str, folder: Path, split: str = '') -> DavisFolder | SavFolder:
    """Open a data set.

    Args:
        kind: DAVIS or SAV.
        folder: Folder of the data set.
        split: Name of a list of clips; empty means all clips.

    Raises:
        RecordingError: It cannot be opened.
    """
    return (DavisFolder if kind == DAVIS else SavFolder)(folder, split)


def choose_prompts(job: Job, recording: Recording, progress: Progress) -> str:
    """Put the prompts that the job asks for into the recording, and return their source in words.

    Raises:
        RecordingError: There are none, or they cannot be used.
    """
    if job.prompts == TOPIC or not job.prompts and recording.prompts:
        if not recording.prompts:
            raise RecordingError(f'{recording.name}: it has no prompts; choose others with --prompts')
        return TOPIC
    if job.prompts in ('', FIRST_TRUTH):
        recording.prompts = first_truth_prompts(
            recording, progress=lambda done, total: progress('searching the first masks', done, total))
        return FIRST_TRUTH
    recording.prompts = read_prompts(job.prompts, recording)
    return Path(job.prompts).name
