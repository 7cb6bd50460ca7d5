"""Parts that several benchmarks share: prompts, images, trackers, facts about the machine, memory of the process."""
from __future__ import annotations

import argparse
import os
import platform
import time
from pathlib import Path

import numpy as np
import torch

from sam2_core import Prompt, Sam2Model, StreamTracker, load_model
from sam2_core.config import VARIANTS, variant

Box = tuple[float, float, float, float]


def boxes(objects: int, width: int, height: int | None = None) -> list[Box]:
    """Return one box (x0, y0, x1, y1) in pixels for each object, in a grid over the image (default: a square one)."""
    side = int(np.ceil(objects ** 0.5))
    right, down = width / side, (height or width) / side
    return [((i % side + 0.2) * right, (i // side + 0.2) * down, (i % side + 0.8) * right, (i // side + 0.8) * down)
            for i in range(objects)]


def moving_texture(number: int, side: int) -> np.ndarray:
    """Return image ``number`` of a texture that moves, uint8 RGB (side, side, 3)."""
    rows, columns = np.mgrid[:side, :side] + 3 * (number % 40)
    waves = [np.sin(rows / a) + np.sin(columns / b) for a, b in ((9, 14), (17, 11), (23, 29))]
    return (np.stack(waves, axis=-1) * 60 + 128).astype(np.uint8)


def random_model(name: str, image_size: int | None, device: torch.device | str = 'cpu') -> Sam2Model:
    """Return a model with random weights, which take as long as trained ones."""
    return Sam2Model(variant(name, image_size), name).eval().requires_grad_(False).to(device)


def make_model(name: str, image_size: int | None, device: torch.device | str, random_weights: bool) -> Sam2Model:
    """Return a model with its published weights, which are downloaded if necessary, or with random weights."""
    return random_model(name, image_size, device) if random_weights else (
        load_model(name, device=device, image_size=image_size))


@torch.inference_mode()
def full_tracker(model: Sam2Model, image: np.ndarray, objects: int) -> StreamTracker:
    """Return a tracker whose memories are full: one conditioning frame, six recent frames and sixteen pointers.

    All of them come from the same image.
    """
    tracker = StreamTracker(model)
    height, width = image.shape[:2]
    tracker.step(image, [Prompt(i + 1, box=box) for i, box in enumerate(boxes(objects, width, height))])
    for bank in tracker._banks.values():
        for _ in range(1, model.config.object_pointers):
            bank.write(bank._frames.storage[0].clone(), bank._pointers.storage[0].clone(), conditioning=False)
    return tracker


def facts(device: torch.device) -> dict:
    """Return the hardware, versions, date and load that belong to every result."""
    gpu = device.type == 'cuda'
    return {'hardware': torch.cuda.get_device_name(device) if gpu else processor(),
            'threads': torch.get_num_threads(), 'torch': torch.__version__, 'date': time.strftime('%Y-%m-%d'),
            'load': round(os.getloadavg()[0], 2)}


def processor() -> str:
    """Return the name of the CPU."""
    try:
        lines = Path('/proc/cpuinfo').read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(':')[2].strip() for line in lines if line.startswith('model name')]
    return names[0] if names else platform.processor() or 'CPU'


def resident() -> float:
    """Return the resident memory of this process in MiB. Linux only."""
    return status_field('VmRSS')


def status_field(name: str) -> float:
    """Return a field of /proc/self/status in MiB."""
    lines = Path('/proc/self/status').read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f'{name}:')) / 1024


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Add the options --model, --image-size, --random-weights and --device."""
    parser.add_argument('--model', default='nano', choices=list(VARIANTS), metavar='NAME',
                        help='model variant (default: nano)')
    parser.add_argument('--image-size', type=int, help='image size of the model in pixels (default: its own)')
    parser.add_argument('--random-weights', action='store_true',
                        help='use random weights instead of downloading published ones; they take the same time')
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu',
                        help='device of the model (default: cuda if available, else cpu)')


def add_output_options(parser: argparse.ArgumentParser) -> None:
    """Add the options --json and --plot."""
    parser.add_argument('--json', type=Path, metavar='FILE', help='write the results to this file, too')
    parser.add_argument('--plot', type=Path, metavar='FILE', help='write a plot of the results to this SVG file')
