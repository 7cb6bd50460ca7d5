"""Train a model of nano's kind on synthetic clips, from nothing or from given weights.

    python -m sam2_core.training.loop --output runs/nano --minutes 19

Run the same command again to resume a run that was stopped; start it with ``torchrun --nproc-per-node N`` for several
GPUs (or processes). The learning rate follows the progress of the run, which counts steps, or minutes where the time is
given: then it reaches 0 when the time is over, however fast the machine is.

Exit codes: 0 complete; 2 could not start; 3 left before the end, run the same command again to go on; 4 a loss or
gradient was not finite: the state before it is kept; 130 a second Ctrl-C, or one before the first step.
"""
from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors import SafetensorError

from sam2_core.checkpoint import CheckpointError
from sam2_core.config import VARIANTS
from sam2_core.training import run_state
from sam2_core.training.arguments import device, number, whole
from sam2_core.training.data import LARGEST_TRAINING_SEED, SyntheticClips
from sam2_core.training.distributed import join_processes
from sam2_core.training.divergence import Diverged, report
from sam2_core.training.progress import progress_bar
from sam2_core.training.settings import Schedule, TrainConfig
from sam2_core.training.stopping import COMPLETE, DIVERGED, INTERRUPTED, LEFT, NO_START
from sam2_core.training.trainer import Trainer

_SHOWN = ('step', 'minutes', 'frames', 'loss', 'image_box_j', 'image_click_j', 'video_tracked_j', 'video_absent_right',
          'gradient', 'images_per_s', 'data_wait', 'validation_image_box_j', 'validation_video_tracked_j',
          'validation_video_absent_right')


def parser() -> argparse.ArgumentParser:
    """The options of ``python -m sam2_core.training.loop``."""
    options = argparse.ArgumentParser('python -m sam2_core.training.loop', description=__doc__,
                                      formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument('--output', type=Path, required=True, help='folder for weights, log, curves and checkpoint')
    length = options.add_mutually_exclusive_group(required=True)
    length.add_argument('--minutes', type=number(above=0), help='length of the whole run')
    length.add_argument('--steps', type=whole(1), help='length of the whole run')
    options.add_argument('--stop-after', type=number(least=0), help='seconds after which to save and leave')
    options.add_argument('--model', default='nano', choices=VARIANTS, metavar='NAME', help='which shape to train')
    options.add_argument('--weights', type=Path, help='go on from these instead of from nothing')
    options.add_argument('--rate', type=number(above=0), default=5e-4, help='learning rate when going on from weights')
    options.add_argument('--longer-from', type=number(least=0), default=1.0,
                         help='going on: progress from which clips have 16 frames instead of 8')
    options.add_argument('--device', type=device, default='cuda' if torch.cuda.is_available() else 'cpu')
    options.add_argument('--chunks', type=whole(1), help='of clips of 16 frames, per step and process')
    options.add_argument('--clips', type=whole(1), default=4, help='in a chunk')
    options.add_argument('--echo', type=whole(1), default=1, help='how many steps each clip serves')
    options.add_argument('--workers', type=whole(0), default=max(0, (os.cpu_count() or 1) - 1))
    options.add_argument('--seed', type=whole(0), default=0, help=f'of clips and chance, 0 to {LARGEST_TRAINING_SEED}')
    options.add_argument('--bf16', action='store_true', help='bfloat16 autocast on a CPU too')
    options.add_argument('--no-graph', action='store_true', help='no CUDA graph')
    options.add_argument('--compile', action='store_true', help='use torch.compile')
    options.add_argument('--validate-every', type=whole(0), default=500, help='steps')
    options.add_argument('--log-every', type=whole(1), default=20, help='steps')
    return options


def prepare(options: argparse.Namespace) -> Trainer:
    """Everything up to the first step. ValueError or OSError for what a user can mend."""
    if options.seed > LARGEST_TRAINING_SEED:
        raise ValueError(f'seed {options.seed}: 0 to {LARGEST_TRAINING_SEED}; those above make the clips that models '
                         f'are measured on')
    if options.weights is not None and not options.weights.exists():
        raise FileNotFoundError(f'weights {options.weights}: no such file')
    on_gpu = options.device.startswith('cuda')
    chunks = options.chunks or (4 if on_gpu else options.echo)
    if chunks % options.echo:
        raise ValueError(f'chunks {chunks}: must be a multiple of echo {options.echo}')
    config = TrainConfig(
        output=options.output, model=VARIANTS[options.model], steps=options.steps, minutes=options.minutes,
        chunks=chunks, echo=options.echo, workers=options.workers, device=options.device, seed=options.seed,
        half=on_gpu or options.bf16, graph=on_gpu and not options.no_graph and not dist.is_initialized(),
        compile=options.compile,
        schedule=Schedule() if options.weights is None else Schedule.going_on(
            options.rate, ((options.longer_from, 8), (1.0, 16))),
        stop_after=options.stop_after, validate_every=options.validate_every, log_every=options.log_every)
    try:
        model = None if options.weights is None else run_state.load_weights(options.weights, config.model)
    except (SafetensorError, CheckpointError) as error:
        raise ValueError(f'weights {options.weights}: {error}') from error
    options.output.mkdir(parents=True, exist_ok=True)
    source = SyntheticClips(config.seed, config.clip_frames, config.model.image_size, options.clips)
    return Trainer(config, source, model)


def line_text(line: dict) -> str:
    """A line of the log as a person reads it."""
    return ' '.join(f'{name.replace("validation_", "v:")} {line[name]}' for name in _SHOWN if name in line)


def main(arguments: Sequence[str] | None = None) -> int:
    """Train nano on synthetic clips and return the exit code, as ``--help`` lists them."""
    options = parser().parse_args(arguments)
    options.device = join_processes(options.device)
    try:
        return _train(options)
    except KeyboardInterrupt:
        print('training: interrupted before the first step', file=sys.stderr)
        return INTERRUPTED
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def _train(options: argparse.Namespace) -> int:
    try:
        trainer = prepare(options)
    except (ValueError, OSError) as error:
        print(f'training: {error}', file=sys.stderr)
        return NO_START
    if trainer.step and not trainer.rank:
        print(f'{options.output}: going on from step {trainer.step}', file=sys.stderr)
    with progress_bar(trainer) as (say, bar):
        try:
            code = COMPLETE if trainer.run(lambda line: say(line_text(line)), bar) else LEFT
            ending = (f'done: {options.output / "weights.safetensors"}' if code == COMPLETE else
                      f'left at step {trainer.step}: run the same command again to go on')
        except Diverged as error:
            code = DIVERGED
            step = run_state.saved_step(options.output / 'checkpoint')
            cures = 'a lower learning rate (--rate, with --weights) or another --seed'
            ending = f'training: {report(error, step, options.output, cures)}'
    if not trainer.rank:
        print(ending, file=sys.stderr)
    return code
