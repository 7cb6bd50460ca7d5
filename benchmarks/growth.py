"""Measure how time and memory of a tracker grow with the number of frames and objects.

    python benchmarks/growth.py                                          # nano, 10,000 frames with 2 objects
    python benchmarks/growth.py --frames 500 --model sam2.1_hiera_tiny --image-size 512

Over frames: objects are tracked on a moving texture. Processor time per frame and memory of the process are recorded,
and the last window of frames is compared with the window from frame 100. The speed of a busy computer drifts by more
than the few per cent in question. Therefore a copy of the initial tracker processes every tenth image, too, and the
cost of age is the change of the old tracker relative to that of the new one.

Over objects: the same images with 1, 2, 4, ... objects, medians.

On a GPU, the counters of PyTorch's allocator are recorded, too: bytes, and allocations from the driver (segments).
"""
from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Sequence

import numpy as np
import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from benchmarks.lib import plots
from benchmarks.lib.parts import (
    add_model_options,
    add_output_options,
    boxes,
    facts,
    make_model,
    moving_texture,
    resident,
)
from sam2_core import Prompt, Sam2Model, StreamTracker

FILLED = 20  # number of frames after which memories stop growing
YOUNG_EVERY = 10  # frames between two steps of the new tracker
POINTS = 100  # maximum number of points of a curve

Memory = dict[str, float]  # name of a counter -> its value


def memory_now(device: torch.device) -> Memory:
    """Return the resident memory in MiB and, on a GPU, the counters of the allocator."""
    if device.type != 'cuda':
        return {'resident_mib': resident()}
    counters = torch.cuda.memory_stats(device)
    return {'resident_mib': resident(),
            'allocated_mib': counters['allocated_bytes.all.current'] / 2 ** 20,
            'reserved_mib': counters['reserved_bytes.all.current'] / 2 ** 20,
            'segments': counters['segment.all.allocated'],  # since startup, as allocations
            'allocations': counters['allocation.all.allocated']}


def started(model: Sam2Model, images: list[np.ndarray], objects: int) -> StreamTracker:
    """Return a tracker of a number of objects with full memories."""
    tracker = StreamTracker(model)
    prompts = [Prompt(i + 1, box=box) for i, box in enumerate(boxes(objects, images[0].shape[0]))]
    for number in range(FILLED):
        tracker.step(images[number % len(images)], prompts if number == 0 else [])
    return tracker


def timed(tracker: StreamTracker, image: np.ndarray) -> float:
    """Return the milliseconds of one step: processor time on a CPU, wall-clock time on a GPU."""
    gpu = tracker.model.device.type == 'cuda'
    clock = time.perf_counter if gpu else time.process_time
    start = clock()
    tracker.step(image)
    if gpu:
        torch.cuda.synchronize(tracker.model.device)
    return (clock() - start) * 1e3


