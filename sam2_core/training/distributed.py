"""Several processes that train one model, as ``torchrun`` starts them."""
from __future__ import annotations

import os
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor


def join_processes(device: str) -> str:
    """Join the other processes, if ``torchrun`` started some, and return the device of this one."""
    on_gpu = device.startswith('cuda')
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    if 'LOCAL_RANK' not in os.environ:
        return device
    dist.init_process_group('nccl' if on_gpu else 'gloo')
    if not on_gpu:
        return device
    torch.cuda.set_device(int(os.environ['LOCAL_RANK']))
    return f'cuda:{os.environ["LOCAL_RANK"]}'


def highest(mine: int, device: torch.device) -> int:
    """Return the highest number that any process gives; all processes must call it."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return mine
    shared = torch.tensor(float(mine), device=device)
    dist.all_reduce(shared, dist.ReduceOp.MAX)
    return int(shared)


def average_gradients(gradients: Sequence[Tensor], loss: Tensor, world: int) -> Tensor:
    """Average gradients over ``world`` processes, in place and in one message, and return the averaged loss.

    Parameters without a gradient have none in any of the processes.
    """
    flat = torch.cat([*(gradient.flatten() for gradient in gradients), loss.reshape(1).to(gradients[0].dtype)])
    dist.all_reduce(flat)
    flat /= world
    for gradient, part in zip(gradients, flat[:-1].split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))
    return flat[-1]


def wait_for_all() -> None:
    """Wait until every process is here."""
    if dist.is_initialized():
        dist.barrier()
