r"""Compare the time per frame with transformers and the package sam2, on the same weights in the same run.

    python benchmarks/speed.py                                   # tiny at 1024, 1 and 4 objects
    python benchmarks/speed.py --quick                           # nano and tiny at 256, a minute
    python benchmarks/speed.py --models nano sam2.1_hiera_tiny sam2.1_hiera_large --objects 1 2 4 8 16 \
        --devices cuda --dtype bfloat16 --compile --runs 9 --json speed.json --plot speed.svg

The sides take turns. The tables show medians, their ratios, and the IoU of the masks in the timed frames. Memories are
full (one conditioning frame, six recent frames, sixteen pointers), so that a timed frame costs as much as on a robot.
Weights are random, which does not change the time. After the timed frames, sam2_core runs a few more with a stopwatch
around each stage. Operations are counted in a frame before the timed ones. The peak of the machine is the fastest of
several large matrix products before each row, with the same dtype and threads. Peak memory is measured with each side
in a separate process. The package sam2 takes part if it is installed; it has neither nano nor EdgeTAM.
transformers needs timm for EdgeTAM.
"""
from __future__ import annotations

import argparse
import importlib.metadata
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.progress import track

from benchmarks.lib.flop import count_flop, flop_counter
from benchmarks.lib.parts import facts
from benchmarks.lib.speed_costs import DTYPES, Clock, matrix_product, peak_memory, stage_seconds
from benchmarks.lib.speed_report import complete, label, picture, tables
from benchmarks.lib.speed_sides import SIDES, Setting, Step, moving_scene, sides_for, write_weights
from sam2_core.config import VARIANTS
from sam2_core.metrics import iou

KEY = ('model', 'image_size', 'objects', 'device')  # identifies a row


def timed(step: Step, image: np.ndarray, device: torch.device, clock: Clock) -> tuple[float, list[np.ndarray]]:
    """Return the seconds of a step, and its masks."""
    if device.type == 'cuda':
        torch.cuda.synchronize(device)
    start = clock()
    masks = step(image)
    return clock() - start, masks


def median_ms(seconds: list[float]) -> float:
    """Return the median in milliseconds."""
    return statistics.median(seconds) * 1e3


class Measurement:
    """All sides for one model, image size and device, built once for all numbers of objects."""

    def __init__(self, setting: Setting, wanted: list[str], runs: int, warm_up: int, clock: Clock) -> None:
        """Build the models of the wanted sides."""
        self.setting, self.runs, self.warm_up, self.clock = setting, runs, warm_up, clock
        self.names = sides_for(setting.model, wanted)
        write_weights(setting)
        self.models = {name: SIDES[name].build(setting) for name in self.names}
        self._plain = SIDES['sam2_core'].build(replace(setting, compile='')) if setting.compile else (
            self.models['sam2_core'])  # operations of compiled code cannot be counted
        self.images = moving_scene(1 + warm_up + runs, setting.image_size)

    def row(self, objects: int) -> dict:
        """Return the figures for a number of objects, without memory."""
        setting, (first, *images) = self.setting, self.images
        started, warm_up = {}, {}
        for name in self.names:
            begin = self.clock()
            started[name] = SIDES[name].start(self.models[name], setting, first, objects)
            warm_up[name] = self.clock() - begin
        flop = self._count(objects, {name: step for name, (step, _) in started.items()})
        seconds: dict[str, list[float]] = {name: [] for name in self.names}
        overlaps: dict[str, list[float]] = {name: [] for name in self.names}
        title = f'{setting.model} {setting.image_size} px, {objects} objects, {setting.device}'
        for i, image in enumerate(track(images, description=title, transient=True)):
            turn, masks = i % len(self.names), {}
            for name in self.names[turn:] + self.names[:turn]:
                elapsed, masks[name] = timed(started[name][0], image, setting.device, self.clock)
                seconds[name].append(elapsed)
            if i >= self.warm_up:
                for name in self.names:
                    overlaps[name] += [iou(a, b) for a, b in zip(masks['sam2_core'], masks[name], strict=True)]
        sides = {name: {'ms': median_ms(seconds[name][self.warm_up:]), 'flop': flop[name]['all'],
                        'warm_up_s': warm_up[name] + sum(seconds[name][:self.warm_up]),
                        'mask_iou': float(np.mean(overlaps[name]))} for name in self.names}
        step, tracker = started['sam2_core']
        return {'model': setting.model, 'image_size': setting.image_size, 'objects': objects,
                'device': str(setting.device), 'runs': self.runs, 'sides': sides,
                'stages': self._stages(step, flop['sam2_core']), 'tracker_mib': tracker.memory_bytes / 2 ** 20}

    def _count(self, objects: int, steps: dict[str, Step]) -> dict[str, dict]:
        """Return the operations of a frame of each side. Those of the compiled sam2 are unknown."""
        first, image = self.images[0], self.images[1]
        counted: dict[str, dict] = {}
        for name in self.names:
            if name == 'sam2_core':
                step = steps[name] if not self.setting.compile else SIDES[name].start(
                    self._plain, replace(self.setting, compile=''), first, objects)[0]
                counted[name] = count_flop(self._plain, lambda step=step: step(image))
            elif self.setting.compile == 'inductor' and name == 'sam2':
                counted[name] = {'all': None}
            else:
                with flop_counter() as counter:
                    steps[name](image)
                counted[name] = {'all': counter.get_total_flops()}
        return counted

    def _stages(self, step: Step, flop: dict[str, int]) -> dict[str, dict]:
        """Return the median time and the operations of each stage of sam2_core."""
        model, setting = self.models['sam2_core'], self.setting
        runs = [stage_seconds(model, lambda image=image: step(image), setting.device, self.clock)
                for image in self.images[-min(5, self.runs):]]
        inside = sum(flop[stage] for stage in runs[0] if stage in flop)
        return {stage: {'ms': median_ms([run[stage] for run in runs]), 'flop': flop.get(stage, flop['all'] - inside)}
                for stage in runs[0]}


