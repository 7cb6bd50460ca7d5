"""Evaluation of many recordings, one after another or on a Ray cluster. Finished recordings are skipped."""
from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from html import escape
from pathlib import Path

from sam2_core import Sam2Model
from sam2_ros.evaluation.job import METRICS, REPORT, Job, do, job_key
from sam2_ros.evaluation.metrics import Accuracy, Metrics, MetricsError, mean_to_json, read, write_json
from sam2_ros.evaluation.report.style import STYLE
from sam2_ros.evaluation.scoring.scores import mean_of
from sam2_ros.perception.model_loading import LOAD_ERRORS, load
from sam2_ros.recordings.recording import RecordingError
from sam2_ros.runtime.parameters import Parameters

SUMMARY, PAGE = 'summary.json', 'summary.html'
TRIES = 3  # for a recording whose worker dies, or that fails for an unknown reason


@dataclass(frozen=True, eq=False)
class Outcome:
    """Result of one job."""

    job: Job
    metrics: Metrics | None  # None: it failed
    problem: str = ''  # why it failed
    done_before: bool = False  # whether the metrics are those of an earlier call


def finished(job: Job) -> Metrics | None:
    """Return the metrics of an earlier call with the same recording and options, None if there are none."""
    try:
        metrics = read(job.output / METRICS)
    except MetricsError:
        return None
    return metrics if metrics.job == job_key(job) else None


def evaluate_many(jobs: Sequence[Job], work: Callable[[Job], Metrics], redo: bool = False) -> Iterator[Outcome]:
    """Do jobs one after another and yield their outcomes; a job that fails does not stop the others.

    Args:
        jobs: Jobs to do.
        work: Function that does one job.
        redo: True repeats finished jobs.
    """
    for job in jobs:
        metrics = None if redo else finished(job)
        if metrics is not None:
            yield Outcome(job, metrics, done_before=True)
            continue
        for left in reversed(range(TRIES)):
            try:
                outcome = Outcome(job, work(job))
            except (RecordingError, OSError) as error:  # another try would fail in the same way
                outcome = Outcome(job, None, str(error))
            except Exception:
                outcome = Outcome(job, None, traceback.format_exc())
                if left:
                    continue
            yield outcome
            break


def evaluate_with_ray(jobs: Sequence[Job], address: str | None = None, redo: bool = False) -> Iterator[Outcome]:
    """Do as many jobs at a time as a cluster has cores, or GPUs if the model runs on them; yield outcomes as they come.

    All machines must find recordings and output at the same paths. If a worker dies, another one does its job.

    Args:
        jobs: Jobs to do.
        address: Address of a running cluster; None starts one on this machine.
        redo: True repeats finished jobs.

    Raises:
        ImportError: Ray is not installed.
        ConnectionError: No cluster runs at the address.
    """
    import ray  # a large package that few users need

    waiting = []
    for job in jobs:
        metrics = None if redo else finished(job)
        if metrics is not None:
            yield Outcome(job, metrics, done_before=True)
        else:
            waiting.append(job)
    if not waiting:
        return
    ray.init(address=address, include_dashboard=False if address is None else None, log_to_driver=False)
    try:
        gpu = waiting[0].parameters.device != 'cpu' and ray.cluster_resources().get('GPU', 0) > 0
        evaluate = ray.remote(num_cpus=1, num_gpus=int(gpu), max_retries=0)(_evaluate)
        under_way = {evaluate.remote(job): (job, TRIES - 1) for job in waiting}
        while under_way:
            (task,), _ = ray.wait(list(under_way))
            job, left = under_way.pop(task)
            try:
                metrics, problem, final = ray.get(task)
            except ray.exceptions.RayError as error:
                metrics, problem, final = None, f'the worker died: {_described(error)}', False
            if metrics is None and not final and left:
                under_way[evaluate.remote(job)] = job, left - 1
            else:
                yield Outcome(job, metrics, problem)
    finally:
        ray.shutdown()


def _evaluate(job: Job) -> tuple[Metrics | None, str, bool]:
    """Do a job in a worker.

    Returns:
        The metrics, or the reason of the failure and whether another try would fail in the same way.
    """
    try:
        return do(job, _model(job.parameters)), '', False
    except (RecordingError, *LOAD_ERRORS) as error:
        return None, str(error), True
    except Exception:
        return None, traceback.format_exc(), False


@cache
def _model(parameters: Parameters) -> Sam2Model:
    return load(parameters)


def _described(error: BaseException) -> str:
    return f'{type(error).__name__}: {error}'.strip().splitlines()[0]


# --- the summary

@dataclass(frozen=True, eq=False)
class Summary:
    """Figures of many recordings."""

    mean: Accuracy | None  # over the objects of all recordings, as in DAVIS
    recordings: dict[str, Metrics]  # by the name of their folder
    failed: dict[str, str]  # reason for each recording that failed


def summarise(outcomes: Sequence[Outcome], folder: Path) -> Summary:
    """Return the summary of all recordings, and write it to summary.json and summary.html in a folder."""
    ordered = sorted(outcomes, key=lambda outcome: str(outcome.job.output))
    summary = Summary(
        mean_of(item.accuracy for outcome in ordered if outcome.metrics for item in outcome.metrics.objects.values()),
        {outcome.job.output.name: outcome.metrics for outcome in ordered if outcome.metrics},
        {outcome.job.output.name: outcome.problem for outcome in ordered if not outcome.metrics})
    folder.mkdir(parents=True, exist_ok=True)
    write_json({
        'mean': mean_to_json(summary.mean),
        'recordings': {name: {'mean': mean_to_json(item.mean), 'objects': len(item.objects), 'images': item.images,
                              'dropped': item.dropped, 'identity_swaps': item.identity_swaps}
                       for name, item in summary.recordings.items()},
        'failed': summary.failed}, folder / SUMMARY)
    (folder / PAGE).write_text(_page(summary), encoding='utf-8', errors='backslashreplace')
    return summary


def _page(summary: Summary) -> str:
    rows = []
    for name, item in summary.recordings.items():
        link = f'<a href="{escape(name)}/{REPORT}">{escape(name)}</a>'
        rows.append(_row(link, item.mean, item.images, item.dropped, item.identity_swaps))
    if summary.mean:
        rows.append(_row('<b>mean over objects</b>', summary.mean, '', '', ''))
    count = f'{len(summary.recordings)} recordings evaluated'
    if summary.failed:
        count += f', {len(summary.failed)} failed'
    failed = ''.join(f'<li><b>{escape(name)}</b>: {escape(reason)}</li>' for name, reason in summary.failed.items())
    titles = ''.join(f'<th>{escape(title)}</th>' for title in
                     ('recording', 'J&F', 'J', 'F', 'images', 'dropped', 'identity swaps'))
    return ('<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>Evaluations</title>'
            f'<style>{STYLE}</style></head><body><h1>{count}</h1>'
            f'<table><thead><tr>{titles}</tr></thead><tbody>{"".join(rows)}</tbody></table>'
            + (f'<div class="warnings"><h2>Failed</h2><ul>{failed}</ul></div>' if failed else '') + '</body></html>\n')


def _row(first: str, mean: Accuracy | None, *others: object) -> str:
    figures = [f'{value:.3f}' for value in (mean.j_and_f, mean.j, mean.f)] if mean else ['–'] * 3
    cells = ''.join(f'<td class="number">{value}</td>' for value in (*figures, *others))
    return f'<tr><td>{first}</td>{cells}</tr>'
