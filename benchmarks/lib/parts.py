"""What several benchmarks share: prompts, full trackers, the machine they ran on, the memory of this process."""
from __future__ import annotations

import os
import platform
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from sam2_core import Prompt, Sam2Model, StreamTracker, load_model
from sam2_core.config import variant

Box = tuple[float, float, float, float]


def boxes(objects: int, width: int, height: int | None = None) -> list[Box]:
    """As many boxes as wanted, in a grid over the image."""
    side = int(np.ceil(objects ** 0.5))
    right, down = width / side, (height or width) / side
    return [((i % side + 0.2) * right, (i // side + 0.2) * down, (i % side + 0.8) * right, (i // side + 0.8) * down)
            for i in range(objects)]


def random_model(name: str, image_size: int | None, device: torch.device | str = 'cpu') -> Sam2Model:
    """A model with random weights, which do not change the time."""
    config = variant(name)
    config = config if image_size is None else replace(config, image_size=image_size)
    return Sam2Model(config, name).eval().requires_grad_(False).to(device)


def make_model(name: str, image_size: int | None, device: torch.device | str, random_weights: bool) -> Sam2Model:
    """A model with its published weights, fetched where they are not there, or with random ones."""
    return random_model(name, image_size, device) if random_weights else (
        load_model(name, device=device, image_size=image_size))


@torch.inference_mode()
def full_tracker(model: Sam2Model, image: np.ndarray, objects: int) -> StreamTracker:
    """A tracker whose memories are full: this one image as conditioning frame, six recent ones and sixteen pointers."""
    tracker = StreamTracker(model)
    height, width = image.shape[:2]
    tracker.step(image, [Prompt(i + 1, box=box) for i, box in enumerate(boxes(objects, width, height))])
    for bank in tracker._banks.values():
        for _ in range(1, model.config.object_pointers):
            bank.write(bank._frames.storage[0].clone(), bank._pointers.storage[0].clone(), conditioning=False)
    return tracker


def facts(device: torch.device) -> dict:
    """Where and when: what belongs beside every figure."""
    gpu = device.type == 'cuda'
    return {'hardware': torch.cuda.get_device_name(device) if gpu else processor(),
            'threads': torch.get_num_threads(), 'torch': torch.__version__, 'date': time.strftime('%Y-%m-%d'),
            'load': round(os.getloadavg()[0], 2)}


def processor() -> str:
    """The name of the CPU."""
    try:
        lines = Path('/proc/cpuinfo').read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(':')[2].strip() for line in lines if line.startswith('model name')]
    return names[0] if names else platform.processor() or 'CPU'


def resident() -> float:
    """Memory of this process, MiB. Linux only."""
    return status_field('VmRSS')


def status_field(name: str) -> float:
    """A field of /proc/self/status, MiB."""
    lines = Path('/proc/self/status').read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f'{name}:')) / 1024
