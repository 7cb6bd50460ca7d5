"""report.html: the figures of a run on one page that needs neither scripts nor a network."""
from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator, Sequence
from html import escape
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from sam2_core.datasets.image_files import jpeg
from sam2_core.drawing.overlay import colour
from sam2_core.files import replacing
from sam2_ros.drawing.overlay import STATE_NAMES
from sam2_ros.evaluation.metrics import RANKS, Metrics, ObjectMetrics, to_json
from sam2_ros.evaluation.report.charts import TimelineChart, histogram, timeline
from sam2_ros.evaluation.report.pictures import draw_output, draw_truth, read_image, read_truth
from sam2_ros.evaluation.report.style import STYLE
from sam2_ros.evaluation.results import TOTAL, Run
from sam2_ros.evaluation.scoring.worst_moments import Moment, moments
from sam2_ros.recordings.recording import Recording

PICTURE_WIDTH = 640  # pixels, at most
LINES = 100  # of a list or table, at most: recordings can have any number of problems; metrics.json has the rest
SERIES = 'frames'  # key of metrics.json whose values are drawn instead of listed


def write_report(run: Run, metrics: Metrics, recording: Recording, path: Path) -> None:
    """Write the report of a run, with or without truth. The file appears complete or not at all."""
    page = ''.join(_page(run, metrics, recording))
    with replacing(path) as part:
        part.write_text(page, encoding='utf-8', errors='backslashreplace')


def _page(run: Run, metrics: Metrics, recording: Recording) -> Iterator[str]:
    title = escape(f'Evaluation of {run.recording}')
    yield ('<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
           '<meta name="viewport" content="width=device-width, initial-scale=1">'
           f'<title>{title}</title><style>{STYLE}</style></head><body><h1>{title}</h1>')
    rate = f' at {run.rate:g} times the recorded rate' if run.rate != 1 else ''
    sizes = ', '.join(f'{width} x {height}' for height, width in run.sizes)
    yield (f'<p class="faint">{escape(run.mode.value)}{rate} · {run.images} images of {sizes} pixels · '
           f'{escape(run.versions.get("model", "?"))} · {escape(run.versions.get("device", "?"))}</p>')
    yield _headline(run, metrics)
    yield _warnings(run, metrics)
    yield _objects(metrics)
    yield _over_time(run, metrics, recording)
    yield _drift(metrics)
    yield _latency(run, metrics)
    yield _moments(run, metrics, recording)
    yield _prompts(run, recording)
    for name, values in (('parameter', metrics.parameters), ('version', metrics.versions)):
        yield f'<h2>{name.capitalize()}s</h2>' + _table([name, 'value'], [[key, _plain(value)]
                                                                         for key, value in values.items()])
    yield ('<h2>All figures</h2><details><summary>Contents of metrics.json</summary>'
           + _table(['figure', 'value'], [[name, value] for name, value in _leaves(to_json(metrics))]) + '</details>')
    yield '</body></html>\n'


def _headline(run: Run, metrics: Metrics) -> str:
    cards: list[tuple[str, object, str, str]] = []
    if mean := metrics.mean:
        cards += [('main', _ratio(mean.j_and_f), 'J&F', 'mean over objects'), ('', _ratio(mean.j), 'J', 'region'),
                  ('', _ratio(mean.f), 'F', 'contour')]
        if metrics.as_seen and (seen := metrics.as_seen.mean):
            cards.append(('main', _ratio(seen.j_and_f), 'J&F as seen', 'including late results and dropped images'))
        presence, recovery = metrics.presence, metrics.recovery
        cards += [('', _ratio(presence.precision), 'presence precision', 'share of reported objects that are visible'),
                  ('', _ratio(presence.recall), 'presence recall', 'share of visible objects that are reported'),
                  ('', metrics.identity_swaps, 'identity swaps', 'masks that moved to another object')]
        if recovery.occlusions:
            cards.append(('', f'{recovery.recovered} of {recovery.occlusions}', 'recovered',
                          f'median time {recovery.seconds.p50:.2f} s' if recovery.seconds else
                          'after the object was out of sight'))
    if total := metrics.latency.get(TOTAL):
        cards.append(('', f'{total["p50"] * 1e3:.0f} ms', 'per image', f'p95 {total["p95"] * 1e3:.0f} ms, '
                      f'p99 {total["p99"] * 1e3:.0f} ms'))
    cards.append(('', f'{len(run.dropped)} of {run.images}', 'images dropped', f'{len(run.frames)} processed'))
    if run.peak_memory:
        gpu = f', GPU {run.peak_gpu_memory / 2**20:.0f} MiB' if run.peak_gpu_memory else ''
        cards.append(('', f'{run.peak_memory / 2**20:.0f} MiB', 'peak memory', f'of the process{gpu}'))
    return '<div class="cards">' + ''.join(
        f'<div class="{kind}"><b>{escape(str(value))}</b>{escape(name)}<small>{escape(note)}</small></div>'
        for kind, value, name, note in cards) + '</div>'


