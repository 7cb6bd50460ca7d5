"""What the opt-in approximations save, and what they cost: speed of a published model, and nano's J&F beside it.

    python benchmarks/approximations.py                                  # tiny at 512 pixels, 12 clips, one thread
    python benchmarks/approximations.py --image-size 1024 --runs 2 --clips 24 --json approximations.json

Each row is the exact model with one thing changed (the last rows with several). Speed: the rows take turns, image by
image, with full memories and random weights; processor time on a CPU, so that other work does not count. Quality: the
same change to the packaged nano, on the held-out clips of nano_quality.py, from a box in the first frame.
"""
from __future__ import annotations

import argparse
import functools
import json
import multiprocessing
import os
import statistics
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks.growth import picture
from benchmarks.lib.nano import FRAMES, clip_figures, held_out_clip
from benchmarks.lib.parts import facts, full_tracker
from sam2_core import StreamTracker, load_model
from sam2_core.config import VARIANTS
from sam2_core.training.initialise import new_model
from sam2_core.training.run_state import save_weights


@dataclass(frozen=True)
class Change:
    """One row: what is asked of ``load_model`` and of the tracker."""

    name: str
    options: dict[str, Any] = field(default_factory=dict)
    shrink: float = 1.0  # image_size in parts of the model's own
    recent_frames: int | None = None

    def model(self, name: str, size: int, device: str, checkpoint: Path | None = None):
        """The model so changed; its side is a multiple of 32."""
        side = max(32, round(size * self.shrink / 32) * 32)
        return load_model(name, checkpoint, device=device, image_size=side, **self.options)


EXACT = Change('exact')
CHANGES = [
    EXACT,
    Change('bfloat16', {'dtype': torch.bfloat16}),
    Change('image 3/4', shrink=0.75),
    Change('image 1/2', shrink=0.5),
    Change('3 recent frames', recent_frames=3),
    Change('1 recent frame', recent_frames=1),
    Change('pooled memory', {'memory_pooling': 2}),
    Change('int8 encoder', {'int8_encoder': True}),
    Change('pooled memory, int8 encoder', {'memory_pooling': 2, 'int8_encoder': True}),
    Change('pooled memory, bfloat16', {'memory_pooling': 2, 'dtype': torch.bfloat16}),
]


def changes_for(device: str) -> list[Change]:
    """Those there are on a device."""
    return [change for change in CHANGES if device == 'cpu' or not change.options.get('int8_encoder')]


def seconds(tracker: StreamTracker, image: np.ndarray) -> float:
    """Of one step: processor time, on a GPU by the clock."""
    gpu = tracker.model.device.type == 'cuda'
    clock = time.perf_counter if gpu else time.process_time
    start = clock()
    tracker.step(image)
    return clock() - start  # a step ends when its masks are on the host


def speed(name: str, size: int, counts: list[int], runs: int, device: str,
          weights: Path) -> dict[str, dict[int, float]]:
    """Median milliseconds for each change and number of objects."""
    images = [picture(number, size) for number in range(8)]
    found: dict[str, dict[int, float]] = {}
    for count in counts:
        trackers = {}
        for change in track(changes_for(device), description=f'{count} objects: filling memories', transient=True):
            tracker = full_tracker(change.model(name, size, device, weights), images[0], count)
            tracker.recent_frames = change.recent_frames
            trackers[change.name] = tracker
        times: dict[str, list[float]] = {change: [] for change in trackers}
        for number in track(range(runs + 1), description=f'{count} objects', transient=True):
            for change, tracker in trackers.items():
                elapsed = seconds(tracker, images[number % len(images)])
                if number:  # the first one warms up
                    times[change].append(elapsed * 1e3)
        for change, values in times.items():
            found.setdefault(change, {})[count] = statistics.median(values)
    return found


@functools.cache
def _nano(row: int):
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    return CHANGES[row].model('nano', VARIANTS['nano'].image_size, 'cpu')


