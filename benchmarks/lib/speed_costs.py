"""Costs that speed.py measures besides whole frames: peak of the machine, time of each stage, memory."""
from __future__ import annotations

import argparse
import ctypes
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.lib.flop import COMPILED_STAGES, STAGES, around_stages
from benchmarks.lib.parts import resident, status_field
from benchmarks.lib.speed_sides import SIDES, Setting
from sam2_core.config import VARIANTS

Clock = Callable[[], float]
REST = 'images in, masks out'  # the stage of everything that is not in STAGES
DTYPES = ('float32', 'bfloat16', 'float16')


class Stopwatch:
    """Sum of the times between ``mark`` and ``stop``, by events on a GPU, which do not delay it, else by a clock."""

    def __init__(self, device: torch.device, clock: Clock) -> None:
        self._gpu, self._clock = device.type == 'cuda', clock
        self._marks: list[tuple[Any, Any]] = []

    def mark(self) -> Any:
        """Return a start time for ``stop``."""
        if not self._gpu:
            return self._clock()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def stop(self, start: Any) -> None:
        """Add the time since a mark."""
        self._marks.append((start, self.mark()))

    def seconds(self) -> float:
        """Return the sum in seconds. Synchronise a GPU before the call."""
        return sum(a.elapsed_time(b) / 1e3 if self._gpu else b - a for a, b in self._marks)


def stage_seconds(model: nn.Module, frame: Callable[[], object], device: torch.device,
                  clock: Clock) -> dict[str, float]:
    """Return the seconds of one frame of sam2_core by stage; REST is the conversion of images and masks."""
    stages = STAGES if model.compiled is None else COMPILED_STAGES
    watches = {stage: Stopwatch(device, clock) for stage in [*stages.values(), REST]}

    def around(stage: str, method: Callable) -> Callable:
        def run(*arguments: Any, **options: Any) -> Any:
            start = watches[stage].mark()
            result = method(*arguments, **options)
            watches[stage].stop(start)
            return result
        return run

    with around_stages(model, around):
        start = watches[REST].mark()
        frame()
        watches[REST].stop(start)
    if device.type == 'cuda':
        torch.cuda.synchronize(device)
    seconds = {stage: watch.seconds() for stage, watch in watches.items()}
    seconds[REST] = max(0.0, seconds[REST] - sum(value for stage, value in seconds.items() if stage != REST))
    return seconds


def matrix_product(device: torch.device, dtype: torch.dtype, clock: Clock) -> float:
    """Return the FLOP/s of the fastest of a few large matrix products."""
    gpu = device.type == 'cuda'
    side, runs = (8192, 10) if gpu else (2048, 4)
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    best = 0.0
    for _ in range(runs):
        watch = Stopwatch(device, clock)
        start = watch.mark()
        a @ b
        watch.stop(start)
        if gpu:
            torch.cuda.synchronize(device)
        best = max(best, 2 * side ** 3 / watch.seconds())
    return best


# --- memory: each side runs in a separate process

def peak_memory(side: str, setting: Setting, objects: list[int]) -> dict[int, float]:
    """Return the peak memory of a side in MiB for each number of objects, weights and state included.

    On a GPU it is the peak of the tensors. On a CPU it is the peak growth of the process after all imports, which
    includes buffers that PyTorch keeps.
    """
    command = [sys.executable, __file__, side, setting.model, str(setting.image_size), str(setting.device),
               str(setting.dtype).removeprefix('torch.'), str(setting.weights), *map(str, objects)]
    done = subprocess.run([*command, '--compile', setting.compile], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f'memory of {side}: {" ".join(command)} ended with {done.returncode}:\n'
                           f'{done.stderr[-3000:]}')
    return {int(count): mib for count, mib in json.loads(done.stdout.splitlines()[-1]).items()}


def measure_memory(side: str, setting: Setting, objects: list[int]) -> dict[int, float]:
    """Return the peak memory of a side in this process, which must have done nothing else."""
    from testing.reference import moving_scene
    gpu = setting.device.type == 'cuda'
    images = moving_scene(3, setting.image_size)
    imported = resident()
    model = SIDES[side].build(setting)
    peaks = {}
    for count in sorted(objects):
        if gpu:
            torch.cuda.reset_peak_memory_stats(setting.device)
        else:
            ctypes.CDLL(None).malloc_trim(0)  # returns the memory that loading has freed
            Path('/proc/self/clear_refs').write_text('5')  # resets VmHWM
        step, state = SIDES[side].start(model, setting, images[0], count)
        for image in images[1:]:
            step(image)
        peaks[count] = torch.cuda.max_memory_allocated(setting.device) / 2 ** 20 if gpu else (
            status_field('VmHWM') - imported)
        del step, state
    return peaks


def main() -> None:
    """Print the peak memory of one side as JSON."""
    parser = argparse.ArgumentParser(description=measure_memory.__doc__)
    parser.add_argument('side', choices=list(SIDES))
    parser.add_argument('model', choices=list(VARIANTS))
    parser.add_argument('image_size', type=int)
    parser.add_argument('device', type=torch.device)
    parser.add_argument('dtype', choices=DTYPES)
    parser.add_argument('weights', type=Path)
    parser.add_argument('objects', type=int, nargs='+')
    parser.add_argument('--compile', default='')
    options = parser.parse_args()
    setting = Setting(options.model, options.image_size, options.device, getattr(torch, options.dtype), options.weights,
                      options.compile)
    print(json.dumps(measure_memory(options.side, setting, options.objects)))


if __name__ == '__main__':
    main()
