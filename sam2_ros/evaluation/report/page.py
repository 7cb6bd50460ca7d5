"""report.html: what a run is worth on one page that needs nothing else, neither a network nor scripts."""
from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from sam2_ros.drawing.overlay import STATE_NAMES, colour
from sam2_ros.evaluation.report.charts import TimelineChart, histogram, timeline
from sam2_ros.evaluation.report.pictures import draw_output, draw_truth, read_image, read_truth
from sam2_ros.evaluation.report.style import STYLE
from sam2_ros.evaluation.results import TOTAL, Run
from sam2_ros.evaluation.scoring.worst_moments import Moment, moments
from sam2_ros.recordings.recording import Recording

PICTURE_WIDTH = 640  # pixels, at most
LINES = 100  # of a list or table that the recording makes as long as it likes; metrics.json has the rest
SERIES = 'frames'  # of metrics.json: drawn, not written out


def write_report(run: Run, scores: dict, recording: Recording, path: Path) -> None:
    """Write the page of a run and its scores (metrics.json as ``sam2_ros.evaluation.scoring.scores.score`` returns it).

    Works without truth, too. The file is there as a whole or not at all.
    """
    page = ''.join(_page(run, scores, recording))
    part = path.with_name(path.name + '.part')
    part.write_text(page, encoding='utf-8', errors='backslashreplace')
    part.replace(path)


def _page(run: Run, scores: dict, recording: Recording) -> Iterator[str]:
    title = escape(f'Evaluation of {run.recording}')
    yield ('<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
           '<meta name="viewport" content="width=device-width, initial-scale=1">'
           f'<title>{title}</title><style>{STYLE}</style></head><body><h1>{title}</h1>')
    rate = f' at {run.rate:g} times the recorded rate' if run.rate != 1 else ''
    sizes = ', '.join(f'{width} x {height}' for height, width in run.sizes)
    yield (f'<p class="faint">{escape(run.mode)}{rate} · {run.images} images of {sizes} pixels · '
           f'{escape(run.versions.get("model", "?"))} · {escape(run.versions.get("device", "?"))}</p>')
    yield _headline(run, scores)
    yield _warnings(run, scores)
    yield _objects(run, scores)
    yield _over_time(run, scores, recording)
    yield _drift(scores)
    yield _latency(run, scores)
    yield _moments(run, scores, recording)
    yield _prompts(run, recording)
    for name in ('parameters', 'versions'):
        yield f'<h2>{name.capitalize()}</h2>' + _table(
            [name[:-1], 'value'], [[key, _plain(value)] for key, value in scores.get(name, {}).items()])
    yield ('<h2>All figures</h2><details><summary>as metrics.json has them</summary>'
           + _table(['figure', 'value'], [[name, value] for name, value in _leaves(scores)]) + '</details>')
    yield '</body></html>\n'


def _headline(run: Run, scores: dict) -> str:
    cards = []
    if mean := scores.get('mean'):
        cards += [('main', _ratio(mean['J&F']), 'J&F', 'mean over objects'), ('', _ratio(mean['J']), 'J', 'region'),
                  ('', _ratio(mean['F']), 'F', 'boundary')]
        if seen := (scores.get('as_seen') or {}).get('mean'):
            cards.append(('main', _ratio(seen['J&F']), 'J&F as seen', 'late and dropped images count'))
        presence, recovery = scores.get('presence') or {}, scores.get('recovery') or {}
        cards += [('', _ratio(presence.get('precision')), 'presence precision', 'said to be there, and is'),
                  ('', _ratio(presence.get('recall')), 'presence recall', 'is there, and said so'),
                  ('', scores.get('identity_swaps', '–'), 'identity swaps', 'masks that went to another object')]
        if recovery.get('occlusions'):
            seconds = recovery.get('seconds')
            cards.append(('', f'{recovery["recovered"]} of {recovery["occlusions"]}', 'found again',
                          f'{seconds["p50"]:.2f} s in the median' if seconds else 'after being out of sight'))
    total = scores.get('latency', {}).get(TOTAL)
    if total:
        cards.append(('', f'{total["p50"] * 1e3:.0f} ms', 'per image', f'p95 {total["p95"] * 1e3:.0f} ms, '
                      f'p99 {total["p99"] * 1e3:.0f} ms'))
    cards.append(('', f'{len(run.dropped)} of {run.images}', 'images dropped', f'{len(run.frames)} processed'))
    if run.peak_memory:
        gpu = f', GPU {run.peak_gpu_memory / 2**20:.0f} MB' if run.peak_gpu_memory else ''
        cards.append(('', f'{run.peak_memory / 2**20:.0f} MB', 'peak memory', f'of the process{gpu}'))
    return '<div class="cards">' + ''.join(
        f'<div class="{kind}"><b>{escape(str(value))}</b>{escape(name)}<small>{escape(note)}</small></div>'
        for kind, value, name, note in cards) + '</div>'


