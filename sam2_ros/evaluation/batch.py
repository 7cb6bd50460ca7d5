"""Many recordings: one after another or spread over a Ray cluster; what is finished is not done again."""
from __future__ import annotations

import json
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from sam2_ros.evaluation.job import METRICS, REPORT, Job, do, job_key
from sam2_ros.evaluation.report.style import STYLE
from sam2_ros.evaluation.scoring.scores import write_metrics
from sam2_ros.perception.model_loading import LOAD_ERRORS, load
from sam2_ros.recordings.recording import RecordingError
from sam2_ros.runtime.parameters import Parameters

SUMMARY, PAGE = 'summary.json', 'summary.html'
TRIES = 3  # of a recording whose worker dies or that fails in a way that is not its own
FIGURES = ('J', 'F', 'J&F')


@dataclass(frozen=True, eq=False)
class Outcome:
    """What became of one recording."""

    job: Job
    metrics: dict[str, Any] | None  # content of metrics.json; None: it failed
    problem: str = ''  # why
    done_before: bool = False  # by an earlier call


def finished(job: Job) -> dict[str, Any] | None:
    """The metrics.json of an earlier call for the same recording with the same options; None: there is none."""
    try:
        metrics = json.loads((job.output / METRICS).read_text())
    except (OSError, ValueError):
        return None
    return metrics if isinstance(metrics, dict) and metrics.get('job') == job_key(job) else None


def evaluate_many(jobs: Sequence[Job], work: Callable[[Job], dict], redo: bool = False) -> Iterator[Outcome]:
    """One after another; ``work`` evaluates one. What fails costs itself alone."""
    for job in jobs:
        metrics = None if redo else finished(job)
        if metrics is not None:
            yield Outcome(job, metrics, done_before=True)
            continue
        for left in reversed(range(TRIES)):
            try:
                outcome = Outcome(job, work(job))
            except (RecordingError, OSError) as error:  # the same each time
                outcome = Outcome(job, None, str(error))
            except Exception:
                outcome = Outcome(job, None, traceback.format_exc())
                if left:
                    continue
            yield outcome
            break


def evaluate_with_ray(jobs: Sequence[Job], address: str | None = None, redo: bool = False) -> Iterator[Outcome]:
    """As many at a time as the cluster has cores, or GPUs where the model runs on them; in the order they are done.

    Every machine must find recordings and output at the same paths. The recording of a worker that dies is given to
    another one. address: of a running cluster; None: this machine. ImportError: Ray is not installed.
    """
    import ray  # a large package that hardly anybody else needs

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
                metrics, problem, hopeless = ray.get(task)
            except ray.exceptions.RayError as error:
                metrics, problem, hopeless = None, f'the worker died: {_described(error)}', False
            if metrics is None and not hopeless and left:
                under_way[evaluate.remote(job)] = job, left - 1
            else:
                yield Outcome(job, metrics, problem)
    finally:
        ray.shutdown()


def _evaluate(job: Job) -> tuple[dict | None, str, bool]:
    """In a worker: metrics, or why not and whether it would be so again."""
    try:
        return do(job, _model(job.parameters)), '', False
    except (RecordingError, *LOAD_ERRORS) as error:
        return None, str(error), True
    except Exception:
        return None, traceback.format_exc(), False


@cache
def _model(parameters: Parameters):
    return load(parameters)


def _described(error: BaseException) -> str:
    return f'{type(error).__name__}: {error}'.strip().splitlines()[0]


# --- the summary

def summarise(outcomes: Sequence[Outcome], folder: Path) -> dict[str, Any]:
    """Write summary.json and summary.html into ``folder``; what is in the former.

    ``mean`` is over the objects of all recordings, as DAVIS takes it.
    """
    outcomes = sorted(outcomes, key=lambda outcome: str(outcome.job.output))
    objects = [item for outcome in outcomes if outcome.metrics for item in outcome.metrics['objects'].values()
               if item['J'] is not None]
    summary = {
        'mean': {name: float(np.mean([item[name] for item in objects])) for name in FIGURES} if objects else None,
        'recordings': {outcome.job.output.name: {
            'mean': outcome.metrics['mean'], 'objects': len(outcome.metrics['objects']),
            **{name: outcome.metrics[name] for name in ('images', 'dropped', 'identity_swaps')}}
            for outcome in outcomes if outcome.metrics},
        'failed': {outcome.job.output.name: outcome.problem for outcome in outcomes if not outcome.metrics}}
    folder.mkdir(parents=True, exist_ok=True)
    write_metrics(summary, folder / SUMMARY)
    (folder / PAGE).write_text(_page(summary), encoding='utf-8', errors='backslashreplace')
    return summary


def _page(summary: dict[str, Any]) -> str:
    rows = []
    for name, item in summary['recordings'].items():
        link = f'<a href="{escape(name)}/{REPORT}">{escape(name)}</a>'
        rows.append(_row(link, item['mean'], item['images'], item['dropped'], item['identity_swaps']))
    if summary['mean']:
        rows.append(_row('<b>mean over objects</b>', summary['mean'], '', '', ''))
    count = f'{len(summary["recordings"])} recordings evaluated'
    if summary['failed']:
        count += f', {len(summary["failed"])} failed'
    failed = ''.join(f'<li><b>{escape(name)}</b>: {escape(reason)}</li>' for name, reason in summary['failed'].items())
    titles = ''.join(f'<th>{escape(title)}</th>' for title in
                     ('recording', 'J&F', 'J', 'F', 'images', 'dropped', 'identity swaps'))
    return ('<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>Evaluations</title>'
            f'<style>{STYLE}</style></head><body><h1>{count}</h1>'
            f'<table><thead><tr>{titles}</tr></thead><tbody>{"".join(rows)}</tbody></table>'
            + (f'<div class="warnings"><h2>Failed</h2><ul>{failed}</ul></div>' if failed else '') + '</body></html>\n')


def _row(first: str, mean: dict | None, *others) -> str:
    figures = [f'{mean[name]:.3f}' if mean else '–' for name in ('J&F', 'J', 'F')]
    cells = ''.join(f'<td class="number">{value}</td>' for value in (*figures, *others))
    return f'<tr><td>{first}</td>{cells}</tr>'
