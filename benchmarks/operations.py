"""Count the operations of a frame without computing it, and the size of weights and memories. It needs no weights.

    python benchmarks/operations.py                                        # every model, some minutes
    python benchmarks/operations.py --models edgetam --image-sizes 768 --prompted-frames 4 --json operations.json

Counted are 2 operations for each multiply-add in matrix products, convolutions and attention, in a frame in which
objects are tracked: image encoder, memory attention with full memories, decoder, memory encoder. Normalisations,
activations, resizing, and the conversion of images and masks are not counted.

The same frame is counted in two ways. The plain one runs on a GPU, and on a CPU in half precision. A CPU in float32
averages values before it projects them, which saves operations of memory attention.
"""
from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch._subclasses.fake_tensor import FakeTensorMode

from benchmarks.lib.flop import count_flop
from sam2_core.config import VARIANTS, Sam2Config
from sam2_core.memory import MemoryBank, MemoryShapes
from sam2_core.memory_policy import MEMORY_POLICIES
from sam2_core.model import Sam2Model
from sam2_core.nn import attention
from sam2_core.tensors import MEMORY_DTYPE, Memory

WAYS = {'plain': torch.bfloat16, 'cpu_float32': torch.float32}  # the number type decides which way a CPU takes
CONDITIONING = 4  # frames that a tracker keeps by default
ONE_BLOCK = 1 << 20  # tokens; attention block by block has the same operations in one block, which is counted fastest
STAGES = ('encode_image', 'attend_memory', 'decode_masks', 'encode_memory')


def empty_model(config: Sam2Config, dtype: torch.dtype) -> Sam2Model:
    """Return a model on the CPU whose weights have no values and take no memory."""
    with torch.device('meta'):
        model = Sam2Model(config).eval().requires_grad_(False)
    return model.to(dtype).to_empty(device='cpu')


def frame(model: Sam2Model, objects: int, prompted: int) -> Callable[[], None]:
    """Return the stages of a frame in which objects with ``prompted`` conditioning frames each are tracked."""
    config = model.config
    frames, pointers = MemoryShapes(config, prompted).longest()

    def run() -> None:
        image = model.encode_image(torch.zeros(1, 3, config.image_size, config.image_size))
        memory = Memory(torch.zeros(objects, frames, config.memory_tokens, config.memory_dim, dtype=MEMORY_DTYPE),
                        torch.zeros(objects, frames, dtype=torch.int64),
                        torch.zeros(objects, pointers, config.d_model, dtype=model.dtype),
                        torch.ones(objects, pointers, dtype=torch.int64))
        _, masks = model.track_objects(image, memory)
        model.encode_memory(image, masks, torch.zeros(objects, dtype=torch.bool))

    return run


def operations(config: Sam2Config, dtype: torch.dtype, prompted: int = 1) -> dict[str, dict[str, int]]:
    """Return the operations of each stage and of all: of a frame with one object, and of each further object."""
    one, two = (operations_of(config, dtype, objects, prompted) for objects in (1, 2))
    return {'one_object': one, 'further_object': {name: two[name] - one[name] for name in one}}


@torch.no_grad()
def operations_of(config: Sam2Config, dtype: torch.dtype, objects: int, prompted: int = 1) -> dict[str, int]:
    """Return the operations of each stage and of all in a frame. Tensors have shapes, but no values.

    All objects have full memories with ``prompted`` conditioning frames.
    """
    model = empty_model(config, dtype)
    with (FakeTensorMode(allow_non_fake_inputs=True),
          patch.multiple(attention, QUERIES_AT_ONCE=ONE_BLOCK, KEYS_AT_ONCE=ONE_BLOCK)):
        counted = count_flop(model, frame(model, objects, prompted))
    return {name: counted[name] for name in (*STAGES, 'all')}