def _warnings(run: Run, scores: dict) -> str:
    said = [] if scores.get('mean') else ['there is no ground truth to judge by: no J and F']
    said += [f'object {number} of the truth is never tracked ({reason}) and counts 0'
             for number, reason in scores.get('not_prompted', {}).items()]
    if foreign := scores.get('not_in_truth'):
        said.append(f'tracked, but not in the truth: {", ".join(map(str, foreign))}')
    if refused := sum(not answer.accepted for answer in run.answers):
        said.append(f'{refused} of {len(run.answers)} prompts refused')
    said += scores.get('problems', ())
    said += [f'image {index}: {reason}' for index, reason in run.unusable.items()]
    if not said:
        return ''
    lines = said[:LINES] + [f'and {len(said) - LINES} more'] * (len(said) > LINES)
    return ('<div class="warnings"><h2>Take note</h2><ul>' + ''.join(f'<li>{escape(text)}</li>' for text in lines)
            + '</ul></div>')


def _objects(run: Run, scores: dict) -> str:
    rows = []
    for number, item in scores.get('objects', {}).items():
        presence, recovery = item.get('presence') or {}, item.get('recovery') or {}
        rows.append([_named(int(number), item.get('label', '')),
                     *(_ratio(item.get(name)) for name in ('J&F', 'J', 'F')),
                     _ratio((item.get('all_frames') or {}).get('J&F')),
                     *(_ratio(presence.get(name)) for name in ('precision', 'recall')),
                     f'{recovery.get("recovered", 0)} / {recovery.get("occlusions", 0)}',
                     item.get('identity_swaps', 0), len(item.get(SERIES, {}).get('index', ()))])
    if not rows:
        return ''
    return '<h2>Objects</h2>' + _table(
        ['object', 'J&F', 'J', 'F', 'J&F, first and last too', 'precision', 'recall', 'found again', 'swaps', 'images'],
        rows, numbers=range(1, 10), raw=[0])


def _over_time(run: Run, scores: dict, recording: Recording) -> str:
    start = recording.stamps[0] if len(recording.stamps) else 0
    end = (recording.stamps[-1] - start) / 1e9 if len(recording.stamps) else 0.0

    def seconds(stamp: int) -> float:
        return (stamp - start) / 1e9

    judged = scores.get('objects', {})
    numbers = sorted({int(number) for number in judged} | {number for frame in run.frames for number in frame.objects})
    if not numbers:
        return ''
    parts = []
    for number in numbers[:LINES]:
        item = judged.get(str(number), {})
        series = item.get(SERIES) or {'index': [], 'J': [], 'F': []}
        prompts = [(seconds(answer.applied or answer.stamp or answer.arrival),
                    answer.action + ('' if answer.accepted else f', refused: {answer.reason}'), answer.accepted)
                   for answer in run.answers if answer.id in (number, 0)]
        chart = timeline(TimelineChart(np.array([seconds(recording.stamps[index]) for index in series['index']]),
                                  np.array(series['J'], float), np.array(series['F'], float),
                                  _states(run, number, seconds), prompts), end)
        figure = f' · J&F {_ratio(item["J&F"])}' if item.get('J&F') is not None else ''
        parts.append(f'<div class="object"><h3>{_named(number, run.labels.get(number, item.get("label", "")))}'
                     f'<span class="faint">{figure}</span></h3>{chart}</div>')
    if len(numbers) > LINES:
        parts.append(f'<p class="faint">and {len(numbers) - LINES} more objects</p>')
    key = ''.join(f'<span><i style="background:var(--{shade})"></i>{name}</span>' for shade, name in (
        ('accent', 'J'), ('second', 'F'), ('good', 'tracked'), ('warn', 'occluded'), ('bad', 'lost')))
    return (f'<h2>Over time</h2><p class="key">{key}<span>▼ prompt</span><span class="bad">▼ refused</span></p>'
            + ''.join(parts))


def _states(run: Run, number: int, seconds) -> list[tuple[float, str]]:
    """When each state of an object begins; empty: it is not known (any more)."""
    result: list[tuple[float, str]] = []
    for frame in run.frames:
        item = frame.objects.get(number)
        state = '' if item is None else STATE_NAMES.get(item.state, '')
        if not result or result[-1][1] != state:
            result.append((seconds(frame.stamp), state))
    return result


