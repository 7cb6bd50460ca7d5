"""How well nano segments and tracks: held-out synthetic clips through the real ImageSegmenter and StreamTracker.

    python benchmarks/nano_quality.py --clips 100 --weights sam2_core/weights/nano.safetensors --json nano.json

Clip ``i`` has the seed (SEED, i) and textures of their own; no training seed reaches SEED. Every clip has 60 frames of
256 x 256 pixels and up to three objects, each prompted with its exact box in the first frame. Two runs give equal
figures. ``--from`` and ``--clips`` cut the set into parts; ``--merge`` joins their results.
"""
from __future__ import annotations

import argparse
import json
import time
from collections import defaultdict
from pathlib import Path

import cv2
import numpy as np
import torch

from sam2_core import ImageSegmenter, Prompt, StreamTracker
from sam2_core.config import VARIANTS
from sam2_core.masks import mask_box
from sam2_core.metrics import boundary_f, iou
from sam2_core.training.checkpoints import load_weights
from sam2_core.training.clips import Clip
from sam2_core.training.scenes import make_clip
from sam2_core.training.sprites import ClutterBank
from sam2_core.training.textures import TextureBank

SEED = 9000
TEXTURES = 120
FRAMES = 60
OBJECTS = 3
HIDDEN_LEAST = 2  # frames; shorter absences are no test of recovery
RECOVERY_FRAMES = 7
CORRECTION_FRAME = 30


def inner_point(region: np.ndarray) -> tuple[int, int]:
    """The pixel (x, y) farthest from the edge of a bool region."""
    depth = cv2.distanceTransform(np.pad(region, 1).astype(np.uint8), cv2.DIST_L2, 5)[1:-1, 1:-1]
    y, x = np.unravel_index(int(depth.argmax()), depth.shape)
    return int(x), int(y)


def error_point(predicted: np.ndarray, true: np.ndarray) -> tuple[tuple[int, int], int]:
    """Where a user would click: well inside the largest error; and the label, 1 where the object was missed."""
    wrong = predicted ^ true
    if not wrong.any():
        return inner_point(true), 1
    count, labels, stats, _ = cv2.connectedComponentsWithStats(wrong.astype(np.uint8))
    largest = 1 + int(stats[1:, cv2.CC_STAT_AREA].argmax())
    x, y = inner_point(labels == largest)
    return (x, y), int(true[y, x])


def first_frame(segmenter: ImageSegmenter, clip: Clip, figures: dict[str, list[float]]) -> None:
    """IoU in one image from a box, one click, and clicks that correct."""
    image = segmenter.encode(clip.frames[0])
    for true in clip.masks[0, :OBJECTS]:
        figures['box'].append(iou(segmenter.segment(image, Prompt(box=mask_box(true))).masks[0], true))
        points, labels = [inner_point(true)], [1]
        found = segmenter.segment(image, Prompt(points=points, labels=labels), multimask=True)
        best = int(found.scores.argmax())
        figures['one_click'].append(iou(found.masks[best], true))
        figures['one_click_oracle'].append(max(iou(mask, true) for mask in found.masks))
        mask, logits = found.masks[best], found.logits[best]
        for _ in range(2):
            point, label = error_point(mask, true)
            points, labels = [*points, point], [*labels, label]
            found = segmenter.segment(image, Prompt(points=points, labels=labels), previous_logits=logits)
            mask, logits = found.masks[0], found.logits[0]
        figures['three_clicks'].append(iou(mask, true))


def track(model, clip: Clip, correct: bool) -> tuple[np.ndarray, np.ndarray]:
    """Masks bool (T, K, H, W) and presence bool (T, K) from boxes in the first frame.

    ``correct``: also one click on each visible object in frame ``CORRECTION_FRAME``, where it is most wrong there.
    """
    tracker = StreamTracker(model)
    count = min(OBJECTS, clip.masks.shape[1])
    prompts = [Prompt(k + 1, box=mask_box(clip.masks[0, k])) for k in range(count)]
    masks, present = [], []
    for t, image in enumerate(clip.frames):
        if correct and t == CORRECTION_FRAME:  # judged by the frame before: a live user sees no later one
            for k in range(count):
                if clip.visible[t, k]:
                    point, label = error_point(masks[-1][k], clip.masks[t, k])
                    prompts.append(Prompt(k + 1, points=[point], labels=[label]))
        result = tracker.step(image, prompts)
        prompts = []
        masks.append(np.stack([result.objects[k + 1].mask for k in range(count)]))
        present.append([result.objects[k + 1].object_score > 0 for k in range(count)])
    return np.stack(masks), np.array(present)


