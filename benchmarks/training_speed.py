"""How fast nano trains, how fast its clips are made, and whether training ever waits for them.

    OMP_NUM_THREADS=1 python benchmarks/training_speed.py               # on a CPU: of one core
    python benchmarks/training_speed.py --chunks 4 --clips 4 --echo 2 --steps 50      # as on a GPU, with its settings

Three things are measured: steps (forward, backward, update) on clips that are there already; making clips, by one
process that does nothing else; and the loop as it is used, with worker processes, which logs the share of its time that
it waited for data.
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

FRAMES = 8  # that training follows an object for
MADE = 16  # frames of a clip as it is made; training cuts it in two
SEED = 990


def per_second(count: int, work: Callable[[], None], device: str) -> tuple[float, float]:
    """``count`` in a second of the clock, and of this process's processor time."""
    def synchronise() -> None:
        if device.startswith('cuda'):
            torch.cuda.synchronize()
    synchronise()
    clock, processor = time.perf_counter(), time.process_time()
    work()
    synchronise()
    return count / (time.perf_counter() - clock), count / (time.process_time() - processor)


def trainer(options: argparse.Namespace, output: Path, source: SyntheticClips, steps: int) -> Trainer:
    """A run that goes on from the packaged weights."""
    on_gpu = options.device.startswith('cuda')
    config = TrainConfig(
        output, VARIANTS['nano'], steps=steps, schedule=Schedule.going_on(stages=((1.0, FRAMES),)),
        chunks=options.chunks, echo=options.echo, clip_frames=MADE, workers=options.workers, device=options.device,
        half=on_gpu or options.bf16, graph=on_gpu, log_every=max(1, steps // 2), validate_every=0, save_every=1e9)
    return Trainer(config, source, load_weights(find_weights('nano'), VARIANTS['nano']))


def _steps(options: argparse.Namespace, output: Path, source: SyntheticClips,
           chunk: PackedClips) -> tuple[float, float]:
    """Clips of FRAMES frames trained on per second, when all are at hand."""
    alone = trainer(options, output, source, 10 ** 6)
    chunks = [chunk] * options.chunks
    for _ in range(6 if alone.config.graph else 1):  # a GPU's steps are captured after three
        alone.run_step(chunks)

    def train() -> None:
        for _ in range(options.steps):
            alone.run_step(chunks)

    return per_second(options.steps * options.chunks * options.clips * (MADE // FRAMES), train, options.device)


def measure(options: argparse.Namespace) -> dict[str, float]:
    """Clips of FRAMES frames per second, and the share of time that was waited."""
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
    results['waited'] = lines[-1]['data_wait']  # of the second half: the first one filled the queues
    trained = results['trained_per_s' if options.device.startswith('cuda') else 'trained_per_processor_s']
    # processor time: on cores that are shared the clock says less of what a process can do
    results['processes_that_keep_up'] = trained / (results['made_per_processor_s'] * options.echo)
    return results


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    parser.add_argument('--bf16', action='store_true', help='bfloat16 autocast on a CPU too')
    parser.add_argument('--clips', type=int, default=1, help=f'of {MADE} frames, in a chunk')
    parser.add_argument('--chunks', type=int, default=1, help='in a step')
    parser.add_argument('--echo', type=int, default=1, help='steps that each clip serves')
    parser.add_argument('--workers', type=int, default=max(1, (os.cpu_count() or 1) - 1), help='processes of the loop')
    parser.add_argument('--steps', type=int, default=3)
    parser.add_argument('--made', type=int, default=8, help='chunks to make')
    parser.add_argument('--json', type=Path, help='write the result here')
    options = parser.parse_args()
    cv2.setNumThreads(1)
    found = measure(options)
    on_gpu = options.device.startswith('cuda')
    device = torch.cuda.get_device_name() if on_gpu else f'{torch.get_num_threads()} thread(s)'
    table = Table(title=f'clips of {FRAMES} frames of 256 x 256 per second; {device}, '
                        f'{options.chunks} x {options.clips} x {MADE} frames a step{", bf16" if options.bf16 else ""}')
    for column in ('', 'of the clock', 'of processor time'):
        table.add_column(column, justify='right')
    for name, label in (('made', 'made by one process'), ('trained', 'trained, clips at hand')):
        table.add_row(label, f'{found[f"{name}_per_s"]:.2f}', f'{found[f"{name}_per_processor_s"]:.2f}')
    table.add_row(f'trained by the loop, {options.workers} worker(s)', f'{found["loop_per_s"]:.2f}', '')
    Console(width=None if Console().is_terminal else 120).print(table)
    print(f'the loop waited for data {found["waited"]:.1%} of its time; '
          f'{found["processes_that_keep_up"]:.2f} processes that make clips keep up with training')
    if options.json:
        options.json.write_text(json.dumps(found | {'device': device, 'bf16': options.bf16}))


if __name__ == '__main__':
    main()
