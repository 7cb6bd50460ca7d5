"""Several processes that train one model, as ``torchrun`` starts them."""
from __future__ import annotations

import os

import torch
import torch.distributed as dist


def join_processes(device: str) -> str:
    """Meet the other processes that ``torchrun`` started, if it did; the device of this one."""
    on_gpu = device.startswith('cuda')
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    if 'LOCAL_RANK' not in os.environ:
        return device
    dist.init_process_group('nccl' if on_gpu else 'gloo')
    if not on_gpu:
        return device
    torch.cuda.set_device(int(os.environ['LOCAL_RANK']))
    return f'cuda:{os.environ["LOCAL_RANK"]}'
