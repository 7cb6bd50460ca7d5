"""Fine-tune nano on 40 clips of a new domain, and measure the gain on held-out clips.

    python benchmarks/finetune_example.py                    # under ten minutes on two cores

The clips resemble ultrasound: speckle, no colour, weak outlines, shadows behind bright tissue. They are written as a
DAVIS folder, and ``sam2_train`` runs on that folder as on any other. Then the models before and after training track
each object of 12 clips with other seeds from a box in the first frame. Forgetting is measured on scenes of the kind on
which nano was trained.
"""
from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from sam2_core import Prompt, StreamTracker, load_model
from sam2_core.masks import mask_box
from sam2_core.metrics import iou
from sam2_core.training.data import SyntheticClips

HEIGHT, WIDTH, FRAMES = 192, 256, 16
TRAINING_CLIPS, HELD_OUT_CLIPS, HELD_OUT_SEED = 40, 12, 10_000
OLD_CLIPS, OLD_SEED = 12, 1900


def smooth_noise(rng: np.random.Generator, cell: float) -> np.ndarray:
    """Return standard normal noise (HEIGHT, WIDTH) with patches of about ``cell`` pixels."""
    noise = cv2.GaussianBlur(rng.standard_normal((HEIGHT, WIDTH)), (0, 0), cell)
    return (noise - noise.mean()) / noise.std()


def organ(rng: np.random.Generator) -> dict:
    """Return the parameters of a closed shape that drifts, rotates and pulses, and of its echo."""
    return {'centre': rng.uniform((60, 50), (WIDTH - 60, HEIGHT - 50)), 'radius': rng.uniform(18, 38),
            'waves': rng.normal(0, 0.10, (3, 2)), 'drift': rng.normal(0, 1.3, 2), 'rotation': rng.normal(0, 0.03),
            'pulse': (rng.uniform(0.03, 0.12), rng.uniform(0.3, 0.8), rng.uniform(0, 6.28)),
            'echo': rng.choice([rng.uniform(0.15, 0.55), rng.uniform(1.5, 2.4)]), 'rim': rng.uniform(0.2, 1.0)}


def inside(shape: dict, frame: int) -> np.ndarray:
    """Return the distance to the outline divided by the radius, (HEIGHT, WIDTH), negative inside."""
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    x, y = shape['centre'] + shape['drift'] * frame
    angle = np.arctan2(rows - y, columns - x) + shape['rotation'] * frame
    outline = 1 + sum(a * np.cos(k * angle) + b * np.sin(k * angle) for k, (a, b) in enumerate(shape['waves'], 2))
    size, rate, phase = shape['pulse']
    return np.hypot(columns - x, rows - y) / (shape['radius'] * (1 + size * np.sin(rate * frame + phase))) - outline


