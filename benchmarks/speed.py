"""Time per frame with full memories, beside transformers' Sam2VideoModel on the same weights in the same run.

    python benchmarks/speed.py                                   # tiny at 1024, 1 and 4 objects
    python benchmarks/speed.py --models nano sam2.1_hiera_large --objects 1 8 16 --device cuda --dtype bfloat16

The two sides take turns; medians and their ratio are shown, with the overlap of their masks in the timed frames beside
them. Memories are filled first (one conditioning frame, six recent ones, sixteen pointers), so that every timed frame
costs what frames cost on a robot. Weights are random: they do not change the time.
"""
from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from transformers.models.sam2_video.modeling_sam2_video import Sam2VideoInferenceSession

from sam2_core import Prompt, StreamTracker, load_model
from sam2_core.config import VARIANTS
from sam2_core.metrics import iou

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / 'test' / 'core'))
from reference import moving_scene, pixel_values, published_state, reference_model  # noqa: E402

Step = Callable[[np.ndarray], list[np.ndarray]]  # an image -> one mask (image_size / 4 squared) for each object
FILLED = 16  # frames after which memories do not get longer


def boxes(objects: int, size: int) -> list[tuple[float, float, float, float]]:
    """As many boxes as wanted, in a grid."""
    side = int(np.ceil(objects ** 0.5))
    cell = size / side
    return [((i % side + 0.2) * cell, (i // side + 0.2) * cell, (i % side + 0.8) * cell, (i // side + 0.8) * cell)
            for i in range(objects)]


@torch.inference_mode()
def our_tracker(model, image: np.ndarray, objects: int) -> tuple[StreamTracker, Step]:
    """A tracker whose memories are full, and its step."""
    tracker = StreamTracker(model)
    tracker.step(image, [Prompt(i + 1, box=box) for i, box in enumerate(boxes(objects, model.image_size))])
    for bank in tracker._banks.values():
        for _ in range(1, FILLED):
            bank.write(bank._frames.storage[0].clone(), bank._pointers.storage[0].clone(), conditioning=False)

    def step(image: np.ndarray) -> list[np.ndarray]:
        return [(item.logits > 0).cpu().numpy() for item in tracker.step(image).objects.values()]

    return tracker, step


@torch.inference_mode()
def their_step(model, image: np.ndarray, objects: int, device: torch.device, dtype: torch.dtype) -> Step:
    """transformers' streaming session with full memories."""
    session = Sam2VideoInferenceSession(inference_device=device, inference_state_device=device, dtype=dtype)
    for i, box in enumerate(boxes(objects, model.config.image_size)):
        session.obj_id_to_idx(i + 1)
        session.add_point_inputs(i, 0, {
            'point_coords': torch.tensor(box, device=device).reshape(1, 1, 2, 2).to(dtype),
            'point_labels': torch.tensor([[[2, 3]]], dtype=torch.int32, device=device)})
    session.obj_with_new_inputs = list(range(1, objects + 1))

    def show(image: np.ndarray, number: int):
        frame = pixel_values(image).to(device, dtype)
        return model(session, frame=frame, frame_idx=number).pred_masks

    show(image, 0)
    for outputs in session.output_dict_per_obj.values():
        for number in range(1, FILLED):
            outputs['non_cond_frame_outputs'][number] = outputs['cond_frame_outputs'][0]
    number = FILLED

    @torch.inference_mode()
    def step(image: np.ndarray) -> list[np.ndarray]:
        nonlocal number
        masks = show(image, number) > 0
        number += 1
        return list(masks.reshape(objects, *masks.shape[-2:]).cpu().numpy())

    return step


def timed(step: Step, image: np.ndarray, device: torch.device,
          clock: Callable[[], float]) -> tuple[float, list[np.ndarray]]:
    """Seconds, masks."""
    if device.type == 'cuda':
        torch.cuda.synchronize(device)
    start = clock()
    masks = step(image)
    return clock() - start, masks


def measure(name: str, image_size: int | None, objects: list[int], device: torch.device, dtype: torch.dtype,
            runs: int, folder: Path, clock: Callable[[], float]) -> list[dict]:
    """One row for each number of objects."""
    size = image_size or VARIANTS[name].image_size
    theirs = reference_model(name, size)
    torch.save({'model': published_state(theirs)}, folder / 'weights.pt')
    ours = load_model(name, folder / 'weights.pt', device=device, dtype=dtype, image_size=size)
    theirs = theirs.to(device, dtype)
    images = moving_scene(runs + 2, size)
    rows = []
    for count in objects:
        tracker, our_step = our_tracker(ours, images[0], count)
        steps = {'ours': our_step, 'theirs': their_step(theirs, images[0], count, device, dtype)}
        seconds: dict[str, list[float]] = {'ours': [], 'theirs': []}
        overlaps = []
        for i, image in enumerate(track(images[1:], description=f'{name} {size} px, {count} objects', transient=True)):
            masks = {}
            for side in ('ours', 'theirs') if i % 2 else ('theirs', 'ours'):
                elapsed, masks[side] = timed(steps[side], image, device, clock)
                if i:  # the first frame warms up
                    seconds[side].append(elapsed)
            overlaps += [iou(a, b) for a, b in zip(masks['ours'], masks['theirs'], strict=True)]
        our_median, their_median = (statistics.median(seconds[side]) for side in ('ours', 'theirs'))
        rows.append({'model': name, 'image_size': size, 'objects': count, 'ours_ms': our_median * 1e3,
                     'transformers_ms': their_median * 1e3, 'ratio': their_median / our_median,
                     'mean_iou': float(np.mean(overlaps)), 'tracker_mib': tracker.memory_bytes / 2 ** 20})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--models', nargs='+', default=['sam2.1_hiera_tiny'], choices=list(VARIANTS),
                        metavar='NAME')
    parser.add_argument('--objects', nargs='+', type=int, default=[1, 4])
    parser.add_argument('--image-size', type=int, help="default: the model's own")
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    parser.add_argument('--dtype', default='float32', choices=['float32', 'bfloat16', 'float16'])
    parser.add_argument('--runs', type=int, default=3, help='timed frames')
    parser.add_argument('--processor-time', action='store_true',
                        help='instead of the clock: for a CPU that does other work too, with OMP_NUM_THREADS=1')
    parser.add_argument('--json', type=Path, help='write the figures here too')
    arguments = parser.parse_args()
    device, dtype = torch.device(arguments.device), getattr(torch, arguments.dtype)
    if arguments.processor_time and device.type == 'cuda':
        parser.error('--processor-time says nothing about a GPU')
    clock = time.process_time if arguments.processor_time else time.perf_counter
    hardware = torch.cuda.get_device_name(device) if device.type == 'cuda' else platform.processor() or 'CPU'
    folder = Path.home() / '.cache' / 'sam2_ros_benchmarks'
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for name in arguments.models:
        rows += measure(name, arguments.image_size, arguments.objects, device, dtype, arguments.runs, folder, clock)

    kind = 'milliseconds of processor time' if arguments.processor_time else 'milliseconds'
    table = Table(title=f'{kind} per frame, {hardware}, {torch.get_num_threads()} CPU threads, '
                        f'{arguments.dtype}, torch {torch.__version__}, {time.strftime("%Y-%m-%d")}')
    for column in ('model', 'image', 'objects', 'sam2_core', 'transformers', 'ratio', 'mask IoU', 'tracker MiB'):
        table.add_column(column, justify='left' if column == 'model' else 'right')
    for row in rows:
        table.add_row(row['model'], str(row['image_size']), str(row['objects']), f'{row["ours_ms"]:.1f}',
                      f'{row["transformers_ms"]:.1f}', f'{row["ratio"]:.2f}', f'{row["mean_iou"]:.4f}',
                      f'{row["tracker_mib"]:.2f}')
    Console(width=130).print(table)
    if arguments.json:
        arguments.json.write_text(json.dumps({
            'hardware': hardware, 'threads': torch.get_num_threads(), 'dtype': arguments.dtype,
            'processor_time': arguments.processor_time,
            'torch': torch.__version__, 'date': time.strftime('%Y-%m-%d'), 'rows': rows}, indent=2) + '\n')


if __name__ == '__main__':
    main()