def _drift(scores: dict) -> str:
    if not scores.get('drift'):
        return ''
    rows = [[f'{item["from"]:g} to {item["to"]:g} s' if item['to'] is not None else f'over {item["from"]:g} s',
             _ratio(item['J']), item['frames']] for item in scores['drift']]
    return ('<h2>Drift</h2><p>J of visible objects by the time since the last prompt for them.</p>'
            + _table(['since the last prompt', 'J', 'images'], rows, numbers=(1, 2)))


def _latency(run: Run, scores: dict) -> str:
    latency = scores.get('latency')
    if not latency:
        return ''
    totals = [frame.stages[TOTAL] for frame in run.frames if TOTAL in frame.stages]
    chart = histogram(totals, latency[TOTAL]) if totals and TOTAL in latency else ''
    return '<h2>Latency</h2>' + chart + _table(
        ['stage', *(f'{rank}, ms' for rank in ('p50', 'p95', 'p99'))],
        [[stage, *(f'{ranks[rank] * 1e3:.2f}' for rank in ('p50', 'p95', 'p99'))] for stage, ranks in latency.items()],
        numbers=(1, 2, 3))


def _moments(run: Run, scores: dict, recording: Recording) -> str:
    chosen = moments(run, scores)
    frames = {frame.index: frame for frame in run.frames}
    start = recording.stamps[0] if len(recording.stamps) else 0
    figures = []
    for moment in chosen:
        image = read_image(recording, moment.index)
        if image is None:
            continue
        truth = read_truth(recording, moment.index)
        pictures = [('prediction', draw_output(image, frames[moment.index], run))]
        if truth:
            pictures.insert(0, ('truth', draw_truth(image, truth)))
        shown = ''.join(f'<img alt="{name}" src="{_data_uri(picture)}">' for name, picture in pictures)
        caption = (f'{_named(moment.object_id, run.labels.get(moment.object_id, ""))} '
                   f'<b>{_said(moment)}</b> at {(recording.stamps[moment.index] - start) / 1e9:.2f} s, '
                   f'image {moment.index}{" · truth left, prediction right" if truth else ""}')
        figures.append(f'<figure><figcaption>{caption}</figcaption>'
                       f'<div class="pair{"" if truth else " one"}">{shown}</div></figure>')
    if not figures:
        return ''
    return f'<h2>Worst moments</h2><div class="moments">{"".join(figures)}</div>'


def _said(moment: Moment) -> str:
    return f'J&amp;F {moment.value:.3f}' if moment.judged else f'score {moment.value:.3f}'


def _prompts(run: Run, recording: Recording) -> str:
    if not run.answers:
        return ''
    start = recording.stamps[0] if len(recording.stamps) else 0
    rows = [[f'{((answer.stamp or answer.arrival) - start) / 1e9:.2f}', answer.action,
             _named(answer.id, answer.label) if answer.id else 'all or new',
             'accepted' if answer.accepted else f'<span class="bad">refused: {escape(answer.reason)}</span>']
            for answer in run.answers]
    rows.sort(key=lambda row: 'refused' not in row[3])  # the refused ones are never cut off
    more = f'<p class="faint">and {len(rows) - LINES} more</p>' if len(rows) > LINES else ''
    return '<h2>Prompts</h2>' + _table(['drawn at, s', 'action', 'object', 'answer'], rows[:LINES], numbers=[0],
                                       raw=[2, 3]) + more


def _named(number: int, label: str) -> str:
    """An object as HTML: its colour, id and label."""
    shade = ','.join(map(str, colour(number)))
    return f'<span class="chip" style="background:rgb({shade})"></span>{escape(f"{number} {label}".strip())}'


def _table(titles: Sequence[str], rows: Sequence[Sequence[Any]], numbers: Sequence[int] = (),
           raw: Sequence[int] = ()) -> str:
    """numbers: columns that are right-aligned; raw: columns that are HTML already."""
    def kind(column: int) -> str:
        return 'number' if column in numbers else 'text'
    head = ''.join(f'<th class="{kind(column)}">{escape(title)}</th>' for column, title in enumerate(titles))
    body = ''.join('<tr>' + ''.join(
        f'<td class="{kind(column)}">{cell if column in raw else escape(str(cell))}</td>'
        for column, cell in enumerate(row)) + '</tr>' for row in rows)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _leaves(value: Any, name: str = '') -> Iterator[tuple[str, str]]:
    """Every figure with its place in metrics.json; parameters and versions have tables of their own."""
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
    _, data = cv2.imencode('.jpg', cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 82])
    return 'data:image/jpeg;base64,' + base64.b64encode(data).decode()
