"""Tiny training runs, in this process and in clean ones: a process that has computed cannot fork."""
import math
import multiprocessing
import os
import signal
import subprocess
import sys
from dataclasses import replace

import torch
import torch.distributed as dist

from sam2_core.config import VARIANTS
from sam2_core.training import learner
from sam2_core.training.clips import PackedClips
from sam2_core.training.divergence import Diverged
from sam2_core.training.settings import Schedule, TrainConfig
from sam2_core.training.trainer import Trainer

TRUNK = replace(VARIANTS['nano'].trunk, embed_dim=16, stages=(1, 1, 1, 1), global_attention_blocks=(2,))
TINY = replace(VARIANTS['nano'], trunk=TRUNK, d_model=32, memory_dim=32, memory_attention_layers=1, image_size=64)


class Boxes:
    """Clips of noise with one bright box."""

    def __getitem__(self, number):
        frames = torch.randint(0, 120, (1, 4, 64, 64, 3), generator=torch.Generator().manual_seed(number)).byte()
        masks = torch.zeros((1, 4, 64, 64), dtype=torch.uint8)
        masks[:, :, 10 + number:40 + number, 20:50] = 1
        frames[masks > 0] += 120
        return PackedClips(frames, masks)


def trainer(output, steps=5, source=None, chunks=1, **more):
    config = TrainConfig(output, TINY, steps=steps, chunks=chunks, log_every=2, clip_frames=4, ema=0.9,
                         schedule=Schedule(stages=((1.0, 1),)), **{'validate_every': 0, **more})
    return Trainer(config, source or Boxes())


def child(work, log, *arguments):
    """Call ``work`` in a process group of its own, write its errors to ``log``, and exit with the code it returns."""
    os.setsid()
    os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
    sys.stderr = os.fdopen(2, 'w', closefd=False)
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.exit(work(*arguments))


def ended(*calls):
    """Make the calls at the same time, each in a child, and return their exit codes, negative after a signal."""
    context = multiprocessing.get_context('forkserver')  # which imports PyTorch once
    context.set_forkserver_preload([__name__])
    children = [context.Process(target=child, args=call) for call in calls]
    for process in children:
        process.start()
    for process in children:
        process.join(60)
    return [process.exitcode for process in children]


def one_of_two(rank, folder):
    dist.init_process_group('gloo', init_method=f'file://{folder}/meet', rank=rank, world_size=2)
    run = trainer(folder / 'run')
    losses = learner.step_losses

    def spoilt(*arguments):
        loss, figures = losses(*arguments)
        return (loss * math.nan, {**figures, 'loss': loss * math.nan}) if rank and run.step == 2 else (loss, figures)

    learner.step_losses = spoilt
    try:
        run.run()
    except Diverged as error:
        return 40 + error.step
    return 1


def interrupted_twice(folder):
    run = trainer(folder / 'run')
    update = run.learner.optimizer.step

    def interrupted():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        update()

    run.learner.optimizer.step = interrupted
    return 10 + run.run()


def group_signal(number, folder):
    run = trainer(folder / 'run', workers=2)

    def send():  # from another process, as readers obey their parent
        if run.step == 2:
            subprocess.run(['kill', f'-{int(number)}', '--', f'-{os.getpgrp()}'])

    return 10 + run.run(each_step=send)