def over_frames(model: Sam2Model, images: list[np.ndarray], frames: int, objects: int, console: Console) -> dict:
    """Run a tracker over many frames beside copies of the initial tracker, and return the figures."""
    old = started(model, images, objects)
    young = old.fork(old.object_ids)
    times: list[tuple[float, float | None]] = []
    memory = []
    with Progress(console=console) as progress:
        for number in progress.track(range(frames), description=f'{frames} frames, {objects} objects'):
            image = images[number % len(images)]
            elapsed = timed(old, image)
            times.append((elapsed, timed(young.fork(young.object_ids), image) if number % YOUNG_EVERY == 0 else None))
            memory.append(memory_now(model.device))

    def medians(part: list[tuple[float, float | None]]) -> tuple[float, float]:
        return (statistics.median(of_old for of_old, _ in part),
                statistics.median(of_young for _, of_young in part if of_young is not None))

    window = max(20, frames // 10)
    begin = 100
    (first, young_first), (last, young_last) = medians(times[begin:begin + window]), medians(times[-window:])
    return {'frames': frames, 'objects': objects, 'window': window, 'first_ms': first, 'last_ms': last,
            'young_first_ms': young_first, 'young_last_ms': young_last,
            'age_ratio': last / first * young_first / young_last,
            'memory_first': memory[begin + window - 1], 'memory_last': memory[-1],
            'tracker_mib': old.memory_bytes / 2 ** 20, 'curve': curve(times, memory)}


def curve(times: list[tuple[float, float | None]], memory: list[Memory]) -> dict[str, Sequence[float]]:
    """Return at most POINTS points of the run: frame, median time since the previous point, memory."""
    stretch = -(-len(times) // POINTS)
    ends = list(range(stretch, len(times) + 1, stretch))
    return {'frame': ends, 'ms': [statistics.median(ms for ms, _ in times[end - stretch:end]) for end in ends],
            **{name: [memory[end - 1][name] for end in ends] for name in memory[0] if name != 'allocations'}}


def over_objects(model: Sam2Model, images: list[np.ndarray], counts: list[int], runs: int) -> list[dict]:
    """Return the median time of a frame for each number of objects, and the cost of an additional object."""
    rows: list[dict] = []
    for count in counts:
        tracker = started(model, images, count)
        times = [timed(tracker, images[i % len(images)]) for i in range(runs)]
        row = {'objects': count, 'ms': statistics.median(times), 'tracker_mib': tracker.memory_bytes / 2 ** 20}
        added = count - rows[0]['objects'] if rows else 0
        rows.append(row | {'ms_per_added_object': (row['ms'] - rows[0]['ms']) / added if added else None})
    return rows


def panels(growth: dict, rows: list[dict]) -> list[plots.Panel]:
    """Return panels of time and memory over frames, and of time over objects."""
    points = growth['curve']

    def over_frames(*names: str) -> dict[str, list[tuple[float, float]]]:
        return {name: list(zip(points['frame'], points[name], strict=True)) for name in names if name in points}
    return [plots.lines(f'milliseconds per frame, {growth["objects"]} objects', 'frames', over_frames('ms')),
            plots.lines('memory, MiB', 'frames', over_frames('resident_mib', 'allocated_mib', 'reserved_mib')),
            plots.lines('milliseconds per frame', 'objects', {'ms': [(row['objects'], row['ms']) for row in rows]})]


def main() -> None:
    """Measure over frames, then over objects, and print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_model_options(parser)
    parser.add_argument('--frames', type=int, default=10_000, help='number of frames, at least 200 (default: 10000)')
    parser.add_argument('--tracked', type=int, default=2, help='number of objects tracked over all frames (default: 2)')
    parser.add_argument('--objects', nargs='+', type=int, default=[1, 2, 4, 8, 16],
                        help='numbers of objects to compare (default: 1 2 4 8 16)')
    parser.add_argument('--runs', type=int, default=9, help='timed frames for each number of objects (default: 9)')
    add_output_options(parser)
    options = parser.parse_args()
    if options.frames < 200:
        parser.error(f'--frames {options.frames}: must be at least 200')
    model = make_model(options.model, options.image_size, options.device, options.random_weights)
    images = [moving_texture(number, model.image_size) for number in range(40)]
    console = Console(width=120)
    growth = over_frames(model, images, options.frames, options.tracked, console)
    known = facts(model.device)
    kind = 'of wall-clock time' if model.device.type == 'cuda' else 'of processor time'
    title = (f'{options.model} {model.image_size} px, {known["hardware"]}, {known["threads"]} CPU threads, '
             f'milliseconds {kind}, {known["date"]}')
    window = growth['window']
    table = Table('median', f'{window} frames from frame 100', f'last {window} frames', title=title)
    table.add_row('frame, ms', f'{growth["first_ms"]:.1f}', f'{growth["last_ms"]:.1f}')
    table.add_row('frame of the initial tracker, ms', f'{growth["young_first_ms"]:.1f}',
                  f'{growth["young_last_ms"]:.1f}')
    for name, what in (('resident_mib', 'memory of the process, MiB'), ('allocated_mib', 'GPU memory of tensors, MiB'),
                       ('reserved_mib', 'GPU memory reserved, MiB'), ('segments', 'allocations from the driver'),
                       ('allocations', 'allocations of tensors')):
        if name in growth['memory_last']:
            table.add_row(what, f'{growth["memory_first"][name]:.0f}', f'{growth["memory_last"][name]:.0f}')
    console.print(table, f'cost of age after {growth["frames"]} frames, old to new tracker: {growth["age_ratio"]:.3f}')
    rows = over_objects(model, images, options.objects, options.runs)
    table = Table('objects', 'ms per frame', 'ms per additional object', 'tracker, MiB', title=title)
    for row in rows:
        added = row['ms_per_added_object']
        table.add_row(str(row['objects']), f'{row["ms"]:.1f}', '' if added is None else f'{added:.1f}',
                      f'{row["tracker_mib"]:.2f}')
    console.print(table)
    if options.json:
        options.json.write_text(json.dumps(known | {
            'model': options.model, 'image_size': model.image_size, 'over_frames': growth, 'over_objects': rows},
            indent=2) + '\n')
    if options.plot:
        plots.write(options.plot, title, panels(growth, rows))


if __name__ == '__main__':
    main()