def _warnings(run: Run, metrics: Metrics) -> str:
    found = [] if metrics.mean else ['The recording has no ground truth, so there is no J and F.']
    found += [f'Object {number} of the truth was never tracked ({reason}) and counts 0.'
              for number, reason in metrics.not_prompted.items()]
    if metrics.not_in_truth:
        found.append(f'Tracked but not in the truth: object {", ".join(map(str, metrics.not_in_truth))}.')
    if metrics.prompts_refused:
        found.append(f'{len(metrics.prompts_refused)} of {len(run.answers)} prompts were refused.')
    found += metrics.problems
    found += [f'image {index}: {reason}' for index, reason in run.unusable.items()]
    if not found:
        return ''
    lines = found[:LINES] + [f'and {len(found) - LINES} more'] * (len(found) > LINES)
    return ('<div class="warnings"><h2>Warnings</h2><ul>' + ''.join(f'<li>{escape(text)}</li>' for text in lines)
            + '</ul></div>')


def _objects(metrics: Metrics) -> str:
    rows = []
    for number, item in metrics.objects.items():
        accuracy, whole, presence, recovery = item.accuracy, item.all_frames, item.presence, item.recovery
        figures = [accuracy.j_and_f, accuracy.j, accuracy.f] if accuracy else [None] * 3
        rows.append([_named(number, item.label), *map(_ratio, figures), _ratio(whole.j_and_f if whole else None),
                     _ratio(presence.precision), _ratio(presence.recall),
                     f'{recovery.recovered} / {recovery.occlusions}', item.identity_swaps, len(item.frames.index)])
    if not rows:
        return ''
    return '<h2>Objects</h2>' + _table(
        ['object', 'J&F', 'J', 'F', 'J&F, all images', 'precision', 'recall', 'recovered', 'swaps',
         'images'], rows, numbers=range(1, 10), raw=[0])


def _over_time(run: Run, metrics: Metrics, recording: Recording) -> str:
    start = recording.stamps[0] if len(recording.stamps) else 0
    end = (recording.stamps[-1] - start) / 1e9 if len(recording.stamps) else 0.0

    def seconds(stamp: int) -> float:
        return (stamp - start) / 1e9

    numbers = sorted({*metrics.objects} | {number for frame in run.frames for number in frame.objects})
    if not numbers:
        return ''
    parts = []
    for number in numbers[:LINES]:
        item = metrics.objects.get(number, ObjectMetrics())
        series = item.frames
        prompts = [(seconds(answer.applied or answer.stamp or answer.arrival),
                    answer.action + ('' if answer.accepted else f', refused: {answer.reason}'), answer.accepted)
                   for answer in run.answers if answer.id in (number, 0)]
        chart = timeline(TimelineChart(np.array([seconds(recording.stamps[index]) for index in series.index]),
                                       np.array(series.j, float), np.array(series.f, float),
                                       _states(run, number, seconds), prompts), end)
        figure = f' · J&F {_ratio(item.accuracy.j_and_f)}' if item.accuracy else ''
        parts.append(f'<div class="object"><h3>{_named(number, run.labels.get(number, item.label))}'
                     f'<span class="faint">{figure}</span></h3>{chart}</div>')
    if len(numbers) > LINES:
        parts.append(f'<p class="faint">and {len(numbers) - LINES} more objects</p>')
    key = ''.join(f'<span><i style="background:var(--{shade})"></i>{name}</span>' for shade, name in (
        ('accent', 'J'), ('second', 'F'), ('good', 'tracked'), ('warn', 'occluded'), ('bad', 'lost')))
    return (f'<h2>Over time</h2><p class="key">{key}<span>▼ prompt</span><span class="bad">▼ refused prompt</span></p>'
            + ''.join(parts))


def _states(run: Run, number: int, seconds: Callable[[int], float]) -> list[tuple[float, str]]:
    """Return when each state of an object begins; '' means that the object is unknown."""
    result: list[tuple[float, str]] = []
    for frame in run.frames:
        item = frame.objects.get(number)
        state = '' if item is None else STATE_NAMES.get(item.state, '')
        if not result or result[-1][1] != state:
            result.append((seconds(frame.stamp), state))
    return result


def _drift(metrics: Metrics) -> str:
    if not metrics.drift:
        return ''
    rows = [[f'{item.start:g} to {item.end:g} s' if item.end is not None else f'over {item.start:g} s',
             _ratio(item.j), item.frames] for item in metrics.drift]
    return ('<h2>Drift</h2><p>Mean J of visible objects by the time since their last prompt.</p>'
            + _table(['time since last prompt', 'J', 'images'], rows, numbers=(1, 2)))