def quality_of(task: tuple[int, int, int]) -> tuple[int, dict[str, list[float]]]:
    """The figures of one row on one clip of so many frames."""
    row, number, frames = task
    figures = clip_figures(_nano(row), held_out_clip(number, frames), corrections=False,
                           recent_frames=CHANGES[row].recent_frames)
    return row, {name: [float(value) for value in figures.get(name, ())] for name in ('J', 'F', 'box')}


def quality(clips: int, frames: int, jobs: int, rows: list[Change]) -> dict[str, dict[str, float]]:
    """J&F and the IoU of the first frame, of nano with each change."""
    tasks = [(CHANGES.index(change), number, frames) for number in range(clips) for change in rows]
    joined: dict[str, dict[str, list[float]]] = {change.name: {'J': [], 'F': [], 'box': []} for change in rows}
    os.environ['OMP_NUM_THREADS'] = '1'  # before a process imports torch
    with multiprocessing.get_context('spawn').Pool(jobs) as pool:
        for row, figures in track(pool.imap(quality_of, tasks), total=len(tasks), description='nano', transient=True):
            for name, values in figures.items():
                joined[CHANGES[row].name][name].extend(values)
    return {name: {'J&F': (np.mean(f['J']) + np.mean(f['F'])) / 2, 'first_frame_box': np.mean(f['box'])}
            for name, f in joined.items()}


def main() -> None:
    """Measure both and show them side by side."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--model', default='sam2.1_hiera_tiny', choices=list(VARIANTS), metavar='NAME')
    parser.add_argument('--image-size', type=int, default=512)
    parser.add_argument('--objects', nargs='+', type=int, default=[1, 4])
    parser.add_argument('--runs', type=int, default=5, help='timed frames')
    parser.add_argument('--clips', type=int, default=12, help='of nano_quality.py')
    parser.add_argument('--frames', type=int, default=FRAMES, help='of a clip; with others than its own it is another')
    parser.add_argument('--jobs', type=int, default=os.cpu_count(), help='processes that measure quality')
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    parser.add_argument('--json', type=Path, help='write the figures here too')
    options = parser.parse_args()
    if min(options.clips, options.frames, options.jobs, options.runs, *options.objects) < 1:
        parser.error(f'--clips {options.clips}, --frames {options.frames}, --jobs {options.jobs}, '
                     f'--runs {options.runs}, --objects {options.objects}: at least 1')
    torch.set_num_threads(1)
    folder = Path.home() / '.cache' / 'sam2_ros_benchmarks'
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    save_weights(folder / 'random.safetensors', new_model(VARIANTS[options.model], options.model), torch.float32)
    rows = changes_for(options.device)
    judged = quality(options.clips, options.frames, options.jobs, rows)
    timed = speed(options.model, options.image_size, options.objects, options.runs, options.device,
                  folder / 'random.safetensors')
    table = Table(title=f'{options.model} at {options.image_size} on {options.device}, one thread, '
                        f'{time.strftime("%Y-%m-%d")}; nano on {options.clips} clips')
    table.add_column('')
    for count in options.objects:
        table.add_column(f'{count} objects, ms', justify='right')
        table.add_column('x', justify='right')
    table.add_column("nano's J&F", justify='right')
    table.add_column('first frame, box', justify='right')
    for change in rows:
        cells = [change.name]
        for count in options.objects:
            ms = timed[change.name][count]
            cells += [f'{ms:.0f}', f'{timed[EXACT.name][count] / ms:.2f}']
        table.add_row(*cells, f'{judged[change.name]["J&F"]:.3f}', f'{judged[change.name]["first_frame_box"]:.3f}')
    Console(width=120).print(table)
    if options.json:
        options.json.write_text(json.dumps(facts(torch.device(options.device)) | {
            'model': options.model, 'image_size': options.image_size, 'clips': options.clips,
            'rows': {c.name: {'ms': timed[c.name]} | judged[c.name] for c in rows}}, indent=2) + '\n')


if __name__ == '__main__':
    main()