def measure(options: argparse.Namespace, result: dict, save: Callable[[], None]) -> None:
    """Append rows to ``result['rows']`` and save after each."""
    clock = time.process_time if options.processor_time else time.perf_counter
    dtype, done = getattr(torch, options.dtype), {tuple(row[key] for key in KEY) for row in result['rows']}
    folder = Path.home() / '.cache' / 'sam2_ros_benchmarks'
    for device in options.devices:
        for name in options.models:
            for size in options.image_sizes or [VARIANTS[name].image_size]:
                counts = [count for count in options.objects if (name, size, count, str(device)) not in done]
                if not counts:
                    continue
                setting = Setting(name, size, device, dtype, folder / f'{name}.pt', options.compile)
                warm_up = options.warm_up or (3 if device.type == 'cuda' else 1)
                measurement, rows = Measurement(setting, options.sides, options.runs, warm_up, clock), []
                for count in counts:
                    peak = matrix_product(device, dtype, clock)
                    result['peak_flop_per_s'][str(device)] = max(peak, result['peak_flop_per_s'].get(str(device), 0.0))
                    rows.append(measurement.row(count))
                    result['rows'].append(rows[-1])
                    save()
                names = measurement.names
                del measurement
                if options.memory:
                    for side in track(names, description=f'memory of {label(rows[0])}', transient=True):
                        peaks = peak_memory(side, setting, counts)
                        for row in rows:
                            row['sides'][side]['peak_mib'] = peaks[row['objects']]
                    save()


def parse() -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--models', nargs='+', default=['sam2.1_hiera_tiny'], choices=list(VARIANTS), metavar='NAME',
                        help='model variants (default: sam2.1_hiera_tiny)')
    parser.add_argument('--objects', nargs='+', type=int, default=[1, 4], help='numbers of objects (default: 1 4)')
    parser.add_argument('--image-sizes', nargs='+', type=int, help="image sizes in pixels (default: each model's own)")
    parser.add_argument('--devices', nargs='+', type=torch.device,
                        default=[torch.device('cuda' if torch.cuda.is_available() else 'cpu')],
                        help='devices (default: cuda if available, else cpu)')
    parser.add_argument('--dtype', default='float32', choices=DTYPES,
                        help='floating-point type of the models (default: float32)')
    parser.add_argument('--compile', nargs='?', const='inductor', default='', metavar='BACKEND',
                        help='compile sam2_core with load_model(..., compile=BACKEND); with inductor, the default, '
                             'compile sam2 in its own way, too; transformers has none')
    parser.add_argument('--sides', nargs='+', default=list(SIDES), choices=list(SIDES),
                        help='sides to compare; sam2_core is always included (default: all)')
    parser.add_argument('--runs', type=int, default=3, help='number of timed frames (default: 3)')
    parser.add_argument('--warm-up', type=int, help='number of frames before them, at least 1 (default: 1, on a GPU 3)')
    parser.add_argument('--quick', action='store_true', help='only nano and tiny at 256 pixels, 1 and 4 objects')
    parser.add_argument('--no-memory', dest='memory', action='store_false', help='do not measure peak memory')
    parser.add_argument('--processor-time', action='store_true',
                        help='measure processor time, for a CPU that does other work, too; set OMP_NUM_THREADS=1')
    parser.add_argument('--json', type=Path, metavar='FILE', help='write the results to this file after each row')
    parser.add_argument('--resume', action='store_true', help='continue the file of --json: skip the rows that it has')
    parser.add_argument('--plot', type=Path, metavar='FILE', help='write a plot of the results to this SVG file')
    options = parser.parse_args()
    if options.processor_time and any(device.type == 'cuda' for device in options.devices):
        parser.error('--processor-time: cannot measure a GPU; measure a CPU (--devices cpu)')
    if options.resume and not options.json:
        parser.error('--resume: needs --json FILE')
    if options.runs < 1 or min(options.objects) < 1:
        parser.error(f'--runs {options.runs}, --objects {options.objects}: must be at least 1')
    if options.quick:
        options.models, options.image_sizes, options.objects = ['nano', 'sam2.1_hiera_tiny'], [256], [1, 4]
    options.sides = ['sam2_core', *(name for name in options.sides if name != 'sam2_core')]
    return options


def version(package: str) -> str | None:
    """Return the version of a package, or None if it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def main() -> None:
    """Measure, save and print tables."""
    options = parse()
    result = facts(options.devices[0]) | {
        'transformers': version('transformers'), 'sam2': version('sam2'), 'dtype': options.dtype,
        'compile': options.compile, 'clock': 'ms of processor time' if options.processor_time else 'ms',
        'peak_flop_per_s': {}, 'rows': []}
    if options.resume and options.json.exists():
        earlier = json.loads(options.json.read_text())
        differing = [key for key in ('hardware', 'threads', 'torch', 'dtype', 'compile', 'clock')
                     if earlier[key] != result[key]]
        if differing:
            raise SystemExit(f'--resume: {options.json} was measured with another {", ".join(differing)}; choose '
                             f'another file')
        result = earlier

    def save() -> None:
        if options.json:
            options.json.write_text(json.dumps(complete(result), indent=2) + '\n')

    measure(options, result, save)
    complete(result)
    tables(result, Console(width=150))
    if options.plot:
        picture(result, options.plot)


if __name__ == '__main__':
    main()