def sizes(config: Sam2Config) -> dict:
    """Return the number of parameters, the bytes of all weights in float32, and those of an object's memory."""
    model = empty_model(config, torch.float32)
    return {'parameters': sum(parameter.numel() for parameter in model.parameters()),
            'weights_bytes': sum(weight.nbytes for weight in model.state_dict().values()),
            'memory_bytes': {name: MemoryBank(config, CONDITIONING, torch.device('meta'), torch.float32, policy).nbytes
                             for name, policy in MEMORY_POLICIES.items()}}


def configurations(models: list[str], image_sizes: list[int]) -> list[tuple[str, Sam2Config]]:
    """Return the configurations to count. Raise ValueError for a size that a model cannot have.

    Without sizes, these are a model's own, and half of it for a published model.
    """
    found = []
    for name in models:
        config = VARIANTS[name]
        own = [config.image_size] if name == 'nano' else [config.image_size, config.image_size // 2]
        found += [(name, replace(config, image_size=size)) for size in image_sizes or own]
    return found


def tables(rows: list[dict], prompted: int) -> list[Table]:
    """Return a table of operations and a table of sizes."""
    counted = Table('model', 'image', 'encoder', 'attention', 'decoder', 'memory', 'first object', 'each further',
                    'CPU: first', 'each further', title=(
                        f'GFLOP of a frame with full memories, {prompted} of their frames prompted; of each further '
                        f'object; the last two columns in float32 on a CPU'))
    stored = Table('model', 'image', 'parameters, M', 'weights, MB', *MEMORY_POLICIES, title=(
        'float32; MiB of an object with each memory policy'))
    for row in rows:
        name, size, plain, exact = row['model'], str(row['image_size']), row['plain'], row['cpu_float32']
        counted.add_row(name, size, gflop(plain['one_object']['encode_image']), *(
            gflop(plain['further_object'][stage]) for stage in STAGES[1:]), *(
            gflop(way[part]['all']) for way in (plain, exact) for part in ('one_object', 'further_object')))
        stored.add_row(name, size, f'{row["parameters"] / 1e6:.1f}', f'{row["weights_bytes"] / 1e6:.0f}', *(
            f'{size / 2 ** 20:.2f}' for size in row['memory_bytes'].values()))
    return [counted, stored]


def gflop(operations: int) -> str:
    """Return a number of operations in GFLOP, with three digits."""
    value = operations / 1e9
    return f'{value:.0f}' if value >= 99.95 else f'{value:.1f}' if value >= 9.995 else f'{value:.2f}'


def main() -> None:
    """Count, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--models', nargs='+', default=list(VARIANTS), choices=list(VARIANTS), metavar='NAME',
                        help='model variants (default: all)')
    parser.add_argument('--image-sizes', nargs='+', type=int, default=[],
                        help="image sizes in pixels (default: each model's own, and half of it for published ones)")
    parser.add_argument('--prompted-frames', type=int, default=1, metavar='N',
                        help='number of prompted frames in the memory of each object (default: 1)')
    parser.add_argument('--json', type=Path, metavar='FILE', help='write the results to this file, too')
    options = parser.parse_args()
    if not 1 <= options.prompted_frames <= CONDITIONING:
        parser.error(f'--prompted-frames {options.prompted_frames}: must be 1 to {CONDITIONING}')
    try:
        chosen = configurations(options.models, options.image_sizes)
    except ValueError as error:
        parser.error(str(error))
    rows = []
    for name, config in track(chosen, description='counting', transient=True):
        counted = {way: operations(config, dtype, options.prompted_frames) for way, dtype in WAYS.items()}
        rows.append({'model': name, 'image_size': config.image_size, **sizes(config), **counted})
    Console(width=150).print(*tables(rows, options.prompted_frames))
    if options.json:
        result = {'torch': torch.__version__, 'prompted_frames': options.prompted_frames, 'rows': rows}
        options.json.write_text(json.dumps(result, indent=2) + '\n')


if __name__ == '__main__':
    main()
