"""Measure how fast nano trains, how fast its clips are made, and whether training waits for clips.

    OMP_NUM_THREADS=1 python benchmarks/training_speed.py                       # one core of a CPU
    python benchmarks/training_speed.py --chunks 4 --clips 4 --echo 2 --steps 50      # the settings for a GPU

Three rates are measured: training steps (forward, backward, update) on clips in memory; clips made by one process that
does nothing else; and the complete training loop with worker processes, which logs the share of its time in which it
waits for data.
"""
from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from sam2_core.checkpoint import find_weights
from sam2_core.config import VARIANTS
from sam2_core.training.clips import PackedClips
from sam2_core.training.data import SyntheticClips
from sam2_core.training.run_state import load_weights
from sam2_core.training.settings import Schedule, TrainConfig
from sam2_core.training.trainer import Trainer

FRAMES = 8  # frames over which training tracks an object
MADE = 16  # frames of a clip when it is made; training cuts it in two
SEED = 990


def per_second(count: int, work: Callable[[], None], device: str) -> tuple[float, float]:
    """Return ``count`` per second of wall-clock time, and per second of processor time of this process."""
    def synchronise() -> None:
        if device.startswith('cuda'):
            torch.cuda.synchronize()
    synchronise()
    clock, processor = time.perf_counter(), time.process_time()
    work()
    synchronise()
    return count / (time.perf_counter() - clock), count / (time.process_time() - processor)


def trainer(options: argparse.Namespace, output: Path, source: SyntheticClips, steps: int) -> Trainer:
    """Return a trainer that continues from the packaged weights."""
    on_gpu = options.device.startswith('cuda')
    config = TrainConfig(
        output, VARIANTS['nano'], steps=steps, schedule=Schedule.going_on(stages=((1.0, FRAMES),)),
        chunks=options.chunks, echo=options.echo, clip_frames=MADE, workers=options.workers, device=options.device,
        half=on_gpu or options.bf16, graph=on_gpu, log_every=max(1, steps // 2), validate_every=0, save_every=1e9)
    return Trainer(config, source, load_weights(find_weights('nano'), VARIANTS['nano']))


def _steps(options: argparse.Namespace, output: Path, source: SyntheticClips,
           chunk: PackedClips) -> tuple[float, float]:
    """Return the clips of FRAMES frames per second that training processes if they are in memory."""
    alone = trainer(options, output, source, 10 ** 6)
    chunks = [chunk] * options.chunks
    for _ in range(6 if alone.config.graph else 1):  # on a GPU, steps are captured after three
        alone.run_step(chunks)

    def train() -> None:
        for _ in range(options.steps):
            alone.run_step(chunks)

    return per_second(options.steps * options.chunks * options.clips * (MADE // FRAMES), train, options.device)


def measure(options: argparse.Namespace) -> dict[str, float]:
    """Return rates in clips of FRAMES frames per second, and the share of the time spent waiting."""
    parts = MADE // FRAMES
    results = {}
    with Progress(console=Console(stderr=True)) as progress, tempfile.TemporaryDirectory() as folder:
        bar = progress.add_task('textures', total=4)
        source = SyntheticClips(SEED, MADE, VARIANTS['nano'].image_size, options.clips)
        progress.update(bar, advance=1, description='making clips')

        def make() -> None:
            for number in range(1, 1 + options.made):
                source[number]

        chunk = source[0]
        results['made_per_s'], results['made_per_processor_s'] = per_second(
            options.made * options.clips * parts, make, 'cpu')

        progress.update(bar, advance=1, description='steps')
        clock, processor = _steps(options, Path(folder) / 'steps', source, chunk)
        results |= {'trained_per_s': clock, 'trained_per_processor_s': processor}

        progress.update(bar, advance=1, description='the loop')
        lines: list[dict] = []
        trainer(options, Path(folder) / 'loop', source, 2 * options.steps).run(lines.append)
        progress.update(bar, advance=1)
    results['loop_per_s'] = lines[-1]['images_per_s'] / FRAMES
    results['waited'] = lines[-1]['data_wait']  # in the second half; the first half fills the queues
    trained = results['trained_per_s' if options.device.startswith('cuda') else 'trained_per_processor_s']
    # on shared cores, processor time shows better what a process can do
    results['processes_that_keep_up'] = trained / (results['made_per_processor_s'] * options.echo)
    return results


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu',
                        help='device of the model (default: cuda if available, else cpu)')
    parser.add_argument('--bf16', action='store_true', help='use bfloat16 autocast on a CPU, too')
    parser.add_argument('--clips', type=int, default=1, help=f'clips of {MADE} frames in a chunk (default: 1)')
    parser.add_argument('--chunks', type=int, default=1, help='chunks in a step (default: 1)')
    parser.add_argument('--echo', type=int, default=1, help='steps in which each clip is used (default: 1)')
    parser.add_argument('--workers', type=int, default=max(1, (os.cpu_count() or 1) - 1),
                        help='worker processes of the loop (default: all cores but one)')
    parser.add_argument('--steps', type=int, default=3, help='number of timed steps (default: 3)')
    parser.add_argument('--made', type=int, default=8, help='number of chunks to make (default: 8)')
    parser.add_argument('--json', type=Path, metavar='FILE', help='write the results to this file, too')
    options = parser.parse_args()
    cv2.setNumThreads(1)
    found = measure(options)
    on_gpu = options.device.startswith('cuda')
    device = torch.cuda.get_device_name() if on_gpu else f'{torch.get_num_threads()} thread(s)'
    table = Table(title=f'clips of {FRAMES} frames of 256 x 256 per second; {device}, '
                        f'{options.chunks} x {options.clips} x {MADE} frames a step{", bf16" if options.bf16 else ""}')
    for column in ('', 'wall-clock time', 'processor time'):
        table.add_column(column, justify='right')
    for name, label in (('made', 'made by one process'), ('trained', 'trained, clips in memory')):
        table.add_row(label, f'{found[f"{name}_per_s"]:.2f}', f'{found[f"{name}_per_processor_s"]:.2f}')
    table.add_row(f'trained by the loop, {options.workers} worker(s)', f'{found["loop_per_s"]:.2f}', '')
    Console(width=None if Console().is_terminal else 120).print(table)
    print(f'the loop waited for data {found["waited"]:.1%} of its time; '
          f'{found["processes_that_keep_up"]:.2f} processes make clips as fast as training uses them')
    if options.json:
        options.json.write_text(json.dumps(found | {'device': device, 'bf16': options.bf16}))


if __name__ == '__main__':
    main()
