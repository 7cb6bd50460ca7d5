"""Where a frame's time goes: stages of our model, arithmetic, the machine's peak, memory. For benchmarks/speed.py."""
from __future__ import annotations

import contextlib
import ctypes
import re
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from sam2_core import Sam2Model, StreamTracker

STAGES = ('encode_image', 'attend_memory', 'decode_masks', 'encode_memory')
REST = 'rest'  # images in, masks out, choice of masks, memory banks
Clock = Callable[[], float]


class Stopwatch:
    """Times of what runs on a device: events on a GPU, elsewhere a clock."""

    def __init__(self, device: torch.device, clock: Clock = time.perf_counter) -> None:
        self._gpu, self._clock = device.type == 'cuda', clock

    def mark(self):
        """This moment, on the device."""
        if not self._gpu:
            return self._clock()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def milliseconds(self, begin, end) -> float:
        """Between two marks; waits for the GPU."""
        if not self._gpu:
            return 1e3 * (end - begin)
        end.synchronize()
        return begin.elapsed_time(end)


@contextlib.contextmanager
def wrapped(model: Sam2Model, wrap: Callable[[str, Callable], Callable]) -> Iterator[None]:
    """The model with its stages wrapped: ``wrap(name, stage)`` takes the place of each."""
    before = dict(vars(model))
    for name in STAGES:
        object.__setattr__(model, name, wrap(name, getattr(model, name)))
    try:
        yield
    finally:
        for name in STAGES:
            if name in before:
                object.__setattr__(model, name, before[name])
            else:
                object.__delattr__(model, name)


def stage_times(tracker: StreamTracker, images: Sequence[np.ndarray], clock: Clock) -> dict[str, float]:
    """Milliseconds of each stage in a frame, medians; REST is what the whole frame takes beyond them."""
    watch = Stopwatch(tracker.model.device, clock)
    marks: list[tuple[str, object, object]] = []

    def wrap(name: str, stage: Callable) -> Callable:
        def run(*arguments, **options):
            begin = watch.mark()
            result = stage(*arguments, **options)
            marks.append((name, begin, watch.mark()))
            return result
        return run

    frames: dict[str, list[float]] = defaultdict(list)
    with wrapped(tracker.model, wrap):
        for image in images:
            marks.clear()
            begin = watch.mark()
            tracker.step(image)
            whole = watch.milliseconds(begin, watch.mark())
            taken = dict.fromkeys(STAGES, 0.0)
            for name, start, end in marks:
                taken[name] += watch.milliseconds(start, end)
            for name, value in taken.items():
                frames[name].append(value)
            frames[REST].append(whole - sum(taken.values()))
    return {name: statistics.median(values) for name, values in frames.items()}


def stage_flop(tracker: StreamTracker, image: np.ndarray) -> dict[str, float]:
    """GFLOP (two for each multiply-add) of matrix products, convolutions and attention in a frame, by stage."""
    counts: dict[str, float] = dict.fromkeys((*STAGES, REST), 0.0)

    def wrap(name: str, stage: Callable) -> Callable:
        def run(*arguments, **options):
            with FlopCounterMode(display=False) as counter:
                result = stage(*arguments, **options)
            counts[name] += counter.get_total_flops() / 1e9
            return result
        return run

    with wrapped(tracker.model, wrap), FlopCounterMode(display=False) as whole:
        tracker.step(image)
    # an inner counter may or may not hide what it counts from the outer one
    total, inner = whole.get_total_flops() / 1e9, sum(counts.values())
    counts[REST] = total - inner if total >= inner else total
    return counts


def peak_gflops(device: torch.device, dtype: torch.dtype, clock: Clock, seconds: float = 1.0) -> float:
    """GFLOP/s of a large square matrix product: the best of those that fit into the time, three at least."""
    side = 8192 if device.type == 'cuda' else 2048
    left, right = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    out, watch = torch.empty_like(left), Stopwatch(device, clock)
    torch.mm(left, right, out=out)
    best, runs, stop = 0.0, 0, time.monotonic() + seconds
    while runs < 3 or time.monotonic() < stop:
        begin = watch.mark()
        torch.mm(left, right, out=out)
        best = max(best, 2 * side ** 3 / watch.milliseconds(begin, watch.mark()) / 1e6)
        runs += 1
    return best


def step_memory(run: Callable[[], object], device: torch.device) -> float | None:
    """MiB that a step needs beyond what is held before it: the allocator's peak on a GPU.

    On a CPU: the peak of the process's resident memory, after the heap's free pages were given back; Linux with glibc
    only, else None.
    """
    if device.type == 'cuda':
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        torch.cuda.synchronize(device)
        return (torch.cuda.max_memory_allocated(device) - before) / 2 ** 20
    if sys.platform != 'linux':
        return None
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL('libc.so.6').malloc_trim(0)
        Path('/proc/self/clear_refs').write_text('5')  # the peak begins anew
        before = _resident('VmRSS')
        run()
        return max(0.0, _resident('VmHWM') - before)
    return None


def _resident(field: str) -> float:
    return int(re.search(rf'{field}:\s+(\d+) kB', Path('/proc/self/status').read_text())[1]) / 1024