def _latency(run: Run, metrics: Metrics) -> str:
    if not metrics.latency:
        return ''
    totals = [frame.stages[TOTAL] for frame in run.frames if TOTAL in frame.stages]
    chart = histogram(totals, metrics.latency[TOTAL]) if totals and TOTAL in metrics.latency else ''
    return '<h2>Latency</h2>' + chart + _table(
        ['stage', *(f'{rank}, ms' for rank in RANKS)],
        [[stage, *(f'{ranks[rank] * 1e3:.2f}' for rank in RANKS)] for stage, ranks in metrics.latency.items()],
        numbers=(1, 2, 3))


def _moments(run: Run, metrics: Metrics, recording: Recording) -> str:
    chosen = moments(run, metrics)
    frames = {frame.index: frame for frame in run.frames}
    start = recording.stamps[0] if len(recording.stamps) else 0
    figures = []
    for moment in chosen:
        image = read_image(run, recording, moment.index)
        if image is None:
            continue
        truth = read_truth(recording, moment.index)
        pictures = [('prediction', draw_output(image, frames[moment.index], run))]
        if truth:
            pictures.insert(0, ('truth', draw_truth(image, truth)))
        shown = ''.join(f'<img alt="{name}" src="{_data_uri(picture)}">' for name, picture in pictures)
        caption = (f'{_named(moment.object_id, run.labels.get(moment.object_id, ""))} '
                   f'<b>{_value(moment)}</b> at {(recording.stamps[moment.index] - start) / 1e9:.2f} s, '
                   f'image {moment.index}{" · truth left, prediction right" if truth else ""}')
        figures.append(f'<figure><figcaption>{caption}</figcaption>'
                       f'<div class="pair{"" if truth else " one"}">{shown}</div></figure>')
    if not figures:
        return ''
    return f'<h2>Worst moments</h2><div class="moments">{"".join(figures)}</div>'


def _value(moment: Moment) -> str:
    return f'J&amp;F {moment.value:.3f}' if moment.judged else f'score {moment.value:.3f}'


def _prompts(run: Run, recording: Recording) -> str:
    if not run.answers:
        return ''
    start = recording.stamps[0] if len(recording.stamps) else 0
    rows = [[f'{((answer.stamp or answer.arrival) - start) / 1e9:.2f}', answer.action,
             _named(answer.id, answer.label) if answer.id else 'all or new',
             'accepted' if answer.accepted else f'<span class="bad">refused: {escape(answer.reason)}</span>']
            for answer in run.answers]
    rows.sort(key=lambda row: 'refused' not in row[3])  # refused prompts first: they must not be cut off
    more = f'<p class="faint">and {len(rows) - LINES} more</p>' if len(rows) > LINES else ''
    return '<h2>Prompts</h2>' + _table(['drawn at, s', 'action', 'object', 'answer'], rows[:LINES], numbers=[0],
                                       raw=[2, 3]) + more


def _named(number: int, label: str) -> str:
    """Return colour, id and label of an object as HTML."""
    shade = ','.join(map(str, colour(number)))
    return f'<span class="chip" style="background:rgb({shade})"></span>{escape(f"{number} {label}".strip())}'


def _table(titles: Sequence[str], rows: Sequence[Sequence[Any]], numbers: Sequence[int] = (),
           raw: Sequence[int] = ()) -> str:
    """Return a table as HTML; columns in ``numbers`` are right-aligned, columns in ``raw`` are HTML already."""
    def kind(column: int) -> str:
        return 'number' if column in numbers else 'text'
    head = ''.join(f'<th class="{kind(column)}">{escape(title)}</th>' for column, title in enumerate(titles))
    body = ''.join('<tr>' + ''.join(
        f'<td class="{kind(column)}">{cell if column in raw else escape(str(cell))}</td>'
        for column, cell in enumerate(row)) + '</tr>' for row in rows)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _leaves(value: Any, name: str = '') -> Iterator[tuple[str, str]]:
    """Yield each figure with its keys in metrics.json; parameters and versions have their own tables."""
    if isinstance(value, dict):
        for key, item in value.items():
            if key != SERIES and not (not name and key in ('parameters', 'versions')):
                yield from _leaves(item, f'{name} / {key}' if name else str(key))
    elif isinstance(value, list) and value and isinstance(value[0], dict):
        for place, item in enumerate(value):
            yield from _leaves(item, f'{name} / {place}')
    else:
        yield name, _plain(value)


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=list)


def _ratio(value: float | None) -> str:
    return '–' if value is None else f'{value:.3f}'


def _data_uri(image: np.ndarray) -> str:
    if image.shape[1] > PICTURE_WIDTH:
        scale = PICTURE_WIDTH / image.shape[1]
        image = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    return 'data:image/jpeg;base64,' + base64.b64encode(jpeg(image, 82)).decode()
