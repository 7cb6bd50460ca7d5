"""Measure what the optional approximations save and cost: speed of a published model, and accuracy of nano.

    python benchmarks/approximations.py                                  # tiny at 512 pixels, 12 clips, one thread
    python benchmarks/approximations.py --image-size 1024 --runs 2 --clips 24 --json approximations.json

Each row is the exact model with one change, the last rows with several. For the speed, all rows take turns at each
image, with full memories and random weights; on a CPU, processor time is measured, so that other work does not count.
For the accuracy, the packaged nano with the same change tracks objects of the held-out clips of nano_quality.py from a
box in the first frame.
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

from benchmarks.lib.nano import FRAMES, clip_figures, held_out_clip
from benchmarks.lib.parts import facts, full_tracker, moving_texture
from sam2_core import Sam2Model, StreamTracker, load_model
from sam2_core.config import VARIANTS
from sam2_core.training.initialise import new_model
from sam2_core.training.run_state import save_weights


@dataclass(frozen=True)
class Change:
    """One row: options of ``load_model`` and of the tracker."""

    name: str
    options: dict[str, Any] = field(default_factory=dict)
    shrink: float = 1.0  # image_size relative to that of the model
    recent_frames: int | None = None

    def model(self, name: str, size: int, device: str, checkpoint: Path | None = None) -> Sam2Model:
        """Return the changed model. Its image size is a multiple of 32."""
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
    """Return the changes that a device supports."""
    return [change for change in CHANGES if device == 'cpu' or not change.options.get('int8_encoder')]


def seconds(tracker: StreamTracker, image: np.ndarray) -> float:
    """Return the seconds of one step: processor time on a CPU, wall-clock time on a GPU."""
    gpu = tracker.model.device.type == 'cuda'
    clock = time.perf_counter if gpu else time.process_time
    start = clock()
    tracker.step(image)
    return clock() - start  # no synchronisation needed: a step ends with masks on the host


def speed(name: str, size: int, counts: list[int], runs: int, device: str,
          weights: Path) -> dict[str, dict[int, float]]:
    """Return the median milliseconds of a frame for each change and number of objects."""
    images = [moving_texture(number, size) for number in range(8)]
    found: dict[str, dict[int, float]] = {}
    for count in counts:
        trackers = {}
        for change in track(changes_for(device), description=f'{count} objects: filling memories', transient=True):
            tracker = full_tracker(change.model(name, size, device, weights), images[0], count)
            tracker.recent_frames = change.recent_frames
            trackers[change.name] = tracker
        times: dict[str, list[float]] = {row: [] for row in trackers}
        for number in track(range(runs + 1), description=f'{count} objects', transient=True):
            for row, tracker in trackers.items():
                elapsed = seconds(tracker, images[number % len(images)])
                if number:  # the first run is a warm-up
                    times[row].append(elapsed * 1e3)
        for row, values in times.items():
            found.setdefault(row, {})[count] = statistics.median(values)
    return found


@functools.cache
def _nano(row: int) -> Sam2Model:
    """Return nano with a change. Every process keeps it."""
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    return CHANGES[row].model('nano', VARIANTS['nano'].image_size, 'cpu')


def quality_of(task: tuple[int, int, int]) -> tuple[int, dict[str, list[float]]]:
    """Return the figures of one row on one clip. ``task``: row, number of the clip, number of frames."""
    row, number, frames = task
    figures = clip_figures(_nano(row), held_out_clip(number, frames), corrections=False,
                           recent_frames=CHANGES[row].recent_frames)
    return row, {name: [float(value) for value in figures.get(name, ())] for name in ('J', 'F', 'box')}


def quality(clips: int, frames: int, jobs: int, rows: list[Change]) -> dict[str, dict[str, float]]:
    """Return J&F and the IoU of the first frame of nano with each change."""
    tasks = [(CHANGES.index(change), number, frames) for number in range(clips) for change in rows]
    joined: dict[str, dict[str, list[float]]] = {change.name: {'J': [], 'F': [], 'box': []} for change in rows}
    os.environ['OMP_NUM_THREADS'] = '1'  # set before the processes import torch
    with multiprocessing.get_context('spawn').Pool(jobs) as pool:
        for row, figures in track(pool.imap(quality_of, tasks), total=len(tasks), description='nano', transient=True):
            for name, values in figures.items():
                joined[CHANGES[row].name][name].extend(values)
    return {name: {'J&F': float(np.mean(f['J']) + np.mean(f['F'])) / 2, 'first_frame_box': float(np.mean(f['box']))}
            for name, f in joined.items()}


def main() -> None:
    """Measure speed and accuracy and print them side by side."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--model', default='sam2.1_hiera_tiny', choices=list(VARIANTS), metavar='NAME',
                        help='model whose speed is measured (default: sam2.1_hiera_tiny)')
    parser.add_argument('--image-size', type=int, default=512, help='its image size in pixels (default: 512)')
    parser.add_argument('--objects', nargs='+', type=int, default=[1, 4], help='numbers of objects (default: 1 4)')
    parser.add_argument('--runs', type=int, default=5, help='number of timed frames (default: 5)')
    parser.add_argument('--clips', type=int, default=12, help='number of clips (default: 12)')
    parser.add_argument('--frames', type=int, default=FRAMES,
                        help=f'frames of a clip (default: {FRAMES}); another length gives other clips')
    parser.add_argument('--jobs', type=int, default=os.cpu_count(),
                        help='number of processes that measure the accuracy (default: all cores)')
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu',
                        help='device whose speed is measured (default: cuda if available, else cpu)')
    parser.add_argument('--json', type=Path, metavar='FILE', help='write the results to this file, too')
    options = parser.parse_args()
    if min(options.clips, options.frames, options.jobs, options.runs, *options.objects) < 1:
        parser.error(f'--clips {options.clips}, --frames {options.frames}, --jobs {options.jobs}, '
                     f'--runs {options.runs}, --objects {options.objects}: must be at least 1')
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
                        f'{time.strftime("%Y-%m-%d")}; accuracy of nano on {options.clips} clips')
    table.add_column('')
    for count in options.objects:
        table.add_column(f'{count} objects, ms', justify='right')
        table.add_column('speed-up', justify='right')
    table.add_column('J&F', justify='right')
    table.add_column('IoU, first frame', justify='right')
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
