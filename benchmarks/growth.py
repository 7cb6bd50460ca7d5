"""Does a tracker get slower or larger the longer it runs, and what does each further object cost?

    python benchmarks/growth.py                                          # nano, 10,000 frames with 2 objects
    python benchmarks/growth.py --frames 500 --model sam2.1_hiera_tiny --image-size 512

Over frames: a texture moves and objects are tracked without end. Processor time per frame and the memory of the process
are read, and the last window of frames is compared with the one that begins at frame 100. A computer that does other
work drifts by more than the few per cent in question, so a copy of the tracker as it was in the beginning takes every
tenth image as well: the ratio of the old one's change to the young one's is what age costs. Over objects: the same
images with 1, 2, 4, ... objects, medians.
"""
from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from sam2_core import Prompt, Sam2Model, StreamTracker, load_model
from sam2_core.config import VARIANTS, variant

FILLED = 20  # frames after which memories do not get longer
YOUNG_EVERY = 10  # frames


def resident() -> float:
    """Memory of this process, MiB. Linux only."""
    pages = int(Path('/proc/self/statm').read_text().split()[1])
    return pages * os.sysconf('SC_PAGE_SIZE') / 2 ** 20


def picture(number: int, side: int) -> np.ndarray:
    """A texture that moves, uint8 RGB (side, side, 3)."""
    rows, columns = np.mgrid[:side, :side] + 3 * (number % 40)
    waves = [np.sin(rows / a) + np.sin(columns / b) for a, b in ((9, 14), (17, 11), (23, 29))]
    return (np.stack(waves, axis=-1) * 60 + 128).astype(np.uint8)