def ultrasound_clip(seed: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Return FRAMES images, uint8 (H, W, 3), and label images, uint8 (H, W) with 0 for the background."""
    rng = np.random.default_rng(seed)
    organs = [organ(rng) for _ in range(rng.integers(1, 4))]
    tissue = 0.9 + 0.25 * smooth_noise(rng, 14)
    speckle = [np.hypot(smooth_noise(rng, 1.2), smooth_noise(rng, 1.2)) for _ in range(2)]
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    fan = np.abs(np.arctan2(columns - WIDTH / 2, rows + 60.0)) < 0.62
    images, masks = [], []
    for frame in range(FRAMES):
        echo, labels = tissue.copy(), np.zeros((HEIGHT, WIDTH), np.uint8)
        for number, shape in enumerate(organs, 1):
            away = inside(shape, frame)
            labels[away < 0] = number
            echo[away < 0] = shape['echo']
            echo += shape['rim'] * np.exp(-(away / 0.06) ** 2)
            if shape['echo'] > 1:  # bright tissue casts a shadow
                behind = np.maximum.accumulate(away < 0, axis=0) & (away > 0)
                echo[behind] *= 0.6
        moving = np.roll(speckle[0], frame, axis=1) * 0.75 + np.roll(speckle[1], -2 * frame, axis=0) * 0.25
        image = 95 * np.log1p(2.2 * np.maximum(echo, 0.03) * moving) * (1 - 0.35 * rows / HEIGHT) * fan
        image += rng.normal(0, 5, image.shape)
        images.append(np.repeat(np.clip(image, 0, 255).astype(np.uint8)[..., None], 3, axis=2))
        masks.append(labels * fan)
    return images, masks


def write_davis(folder: Path, seeds: range) -> None:
    """Write clips as JPEG images and grey PNG files of ids."""
    for seed in seeds:
        for kind in ('JPEGImages', 'Annotations'):
            (folder / kind / f'clip{seed:03}').mkdir(parents=True, exist_ok=True)
        for frame, (image, labels) in enumerate(zip(*ultrasound_clip(seed), strict=True)):
            cv2.imwrite(str(folder / 'JPEGImages' / f'clip{seed:03}' / f'{frame:05}.jpg'), image)
            cv2.imwrite(str(folder / 'Annotations' / f'clip{seed:03}' / f'{frame:05}.png'), labels)


def held_out() -> list[tuple[list[np.ndarray], list[dict[int, np.ndarray]]]]:
    """Return clips: images and, for each image, the masks of the objects that are in the first image."""
    clips = []
    for seed in range(HELD_OUT_SEED, HELD_OUT_SEED + HELD_OUT_CLIPS):
        images, labels = ultrasound_clip(seed)
        ids = [k for k in range(1, 4) if (labels[0] == k).sum() > 50]
        clips.append((images, [{k: label == k for k in ids} for label in labels]))
    return clips


def old_domain(size: int) -> list[tuple[list[np.ndarray], list[dict[int, np.ndarray]]]]:
    """Return clips of the kind on which nano was trained, from other seeds, as ``held_out`` does."""
    packed = SyntheticClips(OLD_SEED, FRAMES, size, chunk=OLD_CLIPS, textures=60)[0]
    clips = []
    for frames, masks in zip(packed.frames.numpy(), packed.masks.numpy(), strict=True):
        ids = [k for k in range(8) if ((masks[0] >> k) & 1).sum() > 100][:3]
        clips.append((list(frames), [{k + 1: (mask >> k & 1).astype(bool) for k in ids} for mask in masks]))
    return clips


def measure(checkpoint: Path | None, clips: list) -> dict[str, float]:
    """Return the mean J in the first frame and over all frames. Objects are prompted with a box in the first."""
    model = load_model('nano', checkpoint=checkpoint)
    first, all_frames = [], []
    for images, truth in clips:
        tracker = StreamTracker(model)
        prompts = [Prompt(k, box=mask_box(mask)) for k, mask in truth[0].items()]
        for frame, (image, masks) in enumerate(zip(images, truth, strict=True)):
            found = tracker.step(image, prompts if frame == 0 else []).objects
            scores = [iou(found[k].mask, mask) for k, mask in masks.items()]
            all_frames += scores
            first += scores if frame == 0 else []
    return {'first_frame': float(np.mean(first)), 'clip': float(np.mean(all_frames)), 'objects': len(first)}


def picture(path: Path, before: Path | None, after: Path, clips: list) -> None:
    """Write the last frames of some clips with outlines: truth (white), before (red), after (green)."""
    rows = []
    for images, truth in clips[:4]:
        row = []
        for checkpoint, colour in ((None, (255, 255, 255)), (before, (255, 80, 60)), (after, (60, 230, 90))):
            tracker = StreamTracker(load_model('nano', checkpoint=checkpoint))
            masks = truth[-1]
            if colour != (255, 255, 255):
                for frame, image in enumerate(images):
                    prompts = [Prompt(k, box=mask_box(m)) for k, m in truth[0].items()] if frame == 0 else []
                    result = tracker.step(image, prompts)
                masks = {k: item.mask for k, item in result.objects.items()}
            shown = images[-1].copy()
            for mask in masks.values():
                outlines, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
                cv2.drawContours(shown, outlines, -1, colour, 2)
            row.append(shown)
        rows.append(np.hstack(row))
    cv2.imwrite(str(path), np.vstack(rows)[..., ::-1])


def main() -> int:
    """Write the clips, train, and print the figures before and after."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--output', type=Path, default=Path('runs/finetune_example'), metavar='FOLDER',
                        help='folder of clips and results (default: runs/finetune_example)')
    parser.add_argument('--steps', type=int, default=160, help='number of training steps (default: 160)')
    parser.add_argument('--processes', type=int, default=1 if torch.cuda.is_available() else 2,
                        help='processes of one thread each (default: 1 on a GPU, else 2)')
    parser.add_argument('--checkpoint', type=Path, metavar='FILE', help='initial weights (default: the packaged nano)')
    options = parser.parse_args()
    started = time.monotonic()
    data, run = options.output / 'data', options.output / 'run'
    write_davis(data, range(TRAINING_CLIPS))
    command = [sys.executable, '-m', 'torch.distributed.run', '--nproc-per-node', str(options.processes),
               '-m', 'sam2_ros.train', '--model', 'nano', '--data', str(data), '--output', str(run),
               '--steps', str(options.steps), '--freeze', '--frames', '4', '--batch', '2', '--lr', '3e-4',
               '--lr', 'image_encoder=1.5e-4', '--ema', '0.98', '--workers', '0', '--validate-every', '40']
    command += ['--checkpoint', str(options.checkpoint)] if options.checkpoint else []
    subprocess.run(command, check=True, env={**os.environ, 'OMP_NUM_THREADS': '1'})
    minutes = (time.monotonic() - started) / 60
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    processor_minutes = (used.ru_utime + used.ru_stime) / 60

    after = run / 'weights.safetensors'
    new, old = held_out(), old_domain(load_model('nano', checkpoint=options.checkpoint).image_size)
    results: dict[str, Any] = {'minutes': minutes, 'processor_minutes': processor_minutes, 'steps': options.steps}
    table = Table(title=f'nano on {HELD_OUT_CLIPS} held-out clips; {options.steps} steps in {minutes:.1f} minutes, '
                        f'{processor_minutes:.1f} minutes of processor time')
    for column in ('', 'J, first frame', 'J, all frames'):
        table.add_column(column)
    for label, checkpoint in (('before', options.checkpoint), ('after', after)):
        for domain, clips in (('ultrasound', new), ('old scenes', old)):
            results[f'{label}, {domain}'] = found = measure(checkpoint, clips)
            table.add_row(f'{domain}, {label}', f'{found["first_frame"]:.3f}', f'{found["clip"]:.3f}')
    Console().print(table)
    picture(options.output / 'last_frames.png', options.checkpoint, after, new)
    (options.output / 'results.json').write_text(json.dumps(results, indent=1))
    print(f'figures and picture: {options.output}')
    return 0


if __name__ == '__main__':
    sys.exit(main())