def judge(clip: Clip, masks: np.ndarray, present: np.ndarray, figures: dict[str, list[float]]) -> None:
    """Add what one tracked clip says."""
    for k in range(masks.shape[1]):
        true, visible = clip.masks[:, k], clip.visible[:, k]
        j = np.array([iou(a, b) for a, b in zip(masks[:, k], true, strict=True)])
        figures['J'].extend(j[1:])
        figures['F'].extend(boundary_f(a, b) for a, b in zip(masks[1:, k], true[1:], strict=True))
        figures['J_copy_first'].extend(iou(true[0], b) for b in true[1:])
        figures['J_visible'].extend(j[1:][visible[1:]])
        figures['visible_called_present'].extend(present[1:, k][visible[1:]])
        figures['hidden_called_absent'].extend(~present[1:, k][~visible[1:]])
        figures['J_first_10'].extend(j[1:11][visible[1:11]])
        figures['J_last_10'].extend(j[-10:][visible[-10:]])
        figures['recovered'].extend(_recoveries(j, visible))
        for t in np.flatnonzero(visible[1:]) + 1:
            rivals = [iou(masks[t, k], clip.masks[t, other]) for other in range(clip.masks.shape[1])
                      if other != k and clip.visible[t, other]]
            figures['on_another_object'].append(max(rivals, default=0.0) > max(0.3, j[t]))


def _recoveries(j: np.ndarray, visible: np.ndarray) -> list[bool]:
    """For each return after a full absence: is the object held again within the next visible frames?"""
    found, hidden = [], 0
    for t in range(1, len(visible)):
        if visible[t] and hidden >= HIDDEN_LEAST:
            after = np.flatnonzero(visible[t:t + RECOVERY_FRAMES]) + t
            if len(after) >= 3:
                found.append(bool(j[after].mean() > 0.5))
        hidden = 0 if visible[t] else hidden + 1
    return found


def run(model, first: int, clips: int, corrections: bool) -> dict[str, list[float]]:
    """All figures of ``clips`` clips, as lists to be averaged."""
    figures: dict[str, list[float]] = defaultdict(list)
    clutter = ClutterBank(TextureBank(SEED, TEXTURES), 60)
    for number in range(first, first + clips):
        clip = make_clip((SEED, number), clutter, FRAMES)
        if not clip.masks.shape[1]:
            continue
        with torch.inference_mode():
            first_frame(ImageSegmenter(model), clip, figures)
            masks, present = track(model, clip, correct=False)
            judge(clip, masks, present, figures)
            if corrections:
                after = slice(CORRECTION_FRAME + 1, None)
                better, _ = track(model, clip, correct=True)
                for name, these in (('J_after_uncorrected', masks), ('J_after_correction', better)):
                    for k in range(these.shape[1]):
                        figures[name].extend(iou(a, b) for a, b, seen in zip(
                            these[after, k], clip.masks[after, k], clip.visible[after, k], strict=True) if seen)
        print(f'clip {number}: J&F so far {np.mean(figures["J"]) / 2 + np.mean(figures["F"]) / 2:.3f}', flush=True)
    return figures


def summary(figures: dict[str, list[float]]) -> dict[str, float | int]:
    """Means, and how many there were of what is rare."""
    result = {name: round(float(np.mean(values)), 4) for name, values in figures.items() if len(values)}
    result['J&F'] = round((result['J'] + result['F']) / 2, 4)
    result['drift'] = round(result['J_first_10'] - result['J_last_10'], 4)
    return result | {'objects': len(figures['box']), 'object_frames': len(figures['J']),
                     'hidden_frames': len(figures['hidden_called_absent']), 'returns': len(figures['recovered'])}


def main() -> None:
    """Measure, or join what was measured in parts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--weights', type=Path, default=None, help='safetensors; default: the packaged nano')
    parser.add_argument('--clips', type=int, default=100)
    parser.add_argument('--from', dest='first', type=int, default=0, help='number of the first clip')
    parser.add_argument('--device', default='cpu')
    parser.add_argument('--threads', type=int, default=torch.get_num_threads())
    parser.add_argument('--corrections', action='store_true', help='track again with one correction in frame 30')
    parser.add_argument('--json', type=Path, help='write the result here')
    parser.add_argument('--merge', type=Path, nargs='+', help='results of parts to join')
    options = parser.parse_args()
    if options.merge:
        figures: dict[str, list[float]] = defaultdict(list)
        for part in options.merge:
            for name, values in json.loads(part.read_text())['values'].items():
                figures[name].extend(values)
    else:
        torch.set_num_threads(options.threads)
        cv2.setNumThreads(1)
        from sam2_core.checkpoint import find_weights
        weights = options.weights or find_weights('nano')
        started = time.monotonic()
        figures = run(load_weights(weights, VARIANTS['nano']).to(options.device), options.first, options.clips,
                      options.corrections)
        print(f'{time.monotonic() - started:.0f} s')
    result = summary(figures)
    for name, value in result.items():
        print(f'{name:28} {value}')
    if options.json:
        values = {name: [round(float(v), 4) for v in list_] for name, list_ in figures.items()}
        options.json.write_text(json.dumps({'summary': result, 'values': values}))


if __name__ == '__main__':
    main()