def started(model: Sam2Model, images: list[np.ndarray], objects: int) -> StreamTracker:
    """A tracker of ``objects`` objects with full memories."""
    tracker = StreamTracker(model)
    side = images[0].shape[0]
    rows = int(np.ceil(objects ** 0.5))
    cell = side / rows
    prompts = [Prompt(i + 1, box=((i % rows + 0.2) * cell, (i // rows + 0.2) * cell,
                                  (i % rows + 0.8) * cell, (i // rows + 0.8) * cell)) for i in range(objects)]
    for number in range(FILLED):
        tracker.step(images[number % len(images)], prompts if number == 0 else [])
    return tracker


def timed(tracker: StreamTracker, image: np.ndarray) -> float:
    """Processor time of one step, milliseconds; on a GPU the time by the clock."""
    gpu = tracker.model.device.type == 'cuda'
    clock = time.perf_counter if gpu else time.process_time
    start = clock()
    tracker.step(image)
    if gpu:
        torch.cuda.synchronize(tracker.model.device)
    return (clock() - start) * 1e3


def over_frames(model: Sam2Model, images: list[np.ndarray], frames: int, objects: int, console: Console) -> dict:
    """One tracker that gets old, beside copies of what it was in the beginning."""
    old = started(model, images, objects)
    young = old.fork(old.object_ids)
    times: list[tuple[float, float | None]] = []
    memory = []
    with Progress(console=console) as progress:
        for number in progress.track(range(frames), description=f'{frames} frames, {objects} objects'):
            image = images[number % len(images)]
            elapsed = timed(old, image)
            times.append((elapsed, timed(young.fork(young.object_ids), image) if number % YOUNG_EVERY == 0 else None))
            memory.append(resident())

    def medians(part: list[tuple[float, float | None]]) -> tuple[float, float]:
        return (statistics.median(of_old for of_old, _ in part),
                statistics.median(of_young for _, of_young in part if of_young is not None))

    window = max(20, frames // 10)
    begin = 100
    (first, young_first), (last, young_last) = medians(times[begin:begin + window]), medians(times[-window:])
    return {'frames': frames, 'objects': objects, 'window': window, 'first_ms': first, 'last_ms': last,
            'young_first_ms': young_first, 'young_last_ms': young_last,
            'age_ratio': last / first * young_first / young_last,
            'memory_first_mib': memory[begin + window - 1], 'memory_last_mib': memory[-1],
            'tracker_mib': old.memory_bytes / 2 ** 20}


def over_objects(model: Sam2Model, images: list[np.ndarray], counts: list[int], runs: int) -> list[dict]:
    """Median time of a frame with so many objects, and what each costs beyond the first."""
    rows: list[dict] = []
    for count in counts:
        tracker = started(model, images, count)
        times = [timed(tracker, images[i % len(images)]) for i in range(runs)]
        row = {'objects': count, 'ms': statistics.median(times), 'tracker_mib': tracker.memory_bytes / 2 ** 20}
        added = count - rows[0]['objects'] if rows else 0
        rows.append(row | {'ms_per_added_object': (row['ms'] - rows[0]['ms']) / added if added else None})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--model', default='nano', choices=list(VARIANTS), metavar='NAME')
    parser.add_argument('--image-size', type=int, help="default: the model's own")
    parser.add_argument('--random-weights', action='store_true', help='fetch none: they do not change the time')
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    parser.add_argument('--frames', type=int, default=10_000)
    parser.add_argument('--tracked', type=int, default=2, help='objects over all frames')
    parser.add_argument('--objects', nargs='+', type=int, default=[1, 2, 4, 8, 16])
    parser.add_argument('--runs', type=int, default=9, help='frames for each number of objects')
    parser.add_argument('--json', type=Path, help='write the figures here too')
    options = parser.parse_args()
    if options.frames < 200:
        parser.error(f'--frames {options.frames}: at least 200')
    if options.random_weights:
        config = variant(options.model)
        config = config if options.image_size is None else replace(config, image_size=options.image_size)
        model = Sam2Model(config, options.model).eval().requires_grad_(False).to(options.device)
    else:
        model = load_model(options.model, device=options.device, image_size=options.image_size)
    images = [picture(number, model.image_size) for number in range(40)]
    console = Console(width=120)
    growth = over_frames(model, images, options.frames, options.tracked, console)
    hardware = torch.cuda.get_device_name() if model.device.type == 'cuda' else platform.processor() or 'CPU'
    kind = 'by the clock' if model.device.type == 'cuda' else 'of processor time'
    title = (f'{options.model} {model.image_size} px, {hardware}, {torch.get_num_threads()} CPU threads, milliseconds '
             f'{kind}, {time.strftime("%Y-%m-%d")}')
    table = Table('', f'{growth["window"]} frames from 100', 'the last as many', title=title)
    table.add_row('a frame', f'{growth["first_ms"]:.1f}', f'{growth["last_ms"]:.1f}')
    table.add_row('a frame of the tracker as it began', f'{growth["young_first_ms"]:.1f}',
                  f'{growth["young_last_ms"]:.1f}')
    table.add_row('memory of the process, MiB', f'{growth["memory_first_mib"]:.0f}', f'{growth["memory_last_mib"]:.0f}')
    console.print(table, f'after {growth["frames"]} frames, what age costs: {growth["age_ratio"]:.3f}')
    rows = over_objects(model, images, options.objects, options.runs)
    table = Table('objects', 'ms per frame', 'per added object', 'tracker MiB', title=title)
    for row in rows:
        added = row['ms_per_added_object']
        table.add_row(str(row['objects']), f'{row["ms"]:.1f}', '' if added is None else f'{added:.1f}',
                      f'{row["tracker_mib"]:.2f}')
    console.print(table)
    if options.json:
        options.json.write_text(json.dumps({
            'model': options.model, 'image_size': model.image_size, 'hardware': hardware,
            'threads': torch.get_num_threads(), 'torch': torch.__version__, 'date': time.strftime('%Y-%m-%d'),
            'over_frames': growth, 'over_objects': rows}, indent=2) + '\n')


if __name__ == '__main__':
    main()
