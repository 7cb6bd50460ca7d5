"""Train a model of nano's kind on synthetic clips, from nothing or from given weights.

    python -m sam2_core.training.loop --output runs/nano --minutes 19

Run the same command again to continue a run that was stopped or killed. To use N GPUs, or N processes of one thread:

    torchrun --nproc-per-node N -m sam2_core.training.loop --output runs/nano --minutes 19

The learning rate follows the progress of the run, in steps or in minutes. With minutes it reaches 0 when the time is
over, however fast the machine is.

Exit codes:
    0    complete
    2    could not start
    3    stopped early; run the same command again to continue
    4    a loss, gradient or weight was not finite; the state before it is kept
    130  second Ctrl-C, or one before the first step; nothing was saved
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

from sam2_core.arguments import device, number, whole
from sam2_core.checkpoint_files import CheckpointError
from sam2_core.config import VARIANTS
from sam2_core.stopping import NO_START
from sam2_core.training import run_state
from sam2_core.training.command import ending, run_command, train
from sam2_core.training.data import LARGEST_TRAINING_SEED, SyntheticClips
from sam2_core.training.distributed import join_processes
from sam2_core.training.log import LogLine
from sam2_core.training.settings import Schedule, TrainConfig
from sam2_core.training.trainer import Trainer

_SHOWN = ('step', 'minutes', 'frames', 'loss', 'image_box_j', 'image_click_j', 'video_tracked_j', 'video_absent_right',
          'gradient', 'images_per_s', 'data_wait', 'validation_image_box_j', 'validation_video_tracked_j',
          'validation_video_absent_right')


def parser() -> argparse.ArgumentParser:
    """Return the parser of ``python -m sam2_core.training.loop``."""
    options = argparse.ArgumentParser('python -m sam2_core.training.loop', description=__doc__,
                                      formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument('--output', type=Path, required=True, metavar='DIR',
                         help='folder for weights, log, curves and checkpoint')
    length = options.add_mutually_exclusive_group(required=True)
    length.add_argument('--minutes', type=number(above=0), metavar='M', help='length of the whole run in minutes')
    length.add_argument('--steps', type=whole(1), metavar='N', help='length of the whole run in steps')
    options.add_argument('--stop-after', type=number(least=0), metavar='SECONDS',
                         help='save and stop after this time; the same command continues the run')
    options.add_argument('--model', default='nano', choices=VARIANTS, metavar='NAME',
                         help='configuration to train (default: %(default)s)')
    options.add_argument('--weights', type=Path, metavar='FILE', help='weights to start from (default: a new model)')
    options.add_argument('--rate', type=number(above=0), default=5e-4,
                         help='peak learning rate with --weights (default: %(default)s)')
    options.add_argument('--longer-from', type=number(least=0), default=1.0, metavar='PROGRESS',
                         help='with --weights: progress from which clips have 16 frames instead of 8 '
                              '(default: %(default)s, never)')
    options.add_argument('--device', type=device, default='cuda' if torch.cuda.is_available() else 'cpu',
                         help='cpu, cuda or cuda:N (default: cuda if there is a GPU)')
    options.add_argument('--chunks', type=whole(1), metavar='N',
                         help='chunks of clips per step and process (default: 4 on a GPU, on a CPU --echo)')
    options.add_argument('--clips', type=whole(1), default=4, metavar='N',
                         help='clips of 16 frames per chunk (default: %(default)s)')
    options.add_argument('--echo', type=whole(1), default=1, metavar='N',
                         help='steps that use each clip (default: %(default)s)')
    options.add_argument('--workers', type=whole(0), default=max(0, (os.cpu_count() or 1) - 1), metavar='N',
                         help='processes that make clips (default: number of cores - 1)')
    options.add_argument('--seed', type=whole(0), default=0, metavar='N',
                         help=f'seed of clips and random choices, 0 to {LARGEST_TRAINING_SEED} (default: %(default)s)')
    options.add_argument('--bf16', action='store_true', help='compute in bfloat16 on a CPU, too')
    options.add_argument('--no-graph', action='store_true', help='do not capture the step as a CUDA graph')
    options.add_argument('--compile', action='store_true', help='use torch.compile')
    options.add_argument('--validate-every', type=whole(0), default=500, metavar='STEPS',
                         help='interval of validations; 0 disables them (default: %(default)s)')
    options.add_argument('--log-every', type=whole(1), default=20, metavar='STEPS',
                         help='interval of log lines (default: %(default)s)')
    return options


def prepare(options: argparse.Namespace) -> Trainer:
    """Build the run up to its first step. Raises ValueError or OSError for errors that a user can correct."""
    if options.seed > LARGEST_TRAINING_SEED:
        raise ValueError(f'seed {options.seed}: must be 0 to {LARGEST_TRAINING_SEED}; larger seeds make the clips that '
                         f'models are validated on')
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


def line_text(line: LogLine) -> str:
    """Return a line of the log as text for a person."""
    return ' '.join(f'{name.replace("validation_", "v:")} {line[name]}' for name in _SHOWN if name in line)


def main(arguments: Sequence[str] | None = None) -> int:
    """Train on synthetic clips and return the exit code, as ``--help`` lists them."""
    options = parser().parse_args(arguments)
    options.device = join_processes(options.device)
    return run_command('training', lambda: _train(options))


def _train(options: argparse.Namespace) -> int:
    try:
        trainer = prepare(options)
    except (ValueError, OSError) as error:
        print(f'training: {error}', file=sys.stderr)
        return NO_START
    if trainer.step and trainer.rank == 0:
        print(f'{options.output}: continuing from step {trainer.step}', file=sys.stderr)
    outcome = train(trainer, lambda write: lambda line: write(line_text(line)))
    if trainer.rank == 0:
        print(ending('training', trainer, outcome, str(options.output / 'weights.safetensors'),
                     'a lower learning rate (--rate, with --weights) or another --seed'), file=sys.stderr)
    return outcome.code
